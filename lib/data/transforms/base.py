"""What the recipes of all families share: their interface, and the steps that do not depend on the family."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import cv2
import numpy as np

from lib.data import boxes

Size = tuple[int, int]  # height, width
Range = tuple[float, float]
Prepared = tuple[np.ndarray, np.ndarray]  # input (3, h, w) float32; (3, 3) float64 matrix from image to input pixels
Augmented = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # the same, boxes (k, 4) float32, labels (k,) int64


class Random(Protocol):
    """What augmentation asks of its source of chance; numpy.random.Generator has it."""

    def random(self) -> float: ...
    def uniform(self, low: float, high: float) -> float: ...
    def integers(self, high: int) -> int: ...
    def permutation(self, count: int) -> np.ndarray: ...
    def beta(self, a: float, b: float) -> float: ...


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image and what is annotated on it; nobody writes into these arrays."""

    image: np.ndarray  # (h, w, 3) uint8 BGR
    boxes: np.ndarray  # (k, 4) float xyxy in its pixels
    labels: np.ndarray  # (k,) int64

    def chosen(self, keep: np.ndarray) -> Self:
        """Only the boxes that the mask or the indices `keep` name."""
        return type(self)(self.image, self.boxes[keep], self.labels[keep])


class Recipe(ABC):
    """How a family's network input is made. Subclasses are frozen dataclasses of the published values."""

    @abstractmethod
    def preprocess(self, image: np.ndarray, size: Size) -> Prepared:
        """(h, w, 3) uint8 BGR as evaluation sees it."""

    @abstractmethod
    def augment(self, pictures: Sequence[Picture], index: int, size: Size, rng: Random) -> Augmented:
        """`pictures[index]`, perhaps mixed with others, as training sees it; boxes lie inside the input.

        The result is a function of the pictures and of what `rng` draws. Where several images are mixed no matrix maps
        an image to the input, and it is the identity.
        """

    def at(self, epoch: int, epochs: int) -> "Recipe":
        """The recipe in `epoch` (0-based) of a run of `epochs`."""
        return self

    def as_picture(self, prepared: np.ndarray) -> np.ndarray:
        """Network input (3, h, w) as the picture (h, w, 3) uint8 RGB that a person sees."""
        return np.rint(prepared * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def warp_boxes(targets: np.ndarray, matrix: np.ndarray, size: Size) -> np.ndarray:
    """(k, 4) xyxy -> float32 boxes around the warped corners, clipped to `size`; computed in float64, as published."""
    return boxes.clip(boxes.warp(targets.astype(np.float64), matrix), size).astype(np.float32)


def planes(rgb: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 RGB -> (3, h, w) float32 of 0..1; planes first, for NumPy is slow along an axis of three."""
    stacked = np.stack(cv2.split(rgb)).astype(np.float32)
    stacked /= 255
    return stacked


def stack(inputs: Sequence[np.ndarray], multiple: int = 32) -> np.ndarray:
    """(3, h, w) inputs -> (n, 3, H, W), zeros to the right and below, H and W multiples of `multiple`."""
    height, width = (-(-max(i.shape[axis] for i in inputs) // multiple) * multiple for axis in (1, 2))
    batch = np.zeros((len(inputs), 3, height, width), np.float32)
    for row, single in zip(batch, inputs):
        row[:, : single.shape[1], : single.shape[2]] = single
    return batch
