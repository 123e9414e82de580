"""Gold-YOLO's criterion: varifocal, box (SIoU or GIoU) and distribution focal losses on one of two assignments; beside
it the criteria of a head with a second, anchor-based branch and of self-distillation.

Follows github.com/huawei-noah/Efficient-Computing, Detection/Gold-YOLO at commit 225ddd2e (distillation:
loss_distill.py, loss_distill_ns.py; varifocal loss: arXiv:2008.13367, SIoU: arXiv:2205.12740, ATSS: arXiv:1912.02424,
task-aligned assignment: arXiv:2108.07755). Deliberate differences:
* assignment and everything without a gradient is NumPy, in float64 as published, image by image instead of over padded
  batches; the losses compute in the model's precision (published: float64 but for the class loss);
* ties of an assignment go to the first cell; published, they go to any;
* the class loss starts from logits, not from scores: in float32 the published one loses what lies within 1e-7 of 1.
  Logarithms are -100 at least and have no gradient there, as published where a score rounds to 1;
* box losses compare the sides' distances from the cell's centre instead of corners;
* SIoU's angle cost cos(2 asin(s) - pi/2) is written 2 s sqrt(1 - s^2), which is the product of both offsets over their
  squared length, whichever is the smaller;
* normalisers and loss weights are part of the NumPy targets, a batch without positives keeps one row at weight 0;
* of several processes each gives its part of the one loss of all their images; published, each divides by its own
  target scores;
* distillation's terms have names of their own, published they are parts of the class and of the distribution loss; left
  out is the channel-wise term of the neck's maps (--distill_feat), which no published command turns on.

Letters: n images, p cells of all levels, m positives of the batch, k classes, b bins of a side, g boxes of an image.
"""

import math
from dataclasses import dataclass

import numpy as np

from lib.backend import (
    abs,
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
    where,
)
from lib.data import boxes
from lib.errors import UserError
from lib.models.gold_yolo import ANCHORS, STRIDES, VARIANTS, dtype_name

CLASS_WEIGHT, BOX_WEIGHT, DFL_WEIGHT = 1.0, 2.5, 0.5
FOCAL_WEIGHT = 0.75  # of the background's squared score
NO_LOG = -100.0  # the least a logarithm counts
EPS = 1e-10  # of the box losses
ATSS_TOP_K = 9  # candidates of a box on each level
ATSS_SIDE = 5  # of a cell's square, in strides
TAL_TOP_K = 13  # candidates of a box
ASSIGNER_EPS = 1e-9
TEMPERATURE = 20
LAST = 0.01  # of the weight of distillation's terms after the last epoch
# What may be a student, and what its class term weighs; the term of distributions weighs 1.
STUDENTS = {"gold-yolo-n-distill": 1.0, "gold-yolo-s-distill": 1.0, "gold-yolo-m": 0.8, "gold-yolo-l": 2.0}


# ------------------------------------------------------------------------------------------------------ assigners
@dataclass(frozen=True)
class Assignment:
    """Of a batch, or (p,) of one image."""

    box: np.ndarray  # (n, p) int64: 0 background, j the image's j-th box
    score: np.ndarray  # (n, p) float64: the target of that box's class score; 0 for background


def task_aligned(
    scores: np.ndarray,
    predicted: np.ndarray,
    cells: np.ndarray,
    gt_boxes: np.ndarray,
    gt_labels: np.ndarray,
    top_k: int = 0,
) -> Assignment:
    """From scores (p, k), predicted boxes (p, 4) in pixels and cells (p, 3) for gt_boxes (g, 4), g > 0.

    A box takes the top_k (0: TAL_TOP_K) cells of the largest score * IoU^6 and keeps those whose centre it contains;
    there may be cells with metric 0 among them.
    """
    count = top_k or TAL_TOP_K
    overlap, metric = aligned(scores, predicted, gt_boxes, gt_labels)
    inside = contains(gt_boxes, centres(cells))
    eligible = metric * inside
    matched = settle(largest(eligible, count) & inside, overlap)
    metric = metric * matched
    best = (overlap * matched).max(1, keepdims=True)
    score = (metric * best / (metric.max(1, keepdims=True) + ASSIGNER_EPS)).max(0)
    return Assignment(_numbers(matched), score)


