"""From decoded images to network input: resizing, augmentation and normalisation as each family publishes them.

NumPy, OpenCV and Pillow only, so that both frameworks see the same bytes; one module per family. Random numbers come
from a NumPy generator, where the published code asks Python's, NumPy's or PyTorch's global one. Reading images and
making batches of them lie above, in lib.data.
"""

from lib.data.transforms.base import Augmented, Picture, Recipe, Size, planes, stack, warp_boxes
from lib.data.transforms.gold_yolo import VARIANTS, GoldYolo
from lib.data.transforms.nanodet_plus import NanoDetPlus
from lib.data.transforms.rt_detr import RtDetr
from lib.families import family, size_of

__all__ = ("RECIPES", "Augmented", "Picture", "Recipe", "Size", "planes", "recipe", "stack", "warp_boxes")

RECIPES: dict[str, Recipe] = {"nanodet_plus": NanoDetPlus(), "gold_yolo": GoldYolo(), "rt_detr": RtDetr()}  # by family


def recipe(model: str) -> Recipe:
    """The published recipe of a model: its size's own where that differs from its family's."""
    return VARIANTS.get(size_of(model), RECIPES[family(model)])
