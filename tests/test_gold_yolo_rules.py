"""Gold-YOLO's assigners and losses against their rules written out in NumPy; runs in both environments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import backend
from lib.data import boxes
from lib.losses.gold_yolo import atss, giou_loss, siou_loss, task_aligned, varifocal
from lib.models.gold_yolo import STRIDES

SEEDS = st.integers(0, 2**32 - 1)


# ------------------------------------------------------------------------------------------------------ assigners
def overlap(first, second, extra):
    """IoU of two boxes with `extra` added to the union; boxes whose sides are the wrong way round have no area."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = np.prod(np.maximum(high - low, 0))
    return shared / (sum(np.prod(np.maximum(box[2:] - box[:2], 0)) for box in (first, second)) - shared + extra)


def inside(box, point):
    return min(*(point - box[:2]), *(box[2:] - point)) > 1e-9


def settled(claims, overlaps):
    """Each cell's box (0: none): of several claims that of the highest overlap among all boxes."""
    return np.array(
        [
            0 if not column.any() else 1 + (column.argmax() if column.sum() == 1 else overlaps[:, i].argmax())
            for i, column in enumerate(claims.T)
        ]
    )


def plain_task_aligned(scores, predicted, points, gt_boxes, gt_labels):
    """The fact sheet's rule, cell by cell."""
    overlaps = np.array([[overlap(box, other, 1e-9) for other in predicted] for box in gt_boxes])
    metric = np.array([scores[:, label] for label in gt_labels]) * overlaps**6
    within = np.array([[inside(box, point) for point in points] for box in gt_boxes])
    claims = np.zeros(metric.shape, bool)
    for j in range(len(gt_boxes)):
        claims[j, np.argsort(-metric[j] * within[j], kind="stable")[:13]] = True
    box = settled(claims & within, overlaps)
    score = np.zeros(len(points))
    for j in range(len(gt_boxes)):
        own = np.flatnonzero(box == j + 1)
        if own.size:
            score[own] = metric[j, own] * overlaps[j, own].max() / (metric[j, own].max() + 1e-9)
    return box, score


def plain_atss(predicted, points, strides, gt_boxes):
    """The fact sheet's rule, box by box."""
    squares = np.concatenate([points - 2.5 * strides[:, None], points + 2.5 * strides[:, None]], 1)
    overlaps = np.array([[overlap(box, square, 0) for square in squares] for box in gt_boxes])
    claims = np.zeros(overlaps.shape, bool)
    for j, box in enumerate(gt_boxes):
        distance = np.linalg.norm(points - (box[:2] + box[2:]) / 2, axis=1)
        near = np.concatenate(
            [np.flatnonzero(strides == s)[np.argsort(distance[strides == s], kind="stable")[:9]] for s in STRIDES]
        )
        threshold = overlaps[j, near].mean() + overlaps[j, near].std(ddof=1)
        claims[j, [i for i in near if overlaps[j, i] > threshold and inside(box, points[i])]] = True
    box = settled(claims, overlaps)
    return box, np.array([overlap(gt_boxes[j - 1], predicted[i], 1e-9) if j else 0.0 for i, j in enumerate(box)])


def scene(seed, count, size=(96, 64)):
    """Cells, predicted boxes (some wrong way round), scores, boxes and labels of an image."""
    rng = np.random.default_rng(seed)
    cells = boxes.priors(size, STRIDES).astype(np.float64)
    points = cells[:, :2] + cells[:, 2:] / 2
    predicted = np.concatenate(
        [points - rng.uniform(-5, 30, points.shape), points + rng.uniform(-5, 30, points.shape)], 1
    )
    low = rng.uniform(-4, 60, (count, 2))
    return (
        cells,
        points,
        predicted,
        rng.random((len(cells), 5)),
        np.concatenate([low, low + rng.uniform(0.1, 60, (count, 2))], 1),
        rng.integers(0, 5, count),
    )


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 12))
def test_task_aligned_assigner_follows_the_rule(seed, count):
    cells, points, predicted, scores, gt_boxes, labels = scene(seed, count)
    ours = task_aligned(scores, predicted, cells, gt_boxes, labels)
    box, score = plain_task_aligned(scores, predicted, points, gt_boxes, labels)
    assert (ours.box == box).all()
    np.testing.assert_allclose(ours.score, score, rtol=1e-12, atol=1e-15)


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 12))
def test_atss_follows_the_rule(seed, count):
    cells, points, predicted, _, gt_boxes, _ = scene(seed, count)
    ours = atss(predicted, cells, gt_boxes)
    box, score = plain_atss(predicted, points, cells[:, 2], gt_boxes)
    assert (ours.box == box).all()
    np.testing.assert_allclose(ours.score, score, rtol=1e-12, atol=1e-15)


def test_more_than_a_hundred_boxes():
    """Published, such a batch takes another path with the same result."""
    cells, points, predicted, scores, gt_boxes, labels = scene(3, 130)
    box, score = plain_task_aligned(scores, predicted, points, gt_boxes, labels)
    ours = task_aligned(scores, predicted, cells, gt_boxes, labels)
    assert (ours.box == box).all() and (box > 100).any()
    np.testing.assert_allclose(ours.score, score, rtol=1e-12, atol=1e-15)


