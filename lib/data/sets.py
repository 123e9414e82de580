"""A data set made ready, out of a large COCO file where asked for, and described: what 10_data shows and records.

What a subset holds follows the order of SHA-256 digests of (seed, what, id): it depends neither on the order of entries
in the file nor on any library's dice, and a larger subset of the same seed and classes contains the smaller one's
images. Its images are left where they are.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lib.data import coco, scenes
from lib.errors import UserError
from lib.record import atomic, sha256, unwritten

Fields, Arrays = dict[str, Any], dict[str, np.ndarray]
KEPT = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")  # of an annotation; no outlines


def prepare(
    data: str, seed: int, train_images: int, val_images: int, source: str = "", classes: int = 0
) -> tuple[coco.Dataset, coco.Dataset]:
    """The training and validation split of `data`, made first where it is not the user's own.

    source: a COCO folder or file, out of which so many images and classes (0: all) are chosen by seed; without it the
    built-in scenes are drawn where the folder is theirs.
    """
    if source:
        subset(source_file(source), data, train=train_images, val=val_images, classes=classes or None, seed=seed)
    elif scenes.is_theirs(data):
        scenes.generate(data, seed, train_images, val_images)
    train, val = coco.splits(data)
    return coco.load(train), coco.load(val)


def describe(train: coco.Dataset, val: coco.Dataset) -> tuple[Fields, Arrays]:
    """Counts, hashes and distributions of both splits."""
    fields: Fields = {
        "name": train.path.parent.name,
        "classes": list(train.classes),
        "splits": {},
        "class_histogram": {},
    }
    arrays: Arrays = {}
    for split, dataset in (("train", train), ("val", val)):
        boxes = np.concatenate([image.boxes for image in dataset.images])
        labels = np.concatenate([image.labels for image in dataset.images])
        fields["splits"][split] = {
            "images": len(dataset.images),
            "boxes": len(boxes),
            "crowd": sum(len(image.crowd) for image in dataset.images),
            "empty": sum(not len(image.boxes) for image in dataset.images),
            "json_sha256": sha256(dataset.path),
            "images_sha256": hashlib.sha256(
                "".join(sha256(image.file) for image in dataset.images).encode()
            ).hexdigest(),
        }
        fields["class_histogram"][split] = np.bincount(labels, minlength=len(dataset.classes)).tolist()
        arrays[f"box_sizes/{split}"] = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).astype(np.float32)
    return fields, arrays


def subset(
    source: str | Path,
    folder: str | Path,
    *,
    train: int = 800,
    val: int = 200,
    classes: int | None = None,
    seed: int = 0,
    images_dir: str | Path | None = None,
) -> dict[str, Path]:
    """Write train.json and val.json of `train` and `val` images out of the COCO file `source`; returns their paths.

    `classes` of the file's categories are chosen (None: all), numbered 1, 2, … in the order of their ids. Only images
    with at least one box of these that takes part in training are chosen; annotations of other classes are left out.
    `folder`/images becomes a link to the source's images (`images_dir` as in coco.load). The same call again changes
    nothing; UserError if `folder` holds another data set, or if the source has too few images or classes.
    """
    dataset = coco.load(source, images_dir)
    if train < 1 or val < 1 or seed < 0:
        raise UserError(f"subset: train {train}, val {val} must be at least 1 and seed {seed} at least 0; change them")
    available = len(dataset.category_ids)
    if classes is not None and not 1 <= classes <= available:
        raise UserError(f"{dataset.path}: has {available} classes, {classes} were asked for; choose 1 to {available}")
    chosen = sorted(_drawn(dataset.category_ids, "category", seed)[:classes])
    labels = {dataset.category_ids.index(category) for category in chosen}
    candidates = [entry.id for entry in dataset.images if labels & set(entry.labels.tolist())]
    if len(candidates) < train + val:
        raise UserError(
            f"{dataset.path}: {len(candidates)} images have boxes of the {len(chosen)} chosen classes, fewer "
            f"than {train} + {val}; ask for fewer images or more classes"
        )
    ids = _drawn(candidates, "image", seed)
    splits = {"val": ids[:val], "train": ids[val : val + train]}
    document = json.loads(dataset.path.read_bytes())
    places = {entry.id: entry.file.relative_to(dataset.folder).as_posix() for entry in dataset.images}
    for entry in document["images"]:
        entry["file_name"] = places[entry["id"]]  # below the folder that is linked
    contents = {
        split: _document(document, sorted(members), chosen, f"{split} split, seed {seed}, of {dataset.path.name}")
        for split, members in splits.items()
    }
    folder = Path(folder)
    for split, content in contents.items():
        path = folder / f"{split}.json"
        if path.exists() and path.read_text(encoding="utf-8") != content:
            raise UserError(f"{path}: is another data set or another choice; choose another folder or remove it")
    _link(folder / "images", dataset.folder.resolve())
    for split, content in contents.items():
        with atomic(folder / f"{split}.json") as temporary:
            temporary.write_text(content, encoding="utf-8")
    return {split: folder / f"{split}.json" for split in ("train", "val")}


def source_file(data: str | Path) -> Path:
    """The COCO file to choose from: the file itself, a folder's for training, else its first. UserError if none."""
    if found := coco.files(Path(data)):
        return next(iter(found.values()))
    raise UserError(
        f"{data}: neither a COCO JSON file nor a folder with train.json, annotations/instances_*.json or one JSON "
        "file; give the file to choose from, after python -m lib data convert --to coco where it is VOC or YOLO"
    )


def _drawn(ids: Iterable[int], what: str, seed: int) -> list[int]:
    """The ids in the order of the draw."""
    return sorted(ids, key=lambda number: hashlib.sha256(f"{seed}/{what}/{number}".encode()).digest())


def _document(source: dict, images: list[int], categories: list[int], description: str) -> str:
    """The JSON text of one split: the same bytes for the same source and choice."""
    number = {category: rank + 1 for rank, category in enumerate(categories)}
    entries = {entry["id"]: entry for entry in source["images"]}
    names = {entry["id"]: entry["name"] for entry in source["categories"]}
    wanted = set(images)
    annotations = [
        {key: entry[key] for key in KEPT if key in entry} | {"category_id": number[entry["category_id"]]}
        for entry in source["annotations"]
        if entry["image_id"] in wanted and entry["category_id"] in number
    ]
    content = {
        "info": {"description": description},
        "images": [{key: entries[image][key] for key in ("id", "file_name", "width", "height")} for image in images],
        "annotations": sorted(annotations, key=lambda entry: entry["id"]),
        "categories": [{"id": number[category], "name": names[category]} for category in categories],
    }
    return json.dumps(content)


def _link(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, all at once; UserError if something else is in its place."""
    if link.exists() and link.resolve() == target:
        return
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link}: is no link to {target}; choose another folder or remove it")
    temporary = link.with_name(f".{os.getpid()}.{link.name}")  # lib.record.atomic is for files
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, temporary, target_is_directory=True)
        os.replace(temporary, link)
    except OSError as error:
        raise unwritten(link, error) from error
