"""Annotated images in the one form between VOC XML, COCO JSON and YOLO text: no number is rounded.

Boxes are x1, y1, x2, y2 in pixels from the image's left upper corner to edges: the whole image is (0, 0, width,
height). A format's reader gives a `Collection` from the annotation files alone; `measured` then decodes every image,
which brings the true sizes, boxes in pixels, and the faults that only pixels show.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lib.data import images
from lib.errors import UserError, visible

FLAGS = ("difficult", "truncated", "occluded")
DECIMALS = 9  # of a pixel: float64 keeps as many up to images of a million pixels a side, so no step adds an error
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # and what folders call them
OVERHANG = 1.0  # pixels a box may stick out of its image before it is reported: annotation tools round

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """One object, and the flags that a format has for it."""

    name: str  # of its class
    box: Box  # see the module; parts of the image's sides where `Picture.relative`
    difficult: bool = False  # VOC; COCO's `ignore`
    truncated: bool = False  # VOC
    occluded: bool = False  # VOC
    crowd: bool = False  # COCO
    pose: str = ""  # VOC; empty where unspecified
    area: float | None = None  # COCO, in square pixels; None where the box's
    outline: Any = None  # COCO's segmentation as it stands; YOLO's polygon in the same form
    where: str = field(default="", compare=False)  # in `Picture.source`, for messages


@dataclass(frozen=True)
class Picture:
    """One image and what is annotated on it."""

    name: str  # its path inside the images' folder, with "/" and suffix
    file: Path
    source: Path  # the file that annotates it
    size: tuple[int, int] | None  # width, height as annotated; after `measured` those of the pixels
    annotations: tuple[Annotation, ...] = ()
    id: int | None = None  # COCO
    relative: bool = False  # boxes and outlines are parts of the sides (YOLO)
    stored: bool = False  # annotated on the stored pixels of a file that EXIF would turn


@dataclass(frozen=True)
class Fault:
    """What is wrong, where, and what to do. `loses`: going on would leave the entry out."""

    message: str
    loses: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", visible(self.message).replace("\n", "\\n"))  # it may name any file


class Faults(list[Fault]):
    """Those found so far."""

    def lost(self, message: str) -> None:
        self.append(Fault(message))

    def kept(self, message: str) -> None:
        self.append(Fault(message, loses=False))


@dataclass(frozen=True)
class Collection:
    """A data set as its annotation files tell it."""

    path: Path
    format: str  # voc, coco or yolo
    classes: tuple[str, ...]  # by label
    splits: dict[str, tuple[Picture, ...]]  # by name: train, val, ...; "" where there is no split
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()  # no fault, but what whoever reads a number of it should know
    others: Counter[str] = field(default_factory=Counter)  # entries that no other format has -> how often
    renumbered: bool = False  # its class numbers are not 1..n (COCO)

    def pictures(self) -> Iterator[Picture]:
        """Those of all splits."""
        for split in self.splits.values():
            yield from split

    def annotations(self) -> Iterator[Annotation]:
        """Those of all pictures."""
        for picture in self.pictures():
            yield from picture.annotations


def tidy(value: float) -> float | int:
    """Without the error of float64 arithmetic, whole numbers as such: text that reads as a person wrote it."""
    rounded = round(value, DECIMALS)
    return int(rounded) if rounded == int(rounded) else rounded


def stem(name: str) -> str:
    """A picture's name without its suffix, folders kept: what VOC's and YOLO's files call it."""
    return str(PurePosixPath(name).with_suffix(""))


def is_readable(name: object) -> bool:
    """Text of one line that can be shown and that every format can hold."""
    return isinstance(name, str) and bool(name.strip()) and visible(name) == name and "\n" not in name


