"""What the recipes of all families promise: boxes that follow their objects, samples that are the same everywhere."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib.data import stream, transforms
from lib.data.boxes import area
from lib.data.transforms import RECIPES, Picture, gold_yolo, planes

COLOURS = [colour for colour in np.ndindex(4, 4, 4) if len(set(colour)) > 1]  # times 85: no grey among them
EDGE = 5  # pixels over which an enlarged edge blurs
BACKGROUND = 40  # neither near one of these nor near the borders' 0 and 114
ALL = {
    **RECIPES,
    **gold_yolo.VARIANTS,
    "gold_yolo, last epochs": RECIPES["gold_yolo"].at(299, 300),
    "gold_yolo, mixing": replace(RECIPES["gold_yolo"], mixup=0.7),
}
PLAIN = {  # true colours
    "nanodet_plus": replace(RECIPES["nanodet_plus"], brightness=(0, 0), contrast=(1, 1), saturation=(1, 1)),
    "gold_yolo": replace(RECIPES["gold_yolo"], colours=(0, 0, 0)),
    "gold_yolo, last epochs": replace(RECIPES["gold_yolo"], colours=(0, 0, 0)).at(299, 300),
    "rt_detr": replace(RECIPES["rt_detr"], distort=0.0),
}


def painted(seed: int) -> list[Picture]:
    """Five pictures with up to four boxes each, filled with colours that occur once; one picture has no box."""
    rng = stream(seed, "painted")
    colours = iter(rng.permutation(len(COLOURS)))
    pictures = []
    for number, (height, width) in enumerate([(96, 128), (150, 100), (80, 80), (200, 160), (90, 90)]):
        image = np.full((height, width, 3), BACKGROUND, np.uint8)
        boxes, labels = [], []
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)) if number else ():
            low = np.array([x * width // 2, y * height // 2]) + rng.integers(0, 12, 2)
            high = np.array([(x + 1) * width // 2, (y + 1) * height // 2]) - rng.integers(0, 12, 2)
            label = next(colours)
            image[low[1] : high[1], low[0] : high[0]] = np.array(COLOURS[label])[::-1] * 85  # BGR
            boxes.append([*low, *high])
            labels.append(label)
        pictures.append(Picture(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)))
    return pictures


def assert_boxes_hold_their_colours(recipe, pictures, index, size, rng) -> None:
    """A box is filled with its colour but for its edges, and no patch of that colour lies outside of its boxes.

    Gold-YOLO may not drop small rests here: a mosaic may hold a picture twice, and its colour is still seen.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gold_yolo, "_is_worth_keeping", lambda before, after: area(after) > 0)
        prepared, _, boxes, labels = recipe.augment(pictures, index, size, rng)
    image = recipe.as_picture(prepared).astype(int)
    assert len(boxes) == len(labels)
    for label in set(labels.tolist()):
        of_colour = (np.abs(image - np.array(COLOURS[label]) * 85) <= 12).all(2)
        patches = cv2.erode(of_colour.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0)
        for x1, y1, x2, y2 in np.rint(boxes[labels == label]).astype(int):
            inner = of_colour[y1 + EDGE : max(y2 - EDGE, 0), x1 + EDGE : max(x2 - EDGE, 0)]
            assert inner.all(), f"{[x1, y1, x2, y2]} of {label} holds {inner.mean()} of its colour"
            patches[max(y1 - EDGE, 0) : y2 + EDGE, max(x1 - EDGE, 0) : x2 + EDGE] = 0
        assert not patches.any(), f"colour of {label} lies outside of {boxes[labels == label]}"


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 4), size=st.sampled_from([(96, 96), (64, 128), (160, 128)]))
def test_boxes_follow_their_objects(name, seed, index, size):
    assert_boxes_hold_their_colours(PLAIN[name], painted(seed), index, size, stream(seed, "augment"))


def unmoved(boxes, width):
    return boxes


FAULTS = {
    "gold_yolo": (gold_yolo, "_mirrored", unmoved),
    "gold_yolo, last epochs": (gold_yolo, "_mirrored", unmoved),
    "rt_detr": (Image.Image, "transpose", lambda image, method: image),
}


@pytest.mark.parametrize("name", FAULTS)
def test_mirroring_only_one_of_image_and_boxes_shows(name, monkeypatch):
    monkeypatch.setattr(*FAULTS[name])
    with pytest.raises(AssertionError, match="holds|outside"):
        for seed in range(20):
            assert_boxes_hold_their_colours(PLAIN[name], painted(seed), 1, (96, 96), stream(seed, "augment"))


def test_swapped_labels_show(monkeypatch):
    pictures = [Picture(picture.image, picture.boxes, picture.labels[::-1]) for picture in painted(0)]
    with pytest.raises(AssertionError, match="holds|outside"):
        assert_boxes_hold_their_colours(PLAIN["rt_detr"], pictures, 1, (96, 96), stream(0, "augment"))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 4), size=st.sampled_from([(32, 32), (96, 64)]))
