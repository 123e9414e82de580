"""NanoDet-Plus's criterion: dynamic soft label assignment, then quality focal, GIoU and distribution focal losses.

Follows github.com/RangiLyu/nanodet at commit be9b4a9 (quality and distribution focal loss: arXiv:2006.04388).
Deliberate differences:
* assignment and everything without a gradient (one-hot qualities, weights, targets) is NumPy;
* the assignment's classification cost takes the sum over all classes once per prior and corrects the one class of
  each box, instead of building a (priors, boxes, classes) array;
* GIoU compares the sides' distances from the prior instead of corners;
* normalisers and loss weights are part of the NumPy targets;
* a batch without positives keeps one prior at weight 0, which gives the published zero loss and zero gradient;
* of several processes each gives its part of the one loss of all their images: both normalisers are sums over them
  that are at least 1, where the published means over them are.

Letters: n images, p priors, v priors inside some box, g boxes of an image, m positives of the batch, k classes.
"""

from dataclasses import dataclass

import numpy as np

from lib.backend import (
    all_gather,
    binary_cross_entropy_with_logits,
    clamp,
    exp,
    log_softmax,
    maximum,
    minimum,
    numpy,
    sigmoid,
    sum,
    tensor,
)
from lib.data import boxes
from lib.models.nanodet_plus import BINS, REG_MAX, STRIDES

TOP_K = 13  # candidates whose IoU decides how many priors a box gets
IOU_FACTOR = 3.0  # of the localisation cost beside the classification cost
BBOX_WEIGHT, DFL_WEIGHT = 2.0, 0.25
EPS = 1e-6  # floor of the areas GIoU divides by


@dataclass(frozen=True)
class Assignment:
    box: np.ndarray  # (n, p) int64: 0 background, j the image's j-th box
    quality: np.ndarray  # (n, p) IoU of that box with the one predicted by the assigning head; 0 for background


@dataclass(frozen=True)
class Positives:
    """What the losses of both heads compare with, for the positives of a batch (at least one row)."""

    image: np.ndarray  # (m,) int64
    prior: np.ndarray  # (m,) int64
    real: bool  # False: there are no positives, the one row stands for nothing
    cells: np.ndarray  # (m, 3) x, y, stride
    boxes: np.ndarray  # (m, 4) pixels
    labels: np.ndarray  # (m,) int64

    def sides(self) -> np.ndarray:
        """(m, 4) pixels from the prior's point to the box's left, top, right, bottom; negative where it is outside."""
        return (self.boxes - self.cells[:, [0, 1, 0, 1]]) * np.asarray([-1, -1, 1, 1], self.boxes.dtype)


