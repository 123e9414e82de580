"""RT-DETR's recipe: resizing, windows, colours against formulas, ranges and probabilities against their definition."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lib.data import stream, transforms
from lib.data.boxes import iou
from lib.data.transforms import Picture

RECIPE = transforms.RECIPES["rt_detr"]
UNCHANGED = replace(RECIPE, distort=0.0, zoom=0.0, crop=0.0, flip=0.0)


def picture(height: int = 80, width: int = 100) -> Picture:
    image = stream(4, "noise").integers(1, 256, (height, width, 3)).astype(np.uint8)
    boxes = np.array([[10, 10, 40, 50], [60, 20, 95, 70], [30, 40, 34, 44]], np.float32)
    return Picture(image, boxes, np.array([5, 6, 7]))


def samples(recipe, count: int, of: Picture | None = None):
    """(input, matrix, boxes, labels) of many draws; one input pixel is one image pixel in a whole image."""
    of = of or picture()
    return [recipe.augment([of], 0, of.image.shape[:2], stream(seed, "rt")) for seed in range(count)]


# --- resizing


def test_an_unchanged_sample_is_the_image():
    of = picture()
    prepared, warp, boxes, labels = UNCHANGED.augment([of], 0, (80, 100), stream(0, "rt"))
    np.testing.assert_array_equal(
        prepared, of.image[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    )
    np.testing.assert_array_equal(warp, np.eye(3))
    np.testing.assert_array_equal(boxes, of.boxes)
    assert labels.tolist() == [5, 6, 7]


def test_shrinking_averages_and_enlarging_does_not_keep_the_ratio():
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(200)
    prepared, _ = RECIPE.preprocess(np.repeat(board[:, :, None], 3, 2).astype(np.uint8), (32, 32))
    assert np.abs(prepared * 255 - 100).max() < 13  # without antialiasing every pixel would be 0 or 200
    ramp = np.broadcast_to(np.arange(50, dtype=np.uint8)[None, :, None] * 4, (20, 50, 3)).copy()
    prepared, warp = RECIPE.preprocess(ramp, (64, 160))
    centres = (np.arange(160) + 0.5) / warp[0, 0] - 0.5  # of the input's columns, in image pixels
    inner = slice(3, -3)
    assert np.abs(prepared[0, 10] * 255 - 4 * centres)[inner].max() <= 0.51  # rounded to grey levels
    np.testing.assert_array_equal(warp, np.diag([3.2, 3.2, 1]))


# --- windows


def test_zooming_out_puts_black_around_half_of_the_images():
    found = samples(replace(UNCHANGED, zoom=0.5), 300)
    factors = np.array([1 / warp[0, 0] for _, warp, _, _ in found])
    assert 110 < (factors == 1).sum() < 190
    zoomed = factors[factors != 1]
    assert 1 <= zoomed.min() < 1.1 and 3.9 < zoomed.max() <= 4 and 2.2 < zoomed.mean() < 2.8
    for prepared, warp, boxes, _ in found:
        x, y, right, bottom = transforms.warp_boxes(np.array([[0, 0, 100, 80]]), warp, (80, 100))[0]
        outside = np.ones((80, 100), bool)
        outside[max(int(y) - 1, 0) : int(bottom) + 2, max(int(x) - 1, 0) : int(right) + 2] = False
        assert (
            not prepared[:, outside].any()
            and prepared[:, int(y) + 1 : int(bottom) - 1, int(x) + 1 : int(right) - 1].all()
        )
        assert boxes[:, 2:].max() <= max(right, bottom) + 1


def test_crops_keep_the_boxes_whose_centres_they_hold():
    of = picture()
    whole = 0
    centres = (of.boxes[:, :2] + of.boxes[:, 2:]) / 2
    ratios = []
    for _, warp, boxes, labels in samples(replace(UNCHANGED, crop=0.8), 300):
        left, top, right, bottom = np.rint(
            [
                -warp[0, 2] / warp[0, 0],
                -warp[1, 2] / warp[1, 1],
                (100 - warp[0, 2]) / warp[0, 0],
                (80 - warp[1, 2]) / warp[1, 1],
            ]
        ).astype(int)
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80
        if (left, top, right, bottom) == (0, 0, 100, 80):
            whole += 1
            continue
        assert right - left >= 29 and bottom - top >= 23  # 0.3 of the sides, rounded down
        ratios.append((right - left) / (bottom - top))
        inside = ((centres > [left, top]) & (centres < [right, bottom])).all(1)
        assert inside.any() and labels.tolist() == of.labels[inside].tolist()
        width, height = right - left, bottom - top
        seen = np.clip(of.boxes[inside] - [left, top, left, top], 0, [width, height, width, height])
        expected = seen * np.array([100 / width, 80 / height, 100 / width, 80 / height])
        np.testing.assert_allclose(boxes, expected, rtol=0, atol=1e-3)
    assert 0.5 <= min(ratios) < 0.7 and 1.6 < max(ratios) <= 2
    # a fifth is not to be cropped; of the others a seventh asks for the whole, and every try may fail and draw again
    assert 0.2 < whole / 300 < 0.6


@pytest.mark.parametrize("least", [0.0, 0.3, 0.5])
def test_crops_overlap_some_box_enough(least):
    of = picture()
    recipe = replace(UNCHANGED, crop=1.0, overlaps=(least,))
    for _, warp, _, _ in samples(recipe, 60):
        window = transforms.warp_boxes(np.array([[0, 0, 100, 80]]), np.linalg.inv(warp), (80, 100))
        assert iou(of.boxes, window).max() >= least - 1e-3


def test_without_boxes_nothing_is_cropped():
    of = picture()
    empty = Picture(of.image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    for _, warp, boxes, _ in samples(replace(UNCHANGED, crop=1.0), 20, empty):
        np.testing.assert_array_equal(warp, np.eye(3))
        assert boxes.shape == (0, 4)


def test_half_of_the_images_are_mirrored_with_their_boxes():
    found = samples(replace(UNCHANGED, flip=0.5), 200)
    mirrored = [boxes for _, warp, boxes, _ in found if warp[0, 0] < 0]
    assert 70 < len(mirrored) < 130
    np.testing.assert_array_equal(mirrored[0][0], [60, 10, 90, 50])


def test_boxes_below_a_pixel_are_dropped_before_and_after_resizing():
    boxes = np.array([[10, 10, 10.9, 50], [10, 10, 11, 50], [20, 20, 40, 60]], np.float32)
    of = Picture(np.zeros((80, 100, 3), np.uint8), boxes, np.arange(3))
    assert UNCHANGED.augment([of], 0, (160, 200), stream(0, "rt"))[3].tolist() == [1, 2]  # small in the image
    assert UNCHANGED.augment([of], 0, (40, 50), stream(0, "rt"))[3].tolist() == [2]  # small in the input


# --- colours


class Only:
    """One of brightness, contrast, saturation and hue happens, at the lower end of its range; channels keep order."""

    def __init__(self, change: str) -> None:
        decisions = ("brightness", "contrast", "saturation", "hue", "contrast first", "channels")
        self.draws = [0.0 if change == decision else 0.9 for decision in decisions]

    def random(self) -> float:
        return self.draws.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return low


def grey(rgb: np.ndarray) -> np.ndarray:
    return np.rint(rgb @ [0.299, 0.587, 0.114])[..., None]


def turn(rgb: np.ndarray, part: float) -> np.ndarray:
    pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in rgb.reshape(-1, 3) / 255]
    return np.array([colorsys.hsv_to_rgb((h + part) % 1, s, v) for h, s, v in pixels]).reshape(rgb.shape) * 255


@pytest.mark.parametrize(
    ("change", "amount", "formula", "tolerance"),
    [
        ("brightness", 1.1, lambda x: x * 1.1, 1),
        ("brightness", 0.9, lambda x: x * 0.9, 1),
        ("contrast", 0.5, lambda x: x * 0.5 + 0.5 * grey(x).mean(), 1.5),
        ("contrast", 1.5, lambda x: x * 1.5 - 0.5 * grey(x).mean(), 1.5),
        ("saturation", 0.6, lambda x: x * 0.6 + 0.4 * grey(x), 1.5),
        ("saturation", 1.5, lambda x: x * 1.5 - 0.5 * grey(x), 1.5),
        ("hue", 0.05, lambda x: turn(x, 12 / 256), 8),  # hue and saturation have 256 steps, rounded down twice
        ("hue", -0.05, lambda x: turn(x, -12 / 256), 8),
    ],
)
def test_colour_changes_are_what_their_formulas_say(change, amount, formula, tolerance):
    rgb = picture(20, 20).image
    draws = Only(change)
    changed = np.asarray(replace(RECIPE, **{change: (amount, 9.0)})._distort(Image.fromarray(rgb), draws)).astype(float)
    assert (
        np.abs(changed - np.clip(formula(rgb.astype(float)), 0, 255)).max() <= tolerance < np.abs(changed - rgb).max()
    )
    assert not draws.draws


def test_every_order_of_channels_occurs_and_half_of_the_images_keep_theirs():
    recipe = replace(RECIPE, brightness=(1, 1), contrast=(1, 1), saturation=(1, 1), hue=(0, 0))
    colour = Image.new("RGB", (2, 2), (0, 255, 128))
    orders = [recipe._distort(colour, stream(seed, "channels")).getpixel((0, 0)) for seed in range(400)]
    kept = sum(np.abs(np.array(order) - [0, 255, 128]).max() < 6 for order in orders)
    assert 180 < kept < 290  # 1/2 and a sixth of the rest
    assert len({tuple(np.argsort(order)) for order in orders}) == 6


def test_brightness_has_its_range():
    recipe = replace(RECIPE, contrast=(1, 1), saturation=(1, 1), hue=(0, 0))
    levels = [
        recipe._distort(Image.new("RGB", (1, 1), (160,) * 3), stream(seed, "b")).getpixel((0, 0))[0]
        for seed in range(400)
    ]
    assert 140 <= min(levels) < 143 and 177 < max(levels) <= 180 and 150 < levels.count(160) < 250
