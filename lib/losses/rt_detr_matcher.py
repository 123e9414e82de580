"""RT-DETR's matcher: which query stands for which box, by the cheapest assignment (SciPy's Hungarian method), in NumPy.

Boxes are centre, width, height as parts of the image. Letters: q queries, g boxes, k classes, m pairs.
"""
from dataclasses import dataclass

import numpy as np
import scipy  # its parts come when they are asked for: optimize takes 0.3 s, which only RT-DETR's matcher needs

from lib import boxes as geometry
from lib.errors import UserError
from lib.margins import cheapest, noise
from lib.models.rt_detr_denoising import corners

CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0
ALPHA = 0.25     # focal weight of an object in the class cost
TINY = 1e-12     # floor of the areas that IoU divides by, in parts of the image: only two boxes without area reach it


@dataclass(frozen=True)
class Matching:
    """An image's pairs; there are as many as the smaller of q and g."""

    queries: np.ndarray     # (m,) int64, rising
    boxes: np.ndarray       # (m,) int64


def match(logits: np.ndarray, boxes: np.ndarray, labels: np.ndarray, gt_boxes: np.ndarray) -> Matching:
    """The assignment with the smallest total cost of an image's predictions (q, k), (q, 4) to its boxes (g,), (g, 4)."""
    return Matching(*scipy.optimize.linear_sum_assignment(costs(logits, boxes, labels, gt_boxes)))


def costs(logits: np.ndarray, boxes: np.ndarray, labels: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
    """(q, g) what it costs to let a query stand for a box. UserError if a prediction is not finite."""
    if not (np.isfinite(logits).all() and np.isfinite(boxes).all()):
        raise UserError("training: the predictions hold NaN or infinity, so boxes can't be matched to them; lower the "
                        "learning rate or look for broken images")
    chance, gt_boxes = geometry.sigmoid(logits[:, labels]), gt_boxes.astype(boxes.dtype)
    present = ALPHA * (1 - chance) ** 2 * -np.log(chance + 1e-8)
    absent = (1 - ALPHA) * chance ** 2 * -np.log(1 - chance + 1e-8)
    distance = np.abs(boxes[:, None] - gt_boxes[None]).sum(2)
    return CLASS_COST * (present - absent) + BOX_COST * distance - GIOU_COST * giou(boxes[:, None], gt_boxes[None])


def second_best_gap(cost: np.ndarray) -> float:
    """How much more the second cheapest assignment costs; infinite if there is no other."""
    pairs = list(zip(*scipy.optimize.linear_sum_assignment(cost)))
    best, others = sum(cost[pair] for pair in pairs), [np.inf]
    for pair in pairs if cost.size > 1 else ():     # every other assignment leaves out at least one of the pairs
        without = cost.astype(np.float64)
        without[pair] = np.inf
        others.append(without[scipy.optimize.linear_sum_assignment(without)].sum())
    return float(min(others) - best)


def matched(exact: tuple[np.ndarray, np.ndarray], rounded: tuple[np.ndarray, np.ndarray], count: int,
            slots: int) -> tuple[np.ndarray, dict[str, float]]:
    """Margins (slots, 1 + count) of an image's boxes to be given no token and each of all, and the noise of the costs.

    exact, rounded: which tokens the queries are (q,), and costs (q, g), g <= q. Tokens that are no queries can't be given.
    Slots beyond the boxes are given none.
    """
    (tokens, cost), (others, other) = exact, rounded
    boxes = cost.shape[1]
    found = np.full((slots, 1 + count), np.inf)
    found[boxes:, 0] = 0
    if not boxes:
        return found, {}
    _, ours, theirs = np.intersect1d(tokens, others, return_indices=True)
    floor = noise(-cost[ours].T, -other[theirs].T, boxes)
    found[:boxes, 1 + tokens] = cheapest(cost.T, np.broadcast_to(floor, cost.T.shape))
    return found, {"cost": float(floor.max())}


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(…) intersection over union of boxes (…, 4) and (…, 4)."""
    overlap, union, _ = _areas(first, second)
    return overlap / union


def giou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(…) generalised IoU (arXiv:1902.09630) of boxes (…, 4) and (…, 4)."""
    overlap, union, hull = _areas(first, second)
    return overlap / union - (hull - union) / hull


def _areas(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the intersection, of the union and of the smallest box around both."""
    first, second = corners(first), corners(second)
    overlap = _area(np.maximum(np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2]), 0))
    hull = _area(np.maximum(first[..., 2:], second[..., 2:]) - np.minimum(first[..., :2], second[..., :2]))
    union = _area(first[..., 2:] - first[..., :2]) + _area(second[..., 2:] - second[..., :2]) - overlap
    return overlap, np.maximum(union, TINY), np.maximum(hull, TINY)


def _area(extent: np.ndarray) -> np.ndarray:
    return extent[..., 0] * extent[..., 1]
