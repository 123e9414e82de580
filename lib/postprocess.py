"""From a model's inference output to detections, in NumPy."""
import numpy as np

from lib import boxes, models
from lib.backend import numpy
from lib.models.nanodet_plus import BINS, STRIDES


def detections(name: str, outputs, *, image_size: tuple[int, int], warps=None, original_sizes=None,
               score_threshold: float = 0.05, nms_iou: float = 0.6, max_detections: int = 100) -> list[np.ndarray]:
    """Per image (m, 6): x1, y1, x2, y2, score, label, best score first, in the outputs' precision.

    outputs: what the model gives in eval(), a tensor or an array. image_size: (height, width) of the network input.
    warps: per image the 3 x 3 map from original to input pixels; the boxes are mapped back through it and clipped
    to that image's (height, width) in original_sizes. Without warps they stay in input pixels.
    """
    outputs = outputs if isinstance(outputs, np.ndarray) else numpy(outputs)
    found = [_PER_IMAGE[models.family(name)](output, image_size, score_threshold, nms_iou, max_detections)
             for output in outputs]
    if warps is not None:
        for rows, matrix, size in zip(found, warps, original_sizes, strict=True):
            rows[:, :4] = boxes.clip(boxes.warp(rows[:, :4], np.linalg.inv(matrix)), size)
    return found


def _nanodet_plus(output: np.ndarray, image_size, score_threshold: float, nms_iou: float, limit: int) -> np.ndarray:
    """Every (prior, class) pair above the threshold competes; there is no top-k before the suppression."""
    cells = boxes.priors(tuple(image_size), STRIDES)
    num_classes = output.shape[1] - BINS
    scores = boxes.sigmoid(output[:, :num_classes])
    prior, label = np.nonzero(scores > score_threshold)
    scores = scores[prior, label]
    candidates = boxes.clip(boxes.decode(output[prior, num_classes:], cells[prior]), image_size)
    # The published suppression moves each class to a place of its own, and float32 rounds the moved corners: an IoU
    # within that rounding of the threshold is decided by it.
    moved = candidates + (label[:, None] * (candidates.max(initial=0) + 1)).astype(candidates.dtype)
    kept = boxes.nms(moved, scores, label, nms_iou, limit)
    return np.concatenate([candidates[kept], scores[kept, None], label[kept, None]], 1, dtype=output.dtype)


_PER_IMAGE = {"nanodet_plus": _nanodet_plus}
