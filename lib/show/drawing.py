"""Boxes and names on images, readable in colour and in black and white, in the script the classes are named in.

A box is a bright line on a wider black one, a name black on white with a strip of its class's colour. Text is drawn by
Pillow, since OpenCV has no letters beyond ASCII. A name that no font here can draw becomes `#` and its category id.
"""

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lib.data import images
from lib.data.annotated import Annotation, Picture
from lib.evaluation.detection import Classes
from lib.show import fonts

MARK = "\u2260 "  # before the name of a marked box
SHOWN = 480  # pixels of an image's longer side from which on names are readable
GOLDEN = 0.618034  # of a turn of the colour wheel: neighbours among labels are far apart
FRAME, INSET = 48, 6  # grey and width in pixels of what lies between pictures on a board
CAPTION = 17  # pixels of a caption's letters
REACH = (-(2**20), 2**20)  # pixels: OpenCV draws no box that leaves the image by more than it can count
TILE = 320  # pixels a side on a sheet
NAME = 32  # letters of a file's name that stand above it
NO_SCORE = float("nan")


class Painter:
    """Draws detections of one set of classes; `note` says which names can't be drawn, or is empty."""

    def __init__(self, classes: Classes) -> None:
        drawn = [fonts.covering(name + MARK) for name in classes.names]
        lost = [name for name, font in zip(classes.names, drawn) if font is None]
        self._names = [
            fonts.one_line(name) if font else f"#{id_}" for name, id_, font in zip(classes.names, classes.ids, drawn)
        ]
        few = f"{', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}"
        self.note = f"no font here can draw {few}; their boxes carry category ids: {fonts.REMEDY}" if lost else ""

    def paint(
        self, image: np.ndarray, rows: np.ndarray, marks: Sequence[bool] = (), truth: Sequence = ()
    ) -> np.ndarray:
        """A copy of (h, w, 3) uint8 BGR with rows (m, 6) on it, the best on top; an annotation's score is NaN.

        marks: which of the rows get a line twice as wide and a name that begins with ≠. truth: annotated boxes (k, 4),
        as `outlined` draws them. Names don't overlap: those of marked boxes are placed first, then the best; one that
        has no room near its box is left out.
        """
        drawn = outlined(image, truth)
        side = min(image.shape[:2])
        line, size = max(2, round(side / 240)), max(11, round(side / 36))
        marked = list(marks) or [False] * len(rows)
        near = np.clip(np.asarray(rows, np.float64).reshape(-1, 6), *REACH)
        boxes = list(zip(near.tolist(), marked, strict=True))
        for (*box, _, label), mark in boxes[::-1]:
            _outline(drawn, box, colour_of(int(label)), 2 * line if mark else line)
        taken: list[tuple[int, int, int, int]] = []
        for (*box, score, label), mark in sorted(boxes, key=lambda one: not one[1]):
            shown = "" if np.isnan(score) else f" {score:.2f}"
            sticker = _sticker(f"{MARK * bool(mark)}{self._names[int(label)]}{shown}", colour_of(int(label)), size)
            _stick(drawn, sticker, [round(value) for value in box], taken)
        return drawn

    def readable(
        self,
        image: np.ndarray,
        rows: np.ndarray,
        marks: Sequence[bool] = (),
        truth: Sequence = (),
        least: int = SHOWN,
    ) -> np.ndarray:
        """`paint` on (h, w, 3) uint8 RGB, enlarged where its longer side has fewer than `least` pixels."""
        scale = max(1.0, least / max(image.shape[:2]))
        large = cv2.resize(image[:, :, ::-1], None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        rows = np.asarray(rows, np.float64) * [scale, scale, scale, scale, 1, 1]
        painted = self.paint(large, rows, marks, np.reshape(truth, (-1, 4)) * scale)
        return np.ascontiguousarray(painted[:, :, ::-1])


class Annotated:
    """Draws measured pictures of a data set; `note` says which classes are shown by their number, or is empty."""

    def __init__(self, classes: Sequence[str], pictures: Sequence[Picture]) -> None:
        said = {_said(one): classes.index(one.name) for picture in pictures for one in picture.annotations}
        said = {**{name: number for number, name in enumerate(classes)}, **said}
        self._labels = {text: label for label, text in enumerate(said)}
        self._painter = Painter(Classes(tuple(said), tuple(said.values())))
        self.note = self._painter.note

    def drawn(self, picture: Picture, longest: int | None = None) -> np.ndarray:
        """(h, w, 3) uint8 BGR, its longer side `longest` pixels where given; crowd and difficult boxes say so."""
        image = images.pixels(picture.file, "the image", picture.size[::-1])[0]
        scale = longest / max(image.shape[:2]) if longest else 1.0
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        inside = (0, 0, 1, 1)  # the last row and column that a box holds, not the next
        rows = [
            [*np.multiply(one.box, scale) - inside, NO_SCORE, self._labels[_said(one)]] for one in picture.annotations
        ]
        return self._painter.paint(image, rows)

    def sheet(self, pictures: Sequence[Picture], workers: int | None = None) -> np.ndarray:
        """All `pictures` as tiles with their names, (h, w, 3) uint8 BGR."""
        drawn = images.each(lambda picture: tile(self.drawn(picture, TILE), TILE), pictures, workers)
        tiles = [(fonts.one_line(picture.name, NAME), image) for picture, image in zip(pictures, drawn)]
        columns = int(np.ceil(np.sqrt(len(tiles))))
        return board([tiles[i : i + columns] for i in range(0, len(tiles), columns)])


def _said(annotation: Annotation) -> str:
    return " ".join([annotation.name, *(f"({flag})" for flag in ("crowd", "difficult") if getattr(annotation, flag))])


def outlined(image: np.ndarray, boxes: Sequence) -> np.ndarray:
    """A copy of (h, w, 3) uint8 with boxes (k, 4) as thin white lines with a black shadow."""
    drawn = image.copy()
    for left, top, right, bottom in np.rint(np.reshape(boxes, (-1, 4)).clip(*REACH)).astype(int).tolist():
        cv2.rectangle(drawn, (left + 1, top + 1), (right + 1, bottom + 1), (0, 0, 0), 1)
        cv2.rectangle(drawn, (left, top), (right, bottom), (255, 255, 255), 1)
    return drawn


def board(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Captions and images (h, w, 3) uint8 in rows and columns as one image, its frame dark on any page; the images of a
    row are equally high, a caption may be empty."""
    columns = range(max(map(len, rows)))
    widths = [max(row[at][1].shape[1] for row in rows if at < len(row)) for at in columns]
    drawn = [np.hstack([_framed(*one, width) for one, width in zip(row, widths)]) for row in rows]
    whole = sum(widths) + INSET * len(widths)
    filled = [np.pad(row, ((0, 0), (0, whole - row.shape[1]), (0, 0)), constant_values=FRAME) for row in drawn]
    return np.pad(np.vstack(filled), ((INSET, 0), (INSET, 0), (0, 0)), constant_values=FRAME)


def tile(image: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3) uint8: the whole of an image in the middle of a square as dark as a board."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    down, right = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, 3), FRAME, np.uint8)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square[down : down + height, right : right + width] = cv2.resize(image, (width, height), interpolation=way)
    return square


def _framed(caption: str, image: np.ndarray, width: int) -> np.ndarray:
    """An image in the middle of a width with its caption above, and the frame right of it and below."""
    left = (width - image.shape[1]) // 2
    framed = np.pad(image, ((0, INSET), (left, width - left - image.shape[1] + INSET), (0, 0)), constant_values=FRAME)
    if not caption:
        return framed
    written = _text(caption, CAPTION)[1:-1, 1:-1][:, :width]
    bar = np.full((written.shape[0] + INSET, framed.shape[1], 3), FRAME, np.uint8)
    bar[: written.shape[0], : written.shape[1]] = np.maximum(255 - written, FRAME)[:, :, None]
    return np.vstack([bar, framed])


@lru_cache(maxsize=1024)
def colour_of(label: int) -> tuple[int, int, int]:
    """BGR of a class: light enough to stand out from the black line in print."""
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.55 + 0.2 * (label % 2), 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


@lru_cache(maxsize=64)
def _font(path: str, face: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, index=face)


@lru_cache(maxsize=4096)
def _text(text: str, size: int) -> np.ndarray:
    """(h, w) uint8, black on white in a black frame."""
    font = _font(*(fonts.covering(text) or fonts.plain()), size)
    ascent, descent = font.getmetrics()
    width = round(font.getlength(text))
    canvas = Image.new("L", (width + 8, ascent + descent + 2), 255)
    ImageDraw.Draw(canvas).text((4, 1), text, fill=0, font=font)
    return cv2.copyMakeBorder(np.asarray(canvas), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)


def _outline(image: np.ndarray, box: Sequence[float], colour: tuple[int, int, int], line: int) -> None:
    """A box in a colour on a wider black line, in place."""
    left, top, right, bottom = (round(value) for value in box)
    cv2.rectangle(image, (left, top), (right, bottom), (0, 0, 0), line + 2)
    cv2.rectangle(image, (left, top), (right, bottom), colour, line)


def _sticker(text: str, colour: tuple[int, int, int], size: int) -> np.ndarray:
    """(h, w, 3) uint8: a text with a strip of a colour before it."""
    written = _text(text, size)
    strip = np.full((written.shape[0], max(3, written.shape[0] // 5), 3), colour, np.uint8)
    return np.hstack([strip, np.repeat(written[:, :, None], 3, axis=2)])


def _stick(image: np.ndarray, sticker: np.ndarray, box: Sequence[int], taken: list[tuple[int, int, int, int]]) -> None:
    """Put a sticker on the image, in place, where it covers none of `taken` (x, y, width, height), near its box."""
    (height, width), (left, top, right, bottom) = sticker.shape[:2], box
    down = [top - height, top, bottom - height, bottom, *range(top + height, bottom, height), top - 2 * height]
    for y, x in product(down, (left, right - width)):
        y, x = (max(0, min(at, room - need)) for at, room, need in zip((y, x), image.shape, (height, width)))
        if all(x >= u + w or u >= x + width or y >= v + h or v >= y + height for u, v, w, h in taken):
            place = image[y : y + height, x : x + width]
            place[:] = sticker[: place.shape[0], : place.shape[1]]
            taken.append((x, y, width, height))
            return
