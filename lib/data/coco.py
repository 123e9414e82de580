"""Reads COCO-format annotations and their images, says in one line each what is wrong with them, and writes them.

`load` stops at the first fault that would falsify training or evaluation; `verify` lists every fault and decodes
every image. The rules are those of the published reader (RangiLyu/nanodet be9b4a9, `data/dataset/coco.py`):
* images in the order of their ids, labels 0..n-1 in the order of the category ids;
* boxes less than a pixel wide or high, or of area 0, take no part; crowd and `ignore` boxes are kept apart;
* images without boxes stay; boxes are not clipped here, augmentation clips them to the input.
Deliberate differences: a fault is an error instead of a crash or a wrong box later; so is a box that lies wholly
outside its image, and one without any extent unless its own `area` says 0 too, as COCO train2017's two do: those are
skipped.

`read` and `write` go from and to the form between formats. VOC's flags, for which COCO has no place, are written as
further keys of an annotation (`difficult`, `truncated`, `occluded`, `pose`), which COCO's readers pass over; a
difficult box is `ignore` too, so that training leaves it out.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lib.data import annotated, images
from lib.data.annotated import FLAGS, SPLITS, Annotation, Collection, Faults, Picture, is_readable, tidy
from lib.errors import UserError

SHOWN = 80  # characters of a faulty entry that a message quotes
FLAT = annotated.Fault(", so has no extent: skipped as published, other formats can't say it; correct or remove it")
LONGEST = 10**6  # pixels of a side
FEW = 9  # a folder with more JSON files has one an image
SAMPLE = 100  # names that are looked for in each place
PLACES = ("{}.json", "annotations/instances_{}*.json", "annotations/{}.json", "instances_{}*.json", "{}/*.json")
ALONE = ("instances.json", "annotations/instances_*.json", "*.json", "annotations/*.json")  # where there are no splits
MARKS = ("iscrowd", "ignore")  # no targets
KNOWN = {  # keys that another format has a place for, or that say nothing more
    "": {"images", "annotations", "categories"},
    "image": {"id", "file_name", "width", "height"},
    "category": {"id", "name"},
    "annotation": {"id", "image_id", "category_id", "bbox", "area", "segmentation", "pose", *MARKS, *FLAGS},
}


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
    folder: Path  # of the images
    notes: tuple[str, ...]  # what whoever reads a number of it should know


@dataclass(frozen=True, eq=False)
class Parsed:
    """What a COCO file holds: well-formed entries by their ids, ascending, and what is wrong with the others."""

    document: dict
    folder: Path  # of the images
    categories: dict[int, dict]
    images: dict[int, dict]
    annotations: dict[int, list[tuple[dict, bool]]]  # by image: the entry, and whether training sees it
    notes: list[str]  # what is not wrong in any entry, but makes a number of the set mean less than it seems
    faults: Faults  # those that lose something are fatal for `load`
    flat: Faults  # of boxes without extent, which training skips as published and no other format can say


def load(json_path: str | Path, images_dir: str | Path | None = None) -> Dataset:
    """The data set of `json_path`; every image file is there, none is decoded yet. UserError names the first fault.

    `images_dir` is where they lie; without it they are looked for where exports have them, see `_images_place`.
    """
    path = Path(json_path)
    parsed = _parsed(path, images_dir)
    _refuse(parsed.faults)
    label_of = {category: label for label, category in enumerate(parsed.categories)}
    entries = []
    for image, entry in parsed.images.items():
        taken = [annotation for annotation, takes_part in parsed.annotations[image] if takes_part]
        targets = [annotation for annotation in taken if not _ignored(annotation)]
        labels = np.array([label_of[annotation["category_id"]] for annotation in targets], np.int64)
        aside = _corners([annotation for annotation in taken if _ignored(annotation)])
        file = parsed.folder / entry["file_name"]
        entries.append(ImageEntry(image, file, entry["width"], entry["height"], _corners(targets), labels, aside))
    names = tuple(category["name"] for category in parsed.categories.values())
    return Dataset(path, names, tuple(parsed.categories), tuple(entries), parsed.folder, tuple(parsed.notes))


def files(source: Path) -> dict[str, Path]:
    """split -> JSON file of a folder, in the order train, val, test; one file, or a folder's only one, as split "".

    Empty where there is none. UserError where one split has several.
    """
    if source.is_file():
        return {"": source}
    found = {}
    for split, names in SPLITS.items():
        fitting = next(filter(None, (_fitting(source, place.format(name)) for name in names for place in PLACES)), ())
        if len(fitting) > 1:
            raise UserError(f"{source}: holds {fitting[0].name} and {fitting[1].name}; give one of them")
        if fitting:
            found[split] = fitting[0]
    if found:
        return found
    alone = next((held for place in ALONE if len(held := _fitting(source, place)) == 1), ())
    return dict(zip(("",), alone))


def _fitting(source: Path, place: str) -> list[Path]:
    """The files of a pattern; where it leaves the name open, those of a few that are COCO files by their lists."""
    held = sorted(path for path in source.glob(place) if path.is_file() and not path.name.startswith("."))
    if not place.endswith("*.json") or "instances_" in place:
        return held
    if len(held) > FEW:
        return []
    return [path for path in held if all(word in path.read_bytes() for word in (b'"images"', b'"annotations"'))]


def splits(data: str | Path) -> tuple[Path, Path]:
    """(training JSON, validation JSON) of a folder, or the one COCO file twice. UserError says what was looked for."""
    found = files(Path(data))
    if len(found) == 1:
        return (*found.values(), *found.values())
    if not found.keys() >= {"train", "val"}:
        held = f"only {', '.join(path.name for path in found.values())}" if found else "none of them"
        raise UserError(
            f"{data}: neither a COCO JSON file nor a folder with one or with train.json and val.json (or "
            f"annotations/instances_train*.json, train/*.json, valid/*.json and the like), but {held}; give one of "
            "these, or split one file with python -m lib data subset, after data convert --to coco where it is VOC or "
            "YOLO"
        )
    return found["train"], found["val"]


def truth(path: Path) -> tuple[dict, list[str]]:
    """(the content of a COCO file, notes on it as a whole); its images may be absent. UserError names the first fault
    that `verify` would: a number from a faulty truth is none."""
    parsed = _parsed(path, without_images=True)
    _refuse(parsed.faults)
    return parsed.document, parsed.notes


def _refuse(faults: Faults) -> None:
    fatal = [fault.message for fault in faults if fault.loses]
    if fatal:
        more = f" ({len(fatal) - 1} more: python -m lib data verify)" if len(fatal) > 1 else ""
        raise UserError(fatal[0] + more)


def read_image(entry: ImageEntry) -> np.ndarray:
    """(h, w, 3) uint8 BGR in the annotated size. UserError as `images.pixels` says."""
    return images.pixels(entry.file, f"image {entry.id}", (entry.height, entry.width))[0]


def read(source: Path, images_dir: Path | None = None) -> Collection:
    """What the JSON files of `source` say, faulty entries left out and named."""
    splits, faults, notes, others, classes, numbers = {}, Faults(), [], Counter(), (), ()
    for split, path in files(source).items():
        parsed = _parsed(path, images_dir)
        names = tuple(category["name"] for category in parsed.categories.values())
        if splits and names != classes:
            raise UserError(f"{path}: its categories are not those of the other splits; convert the files one by one")
        classes, numbers = names, list(parsed.categories)
        faults += [*parsed.faults, *parsed.flat]
        notes += parsed.notes
        marked = [annotation for entries in parsed.annotations.values() for annotation, _ in entries]
        levels = zip(KNOWN, ([parsed.document], parsed.images.values(), parsed.categories.values(), marked))
        for level, entries in levels:
            keys = (key for entry in entries for key in entry if key not in KNOWN[level])
            others.update(f"{level} {key!r}".strip() for key in keys)
        there = (image for image, one in parsed.images.items() if os.path.isfile(parsed.folder / one["file_name"]))
        splits[split] = tuple(_picture(path, parsed, image) for image in there)
    faults += annotated.class_faults(source, classes)
    renumbered = numbers != list(range(1, len(numbers) + 1))
    return Collection(source, "coco", classes, splits, tuple(faults), tuple(notes), others, renumbered)


def write(folder: Path, classes: tuple[str, ...], splits: dict[str, tuple[Picture, ...]]) -> None:
    """<split>.json, or instances.json where there is no split; categories are 1..n."""
    ids = image_ids([picture for pictures in splits.values() for picture in pictures])
    category = {name: number for number, name in enumerate(classes, 1)}
    for split, pictures in splits.items():
        sides = [dict(zip(("width", "height"), picture.size)) for picture in pictures]
        found = [_entry(one, category, ids[picture.name]) for picture in pictures for one in picture.annotations]
        content = {
            "images": [dict(id=ids[one.name], file_name=one.name) | size for one, size in zip(pictures, sides)],
            "annotations": [{"id": number, **entry} for number, entry in enumerate(found, 1)],
            "categories": [{"id": number, "name": name} for name, number in category.items()],
        }
        (folder / f"{split or 'instances'}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def image_ids(pictures: list[Picture]) -> dict[str, int]:
    """By name: the number that it is, where all names are different numbers, as COCO's own are; else 1..n in order."""
    names = list(dict.fromkeys(picture.name for picture in pictures))
    stems = [name.rpartition("/")[2].rpartition(".")[0] for name in names]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit() and len(stem) < 16]
    unique = len(set(numbers)) == len(names)
    return dict(zip(names, numbers if unique else range(1, len(names) + 1)))


