"""Data sets from one format to another: Pascal VOC XML, COCO JSON, YOLO text, all six ways, through `annotated`.

What a format can't hold is left out in the same way every time, and `convert` says what and how often:

|                            | VOC XML                  | COCO JSON               | YOLO text            |
|----------------------------|--------------------------|-------------------------|----------------------|
| box                        | pixels from 1, inclusive | edges from 0            | parts of the sides   |
| difficult                  | flag                     | ignore, a further key   | no: box left out     |
| truncated, occluded, pose  | flags                    | further keys            | no: lost             |
| crowd                      | no: marked difficult     | flag                    | no: box left out     |
| area, outlines             | no: lost                 | yes                     | no: lost             |
| numbers of images, classes | no: names                | yes                     | classes from 0       |

Boxes keep their place to 1e-9 of a pixel, so there and back gives the same numbers. Image files are copied byte for
byte (or hard-linked), after each was decoded: a converted set is a sound one.
"""

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from lib.data import coco, voc, yolo
from lib.data.annotated import Annotation, Collection, Fault, Picture, measured, stem, tidy
from lib.data.fetch import whole_folder
from lib.errors import UserError, some

FORMATS: dict[str, ModuleType] = {"voc": voc, "coco": coco, "yolo": yolo}
IMAGES = {"voc": "JPEGImages", "coco": "images", "yolo": "images"}  # folder of the images in a written set
PIXELS = "pixels: VOC's boxes count pixels from 1 and include the last, the others' are edges from 0"


@dataclass(frozen=True)
class Conversion:
    """What `convert` did."""

    counts: dict[str, tuple[int, int]]  # split -> images, boxes
    lost: tuple[str, ...]  # one line each: what the target format can't hold
    faults: tuple[str, ...]  # of the source; those that lose something only with `skip_faults`
    notes: tuple[str, ...]  # on it as a whole


def detect(source: Path) -> str:
    """The format of a file or folder. UserError if it looks like none or like several."""
    if not source.exists():
        raise UserError(f"{source}: is not there; give a COCO JSON file, or a folder of VOC, COCO or YOLO annotations")
    if source.is_file():
        return "coco"
    looks = {"voc": voc.is_voc, "coco": coco.files, "yolo": yolo.is_yolo}
    fitting = [name for name, fits in looks.items() if fits(source)]
    if not fitting:
        raise UserError(
            f"{source}: holds no annotations (Annotations/*.xml, train.json, instances.json, "
            "annotations/instances_*.json, data.yaml, labels/ or classes.txt); give the folder that does"
        )
    if len(fitting) > 1:
        raise UserError(f"{source}: could be {' or '.join(fitting)}; say which with --format")
    return fitting[0]


def read(source: Path, images_dir: Path | None = None, kind: str | None = None) -> Collection:
    """The annotations of `source`, no image decoded yet; `kind` is its format where `detect` can't tell."""
    return FORMATS[kind or detect(source)].read(source, images_dir)


def verify(
    source: Path,
    images_dir: Path | None = None,
    kind: str | None = None,
    workers: int | None = None,
    tell: Callable[[str], None] = lambda said: None,
) -> list[str]:
    """One line per fault, with file, entry and remedy; every annotation is read and every image decoded.

    `tell` gets what the set is, and notes that are no faults, before its images are decoded.
    """
    try:
        held = read(source, images_dir, kind)
        for said in (described(held), *(f"note: {note}" for note in held.notes)):
            tell(said)
        return [fault.message for fault in measured(held, workers).faults]
    except UserError as error:
        return [str(error)]


def described(collection: Collection) -> str:
    """Its format, and how many images, objects and classes it has, in one line."""
    counts = {split: (len(of), sum(len(one.annotations) for one in of)) for split, of in collection.splits.items()}
    said = [
        f"{split + ': ' if split else ''}{images} images, {boxes} objects" for split, (images, boxes) in counts.items()
    ]
    classes = f"{len(collection.classes)} classes ({some(collection.classes)})" if collection.classes else "no class"
    return f"{collection.path}: {collection.format}; {'; '.join(said) or 'no image'}; {classes}"


def convert(
    source: Path,
    target: Path,
    to: str,
    images_dir: Path | None = None,
    kind: str | None = None,
    link: bool = False,
    keep_difficult: bool = False,
    skip_faults: bool = False,
    workers: int | None = None,
    trainval: bool = False,
) -> Conversion:
    """Write the data set in `source` to the new folder `target` in the format `to`; it appears whole or not at all.

    A fault that would lose an entry is a UserError; with `skip_faults` the entry is left out and named instead.
    `keep_difficult`: YOLO text gets difficult boxes as ordinary ones instead of losing them. `link`: images are
    hard-linked where the file system can, so they take no space; an edit in place then shows in both sets. `trainval`:
    the splits train and val become train, and test becomes val, as VOC's tables are made.
    """
    kind = kind or detect(source)
    if kind == to:
        raise UserError(f"{source}: is {to} already; convert to another format")
    with whole_folder(target) as temporary:
        held = read(source, images_dir, kind)
        collection = measured(_joined(held) if trainval else held, workers)
        faults = [*collection.faults, *(_turned(collection) if to == "yolo" else ())]
        losing = [fault.message for fault in faults if fault.loses]
        if losing and not skip_faults:
            more = f"{len(losing) - 1} more: python -m lib data verify; " if len(losing) > 1 else ""
            raise UserError(f"{losing[0]} ({more}--skip-faults leaves {'them' if more else 'it'} out)")
        if not any(collection.pictures()):
            raise UserError(f"{source}: has no sound image to convert; run python -m lib data verify")
        if not collection.classes:
            remedy = "annotate something, or name the classes in classes.txt"
            raise UserError(f"{source}: has no box, so no class; {remedy}")
        splits = _named_apart(collection)
        if to == "yolo":
            splits = {split: _held_by_yolo(pictures, keep_difficult) for split, pictures in splits.items()}
        if to != "coco":
            _refuse_same_names(splits, to)
        for split, pictures in splits.items():
            for picture in pictures:
                _place(picture, temporary / IMAGES[to] / (split if to == "yolo" else ""), link)
        FORMATS[to].write(temporary, collection.classes, splits)
    counts = {split: (len(held), sum(len(picture.annotations) for picture in held)) for split, held in splits.items()}
    lost = tuple(_losses(collection, to, keep_difficult))
    return Conversion(counts, lost, tuple(fault.message for fault in faults), collection.notes)


