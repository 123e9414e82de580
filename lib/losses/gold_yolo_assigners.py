"""Gold-YOLO's two assigners: which cell answers for which box, and with what target score. NumPy, in float64.

ATSS (arXiv:1912.02424) goes by the geometry of the cells, task-aligned assignment (arXiv:2108.07755) by what the model
predicts. Both follow github.com/huawei-noah/Efficient-Computing, Detection/Gold-YOLO at commit 225ddd2e, image by image
instead of over padded batches. Ties go to the first cell; published, they go to any.

Letters: p cells of all levels, g boxes of the image, k classes.
"""

from dataclasses import dataclass

import numpy as np

from lib.alignment.margins import among, noise, settled_by
from lib.data import boxes

ATSS_TOP_K = 9  # candidates of a box on each level
ATSS_SIDE = 5  # of a cell's square, in strides
TAL_TOP_K = 13  # candidates of a box
EPS = 1e-9


@dataclass(frozen=True)
class Assigned:
    """One image's assignment."""

    box: np.ndarray  # (p,) int64: 0 background, j the image's j-th box
    score: np.ndarray  # (p,) what the score of that box's class should be; 0 for background


def background(cells: int) -> Assigned:
    """The assignment of an image without boxes."""
    return Assigned(np.zeros(cells, np.int64), np.zeros(cells))


def task_aligned(
    scores: np.ndarray,
    predicted: np.ndarray,
    cells: np.ndarray,
    gt_boxes: np.ndarray,
    gt_labels: np.ndarray,
    top_k: int = 0,
) -> Assigned:
    """From scores (p, k), predicted boxes (p, 4) in pixels and cells (p, 3) for gt_boxes (g, 4), g > 0.

    A box takes the top_k (0: TAL_TOP_K) cells of the largest score * IoU^6 and keeps those whose centre it contains; there
    may be cells with metric 0 among them.
    """
    count = top_k or TAL_TOP_K
    overlap, metric = _aligned(scores, predicted, gt_boxes, gt_labels)
    inside = contains(gt_boxes, centres(cells))
    eligible = metric * inside
    matched = settle(largest(eligible, count) & inside, overlap)
    metric = metric * matched
    best = (overlap * matched).max(1, keepdims=True)
    score = (metric * best / (metric.max(1, keepdims=True) + EPS)).max(0)
    return Assigned(_numbers(matched), score)


def _aligned(
    scores: np.ndarray, predicted: np.ndarray, gt_boxes: np.ndarray, gt_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What task-aligned assignment goes by, (g, p) each: the predicted boxes' IoU, and the metric."""
    overlap = iou(gt_boxes, predicted)
    square = overlap * overlap
    return overlap, scores[:, gt_labels].T * (square * square * square)


def task_aligned_margins(
    exact: tuple[np.ndarray, np.ndarray],
    rounded: tuple[np.ndarray, np.ndarray],
    cells: np.ndarray,
    gt_boxes: np.ndarray,
    gt_labels: np.ndarray,
    top_k: int = 0,
) -> tuple[np.ndarray, dict[str, float]]:
    """Margins (p, 1 + g) of `task_aligned`'s choice of no box and of each, and the noise; exact, rounded: scores, predicted."""
    count, inside = top_k or TAL_TOP_K, contains(gt_boxes, centres(cells))
    (overlap, metric), (other_overlap, other_metric) = (_aligned(*one, gt_boxes, gt_labels) for one in (exact, rounded))
    floor = noise(metric * inside, other_metric * inside, count), noise(overlap, other_overlap, count)  # (g, 1) each
    claims = np.where(inside[:, :, None], among(metric * inside, floor[0], count), [0.0, np.inf])  # (g, p, 2)
    found = settled_by(claims.transpose(1, 0, 2), overlap.T, floor[1].T)
    return found, {"alignment metric": float(floor[0].max()), "IoU": float(floor[1].max())}


def fixed(box: np.ndarray, count: int) -> np.ndarray:
    """Margins (p, 1 + count) of choices (p,) that no score decides: nothing but geometry."""
    return np.where(box[:, None] == np.arange(count + 1), 0.0, np.inf)


def atss(predicted: np.ndarray, cells: np.ndarray, gt_boxes: np.ndarray) -> Assigned:
    """From predicted boxes (p, 4) in pixels and cells (p, 3), level after level, for gt_boxes (g, 4), g > 0.

    Candidates are each level's ATSS_TOP_K cells closest to the box's centre; taken are those whose square overlaps the
    box by more than the candidates' mean plus standard deviation and whose centre it contains. The target score is the
    predicted box's IoU.
    """
    points, half = centres(cells), ATSS_SIDE / 2 * cells[:, 2:]
    overlap = boxes.iou(gt_boxes, np.concatenate([points - half, points + half], 1))  # (g, p)
    offset = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2 - points
    distance = (offset * offset).sum(2)
    candidate = np.zeros(overlap.shape, bool)
    for stride in np.unique(cells[:, 2]):
        level = np.flatnonzero(cells[:, 2] == stride)
        candidate[:, level] = largest(-distance[:, level], ATSS_TOP_K)
    of_candidates = overlap[candidate].reshape(len(gt_boxes), -1)
    threshold = of_candidates.mean(1, keepdims=True) + of_candidates.std(1, keepdims=True, ddof=1)
    matched = settle(candidate & (overlap > threshold) & contains(gt_boxes, points), overlap)
    return Assigned(_numbers(matched), (iou(gt_boxes, predicted) * matched).max(0))


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
