"""Gold-YOLO's recipe: the letterbox of the published AP, mosaics, the warp, mixtures, colours, and what drops a box."""

from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from lib.data import stream, transforms
from lib.data.transforms import Picture, gold_yolo

RECIPE = transforms.RECIPES["gold_yolo"]
VARIANTS = gold_yolo.VARIANTS


def noise(height: int, width: int) -> np.ndarray:
    return stream(4, "noise").integers(0, 256, (height, width, 3)).astype(np.uint8)


def one_box(*box: int, side: int = 96, grey: int = 100) -> Picture:
    return Picture(np.full((side, side, 3), grey, np.uint8), np.array([box], np.float32), np.zeros(1, np.int64))


# Worked out by hand from the published steps: resized to int(side * inner / longest), padding halved and rounded down.
@pytest.mark.parametrize(
    ("model", "shape", "size", "inside"),
    [
        ("gold-yolo-s", (480, 640), (640, 640), (475, 634, 82, 3)),
        ("gold-yolo-n", (480, 640), (640, 640), (477, 636, 81, 2)),
        ("gold-yolo-m", (640, 427), (640, 640), (636, 424, 2, 108)),
        ("gold-yolo-l", (100, 50), (640, 640), (636, 318, 2, 161)),
        ("gold-yolo-s", (480, 640), (320, 320), (237, 317, 41, 1)),
        ("gold-yolo-n", (208, 256), (96, 96), (77, 95, 9, 0)),
    ],
)
def test_the_letterbox_of_the_published_evaluation(model, shape, size, inside):
    height, width, top, left = inside
    image = noise(*shape)
    prepared, warp = VARIANTS[model].preprocess(image, size)
    np.testing.assert_array_equal(warp, [[width / shape[1], 0, left], [0, height / shape[0], top], [0, 0, 1]])
    method = cv2.INTER_AREA if max(shape) > max(height, width) else cv2.INTER_LINEAR
    middle = cv2.resize(image, (width, height), interpolation=method)[:, :, ::-1].astype(np.float32) / np.float32(255)
    window = np.zeros(size, bool)
    window[top : top + height, left : left + width] = True
    np.testing.assert_array_equal(prepared[:, window].reshape(3, height, width), middle.transpose(2, 0, 1))
    assert (prepared[:, ~window] == np.float32(114) / np.float32(255)).all() and not window.all()


@pytest.mark.parametrize(("epochs", "strong"), [(300, 285), (400, 385), (30, 28), (15, 14), (5, 5)])
def test_the_last_epochs_know_no_mosaic(epochs, strong):
    recipe = VARIANTS["gold-yolo-m"]
    assert [recipe.at(epoch, epochs).mosaic for epoch in range(epochs)] == [1.0] * strong + [0.0] * (epochs - strong)
    assert {recipe.at(epoch, epochs).mixup for epoch in range(strong, epochs)} <= {0.0}
    assert recipe.at(0, epochs) == recipe


class Watched(list):
    """Notes which pictures are asked for."""

    def __getitem__(self, index):
        self.asked.append(int(index))
        return super().__getitem__(index)


def test_a_mosaic_holds_the_picture_and_three_of_all_anywhere():
    pictures = Watched(one_box(10, 10, 50, 50, side=32, grey=grey) for grey in range(0, 250, 25))
    places, others = Counter(), Counter()
    for seed in range(400):
        pictures.asked = []
        RECIPE.augment(pictures, 3, (32, 32), stream(seed, "mosaic"))
        assert len(pictures.asked) == 4 and 3 in pictures.asked
        places[pictures.asked.index(3)] += 1
        others.update(pictures.asked)
    assert min(places[place] for place in range(4)) > 60  # of 100
    assert min(others[index] for index in range(10) if index != 3) > 80 and others[3] > 480  # of 120 and 520


def test_a_mosaic_meets_anywhere_in_the_middle_half():
    """Without scale and shift the input is the middle of the canvas; a corner of four tiles is seen where it is."""
    recipe = replace(RECIPE, scale=0.0, translate=0.0, colours=(0, 0, 0), flip=0.0)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    pictures = [Picture(np.full((64, 64, 3), grey, np.uint8), *nothing) for grey in (10, 60, 160, 230)]
    corners = []
    for seed in range(300):
        image = recipe.as_picture(recipe.augment(pictures, 0, (64, 64), stream(seed, "mosaic"))[0])[:, :, 0].astype(int)
        assert set(np.unique(image)) <= {10, 60, 160, 230}  # tiles meet without a gap and cover the middle
        rows, columns = (np.flatnonzero(np.abs(np.diff(image, axis=axis)).max(1 - axis)) for axis in (0, 1))
        assert len(rows) <= 1 and len(columns) <= 1
        corners += [(rows[0], columns[0])] if len(rows) and len(columns) else []
    low, high, mean = np.min(corners, 0), np.max(corners, 0), np.mean(corners, 0)
    assert (low <= 2).all() and (high >= 60).all() and (np.abs(mean - 31) < 5).all()


@pytest.mark.parametrize(("model", "limit"), [("gold-yolo-s", 0.5), ("gold-yolo-m", 0.9)])
def test_scale_and_shift_have_their_ranges(model, limit):
    recipe = replace(VARIANTS[model], mosaic=0.0)
    found = [recipe.augment([one_box(38, 38, 58, 58)], 0, (96, 96), stream(seed, "warp"))[2] for seed in range(400)]
    boxes = np.concatenate(found)
    factors, centres = (boxes[:, 2] - boxes[:, 0]) / 20, (boxes[:, :2] + boxes[:, 2:]) / 2 / 96
    assert 1 - limit <= factors.min() < 1 - limit + 0.05 and 1 + limit - 0.05 < factors.max() <= 1 + limit
    np.testing.assert_allclose(boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0], rtol=0, atol=1e-4)  # one factor
    assert 0.4 <= centres.min() < 0.42 and 0.58 < centres.max() <= 0.6


