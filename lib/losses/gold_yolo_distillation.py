"""Gold-YOLO's self-distillation: a student learns the boxes, and from what a trained model of its own size predicts.

Follows github.com/huawei-noah/Efficient-Computing, Detection/Gold-YOLO at commit 225ddd2e (loss_distill.py, loss_distill_ns.py).
The teacher is the size's model with the anchor-based branch, of which the part without anchors is compared. As published,
the softmax of the classes is that of the sigmoids, the class term is a sum over the batch that nothing divides, and the
teacher computes in train(): with the batch's own statistics, and with drop path. Left out is the channel-wise term of the
neck's maps (--distill_feat), which no published command turns on. Deliberate differences: see `gold_yolo.py`; the terms have
names of their own, published they are parts of the class and of the distribution loss.

Letters: n images, p cells of all levels, m positives of the batch, k classes, b bins of a side.
"""

import math

import numpy as np

from lib.backend import exp, log_softmax, sigmoid, sum, tensor
from lib.errors import UserError
from lib.models.gold_yolo import VARIANTS
from lib.models.gold_yolo_blocks import dtype_name

from .gold_yolo import CLASS_WEIGHT, DFL_WEIGHT, Criterion, Positives

TEMPERATURE = 20
LAST = 0.01  # of the weight of both terms after the last epoch
# What may be a student, and what its class term weighs; the term of distributions weighs 1.
STUDENTS = {"gold-yolo-n-distill": 1.0, "gold-yolo-s-distill": 1.0, "gold-yolo-m": 0.8, "gold-yolo-l": 2.0}


class Distillation(Criterion):
    """outputs (the student's in train(), the teacher's without gradient) -> Criterion's losses and two more.

    The teacher's are class logits (n, p, k) and distances (n, p, 4 * b). epochs: of the whole run, over which the two
    terms fade from 1 to LAST along half a cosine.
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
        return divergence(own, other, weight * float(np.sum(positives.weight)) / (4 * len(positives.image)))


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


def build(name: str, num_classes: int, epochs: int) -> Distillation:
    """The criterion of a student in a run of so many epochs."""
    variant = VARIANTS[name]
    return Distillation(num_classes, variant.reg_max, variant.iou, STUDENTS[name], epochs)
