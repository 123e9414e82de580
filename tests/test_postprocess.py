"""Boxes, suppression and the way back to the original image, against plain NumPy in float64; both environments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import backend
from lib.data import boxes
from lib.models.nanodet_plus import STRIDES
from lib.postprocess import detections

NAME = "nanodet-plus-m_320"
SIZE = (64, 96)


def some_boxes(rng, count):
    low = rng.uniform(0, 40, (count, 2))
    return np.concatenate([low, low + rng.uniform(0, 30, (count, 2))], 1)


def plain_iou(a, b):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    whole = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / whole if whole > 1e-6 else 0.0


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 40))
def test_nms_keeps_what_the_greedy_rule_keeps(seed, count, limit):
    rng = np.random.default_rng(seed)
    candidates, scores, labels = some_boxes(rng, count), rng.random(count), rng.integers(0, 3, count)
    kept = []
    for i in np.argsort(-scores):
        if all(labels[i] != labels[j] or plain_iou(candidates[i], candidates[j]) <= 0.5 for j in kept):
            kept.append(i)
    assert boxes.nms(candidates, scores, labels, 0.5, limit).tolist() == kept[:limit]


def test_iou_has_no_legacy_one_and_suppresses_only_above_the_threshold():
    pair = np.asarray([[0, 0, 2, 1], [1, 0, 3, 1]], np.float64)
    assert boxes.iou(pair, pair)[0, 1] == pytest.approx(1 / 3)
    halves = np.asarray([[0, 0, 2, 2], [0, 0, 2, 1]], np.float64)  # IoU exactly 0.5
    scores, labels = np.asarray([0.9, 0.8]), np.asarray([0, 0])
    assert boxes.nms(halves, scores, labels, 0.5, 9).tolist() == [0, 1]
    assert boxes.nms(halves, scores, labels, 0.499, 9).tolist() == [0]
    assert boxes.nms(halves, scores, np.asarray([0, 1]), 0.499, 9).tolist() == [0, 1]


def test_empty_boxes_have_no_overlap():
    assert boxes.iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0
    assert boxes.iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


@pytest.mark.parametrize(
    ("size", "counts"),
    [((320, 320), (1600, 400, 100, 25)), ((416, 416), (2704, 676, 169, 49)), ((64, 96), (96, 24, 6, 2))],
)
def test_priors_are_corners_of_cells_row_by_row(size, counts):
    cells = boxes.priors(size, STRIDES)
    assert tuple(np.count_nonzero(cells[:, 2] == stride) for stride in STRIDES) == counts
    assert cells[:3].tolist() == [[0, 0, 8], [8, 0, 8], [16, 0, 8]]
    assert cells[size[1] // 8].tolist() == [0, 8, 8]
    with pytest.raises(ValueError, match="read-only"):
        cells[0] = 1


def test_sigmoid_does_not_saturate_early():
    x = np.asarray([-100, -40, 0, 40, 1000], np.float64)
    np.testing.assert_allclose(boxes.sigmoid(x), [np.exp(-100), np.exp(-40) / (1 + np.exp(-40)), 0.5, 1, 1], rtol=1e-15)
    assert boxes.sigmoid(x.astype(np.float32)).dtype == np.float32


def test_decode_gives_the_mean_of_each_side():
    bins = np.full((1, 32), -1e4)
    for side, distance in enumerate((1, 2, 3, 7)):
        bins[0, 8 * side + distance] = 0
    assert boxes.decode(bins, np.asarray([[16.0, 24, 8]])).tolist() == [[8, 8, 40, 80]]
    assert boxes.decode(np.zeros((1, 32)), np.asarray([[0.0, 0, 8]])).tolist() == [[-28, -28, 28, 28]]
    assert boxes.decode(np.zeros((0, 32)), np.zeros((0, 3))).shape == (0, 4)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_warp_and_its_inverse(seed):
    rng = np.random.default_rng(seed)
    matrix = np.asarray(
        [[rng.uniform(0.5, 2), 0, rng.uniform(-9, 9)], [0, rng.uniform(0.5, 2), rng.uniform(-9, 9)], [0, 0, 1]]
    )
    some = some_boxes(rng, 5)
    np.testing.assert_allclose(boxes.warp(boxes.warp(some, matrix), np.linalg.inv(matrix)), some, atol=1e-9)
    flip = np.asarray([[-1.0, 0, 100], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(boxes.warp(some, flip)[:, 0], 100 - some[:, 2])


def logits_with(*found):
    """Outputs (1, p, 3 + 32) for SIZE, silent but for the given (prior, class, logit); boxes are 7 strides wide."""
    output = np.full((1, len(boxes.priors(SIZE, STRIDES)), 35), -20, np.float32)
    output[:, :, 3:] = 0
    for prior, label, logit in found:
        output[0, prior, label] = logit
    return output


def test_the_threshold_is_strict_and_every_class_competes():
    output = logits_with((0, 0, 0.0), (0, 2, 1.0), (50, 1, -1.0))
    (found,) = detections(NAME, output, image_size=SIZE, score_threshold=0.25)
    assert found[:, 5].tolist() == [2, 0, 1] and (np.diff(found[:, 4]) < 0).all()
    (found,) = detections(NAME, output, image_size=SIZE, score_threshold=0.5)
    assert found[:, 5].tolist() == [2]
    (found,) = detections(NAME, output, image_size=SIZE, score_threshold=0.25, max_detections=2)
    assert found[:, 5].tolist() == [2, 0]


def test_boxes_are_clipped_to_the_input_then_mapped_back():
    output = backend.tensor(np.repeat(logits_with((0, 1, 3.0)), 2, 0))
    plain = detections(NAME, output, image_size=SIZE)
    assert plain[0][0, :4].tolist() == [0, 0, 28, 28]
    double = np.diag([2.0, 0.5, 1])  # the network sees the image twice as wide, half as high
    first, second = detections(
        NAME, output, image_size=SIZE, warps=[double, np.eye(3)], original_sizes=[(128, 48), (20, 96)]
    )
    assert first[0, :4].tolist() == [0, 0, 14, 56]
    assert second[0, :4].tolist() == [0, 0, 28, 20]
    assert first[0, 4:].tolist() == plain[0][0, 4:].tolist()


def test_nothing_found_is_an_empty_array():
    (found,) = detections(NAME, logits_with(), image_size=SIZE, warps=[np.eye(3)], original_sizes=[SIZE])
    assert found.shape == (0, 6) and found.dtype == np.float32
