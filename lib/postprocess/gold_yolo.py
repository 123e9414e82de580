"""Gold-YOLO: every (cell, class) pair above the threshold competes, the best 30,000 of them where there are more.

Follows github.com/huawei-noah/Efficient-Computing, Detection/Gold-YOLO at commit 225ddd2e, tools/eval.py.
"""

import numpy as np

from .candidates import Candidates

SCORE_THRESHOLD, NMS_IOU, MAX_DETECTIONS = 0.03, 0.65, 300
MAX_CANDIDATES = 30_000
CLASS_OFFSET = 4096  # pixels by which suppression moves each class away from the one before


def per_image(
    output: np.ndarray, image_size: tuple[int, int], score_threshold: float, nms_iou: float, limit: int
) -> np.ndarray:
    """Rows (cells, 5 + classes) of centre, size, objectness, scores -> (m, 6) in input pixels, best first, not clipped."""
    return candidates(output, image_size, score_threshold).detections(nms_iou, limit)


def candidates(output: np.ndarray, image_size: tuple[int, int], score_threshold: float) -> Candidates:
    """What competes."""
    scores = output[:, 5:] * output[:, 4:5]
    cell, label = np.nonzero(scores > score_threshold)
    best = np.argsort(-scores[cell, label], kind="stable")[:MAX_CANDIDATES]
    cell, label = cell[best], label[best]
    half = output[cell, 2:4] / 2
    found = np.concatenate([output[cell, :2] - half, output[cell, :2] + half], 1)
    # Float32 rounds the moved corners, as published: an IoU within that rounding of the threshold is decided by it.
    moved = found + (label[:, None] * CLASS_OFFSET).astype(found.dtype)
    return Candidates(cell, found, moved, scores[cell, label], label)