def test_half_of_the_pictures_are_mirrored():
    recipe = replace(RECIPE, mosaic=0.0, scale=0.0, translate=0.0)
    boxes = [recipe.augment([one_box(10, 30, 30, 60)], 0, (96, 96), stream(seed, "flip"))[2][0] for seed in range(200)]
    assert {tuple(np.rint(box)) for box in boxes} == {(10, 30, 30, 60), (66, 30, 86, 60)}
    assert 70 < sum(box[0] < 48 for box in boxes) < 130


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ([0, 0, 20, 20], [0, 0, 20, 20], True),
        ([0, 0, 20, 20], [0, 0, 20, 2], False),  # two pixels high
        ([0, 0, 20, 20], [0, 0, 20, 2.01], True),
        ([0, 0, 100, 100], [0, 0, 100, 10], False),  # a tenth of its area
        ([0, 0, 100, 100], [0, 0, 100, 10.1], True),
        ([0, 0, 100, 5], [0, 0, 100, 5], False),  # twenty times as long as high
        ([0, 0, 99, 5], [0, 0, 99, 5], True),
        ([5, 5, 5, 5], [0, 0, 0, 0], False),
    ],
)
def test_what_drops_a_box(before, after, kept):
    assert gold_yolo._is_worth_keeping(np.array([before], float), np.array([after], float)).tolist() == [kept]


def test_a_mixture_has_both_pictures_and_all_boxes():
    first, second = one_box(1, 2, 30, 40, grey=0), one_box(5, 6, 70, 80, grey=200)
    shares = []
    for seed in range(300):
        mixed = gold_yolo._mixture(first, second, stream(seed, "mix"))
        (level,) = np.unique(mixed.image)
        shares.append(1 - level / 200)
        np.testing.assert_array_equal(mixed.boxes, [[1, 2, 30, 40], [5, 6, 70, 80]])
    # Beta(32, 32): mean 1/2, deviation 1 / (2 sqrt(65)) = 0.062
    assert abs(np.mean(shares) - 0.5) < 0.015 and 0.05 < np.std(shares) < 0.075 and mixed.image.dtype == np.uint8


@pytest.mark.parametrize("model", VARIANTS)
def test_how_often_mosaics_are_mixed(model):
    pictures = Watched([one_box(10, 10, 50, 50, side=32)])
    counts = []
    for seed in range(200):
        pictures.asked = []
        VARIANTS[model].augment(pictures, 0, (32, 32), stream(seed, "mix"))
        counts.append(len(pictures.asked))
    assert set(counts) <= {4, 8} and abs(counts.count(8) / 200 - VARIANTS[model].mixup) <= 0.06


def test_colours_change_within_their_ranges():
    only_value, only_hue = replace(RECIPE, colours=(0, 0, 0.4)), replace(RECIPE, colours=(0.015, 0, 0))
    grey, red = np.full((1, 1, 3), 100, np.uint8), np.array([[[0, 0, 200]]], np.uint8)
    values = [int(only_value._recolour(grey, stream(seed, "value"))[0, 0, 0]) for seed in range(300)]
    assert 60 <= min(values) < 63 and 137 < max(values) <= 140
    magenta = np.array([[[40, 0, 200]]], np.uint8)  # hue 174 of 180: some products pass 180 and begin again
    hues = {tuple(only_hue._recolour(magenta, stream(seed, "hue"))[0, 0]) for seed in range(300)}
    assert all(r == 200 and g == 0 and 20 <= b <= 60 for r, g, b in hues) and len(hues) > 3
    assert only_hue._recolour(red, stream(0, "hue"))[0, 0].tolist() == [200, 0, 0]  # RGB; hue 0 stays


def test_colours_are_the_published_rule_on_the_same_draws():
    """The rule restated: factors 1 + gain u of hue, saturation, value, in this order, one u each; whole numbers cut."""
    image = noise(16, 24)
    for seed in range(5):
        draws, planes = stream(seed, "rule"), cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
        factors = [1 + gain * draws.uniform(-1, 1) for gain in (0.015, 0.7, 0.4)]
        hue, saturation, value = (plane * factor for plane, factor in zip(planes, factors))
        changed = np.stack([hue % 180, np.minimum(saturation, 255), np.minimum(value, 255)], 2).astype(np.uint8)
        expected = cv2.cvtColor(changed, cv2.COLOR_HSV2RGB)
        np.testing.assert_array_equal(RECIPE._recolour(image, stream(seed, "rule")), expected)


def test_repeated_boxes_count_once_and_none_leaves_its_image():
    boxes = np.array([[50, 50, 120, 130], [0, 0, 9, 9], [50, 50, 110, 140], [50, 50, 96, 96]], np.float32)
    picture = Picture(np.zeros((96, 96, 3), np.uint8), boxes, np.array([3, 1, 3, 2]))
    cleaned = gold_yolo._cleaned(picture)
    np.testing.assert_array_equal(cleaned.boxes, [[50, 50, 96, 96], [0, 0, 9, 9], [50, 50, 96, 96]])
    assert cleaned.labels.tolist() == [3, 1, 2]
