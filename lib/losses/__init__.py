"""Criteria by model name: criterion(outputs, targets, **phase) -> dict of scalars, whose sum is minimised.

Each family's module has build(name, num_classes), named(outputs) and a criterion with decisions(…).
"""

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from lib import models
from lib.alignment.margins import Margins

from . import gold_yolo, gold_yolo_distillation, nanodet_plus, rt_detr

_MODULES = {"nanodet_plus": nanodet_plus, "gold_yolo": gold_yolo, "rt_detr": rt_detr}


def _module(name: str) -> ModuleType:
    return _MODULES[models.family(name)]


def build(name: str, num_classes: int = 80):
    """The published criterion of the model."""
    return _module(name).build(name, num_classes)


def teacher(name: str) -> str:
    """The model from which `name` can be distilled; UserError if from none."""
    return gold_yolo_distillation.teacher(name)


def build_distillation(name: str, num_classes: int, epochs: int):
    """The criterion of a model with a teacher, in a run of so many epochs; its outputs are (the model's, the teacher's)."""
    return gold_yolo_distillation.build(name, num_classes, epochs)


def decisions(name: str, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The discrete choices that inference takes on its way, from its features: RT-DETR's selection, and none elsewhere."""
    return rt_detr.selection(features) if _module(name) is rt_detr else {}


def margins(name: str, exact: Mapping[str, np.ndarray], rounded: Mapping[str, np.ndarray]) -> dict[str, Margins]:
    """How far these choices are from others: `exact` features in float64, `rounded` ones for the noise."""
    return rt_detr.selection_margins(exact, rounded) if _module(name) is rt_detr else {}


def named(name: str, outputs, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of what the model gives, in train() or in eval(), under names that records use, and its features under
    "features/<name>", everything in an order that does not depend on rounding."""
    return _module(name).named(outputs, features)
