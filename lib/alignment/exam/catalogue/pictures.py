"""Faults between the picture and the network's input."""

from dataclasses import replace

import cv2
import numpy as np

from lib.alignment.exam.planting import Change, Fault, becomes
from lib.data.transforms import gold_yolo, nanodet_plus

NANODET, GOLD, KIND = "NanoDet-Plus", "Gold-YOLO N", "pictures"


def _reversed_colours(original):
    return lambda self, colours: original(self, colours[:, :, ::-1])


def _means_of_rgb(original):
    return lambda self, colours: original(replace(self, mean=self.mean[::-1], std=self.std[::-1]), colours)


def _half_pixel(original):
    """Resizing as cv2.resize does, whose pixel centres lie at 0.5."""

    def resize(self, source, target):
        matrix, size = original(self, source, target)
        matrix[:2, 2] += (np.diag(matrix)[:2] - 1) / 2
        return matrix, size

    return resize


def _as_rows(original):
    """(h, w, 3) read as (3, h, w)."""
    return lambda self, colours: original(self, colours).transpose(1, 2, 0).copy().reshape(3, *colours.shape[:2])


def _width_and_height(original):
    def warp(targets, matrix, size):
        found = original(targets, matrix, size)
        return np.concatenate([found[:, :2], found[:, 2:] - found[:, :2]], 1)

    return warp


def _mirrored_by_pixels(original):
    """width - 1 - x, from the time when boxes were of whole pixels."""
    return lambda boxes, width: original(boxes, width - 1)


def _counted_from_one(original):
    def augment(self, *arguments):
        image, matrix, boxes, labels = original(self, *arguments)
        return image, matrix, boxes, labels + 1

    return augment


FAULTS = (
    Fault(
        "RGB for BGR",
        "feed RGB to weights that were trained on OpenCV's BGR",
        KIND,
        NANODET,
        r"evaluation input",
        (Change(nanodet_plus.NanoDetPlus, "_normalise", _reversed_colours),),
    ),
    Fault(
        "means of RGB",
        "subtract ImageNet's RGB means from BGR planes",
        KIND,
        NANODET,
        r"evaluation input",
        (Change(nanodet_plus.NanoDetPlus, "_normalise", _means_of_rgb),),
    ),
    Fault(
        "half pixel in resizing",
        "resize with cv2.resize where the published code warps pixel indices",
        KIND,
        NANODET,
        r"evaluation (input|matrix)",
        (Change(nanodet_plus.NanoDetPlus, "_resize", _half_pixel),),
    ),
    Fault(
        "reshape for transpose",
        "reshape (h, w, 3) to (3, h, w) instead of transposing",
        KIND,
        NANODET,
        r"evaluation input",
        (Change(nanodet_plus.NanoDetPlus, "_normalise", _as_rows),),
    ),
    Fault(
        "black letterbox",
        "pad with black where the published code pads with grey 114",
        KIND,
        GOLD,
        r"evaluation input",
        (becomes(gold_yolo, "GREY", 0),),
    ),
    Fault(
        "bilinear shrinking",
        "shrink bilinearly where the published code takes means over areas",
        KIND,
        GOLD,
        r"evaluation input",
        (becomes(cv2, "INTER_AREA", cv2.INTER_LINEAR),),
    ),
    Fault(
        "mirrored by pixels",
        "mirror boxes to width - 1 - x",
        KIND,
        GOLD,
        r"augmented boxes",
        (Change(gold_yolo, "_mirrored", _mirrored_by_pixels),),
    ),
    Fault(
        "xywh for xyxy",
        "give the criterion COCO's x, y, width, height as corners",
        KIND,
        NANODET,
        r"augmented boxes",
        (Change(nanodet_plus, "warp_boxes", _width_and_height),),
    ),
    Fault(
        "labels from one",
        "keep COCO's labels, which count from 1",
        KIND,
        NANODET,
        r"augmented labels",
        (Change(nanodet_plus.NanoDetPlus, "augment", _counted_from_one),),
    ),
)
