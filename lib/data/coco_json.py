"""COCO JSON to and from the form between formats; which entries are sound is decided by `lib.data.coco`.

VOC's flags, for which COCO has no place, are written as further keys of an annotation (`difficult`, `truncated`,
`occluded`, `pose`), which COCO's readers pass over; a difficult box is `ignore` too, so that training leaves it out.
"""

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from lib.data import annotated, coco
from lib.data.annotated import Annotation, Collection, Fault, Picture, tidy
from lib.errors import UserError

KNOWN = {
    "": {"images", "annotations", "categories"},
    "image": {"id", "file_name", "width", "height"},
    "category": {"id", "name"},
    "annotation": {
        "id",
        "image_id",
        "category_id",
        "bbox",
        "area",
        "iscrowd",
        "ignore",
        "segmentation",
        "difficult",
        "truncated",
        "occluded",
        "pose",
    },
}


def files(source: Path) -> dict[str, Path]:
    """split -> JSON file of a folder, or the one file as split ""; empty where there is none."""
    if source.is_file():
        return {"": source}
    found = {}
    for split in ("train", "val", "test"):
        fitting = sorted(source.glob(f"{split}.json")) or sorted(source.glob(f"annotations/instances_{split}*.json"))
        if len(fitting) > 1:
            raise UserError(f"{source}: holds {fitting[0].name} and {fitting[1].name}; give one of them")
        found |= {split: path for path in fitting}
    alone = source / "instances.json"
    return found or ({"": alone} if alone.is_file() else {})


def read(source: Path, images_dir: Path | None = None) -> Collection:
    """What the JSON files of `source` say, faulty entries left out and named."""
    splits, faults, others, classes, numbers = {}, [], Counter(), (), ()
    for split, path in files(source).items():
        parsed = coco.parse(path, images_dir)
        ids = tuple(sorted(parsed.categories))
        names = tuple(parsed.categories[number]["name"] for number in ids)
        if splits and names != classes:
            raise UserError(f"{path}: its categories are not those of the other splits; convert the files one by one")
        if len(set(names)) < len(names):
            raise UserError(
                f"{path}: two categories have the same name; rename one, other formats know classes by name"
            )
        classes, numbers = names, ids
        faults += [Fault(message, fatal) for fatal, message in parsed.problems]
        others.update(_others(parsed))
        splits[split] = tuple(
            _picture(path, parsed, image, faults)
            for image in sorted(parsed.images)
            if (parsed.folder / parsed.images[image]["file_name"]).is_file()
        )
    faults += annotated.class_faults(source, classes)
    return Collection(
        source, "coco", classes, splits, tuple(faults), others, numbers != tuple(range(1, len(numbers) + 1))
    )


def write(folder: Path, classes: tuple[str, ...], splits: dict[str, tuple[Picture, ...]]) -> None:
    """<split>.json, or instances.json where there is no split; categories are 1..n."""
    ids = image_ids([picture for pictures in splits.values() for picture in pictures])
    category = {name: number for number, name in enumerate(classes, 1)}
    for split, pictures in splits.items():
        annotations = [
            entry
            for picture in pictures
            for entry in (_entry(annotation, category, ids[picture.name]) for annotation in picture.annotations)
        ]
        content = {
            "images": [
                {
                    "id": ids[picture.name],
                    "file_name": picture.name,
                    "width": picture.size[0],
                    "height": picture.size[1],
                }
                for picture in pictures
            ],
            "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, 1)],
            "categories": [{"id": number, "name": name} for name, number in category.items()],
        }
        (folder / f"{split or 'instances'}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def image_ids(pictures: list[Picture]) -> dict[str, int]:
    """By name: the number that it is, where all names are different numbers, as COCO's own are; else 1..n in their order."""
    names = list(dict.fromkeys(picture.name for picture in pictures))
    stems = [name.rpartition("/")[2].rpartition(".")[0] for name in names]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit() and len(stem) < 16]
    unique = len(set(numbers)) == len(names)
    return dict(zip(names, numbers if unique else range(1, len(names) + 1)))


def _others(parsed: coco.Parsed) -> Counter[str]:
    marked = [annotation for entries in parsed.annotations.values() for annotation, _ in entries]
    levels = {
        "": [parsed.document],
        "image": parsed.images.values(),
        "category": parsed.categories.values(),
        "annotation": marked,
    }
    return Counter(
        f"{level} {key!r}".strip()
        for level, entries in levels.items()
        for entry in entries
        for key in entry
        if key not in KNOWN[level]
    )


def _picture(path: Path, parsed: coco.Parsed, image: int, faults: list[Fault]) -> Picture:
    entry, annotations = parsed.images[image], []
    for annotation, _ in parsed.annotations[image]:
        x, y, width, height = annotation["bbox"]
        if min(width, height) <= 0:
            faults.append(
                Fault(f"{path}: annotation {annotation['id']} has no extent, which other formats can't say; remove it")
            )
            continue
        area, outline = annotation.get("area"), annotation.get("segmentation")
        own = area is None or tidy(area) == tidy(width * height)
        annotations.append(
            Annotation(
                parsed.categories[annotation["category_id"]]["name"],
                (x, y, tidy(x + width), tidy(y + height)),
                difficult=bool(annotation.get("difficult") or annotation.get("ignore")),
                truncated=bool(annotation.get("truncated")),
                occluded=bool(annotation.get("occluded")),
                crowd=bool(annotation.get("iscrowd")),
                pose=_pose(annotation),
                area=None if own else area,
                outline=outline or None,
                where=f"annotation {annotation['id']}",
            )
        )
    return Picture(
        str(PurePosixPath(entry["file_name"].replace("\\", "/"))),
        parsed.folder / entry["file_name"],
        path,
        (entry["width"], entry["height"]),
        tuple(annotations),
        image,
    )


def _pose(annotation: dict) -> str:
    pose = annotation.get("pose", "")
    return pose if isinstance(pose, str) and annotated.is_readable(pose) else ""


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
    flags = {
        "difficult": annotation.difficult,
        "ignore": annotation.difficult,
        "truncated": annotation.truncated,
        "occluded": annotation.occluded,
    }
    entry |= {flag: 1 for flag, is_set in flags.items() if is_set}
    entry |= {"pose": annotation.pose} if annotation.pose else {}
    return entry | ({"segmentation": annotation.outline} if annotation.outline else {})
