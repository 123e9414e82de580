"""Criteria by model name: criterion(outputs, targets, **phase) -> dict of scalars, whose sum is minimised."""
from lib import models

from . import nanodet_plus

_CRITERIA = {"nanodet_plus": nanodet_plus.Criterion}


def build(name: str, num_classes: int = 80):
    """The published criterion of the model."""
    return _CRITERIA[models.family(name)](num_classes)
