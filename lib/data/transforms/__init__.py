"""From decoded images to network input: resizing, augmentation and normalisation as each family publishes them.

NumPy, OpenCV and Pillow only, so that both frameworks see the same bytes; one module per family. Random numbers come
from a NumPy generator, where the published code asks Python's, NumPy's or PyTorch's global one.
"""

from lib.models.families import family

from . import gold_yolo
from .base import Augmented, Picture, Prepared, Random, Range, Recipe, Size, planes, stack, warp_boxes
from .gold_yolo import GoldYolo
from .nanodet_plus import NanoDetPlus
from .rt_detr import RtDetr

RECIPES: dict[str, Recipe] = {  # by lib.models.family(name)
    "nanodet_plus": NanoDetPlus(),
    "gold_yolo": GoldYolo(),
    "rt_detr": RtDetr(),
}


def recipe(model: str) -> Recipe:
    """The published recipe of a model: its own where its size differs from its family's, with whatever head."""
    size = model.removesuffix("-fuse-ab").removesuffix("-distill")
    return gold_yolo.VARIANTS.get(size, RECIPES[family(model)])