def test_a_box_that_no_prediction_touches_takes_the_first_cells():
    """All metrics are 0: thirteen cells are taken all the same, those inside the box stay, with a target of 0."""
    cells, _, predicted, scores, _, _ = scene(0, 1)
    found = task_aligned(scores, predicted - 1000, cells, np.asarray([[2.0, 2, 30, 30]]), np.asarray([1]))
    assert np.flatnonzero(found.box).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]  # of 0 … 12, rows of eight
    assert (found.score == 0).all()


# --------------------------------------------------------------------------------------------------------- losses
def corners(seed, count=9):
    """Two sets of boxes that overlap more or less, and the point from which their sides are measured."""
    rng = np.random.default_rng(seed)
    first, second = (
        np.concatenate([low, low + rng.uniform(1, 9, (count, 2))], 1) for low in rng.uniform(0, 6, (2, count, 2))
    )
    return first, second, np.tile((first[:, :2] + first[:, 2:]) / 2, 2)


def plain_iou_losses(first, second):
    """(SIoU, GIoU) losses as published, from corners."""
    eps = 1e-10
    width, height = first[:, 2] - first[:, 0], first[:, 3] - first[:, 1] + eps
    other_width, other_height = second[:, 2] - second[:, 0], second[:, 3] - second[:, 1] + eps
    shared = np.prod(
        np.maximum(np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2]), 0), 1
    )
    union = width * height + other_width * other_height - shared + eps
    hull = np.maximum(first[:, 2:], second[:, 2:]) - np.minimum(first[:, :2], second[:, :2])
    offset = (second[:, :2] + second[:, 2:] - first[:, :2] - first[:, 2:]) / 2 + eps
    sine = np.abs(offset) / np.linalg.norm(offset, axis=1, keepdims=True)
    sine = np.where(sine[:, 0] > 2**0.5 / 2, sine[:, 1], sine[:, 0])
    gamma = np.cos(2 * np.arcsin(sine) - np.pi / 2) - 2
    distance = (1 - np.exp(gamma[:, None] * (offset / hull) ** 2)).sum(1)
    mismatch = [np.abs(a - b) / np.maximum(a, b) for a, b in ((width, other_width), (height, other_height))]
    shape = sum((1 - np.exp(-omega)) ** 4 for omega in mismatch)
    area = hull.prod(1) + eps
    return 1 - shared / union + (distance + shape) / 2, 1 - shared / union + (area - union) / area


@settings(max_examples=40)
@given(SEEDS)
def test_box_losses_follow_the_published_formulas(seed):
    first, second, point = corners(seed)
    signs = np.asarray([-1, -1, 1, 1])
    predicted = backend.tensor((first - point) * signs)
    for loss, expected in zip((siou_loss, giou_loss), plain_iou_losses(first, second)):
        np.testing.assert_allclose(backend.numpy(loss(predicted, (second - point) * signs)), expected, rtol=1e-12)


def test_box_losses_have_the_gradient_of_the_formulas():
    first, second, point = corners(5)
    signs = np.asarray([-1, -1, 1, 1])
    for which, loss in enumerate((siou_loss, giou_loss)):
        predicted = backend.nn.Parameter(backend.tensor((first - point) * signs))
        (gradient,) = backend.grad(backend.sum(loss(predicted, (second - point) * signs)), [predicted])
        expected = np.zeros(first.shape)
        for side in range(4):
            move = np.eye(4)[side] * 1e-6
            above, below = (plain_iou_losses(first + shift, second)[which] for shift in (move, -move))
            expected[:, side] = (above - below) / 2e-6
        np.testing.assert_allclose(backend.numpy(gradient), expected * signs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("spread", [5, 800], ids=["usual", "saturated"])
def test_varifocal_follows_the_published_rule(spread):
    """PyTorch's BCE of probabilities: logarithms are at least -100, its gradient divides by p (1 - p) >= 1e-12."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-spread, spread, (1, 40, 3))
    own = rng.random(x.shape) < 0.3
    target = rng.random(x.shape) * own
    logits = backend.nn.Parameter(backend.tensor(x))
    loss = varifocal(logits, backend.tensor(target), backend.tensor(0.75 * ~own), backend.tensor(target))
    (gradient,) = backend.grad(loss, [logits])
    p = boxes.sigmoid(x)
    with np.errstate(divide="ignore"):
        entropy = -target * np.maximum(np.log(p), -100) - (1 - target) * np.maximum(np.log1p(-p), -100)
    weight = 0.75 * p * p * ~own + target
    assert backend.floats([loss])[0] == pytest.approx((entropy * weight).sum(), rel=1e-12)
    slope = (p - target) / np.maximum(p * (1 - p), 1e-12) * weight + entropy * 1.5 * p * ~own
    clear = (p * (1 - p) > 1e-9) | (p * (1 - p) == 0)  # between them the published gradient fades
    np.testing.assert_allclose(backend.numpy(gradient)[clear], (slope * p * (1 - p))[clear], rtol=1e-7, atol=1e-14)
    assert clear.sum() > 30 and (spread < 800 or (p * (1 - p) == 0).sum() > 30)
