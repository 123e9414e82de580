"""The detectors by name: one module per family, each with VARIANTS (data) and build."""

from lib.backend import nn
from lib.errors import UserError
from lib.models.step import ParameterGroup

from . import gold_yolo, nanodet_plus, rt_detr

_MODULES = {name: module for module in (nanodet_plus, gold_yolo, rt_detr) for name in module.VARIANTS}
NAMES = tuple(_MODULES)


def _module(name: str):
    if name not in _MODULES:
        raise UserError(f"model {name!r} is unknown: choose one of {', '.join(NAMES)}")
    return _MODULES[name]


def family(name: str) -> str:
    """The family to which a model's criterion, post-processing and recipe belong, e.g. "nanodet_plus"."""
    return _module(name).__name__.rsplit(".", 1)[-1]


def input_size(name: str) -> tuple[int, int]:
    """(height, width) in pixels for which the model was published."""
    return _module(name).VARIANTS[name].input_size


def build(name: str, num_classes: int = 80, seed: int = 0) -> nn.Module:
    """The training model; its first weights depend on (seed, parameter name) and nothing else."""
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}: a detector needs at least one class")
    return _module(name).build(name, num_classes, seed)


def intermediates(name: str) -> dict[str, tuple[str, int | None]]:
    """Features worth comparing, in order of execution: name -> (module path, element of its output; None: all of it)."""
    return _module(name).INTERMEDIATES


def parameter_groups(name: str, model: nn.Module) -> tuple[ParameterGroup, ...]:
    """How the published optimiser divides the model's parameters, in its order."""
    return _module(name).parameter_groups(model)
