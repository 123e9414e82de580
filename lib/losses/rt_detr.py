"""RT-DETR's criterion: varifocal loss, L1 and GIoU of matched queries, for every decoder layer, the encoder's selection
and the denoising queries; before it the matcher: which query stands for which box, by the cheapest assignment.

Follows github.com/lyuwenyu/RT-DETR, rtdetr_pytorch, at commit 068dfde (varifocal loss: arXiv:2008.13367).
Deliberate differences:
* matching and everything without a gradient (targets, IoUs, weights) is NumPy;
* normalisers and loss weights are part of the NumPy weights;
* a batch without a pair keeps one at weight 0, which gives the published zero loss and zero gradient;
* of several processes each gives its part of the one loss of all their images: published, the number of boxes that they
  have on average, by which each divides, is at least 1;
* two boxes without area have IoU 0, where the published code divides 0 by 0.

Boxes are centre, width, height as parts of the image. Letters: n images, q queries, k classes, g boxes of an image,
m pairs of the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts come when asked for: optimize takes 0.3 s, which only RT-DETR's matcher needs

from lib.backend import (
    abs,
    all_gather,
    binary_cross_entropy_with_logits,
    clamp,
    maximum,
    minimum,
    numpy,
    sum,
    sync,
    tensor,
)
from lib.data import boxes as geometry
from lib.errors import UserError
from lib.models.rt_detr import Truth, corners, truths

CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0
COST_ALPHA = 0.25  # focal weight of an object in the class cost
ALPHA = 0.75  # varifocal weight of what is no object
BOX_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
TINY = 1e-12  # floor of the areas that IoU divides by, in parts of the image: only two boxes without area reach it


# -------------------------------------------------------------------------------------------------------- matcher
@dataclass(frozen=True)
class Matching:
    """An image's pairs; there are as many as the smaller of q and g."""

    queries: np.ndarray  # (m,) int64, rising
    boxes: np.ndarray  # (m,) int64


def match(prediction: Mapping, true: Sequence[Truth]) -> list[Matching]:
    """Per image the assignment of predictions to boxes with the smallest total cost."""
    rows = zip(*values(prediction), true, strict=True)
    return [
        Matching(*scipy.optimize.linear_sum_assignment(costs(logits, boxes, t.labels, t.boxes)))
        for logits, boxes, t in rows
    ]


def costs(logits: np.ndarray, boxes: np.ndarray, labels: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
    """(q, g) what it costs to let a query stand for a box, from an image's predictions (q, k), (q, 4) and boxes (g,),
    (g, 4). UserError if a prediction is not finite."""
    if not (np.isfinite(logits).all() and np.isfinite(boxes).all()):
        raise UserError(
            "training: the predictions hold NaN or infinity, so boxes can't be matched to them; lower the "
            "learning rate or look for broken images"
        )
    chance, gt_boxes = geometry.sigmoid(logits[:, labels]), gt_boxes.astype(boxes.dtype)
    present = COST_ALPHA * (1 - chance) ** 2 * -np.log(chance + 1e-8)
    absent = (1 - COST_ALPHA) * chance**2 * -np.log(1 - chance + 1e-8)
    distance = np.abs(boxes[:, None] - gt_boxes[None]).sum(2)
    return CLASS_COST * (present - absent) + BOX_COST * distance - GIOU_COST * giou(boxes[:, None], gt_boxes[None])


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
    (low, high), (other_low, other_high) = ((one[..., :2], one[..., 2:]) for one in (first, second))
    overlap = _area(np.maximum(np.minimum(high, other_high) - np.maximum(low, other_low), 0))
    hull = _area(np.maximum(high, other_high) - np.minimum(low, other_low))
    union = _area(high - low) + _area(other_high - other_low) - overlap
    return overlap, np.maximum(union, TINY), np.maximum(hull, TINY)


def _area(extent):
    return extent[..., 0] * extent[..., 1]


# ------------------------------------------------------------------------------------------------------ criterion
@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch (at least one row): a query, and the label and box it stands for."""

    image: np.ndarray  # (m,) int64
    query: np.ndarray  # (m,) int64
    labels: np.ndarray  # (m,) int64
    boxes: np.ndarray  # (m, 4) centre, width, height as parts of the image
    weight: float  # of each pair, 1 over the number of boxes of all images, which is at least 1
    real: bool  # False: there are no pairs, the one row stands for nothing


class Criterion:
    """outputs of RTDETR -> its losses under their published names, weights inside: their plain sum is minimised.

    loss_vfl, loss_bbox and loss_giou of the last layer; with the suffix _aux_i of an earlier layer and, the last i, of
    the encoder's selection; with _dn_i of layer i's denoising queries. Each but the last has a matching of its own.
    targets: per image a dict with boxes (g, 4) xyxy in input pixels and labels (g,), arrays.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, outputs: Mapping, targets: Sequence[Mapping], *, image_size: tuple[int, int]) -> dict:
        true, losses = truths(targets, image_size, self.num_classes), {}
        sync()  # one run of the pending graph: reading the predictions one by one would compile other kernels
        for suffix, prediction in ordinary(outputs).items():
            losses |= self._losses(suffix, prediction, pairs(match(prediction, true), true, 1))
        for index, prediction in enumerate(outputs.get("dn_aux_outputs", ())):
            losses |= self._losses(f"_dn_{index}", prediction, denoised(outputs["dn_meta"], true))
        return losses

    def _losses(self, suffix: str, prediction: Mapping, paired: Pairs) -> dict:
        logits, boxes = values(prediction)
        n, q, _ = boxes.shape
        own = boxes[paired.image, paired.query]  # (m, 4)
        rows = prediction["pred_boxes"].reshape(n * q, 4)[tensor(paired.image * q + paired.query)]
        true = paired.boxes.astype(boxes.dtype)
        shares, weights = _varifocal_targets(logits, paired, iou(own, true))
        l1 = abs(rows - tensor(true)) * tensor(np.full_like(own, BOX_WEIGHT * paired.weight * paired.real))
        giou = giou_loss(rows, true) * tensor(np.full_like(own[:, 0], GIOU_WEIGHT * paired.weight * paired.real))
        entropy = binary_cross_entropy_with_logits(prediction["pred_logits"], tensor(shares), reduction="none")
        return {
            f"loss_vfl{suffix}": sum(entropy * tensor(weights)),
            f"loss_bbox{suffix}": sum(l1),
            f"loss_giou{suffix}": sum(giou),
        }


