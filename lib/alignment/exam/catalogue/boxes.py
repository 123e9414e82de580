"""Faults between the network's output and the boxes."""

import numpy as np

from lib import postprocess
from lib.alignment.exam.planting import Change, Fault, becomes
from lib.data import boxes
from lib.models import gold_yolo

NANODET, GOLD, DISTRIBUTIONS, RT_DETR = "NanoDet-Plus", "Gold-YOLO N", "Gold-YOLO S", "RT-DETR"
KIND, PLACE = "post-processing", r"post-processing"


def _one_pixel_more(original):
    """Overlaps of boxes that count both of their border pixels."""

    def nms(candidates, scores, labels, threshold, limit):
        wider = candidates + np.asarray([0, 0, 1, 1], candidates.dtype)
        return original(wider, scores, labels, threshold, limit)

    return nms


def _across_classes(original):
    return lambda candidates, scores, labels, threshold, limit: original(
        candidates, scores, labels * 0, threshold, limit
    )


def _ties_from_the_end(original):
    """Equal scores in the reverse of their order."""

    def nms(candidates, scores, labels, threshold, limit):
        last = len(scores) - 1
        return last - original(candidates[::-1], scores[::-1], labels[::-1], threshold, limit)

    return nms


def _common_threshold(original):
    return lambda candidates, scores, labels, threshold, limit: original(candidates, scores, labels, 0.5, limit)


def _from_the_centre(original):
    """Distances from the cell's centre."""

    def decode(bins, cells):
        return original(bins, cells + cells[:, 2:] * np.asarray([0.5, 0.5, 0], cells.dtype))

    return decode


def _background_first(original):
    def detections(*arguments, **options):
        found = original(*arguments, **options)
        for rows in found:
            rows[:, 5] += 1
        return found

    return detections


FAULTS = (
    Fault(
        "NMS + 1",
        "count both border pixels in NMS, as twenty years ago",
        KIND,
        NANODET,
        PLACE,
        (Change(boxes, "nms", _one_pixel_more),),
    ),
    Fault(
        "no class offset",
        "suppress across classes",
        KIND,
        GOLD,
        PLACE,
        (becomes(postprocess, "CLASS_OFFSET", 0), Change(boxes, "nms", _across_classes)),
    ),
    Fault(
        "top-k ties",
        "let the last of equal scores win",
        KIND,
        NANODET,
        PLACE,
        (Change(boxes, "nms", _ties_from_the_end),),
    ),
    Fault(
        "another NMS threshold",
        "suppress at an IoU of 0.5",
        KIND,
        NANODET,
        PLACE,
        (Change(boxes, "nms", _common_threshold),),
    ),
    Fault(
        "half a cell",
        "measure distances from the cell's centre where the corner is meant",
        KIND,
        NANODET,
        PLACE,
        (Change(boxes, "decode", _from_the_centre),),
    ),
    Fault(
        "class offset",
        "return labels that count the background",
        KIND,
        NANODET,
        PLACE,
        (Change(postprocess, "detections", _background_first),),
    ),
    Fault(
        "xywh returned",
        "return centre and size where corners are asked for",
        KIND,
        RT_DETR,
        PLACE,
        (becomes(postprocess, "corners", lambda found: found),),
    ),
    Fault(
        "DFL off by one",
        "take a distribution's bins as 1 … 17",
        KIND,
        DISTRIBUTIONS,
        r"\(the model itself\)",
        (Change(gold_yolo.Head, "sides", lambda original: lambda self, distances: original(self, distances) + 1.0),),
    ),
)
