"""NanoDet-Plus: every (prior, class) pair above the threshold competes; there is no top-k before the suppression."""
import numpy as np

from lib import boxes
from lib.models.nanodet_plus import BINS, STRIDES

SCORE_THRESHOLD, NMS_IOU, MAX_DETECTIONS = 0.05, 0.6, 100


def per_image(output: np.ndarray, image_size: tuple[int, int], score_threshold: float, nms_iou: float,
              limit: int) -> np.ndarray:
    """Logits (priors, classes + 32) -> (m, 6) in input pixels, best first."""
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