def text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file. UserError if it is none."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def read_json(path: Path, parse_constant: Callable[[str], float] | None = None) -> Any:
    """The content of a JSON file. UserError if it has none; `parse_constant` may raise ValueError for NaN."""
    try:
        return json.loads(path.read_bytes(), parse_constant=parse_constant)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a COCO JSON file") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: no valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "the file may be cut short: write or download it again"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except RecursionError as error:
        raise UserError(f"{path}: no valid JSON (lists in lists without an end); write or download it again") from error
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON ({error}); write or download it again") from error


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A UTF-8 file of these lines, in a folder made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def class_faults(path: Path, names: tuple[str, ...]) -> list[Fault]:
    """Names that differ only in case, width or spaces: mostly one class that was typed in two ways."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    said = "{}: classes {} differ only in case or spaces; rename if they are one"
    return [Fault(said.format(path, " and ".join(map(repr, same))), False) for same in alike.values() if len(same) > 1]


def measured(collection: Collection, workers: int | None = None) -> Collection:
    """With every image decoded: true sizes, boxes in pixels; what can't be kept is a fault and left out.

    COCO's reader has judged the boxes already, by the published rules.
    """
    splits, faults = {}, list(collection.faults)
    for split, pictures in collection.splits.items():
        found = images.each(lambda picture: _measure(picture, collection.format == "coco"), pictures, workers)
        splits[split] = tuple(picture for picture, _ in found if picture)
        faults += [fault for _, of_picture in found for fault in of_picture]
    return replace(collection, splits=splits, faults=tuple(faults))


def _measure(picture: Picture, judged: bool) -> tuple[Picture | None, Faults]:
    faults, kept = Faults(), []
    what = "the image" if picture.id is None else f"image {picture.id}"
    if not is_readable(picture.name):
        faults.lost(f"{picture.file}: its name is no UTF-8 or holds control characters; rename it and its annotations")
        return None, faults
    try:
        image, stored = images.pixels(picture.file, what, picture.size[::-1] if picture.size else None)
    except UserError as error:
        faults.lost(str(error))
        return None, faults
    size = (image.shape[1], image.shape[0])
    if stored:
        faults.kept(images.UNTURNED.format(picture.file))
    for annotation in picture.annotations:
        if picture.relative:
            annotation = _in_pixels(annotation, size)
        fault = None if judged else box_fault(annotation.box, size) or _twice(annotation, kept)
        if fault:
            shown = f"has the box {[tidy(value) for value in annotation.box]} in pixels"
            message = f"{picture.source}: {annotation.where} ({annotation.name}) {shown}{fault.message}"
            faults.append(replace(fault, message=message))
        if not (fault and fault.loses):
            kept.append(annotation)
    return replace(picture, size=size, annotations=tuple(kept), relative=False, stored=stored), faults


def _in_pixels(annotation: Annotation, size: tuple[int, int]) -> Annotation:
    def scaled(values: list[float]) -> list[float]:
        return [tidy(value * size[at % 2]) for at, value in enumerate(values)]

    outline = annotation.outline and [scaled(part) for part in annotation.outline]
    return replace(annotation, box=tuple(scaled(annotation.box)), outline=outline)


def box_fault(box: Box, size: tuple[int, int]) -> Fault | None:
    """What is wrong with a box that has an extent, in an image of `size` (width, height)."""
    (width, height), (x1, y1, x2, y2) = size, box
    if x2 - x1 < 1 or y2 - y1 < 1:
        return Fault(", less than a pixel wide or high: training skips it; correct or remove it", False)
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return Fault(f", outside the image of {width}x{height}; correct or remove it")
    beyond = tidy(max(-x1, -y1, x2 - width, y2 - height))
    if beyond > OVERHANG:
        said = f", {beyond} pixels beyond the image of {width}x{height}: training clips it; correct it or leave it"
        return Fault(said, False)
    return None


def _twice(annotation: Annotation, before: list[Annotation]) -> Fault | None:
    if any((other.name, other.box) == (annotation.name, annotation.box) for other in before):
        return Fault(" as another of its class has; remove one of them", False)
    return None
