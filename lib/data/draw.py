"""Boxes and class names on their images, one PNG an image or one sheet of many.

OpenCV writes ASCII only: a class of another script is shown by its number, and the caller prints which number is which.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lib.data import images
from lib.data.annotated import Annotation, Picture
from lib.record import atomic

# Okabe and Ito's colours that stay apart for colour-blind eyes, BGR; classes beyond take them again.
COLOURS = ((0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240), (178, 114, 0), (0, 94, 213), (167, 121, 204))
TILE = 320  # pixels a side on a sheet
BAR = 18  # pixels of a tile's caption
FONT = cv2.FONT_HERSHEY_SIMPLEX
LETTERS = 0.4  # of the font's size


def drawn(picture: Picture, classes: tuple[str, ...], longest: int | None = None) -> np.ndarray:
    """(h, w, 3) uint8 BGR of a measured picture with its boxes; crowd and difficult boxes say so.

    The longer side becomes `longest` pixels where it is given; lines and letters are sized for what comes out.
    """
    image = images.pixels(picture.file, "the image", picture.size[::-1])[0]
    scale = longest / max(image.shape[:2]) if longest else 1.0
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for annotation in picture.annotations:
        _box(image, annotation, classes, scale)
    return image


def sheet(pictures: Sequence[Picture], classes: tuple[str, ...], workers: int | None = None) -> np.ndarray:
    """All `pictures` as tiles, (rows * (TILE + BAR), columns * TILE, 3) uint8 BGR, each with its name below."""
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    board = np.full((rows * (TILE + BAR), columns * TILE, 3), 255, np.uint8)
    for index, tile in enumerate(images.each(lambda picture: _tile(picture, classes), pictures, workers)):
        top, left = index // columns * (TILE + BAR), index % columns * TILE
        board[top : top + TILE + BAR, left : left + TILE] = tile
    return board


def caption(name: str, classes: tuple[str, ...]) -> str:
    """How a class is written on an image."""
    return name if name.isascii() else f"#{classes.index(name)}"


def write(path: Path, image: np.ndarray) -> None:
    """The image as PNG at `path`, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _box(image: np.ndarray, annotation: Annotation, classes: tuple[str, ...], scale: float) -> None:
    colour = COLOURS[classes.index(annotation.name) % len(COLOURS)]
    flags = [flag for flag in ("crowd", "difficult") if getattr(annotation, flag)]
    size = max(max(image.shape[:2]) / 800, 1.0)
    left, top, right, bottom = (int(round(value * scale)) for value in annotation.box)
    cv2.rectangle(
        image, (left, top), (max(left, right - 1), max(top, bottom - 1)), colour, round(size if flags else 2 * size)
    )
    text = " ".join([caption(annotation.name, classes), *(f"({flag})" for flag in flags)])
    (width, height), below = cv2.getTextSize(text, FONT, LETTERS * size, 1)
    left = max(0, min(left, image.shape[1] - width))
    top = max(height + below, min(top, image.shape[0]))
    cv2.rectangle(image, (left, top - height - below), (left + width, top), colour, -1)
    cv2.putText(image, text, (left, top - below + 1), FONT, LETTERS * size, (0, 0, 0), 1, cv2.LINE_AA)


def _tile(picture: Picture, classes: tuple[str, ...]) -> np.ndarray:
    image = drawn(picture, classes, TILE)
    height, width = image.shape[:2]
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile = np.full((TILE + BAR, TILE, 3), 255, np.uint8)
    tile[top : top + height, left : left + width] = image
    name = picture.name[-44:].encode("ascii", "replace").decode()
    cv2.putText(tile, name, (4, TILE + BAR - 5), FONT, LETTERS, (0, 0, 0), 1, cv2.LINE_AA)
    return tile
