"""NanoDet-Plus: every (prior, class) pair above the threshold competes; there is no top-k before the suppression."""

import numpy as np

from lib.data import boxes
from lib.models.nanodet_plus import BINS, STRIDES

from .candidates import Candidates

SCORE_THRESHOLD, NMS_IOU, MAX_DETECTIONS = 0.05, 0.6, 100


def per_image(
    output: np.ndarray, image_size: tuple[int, int], score_threshold: float, nms_iou: float, limit: int
) -> np.ndarray:
    """Logits (priors, classes + 32) -> (m, 6) in input pixels, best first."""
    return candidates(output, image_size, score_threshold).detections(nms_iou, limit)


def candidates(output: np.ndarray, image_size: tuple[int, int], score_threshold: float) -> Candidates:
    """What competes."""
    cells = boxes.priors(tuple(image_size), STRIDES)
    num_classes = output.shape[1] - BINS
    scores = boxes.sigmoid(output[:, :num_classes])
    prior, label = np.nonzero(scores > score_threshold)
    found = boxes.clip(boxes.decode(output[prior, num_classes:], cells[prior]), image_size)
    # The published suppression moves each class to a place of its own, and float32 rounds the moved corners: an IoU
    # within that rounding of the threshold is decided by it.
    moved = found + (label[:, None] * (found.max(initial=0) + 1)).astype(found.dtype)
    return Candidates(prior, found, moved, scores[prior, label], label)
