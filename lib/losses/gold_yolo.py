"""Gold-YOLO's criterion: varifocal, box (SIoU or GIoU) and distribution focal losses on one of two assignments.

Follows github.com/huawei-noah/Efficient-Computing, Detection/Gold-YOLO at commit 225ddd2e (varifocal loss: arXiv:2008.13367,
SIoU: arXiv:2205.12740). Deliberate differences:
* assignment and everything without a gradient is NumPy (`gold_yolo_assigners.py`); it computes in float64 as published,
  the losses in the model's precision (published: float64 but for the class loss);
* the class loss starts from logits, not from scores: in float32 the published one loses what lies within 1e-7 of 1.
  Logarithms are -100 at least and have no gradient there, where a score rounds to 1 so is its distance from 1: as published;
* box losses compare the sides' distances from the cell's centre instead of corners;
* SIoU's angle cost cos(2 asin(s) - pi/2) is written 2 s sqrt(1 - s^2), which is the product of both offsets over their
  squared length, whichever is the smaller;
* normalisers and loss weights are part of the NumPy targets, a batch without positives keeps one row at weight 0.

Letters: n images, p cells of all levels, m positives of the batch, k classes, b bins of a side.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lib.alignment.margins import Margins, of_images
from lib.backend import (
    abs,
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
    where,
)
from lib.data import boxes
from lib.models.gold_yolo import STRIDES, VARIANTS
from lib.models.gold_yolo_blocks import dtype_name
from lib.models.gold_yolo_heads import ANCHORS

from .gold_yolo_assigners import (
    TAL_TOP_K,
    Assigned,
    atss,
    background,
    centres,
    fixed,
    task_aligned,
    task_aligned_margins,
)

CLASS_WEIGHT, BOX_WEIGHT, DFL_WEIGHT = 1.0, 2.5, 0.5
FOCAL_WEIGHT = 0.75  # of the background's squared score
NO_LOG = -100.0  # the least a logarithm counts
EPS = 1e-10  # of the box losses


@dataclass(frozen=True)
class Assignment:
    box: np.ndarray  # (n, p) int64: 0 background, j the image's j-th box
    score: np.ndarray  # (n, p) float64: the target of that box's class score; 0 for background


@dataclass(frozen=True)
class Positives:
    """What the losses compare with, for the positives of a batch in order of image and cell (at least one row)."""

    image: np.ndarray  # (m,) int64
    cell: np.ndarray  # (m,) int64
    label: np.ndarray  # (m,) int64
    sides: np.ndarray  # (m, 4) strides from the cell's centre to the box's left, top, right, bottom
    weight: np.ndarray  # (m,) the target score as a part of all target scores; 0 if there are no positives
    real: bool  # False: there are no positives, the one row stands for nothing


class Criterion:
    """outputs (class logits (n, p, k), distances (n, p, 4 * b)) -> the losses under their published names.

    The first atss_epochs epochs (`epoch` is set by the training loop) assign by ATSS; every published configuration has
    none. targets: per image a dict with boxes (g, 4) xyxy in input pixels and labels (g,), arrays.
    A third output, a distilled student's plain sides (n, p, 4), has a box loss of its own on the same positives.
    anchors, top_k: the rows of a branch with several anchors per cell, and how many of them a box takes (0: as usual).
    """

    epoch = 0

    def __init__(
        self, num_classes: int, reg_max: int, iou: str, atss_epochs: int = 0, anchors: int = 1, top_k: int = 0
    ):
        self.num_classes, self.reg_max, self.atss_epochs = num_classes, reg_max, atss_epochs
        self.anchors, self.top_k = anchors, top_k
        self.box_loss = {"siou": siou_loss, "giou": giou_loss}[iou]

    def __call__(self, outputs, targets: list[dict], *, image_size: tuple[int, int]) -> dict:
        return self.losses(outputs, *self.matched(outputs, targets, image_size))

    def matched(self, outputs, targets: list[dict], image_size: tuple[int, int]) -> tuple[Assignment, Positives]:
        """What the outputs are compared with."""
        assignment = self.assign([numpy(output) for output in outputs[:2]], targets, image_size)
        return assignment, self.positives(assignment, targets, image_size)

    def losses(self, outputs, assignment: Assignment, positives: Positives) -> dict:
        """The losses of the outputs, in the outputs' precision."""
        logits, distances, *sides = outputs
        kind = np.dtype(dtype_name(logits))
        losses = dict(zip(("loss_iou", "loss_dfl"), self._box_losses(distances, positives, kind)))
        if sides:
            losses["loss_iou_lrtb"] = self._box_losses(sides[0], positives, kind)[0]
        return losses | {"loss_cls": self._class_loss(logits, assignment, positives, kind)}

    def decisions(self, outputs, targets: list[dict], image_size: tuple[int, int]) -> dict[str, np.ndarray]:
        """The discrete choices behind the losses, (n, p): gt_inds, see Assignment.box, and target_labels, which are k for
        background."""
        box = self.assign([numpy(output) for output in outputs[:2]], targets, image_size).box
        return {
            "gt_inds": box,
            "target_labels": np.stack([self._labels(t)[own] for t, own in zip(targets, box, strict=True)]),
        }

    def _labels(self, target: dict) -> np.ndarray:
        """(1 + g,) the label of no box, which is k, and of each."""
        return np.append(self.num_classes, target["labels"])

    def margins(self, exact, rounded, targets: list[dict], image_size: tuple[int, int]) -> dict[str, Margins]:
        """How far `decisions` are from others: `exact` outputs in float64, `rounded` ones for the noise."""
        cells, runs = (
            self._cells(image_size),
            [[numpy(output) for output in outputs[:2]] for outputs in (exact, rounded)],
        )
        images = [
            self._margins(rows[:2], rows[2:], t, cells) for *rows, t in zip(*runs[0], *runs[1], targets, strict=True)
        ]
        labels = np.unique(np.concatenate([self._labels(t) for t in targets]))
        by_label = [
            np.stack([np.min(floors[:, : len(own)][:, own == label], 1, initial=np.inf) for label in labels], 1)
            for (floors, _), own in zip(images, map(self._labels, targets))
        ]
        by_box = of_images(images)
        return {"gt_inds": by_box, "target_labels": Margins(labels, np.stack(by_label), by_box.noise)}

    def _margins(
        self, exact: list[np.ndarray], rounded: list[np.ndarray], target: dict, cells: np.ndarray
    ) -> tuple[np.ndarray, dict[str, float]]:
        """One image's, from its logits (p, k) and distances (p, 4 * b)."""
        gt_boxes, gt_labels = target["boxes"].astype(np.float64), target["labels"]
        if len(gt_boxes) == 0 or self.epoch < self.atss_epochs:
            return fixed(self._assign(*exact, target, cells).box, len(gt_boxes)), {}
        runs = [(boxes.sigmoid(logits), predicted_boxes(distances, cells)) for logits, distances in (exact, rounded)]
        return task_aligned_margins(*runs, cells, gt_boxes, gt_labels, self.top_k)

    def assign(self, outputs: list[np.ndarray], targets: list[dict], image_size: tuple[int, int]) -> Assignment:
        """The assignment made by outputs (n, p, k) and (n, p, 4 * b) in this epoch."""
        cells = self._cells(image_size)
        expected = (len(cells), self.num_classes), (len(cells), 4 * (self.reg_max + 1))
        given = tuple(output.shape[1:] for output in outputs)
        assert given == expected, (
            f"outputs are {given}; {len(cells)} cells and {self.num_classes} classes ask for {expected}"
        )
        images = [self._assign(*rows, t, cells) for *rows, t in zip(*outputs, targets, strict=True)]
        return Assignment(np.stack([image.box for image in images]), np.stack([image.score for image in images]))

    def _assign(self, logits: np.ndarray, distances: np.ndarray, target: dict, cells: np.ndarray) -> Assigned:
        """One image's assignment from logits (p, k) and distances (p, 4 * b)."""
        gt_boxes, gt_labels = target["boxes"].astype(np.float64), target["labels"]
        if len(gt_boxes) == 0:
            return background(len(cells))
        predicted = predicted_boxes(distances, cells)
        if self.epoch < self.atss_epochs:
            return atss(predicted, cells, gt_boxes)
        return task_aligned(boxes.sigmoid(logits), predicted, cells, gt_boxes, gt_labels, self.top_k)

    def _cells(self, image_size: tuple[int, int]) -> np.ndarray:
        """(p, 3) float64: the corner and side of each row's cell."""
        cells = boxes.priors(tuple(image_size), STRIDES).astype(np.float64)
        return np.concatenate([np.tile(cells[cells[:, 2] == stride], (self.anchors, 1)) for stride in STRIDES])

    def positives(self, assignment: Assignment, targets: list[dict], image_size: tuple[int, int]) -> Positives:
        """The assignment's positives with their targets."""
        image, cell = assignment.box.nonzero()
        if image.size == 0:
            nothing = np.zeros(1, np.int64)
            return Positives(nothing, nothing, nothing, np.ones((1, 4)), np.zeros(1), False)
        first = np.cumsum([0] + [len(t["boxes"]) for t in targets])[image]  # of the image, among all boxes
        index = first + assignment.box[image, cell] - 1
        own, label = (np.concatenate([t[key] for t in targets])[index] for key in ("boxes", "labels"))
        cells = self._cells(image_size)[cell]
        points = centres(cells)
        sides = np.concatenate([points - own[:, :2], own[:, 2:] - points], 1) / cells[:, 2:]
        score = assignment.score[image, cell]
        return Positives(image, cell, label, sides, score / (np.sum(score) or 1), True)

    def _class_loss(self, logits, assignment: Assignment, positives: Positives, kind: np.dtype):
        """Varifocal loss, divided by the sum of all target scores unless that is 0."""
        target = np.zeros((*assignment.box.shape, self.num_classes), kind)
        share = CLASS_WEIGHT / (float(np.sum(assignment.score)) or 1.0)
        focal = np.full_like(target, FOCAL_WEIGHT * share)
        if positives.real:
            at = positives.image, positives.cell, positives.label
            target[at], focal[at] = assignment.score[at[:2]], 0
        return varifocal(logits, tensor(target), tensor(focal), tensor(target * share))

    def _box_losses(self, distances, positives: Positives, kind: np.dtype):
        """(box loss, distribution focal loss), each positive weighted by its target score."""
        n, p, width = distances.shape
        m, bins = len(positives.image), width // 4
        rows = distances.reshape(n * p, width)[tensor(positives.image * p + positives.cell)]  # (m, 4 * b)
        sides = positives.sides.astype(kind)
        weight = positives.weight.astype(kind)
        if bins == 1:
            return sum(self.box_loss(rows, sides) * tensor(BOX_WEIGHT * weight)), tensor(np.zeros((), kind))
        logs = log_softmax(rows.reshape(m, 4, bins), 2)  # (m, 4, b)
        values = np.tile(np.arange(bins, dtype=kind), (m, 4, 1))
        predicted = sum(exp(logs) * tensor(values), 2)
        shares = np.maximum(1 - np.abs(np.clip(sides, 0, self.reg_max - 0.01)[:, :, None] - values), 0)
        return (
            sum(self.box_loss(predicted, sides) * tensor(BOX_WEIGHT * weight)),
            sum(logs * tensor(-DFL_WEIGHT / 4 * shares * weight[:, None, None])),
        )