def aligned(
    scores: np.ndarray, predicted: np.ndarray, gt_boxes: np.ndarray, gt_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What task-aligned assignment goes by, (g, p) each: the predicted boxes' IoU, and the metric."""
    overlap = iou(gt_boxes, predicted)
    square = overlap * overlap
    return overlap, scores[:, gt_labels].T * (square * square * square)


def atss(predicted: np.ndarray, cells: np.ndarray, gt_boxes: np.ndarray) -> Assignment:
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
    return Assignment(_numbers(matched), (iou(gt_boxes, predicted) * matched).max(0))


def centres(cells: np.ndarray) -> np.ndarray:
    """(p, 2) the middle of each cell in pixels."""
    return cells[:, :2] + cells[:, 2:] / 2


def contains(gt_boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(g, p): the point lies inside the box, by more than ASSIGNER_EPS."""
    x, y = points.T
    left, top, right, bottom = gt_boxes.T[:, :, None]
    return np.minimum(np.minimum(x - left, right - x), np.minimum(y - top, bottom - y)) > ASSIGNER_EPS


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(m, k) intersection over union plus ASSIGNER_EPS; a box whose sides are the wrong way round has no area."""
    (left, top, right, bottom), (x1, y1, x2, y2) = first.T[:, :, None], second.T
    width = np.maximum(np.minimum(right, x2) - np.maximum(left, x1), 0)
    shared = width * np.maximum(np.minimum(bottom, y2) - np.maximum(top, y1), 0)
    own = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    other = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    return shared / (own + other - shared + ASSIGNER_EPS)


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


# ------------------------------------------------------------------------------------------------------ criterion


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

    def assign(self, outputs: list[np.ndarray], targets: list[dict], image_size: tuple[int, int]) -> Assignment:
        """The assignment made by outputs (n, p, k) and (n, p, 4 * b) in this epoch."""
        cells = self.cells(image_size)
        expected = (len(cells), self.num_classes), (len(cells), 4 * (self.reg_max + 1))
        given = tuple(output.shape[1:] for output in outputs)
        assert given == expected, (
            f"outputs are {given}; {len(cells)} cells and {self.num_classes} classes ask for {expected}"
        )
        images = [self.assign_image(*rows, t, cells) for *rows, t in zip(*outputs, targets, strict=True)]
        return Assignment(np.stack([image.box for image in images]), np.stack([image.score for image in images]))

    def assign_image(self, logits: np.ndarray, distances: np.ndarray, target: dict, cells: np.ndarray) -> Assignment:
        """One image's assignment from logits (p, k) and distances (p, 4 * b)."""
        gt_boxes, gt_labels = target["boxes"].astype(np.float64), target["labels"]
        if len(gt_boxes) == 0:
            return Assignment(np.zeros(len(cells), np.int64), np.zeros(len(cells)))
        predicted = predicted_boxes(distances, cells)
        if self.epoch < self.atss_epochs:
            return atss(predicted, cells, gt_boxes)
        return task_aligned(boxes.sigmoid(logits), predicted, cells, gt_boxes, gt_labels, self.top_k)

    def cells(self, image_size: tuple[int, int]) -> np.ndarray:
        """(p, 3) float64: the corner and side of each row's cell."""
        cells = boxes.priors(tuple(image_size), STRIDES).astype(np.float64)
        return np.concatenate([np.tile(cells[cells[:, 2] == stride], (self.anchors, 1)) for stride in STRIDES])

    def positives(self, assignment: Assignment, targets: list[dict], image_size: tuple[int, int]) -> Positives:
        """The assignment's positives with their targets."""
        image, cell = assignment.box.nonzero()
        score = assignment.score[image, cell]
        total = np.sum(all_gather([np.sum(score)]))
        if image.size == 0:
            nothing = np.zeros(1, np.int64)
            return Positives(nothing, nothing, nothing, np.ones((1, 4)), np.zeros(1), False)
        first = np.cumsum([0] + [len(t["boxes"]) for t in targets])[image]  # of the image, among all boxes
        index = first + assignment.box[image, cell] - 1
        own, label = (np.concatenate([t[key] for t in targets])[index] for key in ("boxes", "labels"))
        cells = self.cells(image_size)[cell]
        points = centres(cells)
        sides = np.concatenate([points - own[:, :2], own[:, 2:] - points], 1) / cells[:, 2:]
        return Positives(image, cell, label, sides, score / (total or 1), True)

    def _class_loss(self, logits, assignment: Assignment, positives: Positives, kind: np.dtype):
        """Varifocal loss, divided by the sum of all target scores unless that is 0."""
        target = np.zeros((*assignment.box.shape, self.num_classes), kind)
        share = CLASS_WEIGHT / (float(np.sum(all_gather([np.sum(assignment.score)]))) or 1.0)
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
    """(m,) 1 - SIoU of two boxes given by their left, top, right, bottom sides' distances (m, 4) from one point."""
    iou, _, hull, own, other = _compared(predicted, target)
    difference = tensor(target) - predicted
    offset = (difference[:, 2:] - difference[:, :2]) * 0.5 + EPS  # (m, 2) from the predicted centre to the target's
    square = offset * offset
    angle = abs(offset[:, 0] * offset[:, 1]) * 2 / sum(square, 1)  # (m,)
    distance = 2 - sum(exp((angle - 2).unsqueeze(1) * (square / (hull * hull))), 1)
    mismatch = 1 - exp(-(abs(own - other) / maximum(own, other)))
    square = mismatch * mismatch
    return 1 - iou + (distance + sum(square * square, 1)) * 0.5


def giou_loss(predicted, target: np.ndarray):
    """(m,) 1 - GIoU of two boxes given as for siou_loss."""
    iou, union, hull, _, _ = _compared(predicted, target)
    hull = _area(hull) + EPS
    return 1 - iou + (hull - union) / hull


def _compared(predicted, target: np.ndarray):
    """Two boxes' IoU and union (m,), and the extents (m, 2) of their hull, of the first and of the second.

    As published, EPS makes each box a little higher, and the union a little larger.
    """
    sides, slight = tensor(target), np.tile(np.asarray([0, EPS], target.dtype), (len(target), 1))
    own, other = _extents(predicted) + tensor(slight), tensor(_extents(target) + slight)
    shared = _area(clamp(_extents(minimum(predicted, sides)), min=0.0))
    union = _area(own) + _area(other) - shared + EPS
    return shared / union, union, _extents(maximum(predicted, sides)), own, other


def _extents(sides):
    """(m, 2) widths and heights, 0 or less where sides (m, 4) are the wrong way round."""
    return sides[:, :2] + sides[:, 2:]


def _area(extent):
    return extent[:, 0] * extent[:, 1]


# ------------------------------------------------------------------------------------- second branch, distillation
class TwoBranches(Criterion):
    """The criterion of a head with an anchor-based branch, which has losses of its own and never distributions."""

    def __init__(self, num_classes: int, reg_max: int, iou: str):
        super().__init__(num_classes, reg_max, iou)
        self.branch = Criterion(num_classes, 0, iou, anchors=len(ANCHORS[0]), top_k=2 * TAL_TOP_K)

    def __call__(self, outputs, targets: list[dict], *, image_size: tuple[int, int]) -> dict:
        losses = super().__call__(outputs[:2], targets, image_size=image_size)
        branch = self.branch(outputs[2:], targets, image_size=image_size)
        return losses | {f"{name}_ab": branch[name] for name in ("loss_iou", "loss_cls")}


class Distillation(Criterion):
    """outputs (the student's in train(), the teacher's without gradient) -> Criterion's losses and two more.

    The teacher is the size's model with the anchor-based branch; compared is its part without anchors, class logits
    (n, p, k) and distances (n, p, 4 * b). As published, the softmax of the classes is that of the sigmoids, the class
    term is a sum over the batch that nothing divides, and the teacher computes in train(): with the batch's own
    statistics, and with drop path. epochs: of the run, over which both terms fade from 1 to LAST along half a cosine.
    """

    def __init__(self, num_classes: int, reg_max: int, iou: str, class_share: float, epochs: int):
        super().__init__(num_classes, reg_max, iou)
        self.class_share, self.epochs = class_share, epochs

    def __call__(self, outputs, targets: list[dict], *, image_size: tuple[int, int]) -> dict:
        student, (logits, distances) = outputs
        assignment, positives = self.matched(student, targets, image_size)
        share = fading(self.epoch, self.epochs)
        return self.losses(student, assignment, positives) | {
            "loss_distill_dfl": self._sides(student[1], distances, positives, DFL_WEIGHT * share),
            "loss_distill_cls": divergence(
                sigmoid(student[0]), sigmoid(logits), CLASS_WEIGHT * self.class_share * share
            ),
        }

    def _sides(self, student, teacher, positives: Positives, weight: float):
        """The positives' mean divergence of distributions, times weight; 0 where all target scores are 0."""
        n, p, width = student.shape
        at = tensor(positives.image * p + positives.cell)
        own, other = (rows.reshape(n * p, width)[at].reshape(-1, width // 4) for rows in (student, teacher))  # (4m, b)
        count, shares = np.sum(all_gather([len(positives.image) * positives.real, np.sum(positives.weight)]), 0)
        return divergence(own, other, weight * positives.real * float(shares) / (4 * max(count, 1)))


def fading(epoch: int, epochs: int) -> float:
    """What the two terms weigh in an epoch, from 0."""
    return (1 - math.cos(math.pi * epoch / epochs)) / 2 * (LAST - 1) + 1


def divergence(student, teacher, weight: float):
    """Sum of the Kullback-Leibler divergences of the last axis' softmax at TEMPERATURE, times its square and weight."""
    # As tensors: a Python number in Jittor would be float32 among float64.
    shape, kind = (1,) * len(student.shape), dtype_name(student)
    cool, factor = (tensor(np.full(shape, value, kind)) for value in (1 / TEMPERATURE, TEMPERATURE**2 * weight))
    own, other = (log_softmax(x * cool, len(shape) - 1) for x in (student, teacher))
    return sum(exp(other) * (other - own) * factor)


def teacher(name: str) -> str:
    """The model that teaches `name`; UserError if nothing does."""
    if name not in STUDENTS:
        raise UserError(f"training: {name!r} is no student of a teacher; choose one of {', '.join(STUDENTS)}")
    return f"{name.removesuffix('-distill')}-fuse-ab"


def build_distillation(name: str, num_classes: int, epochs: int) -> Distillation:
    """The criterion of a student in a run of so many epochs."""
    variant = VARIANTS[name]
    return Distillation(num_classes, variant.reg_max, variant.iou, STUDENTS[name], epochs)


def build(name: str, num_classes: int) -> Criterion:
    """The variant's criterion: it decides about distributions and the box loss, its head about a second branch."""
    variant = VARIANTS[name]
    return (TwoBranches if variant.head == "fuse-ab" else Criterion)(num_classes, variant.reg_max, variant.iou)