# --- what a file holds


def _parsed(path: Path, images_dir: str | Path | None = None, without_images: bool = False) -> Parsed:
    """The file's entries sorted into good ones and faults, file names as they are below the images' folder.

    UserError if there is no COCO file to speak of.
    """
    document = _document(path)
    faults, flat = Faults(), Faults()
    categories = _sound(document["categories"], "category", _category_fault, path, faults)
    notes = _judge_names(categories, document["annotations"], path, faults)
    pictures = _sound(document["images"], "image", _image_fault, path, faults)
    folder = path.parent
    if not without_images:
        folder, pictures = _images_place(path, pictures, images_dir, faults)
    annotations = _sound(document["annotations"], "annotation", _annotation_fault, path, faults)
    marked: dict[int, list[tuple[dict, bool]]] = {image: [] for image in pictures}
    known = {"image_id": pictures, "category_id": categories}
    for id_, annotation in annotations.items():
        if strange := [key for key in known if not (_is_int(annotation.get(key)) and annotation[key] in known[key])]:
            named = f"{strange[0]} {_quote(annotation.get(strange[0]))}"
            remedy = "which names no valid entry of the file; correct or remove the annotation"
            faults.lost(f"{path}: annotation {id_} has {named}, {remedy}")
            continue
        image = pictures[annotation["image_id"]]
        takes_part, fault = _box_fault(annotation, image)
        if fault:
            where = f"annotation {id_} (image {image['id']}, {image['file_name']})"
            message = f"{path}: {where} has bbox {_quote(annotation['bbox'])}{fault.message}"
            (flat if fault is FLAT else faults).append(annotated.Fault(message, fault.loses))
        if not (fault and (fault.loses or fault is FLAT)):
            marked[image["id"]].append((annotation, takes_part))
    pictures, categories = dict(sorted(pictures.items())), dict(sorted(categories.items()))
    notes += [] if any(marked.values()) else [f"{path}: has no object: nothing to learn or to find"]
    return Parsed(document, folder, categories, pictures, marked, notes, faults, flat)


