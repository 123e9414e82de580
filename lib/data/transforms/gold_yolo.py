"""Gold-YOLO: mosaics of four images in training, letterboxes in evaluation, colours of 0..1 without mean and deviation.

Follows Gold-YOLO 225ddd2e (`yolov6/data/datasets.py`, `data_augment.py`, `configs/gold_yolo-*.py`, and
`configs/experiment/eval_640_repro.py`, which the published AP was measured with), deliberate differences:
* height and width of the input may differ; the published code knows squares only;
* rotation and shear, whose published ranges are zero, and the vertical flip, whose probability is zero, are not drawn;
* evaluation at another size than 640 leaves the same share of the input free as at 640;
* in the last epochs the boxes follow the image to the pixel: the published letterbox shifts them half a pixel less
  where the padding is odd, and resizes a second time where truncation left an image one pixel short;
* these last epochs are the same share of a short run as of the published one;
* boxes are clipped to their image first: the published reader drops an image whose boxes stick out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from lib.data import boxes

from .base import Augmented, Picture, Prepared, Random, Recipe, Size, planes

GREY = 114  # of all channels, around images
SIZE = 640  # of the published input
EPOCHS = 300  # of the published run
LAST_EPOCHS = 15  # of these without mosaic and mixing
MIXING = 32.0  # both parameters of the Beta distribution of an image's share in a mixture
SMALLEST, SMALLEST_PART, LONGEST = 2, 0.1, 20  # pixels, part of the area, ratio of the sides: a box beyond is dropped
BORDER = 1e-3  # pixels that boxes keep from the right and lower border
HUES = 180  # of OpenCV's 8-bit HSV


@dataclass(frozen=True)
class GoldYolo(Recipe):
    """The recipe of the four published configurations; the defaults are those of S. Images become RGB."""

    inner: int = 634  # evaluation: longer side of the resized image in an input of 640
    mosaic: float = 1.0  # probability; else the image alone
    mixup: float = 0.0  # probability that a mosaic is mixed with a second one
    scale: float = 0.5  # factor 1 ± this for both axes, about the centre
    translate: float = 0.1  # where the centre goes: 0.5 ± this of width and height
    colours: tuple[float, float, float] = (0.015, 0.7, 0.4)  # factors 1 ± these of hue, saturation, value
    flip: float = 0.5  # probability of mirroring left and right

    def at(self, epoch: int, epochs: int) -> "GoldYolo":
        """Without mosaic and mixing in the last epochs."""
        last = min(LAST_EPOCHS, round(epochs * LAST_EPOCHS / EPOCHS))
        return replace(self, mosaic=0.0, mixup=0.0) if epoch >= epochs - last else self

    def preprocess(self, image: np.ndarray, size: Size) -> Prepared:
        """Resized by whole-area means (enlarged: bilinearly) to a bit less than `size`, the rest grey on all sides."""
        inner = size[0] * self.inner // SIZE, size[1] * self.inner // SIZE
        boxed, matrix = _letterbox(image, inner, size, cv2.INTER_AREA)
        return planes(cv2.cvtColor(boxed, cv2.COLOR_BGR2RGB)), matrix

    def augment(self, pictures: Sequence[Picture], index: int, size: Size, rng: Random) -> Augmented:
        """A mosaic of `pictures[index]` and three others, or the image alone, under random geometry and colour.

        Boxes are dropped of which too little is left.
        """
        if rng.random() < self.mosaic:
            result = self._mosaic(pictures, index, size, rng)
            if rng.random() < self.mixup:
                result = _mixture(result, self._mosaic(pictures, rng.integers(len(pictures)), size, rng), rng)
        else:
            single = _cleaned(pictures[index])
            boxed, matrix = _letterbox(single.image, size, size, cv2.INTER_LINEAR)
            result = self._warp(Picture(boxed, boxes.warp(single.boxes, matrix), single.labels), size, rng)
        image = self._recolour(result.image, rng)
        height, width = size
        found = np.minimum(result.boxes, np.array([width, height, width, height]) - BORDER)
        if rng.random() < self.flip:
            image, found = cv2.flip(image, 1), _mirrored(found, width)
        return planes(image), np.eye(3), found.astype(np.float32), result.labels

    def _mosaic(self, pictures: Sequence[Picture], index: int, size: Size, rng: Random) -> Picture:
        """Four images around a random point of a canvas of twice the size, then one warp to `size`."""
        members = [index, *(rng.integers(len(pictures)) for _ in range(3))]
        members = [members[place] for place in rng.permutation(4)]
        height, width = size
        y = int(rng.uniform(height // 2, 3 * height // 2))
        x = int(rng.uniform(width // 2, 3 * width // 2))
        canvas = np.full((2 * height, 2 * width, 3), GREY, np.uint8)
        parts = [
            _placed(_cleaned(pictures[member]), canvas, size, (y, x), place) for place, member in enumerate(members)
        ]
        found = boxes.clip(np.concatenate([part.boxes for part in parts]), canvas.shape[:2])
        labels = np.concatenate([part.labels for part in parts])
        return self._warp(Picture(canvas, found, labels), size, rng)

    def _warp(self, picture: Picture, size: Size, rng: Random) -> Picture:
        (height, width), (new_height, new_width) = picture.image.shape[:2], size
        scale = rng.uniform(1 - self.scale, 1 + self.scale)
        x, y = (rng.uniform(0.5 - self.translate, 0.5 + self.translate) * side for side in (new_width, new_height))
        matrix = np.array([[scale, 0, x - scale * width / 2], [0, scale, y - scale * height / 2], [0, 0, 1]])
        image = cv2.warpAffine(picture.image, matrix[:2], (new_width, new_height), borderValue=(GREY,) * 3)
        moved = boxes.clip(boxes.warp(picture.boxes, matrix), size)
        return Picture(image, moved, picture.labels).chosen(_is_worth_keeping(picture.boxes * scale, moved))

    def _recolour(self, image: np.ndarray, rng: Random) -> np.ndarray:
        """BGR -> RGB."""
        hue, saturation, value = (1 + gain * rng.uniform(-1, 1) for gain in self.colours)
        levels = np.arange(256.0)
        table = np.stack([levels * hue % HUES, *(np.minimum(levels * gain, 255) for gain in (saturation, value))], 1)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table.astype(np.uint8)[None])
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


VARIANTS = {
    "gold-yolo-n": GoldYolo(inner=636),
    "gold-yolo-s": GoldYolo(),
    "gold-yolo-m": GoldYolo(inner=636, scale=0.9, mixup=0.1),
    "gold-yolo-l": GoldYolo(inner=636, scale=0.9, mixup=0.1),
}


def _resized(image: np.ndarray, size: Size, shrinking: int) -> np.ndarray:
    """The image at the largest size of its ratio inside `size`, sides rounded down, `shrinking` names the method."""
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    if ratio == 1:
        return image
    new = max(int(width * ratio), 1), max(int(height * ratio), 1)
    return cv2.resize(image, new, interpolation=shrinking if ratio < 1 else cv2.INTER_LINEAR)


def _letterbox(image: np.ndarray, inner: Size, size: Size, shrinking: int) -> Prepared:
    """The image inside `inner`, in the middle of a grey (*size, 3) uint8, and the matrix that maps it there."""
    resized = _resized(image, inner, shrinking)
    height, width = resized.shape[:2]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    boxed = cv2.copyMakeBorder(
        resized, top, size[0] - height - top, left, size[1] - width - left, cv2.BORDER_CONSTANT, value=(GREY,) * 3
    )
    return boxed, _scaling(image, resized, left, top)


def _scaling(before: np.ndarray, after: np.ndarray, x: float, y: float) -> np.ndarray:
    """From pixels of an image to those of its resized self, put down at x, y."""
    matrix = np.diag([after.shape[1] / before.shape[1], after.shape[0] / before.shape[0], 1.0])
    matrix[:2, 2] = x, y
    return matrix


def _placed(picture: Picture, canvas: np.ndarray, size: Size, centre: tuple[int, int], place: int) -> Picture:
    """Draw the picture on the canvas with one corner at `centre` (y, x); its boxes there.

    `place` 0 is left above the centre, 1 right above, 2 left below, 3 right below.
    """
    resized = _resized(picture.image, size, cv2.INTER_LINEAR)
    height, width = resized.shape[:2]
    y = centre[0] - (height if place < 2 else 0)
    x = centre[1] - (width if place % 2 == 0 else 0)
    top, left = max(y, 0), max(x, 0)
    seen = resized[top - y : canvas.shape[0] - y, left - x : canvas.shape[1] - x]
    canvas[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return Picture(canvas, boxes.warp(picture.boxes, _scaling(picture.image, resized, x, y)), picture.labels)


def _mixture(first: Picture, second: Picture, rng: Random) -> Picture:
    share = rng.beta(MIXING, MIXING)
    image = (first.image * share + second.image * (1 - share)).astype(np.uint8)
    return Picture(image, np.concatenate([first.boxes, second.boxes]), np.concatenate([first.labels, second.labels]))


def _cleaned(picture: Picture) -> Picture:
    """Boxes within their image, none twice."""
    inside = boxes.clip(picture.boxes, picture.image.shape[:2])
    rows = np.column_stack([inside, picture.labels])
    _, first = np.unique(rows, axis=0, return_index=True)
    return Picture(picture.image, inside, picture.labels).chosen(np.sort(first))


def _is_worth_keeping(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(k,) bool: a box is large enough and not too long after clipping, and enough of its scaled self is left."""
    width, height = (after[:, 2:] - after[:, :2]).T
    large = (width > SMALLEST) & (height > SMALLEST)
    part = boxes.area(after) / np.maximum(boxes.area(before), 1e-16)
    ratio = np.maximum(width, height) / np.maximum(np.minimum(width, height), 1e-16)
    return large & (part > SMALLEST_PART) & (ratio < LONGEST)


def _mirrored(found: np.ndarray, width: int) -> np.ndarray:
    """The boxes in the image mirrored left and right."""
    return np.stack([width - found[:, 2], found[:, 1], width - found[:, 0], found[:, 3]], 1)