def _joined(collection: Collection) -> Collection:
    """With train and val as one split, and test as val."""
    held = collection.splits
    if not {"train", "test"} <= held.keys():
        raise UserError(
            f"{collection.path}: has no splits train and test to train and evaluate on, only "
            f"{', '.join(filter(None, held)) or 'one set'}; leave --trainval out"
        )
    train = {picture.file: picture for picture in (*held["train"], *held.get("val", ()))}
    return replace(collection, splits={"train": tuple(train.values()), "val": held["test"]})


def _losses(collection: Collection, to: str, keep_difficult: bool) -> list[str]:
    """What the format `to` can't hold of a measured collection, one line each with the number of entries."""
    found = Counter(what for one in collection.annotations() for what in _lost_of(one, to, keep_difficult))
    lines = [f"{what}: {count} boxes" for what, count in found.items()]
    if "voc" in (collection.format, to):
        lines.append(PIXELS + (": xmin = x + 1, xmax = x + width" if to == "voc" else ": x1 = xmin - 1, x2 = xmax"))
    if collection.renumbered:
        lines.append("category ids: classes go by name and order, so the numbers are lost")
    numbers = coco.image_ids(list(collection.pictures()))
    if any(picture.id not in (None, numbers[picture.name]) for picture in collection.pictures()):
        lines.append("image ids: images go by name, so the numbers are lost")
    return lines + [
        f"{what}: {count} entries have it, no other format does" for what, count in collection.others.items()
    ]


def _lost_of(annotation: Annotation, to: str, keep_difficult: bool) -> list[str]:
    if to == "coco":
        return []
    decimals = any(value != int(value) for value in map(tidy, annotation.box))
    difficult = "written as ordinary" if keep_difficult else "left out (--keep-difficult writes them)"
    lost = {
        "area: COCO's differs from width x height": annotation.area is not None,
        "segmentation: only its box stays": annotation.outline,
    }
    if to == "voc":
        lost["crowd: written as difficult"] = annotation.crowd
        lost["decimals: kept, but readers that expect whole pixels may cut them"] = decimals
    else:
        lost["crowd: left out, it is no single object"] = annotation.crowd
        lost[f"difficult: {difficult}"] = annotation.difficult and not annotation.crowd
        lost |= {f"{flag}: lost": getattr(annotation, flag) for flag in ("truncated", "occluded", "pose")}
    return [what for what, is_lost in lost.items() if is_lost]


def _turned(collection: Collection) -> list[Fault]:
    said = "is annotated on its stored pixels, but YOLO's readers turn it by its EXIF orientation"
    remedy = "remove the orientation from the file"
    return [Fault(f"{picture.file}: {said}; {remedy}") for picture in collection.pictures() if picture.stored]


def _held_by_yolo(pictures: tuple[Picture, ...], keep_difficult: bool) -> tuple[Picture, ...]:
    """Without the boxes that would be false targets in YOLO text, and the images that its readers would turn."""

    def stays(annotation: Annotation) -> bool:
        return not annotation.crowd and (keep_difficult or not annotation.difficult)

    upright = (picture for picture in pictures if not picture.stored)
    return tuple(replace(picture, annotations=tuple(filter(stays, picture.annotations))) for picture in upright)


def _named_apart(collection: Collection) -> dict[str, tuple[Picture, ...]]:
    """Splits whose pictures of one name are one file: below a folder per split where they are not."""
    files: dict[str, Path] = {}
    if all(files.setdefault(picture.name, picture.file) == picture.file for picture in collection.pictures()):
        return collection.splits
    return {
        split: tuple(replace(picture, name=f"{split}/{picture.name}") for picture in pictures)
        for split, pictures in collection.splits.items()
    }


def _refuse_same_names(splits: dict[str, tuple[Picture, ...]], to: str) -> None:
    """VOC and YOLO know an image by its name without suffix, so two that differ in it alone would become one."""
    for pictures in splits.values():
        seen: dict[str, Picture] = {}
        for picture in pictures:
            name = stem(picture.name)
            if seen.setdefault(name, picture) is not picture:
                both = f"{seen[name].name} and {picture.name}"
                raise UserError(f"{picture.source}: images {both} would both be {name!r} in {to}; rename one of them")


def _place(picture: Picture, folder: Path, link: bool) -> None:
    file = folder / picture.name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        return  # the same file in another split
    if link:
        with contextlib.suppress(OSError):  # another file system, or one without hard links
            os.link(os.path.realpath(picture.file), file)
            return
    shutil.copyfile(picture.file, file)
