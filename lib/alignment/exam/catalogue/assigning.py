"""Faults in assigners and matchers."""

import numpy as np

from lib.alignment.exam.planting import Change, Fault, becomes
from lib.losses import gold_yolo, nanodet_plus, rt_detr

NANODET, GOLD, RT_DETR = "NanoDet-Plus", "Gold-YOLO N", "RT-DETR"
KIND, PLACE = "assignment", r"assignment"


def _centres_inside(original):
    """Cells' centres decide, not their corners."""
    return lambda cells, boxes: original(cells + cells[:, 2:] * np.asarray([0.5, 0.5, 0], cells.dtype), boxes)


def _read_as_corners(original):
    """Centre and size as if they were corners."""

    def giou(first, second):
        both = (np.concatenate([(b[..., :2] + b[..., 2:]) / 2, b[..., 2:] - b[..., :2]], -1) for b in (first, second))
        return original(*both)

    return giou


FAULTS = (
    Fault(
        "matcher weight",
        "weigh the class cost by 1 instead of 2",
        KIND,
        RT_DETR,
        PLACE,
        (becomes(rt_detr, "CLASS_COST", 1.0),),
    ),
    Fault(
        "matcher reads corners",
        "compute the matcher's GIoU on centre and size",
        KIND,
        RT_DETR,
        PLACE,
        (Change(rt_detr, "giou", _read_as_corners),),
    ),
    Fault(
        "candidates of dynamic k",
        "take 10 candidates as SimOTA does, where 13 are published",
        KIND,
        NANODET,
        PLACE,
        (becomes(nanodet_plus, "TOP_K", 10),),
    ),
    Fault(
        "weight of the IoU cost",
        "forget the factor 3 of the IoU cost",
        KIND,
        NANODET,
        PLACE,
        (becomes(nanodet_plus, "IOU_FACTOR", 1.0),),
    ),
    Fault(
        "cells inside by their centre",
        "ask for centres inside a box where corners are published",
        KIND,
        NANODET,
        PLACE,
        (Change(nanodet_plus, "inside", _centres_inside),),
    ),
    Fault(
        "candidates of a box",
        "take 10 cells for each box where 13 are published",
        KIND,
        GOLD,
        PLACE,
        (becomes(gold_yolo, "TAL_TOP_K", 10),),
    ),
)
