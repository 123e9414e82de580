"""NanoDet-Plus: preprocessing and augmentation against the published code's record, and the faults that it shows."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data import stream, transforms
from lib.data.transforms import Picture

RECIPE = replace(transforms.RECIPES["nanodet_plus"], exact=False)  # the record was made with OpenCV 4
NOTHING = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
CASES = ("val_320", "val_416", "val_320_keep_ratio", "train_320_seed0", "train_320_seed1", "train_320_seed2")
# OpenCV's float conversions to and from HSV differ in the last bits between processors; the rest is exact.
PIXEL = 2e-6
LAST_BIT = 1e-12  # of the matrix's largest entry: the published code multiplies nine matrices, ours is one


class Replay:
    """The published run's random numbers in its order; a draw of another kind or range is an error."""

    def __init__(self, draws: list) -> None:
        self.draws = [draw for draw in draws if draw[0] != "uniform" or draw[1] != draw[2]]  # ranges of no width

    def _next(self, kind: str, *limits: float) -> float:
        found, *expected, value = self.draws.pop(0)
        assert (found, tuple(expected)) == (kind, limits)
        return value

    def random(self) -> float:
        return self._next("random")

    def uniform(self, low: float, high: float) -> float:
        return self._next("uniform", low, high)

    def integers(self, high: int) -> int:
        return self._next("randint", 0, high - 1)


@pytest.fixture(scope="module")
def published(golden):
    record = json.loads((golden / "data_pipeline/data_pipeline.json").read_text())
    with np.load(golden / "data_pipeline/data_pipeline.npz") as arrays:
        return record["cases"], dict(arrays)


def run(published, name: str, recipe=RECIPE, image=None):
    """Input (h, w, 3), matrix and boxes of one case, all its random numbers used up."""
    case, arrays = published[0][name], published[1]
    image = arrays["raw_bgr_uint8"] if image is None else image
    recipe = replace(recipe, keep_ratio=case["keep_ratio"])
    size = tuple(reversed(case["dst_size_wh"]))
    if name.startswith("val"):
        prepared, matrix = recipe.preprocess(image, size)
        boxes = transforms.warp_boxes(arrays["boxes"], matrix, prepared.shape[1:])
    else:
        replay = Replay(case["random_draws_in_order"])
        prepared, matrix, boxes, _ = recipe.augment(
            [Picture(image, arrays["boxes"], np.zeros(3, np.int64))], 0, size, replay
        )
        assert not replay.draws
    return prepared.transpose(1, 2, 0), matrix, boxes


def largest_difference(published, name: str, prepared: np.ndarray) -> float:
    expected = published[1][f"{name}/img_every_4th"]
    assert prepared[::4, ::4].shape == expected.shape and prepared.dtype == expected.dtype
    return float(np.abs(prepared[::4, ::4] - expected).max())


@pytest.mark.parametrize("name", CASES)
def test_as_published(published, name):
    prepared, matrix, boxes = run(published, name)
    case, arrays = published[0][name], published[1]
    assert list(prepared.shape) == case["out_shape_hwc"]
    assert list(transforms.stack([prepared.transpose(2, 0, 1)]).shape) == case["stacked_shape"]
    assert largest_difference(published, name, prepared) <= PIXEL
    whole = prepared.astype(np.float64)
    assert [whole.mean(), whole.std(), np.linalg.norm(whole)] == pytest.approx(
        [case["img"][key] for key in ("mean", "std", "l2")], rel=PIXEL
    )
    np.testing.assert_allclose(matrix, arrays[f"{name}/warp_matrix"], rtol=0, atol=LAST_BIT * np.abs(matrix).max())
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes, arrays[f"{name}/boxes"])


@pytest.mark.parametrize(
    ("fault", "recipe"),
    [
        ("mean in RGB order", replace(RECIPE, mean=RECIPE.mean[::-1])),
        ("deviation in RGB order", replace(RECIPE, std=RECIPE.std[::-1])),
        ("mean rounded", replace(RECIPE, mean=(103.5, 116.3, 123.7))),
    ],
)
def test_a_wrong_constant_shows(published, fault, recipe):
    assert largest_difference(published, "val_320", run(published, "val_320", recipe)[0]) > 100 * PIXEL


def test_swapped_channels_show(published):
    rgb = np.ascontiguousarray(published[1]["raw_bgr_uint8"][..., ::-1])
    assert largest_difference(published, "val_320", run(published, "val_320", image=rgb)[0]) > 0.1


