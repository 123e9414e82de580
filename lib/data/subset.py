"""A small data set out of a large COCO file: chosen by seed, the same everywhere, its images left where they are.

What is chosen follows the order of SHA-256 digests of (seed, what, id): it depends neither on the order of entries in
the file nor on any library's dice, and a larger subset of the same seed and classes contains the smaller one's images.
"""

import json
import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path, PurePosixPath

from lib.data import coco
from lib.errors import UserError
from lib.record import atomic

KEPT = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")  # of an annotation; no outlines


def write(
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
        raise UserError(
            f"subset: train {train} and val {val} must be at least 1 and seed {seed} at least 0; change them"
        )
    chosen = _classes(dataset, classes, seed)
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
    contents = {
        split: _document(document, sorted(members), chosen, f"{split} split, seed {seed}, of {dataset.path.name}")
        for split, members in splits.items()
    }
    folder = Path(folder)
    _refuse_another(folder, contents)
    _link(folder / "images", _images_folder(dataset, document))
    for split, content in contents.items():
        with atomic(folder / f"{split}.json") as temporary:
            temporary.write_text(content)
    return {split: folder / f"{split}.json" for split in ("train", "val")}


def source_file(data: str | Path) -> Path:
    """The COCO file to choose from: the file itself, or a folder's for training, else its only one. UserError if none."""
    folder = Path(data)
    if folder.is_file():
        return folder
    for pattern in ("train.json", "annotations/instances_train*.json", "annotations/instances_*.json", "*.json"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1 or (found and "train" in pattern):
            return found[-1]
    raise UserError(
        f"{data}: neither a COCO JSON file nor a folder with train.json, annotations/instances_*.json or one JSON "
        "file; give the file to choose from, after python -m lib data convert --to coco where it is VOC or YOLO"
    )


def _drawn(ids: Iterable[int], what: str, seed: int) -> list[int]:
    """The ids in the order of the draw."""
    return sorted(ids, key=lambda number: sha256(f"{seed}/{what}/{number}".encode()).digest())


def _classes(dataset: coco.Dataset, count: int | None, seed: int) -> list[int]:
    """Category ids, ascending."""
    available = len(dataset.category_ids)
    if count is None:
        return list(dataset.category_ids)
    if not 1 <= count <= available:
        raise UserError(f"{dataset.path}: has {available} classes, {count} were asked for; choose 1 to {available}")
    return sorted(_drawn(dataset.category_ids, "category", seed)[:count])


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
    return json.dumps(
        {
            "info": {"description": description},
            "images": [
                {key: entries[image][key] for key in ("id", "file_name", "width", "height")} for image in images
            ],
            "annotations": sorted(annotations, key=lambda entry: entry["id"]),
            "categories": [{"id": number[category], "name": names[category]} for category in categories],
        }
    )


def _images_folder(dataset: coco.Dataset, document: dict) -> Path:
    """Where the file names of the source begin."""
    first = dataset.images[0]
    name = next(entry["file_name"] for entry in document["images"] if entry["id"] == first.id)
    return first.file.parents[len(PurePosixPath(name).parts) - 1].resolve()


def _refuse_another(folder: Path, contents: dict[str, str]) -> None:
    for split, content in contents.items():
        path = folder / f"{split}.json"
        if path.exists() and path.read_text() != content:
            raise UserError(f"{path}: is another data set or another choice; choose another folder or remove it")


def _link(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, all at once; UserError if something else is in its place."""
    if link.exists() and link.resolve() == target:
        return
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link}: is no link to {target}; choose another folder or remove it")
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{os.getpid()}.{link.name}")  # lib.record.atomic is for files
    os.symlink(target, temporary, target_is_directory=True)
    os.replace(temporary, link)
