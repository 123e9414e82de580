"""Reads and writes YOLO text: one text file an image, one line an object, in parts of the image's sides.

A line is `class x y width height`, x and y the box's centre, or `class x1 y1 x2 y2 x3 y3 ...`, an outline, whose box is
its extent. Classes count from 0 in data.yaml (`names`) or a list, one name a line (classes.txt, obj.names); where there
are both they must agree. Numbers are written with all the digits of a float64, so pixels come back exactly.

* Images are in images/ and text files in labels/ at the same place below it, or both are in one folder.
* data.yaml's train, val and test name folders of images (or text files that list images) inside the data set; without
  it, images/train, images/val and images/test are the splits.
* An image without a text file has no objects, by the format's own rule; it is reported all the same.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from lib.data import annotated, images
from lib.data.annotated import Annotation, Box, Collection, Faults, Picture, stem, text_lines, write_lines
from lib.errors import UserError

LISTS = ("classes.txt", "obj.names")
SPLITS = ("train", "val", "test")
LARGEST = 2.0  # sides: a box may stick out of its image, pixels are larger


def is_yolo(folder: Path) -> bool:
    """Whether `folder` looks like one."""
    if any((folder / name).exists() for name in ("data.yaml", "labels", "obj.names")):
        return True
    others = any(any(folder.glob(place)) for place in ("Annotations/", "annotations/", "*.xml"))
    return (folder / "classes.txt").is_file() and not others


def read(folder: Path, images_dir: Path | None = None) -> Collection:
    """What the text files of `folder` say, boxes in parts of the sides; faulty lines left out and named."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give the one that holds images and labels")
    settings, faults = _settings(folder), Faults()
    classes = _classes(folder, settings)
    faults += annotated.class_faults(folder, classes)
    splits, read_files = {}, set()
    for split, (base, files) in _splits(folder, settings, images_dir, faults).items():
        pictures = []
        for file in files:
            text = _text_file(file, folder, base)
            read_files.add(text)
            found = _annotations(text, classes, faults)
            pictures.append(Picture(file.relative_to(base).as_posix(), file, text, None, found, relative=True))
        splits[split] = tuple(pictures)
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    for text in sorted(labels.rglob("*.txt")):
        if text not in read_files and (labels != folder or _is_label(text)):
            faults.lost(f"{text}: annotates no image of the data set; restore the image or remove the file")
    return Collection(folder, "yolo", classes, splits, tuple(faults))


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


def _settings(folder: Path) -> dict:
    path = folder / "data.yaml"
    if not path.is_file():
        return {}
    try:
        settings = yaml.safe_load("\n".join(text_lines(path)))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: no valid YAML ({' '.join(str(error).split())[:120]}); correct it") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: has no entries; give it names, train and val")
    return settings


def _classes(folder: Path, settings: dict) -> tuple[str, ...]:
    names, where = settings.get("names"), folder / "data.yaml"
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if names is not None and not (isinstance(names, list) and names and {type(name) for name in names} <= {str, int}):
        raise UserError(f"{where}: names is no list or table 0..n-1 of names; correct it, names like yes in quotes")
    path = next((folder / name for name in LISTS if (folder / name).is_file()), None)
    listed = [name.strip() for name in text_lines(path)] if path else []
    while listed and not listed[-1]:
        listed.pop()
    found = [str(name) for name in names] if names else listed
    if listed and found != listed:
        raise UserError(f"{path}: its classes are not those of data.yaml; correct one of them")
    if not found:
        raise UserError(f"{folder}: has no class names; write them to {folder / 'classes.txt'}, one a line")
    for number, name in enumerate(found):
        if not annotated.is_readable(name) or found.index(name) != number:
            said = f"class {number} has name {name!r}, unreadable or used twice; give it its own"
            raise UserError(f"{where if names else path}: {said}")
    return tuple(found)


def _splits(
    folder: Path, settings: dict, images_dir: Path | None, faults: Faults
) -> dict[str, tuple[Path, list[Path]]]:
    """split -> (folder that names are relative to, image files)."""
    pool = images_dir or (folder / "images" if (folder / "images").is_dir() else folder)
    stated = [split for split in SPLITS if settings.get(split) and images_dir is None]
    places = {split: _place(folder, settings, split) for split in stated}
    if len(set(places.values())) == 1:  # one set given as train and as val
        place = places[stated[0]]
        places = {"" if place == pool else stated[0]: place}
    if not places:
        places = {split: pool / split for split in SPLITS if (pool / split).is_dir()} or {"": pool}
    found = {
        split: (pool, _listed(place, folder, faults)) if place.suffix == ".txt" else (place, images.files(place))
        for split, place in places.items()
    }
    for file in sorted(set(images.files(pool)).difference(*(files for _, files in found.values()))):
        faults.lost(f"{file}: is in no split; move it into one of {', '.join(map(str, places.values()))}")
    return found


def _place(folder: Path, settings: dict, split: str) -> Path:
    """Where data.yaml sees a split: below its `path`, else below the data set's folder, passing over leading `..`."""
    place, base, root = settings[split], settings.get("path"), folder.resolve()
    if not isinstance(place, str):
        raise UserError(f"{folder / 'data.yaml'}: {split} is no text; give one folder inside the data set")
    inner = [part for part in place.split("/") if part != ".."]
    for parts in ([base if isinstance(base, str) else ".", place], [place], inner):
        found = folder.joinpath(*parts).resolve()
        if found.exists() and found.is_relative_to(root):
            return folder / found.relative_to(root)
    raise UserError(f"{folder / 'data.yaml'}: {split} is {place!r}, which is not inside {folder}; correct it")


def _listed(path: Path, folder: Path, faults: Faults) -> list[Path]:
    """The images that a text file lists, relative to the data set's folder."""
    found: dict[Path, None] = {}
    root = folder.resolve()
    for number, entry in enumerate(map(str.strip, text_lines(path)), 1):
        file = (folder / entry).resolve()
        if entry and file.is_relative_to(root) and file.is_file():
            found[folder / file.relative_to(root)] = None
        elif entry:
            faults.lost(f"{path}: line {number} lists {entry!r}, no file inside {folder}; correct or remove it")
    return list(found)


def _text_file(file: Path, folder: Path, base: Path) -> Path:
    """Where an image's objects are: labels/ in place of the innermost images/, else below labels/, else beside it."""
    parts = file.relative_to(folder).parts if file.is_relative_to(folder) else ()
    for at in reversed([at for at, part in enumerate(parts) if part == "images"]):
        if folder.joinpath(*parts[:at], "labels").is_dir():
            return folder.joinpath(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
    if (folder / "labels").is_dir() and not file.with_suffix(".txt").is_file():
        return (folder / "labels" / file.relative_to(base)).with_suffix(".txt")
    return file.with_suffix(".txt")


def _is_label(text: Path) -> bool:
    """Not a class list nor a list of images, where text files lie beside the images."""
    lists = {*LISTS, *(f"{split}.txt" for split in SPLITS)}
    return text.name not in lists and not text.name.lower().startswith("readme")


def _annotations(text: Path, classes: tuple[str, ...], faults: Faults) -> tuple[Annotation, ...]:
    if not text.is_file():
        faults.kept(f"{text}: is not there, so its image has no objects; write an empty file if that is meant")
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
