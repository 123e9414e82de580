"""Criteria, one family in one file: criterion(outputs, targets, **phase) -> dict of scalars, whose sum is minimised,
with the assigner or matcher that says what outputs are compared with. Pure: outputs and targets in, losses out; how
near a choice was to another, and what records call it, is for those who judge.
"""

from lib.families import family
from lib.losses import gold_yolo, nanodet_plus, rt_detr
from lib.losses.gold_yolo import build_distillation as build_distillation
from lib.losses.gold_yolo import teacher as teacher

_FAMILIES = {"nanodet_plus": nanodet_plus, "gold_yolo": gold_yolo, "rt_detr": rt_detr}


def build(name: str, num_classes: int = 80):
    return _FAMILIES[family(name)].build(name, num_classes)
