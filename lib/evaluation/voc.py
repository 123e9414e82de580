"""Average precision as VOC's development kit defines it: over 11 recalls in 2007, the area under the curve from 2010 on.

Differs from COCO's: a detection is given the box of its class that it overlaps most, taken or not (a second one on the
same box is wrong, even where it would fit another box); what lies on a `difficult` box counts neither way; there is one
IoU, 0.5; and every detection takes part.

Boxes are those of the COCO file. Where VOC's inclusive corners became widths of whole pixels (x2 − x1 + 1), IoUs are
the kit's. Deliberate difference: the 11 recalls are compared as fractions, not as rounded decimals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.evaluation.curves import envelope, precision_recall
from lib.evaluation.table import Pairs, Table, overlaps, table


@dataclass(frozen=True)
class Voc:
    """Average precision by class in 0..1, −1 where there is nothing to find; `mean_*` over the other classes."""

    voc2007: dict[str, float]
    voc2012: dict[str, float]

    @property
    def mean_2007(self) -> float:
        return _mean(self.voc2007)

    @property
    def mean_2012(self) -> float:
        return _mean(self.voc2012)


def evaluate(truth: Mapping, detections: Sequence[Mapping], iou: float = 0.5) -> Voc:
    """Both averages of detections (COCO's result form) that `lib.evaluation.evaluate` has accepted."""
    held = table(truth, detections, per_class=None)
    correct, counts = _judge(held, overlaps(held, iou))
    totals = np.bincount(held.truth.label[~held.truth.ignored], minlength=len(held.classes)).tolist()
    rows = [correct[counts & (held.found.label == label)] for label in range(len(held.classes))]
    return Voc(
        {name: eleven_points(row, total) for name, row, total in zip(held.classes, rows, totals)},
        {name: area(row, total) for name, row, total in zip(held.classes, rows, totals)},
    )


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
    """(m,) whether each detection is correct, and whether it counts."""
    same = held.truth.label[pairs.truth] == held.found.label[pairs.found]
    found, truth, iou = pairs.found[same], pairs.truth[same], pairs.iou[same]
    order = np.lexsort((truth, -iou, found))
    best = order[np.unique(found[order], return_index=True)[1]]  # one pair per detection, best score first
    found, truth = found[best], truth[best]
    correct, counts = np.zeros(len(held.found.score), bool), np.ones(len(held.found.score), bool)
    correct[found[np.unique(truth, return_index=True)[1]]] = True
    aside = found[held.truth.ignored[truth]]
    correct[aside], counts[aside] = False, False
    return correct, counts


def _mean(values: Mapping[str, float]) -> float:
    counted = [value for value in values.values() if value >= 0]
    return float(np.mean(counted)) if counted else -1.0
