"""Reads and writes YOLO text: one text file an image, one line an object, in parts of the image's sides.

A line is `class x y width height`, x and y the box's centre, or `class x1 y1 x2 y2 x3 y3 ...`, an outline, whose box is
its extent. Classes count from 0 in data.yaml (`names`) or a list, one name a line (classes.txt, obj.names); where there
are both they must agree. Numbers are written with all the digits of a float64, so pixels come back exactly.

* Images are in images/ and text files in labels/ at the same place below it, or both are in one folder, or some so and
  some so. A text file that no image has, two of one image, two images of one are faults that lose objects.
* data.yaml's (dataset.yaml's) train, val and test name folders of images, text files that list images, or several of
  these, inside the data set, wherever it lay when they were written; without it, images/train or train/images and the
  like are the splits.
* An image without a text file has no objects, by the format's own rule; it is reported all the same, and if it is so
  with all images, their objects are lost.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from lib.data import annotated, images
from lib.data.annotated import SPLITS, Annotation, Box, Collection, Faults, Picture, stem, text_lines, write_lines
from lib.errors import UserError

LISTS = ("classes.txt", "obj.names")
SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
LARGEST = 2.0  # sides: a box may stick out of its image, pixels are larger


def is_yolo(folder: Path) -> bool:
    """Whether `folder` looks like one."""
    labels = (folder / "labels").exists() and not any(folder.glob("labels/*.xml"))
    if labels or any((folder / name).exists() for name in (*SETTINGS, "train/labels", "obj.names")):
        return True
    others = any(any(folder.glob(place)) for place in ("Annotations/", "annotations/", "*.xml"))
    return (folder / "classes.txt").is_file() and not others


def read(folder: Path, images_dir: Path | None = None) -> Collection:
    """What the text files of `folder` say, boxes in parts of the sides; faulty lines left out and named."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give the one that holds images and labels")
    faults, texts = Faults(), _Texts(folder)
    path, settings = _settings(folder)
    classes = _classes(folder, path, settings, texts)
    faults += annotated.class_faults(folder, classes)
    splits = {}
    for split, files in _splits(folder, path, settings, images_dir, faults).items():
        held = {name: texts.of(file, name, faults) for name, file in files.items()}
        none = [text for text in held.values() if text not in texts.used]
        if none and len(none) == len(held):
            said = f"none of the {len(held)} images{' of ' + split if split else ''} has a text file, such as {none[0]}"
            faults.lost(f"{folder}: {said}; restore them, or write empty ones if there are no objects")
            continue
        for text in none:
            faults.kept(f"{text}: is not there, so its image has no objects; write an empty file if that is meant")
        splits[split] = tuple(
            Picture(name, files[name], text, None, _annotations(text, classes, faults), relative=True)
            for name, text in held.items()
        )
    texts.judge(faults)
    return Collection(folder, "yolo", classes, splits, tuple(faults))


class _Texts:
    """The text files of a data set, found by the images that they annotate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = images.files(folder, (".txt",))
        self.lists = [path for path in self.files if path.name.lower() in LISTS]
        self.by_stem: dict[Path, Path] = {}
        for path in self.files:
            if path not in self.lists:
                self.by_stem.setdefault(path.with_suffix(""), path)
        self.used: dict[Path, Path] = {}  # by which image

    def of(self, file: Path, name: str, faults: Faults) -> Path:
        """Where an image's objects are; `name` is its own below its split. A path that is not there if nowhere."""
        stems = list(dict.fromkeys(self._stems(file, name)))
        found = [self.by_stem[place] for place in stems if place in self.by_stem]
        if not found:
            return stems[0].with_name(f"{stems[0].name}.txt")
        if len({path.read_bytes() for path in found}) > 1:
            faults.lost(f"{found[1]}: annotates {file}, as {found[0]} does in another way; remove one of them")
        if (other := self.used.setdefault(found[0], file)) != file:
            faults.lost(
                f"{found[0]}: annotates {other.name} and {file.name}, but may be one's only; rename one of the images"
            )
        self.used |= dict.fromkeys(found[1:], file)
        return found[0]

    def _stems(self, file: Path, name: str) -> Iterator[Path]:
        """labels/ in place of each images/, the innermost first, the name below labels/, and beside the image."""
        parts = file.relative_to(self.folder).with_suffix("").parts if file.is_relative_to(self.folder) else ()
        for at in reversed([at for at, part in enumerate(parts) if part == "images"]):
            yield self.folder.joinpath(*parts[:at], "labels", *parts[at + 1 :])
        if (self.folder / "labels").is_dir():
            yield (self.folder / "labels" / name).with_suffix("")
        yield file.with_suffix("")

    def judge(self, faults: Faults) -> None:
        """What no image has is a fault."""
        beside = {file.parent for file in self.used.values()} | {path.parent for path in self.used}
        for path in self.files:
            near = "labels" in path.relative_to(self.folder).parts or path.parent in beside
            if near and path not in self.used and path not in self.lists and _is_label(path):
                faults.lost(f"{path}: annotates no image of the data set; restore the image or remove the file")


