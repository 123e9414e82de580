"""RT-DETR's matcher and criterion by their rules, and on targets at the edge of what they are for; runs in both
environments."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rt_detr_cases import NAME, matchings

from lib import backend, losses, models
from lib.alignment import by_family
from lib.alignment.margins import second_best_gap
from lib.data.boxes import sigmoid
from lib.errors import UserError
from lib.losses.rt_detr import costs, giou, giou_loss, iou, match
from lib.models.rt_detr import Truth, corners
from lib.models.step import Step

SIZE = (96, 64)  # height, width


def prediction(rng, q, k, n=1):
    boxes = np.concatenate([rng.uniform(0, 1, (n, q, 2)), rng.uniform(0.01, 0.6, (n, q, 2))], 2)
    return {"pred_logits": 2 * rng.standard_normal((n, q, k)), "pred_boxes": boxes}


def tensors(content):
    return {key: backend.tensor(value) for key, value in content.items()}


def target(boxes, labels):
    return {"boxes": np.asarray(boxes, np.float32).reshape(-1, 4), "labels": np.asarray(labels, np.int64)}


def floats(scalars):
    return dict(zip(scalars, backend.floats(list(scalars.values()))))


# ------------------------------------------------------------------------------------------------------- matcher
@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_matching_is_the_cheapest_of_all_and_the_gap_that_to_the_next(seed, q, g):
    rng = np.random.default_rng(seed)
    predicted = prediction(rng, q, 3)
    boxes, labels = prediction(rng, g, 3)["pred_boxes"][0], rng.integers(0, 3, g)
    cost = costs(predicted["pred_logits"][0], predicted["pred_boxes"][0], labels, boxes)
    if q >= g:
        totals = sorted(sum(cost[row, column] for column, row in enumerate(rows)) for rows in permutations(range(q), g))
    else:
        totals = sorted(
            sum(cost[row, column] for row, column in enumerate(columns)) for columns in permutations(range(g), q)
        )
    (found,) = match(tensors(predicted), [Truth(labels, boxes)])
    assert cost[found.queries, found.boxes].sum() == pytest.approx(totals[0])
    assert len(found.queries) == min(q, g) and (np.diff(found.queries) > 0).all()
    assert second_best_gap(cost) == (pytest.approx(totals[1] - totals[0], abs=1e-9) if len(totals) > 1 else np.inf)


def test_one_cost_by_hand():
    logits, box, other = (
        np.asarray([[0.3, -1.2]]),
        np.asarray([[0.5, 0.5, 0.2, 0.4]]),
        np.asarray([[0.6, 0.5, 0.2, 0.4]]),
    )
    p = 1 / (1 + np.exp(1.2))
    classes = 0.25 * (1 - p) ** 2 * -np.log(p + 1e-8) - 0.75 * p**2 * -np.log(1 - p + 1e-8)
    third = 0.1 * 0.4 / (0.3 * 0.4)  # half of each box overlaps
    assert costs(logits, box, np.asarray([1]), other)[0, 0] == pytest.approx(2 * classes + 5 * 0.1 - 2 * third)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_giou_of_loss_and_matcher_agree_and_keep_their_bounds(seed):
    rng = np.random.default_rng(seed)
    first, second = (prediction(rng, 9, 1)["pred_boxes"][0] for _ in range(2))
    loss = backend.numpy(giou_loss(backend.tensor(first), second))
    np.testing.assert_allclose(loss, 1 - giou(first, second), rtol=1e-9, atol=1e-12)
    assert ((loss > -1e-12) & (loss < 2)).all()
    low, high = np.minimum(corners(first), corners(second)), np.maximum(corners(first), corners(second))
    overlap = np.maximum(low[:, 2:] - high[:, :2], 0).prod(1)
    assert iou(first, second) == pytest.approx(overlap / (first[:, 2:].prod(1) + second[:, 2:].prod(1) - overlap))
    assert giou(first, first) == pytest.approx(np.ones(9))


# ----------------------------------------------------------------------------------------------------- criterion
def test_losses_by_the_rule():
    """One image, two boxes, everything written out."""
    rng = np.random.default_rng(5)
    predicted, criterion = prediction(rng, 7, 4), losses.build(NAME, 4)
    given_targets = [target([[3, 4, 40, 50], [20, 30, 60, 90]], [2, 0])]
    logits, boxes = predicted["pred_logits"][0], predicted["pred_boxes"][0]
    true = np.asarray([[21.5 / 64, 27 / 96, 37 / 64, 46 / 96], [40 / 64, 60 / 96, 40 / 64, 60 / 96]])
    (pairs,) = match(tensors(predicted), [Truth(np.asarray([2, 0]), true)])
    chance = sigmoid(logits)
    shares, weights = np.zeros_like(logits), 0.75 * chance**2
    for query, box in zip(pairs.queries, pairs.boxes):
        at = query, (2, 0)[box]
        shares[at] = weights[at] = iou(boxes[query], true[box])
    entropy = -(shares * np.log(chance) + (1 - shares) * np.log(1 - chance))
    matched, own = boxes[pairs.queries], true[pairs.boxes]
    assert floats(criterion(tensors(predicted), given_targets, image_size=SIZE)) == pytest.approx(
        {
            "loss_vfl": (weights * entropy).sum() / 2,
            "loss_bbox": 5 * np.abs(matched - own).sum() / 2,
            "loss_giou": 2 * (1 - giou(matched, own)).sum() / 2,
        },
        rel=1e-9,
    )


def test_iou_and_weights_have_no_gradient():
    """The varifocal loss of a logit pulls it to the IoU and never the box."""
    rng = np.random.default_rng(6)
    leaves = {key: backend.nn.Parameter(backend.tensor(value)) for key, value in prediction(rng, 5, 3).items()}
    scalars = losses.build(NAME, 3)(leaves, [target([[3, 4, 40, 50]], [1])], image_size=SIZE)
    toward_logits, toward_boxes = backend.grad(scalars["loss_vfl"], list(leaves.values()))
    assert backend.numpy(toward_logits).all() and not backend.numpy(toward_boxes).any()
    toward_logits, toward_boxes = backend.grad(scalars["loss_giou"], list(leaves.values()))
    assert not backend.numpy(toward_logits).any()
    assert np.count_nonzero(backend.numpy(toward_boxes).any(2)) == 1


# --------------------------------------------------------------------------------------------------- edge cases
EDGES = {
    "no boxes at all": [target([], []), target([], [])],
    "one empty image": [target([], []), target([[5, 5, 30, 40]], [1])],
    "one box each": [target([[1, 1, 60, 90]], [0]), target([[5, 5, 30, 40]], [1])],
    "boxes outside the image": [
        target([[-50, -20, -10, -5], [70, 100, 90, 120]], [0, 1]),
        target([[-9, -9, 99, 99]], [2]),
    ],
    "boxes without area": [target([[10, 10, 10, 10], [5, 5, 5, 30]], [0, 1]), target([[64, 96, 64, 96]], [2])],
    "equal boxes": [target([[5, 5, 30, 40]] * 3, [1, 1, 2]), target([[5, 5, 30, 40]] * 2, [0, 0])],
    "more boxes than queries": [target(np.tile([[5, 5, 30, 40]], (130, 1)), [1] * 130), target([[5, 5, 30, 40]], [1])],
}


@pytest.fixture(scope="module")
def model():
    return models.build(NAME, 3).train()


@pytest.mark.parametrize("edge", EDGES)
def test_edge_cases_train_with_finite_losses_and_gradients(model, edge):
    given_targets = EDGES[edge]
    model.step = Step(random=np.random.default_rng(1), targets=given_targets)
    images = np.random.default_rng(2).random((2, 3, *SIZE), np.float32)
    outputs = model(backend.tensor(images))
    assert outputs["pred_boxes"].shape[1] == 126  # as many tokens as the map has: fewer than 300, and than 130 boxes
    boxes = sum(len(t["labels"]) for t in given_targets)
    assert ("dn_meta" in outputs) == (boxes > 0)
    criterion = losses.build(NAME, 3)
    scalars = criterion(outputs, given_targets, image_size=SIZE)
    assert len(scalars) == (21 if boxes else 12)
    total = sum(scalars.values())
    gradients = backend.grad(total, [parameter for _, parameter in model.named_parameters()])
    assert all(np.isfinite(backend.numpy(gradient)).all() for gradient in gradients)
    found = floats(scalars)
    assert np.isfinite(list(found.values())).all() and min(found.values()) >= 0
    if not boxes:
        assert all(value == 0 for name, value in found.items() if "vfl" not in name)
        assert found["loss_vfl"] > 0
    for images_found in matchings(outputs, given_targets, SIZE, 3).values():
        assert [len(m.queries) for m, _ in images_found] == [min(126, len(t["labels"])) for t in given_targets]
    table = by_family.decisions(NAME, criterion, outputs, given_targets, SIZE)["matched_tokens/final"]
    assert [np.count_nonzero(row >= 0) for row in table] == [min(126, len(t["labels"])) for t in given_targets]


def test_a_fresh_model_ties_where_truth_and_noise_are_cut_at_the_edge(model):
    """Why lock-step starts from seeded weights: here the sign of a rounding decides the gradient of the GIoU."""
    height, width = SIZE
    at_the_edge = [target([[width / 2, height / 2, width, height]] * 4, [0, 1, 2, 0])] * 2
    model.step = Step(random=np.random.default_rng(1), targets=at_the_edge)
    found = model(backend.tensor(np.random.default_rng(2).random((2, 3, *SIZE), np.float32)))["dn_aux_outputs"]
    for layer in found:
        boxes = backend.numpy(layer["pred_boxes"])
        right_and_bottom = boxes[..., :2] + boxes[..., 2:] / 2
        assert 0.05 < np.mean(np.abs(right_and_bottom - 1) < 1e-6) < 0.95


def test_two_boxes_without_area_give_no_nan():
    nothing = {
        "pred_logits": np.zeros((1, 2, 3)),
        "pred_boxes": np.asarray([[[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.0, 0.0]]]),
    }
    leaves = {key: backend.nn.Parameter(backend.tensor(value)) for key, value in nothing.items()}
    scalars = losses.build(NAME, 3)(leaves, [target([[32, 48, 32, 48]], [1])], image_size=SIZE)
    assert np.isfinite(list(floats(scalars).values())).all()
    gradients = backend.grad(sum(scalars.values()), list(leaves.values()))
    assert all(np.isfinite(backend.numpy(gradient)).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (target([[30, 5, 5, 40]], [1]), r"image 1 .*\[30.0, 5.0, 5.0, 40.0\]"),
        (target([[5, 5, np.nan, 40]], [1]), "finite"),
        (target([[5, 5, 30, 40]], [3]), "labels .*0 to 2"),
        (target([[5, 5, 30, 40]], [-1]), "labels"),
    ],
)
def test_targets_that_mean_nothing_are_refused_in_one_line(model, wrong, message):
    given_targets = [target([[5, 5, 30, 40]], [1]), wrong]
    model.step = Step(random=np.random.default_rng(1), targets=given_targets)
    with pytest.raises(UserError, match=message) as caught:
        model(backend.tensor(np.zeros((2, 3, *SIZE), np.float32)))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        losses.build(NAME, 3)(tensors(prediction(np.random.default_rng(0), 4, 3, 2)), given_targets, image_size=SIZE)


def test_predictions_that_are_not_finite_are_refused():
    broken = prediction(np.random.default_rng(0), 4, 3)
    broken["pred_logits"][0, 2, 1] = np.nan
    with pytest.raises(UserError, match="learning rate"):
        losses.build(NAME, 3)(tensors(broken), [target([[5, 5, 30, 40]], [1])], image_size=SIZE)
