"""What the labels of a model are called: COCO's eighty classes, or those of a file."""

import json
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError

COCO = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)
UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # ids from 1 to 90 that COCO 2017 leaves out


@dataclass(frozen=True)
class Classes:
    """Names and COCO category ids by label."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def coco() -> Classes:
    """The eighty classes of COCO 2017 with their own ids."""
    return Classes(COCO, tuple(id_ for id_ in range(1, 91) if id_ not in UNUSED))


def read(path: Path) -> Classes:
    """From a COCO file (by category id, as training sorts them), or a text file with one name per line (ids from 1)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read ({error}); give a COCO file or one class name per line") from error
    if path.suffix == ".json":
        return _categories(path, text)
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise UserError(f"{path}: names no class; write one per line")
    return Classes(names, tuple(range(1, len(names) + 1)))


def _categories(path: Path, text: str) -> Classes:
    try:
        pairs = sorted((int(category["id"]), str(category["name"])) for category in json.loads(text)["categories"])
        ids, names = zip(*pairs, strict=True)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: has no categories with id and name ({error!r}); give a COCO file") from error
    return Classes(names, ids)
