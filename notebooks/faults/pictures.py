"""Faults between the picture and the network's input."""

from dataclasses import replace

import cv2
import numpy as np

from lib.data.transforms import gold_yolo, nanodet_plus
from notebooks.exam.planting import Faults, becomes

FAULTS = Faults()
nanodet, gold = FAULTS.of("pictures", "NanoDet-Plus"), FAULTS.of("pictures", "Gold-YOLO N")
INPUT = "evaluation input"


@nanodet.code("RGB for BGR", INPUT, nanodet_plus.NanoDetPlus, "_normalise")
def _(original, self, colours):
    """feed RGB to weights that were trained on OpenCV's BGR"""
    return original(self, colours[:, :, ::-1])


@nanodet.code("means of RGB", INPUT, nanodet_plus.NanoDetPlus, "_normalise")
def _(original, self, colours):
    """subtract ImageNet's RGB means from BGR planes"""
    return original(replace(self, mean=self.mean[::-1], std=self.std[::-1]), colours)


@nanodet.code("half pixel in resizing", r"evaluation (input|matrix)", nanodet_plus.NanoDetPlus, "_resize")
def _(original, self, source, target):
    """resize with cv2.resize where the published code warps pixel indices"""
    matrix, size = original(self, source, target)
    matrix[:2, 2] += (np.diag(matrix)[:2] - 1) / 2  # the centres of cv2's pixels lie at 0.5
    return matrix, size


@nanodet.code("reshape for transpose", INPUT, nanodet_plus.NanoDetPlus, "_normalise")
def _(original, self, colours):
    """reshape (h, w, 3) to (3, h, w) instead of transposing"""
    return original(self, colours).transpose(1, 2, 0).copy().reshape(3, *colours.shape[:2])


gold.add(
    "black letterbox",
    "pad with black where the published code pads with grey 114",
    INPUT,
    becomes(gold_yolo, "GREY", 0),
)
gold.add(
    "bilinear shrinking",
    "shrink bilinearly where the published code takes means over areas",
    INPUT,
    becomes(cv2, "INTER_AREA", cv2.INTER_LINEAR),
)


@gold.code("mirrored by pixels", "augmented boxes", gold_yolo, "_mirrored")
def _(original, boxes, width):
    """mirror boxes to width - 1 - x"""
    return original(boxes, width - 1)  # from the time when boxes were of whole pixels


@nanodet.code("xywh for xyxy", "augmented boxes", nanodet_plus, "warp_boxes")
def _(original, targets, matrix, size):
    """give the criterion COCO's x, y, width, height as corners"""
    found = original(targets, matrix, size)
    return np.concatenate([found[:, :2], found[:, 2:] - found[:, :2]], 1)


@nanodet.code("labels from one", "augmented labels", nanodet_plus.NanoDetPlus, "augment")
def _(original, self, *arguments):
    """keep COCO's labels, which count from 1"""
    image, matrix, boxes, labels = original(self, *arguments)
    return image, matrix, boxes, labels + 1
