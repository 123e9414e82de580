"""Discrete decisions of two sides: which differ, and whether rounding may have flipped them.

The margin of a flipped decision is the smallest error that explains it: how far every score (cost, IoU, value) would have
to move for the other choice. It is computed from the reference's exact scores. A flip is legal only where its margin is
below the floor, the measured noise of one such score.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.alignment.verdict import Row, fault
from lib.boxes import iou


@dataclass(frozen=True)
class Flip:
    """One decision taken otherwise."""

    where: tuple[int, ...]  # which decision
    reference: str  # what the reference chose
    candidate: str
    margin: float
    floor: float

    @property
    def legal(self) -> bool:
        """NaN is never below a floor."""
        return bool(self.margin < self.floor)


@dataclass(frozen=True)
class Decisions:
    """All decisions of one kind."""

    name: str
    total: int
    flips: tuple[Flip, ...]
    fault: str | None = None  # why they can't be compared

    def row(self) -> Row:
        """Passes where every flip is legal; the note names the worst flip."""
        if self.fault or not self.total:
            return fault(self.name, "decisions", self.fault or "empty comparison: no decision was taken")
        illegal = [flip for flip in self.flips if not flip.legal]
        legal = len(self.flips) - len(illegal)
        note = f"{legal} flipped within rounding" if legal else ""
        if illegal:
            worst = max(illegal, key=lambda flip: flip.margin if flip.margin == flip.margin else np.inf)
            note = (f"at {worst.where}: {worst.reference} became {worst.candidate}, margin {worst.margin:.3g}, "
                    f"floor {worst.floor:.3g}; {len(illegal)} such, {legal} within rounding")  # fmt: skip
        return Row(self.name, "decisions", float(len(illegal)), 0.0, 0.0, float(self.total), not illegal, note)


def choices(name: str, reference: np.ndarray, candidate: np.ndarray, margin: np.ndarray, floor: np.ndarray | float) -> Decisions:
    """Decisions with one chosen id each (a class, a box, kept or not); margin, floor: of their shape, or one floor for all."""
    reference, candidate = np.asarray(reference), np.asarray(candidate)
    if why := _incomparable(reference, candidate, np.asarray(margin)):
        return Decisions(name, reference.size, (), why)
    floors = np.broadcast_to(np.asarray(floor, float), reference.shape)
    flips = [Flip(tuple(map(int, at)), str(reference[*at]), str(candidate[*at]), float(margin[*at]), float(floors[*at]))
             for at in np.argwhere(reference != candidate)]
    return Decisions(name, reference.size, tuple(flips))


def argmax(name: str, scores: np.ndarray, reference: np.ndarray, candidate: np.ndarray, floor: float) -> Decisions:
    """The largest along the last axis of scores (…, n); both sides' choices have shape (…)."""
    if why := _out_of_range(candidate, scores.shape[-1]) or _unusable(scores):
        return Decisions(name, int(np.size(reference)), (), why)
    first, second = (np.take_along_axis(scores, np.asarray(ids)[..., None], -1)[..., 0] for ids in (reference, candidate))
    # Two scores meet where each moves half the way.
    return choices(name, reference, candidate, (first - second) / 2, floor)


def threshold(name: str, values: np.ndarray, limit: float, reference: np.ndarray, candidate: np.ndarray, floor: float) -> Decisions:
    """Which values pass the limit: booleans of the values' shape."""
    return choices(name, reference, candidate, np.abs(values - limit), floor)


def topk(name: str, scores: np.ndarray, reference: np.ndarray, candidate: np.ndarray, floor: float) -> Decisions:
    """The k best of each row: scores (rows, n), ids (rows, k) in any order. One decision per chosen id.

    One that was dropped has lost to each that came in: its margin is half the largest of these gaps.
    """
    if why := _incomparable(reference, candidate) or _out_of_range(candidate, scores.shape[1]) or _unusable(scores):
        return Decisions(name, int(np.size(reference)), (), why)
    flips = []
    for row, (ours, theirs) in enumerate(zip(reference, candidate, strict=True)):
        if len(set(theirs.tolist())) < len(theirs):
            return Decisions(name, reference.size, (), f"row {row}: an id is chosen twice")
        dropped, entered = np.setdiff1d(ours, theirs), np.setdiff1d(theirs, ours)
        if not len(dropped):
            continue
        least = entered[np.argmin(scores[row, entered])]
        gaps = scores[row, dropped] - scores[row, least]
        flips += [Flip((row, int(out)), str(out), str(least), float(gap) / 2, floor) for out, gap in zip(dropped, gaps)]
    return Decisions(name, reference.size, tuple(flips))


