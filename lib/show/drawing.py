"""Boxes and names on images, readable in colour and in black and white, in the script the classes are named in.

A box is a bright line on a wider black one, a name black on white with a strip of its class's colour. Text is drawn by
Pillow, since OpenCV has no letters beyond ASCII, with the first font that has all of a name's characters: matplotlib's
DejaVu Sans, then the machine's CJK fonts. A name that no font can draw becomes `#` and its category id.
"""

import colorsys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import cv2
import matplotlib
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

SANS = ("notosanscjk", "sourcehansans", "notosanssc", "wqy", "wenquanyi", "droidsansfallback", "simhei", "msyh")
SERIF = ("pingfang", "arialunicode", "notoserifcjk", "sourcehanserif", "simsun", "uming", "ukai")
CJK = SANS + SERIF  # best first
FACES = 16  # looked through in a font collection for the simplified Chinese one
MARK = "\u2260 "  # before the name of a marked box
SHOWN = 480  # pixels of an image's longer side from which on names are readable
GOLDEN = 0.618034  # of a turn of the colour wheel: neighbours among labels are far apart


class Named(Protocol):
    """The classes of a data set, as lib.evaluation.detection has them."""

    names: Sequence[str]  # by label
    ids: Sequence[int]  # of the categories, also by label


class Painter:
    """Draws detections of one set of classes; `note` says which names can't be drawn, or is empty."""

    def __init__(self, classes: Named) -> None:
        drawn = [font_for(name + MARK) for name in classes.names]
        lost = [name for name, font in zip(classes.names, drawn) if font is None]
        self._fonts = [font or (_plain(), 0) for font in drawn]
        self._names = [name if font else f"#{id_}" for name, id_, font in zip(classes.names, classes.ids, drawn)]
        few = f"{', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}"
        self.note = (
            f"no font here can draw {few}; their boxes carry category ids: install a font such as Noto Sans CJK"
            if lost
            else ""
        )

    def paint(
        self, image: np.ndarray, rows: np.ndarray, marks: Sequence[bool] = (), truth: Sequence = ()
    ) -> np.ndarray:
        """A copy of (h, w, 3) uint8 BGR with rows (m, 6) on it, the best on top; an annotation's score is NaN.

        marks: which of the rows get a line twice as wide and a name that begins with ≠. truth: annotated boxes (k, 4),
        as `outlined` draws them.
        """
        drawn = outlined(image, truth)
        side = min(image.shape[:2])
        line, size = max(2, round(side / 240)), max(11, round(side / 36))
        marked = list(marks) or [False] * len(rows)
        for (*box, score, label), mark in list(zip(np.asarray(rows, np.float64).tolist(), marked, strict=True))[::-1]:
            colour = colour_of(int(label))
            left, top = _outline(drawn, box, colour, 2 * line if mark else line)
            shown = "" if np.isnan(score) else f" {score:.2f}"
            name = f"{MARK * bool(mark)}{self._names[int(label)]}{shown}"
            _stick(drawn, _text(name, *self._fonts[int(label)], size), left, top, colour)
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


def outlined(image: np.ndarray, boxes: Sequence) -> np.ndarray:
    """A copy of (h, w, 3) uint8 with boxes (k, 4) as thin white lines with a black shadow."""
    drawn = image.copy()
    for left, top, right, bottom in np.rint(np.reshape(boxes, (-1, 4))).astype(int).tolist():
        cv2.rectangle(drawn, (left + 1, top + 1), (right + 1, bottom + 1), (0, 0, 0), 1)
        cv2.rectangle(drawn, (left, top), (right, bottom), (255, 255, 255), 1)
    return drawn


@lru_cache(maxsize=1024)
def colour_of(label: int) -> tuple[int, int, int]:
    """BGR of a class: light enough to stand out from the black line in print."""
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.55 + 0.2 * (label % 2), 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def font_for(text: str) -> tuple[Path, int] | None:
    """(file, face) of the first font that has every character of `text`; None if none has."""
    for path in (_plain(), *_cjk()):
        if set(text) - {" "} <= _characters(path):
            return path, _face(path)
    return None


@lru_cache(maxsize=1)
def _plain() -> Path:
    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@lru_cache(maxsize=1)
def _cjk() -> tuple[Path, ...]:
    """The machine's fonts whose names promise Chinese, best first, regular before bold."""

    def rank(path: str) -> tuple:
        stem = "".join(Path(path).stem.lower().split("-")[:1]).replace(" ", "")
        return next((i for i, name in enumerate(CJK) if name in stem), None), "regular" not in path.lower(), path

    ranked = [(rank(path), path) for path in font_manager.findSystemFonts()]
    return tuple(Path(path) for (place, *_), path in sorted(r for r in ranked if r[0][0] is not None))


@lru_cache(maxsize=32)
def _characters(path: Path) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))


@lru_cache(maxsize=32)
def _face(path: Path) -> int:
    """Of a collection the simplified Chinese face, else the first."""
    return next((face for face, name in _faces(path) if name.endswith(" SC")), 0)


def _faces(path: Path) -> Iterator[tuple[int, str]]:
    for face in range(FACES if path.suffix.lower() in (".ttc", ".otc") else 1):
        try:
            yield face, ImageFont.truetype(path, 12, index=face).getname()[0] or ""
        except OSError:  # past the collection's last face
            return


@lru_cache(maxsize=64)
def _font(path: Path, face: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, index=face)


@lru_cache(maxsize=4096)
def _text(text: str, path: Path, face: int, size: int) -> np.ndarray:
    """(h, w) uint8, black on white in a black frame."""
    font = _font(path, face, size)
    ascent, descent = font.getmetrics()
    width = round(font.getlength(text))
    canvas = Image.new("L", (width + 8, ascent + descent + 2), 255)
    ImageDraw.Draw(canvas).text((4, 1), text, fill=0, font=font)
    return cv2.copyMakeBorder(np.asarray(canvas), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)


def _outline(image: np.ndarray, box: Sequence[float], colour: tuple[int, int, int], line: int) -> tuple[int, int]:
    """A box in a colour on a wider black line, in place; its left and top pixel."""
    left, top, right, bottom = (round(value) for value in box)
    cv2.rectangle(image, (left, top), (right, bottom), (0, 0, 0), line + 2)
    cv2.rectangle(image, (left, top), (right, bottom), colour, line)
    return left, top


def _stick(image: np.ndarray, text: np.ndarray, x: int, y: int, colour: tuple[int, int, int]) -> None:
    """Put a name on the image in place, above y where there is room, inside the image as far as it fits."""
    bar = max(3, text.shape[0] // 5)
    height, width = text.shape[0], text.shape[1] + bar
    label = np.empty((height, width, 3), np.uint8)
    label[:, :bar], label[:, bar:] = colour, text[:, :, None]
    top = y - height if y >= height else y
    top, left = (
        max(0, min(at, room - need)) for at, room, need in ((top, image.shape[0], height), (x, image.shape[1], width))
    )
    place = image[top : top + height, left : left + width]
    place[:] = label[: place.shape[0], : place.shape[1]]
