"""Precision over recall as pycocotools computes it, and the score threshold at which a detector works best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.evaluation.table import Matching, Table


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
    label, total = held.found.label, np.bincount(held.truth.label[~held.truth.ignored], minlength=len(held.classes))
    counted, correct = matching.counts, matching.partner >= 0
    found = {"all": _best(held.found.score[counted], correct[counted], int(total.sum()))}
    for index, name in enumerate(held.classes):
        own = counted & (label == index)
        found[name] = _best(held.found.score[own], correct[own], int(total[index]))
    return found


def precision_recall(correct: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """(precision, recall) after each detection, best score first, of `total` boxes."""
    hits = np.cumsum(correct)
    return hits / np.arange(1, len(hits) + 1), hits / total


def envelope(precision: Sequence[float]) -> np.ndarray:
    """The highest precision at that recall or beyond."""
    return np.maximum.accumulate(np.asarray(precision)[::-1])[::-1]


def average_precision(correct: np.ndarray, total: int) -> float:
    """COCO's: the mean of the envelope at 101 recalls; −1 where there is nothing to find."""
    if not total:
        return -1.0
    precision, recall = precision_recall(correct, total)
    at = np.searchsorted(recall, np.linspace(0, 1, 101), "left")
    return float(np.append(envelope(precision), 0.0)[at].mean())


def _best(score: np.ndarray, correct: np.ndarray, total: int) -> Best:
    """Only where the score falls can a threshold cut: equal scores stay together."""
    cuts = np.flatnonzero(np.append(score[1:] < score[:-1], True)) if len(score) else np.zeros(0, np.int64)
    hits = np.cumsum(correct)[cuts]
    f1 = 2 * hits / (cuts + 1 + total)
    if not total or not hits.any():
        return Best(float("nan"), 0.0, 0.0, 0.0, 0, 0, total)
    best = int(np.argmax(f1))
    right, number = int(hits[best]), int(cuts[best]) + 1
    return Best(
        float(score[cuts[best]]), right / number, right / total, float(f1[best]), right, number - right, total - right
    )
