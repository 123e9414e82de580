"""Gold-YOLO: every (cell, class) pair above the threshold competes, the best 30,000 of them where there are more.

Follows github.com/huawei-noah/Efficient-Computing, Detection/Gold-YOLO at commit 225ddd2e, tools/eval.py.
"""
import numpy as np

from lib import boxes

SCORE_THRESHOLD, NMS_IOU, MAX_DETECTIONS = 0.03, 0.65, 300
MAX_CANDIDATES = 30_000
CLASS_OFFSET = 4096     # pixels by which suppression moves each class away from the one before


def per_image(output: np.ndarray, image_size: tuple[int, int], score_threshold: float, nms_iou: float,
              limit: int) -> np.ndarray:
    """Rows (cells, 5 + classes) of centre, size, objectness, scores -> (m, 6) in input pixels, best first, not clipped."""
    scores = output[:, 5:] * output[:, 4:5]
    cell, label = np.nonzero(scores > score_threshold)
    scores = scores[cell, label]
    best = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    cell, label, scores = cell[best], label[best], scores[best]
    half = output[cell, 2:4] / 2
    candidates = np.concatenate([output[cell, :2] - half, output[cell, :2] + half], 1)
    # Float32 rounds the moved corners, as published: an IoU within that rounding of the threshold is decided by it.
    moved = candidates + (label[:, None] * CLASS_OFFSET).astype(candidates.dtype)
    kept = boxes.nms(moved, scores, label, nms_iou, limit)
    return np.concatenate([candidates[kept], scores[kept, None], label[kept, None]], 1, dtype=output.dtype)