def _document(path: Path) -> dict:
    """The parsed JSON with its three lists, none of them but the annotations empty."""
    document = annotated.read_json(path, _no_constant)
    for name in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise UserError(f"{path}: has no list {name!r}; give a COCO detection file")
        if not document[name] and name != "annotations":
            raise UserError(f"{path}: its list {name!r} is empty; give a COCO detection file with {name}")
    if isinstance(first := next(iter(document["annotations"]), None), dict) and "segments_info" in first:
        raise UserError(f"{path}: is COCO's panoptic form; give the file of instances, instances_*.json")
    return document


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _judge_names(categories: dict[int, dict], annotations: list, path: Path, faults: Faults) -> list[str]:
    """Leaves out what shares a name, the less annotated, for classes go by name; notes on roots that are no class."""
    used = Counter(
        entry["category_id"] for entry in annotations if isinstance(entry, dict) and _is_int(entry.get("category_id"))
    )
    named: dict[str, int] = {}
    for id_ in sorted(categories, key=lambda id_: (-used[id_], id_)):
        name = categories[id_]["name"]
        if (other := named.setdefault(name, id_)) != id_:
            said = f"have one name, {name!r}, and classes go by name; rename one, or remove category {id_}"
            faults.lost(f"{path}: categories {other} and {id_} {said}")
            del categories[id_]
    above = {
        name for entry in categories.values() if (name := _quote(entry.get("supercategory"))) != _quote(entry["name"])
    }
    said = "is only what others name as their supercategory, no annotation uses it, yet it counts as a class"
    return [
        f"{path}: category {id_} ({entry['name']}) {said}; remove it from the categories"
        for id_, entry in categories.items()
        if not used[id_] and _quote(entry["name"]) in above
    ]