def test_a_half_pixel_shows(published):
    resized = cv2.resize(published[1]["raw_bgr_uint8"], (320, 320))  # shifts by half a pixel, as most resizers do
    prepared = RECIPE._normalise(resized.astype(np.float32) / 255).transpose(1, 2, 0)
    assert largest_difference(published, "val_320", prepared) > 0.1


def test_draws_in_another_order_show(published):
    case = published[0]["train_320_seed0"]
    draws = case["random_draws_in_order"]
    with pytest.raises(AssertionError):
        RECIPE.augment([Picture(published[1]["raw_bgr_uint8"], *NOTHING)], 0, (320, 320), Replay(draws[::-1]))


def test_no_boxes_stay_no_boxes():
    image = np.zeros((20, 30, 3), np.uint8)
    *_, boxes, labels = RECIPE.augment([Picture(image, *NOTHING)], 0, (64, 32), stream(0, "t"))
    assert boxes.shape == (0, 4) and labels.shape == (0,)


def test_keeping_the_ratio_of_a_hair_leaves_a_pixel():
    prepared, matrix = replace(RECIPE, keep_ratio=True).preprocess(np.zeros((2000, 3, 3), np.uint8), (320, 320))
    assert prepared.shape == (3, 320, 1) and np.isfinite(matrix).all()


def test_a_stream_repeats_itself_and_differs_from_the_next():
    image = stream(1, "image").integers(0, 256, (48, 64, 3)).astype(np.uint8)
    target = np.array([[4, 5, 30, 40]], np.float32), np.array([2])
    first, again, other = (
        RECIPE.augment([Picture(image, *target)], 0, (64, 64), stream(7, "augment", *key))
        for key in ((1, 3), (1, 3), (2, 3))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[1], other[1])


def test_opencv_threads_do_not_matter():
    image = stream(2, "image").integers(0, 256, (700, 900, 3)).astype(np.uint8)
    results = []
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            results.append(RECIPE.augment([Picture(image, *NOTHING)], 0, (416, 416), stream(0, "a"))[0])
    finally:
        cv2.setNumThreads(1)
    np.testing.assert_array_equal(*results)


corner = st.floats(0, 90, width=32, allow_subnormal=False)  # Jittor flushes these to zero in its whole process


@given(corner, corner, st.floats(1, 9), st.floats(1, 9), st.integers(0, 2**32), st.booleans())
def test_the_inverse_brings_boxes_back(x, y, width, height, seed, keep_ratio):
    image = np.zeros((120, 100, 3), np.uint8)
    box = np.array([[x, y, x + width, y + height]], np.float32)
    recipe = replace(RECIPE, keep_ratio=keep_ratio, translate=(0.5, 0.5), scale=(0.6, 0.8))  # nothing leaves the input
    _, matrix, there, _ = recipe.augment(
        [Picture(image, box, np.zeros(1, np.int64))], 0, (96, 160), stream(seed, "box")
    )
    assert (there[:, 2:] > there[:, :2]).all()
    back = transforms.warp_boxes(there, np.linalg.inv(matrix), image.shape[:2])
    np.testing.assert_allclose(back, box, rtol=0, atol=1e-4)  # float32 of values up to 160, times the scale


@pytest.mark.parametrize("keep_ratio", [False, True])
def test_exact_evaluation_reads_between_pixels(keep_ratio):
    recipe = replace(transforms.RECIPES["nanodet_plus"], mean=(0, 0, 0), std=(255, 255, 255), keep_ratio=keep_ratio)
    y, x = np.mgrid[0:41, 0:97]
    plane = (x + 2 * y).astype(np.uint8)
    prepared, matrix = recipe.preprocess(np.stack([plane] * 3, 2), (32, 64))
    columns, rows = ((np.arange(prepared.shape[2 - axis]) - matrix[axis, 2]) / matrix[axis, axis] for axis in (0, 1))
    inside = np.ix_((rows >= 0) & (rows <= 40), (columns >= 0) & (columns <= 96))
    expected = columns[None] + 2 * rows[:, None]
    assert np.abs(prepared[0] * 255 - expected)[inside].max() <= 0.501  # rounded to grey levels


def test_exact_and_opencv_4_differ_by_its_grid_only(published):
    image = published[1]["raw_bgr_uint8"]
    fine, coarse = (replace(RECIPE, exact=exact).preprocess(image, (320, 320))[0] for exact in (True, False))
    levels = np.abs(fine - coarse) * np.array(RECIPE.std)[:, None, None]
    assert 0 < levels.max() <= 4.5 and levels.mean() < 0.5  # sheet: 4 grey levels, 0.25 on average