def write(folder: Path, classes: tuple[str, ...], splits: dict[str, tuple[Picture, ...]]) -> None:
    """labels/<split>/, classes.txt, and data.yaml with the splits (the one set as both where there is no split)."""
    for split, pictures in splits.items():
        for picture in pictures:
            lines = (line(annotation, classes, picture.size) for annotation in picture.annotations)
            write_lines(folder / "labels" / split / f"{stem(picture.name)}.txt", lines)
    write_lines(folder / "classes.txt", classes)
    places = {split or "train": f"images/{split}".rstrip("/") for split in splits}
    settings = {**places, "val": places.get("val", next(iter(places.values()))), "names": dict(enumerate(classes))}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), encoding="utf-8")


def line(annotation: Annotation, classes: tuple[str, ...], size: tuple[int, int]) -> str:
    """The line of one annotation in pixels of an image of `size` (width, height)."""
    (width, height), (x1, y1, x2, y2) = size, annotation.box
    parts = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return " ".join(
        [str(classes.index(annotation.name)), *(np.format_float_positional(part, trim="-") for part in parts)]
    )


def _settings(folder: Path) -> tuple[Path, dict]:
    """The file that names splits and classes, and its content; empty where there is none."""
    path = next((folder / name for name in SETTINGS if (folder / name).is_file()), folder / SETTINGS[0])
    if not path.is_file():
        return path, {}
    try:
        settings = yaml.safe_load("\n".join(text_lines(path)))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: no valid YAML ({' '.join(str(error).split())[:120]}); correct it") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: has no entries; give it names, train and val")
    return path, settings


def _classes(folder: Path, path: Path, settings: dict, texts: _Texts) -> tuple[str, ...]:
    names = settings.get("names")
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if names is not None and not (isinstance(names, list) and names and {type(name) for name in names} <= {str, int}):
        raise UserError(f"{path}: names is no list or table 0..n-1 of names; correct it, names like yes in quotes")
    own = [folder / name for name in LISTS if (folder / name).is_file()]
    lists = {place: _names(place) for place in (*own, *texts.lists)}
    found = {path: [str(name).strip() for name in names]} if names else {}
    found |= {place: listed for place, listed in lists.items() if listed}
    if not found:
        raise UserError(f"{folder}: has no class names; write them to {folder / 'classes.txt'}, one a line")
    (first, classes), *others = found.items()
    for place, listed in others:
        if listed != classes:
            raise UserError(f"{place}: its classes are not those of {first.name}; correct one of them")
    for number, name in enumerate(classes):
        if not annotated.is_readable(name) or classes.index(name) != number:
            raise UserError(f"{first}: class {number} has name {name!r}, unreadable or used twice; give it its own")
    return tuple(classes)


def _names(path: Path) -> list[str]:
    """The lines of a class list, without empty ones at its end."""
    return "\n".join(line.strip() for line in text_lines(path)).rstrip("\n").split("\n")


def _splits(
    folder: Path, path: Path, settings: dict, images_dir: Path | None, faults: Faults
) -> dict[str, dict[str, Path]]:
    """split -> images by their names in it."""
    pool = images_dir or (folder / "images" if (folder / "images").is_dir() else folder)
    places = {} if images_dir else _stated(folder, path, settings, faults)
    if len(set(places.values())) == 1:  # one set given as train and as val
        (same,) = set(places.values())
        places = {"" if same == (pool,) else next(iter(places)): same}
    else:
        places |= _usual(folder, pool, places)
    places = places or {"": (pool,)}
    splits = {split: _files(of, folder, pool, faults) for split, of in places.items()}
    listed = {file for files in splits.values() for file in files.values()}
    for file in (file for file in images.files(pool) if file not in listed):
        where = ", ".join(str(place) for of in places.values() for place in of)
        faults.lost(f"{file}: is in no split; move it into one of {where}")
    return splits