def _images_place(
    path: Path, pictures: dict[int, dict], images_dir: str | Path | None, faults: Faults
) -> tuple[Path, dict[int, dict]]:
    """(the folder in which the images of a COCO file lie, the entries with names below it, with "/").

    Of the places where exports have them the one that holds most of the first names; what is missing there is a fault.
    """
    names = {id_: str(PurePosixPath(entry["file_name"].replace("\\", "/"))) for id_, entry in pictures.items()}
    here, split = path.parent, path.stem.rpartition("_")[2]
    above = [here.parent / split, here.parent / "images" / split, here.parent / "images", here.parent]
    own = [here / "images", here / "images" / split, here / split, here]
    places = [own[0], *(above if here.name == "annotations" else ()), *own[1:]]
    if images_dir is not None:
        places = [Path(images_dir), Path(images_dir).parent]
    places = [place for place in dict.fromkeys(places) if place.is_dir()] or [here]
    first = list(names.values())[:SAMPLE]
    folder = max(places, key=lambda place: sum(os.path.isfile(place / name) for name in first))
    missing = {id_: name for id_, name in names.items() if not os.path.isfile(folder / name)}
    if len(missing) == len(names) > 1:
        said = f"its {len(names)} images are missing, such as {first[0]:.80}; looked in {', '.join(map(str, places))}"
        faults.lost(f"{path}: {said}; restore them, or name their folder")
    else:
        for id_, name in missing.items():
            said = f"image {id_} of {path} is missing; restore the file, or name the images' folder"
            faults.lost(f"{folder / name}: {said}")
    if (folder / "images").is_dir() and all(name.startswith("images/") for name in names.values()):
        folder, names = folder / "images", {id_: name.removeprefix("images/") for id_, name in names.items()}
    return folder, {id_: pictures[id_] | {"file_name": name} for id_, name in names.items()}


def _sound(
    entries: list, kind: str, fault_of: Callable[[dict], str | None], path: Path, faults: Faults
) -> dict[int, dict]:
    """The well-formed entries by id."""
    found: dict[int, dict] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_int(entry.get("id")):
            faults.lost(f"{path}: {kind} number {position + 1} has no integer id ({_quote(entry)}); give it one")
        elif entry["id"] in found:
            faults.lost(f"{path}: {kind} id {entry['id']} is used twice; renumber, ids must be unique")
        elif fault := fault_of(entry):
            faults.lost(f"{path}: {kind} {entry['id']} has {fault}")
        else:
            found[entry["id"]] = entry
    return found


def _category_fault(category: dict) -> str | None:
    name = category.get("name")
    return None if is_readable(name) else f"name {_quote(name)}; give it a readable one"


