"""Detections from a file: COCO's result list, as any detector writes it, or what `lib detect --json` wrote."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lib.data.annotated import read_json
from lib.errors import UserError

KEYS = ("image_id", "category_id", "bbox", "score")


def read(path: Path, truth: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """(COCO's result list in the ids of the ground truth `truth`, names of images that the truth does not have).

    The images of a file of `detect` are those of the truth whose `file_name` is theirs or ends in it, after a "/"; what
    was found on others is left out, for a folder may hold more than a truth. UserError names the first entry at fault.
    """
    content = read_json(path)
    rows = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise UserError(f"{path}: is no list of detections; give COCO's result format, or what detect --json wrote")
    for number, row in enumerate(rows):
        if fault := _fault(row):
            raise UserError(f"{path}: detection {number} {fault}")
    return _matched(path, content, truth) if isinstance(content, dict) else (rows, [])


def _fault(row: Any) -> str | None:
    """What is wrong with an entry; None if it can be evaluated."""
    missing = [key for key in KEYS if key not in row] if isinstance(row, dict) else list(KEYS)
    if missing:
        return f"has no {' nor '.join(missing)}; an annotation is no detection, which needs {', '.join(KEYS)}"
    if not all(isinstance(row[key], (int, float)) for key in ("image_id", "category_id")):
        return f"has image_id {row['image_id']!r:.20} and category_id {row['category_id']!r:.20}; give numbers"
    box = row["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) for v in (*box, row["score"])):
        return f"has bbox {box!r:.60} and score {row['score']!r:.20}; give x, y, width, height and a number"
    if not all(map(math.isfinite, (*box, row["score"]))):
        return "has NaN or infinity; check the weights that found it"
    return None


def _matched(path: Path, content: Mapping, truth: Mapping) -> tuple[list[dict[str, Any]], list[str]]:
    """The detections of a file of detect in the truth's ids, and the names of images that are not the truth's."""
    ids = _by_ends(truth["images"])
    kinds = {category["name"]: category["id"] for category in truth["categories"]}
    try:
        images = {image["id"]: str(image["file_name"]) for image in content.get("images", ())}
        classes = {category["id"]: str(category["name"]) for category in content.get("categories", ())}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: has an image or a category without id and name; write it again") from error
    others = [name for name in images.values() if name not in ids]
    if len(others) == len(images):
        raise UserError(f"{path}: none of its {len(images)} images is one of the ground truth's; detect on those")
    rows = []
    for number, row in enumerate(content["annotations"]):
        name, kind = images.get(row["image_id"]), classes.get(row["category_id"])
        fault = None
        if name is None or kind is None:
            fault = f"detection {number} is of an image or class that the file does not name; write it again"
        elif len(ids.get(name, ())) > 1:
            remedy = "detect on the folder that its names begin in"
            fault = f"{name} may be several images of the ground truth; {remedy}"
        elif kind not in kinds:
            fault = f"class {kind!r} is none of the ground truth's; detect with --classes of that file"
        if fault:
            raise UserError(f"{path}: {fault}")
        if name in ids:
            own = {"image_id": ids[name][0], "category_id": kinds[kind]}
            rows.append(own | {key: row[key] for key in ("bbox", "score")})
    return rows, others


def _by_ends(images: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Ids of images by their file names and whatever follows a "/" in them."""
    found: dict[str, list[int]] = {}
    for image in images:
        parts = PurePosixPath(image["file_name"]).parts
        for start in range(len(parts)):
            found.setdefault("/".join(parts[start:]), []).append(image["id"])
    return found
