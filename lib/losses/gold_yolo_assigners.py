"""Gold-YOLO's two assigners: which cell answers for which box, and with what target score. NumPy, in float64.

ATSS (arXiv:1912.02424) goes by the geometry of the cells, task-aligned assignment (arXiv:2108.07755) by what the model
predicts. Both follow github.com/huawei-noah/Efficient-Computing, Detection/Gold-YOLO at commit 225ddd2e, image by image
instead of over padded batches. Ties go to the first cell; published, they go to any.

Letters: p cells of all levels, g boxes of the image, k classes.
"""
from dataclasses import dataclass

import numpy as np

from lib import boxes

ATSS_TOP_K = 9          # candidates of a box on each level
ATSS_SIDE = 5           # of a cell's square, in strides
TAL_TOP_K = 13          # candidates of a box
EPS = 1e-9


@dataclass(frozen=True)
class Assigned:
    """One image's assignment."""
    box: np.ndarray       # (p,) int64: 0 background, j the image's j-th box
    score: np.ndarray     # (p,) what the score of that box's class should be; 0 for background
    margin: np.ndarray    # (g,) how far, relatively, the closest rejected candidate was from being taken, or conversely


def background(cells: int) -> Assigned:
    """The assignment of an image without boxes."""
    return Assigned(np.zeros(cells, np.int64), np.zeros(cells), np.zeros(0))


def task_aligned(scores: np.ndarray, predicted: np.ndarray, cells: np.ndarray, gt_boxes: np.ndarray,
                 gt_labels: np.ndarray, top_k: int = 0) -> Assigned:
    """From scores (p, k), predicted boxes (p, 4) in pixels and cells (p, 3) for gt_boxes (g, 4), g > 0.

    A box takes the top_k (0: TAL_TOP_K) cells of the largest score * IoU^6 and keeps those whose centre it contains; there
    may be cells with metric 0 among them. margin: between the last cell taken and the next.
    """
    count = top_k or TAL_TOP_K
    overlap = iou(gt_boxes, predicted)                          # (g, p)
    square = overlap * overlap
    metric = scores[:, gt_labels].T * (square * square * square)
    inside = contains(gt_boxes, centres(cells))
    eligible = metric * inside
    matched = settle(largest(eligible, count) & inside, overlap)
    metric = metric * matched
    best = (overlap * matched).max(1, keepdims=True)
    score = (metric * best / (metric.max(1, keepdims=True) + EPS)).max(0)
    return Assigned(_numbers(matched), score, _gaps(eligible, count))


def atss(predicted: np.ndarray, cells: np.ndarray, gt_boxes: np.ndarray) -> Assigned:
    """From predicted boxes (p, 4) in pixels and cells (p, 3), level after level, for gt_boxes (g, 4), g > 0.

    Candidates are each level's ATSS_TOP_K cells closest to the box's centre; taken are those whose square overlaps the
    box by more than the candidates' mean plus standard deviation and whose centre it contains. The target score is the
    predicted box's IoU. margin: the smallest distance of a candidate's overlap from that threshold, in parts of it.
    """
    points, half = centres(cells), ATSS_SIDE / 2 * cells[:, 2:]
    overlap = boxes.iou(gt_boxes, np.concatenate([points - half, points + half], 1))       # (g, p)
    offset = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2 - points
    distance = (offset * offset).sum(2)
    candidate = np.zeros(overlap.shape, bool)
    for stride in np.unique(cells[:, 2]):
        level = np.flatnonzero(cells[:, 2] == stride)
        candidate[:, level] = largest(-distance[:, level], ATSS_TOP_K)
    of_candidates = overlap[candidate].reshape(len(gt_boxes), -1)
    threshold = of_candidates.mean(1, keepdims=True) + of_candidates.std(1, keepdims=True, ddof=1)
    matched = settle(candidate & (overlap > threshold) & contains(gt_boxes, points), overlap)
    margin = np.abs(of_candidates - threshold).min(1) / np.maximum(threshold[:, 0], EPS)
    return Assigned(_numbers(matched), (iou(gt_boxes, predicted) * matched).max(0), margin)


def centres(cells: np.ndarray) -> np.ndarray:
    """(p, 2) the middle of each cell in pixels."""
    return cells[:, :2] + cells[:, 2:] / 2


def contains(gt_boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(g, p): the point lies inside the box, by more than EPS."""
    x, y = points.T
    left, top, right, bottom = gt_boxes.T[:, :, None]
    return (x - left > EPS) & (y - top > EPS) & (right - x > EPS) & (bottom - y > EPS)


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(m, k) intersection over union plus EPS; a box whose sides are the wrong way round has no area."""
    (left, top, right, bottom), (x1, y1, x2, y2) = first.T[:, :, None], second.T
    width = np.maximum(np.minimum(right, x2) - np.maximum(left, x1), 0)
    shared = width * np.maximum(np.minimum(bottom, y2) - np.maximum(top, y1), 0)
    own = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    other = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    return shared / (own + other - shared + EPS)


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """(g, p) bool: the `count` largest of each row (all of a shorter one); of equal ones the first."""
    count = min(count, values.shape[1])
    last = np.partition(values, -count, 1)[:, -count][:, None]
    above, equal = values > last, values == last
    return above | equal & (equal.cumsum(1) <= count - above.sum(1, keepdims=True))


def settle(matched: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """(g, p) with one box at most for each cell: the one of highest overlap among all, whether it had asked or not."""
    contested = np.flatnonzero(matched.sum(0) > 1)
    settled = matched.copy()
    settled[:, contested] = False
    settled[overlap[:, contested].argmax(0), contested] = True
    return settled


def _numbers(matched: np.ndarray) -> np.ndarray:
    """(p,): 0, or the number, from 1, of the one row that is set."""
    return np.where(matched.any(0), matched.argmax(0) + 1, 0)


def _gaps(values: np.ndarray, count: int) -> np.ndarray:
    """(g,): how much smaller, relatively, the value after the `count` largest is than the last of them; 0 for 0 after 0."""
    if values.shape[1] <= count:
        return np.ones(len(values))
    after, last = np.partition(values, -count - 1, 1)[:, [-count - 1]], np.partition(values, -count, 1)[:, [-count]]
    return ((last - after) / np.maximum(last, np.finfo(values.dtype).tiny))[:, 0]