def matching(name: str, cost: np.ndarray, reference: np.ndarray, candidate: np.ndarray, floor: float) -> Decisions:
    """A matching of least cost: cost (n, m), the column of each row (n,) or −1. One decision per row.

    The candidate's matching is at most as dear as the reference's on its own costs. So errors explain it where each of the
    entries in which the two differ may move by the gap over their number.
    """
    if why := _incomparable(reference, candidate) or _out_of_range(candidate, cost.shape[1], -1) or _unusable(cost):
        return Decisions(name, int(np.size(reference)), (), why)
    taken = candidate[candidate >= 0]
    if len(set(taken.tolist())) < len(taken) or len(taken) != np.count_nonzero(reference >= 0):
        return Decisions(name, reference.size, (), "not one to one, or another number of pairs")
    changed = np.flatnonzero(reference != candidate)
    entries = [(row, ids[row], sign) for ids, sign in ((reference, -1), (candidate, 1)) for row in changed if ids[row] >= 0]
    gap = sum(sign * cost[row, column] for row, column, sign in entries)
    margin = float(gap) / max(len(entries), 1)
    flips = [Flip((int(row),), str(reference[row]), str(candidate[row]), margin, floor) for row in changed]
    return Decisions(name, reference.size, tuple(flips))


def suppression(name: str, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, limit: float,
                reference: np.ndarray, candidate: np.ndarray, floors: Mapping[str, float]) -> Decisions:  # fmt: skip
    """Boxes that NMS keeps: boxes (n, 4) xyxy, scores, labels (n,), kept (n,) bool on both sides; floors: "iou", "score".

    A box's margin, in floors, is its nearest way to another fate: an overlap of its class about to pass the limit, or a
    better score about to change places with its own. One whose better neighbour flipped follows that flip.
    """
    if why := _incomparable(reference, candidate) or _unusable(scores) or _unusable(boxes):
        return Decisions(name, int(np.size(reference)), (), why)
    overlap = np.where(labels[:, None] == labels[None], iou(boxes, boxes), 0.0)
    np.fill_diagonal(overlap, 0.0)
    gap = np.abs(scores[:, None] - scores[None]) / 2
    near = np.minimum(np.abs(overlap - limit) / floors["iou"], np.where(overlap > limit, gap / floors["score"], np.inf))
    near[overlap == 0] = np.inf
    margin = near.min(1)
    flipped = reference != candidate
    for box in np.argsort(-scores, kind="stable"):
        causes = flipped & (overlap[box] > limit) & (scores > scores[box])
        if flipped[box] and causes.any():
            margin[box] = min(margin[box], margin[causes].min())
    fate = np.array(["dropped", "kept"])
    return choices(name, fate[reference.astype(int)], fate[candidate.astype(int)], margin, 1.0)


def _incomparable(reference: np.ndarray, candidate: np.ndarray, *others: np.ndarray) -> str | None:
    for array in (candidate, *others):
        if np.shape(array) != np.shape(reference):
            return f"shape {np.shape(array)} where the reference has {np.shape(reference)}"
    return None


def _out_of_range(ids: np.ndarray, count: int, least: int = 0) -> str | None:
    wrong = np.asarray(ids)[(np.asarray(ids) < least) | (np.asarray(ids) >= count)]
    return f"id {wrong[0]} of {count}" if wrong.size else None


def _unusable(scores: np.ndarray) -> str | None:
    bad = np.argwhere(~np.isfinite(scores))
    return f"{scores[*bad[0]]} in the reference's scores at {tuple(map(int, bad[0]))}" if len(bad) else None


def listing(held: Sequence[Decisions]) -> list[dict]:
    """Every flip of every kind as a table's rows, illegal ones first, then by margin."""
    rows = [{"decision": kind.name, "where": list(flip.where), "reference": flip.reference, "candidate": flip.candidate,
             "margin": flip.margin, "floor": flip.floor, "legal": flip.legal} for kind in held for flip in kind.flips]
    return sorted(rows, key=lambda row: (row["legal"], -row["margin"]))
