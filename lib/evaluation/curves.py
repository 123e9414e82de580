"""Precision over recall: COCO's curves and averages as pycocotools computes them, the score threshold at which a
detector works best, and VOC's average precision as its development kit defines it.

VOC's is taken over 11 recalls in 2007, as the area under the curve from 2010 on. It differs from COCO's: a detection is
given the box of its class that it overlaps most, taken or not (a second one on the same box is wrong, even where it
would fit another box); what lies on a `difficult` box counts neither way; there is one IoU, 0.5; and every detection
takes part. Boxes are those of the COCO file. Where VOC's inclusive corners became widths of whole pixels (x2 − x1 + 1),
IoUs are the kit's. Deliberate difference: the 11 recalls are compared as fractions, not as rounded decimals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.evaluation.table import Matching, Pairs, Table, closest, overlaps, table


@dataclass(frozen=True, eq=False)
class Curves:
    """pycocotools' arrays for all areas and 100 detections; −1 where a class has nothing to find."""

    classes: tuple[str, ...]
    iou: np.ndarray  # (10,) .50 … .95
    recall: np.ndarray  # (101,) 0 … 1
    precision: np.ndarray  # (10, 101, classes) at that recall or beyond
    score: np.ndarray  # (10, 101, classes) at which that recall is reached

    def at(self, iou: float) -> np.ndarray:
        """(101, classes) precision at one of the ten IoUs. ValueError for another."""
        index = np.flatnonzero(np.isclose(self.iou, iou))
        if not index.size:
            raise ValueError(f"IoU {iou} is none of {', '.join(f'{value:.2f}' for value in self.iou)}")
        return self.precision[index[0]]

    def mean(self, iou: float) -> np.ndarray:
        """(101,) precision at one of the ten IoUs, over the classes that have boxes; empty if none has."""
        chosen = self.at(iou)
        chosen = chosen[:, chosen[0] > -1]
        return chosen.mean(1) if chosen.size else np.zeros(0)

    def points(self) -> dict[str, Sequence]:
        """Columns of a table with a row for each class that has boxes, IoU and recall."""
        c, i, r = np.nonzero((self.precision > -1).transpose(2, 0, 1))
        iou, recall = ([f"{value:.2f}" for value in values] for values in (self.iou[i], self.recall[r]))
        at = {"class": np.array(self.classes, object)[c], "IoU": iou, "recall": recall}
        return at | {"precision": self.precision[i, r, c], "score": self.score[i, r, c]}


@dataclass(frozen=True)
class Best:
    """A detector at the score threshold of its highest F1: detections with at least that score count."""

    threshold: float  # NaN where nothing was found or there is nothing to find
    precision: float
    recall: float
    f1: float
    correct: int
    wrong: int
    missed: int


def best_thresholds(held: Table, matching: Matching) -> dict[str, Best]:
    """The best threshold of each class, after that of all classes together ("all")."""
    total = np.bincount(held.truth.label[~held.truth.ignored], minlength=len(held.classes))
    of = [(name, held.found.label == index, total[index]) for index, name in enumerate(held.classes)]
    found = {}
    for name, own, boxes in (("all", True, total.sum()), *of):
        counted = matching.counts & own
        found[name] = _best(held.found.score[counted], matching.partner[counted] >= 0, int(boxes))
    return found


def precision_recall(correct: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """(precision, recall) after each detection, best score first, of `total` boxes."""
    hits = np.cumsum(correct)
    return hits / np.arange(1, len(hits) + 1), hits / total


def envelope(precision: Sequence[float]) -> np.ndarray:
    """The highest precision at that recall or beyond."""
    return np.maximum.accumulate(np.asarray(precision)[::-1])[::-1]


def at_recalls(correct: np.ndarray, total: int) -> np.ndarray:
    """(101,) COCO's: the envelope at recalls 0, .01 … 1, 0 beyond the last one reached; −1 where there is nothing to
    find."""
    if not total:
        return np.full(101, -1.0)
    precision, recall = precision_recall(correct, total)
    return np.append(envelope(precision), 0.0)[np.searchsorted(recall, np.linspace(0, 1, 101), "left")]


def average_precision(correct: np.ndarray, total: int) -> float:
    """The mean of the precision `at_recalls`; −1 where there is nothing to find."""
    return float(at_recalls(correct, total).mean())


def _best(score: np.ndarray, correct: np.ndarray, total: int) -> Best:
    """Only where the score falls can a threshold cut: equal scores stay together."""
    cuts = np.flatnonzero(np.append(score[1:] < score[:-1], True)) if len(score) else np.zeros(0, np.int64)
    hits = np.cumsum(correct)[cuts]
    f1 = 2 * hits / (cuts + 1 + total)
    if not total or not hits.any():
        return Best(float("nan"), 0.0, 0.0, 0.0, 0, 0, total)
    best = int(np.argmax(f1))
    right, number, threshold = int(hits[best]), int(cuts[best]) + 1, float(score[cuts[best]])
    return Best(threshold, right / number, right / total, float(f1[best]), right, number - right, total - right)


@dataclass(frozen=True)
class Voc:
    """Average precision by class in 0..1, −1 where there is nothing to find; `mean_*` over the other classes."""

    voc2007: dict[str, float]
    voc2012: dict[str, float]
    mean_2007: float
    mean_2012: float


def voc(truth: Mapping, detections: Sequence[Mapping], iou: float = 0.5) -> Voc:
    """Both averages of detections (COCO's result form) that `lib.evaluation.evaluate` has accepted."""
    held = table(truth, detections, per_class=None)
    correct, counts = _judge(held, overlaps(held, iou))
    totals = np.bincount(held.truth.label[~held.truth.ignored], minlength=len(held.classes)).tolist()
    rows = [correct[counts & (held.found.label == label)] for label in range(len(held.classes))]
    by_class = [[average(row, total) for row, total in zip(rows, totals)] for average in (eleven_points, area)]
    means = [float(np.mean([value for value in values if value >= 0] or [-1.0])) for values in by_class]
    return Voc(*(dict(zip(held.classes, values)) for values in by_class), *means)


def eleven_points(correct: np.ndarray, total: int) -> float:
    """Mean of the highest precision at recall k/10 or beyond, k = 0 … 10; `correct` best score first."""
    if not total:
        return -1.0
    hits, (precision, _) = np.cumsum(correct), precision_recall(correct, total)
    return float(np.mean([precision[10 * hits >= k * total].max(initial=0.0) for k in range(11)]))


def area(correct: np.ndarray, total: int) -> float:
    """Area under the highest precision at each recall or beyond; `correct` best score first."""
    if not total:
        return -1.0
    precision, _ = precision_recall(correct, total)
    return float((envelope(precision) * correct).sum() / total)  # recall grows by 1 / total at each correct one


def _judge(held: Table, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(m,) whether each detection is correct by VOC's rule, and whether it counts."""
    box, _ = closest(pairs, pairs.same, len(held.found.score))
    found = np.flatnonzero(box >= 0)  # best score first
    first = found[np.unique(box[found], return_index=True)[1]]
    counts = ~np.append(held.truth.ignored, False)[box]
    correct = np.zeros(len(box), bool)
    correct[first] = counts[first]
    return correct, counts