def _image_fault(image: dict) -> str | None:
    name = image.get("file_name")
    if not is_readable(name):
        return f"file_name {_quote(name)}; give a path inside the images' folder"
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:
        return f"file_name {_quote(name)}, which leaves the images' folder; give a path inside it"
    sides = [image.get(side) for side in ("width", "height")]
    if not all(_is_int(side) and 0 < side < LONGEST for side in sides):
        return f"width {_quote(sides[0])} and height {_quote(sides[1])}; give the file's size in pixels"
    return None


def _annotation_fault(annotation: dict) -> str | None:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
        return f"bbox {_quote(box)}; give four finite numbers x, y, width, height"
    if "area" in annotation and not _is_finite(annotation["area"]):
        return f"area {_quote(annotation['area'])}; give its object's area in square pixels"
    for flag in MARKS:
        if annotation.get(flag, 0) not in (0, 1):  # "0" would count as 1
            return f"{flag} {_quote(annotation[flag])}; give the number 0 or 1"
    return None


def _box_fault(annotation: dict, image: dict) -> tuple[bool, annotated.Fault | None]:
    """(whether training sees it, what is wrong and what to do)."""
    x, y, width, height = annotation["bbox"]
    area, empty = annotation.get("area", 1), width <= 0 or height <= 0
    admitted = min(width, height) == 0 and area <= 0
    if empty and not admitted and not _ignored(annotation):
        return False, annotated.Fault(', of zero or negative size; correct it, remove it or mark it "ignore": 1')
    if empty:
        return False, FLAT
    if area <= 0:
        return False, annotated.Fault(", of no area: skipped as published; correct or remove it", False)
    fault = annotated.box_fault((x, y, x + width, y + height), (image["width"], image["height"]))
    return min(width, height) >= 1 and not (fault and fault.loses), fault


def _ignored(annotation: dict) -> bool:
    """Kept apart from the targets: neither to be found nor a mistake to find."""
    return any(annotation.get(mark) for mark in MARKS)


def _corners(annotations: list[dict]) -> np.ndarray:
    """(k, 4) float32 xyxy."""
    boxes = [(x, y, x + width, y + height) for x, y, width, height in (entry["bbox"] for entry in annotations)]
    return np.array(boxes, np.float32).reshape(-1, 4)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    """A number that float32 can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 3e38


def _quote(value: object) -> str:
    return repr(value)[:SHOWN]


# --- to and from the form between formats


def _picture(path: Path, parsed: Parsed, image: int) -> Picture:
    entry, annotations = parsed.images[image], []
    for annotation, _ in parsed.annotations[image]:
        (x, y, width, height), where = annotation["bbox"], f"annotation {annotation['id']}"
        area, pose = annotation.get("area"), annotation.get("pose", "")
        flags = {flag: bool(annotation.get(flag)) for flag in FLAGS}
        annotations.append(
            Annotation(
                parsed.categories[annotation["category_id"]]["name"],
                (x, y, tidy(x + width), tidy(y + height)),
                **flags | {"difficult": flags["difficult"] or bool(annotation.get("ignore"))},
                crowd=bool(annotation.get("iscrowd")),
                pose=pose if is_readable(pose) else "",
                area=None if area is None or tidy(area) == tidy(width * height) else area,
                outline=annotation.get("segmentation") or None,
                where=where,
            )
        )
    size = (entry["width"], entry["height"])
    return Picture(entry["file_name"], parsed.folder / entry["file_name"], path, size, tuple(annotations), image)


def _entry(annotation: Annotation, category: dict[str, int], image: int) -> dict[str, Any]:
    x1, y1, x2, y2 = annotation.box
    width, height = tidy(x2 - x1), tidy(y2 - y1)
    entry = {
        "image_id": image,
        "category_id": category[annotation.name],
        "bbox": [tidy(x1), tidy(y1), width, height],
        "area": tidy(width * height) if annotation.area is None else annotation.area,
        "iscrowd": int(annotation.crowd),
    }
    further = {
        "difficult": int(annotation.difficult),
        "ignore": int(annotation.difficult),
        "truncated": int(annotation.truncated),
        "occluded": int(annotation.occluded),
        "pose": annotation.pose,
        "segmentation": annotation.outline,
    }
    return entry | {key: value for key, value in further.items() if value}
