"""Reads COCO-format annotations and their images, and says in one line each what is wrong with them.

`load` stops at the first fault that would falsify training or evaluation; `verify` lists every fault and decodes
every image. The rules are those of the published reader (RangiLyu/nanodet be9b4a9, `data/dataset/coco.py`):
* images in the order of their ids, labels 0..n-1 in the order of the category ids;
* boxes less than a pixel wide or high, or of area 0, take no part; crowd and `ignore` boxes are kept apart;
* images without boxes stay; boxes are not clipped here, augmentation clips them to the input.
Deliberate differences: a fault is an error instead of a crash or a wrong box later; so is a box that lies wholly outside
its image, and one without any extent unless its own `area` says 0 too, as COCO train2017's two do: those are skipped.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from lib.data import images
from lib.errors import UserError

OVERHANG = 1.0  # pixels a box may stick out of its image before `verify` reports it: annotation tools round
SHOWN = 80  # characters of a faulty entry that a message quotes

Problem = tuple[bool, str]  # (fatal for `load`, message)
Report = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class ImageEntry:
    """One image and what is annotated on it; boxes are xyxy in its pixels, unclipped."""

    id: int
    file: Path
    width: int
    height: int
    boxes: np.ndarray  # (k, 4) float32
    labels: np.ndarray  # (k,) int64, rank of the category id
    crowd: np.ndarray  # (c, 4) float32: `iscrowd` or `ignore`, no targets


@dataclass(frozen=True, eq=False)
class Dataset:
    """A COCO file that holds together."""

    path: Path  # the JSON file, for evaluators that read it themselves
    classes: tuple[str, ...]  # by label
    category_ids: tuple[int, ...]  # by label, ascending
    images: tuple[ImageEntry, ...]  # by id, ascending


@dataclass(frozen=True, eq=False)
class Parsed:
    """What a COCO file holds, sorted: well-formed entries by their ids, and a message for each of the others."""

    document: dict
    folder: Path  # of the images
    categories: dict[int, dict]
    images: dict[int, dict]
    annotations: dict[int, list[tuple[dict, bool]]]  # by image: the entry, and whether training sees it
    problems: list[Problem]


def load(json_path: str | Path, images_dir: str | Path | None = None) -> Dataset:
    """The data set of `json_path`; every image file is there, none is decoded yet.

    `images_dir` defaults to `images` beside the JSON file, then to COCO's own layout (annotations/instances_X.json
    with X/ beside annotations/), then to the JSON file's folder. UserError names the first fault.
    """
    path = Path(json_path)
    parsed = parse(path, images_dir)
    fatal = [message for is_fatal, message in parsed.problems if is_fatal]
    if fatal:
        more = f" ({len(fatal) - 1} more: python -m lib data verify)" if len(fatal) > 1 else ""
        raise UserError(fatal[0] + more)
    return _dataset(path, parsed)


def verify(json_path: str | Path, images_dir: str | Path | None = None, workers: int | None = None) -> list[str]:
    """One line per fault: what `load` refuses, what it skips, boxes that stick out, images that do not decode."""
    path = Path(json_path)
    try:
        parsed = parse(path, images_dir)
    except UserError as error:
        return [str(error)]
    faults = images.each(_fault_of_image, _dataset(path, parsed).images, workers)
    return [message for _, message in parsed.problems] + [fault for fault in faults if fault]


def _fault_of_image(entry: ImageEntry) -> str | None:
    if not os.path.isfile(entry.file):
        return None  # reported by `parse`
    try:
        _, stored = images.pixels(entry.file, f"image {entry.id}", (entry.height, entry.width))
    except UserError as error:
        return str(error)
    return images.UNTURNED.format(entry.file) if stored else None


def splits(data: str | Path) -> tuple[Path, Path]:
    """(training JSON, validation JSON) of a folder, or the one COCO file twice.

    A folder has train.json and val.json, or COCO's annotations/instances_train*.json and instances_val*.json.
    """
    data = Path(data)
    if data.is_file():
        return data, data
    found = [
        sorted(data.glob(f"{split}.json")) or sorted(data.glob(f"annotations/instances_{split}*.json"))
        for split in ("train", "val")
    ]
    if not all(found):
        raise UserError(
            f"{data}: neither a COCO JSON file nor a folder with train.json and val.json "
            "(or annotations/instances_train*.json and instances_val*.json); give one of these, or split one file "
            "with python -m lib data subset, after data convert --to coco where it is VOC or YOLO"
        )
    return found[0][-1], found[1][-1]


def read_image(entry: ImageEntry) -> np.ndarray:
    """(h, w, 3) uint8 BGR in the annotated size. UserError as `images.pixels` says."""
    return images.pixels(entry.file, f"image {entry.id}", (entry.height, entry.width))[0]


def parse(path: Path, images_dir: str | Path | None = None) -> Parsed:
    """The file's entries sorted into good ones and faults. UserError if there is no COCO file to speak of."""
    document = _document(path)
    folder = Path(images_dir) if images_dir is not None else _images_folder(path)
    problems: list[Problem] = []
    fatal: Report = lambda message: problems.append((True, f"{path}: {message}"))

    categories = _unique(document["categories"], "category", _category_fault, fatal)
    pictures = _unique(document["images"], "image", _image_fault, fatal)
    annotations = _unique(document["annotations"], "annotation", _annotation_fault, fatal)
    marked: dict[int, list[tuple[dict, bool]]] = {image: [] for image in pictures}
    for annotation in annotations.values():
        if not _belongs(annotation, pictures, categories, fatal):
            continue
        image = pictures[annotation["image_id"]]
        takes_part, is_fatal, fault = _box_fault(annotation, image)
        if fault:
            where = f"annotation {annotation['id']} (image {image['id']}, {image['file_name']})"
            problems.append((is_fatal, f"{path}: {where} has bbox {_quote(annotation['bbox'])}, {fault}"))
        if not is_fatal:
            marked[image["id"]].append((annotation, takes_part))
    problems += [
        (
            True,
            f"{folder / pictures[image]['file_name']}: image {image} of {path} is missing; restore the file, "
            "or name the images' folder",
        )
        for image in sorted(pictures)
        if not os.path.isfile(folder / pictures[image]["file_name"])
    ]
    return Parsed(document, folder, categories, pictures, marked, problems)