def assign(
    output: np.ndarray, cells: np.ndarray, gt_boxes: np.ndarray, gt_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One image's rows of Assignment from its logits (p, k + 32): `box` (p,), `quality` (p,).

    Any prior inside any box competes for every box, so a positive may lie outside its own box; a box without area
    still claims one if other boxes offer priors. Ties of the cost are settled in no particular, but a fixed, way.
    """
    box, quality = np.zeros(len(cells), np.int64), np.zeros(len(cells), output.dtype)
    valid = np.flatnonzero(inside(cells, gt_boxes).any(1))
    if valid.size == 0:
        return box, quality
    iou, cost = scored(output[valid], cells[valid], gt_boxes, gt_labels)
    matched = settled(iou, cost)
    row, column = matched.nonzero()
    box[valid[row]], quality[valid[row]] = column + 1, iou[row, column]
    return box, quality


def scored(
    output: np.ndarray, cells: np.ndarray, gt_boxes: np.ndarray, gt_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the assignment goes by, (v, g) each: the predicted boxes' IoU, and the cost."""
    num_classes = output.shape[1] - BINS
    iou = boxes.iou(boxes.decode(output[:, num_classes:], cells), gt_boxes.astype(output.dtype))
    return iou, _classification_cost(output[:, :num_classes], gt_labels, iou) - IOU_FACTOR * np.log(iou + 1e-7)


def settled(iou: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """(v, g) bool, one box at most for each prior."""
    matched = _cheapest(cost, _dynamic_k(iou))
    contested = np.flatnonzero(matched.sum(1) > 1)
    matched[contested] = False
    matched[contested, cost[contested].argmin(1)] = True  # over all boxes, not only those that claimed the prior
    return matched


def inside(cells: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
    """(p, g): the prior's point lies strictly inside the box."""
    x, y = cells[:, :1], cells[:, 1:2]
    return (x > gt_boxes[:, 0]) & (y > gt_boxes[:, 1]) & (x < gt_boxes[:, 2]) & (y < gt_boxes[:, 3])


def _classification_cost(logits: np.ndarray, gt_labels: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """(v, g): sum over classes of BCE(logit, t) |t - sigmoid(logit)|^2 where t is iou for the box's label, else 0."""
    probability = boxes.sigmoid(logits)
    softplus = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))  # BCE(logit, t) = softplus - t * logit
    background = softplus * probability * probability  # (v, k)
    own = softplus[:, gt_labels] - iou * logits[:, gt_labels]  # (v, g)
    distance = iou - probability[:, gt_labels]
    return background.sum(1, keepdims=True) - background[:, gt_labels] + own * distance * distance


def _dynamic_k(iou: np.ndarray) -> np.ndarray:
    """(g,): how many priors each box gets, the whole part of its best TOP_K IoUs' sum, at least 1."""
    return np.maximum(best_ious(iou).astype(np.int64), 1)


def best_ious(iou: np.ndarray) -> np.ndarray:
    """(g,) the sum of each box's best TOP_K IoUs."""
    best = min(TOP_K, len(iou))
    return np.partition(iou, -best, 0)[-best:].sum(0)


def _cheapest(cost: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(v, g) bool: in column j the counts[j] smallest costs; counts are at most TOP_K."""
    best = min(TOP_K, len(cost))
    candidates = np.argpartition(cost, best - 1, 0)[:best]  # (best, g)
    order = np.take_along_axis(cost, candidates, 0).argsort(0, kind="stable")
    matched = np.zeros(cost.shape, bool)
    chosen = np.arange(best)[:, None] < counts
    np.put_along_axis(matched, np.take_along_axis(candidates, order, 0), chosen, 0)
    return matched


class Criterion:
    """outputs (head's, aux head's logits (n, p, k + 32)) -> the six losses under their published names.

    A single tensor of logits (a model in eval()) assigns for itself and gives the first three.
    targets: per image a dict with boxes (g, 4) xyxy in input pixels and labels (g,), arrays.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, outputs, targets: list[dict], *, image_size: tuple[int, int]) -> dict:
        heads = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        values = [numpy(head) for head in heads]
        assignment = self.assign(values[-1], targets, image_size)
        positives = self.positives(assignment, targets, image_size)
        qualities = tensor(_quality_map(assignment, positives, self.num_classes))
        count = float(max(np.sum(all_gather([np.count_nonzero(assignment.box)])), 1))
        losses = {}
        for prefix, head, value in zip(("", "aux_"), heads, values):
            losses[f"{prefix}loss_qfl"] = quality_focal(head[:, :, : self.num_classes], qualities) / count
            losses[f"{prefix}loss_bbox"], losses[f"{prefix}loss_dfl"] = self._box_losses(head, value, positives)
        return losses

    def assign(self, output: np.ndarray, targets: list[dict], image_size: tuple[int, int]) -> Assignment:
        """The assignment made by logits (n, p, k + 32): the auxiliary head's while there is one."""
        cells = boxes.priors(tuple(image_size), STRIDES)
        assert output.shape[1:] == (len(cells), self.num_classes + BINS), (
            f"logits are {output.shape[1:]}, {len(cells)} priors and {self.num_classes} classes "
            f"ask for {(len(cells), self.num_classes + BINS)}"
        )
        images = [assign(rows, cells, t["boxes"], t["labels"]) for rows, t in zip(output, targets, strict=True)]
        return Assignment(*(np.stack(column) for column in zip(*images)))

    def positives(self, assignment: Assignment, targets: list[dict], image_size: tuple[int, int]) -> Positives:
        """The assignment's positives, in order of image and prior, with their targets."""
        image, prior = assignment.box.nonzero()
        real = image.size > 0
        if real:
            first = np.cumsum([0] + [len(t["boxes"]) for t in targets])[image]  # of the image, among all boxes
            index = first + assignment.box[image, prior] - 1
            own = np.concatenate([t["boxes"] for t in targets])[index]
            labels = np.concatenate([t["labels"] for t in targets])[index]
        else:
            image, prior, own, labels = np.zeros(1, int), np.zeros(1, int), np.zeros((1, 4)), np.zeros(1, int)
        kind = assignment.quality.dtype
        cells = boxes.priors(tuple(image_size), STRIDES)[prior]
        return Positives(image, prior, real, cells.astype(kind), own.astype(kind), labels)

    def _box_losses(self, head, value: np.ndarray, positives: Positives):
        """GIoU and distribution focal loss, each positive weighted by its own best class score."""
        k, m = self.num_classes, len(positives.image)
        scores = boxes.sigmoid(value[positives.image, positives.prior, :k].max(1)) * positives.real
        weights = scores / scores.dtype.type(max(np.sum(all_gather([scores.sum()])), 1))  # (m,)
        n, p, width = value.shape
        rows = head.reshape(n * p, width)[tensor(positives.image * p + positives.prior)]
        logs = log_softmax(rows[:, k:].reshape(m, 4, REG_MAX + 1), 2)  # (m, 4, 8)
        bins = np.tile(np.arange(REG_MAX + 1, dtype=weights.dtype), (m, 4, 1))
        sides = sum(exp(logs) * tensor(bins), 2) * tensor(np.repeat(positives.cells[:, 2:], 4, 1))
        shares = _distance_shares(positives) * weights[:, None, None]
        return (
            sum(giou_loss(sides, positives.sides()) * tensor(BBOX_WEIGHT * weights)),
            sum(logs * tensor(-DFL_WEIGHT / 4 * shares)),
        )


def _quality_map(assignment: Assignment, positives: Positives, num_classes: int) -> np.ndarray:
    """(n, p, k): the quality at each positive's label, 0 elsewhere."""
    qualities = np.zeros((*assignment.box.shape, num_classes), assignment.quality.dtype)
    at = positives.image, positives.prior
    qualities[(*at, positives.labels)] = assignment.quality[at]
    return qualities


def _distance_shares(positives: Positives) -> np.ndarray:
    """(m, 4, 8): each side's distance in strides, clamped to [0, 6.9], shared by its two neighbouring bins."""
    distances = np.clip(positives.sides() / positives.cells[:, 2:], 0, REG_MAX - 0.1)[:, :, None]
    return np.maximum(1 - np.abs(distances - np.arange(REG_MAX + 1, dtype=distances.dtype)), 0)


def quality_focal(logits, qualities):
    """Sum of BCE(logit, q) |q - sigmoid(logit)|^2; the gradient flows through both factors."""
    distance = qualities - sigmoid(logits)
    return sum(binary_cross_entropy_with_logits(logits, qualities, reduction="none") * distance * distance)


def giou_loss(predicted, target: np.ndarray):
    """(m,) 1 - GIoU of two boxes given by their sides' distances (m, 4) from one common point, left, top, right,
    bottom.

    The point lies inside the predicted box. Distances instead of corners: no slices, hence few kernels in Jittor.
    """
    sides = tensor(target)
    across, down = (
        tensor(np.tile(np.asarray(mask, target.dtype), (len(target), 1))) for mask in ((1, 0, 1, 0), (0, 1, 0, 1))
    )

    def area(distances):  # 0 where the sides are the wrong way round
        return clamp(sum(distances * across, 1), min=0.0) * clamp(sum(distances * down, 1), min=0.0)

    overlap, hull = area(minimum(predicted, sides)), clamp(area(maximum(predicted, sides)), min=EPS)
    union = clamp(area(predicted) + area(sides) - overlap, min=EPS)
    return 2.0 - overlap / union - union / hull


def build(name: str, num_classes: int) -> Criterion:
    return Criterion(num_classes)
