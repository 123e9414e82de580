"""RT-DETR's denoising queries (arXiv:2203.03605, contrastive): noised copies of the targets that training must mend.

All of it is NumPy: nothing here has a gradient. Also the form of the targets that model and criterion share.

Letters: n images, g boxes of an image, s slots (the largest g of the batch), q queries, k classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.errors import UserError
from lib.models.rt_detr_layers import BLOCKED, EPS

QUERIES = 100  # about as many denoising queries of each sign as this, if the boxes of an image fit
LABEL_NOISE = 0.5  # half of this share of the labels is drawn anew
BOX_NOISE = 1.0  # largest move of a side, in halves of the box's extent; a negative moves by one to two times that


@dataclass(frozen=True)
class Truth:
    """An image's targets in the form that losses and denoising use."""

    labels: np.ndarray  # (g,) int64
    boxes: np.ndarray  # (g, 4) float64: centre, width and height in parts of the image


@dataclass(frozen=True)
class Denoising:
    """The denoising queries of a batch: `groups` times s positives and s negatives, which come before all others."""

    labels: np.ndarray  # (n, 2 s groups) int64 after noise; k where an image has fewer than s boxes
    boxes: np.ndarray  # (n, 2 s groups, 4) float64 after noise, logits of centre, width, height
    positives: tuple[np.ndarray, ...]  # per image (g * groups,) places of its positives, in order of the boxes
    groups: int

    def blocks(self, others: int) -> np.ndarray:
        """(t, t) what is added to attention scores of the t queries, `others` of them ordinary: 0 or BLOCKED.

        An ordinary query sees no denoising query, and those see only their own group and the ordinary ones.
        """
        count = self.labels.shape[1]
        group = np.concatenate([np.repeat(np.arange(self.groups), count // self.groups), np.full(others, -1)])
        return np.where((group[None] >= 0) & (group[:, None] != group[None]), BLOCKED, 0.0)

    def meta(self, others: int) -> dict:
        """The published description of the denoising queries in front of `others` ordinary ones."""
        return {
            "dn_positive_idx": self.positives,
            "dn_num_group": self.groups,
            "dn_num_split": (self.labels.shape[1], others),
        }


def corners(boxes: np.ndarray) -> np.ndarray:
    """Centre, width, height (…, 4) -> x1, y1, x2, y2."""
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def truths(targets: Sequence[Mapping[str, np.ndarray]], image_size: tuple[int, int], num_classes: int) -> list[Truth]:
    """Targets with boxes xyxy in pixels of the network input (height, width) -> Truth per image.

    A box may reach out of the image and may have no area. UserError for one that is turned round or not finite, and
    for a label that is no class.
    """
    return [
        _truth(
            index,
            np.asarray(target["boxes"], np.float64).reshape(-1, 4),
            np.asarray(target["labels"], np.int64),
            image_size,
            num_classes,
        )
        for index, target in enumerate(targets)
    ]


def _truth(index: int, boxes: np.ndarray, labels: np.ndarray, image_size: tuple[int, int], num_classes: int) -> Truth:
    bad = ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1))
    if bad.any():
        raise UserError(
            f"targets: image {index} of the batch has the box {boxes[bad][0].tolist()}, which is not "
            "x1 <= x2, y1 <= y2 in finite numbers; correct or remove it in the annotations"
        )
    if ((labels < 0) | (labels >= num_classes)).any():
        raise UserError(
            f"targets: image {index} of the batch has labels {sorted(set(labels.tolist()))}, the model knows "
            f"0 to {num_classes - 1}; build it with as many classes as the data set has"
        )
    height, width = image_size
    centre, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return Truth(labels, np.concatenate([centre, extent], 1) / np.asarray([width, height, width, height], np.float64))


def denoising(targets: list[Truth], num_classes: int, random: np.random.Generator | None) -> Denoising | None:
    """The denoising queries of a batch; None without a generator or without any box.

    Drawn from `random` in this order: one number in [0, 1) per query for whether its label changes, its new label,
    four signs per query, four numbers in [0, 1) per query for the size of the moves.
    """
    slots = max((len(truth.labels) for truth in targets), default=0)
    if random is None or slots == 0:
        return None
    groups = max(1, QUERIES // slots)
    labels, boxes = np.full((len(targets), slots), num_classes), np.zeros((len(targets), slots, 4))
    for image, truth in enumerate(targets):
        labels[image, : len(truth.labels)], boxes[image, : len(truth.labels)] = truth.labels, truth.boxes
    labels, boxes = np.tile(labels, (1, 2 * groups)), np.tile(boxes, (1, 2 * groups, 1))
    negative = np.tile(np.repeat([False, True], slots), groups)
    return Denoising(
        _noised_labels(labels, num_classes, random),
        _noised_boxes(boxes, negative, random),
        tuple(np.flatnonzero((row < num_classes) & ~negative) for row in labels),
        groups,
    )


def _noised_labels(labels: np.ndarray, num_classes: int, random: np.random.Generator) -> np.ndarray:
    changes = random.random(labels.shape, np.float32) < LABEL_NOISE / 2
    new = random.integers(0, num_classes, labels.shape)
    return np.where(changes & (labels < num_classes), new, labels)


def _noised_boxes(boxes: np.ndarray, negative: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each corner moved by up to half the extent, for a negative by half to all of it; clipped to the image; logits."""
    signs = 2.0 * random.integers(0, 2, boxes.shape) - 1
    reach = random.random(boxes.shape, np.float32).astype(np.float64) + negative[None, :, None]
    moved = corners(boxes) + BOX_NOISE * signs * reach * np.tile(boxes[:, :, 2:] / 2, 2)
    low, high = np.split(np.clip(moved, 0, 1), 2, 2)
    noised = np.clip(np.concatenate([(low + high) / 2, high - low], 2), 0, 1)
    return np.log(np.maximum(noised, EPS) / np.maximum(1 - noised, EPS))