def ordinary(outputs: Mapping) -> dict[str, Mapping]:
    """Suffix of the losses' names -> prediction, for all that is matched; denoising queries are in none of them."""
    return {"": outputs, **{f"_aux_{index}": aux for index, aux in enumerate(outputs.get("aux_outputs", ()))}}


def values(prediction: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Class logits (n, q, k) and boxes (n, q, 4) as arrays."""
    return numpy(prediction["pred_logits"]), numpy(prediction["pred_boxes"])


def pairs(matchings: Sequence[Matching], true: Sequence[Truth], groups: int) -> Pairs:
    """The images' pairs in one list; their losses are shared by `groups` times as many as the batch has boxes."""
    image = np.repeat(np.arange(len(matchings)), [len(m.queries) for m in matchings])
    weight = 1 / max(groups * int(np.sum(all_gather([len(np.concatenate([t.labels for t in true]))]))), 1)
    if image.size == 0:
        return Pairs(np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), np.zeros((1, 4)), weight, False)
    return Pairs(
        image,
        np.concatenate([m.queries for m in matchings]),
        np.concatenate([t.labels[m.boxes] for m, t in zip(matchings, true)]),
        np.concatenate([t.boxes[m.boxes] for m, t in zip(matchings, true)]),
        weight,
        True,
    )


def denoised(meta: Mapping, true: Sequence[Truth]) -> Pairs:
    """The fixed pairs of the denoising queries: in each group the positives stand for the image's boxes, in order."""
    groups = meta["dn_num_group"]
    fixed = [
        Matching(queries, np.tile(np.arange(len(t.labels)), groups))
        for queries, t in zip(meta["dn_positive_idx"], true, strict=True)
    ]
    return pairs(fixed, true, groups)


def _varifocal_targets(logits: np.ndarray, paired: Pairs, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, q, k) targets and weights of the entropy: at a pair's label its IoU is both, elsewhere there is no object."""
    targets, weights = np.zeros_like(logits), geometry.sigmoid(logits) ** 2 * (ALPHA * paired.weight)
    if paired.real:
        at = paired.image, paired.query, paired.labels
        targets[at], weights[at] = quality, quality * paired.weight
    return targets, weights


def giou_loss(predicted, true: np.ndarray):
    """(m,) 1 - GIoU of boxes (m, 4), centre, width, height."""
    true = corners(true)
    true_low, true_high = tensor(true[:, :2]), tensor(true[:, 2:])
    half = predicted[:, 2:] * 0.5
    low, high = predicted[:, :2] - half, predicted[:, :2] + half
    overlap = _area(clamp(minimum(high, true_high) - maximum(low, true_low), min=0.0))
    hull = clamp(_area(maximum(high, true_high) - minimum(low, true_low)), min=TINY)
    union = clamp(_area(high - low) + _area(true_high - true_low) - overlap, min=TINY)
    return 2.0 - overlap / union - union / hull


def build(name: str, num_classes: int) -> Criterion:
    return Criterion(num_classes)