def _dataset(path: Path, parsed: Parsed) -> Dataset:
    ids = tuple(sorted(parsed.categories))
    label_of = {category: label for label, category in enumerate(ids)}
    entries = tuple(
        _entry(parsed.images[image], parsed.folder, parsed.annotations[image], label_of)
        for image in sorted(parsed.images)
    )
    return Dataset(path, tuple(parsed.categories[category]["name"] for category in ids), ids, entries)


def _document(path: Path) -> dict:
    """The parsed JSON with its three lists, none of them but the annotations empty."""
    try:
        document = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a COCO JSON file") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: no valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "the file may be cut short: write or download it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no valid JSON ({error}); write or download it again") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise UserError(f"{path}: has no list {name!r}; give a COCO detection file")
        if not document[name] and name != "annotations":
            raise UserError(f"{path}: its list {name!r} is empty; give a COCO detection file with {name}")
    return document


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _images_folder(path: Path) -> Path:
    layout = path.parent.parent / path.stem.rpartition("_")[2]
    candidates = [path.parent / "images", *([layout] if path.parent.name == "annotations" else [])]
    return next((folder for folder in candidates if folder.is_dir()), path.parent)


def _unique(entries: list, kind: str, fault_of: Callable[[dict], str | None], fatal: Report) -> dict[int, dict]:
    """The well-formed entries by id."""
    found: dict[int, dict] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_int(entry.get("id")):
            fatal(f"{kind} number {position + 1} has no integer id ({_quote(entry)}); give it one")
        elif entry["id"] in found:
            fatal(f"{kind} id {entry['id']} is used twice; renumber, ids must be unique")
        elif fault := fault_of(entry):
            fatal(f"{kind} {entry['id']} {fault}")
        else:
            found[entry["id"]] = entry
    return found


