"""RT-DETR: colours, zooming out, cropping, mirroring, and one antialiased resize that does not keep the ratio.

Follows RT-DETR 068dfde (`rtdetr_pytorch/src/data`, `configs/rtdetr/include/dataloader.yml`) and what it calls in
torchvision 0.15.2 (`transforms.v2`) on Pillow images: Pillow computes colours and pixels here as there. There is no
mean and deviation; the many sizes of training are made inside the model. Deliberate differences:
* an image without boxes is not cropped, at once: the published code draws until it draws "leave as it is";
* a crop without a pixel is drawn again (published: a division by zero).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from lib.data import boxes

from .base import Augmented, Picture, Prepared, Random, Range, Recipe, Size, planes, warp_boxes

WHOLE = 1.0  # an overlap that only the uncropped image reaches

Window = tuple[int, int, int, int]  # left, top, width, height in image pixels; may reach beyond the image


@dataclass(frozen=True)
class RtDetr(Recipe):
    """The recipe of the five published configurations. Images become RGB."""

    distort: float = 0.5  # probability of each of the colour changes
    brightness: Range = (0.875, 1.125)  # factor
    contrast: Range = (0.5, 1.5)  # factor
    saturation: Range = (0.5, 1.5)  # factor
    hue: Range = (-0.05, 0.05)  # added, as part of the colour circle
    zoom: float = 0.5  # probability of black around the image
    zoom_sides: Range = (1.0, 4.0)  # factor for both sides
    crop: float = 0.8  # probability
    crop_sides: Range = (0.3, 1.0)  # factor for each side
    crop_ratio: Range = (0.5, 2.0)  # allowed width / height
    overlaps: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, WHOLE)  # least IoU of crop and some box, one is drawn
    trials: int = 40  # with one of these
    flip: float = 0.5  # probability of mirroring left and right
    smallest: float = 1.0  # pixels; boxes with a shorter side are dropped, before and after resizing

    def preprocess(self, image: np.ndarray, size: Size) -> Prepared:
        """Resized to `size`."""
        height, width = image.shape[:2]
        return _resized(_rgb(image), size), np.diag([size[1] / width, size[0] / height, 1.0])

    def augment(self, pictures: Sequence[Picture], index: int, size: Size, rng: Random) -> Augmented:
        """A window of the recoloured image, perhaps mirrored, resized to `size`."""
        picture = _with_clipped_boxes(pictures[index])
        image = self._distort(_rgb(picture.image), rng)
        window = self._zoom(image.size, rng)
        if rng.random() < self.crop and len(picture.boxes):
            window, picture = self._crop(window, picture, rng)
        left, top, width, height = window
        seen = boxes.clip(picture.boxes - [left, top, left, top], (height, width))
        picture = picture.chosen(self._is_large(seen))
        image = image.crop((left, top, left + width, top + height))  # black beyond the border
        matrix = np.array([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            matrix = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) @ matrix
        matrix = np.diag([size[1] / width, size[0] / height, 1.0]) @ matrix
        found = warp_boxes(picture.boxes, matrix, size)
        keep = self._is_large(found)
        return _resized(image, size), matrix, found[keep], picture.labels[keep]

    def _distort(self, image: Image.Image, rng: Random) -> Image.Image:
        """Brightness, contrast before or after saturation and hue, and the order of the channels."""
        brightness, contrast, saturation, hue = (
            rng.uniform(*limits) if rng.random() < self.distort else None
            for limits in (self.brightness, self.contrast, self.saturation, self.hue)
        )
        contrast_first = rng.random() < 0.5
        channels = rng.permutation(3) if rng.random() < self.distort else None
        if brightness is not None:
            image = ImageEnhance.Brightness(image).enhance(brightness)
        if contrast is not None and contrast_first:
            image = ImageEnhance.Contrast(image).enhance(contrast)
        if saturation is not None:
            image = ImageEnhance.Color(image).enhance(saturation)
        if hue is not None:
            image = _turned(image, hue)
        if contrast is not None and not contrast_first:
            image = ImageEnhance.Contrast(image).enhance(contrast)
        if channels is not None:
            bands = image.split()
            image = Image.merge("RGB", [bands[channel] for channel in channels])
        return image

    def _zoom(self, image_size: tuple[int, int], rng: Random) -> Window:
        """The image, or more than the image."""
        width, height = image_size
        if rng.random() >= self.zoom:
            return 0, 0, width, height
        factor = rng.uniform(*self.zoom_sides)
        new_width, new_height = int(width * factor), int(height * factor)
        left, top = (int((new - old) * rng.random()) for new, old in ((new_width, width), (new_height, height)))
        return -left, -top, new_width, new_height

    def _crop(self, window: Window, picture: Picture, rng: Random) -> tuple[Window, Picture]:
        """A part of the window and the boxes with their centre in it; the part overlaps one of them enough."""
        while (overlap := self.overlaps[rng.integers(len(self.overlaps))]) < WHOLE:
            for _ in range(self.trials):
                part = self._part(window, rng)
                if part is None:
                    continue
                left, top, width, height = part
                low, high = np.array([left, top]), np.array([left + width, top + height])
                centres = (picture.boxes[:, :2] + picture.boxes[:, 2:]) / 2
                inside = ((low < centres) & (centres < high)).all(1)
                if inside.any() and boxes.iou(picture.boxes[inside], np.array([[*low, *high]])).max() >= overlap:
                    return part, picture.chosen(inside)
        return window, picture

    def _part(self, window: Window, rng: Random) -> Window | None:
        """A random part of the window, unless it is empty or too long."""
        left, top, width, height = window
        new_width, new_height = (int(side * rng.uniform(*self.crop_sides)) for side in (width, height))
        if not new_width or not new_height or not self.crop_ratio[0] <= new_width / new_height <= self.crop_ratio[1]:
            return None
        x, y = (int((old - new) * rng.random()) for old, new in ((width, new_width), (height, new_height)))
        return left + x, top + y, new_width, new_height

    def _is_large(self, found: np.ndarray) -> np.ndarray:
        return (found[:, 2:] - found[:, :2] >= self.smallest).all(1)


def _rgb(image: np.ndarray) -> Image.Image:
    return Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _resized(image: Image.Image, size: Size) -> np.ndarray:
    """(3, *size) float32 of 0..1; shrinking averages over all pixels, with triangular weights."""
    return planes(np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR)))


def _turned(image: Image.Image, hue: float) -> Image.Image:
    """Every colour moved on by a part of the colour circle."""
    steps = int(hue * 255)
    hues, saturations, values = image.convert("HSV").split()
    hues = hues.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (hues, saturations, values)).convert("RGB")


def _with_clipped_boxes(picture: Picture) -> Picture:
    """Boxes within their image, none empty; in float64."""
    inside = boxes.clip(picture.boxes.astype(np.float64), picture.image.shape[:2])
    return Picture(picture.image, inside, picture.labels).chosen((inside[:, 2:] > inside[:, :2]).all(1))