def _usual(folder: Path, pool: Path, stated: dict[str, tuple[Path, ...]]) -> dict[str, tuple[Path, ...]]:
    """images/train, train/images and the like, of the splits that are not stated."""
    taken, found = {place for places in stated.values() for place in places}, {}
    for split, names in SPLITS.items():
        usual = (place for name in names for place in (folder / name / "images", pool / name))
        place = next((place for place in usual if place.is_dir() and place not in taken), None)
        if place and split not in stated:
            found[split] = (place,)
    return found


def _files(places: tuple[Path, ...], folder: Path, pool: Path, faults: Faults) -> dict[str, Path]:
    """The images of a split by their names below its folder, or below that of all images where it is not just one."""
    lists = [place for place in places if place.suffix == ".txt"]
    found = [
        file for place in places for file in (_listed(place, folder, faults) if place in lists else images.files(place))
    ]
    base = places[0] if len(places) == 1 and not lists else pool
    base = base if all(file.is_relative_to(base) for file in found) else folder
    return {file.relative_to(base).as_posix(): file for file in found}


def _stated(folder: Path, path: Path, settings: dict, faults: Faults) -> dict[str, tuple[Path, ...]]:
    """split -> the folders and lists that the settings name for it."""
    found: dict[str, tuple[Path, ...]] = {}
    for split in SPLITS:
        stated = settings.get(split) or settings.get("valid" if split == "val" else split)
        texts = stated if isinstance(stated, list) else [stated] if stated else []
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{path}: {split} is no text; give a folder inside the data set, or a list of folders")
        places = [_inside(folder, text, settings.get("path")) for text in texts]
        if None in places and split == "test":
            faults.kept(f"{path}: test is {stated!r}, which is not inside {folder}: passed over; correct or remove it")
        elif None in places:
            raise UserError(f"{path}: {split} is {stated!r}, which is not inside {folder}; correct it")
        elif places:
            found[split] = tuple(places)
    return found


def _inside(folder: Path, text: str, base: object = None) -> Path | None:
    """The file or folder of a data set that a path means, wherever the set lay when it was written; None if none.

    Tried are the path below `base` and below the data set, then its last parts, at least two of several.
    """
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    ends = ["/".join(parts[at:]) for at in range(len(parts)) if at == 0 or len(parts) - at > 1]
    root = folder.resolve()
    for tried in (f"{base}/{text}" if isinstance(base, str) else text, text, *ends):
        found = folder.joinpath(tried).resolve()
        if found.exists() and found.is_relative_to(root):
            return folder / found.relative_to(root)
    return None


def _listed(path: Path, folder: Path, faults: Faults) -> list[Path]:
    """The images that a text file lists."""
    found: dict[Path, None] = {}
    for number, entry in enumerate(map(str.strip, text_lines(path)), 1):
        file = _inside(folder, entry) if entry else None
        if file and file.is_file():
            found[file] = None
        elif entry:
            faults.lost(f"{path}: line {number} lists {entry!r}, no file inside {folder}; correct or remove it")
    return list(found)


def _is_label(text: Path) -> bool:
    """Not a list of images nor what a person wrote, where text files lie beside the images."""
    return text.stem not in SPLITS and not text.name.lower().startswith("readme")


def _annotations(text: Path, classes: tuple[str, ...], faults: Faults) -> tuple[Annotation, ...]:
    if not text.is_file():
        return ()
    found = []
    try:
        lines = text_lines(text)
    except UserError as error:
        faults.lost(str(error))
        return ()
    for number, content in enumerate(map(str.strip, lines), 1):
        try:
            found += [replace(_annotation(content.split(), classes), where=f"line {number}")] if content else []
        except ValueError as error:
            faults.lost(f"{text}: line {number} ({content[:60]}) {error}")
    return tuple(found)


def _annotation(fields: list[str], classes: tuple[str, ...]) -> Annotation:
    """The object of one line. ValueError says what is wrong with it and what to do."""
    if not fields[0].isdecimal() or int(fields[0]) >= len(classes):
        raise ValueError(f"has class {fields[0]!r}, not one of 0..{len(classes) - 1}; correct it or list the class")
    if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
        raise ValueError(f"has {len(fields)} values; give class x y width height, or class and at least three points")
    try:
        values = [float(field) for field in fields[1:]]
    except ValueError:
        values = [math.nan]
    if not all(abs(value) < LARGEST for value in values):
        raise ValueError("is not in parts of the image's sides; divide pixels by its width and height")
    box, outline = _box(values)
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError("has a box of zero or negative size; correct or remove it")
    return Annotation(classes[int(fields[0])], box, outline=outline)


def _box(values: list[float]) -> tuple[Box, list[list[float]] | None]:
    if len(values) > 4:
        return (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])), [values]
    x, y, width, height = values
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2), None