def _category_fault(category: dict) -> str | None:
    if not _is_name(category.get("name")):
        return f"has name {_quote(category.get('name'))}; give it a readable one"
    return None


def _image_fault(image: dict) -> str | None:
    name = image.get("file_name")
    if not _is_name(name):
        return f"has file_name {_quote(name)}; give a path inside the images' folder"
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:
        return f"has file_name {_quote(name)}, which leaves the images' folder; give a path inside it"
    if not all(_is_int(image.get(side)) and image[side] > 0 for side in ("width", "height")):
        return (
            f"has width {_quote(image.get('width'))} and height {_quote(image.get('height'))}; "
            "give the file's size in pixels"
        )
    return None


def _annotation_fault(annotation: dict) -> str | None:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
        return f"has bbox {_quote(box)}; give four finite numbers x, y, width, height"
    if "area" in annotation and not _is_finite(annotation["area"]):
        return f"has area {_quote(annotation['area'])}; give its object's area in square pixels"
    for flag in ("iscrowd", "ignore"):
        if isinstance(annotation.get(flag), str):  # "0" would count as 1
            return f"has {flag} {_quote(annotation[flag])}; give the number 0 or 1"
    return None


def _belongs(annotation: dict, images: dict, categories: dict, fatal: Report) -> bool:
    for key, known in (("image_id", images), ("category_id", categories)):
        if not _is_int(annotation.get(key)) or annotation[key] not in known:
            fatal(
                f"annotation {annotation['id']} has {key} {_quote(annotation.get(key))}, which names no valid entry "
                f"of the file; correct or remove the annotation"
            )
            return False
    return True


def _box_fault(annotation: dict, image: dict) -> tuple[bool, bool, str]:
    """(takes part, fatal, what is wrong and what to do; empty if nothing is)."""
    x, y, width, height = annotation["bbox"]
    beyond = max(-x, -y, x + width - image["width"], y + height - image["height"])
    empty = width <= 0 or height <= 0
    admitted = min(width, height) == 0 and annotation.get("area", 1) <= 0
    if empty and not admitted and not ignored(annotation):
        return False, True, 'of zero or negative size; correct it, remove it or mark it "ignore": 1'
    if empty or width < 1 or height < 1 or annotation.get("area", 1) <= 0:
        return False, False, "less than a pixel wide or high, or of no area: skipped as published; correct or remove it"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return False, True, f"outside the image of {image['width']}x{image['height']}; correct or remove it"
    if beyond > OVERHANG:
        return (
            True,
            False,
            (
                f"{beyond:g} pixels beyond the image of {image['width']}x{image['height']}: training "
                "clips it; correct it or leave it"
            ),
        )
    return True, False, ""


def ignored(annotation: dict) -> bool:
    """Kept apart from the targets: neither to be found nor a mistake to find."""
    return bool(annotation.get("iscrowd")) or bool(annotation.get("ignore"))


def _entry(image: dict, folder: Path, annotations: list[tuple[dict, bool]], label_of: dict[int, int]) -> ImageEntry:
    taken = [annotation for annotation, takes_part in annotations if takes_part]
    targets = [annotation for annotation in taken if not ignored(annotation)]
    labels = np.array([label_of[annotation["category_id"]] for annotation in targets], np.int64)
    return ImageEntry(
        image["id"],
        folder / image["file_name"],
        image["width"],
        image["height"],
        _corners(targets),
        labels,
        _corners([annotation for annotation in taken if ignored(annotation)]),
    )


def _corners(annotations: list[dict]) -> np.ndarray:
    """(k, 4) float32 xyxy."""
    boxes = [(x, y, x + width, y + height) for x, y, width, height in (entry["bbox"] for entry in annotations)]
    return np.array(boxes, np.float32).reshape(-1, 4)


def _is_name(value: object) -> bool:
    """Text of one line that can be shown and encoded."""
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    """A number that float32 can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 3e38


def _quote(value: object) -> str:
    return repr(value)[:SHOWN]
