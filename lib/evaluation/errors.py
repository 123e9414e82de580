"""What a detector mistakes for what: the confusion matrix, and kinds of mistakes with what each of them costs.

The kinds are those of TIDE (Bolya et al., ECCV 2020, arXiv 2008.08115). A detection that COCO's matching leaves without
a box is, in this order,
* localisation: on a box of its class, but by less than the IoU that counts;
* class: on a box of another class by that IoU;
* duplicate: on a box of its class that a better detection has;
* background: on no box at all (IoU at most 0.1);
* both: on a box of another class, by less than that IoU.
A box that nothing found is missed, unless a localisation or class mistake lies on it. The cost of a kind is what AP at
that IoU would gain if its mistakes alone were mended: the best localisation or class mistake on an unfound box becomes
a find, the others of its kind and the other kinds' detections go, missed boxes no longer count.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lib.data import boxes
from lib.evaluation.curves import average_precision
from lib.evaluation.table import Matching, Pairs, Table, closest, one_to_one

BACKGROUND = 0.1  # IoU up to which a detection lies on nothing
CORRECT, LOCALISATION, CLASS, DUPLICATE, BACKGROUND_KIND, BOTH, IGNORED = range(7)
KINDS = ("localisation", "class", "duplicate", "background", "both", "missed")
SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}  # areas up to which, as in COCO


@dataclass(frozen=True, eq=False)
class Confusion:
    """How often a box of a class (row) was found as a class (column); the last row and column are the background."""

    classes: tuple[str, ...]
    counts: np.ndarray  # (classes + 1, classes + 1) int64
    iou: float
    threshold: float

    def largest(self, number: int) -> list[tuple[str, str, int]]:
        """The most frequent confusions of one class with another: (annotated, found as, how often)."""
        names, between = self.classes, self.counts[:-1, :-1].copy()
        np.fill_diagonal(between, 0)
        order = np.argsort(-between, axis=None, kind="stable")[:number]
        rows = [(names[i], names[j], int(between[i, j])) for i, j in zip(*np.unravel_index(order, between.shape))]
        return [row for row in rows if row[2]]


@dataclass(frozen=True, eq=False)
class Errors:
    """Mistakes by kind. `counts` are of detections from `threshold` on, and of boxes missed by all of those."""

    counts: dict[str, dict[str, int]]  # kind -> size of the box (of the detection for background) -> number
    cost: dict[str, float]  # kind -> what AP at `iou` would gain without it, over all scores
    ap: float  # at `iou`
    iou: float
    threshold: float


def confusion(held: Table, pairs: Pairs, threshold: float, iou: float = 0.5) -> Confusion:
    """Detections from `threshold` on and boxes paired one to one whatever their class, largest IoU first.

    Of equal IoUs the pair of one class comes first, then the better score. A detection left over that lies on an
    ignored box of its class is not counted.
    """
    truth, found, background = held.truth, held.found, len(held.classes)
    close = (pairs.iou >= iou) & (found.score[pairs.found] >= threshold)
    regular = np.flatnonzero(close & ~truth.ignored[pairs.truth])
    order = regular[np.lexsort((pairs.found[regular], ~pairs.same[regular], -pairs.iou[regular]))]
    chosen = order[one_to_one(pairs.found[order], pairs.truth[order])]
    partner, column = np.full(len(found.score), -1), np.full(len(truth.label), background)
    partner[pairs.found[chosen]] = pairs.truth[chosen]
    column[pairs.truth[chosen]] = found.label[pairs.found[chosen]]
    counts = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(counts, (truth.label[~truth.ignored], column[~truth.ignored]), 1)
    alone = (partner < 0) & (found.score >= threshold)
    alone[pairs.found[close & pairs.same & truth.ignored[pairs.truth]]] = False
    np.add.at(counts, (background, found.label[alone]), 1)
    return Confusion(held.classes, counts, iou, threshold)


def errors(held: Table, pairs: Pairs, matching: Matching, threshold: float, iou: float = 0.5) -> Errors:
    """Kinds of mistakes; `pairs` from IoU BACKGROUND on, `matching` at `iou`."""
    kind, target = _kinds(held, pairs, matching, iou)
    shown = held.found.score >= threshold
    own = boxes.area(held.found.box)
    area = np.where(target >= 0, np.append(held.truth.area, 0)[target], own)  # of the box that each is about
    ap = _ap(held, matching.counts, kind == CORRECT, held.found.label)
    counts, cost = {}, {}
    for index, name in enumerate(KINDS[:-1], LOCALISATION):
        counts[name] = _by_size(area[(kind == index) & shown])
        cost[name] = _mended(held, matching, kind, target, index) - ap
    counts["missed"] = _by_size(held.truth.area[_missed(held, kind, target, shown)])
    missed = _missed(held, kind, target, np.ones(len(kind), bool))
    cost["missed"] = _ap(held, matching.counts, kind == CORRECT, held.found.label, missed) - ap
    return Errors(counts, cost, ap, iou, threshold)


def _kinds(held: Table, pairs: Pairs, matching: Matching, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each detection its kind and the annotated box it is about (−1 for background)."""
    regular, number = ~held.truth.ignored[pairs.truth], len(held.found.score)
    own, own_iou = closest(pairs, regular & pairs.same, number)
    other, other_iou = closest(pairs, regular & ~pairs.same, number)
    conditions = [
        matching.partner >= 0,
        ~matching.counts,
        (own_iou > BACKGROUND) & (own_iou < iou),
        other_iou >= iou,
        own_iou >= iou,
        np.maximum(own_iou, other_iou) <= BACKGROUND,
    ]
    kind = np.select(conditions, [CORRECT, IGNORED, LOCALISATION, CLASS, DUPLICATE, BACKGROUND_KIND], BOTH)
    about = [matching.partner, own, own, other, own, np.full_like(own, -1)]
    return kind, np.select(conditions, about, other)