def predicted_boxes(distances: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Boxes (p, 4) in pixels, float64, from distances (p, 4 * b) and cells (p, 3)."""
    middle = np.concatenate([centres(cells), cells[:, 2:]], 1)
    if distances.shape[1] > 4:
        return boxes.decode(distances, middle)
    sides = distances * cells[:, 2:]
    return np.concatenate([middle[:, :2] - sides[:, :2], middle[:, :2] + sides[:, 2:]], 1)


def varifocal(logits, target, focal, own):
    """Sum of BCE(score, target) * (focal * score^2 + own); the gradient flows through all of it but the constants.

    target, focal, own: (n, p, k). Published, `own` is the target and `focal` 0 where the class is the box's.
    """
    score = sigmoid(logits)
    entropy = binary_cross_entropy_with_logits(clamp(logits, min=NO_LOG), target, reduction="none")
    entropy = where(score < 1, entropy, (1 - target) * -NO_LOG)
    return sum(entropy * (score * score * focal + own))


# ------------------------------------------------------------------------------------------------------ box losses
def siou_loss(predicted, target: np.ndarray):
    """(m,) 1 - SIoU of two boxes given by their sides' distances (m, 4) from one common point: left, top, right, bottom."""
    iou, _, hull, own, other = _compared(predicted, target)
    difference = predicted - tensor(target)
    offset = (difference[:, 2:] - difference[:, :2]) * 0.5 + EPS  # (m, 2) between the centres
    square = offset * offset
    angle = abs(offset[:, 0] * offset[:, 1]) * 2 / sum(square, 1)  # (m,)
    distance = 2 - sum(exp((angle - 2).unsqueeze(1) * (square / (hull * hull))), 1)
    mismatch = 1 - exp(-(abs(own - other) / maximum(own, other)))
    square = mismatch * mismatch
    return 1 - iou + (distance + sum(square * square, 1)) * 0.5


def giou_loss(predicted, target: np.ndarray):
    """(m,) 1 - GIoU of two boxes given by their sides' distances (m, 4) from one common point: left, top, right, bottom."""
    iou, union, hull, _, _ = _compared(predicted, target)
    hull = area(hull) + EPS
    return 1 - iou + (hull - union) / hull


def _compared(predicted, target: np.ndarray):
    """Two boxes' IoU and union (m,), and the extents (m, 2) of their hull, of the first and of the second.

    As published, EPS makes each box a little higher, and the union a little larger.
    """
    sides, slight = tensor(target), np.tile(np.asarray([0, EPS], target.dtype), (len(target), 1))
    own, other = extents(predicted) + tensor(slight), tensor(extents(target) + slight)
    shared = area(clamp(extents(minimum(predicted, sides)), min=0.0))
    union = area(own) + area(other) - shared + EPS
    return shared / union, union, extents(maximum(predicted, sides)), own, other


def extents(sides):
    """(m, 2) widths and heights, 0 or less where sides (m, 4) are the wrong way round."""
    return sides[:, :2] + sides[:, 2:]


def area(extent):
    """(m,) width times height."""
    return extent[:, 0] * extent[:, 1]


class TwoBranches(Criterion):
    """The criterion of a head with an anchor-based branch: the branch has losses of its own, and never distributions."""

    def __init__(self, num_classes: int, reg_max: int, iou: str):
        super().__init__(num_classes, reg_max, iou)
        self.branch = Criterion(num_classes, 0, iou, anchors=len(ANCHORS[0]), top_k=2 * TAL_TOP_K)

    def __call__(self, outputs, targets: list[dict], *, image_size: tuple[int, int]) -> dict:
        losses = super().__call__(outputs[:2], targets, image_size=image_size)
        branch = self.branch(outputs[2:], targets, image_size=image_size)
        return losses | {f"{name}_ab": branch[name] for name in ("loss_iou", "loss_cls")}


def build(name: str, num_classes: int) -> Criterion:
    """The variant's criterion: it decides about distributions and the box loss, its head about a second branch."""
    variant = VARIANTS[name]
    return (TwoBranches if variant.head == "fuse-ab" else Criterion)(num_classes, variant.reg_max, variant.iou)


def named(outputs, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In train() class scores and raw distances, in eval() boxes (centre and size) and scores; the features."""
    found = {f"features/{name}": array for name, array in features.items()}
    if isinstance(outputs, (tuple, list)):
        logits, distances = (numpy(output) for output in outputs[:2])
        return {**found, "scores": boxes.sigmoid(logits), "distances": distances}
    rows = numpy(outputs)
    return {**found, "boxes": rows[:, :, :4], "scores": rows[:, :, 5:]}
