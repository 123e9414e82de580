"""From a model's inference output to detections, in NumPy; one module per family, with its published settings."""

from types import ModuleType

import numpy as np

from lib import models
from lib.backend import numpy
from lib.data import boxes

from . import candidates, gold_yolo, nanodet_plus, rt_detr

_MODULES = {"nanodet_plus": nanodet_plus, "gold_yolo": gold_yolo, "rt_detr": rt_detr}


def settings(name: str) -> ModuleType:
    """The module that holds SCORE_THRESHOLD, NMS_IOU and MAX_DETECTIONS of the model's published evaluation."""
    return _MODULES[models.family(name)]


def detections(
    name: str,
    outputs,
    *,
    image_size: tuple[int, int],
    warps=None,
    original_sizes=None,
    score_threshold: float | None = None,
    nms_iou: float | None = None,
    max_detections: int | None = None,
) -> list[np.ndarray]:
    """Per image (m, 6): x1, y1, x2, y2, score, label, best score first, in the outputs' precision.

    outputs: what the model gives in eval(), tensors or arrays. image_size: (height, width) of the network input.
    warps: per image the 3 x 3 map from original to input pixels; the boxes are mapped back through it and clipped
    to that image's (height, width) in original_sizes. Without warps they stay in input pixels.
    Settings left out are the published ones.
    """
    family = settings(name)
    chosen = [
        default if value is None else value
        for value, default in (
            (score_threshold, family.SCORE_THRESHOLD),
            (nms_iou, family.NMS_IOU),
            (max_detections, family.MAX_DETECTIONS),
        )
    ]
    found = [family.per_image(output, image_size, *chosen) for output in _images(outputs)]
    if warps is not None:
        for rows, matrix, size in zip(found, warps, original_sizes, strict=True):
            rows[:, :4] = boxes.clip(boxes.warp(rows[:, :4], np.linalg.inv(matrix)), size)
    return found


def near_misses(
    name: str, exact, rounded, image_size: tuple[int, int], most: float
) -> tuple[np.ndarray, dict[str, float]]:
    """Of one image what suppression and the last place might decide otherwise, see candidates.near_misses.

    exact, rounded: outputs in float64 and in float32. Nothing for RT-DETR, which suppresses nothing: there scores alone decide.
    """
    family = settings(name)
    if family is rt_detr:
        return np.zeros((0, 7)), {}
    runs = [family.candidates(_images(outputs)[0], image_size, family.SCORE_THRESHOLD) for outputs in (exact, rounded)]
    return candidates.near_misses(*runs, family.NMS_IOU, family.MAX_DETECTIONS, most)


def _images(outputs) -> list:
    """The outputs of each image: an array, or a dict of arrays where the model gives several."""
    if isinstance(outputs, dict):
        arrays = {key: _array(value) for key, value in outputs.items()}
        return [dict(zip(arrays, rows, strict=True)) for rows in zip(*arrays.values(), strict=True)]
    return list(_array(outputs))


def _array(value) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else numpy(value)
