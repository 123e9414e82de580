"""The models' names, by the family whose files they share: plain data, which costs nobody a framework.

A family's name is the name of its files in lib/models, lib/losses and lib/data/transforms.
"""

from lib.errors import UserError

FAMILIES = {
    "nanodet_plus": (
        "nanodet-plus-m_320",
        "nanodet-plus-m_416",
        "nanodet-plus-m-1.5x_320",
        "nanodet-plus-m-1.5x_416",
    ),
    "gold_yolo": (
        *(f"gold-yolo-{size}{head}" for head in ("", "-fuse-ab") for size in "nsml"),
        *(f"gold-yolo-{size}-distill" for size in "ns"),
    ),
    "rt_detr": ("rtdetr_r18vd", "rtdetr_r34vd", "rtdetr_r50vd_m", "rtdetr_r50vd", "rtdetr_r101vd"),
}
NAMES = tuple(name for names in FAMILIES.values() for name in names)


def family(name: str) -> str:
    """The family of a model, e.g. "nanodet_plus"; UserError for a name that is no model's."""
    for found, names in FAMILIES.items():
        if name in names:
            return found
    raise UserError(f"model {name!r} is unknown: choose one of {', '.join(NAMES)}")


def size_of(name: str) -> str:
    """The published size that a model is: Gold-YOLO's is the same with whatever head its steps of training need."""
    return name.removesuffix("-fuse-ab").removesuffix("-distill")