def test_a_sample_has_its_form_and_its_boxes_lie_inside(name, seed, index, size):
    pictures = painted(seed)
    prepared, warp, boxes, labels = ALL[name].augment(pictures, index, size, stream(seed, "augment"))
    assert prepared.shape == (3, *size) and prepared.dtype == np.float32 and np.isfinite(prepared).all()
    assert warp.shape == (3, 3) and warp.dtype == np.float64
    assert boxes.shape == (len(labels), 4) and boxes.dtype == np.float32 and labels.dtype == np.int64
    assert (boxes >= 0).all() and (boxes <= [size[1], size[0]] * 2).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
    assert set(labels.tolist()) <= {label for picture in pictures for label in picture.labels.tolist()}


@pytest.mark.parametrize("name", ALL)
def test_the_same_draws_give_the_same_bytes_and_change_no_picture(name):
    pictures = painted(1)
    before = [picture.image.copy() for picture in pictures]
    for picture in pictures:
        picture.image.setflags(write=False)
    first, again, other = (
        ALL[name].augment(pictures, 2, (96, 64), stream(7, "augment", *key)) for key in ((1, 3), (1, 3), (2, 3))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])
    assert all(np.array_equal(picture.image, image) for picture, image in zip(pictures, before))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(40, 30), (1, 1), (1, 300), (700, 2)])
def test_no_boxes_stay_no_boxes_in_an_image_of_any_shape(name, shape):
    nothing = Picture(np.zeros((*shape, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    for seed in range(8):
        *_, boxes, labels = ALL[name].augment([nothing], 0, (64, 32), stream(seed, "t"))
        assert boxes.shape == (0, 4) and labels.shape == (0,)
    prepared, warp = ALL[name].preprocess(nothing.image, (64, 32))
    assert prepared.shape == (3, 64, 32) and np.isfinite(warp).all()


@pytest.mark.parametrize("name", ALL)
def test_boxes_that_stick_out_of_their_image_are_no_trouble(name):
    boxes = np.array([[-20, -5, 400, 300], [-3, 10, 20, 40], [150, 100, 190, 130]], np.float32)
    picture = Picture(np.zeros((120, 160, 3), np.uint8), boxes, np.arange(3))
    for seed in range(20):
        *_, found, labels = ALL[name].augment([picture], 0, (64, 96), stream(seed, "t"))
        assert (found >= 0).all() and (found <= [96, 64, 96, 64]).all() and len(found) == len(labels)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=30)
@given(
    height=st.integers(2, 300),
    width=st.integers(2, 300),
    size=st.sampled_from([(32, 32), (96, 160), (640, 640)]),
    data=st.data(),
)
def test_evaluation_brings_boxes_back(name, height, width, size, data):
    x1, x2 = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2)))
    y1, y2 = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2)))
    box = np.array([[x1, y1, x2, y2]], np.float32)
    prepared, warp = ALL[name].preprocess(np.zeros((height, width, 3), np.uint8), size)
    assert prepared.shape == (3, *size)
    there = transforms.warp_boxes(box, warp, size)
    back = transforms.warp_boxes(there, np.linalg.inv(warp), (height, width))
    # float32 has 24 bits; an image of 300 pixels in an input of 32 multiplies that error by 10
    np.testing.assert_allclose(back, box, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_evaluation_shows_the_image_where_its_matrix_says(name):
    picture = painted(5)[3]
    prepared, warp = ALL[name].preprocess(picture.image, (96, 128))
    image = ALL[name].as_picture(prepared).astype(int)
    for box, label in zip(transforms.warp_boxes(picture.boxes, warp, (96, 128)), picture.labels):
        x, y = np.rint((box[:2] + box[2:]) / 2).astype(int)
        assert np.abs(image[y - 5 : y + 5, x - 5 : x + 5] - np.array(COLOURS[label]) * 85).max() <= 6


def test_the_recipe_of_a_model():
    assert transforms.recipe("nanodet-plus-m_320") is RECIPES["nanodet_plus"]
    assert transforms.recipe("rtdetr_r18vd") is RECIPES["rt_detr"]
    assert [transforms.recipe(f"gold-yolo-{size}").scale for size in "nsml"] == [0.5, 0.5, 0.9, 0.9]


def test_planes_come_first_and_colours_are_0_to_1():
    rgb = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(planes(rgb), rgb.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def test_stack_pads_right_and_below_with_zeros():
    ones = [np.ones((3, 40, 50), np.float32), np.ones((3, 33, 64), np.float32)]
    batch = transforms.stack(ones)
    assert batch.shape == (2, 3, 64, 64)
    assert [single.sum() for single in batch] == [single.size for single in ones]
    np.testing.assert_array_equal(batch[0, :, :40, :50], ones[0])
