"""NanoDet-Plus: one random warp, colours in floating point, mean and deviation of ImageNet.

Follows RangiLyu/nanodet be9b4a9 (`data/transform`), deliberate differences:
* perspective, rotation and shear, whose published ranges are zero, are neither drawn nor multiplied in;
* evaluation resizes by exact bilinear interpolation, as OpenCV 5 does: OpenCV 4, which Jittor's NumPy asks for, rounds
  positions to 1/32 pixel, which moves COCO numbers by up to 0.02 (training keeps OpenCV's warp, for its speed);
* an image so narrow that keeping its ratio would leave no pixel becomes one pixel wide (published: a crash).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .base import Augmented, Picture, Prepared, Random, Range, Recipe, Size, warp_boxes


@dataclass(frozen=True)
class NanoDetPlus(Recipe):
    """The recipe of the four published configurations. Images are BGR and stay BGR."""

    mean: tuple[float, float, float] = (103.53, 116.28, 123.675)  # BGR, grey levels of 0..255
    std: tuple[float, float, float] = (57.375, 57.12, 58.395)
    exact: bool = True  # evaluation reads between pixels to the last bit; False: to 1/32 pixel, as OpenCV 4
    keep_ratio: bool = False  # True: the published template for a user's own data
    scale: Range = (0.6, 1.4)  # one factor for both axes, about the image centre
    stretch: Range = (0.8, 1.2)  # one more factor per axis
    flip: float = 0.5  # probability of mirroring left and right
    translate: Range = (0.3, 0.7)  # where the image centre goes, as a fraction of width and height
    brightness: Range = (-0.2, 0.2)  # added; colours are 0..1 here and may leave that range
    contrast: Range = (0.6, 1.4)  # factor
    saturation: Range = (0.5, 1.2)  # factor in HSV

    def preprocess(self, image: np.ndarray, size: Size) -> Prepared:
        """(h, w, 3) uint8 BGR -> (3, *size) float32 and the (3, 3) float64 matrix from image to input pixels.

        With `keep_ratio` the result is the largest size of the image's ratio inside `size`; `stack` pads it.
        """
        matrix, size = self._resize(image.shape[:2], size)
        return self._normalise((_exact_colours if self.exact else _colours)(image, matrix, size)), matrix

    def augment(self, pictures: Sequence[Picture], index: int, size: Size, rng: Random) -> Augmented:
        """`preprocess` under random geometry and colour.

        The boxes keep their number and order: one that leaves the input becomes a line or point on its border, as
        published, and the assigner has to live with it.
        """
        picture = pictures[index]
        geometry = self._geometry(picture.image.shape[:2], rng)
        resize, size = self._resize(picture.image.shape[:2], size)
        matrix = resize @ geometry
        colours = self._recolour(_colours(picture.image, matrix, size), rng)
        return self._normalise(colours), matrix, warp_boxes(picture.boxes, matrix, size), picture.labels

    def as_picture(self, prepared: np.ndarray) -> np.ndarray:
        """As in the base class; levels are rounded down."""
        mean, std = (np.array(levels)[:, None, None] for levels in (self.mean, self.std))
        return np.clip(prepared * std + mean, 0, 255).astype(np.uint8).transpose(1, 2, 0)[:, :, ::-1]

    def _resize(self, source: Size, target: Size) -> tuple[np.ndarray, Size]:
        """Scales pixel indices, without the half-pixel shift of cv2.resize."""
        (h, w), (target_h, target_w) = source, target
        if not self.keep_ratio:
            return np.diag([target_w / w, target_h / h, 1.0]), target
        ratio = min(target_h / h, target_w / w)
        target_h, target_w = max(int(ratio * h), 1), max(int(ratio * w), 1)
        # Rounding down made both sides too short by less than a pixel; the published code then fits again, by the
        # side that leaves less room, and centres the other.
        ratio = min(target_h / h, target_w / w)
        matrix = np.diag([ratio, ratio, 1.0])
        matrix[:2, 2] = 0.5 * target_w - ratio * w / 2, 0.5 * target_h - ratio * h / 2
        return matrix, (target_h, target_w)

    def _geometry(self, source: Size, rng: Random) -> np.ndarray:
        h, w = source
        scale = rng.uniform(*self.scale)
        stretch_x, stretch_y = rng.uniform(*self.stretch), rng.uniform(*self.stretch)
        mirror = -1.0 if rng.random() < self.flip else 1.0
        centre_x, centre_y = rng.uniform(*self.translate) * w, rng.uniform(*self.translate) * h
        matrix = np.diag([mirror * stretch_x * scale, stretch_y * scale, 1.0])
        matrix[:2, 2] = centre_x - matrix[0, 0] * w / 2, centre_y - matrix[1, 1] * h / 2
        return matrix

    def _recolour(self, colours: np.ndarray, rng: Random) -> np.ndarray:
        if rng.integers(2):
            colours += rng.uniform(*self.brightness)
        if rng.integers(2):
            colours *= rng.uniform(*self.contrast)
        if rng.integers(2):
            hsv = cv2.cvtColor(colours, cv2.COLOR_BGR2HSV)
            hsv[..., 1] *= rng.uniform(*self.saturation)
            colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        return colours

    def _normalise(self, colours: np.ndarray) -> np.ndarray:
        """(h, w, 3) of 0..1 -> (3, h, w); planes first, for NumPy is slow along an axis of three."""
        planes = np.stack(cv2.split(colours))
        mean, std = (np.array(levels, np.float32)[:, None, None] / 255 for levels in (self.mean, self.std))
        planes -= mean
        planes /= std
        return planes


def _colours(image: np.ndarray, matrix: np.ndarray, size: Size) -> np.ndarray:
    """The warped image as float32 0..1, black outside; warped as uint8, so rounded to grey levels first."""
    colours = cv2.warpPerspective(image, matrix, dsize=(size[1], size[0])).astype(np.float32)
    colours /= 255
    return colours


def _exact_colours(image: np.ndarray, matrix: np.ndarray, size: Size) -> np.ndarray:
    """`_colours` for a matrix that scales and shifts, with every position in float32: OpenCV 5's arithmetic."""
    taps = []
    for axis, (count, length) in enumerate(zip((size[1], size[0]), (image.shape[1], image.shape[0]))):
        position = (np.arange(count, dtype=np.float32) - np.float32(matrix[axis, 2])) * np.float32(
            1 / matrix[axis, axis]
        )
        low = np.floor(position)
        taps.append((np.clip(low.astype(np.int64), -1, length - 1) + 1, position - low))  # + 1: of the padded image
    (left, right_share), (top, low_share) = taps
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0))).astype(np.float32)
    upper, lower = (
        _mix(padded[row][:, left], padded[row][:, left + 1], right_share[None, :, None]) for row in (top, top + 1)
    )
    return np.rint(_mix(upper, lower, low_share[:, None, None])) / np.float32(255)


def _mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """a + (b - a) share with one rounding at the end: a fused multiply-add."""
    return (a + (b - a).astype(np.float64) * share).astype(np.float32)