def _missed(held: Table, kind: np.ndarray, target: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """(n,) whether a box is missed by the detections `shown`."""
    touched = shown & np.isin(kind, (CORRECT, LOCALISATION, CLASS))
    missed = ~held.truth.ignored
    missed[target[touched]] = False
    return missed


def _mended(held: Table, matching: Matching, kind: np.ndarray, target: np.ndarray, index: int) -> float:
    """AP with the mistakes of one kind mended."""
    mistakes = np.flatnonzero(kind == index)
    counts, correct, label = matching.counts.copy(), kind == CORRECT, held.found.label.copy()
    counts[mistakes] = False
    if index in (LOCALISATION, CLASS):
        unfound = np.ones(len(held.truth.label), bool)
        unfound[target[correct]] = False
        candidates = mistakes[unfound[target[mistakes]]]  # best score first
        mended = candidates[np.unique(target[candidates], return_index=True)[1]]
        counts[mended], correct[mended] = True, True
        label[mended] = held.truth.label[target[mended]]
    return _ap(held, counts, correct, label)


def _ap(
    held: Table, counts: np.ndarray, correct: np.ndarray, label: np.ndarray, without: np.ndarray | None = None
) -> float:
    """COCO's AP at one IoU over the classes that have boxes, −1 if none has; boxes `without` are left out."""
    regular = ~held.truth.ignored
    counted = regular if without is None else regular & ~without
    everything, total = (np.bincount(held.truth.label[of], minlength=len(held.classes)) for of in (regular, counted))
    values = [
        average_precision(correct[counts & (label == index)], int(total[index])) if total[index] else 0.0
        for index in np.flatnonzero(everything)
    ]  # a class all of whose boxes are missed had 0 and keeps it
    return float(np.mean(values)) if values else -1.0


def _by_size(area: np.ndarray) -> dict[str, int]:
    rank = np.searchsorted(list(SIZES.values()), area, "right")
    return dict(zip(SIZES, np.bincount(np.minimum(rank, len(SIZES) - 1), minlength=len(SIZES)).tolist()))


def rows(found: Errors) -> list[Mapping[str, object]]:
    """One row per kind: number in all and by size, cost in AP."""
    return [
        {"kind": kind, "number": sum(sizes.values()), **sizes, "AP lost": found.cost[kind]}
        for kind, sizes in found.counts.items()
    ]
