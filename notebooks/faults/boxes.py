"""Faults between the network's output and the boxes, and in assigners and matchers."""

import numpy as np

from lib import postprocess
from lib.data import boxes
from lib.losses import gold_yolo as gold_losses
from lib.losses import nanodet_plus as nanodet_losses
from lib.losses import rt_detr as rt_detr_losses
from lib.models import gold_yolo
from notebooks.exam.planting import Faults, becomes

FAULTS = Faults()
of_nanodet, of_gold, of_distributions, of_rt_detr = (
    FAULTS.of("post-processing", subject) for subject in ("NanoDet-Plus", "Gold-YOLO N", "Gold-YOLO S", "RT-DETR")
)
POST = "post-processing"


@of_nanodet.code("NMS + 1", POST, boxes, "nms")
def _(original, candidates, *others):
    """count both border pixels in NMS, as twenty years ago"""
    return original(candidates + np.asarray([0, 0, 1, 1], candidates.dtype), *others)


@of_gold.code("no class offset", POST, boxes, "nms", becomes(postprocess, "CLASS_OFFSET", 0))
def _(original, candidates, scores, labels, *others):
    """suppress across classes"""
    return original(candidates, scores, labels * 0, *others)


@of_nanodet.code("top-k ties", POST, boxes, "nms")
def _(original, candidates, scores, labels, *others):
    """let the last of equal scores win"""
    return len(scores) - 1 - original(candidates[::-1], scores[::-1], labels[::-1], *others)


@of_nanodet.code("another NMS threshold", POST, boxes, "nms")
def _(original, candidates, scores, labels, threshold, limit):
    """suppress at an IoU of 0.5"""
    return original(candidates, scores, labels, 0.5, limit)


@of_nanodet.code("half a cell", POST, boxes, "decode")
def _(original, bins, cells):
    """measure distances from the cell's centre where the corner is meant"""
    return original(bins, cells + cells[:, 2:] * np.asarray([0.5, 0.5, 0], cells.dtype))


@of_nanodet.code("class offset", POST, postprocess, "detections")
def _(original, *arguments, **options):
    """return labels that count the background"""
    return [rows + np.asarray([0, 0, 0, 0, 0, 1], np.float32) for rows in original(*arguments, **options)]


of_rt_detr.add(
    "xywh returned",
    "return centre and size where corners are asked for",
    POST,
    becomes(postprocess, "corners", lambda found: found),
)


@of_distributions.code("DFL off by one", r"\(the model itself\)", gold_yolo.Head, "sides")
def _(original, self, distances):
    """take a distribution's bins as 1 … 17"""
    return original(self, distances) + 1.0


# ----------------------------------------------------------------------------------------------------- assignment
assigned, assigned_gold, matched = (
    FAULTS.of("assignment", subject) for subject in ("NanoDet-Plus", "Gold-YOLO N", "RT-DETR")
)
PLACE = "assignment"
matched.add(
    "matcher weight", "weigh the class cost by 1 instead of 2", PLACE, becomes(rt_detr_losses, "CLASS_COST", 1.0)
)


@matched.code("matcher reads corners", PLACE, rt_detr_losses, "giou")
def _(original, *pair):
    """compute the matcher's GIoU on centre and size"""
    return original(*(np.concatenate([(b[..., :2] + b[..., 2:]) / 2, b[..., 2:] - b[..., :2]], -1) for b in pair))


assigned.add(
    "candidates of dynamic k",
    "take 10 candidates as SimOTA does, where 13 are published",
    PLACE,
    becomes(nanodet_losses, "TOP_K", 10),
)
assigned.add(
    "weight of the IoU cost", "forget the factor 3 of the IoU cost", PLACE, becomes(nanodet_losses, "IOU_FACTOR", 1.0)
)


@assigned.code("cells inside by their centre", PLACE, nanodet_losses, "inside")
def _(original, cells, boxes):
    """ask for centres inside a box where corners are published"""
    return original(cells + cells[:, 2:] * np.asarray([0.5, 0.5, 0], cells.dtype), boxes)


assigned_gold.add(
    "candidates of a box",
    "take 10 cells for each box where 13 are published",
    PLACE,
    becomes(gold_losses, "TAL_TOP_K", 10),
)
