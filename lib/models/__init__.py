"""The detectors, one model in one file, top to bottom: blocks, backbone, neck, head, variants. Losses, post-processing,
input, training and everything that compares lie elsewhere.

Names are plain data in lib.families; a family's file, and with it a framework, is loaded where a model is asked for.
"""

from types import ModuleType
from typing import Any

from lib.errors import UserError
from lib.families import NAMES as NAMES
from lib.families import family
from lib.models.step import ParameterGroup


def _module(name: str) -> ModuleType:
    """The file of the model's family, which has VARIANTS, INTERMEDIATES, build and parameter_groups."""
    from lib.models import gold_yolo, nanodet_plus, rt_detr

    return {"nanodet_plus": nanodet_plus, "gold_yolo": gold_yolo, "rt_detr": rt_detr}[family(name)]


def input_size(name: str) -> tuple[int, int]:
    """(height, width) in pixels for which the model was published."""
    return _module(name).VARIANTS[name].input_size


def build(name: str, num_classes: int = 80, seed: int | None = 0) -> Any:
    """The training model, a backend.nn.Module; its first weights depend on (seed, parameter name) and nothing else.

    seed None: they are not drawn, which takes as long as a small step: for a model that is given others, all of them.
    """
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}: a detector needs at least one class")
    return _module(name).build(name, num_classes, seed)


def intermediates(name: str) -> dict[str, tuple[str, int | None]]:
    """Features worth comparing, in order of execution: name -> (module path, element of its output; None: all)."""
    return _module(name).INTERMEDIATES


def parameter_groups(name: str, model: Any) -> tuple[ParameterGroup, ...]:
    """How the published optimiser divides the model's parameters, in its order."""
    return _module(name).parameter_groups(model)
