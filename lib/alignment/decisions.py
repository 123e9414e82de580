"""Discrete decisions of two sides: which differ, and whether rounding may have flipped them.

A flip's margin says how far the scores behind it would have to move for it, from the reference's exact scores, in
floors: multiples of their measured noise (lib.alignment.margins). A flip is legal only where its margin is below the
gate, K floors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lib.alignment.compare import compare
from lib.alignment.margins import Margins
from lib.alignment.verdict import K, Row, fault

FLIP = "flipped decision"  # what a row of one flip says it is


@dataclass(frozen=True)
class Flip:
    where: tuple[int, ...]  # which decision
    reference: str  # what the reference chose
    candidate: str
    margin: float  # floors
    follows: bool = False  # it is excused by another flip, whose margin this is

    @property
    def legal(self) -> bool:
        """NaN is below no gate."""
        return bool(self.margin <= K)


@dataclass(frozen=True)
class Decisions:
    name: str
    total: int
    flips: tuple[Flip, ...]
    fault: str | None = None  # why they can't be compared
    nearest: float = float("nan")  # the smallest margin of any to become another, in floors; NaN: nobody measured it
    within: int = 0  # decisions with a margin below the gate
    astray: tuple[float, ...] = ()  # per image (the first axis) how far the farthest choice is from the exact one

    @property
    def illegal(self) -> list[Flip]:
        """The flips that rounding does not excuse."""
        return [flip for flip in self.flips if not flip.legal]

    def rows(self) -> list[Row]:
        """One for all, which passes where every flip is legal and names the worst, and one for each flip."""
        if self.fault or not self.total:
            return [fault(self.name, "decisions", self.fault or "empty comparison: no decision was taken")]
        note = ""
        if self.illegal:
            worst = max(self.illegal, key=lambda flip: np.nan_to_num(flip.margin, nan=np.inf))
            how = f"margin {worst.margin:.4g} floors" if not np.isnan(self.nearest) else "no exact scores on record"
            note = f"flipped at {worst.where}: {worst.reference} → {worst.candidate}, {how}"
        whole = Row(
            self.name, "decisions", float(len(self.illegal)), 0.0, 0.0, float(self.total), not self.illegal, note
        )
        return [whole, *(self._row(flip) for flip in self.flips)]

    def _row(self, flip: Flip) -> Row:
        note = "after an earlier flip: " * flip.follows + f"{flip.reference} → {flip.candidate}"
        return Row(f"{self.name} at {flip.where}", FLIP, flip.margin, 1.0, float(K), 0.0, flip.legal, note)


def judge(
    name: str,
    reference: np.ndarray,
    candidate: np.ndarray,
    margins: Margins | None = None,
    before: Decisions | None = None,
) -> Decisions:
    """Choices of two sides of the same shape; without margins no flip is legal.

    A flip's margin is that of the choice that is farther from the exact one. before: of what both chose from here;
    where a decision of it flipped, in the same image (the first axis), that flip's margin counts, if it is smaller.
    """
    if why := compare(name, reference, candidate).fault or (margins and _unusable(reference, margins)):
        return Decisions(name, np.size(reference), (), why)
    places = [tuple(map(int, at)) for at in np.argwhere(reference != candidate)]
    if margins is None:
        return Decisions(
            name, reference.size, tuple(Flip(at, str(reference[at]), str(candidate[at]), np.inf) for at in places)
        )
    ordered, far = np.sort(margins.floors, -1), np.maximum(_of(margins, reference), _of(margins, candidate))
    nearest = ordered[..., 1] if ordered.shape[-1] > 1 else np.full(reference.shape, np.inf)
    flips = []
    for at in places:
        earlier = _earlier(before, at[0])
        flips.append(
            Flip(at, str(reference[at]), str(candidate[at]), min(float(far[at]), earlier), bool(earlier < far[at]))
        )
    astray = tuple(float(one.max(initial=0.0)) for one in far)
    return Decisions(
        name, reference.size, tuple(flips), None, float(nearest.min()), int(np.count_nonzero(nearest <= K)), astray
    )


def _of(margins: Margins, chosen: np.ndarray) -> np.ndarray:
    """The margin of each choice; infinite for what could not be chosen."""
    own = margins.options == chosen[..., None]
    return np.where(own.any(-1), np.where(own, margins.floors, 0).sum(-1), np.inf)


def _earlier(before: Decisions | None, image: int) -> float:
    """The largest margin of what was chosen otherwise before in this image, as all must be excused; inf: nothing."""
    if before is None:
        return np.inf
    found = [flip.margin for flip in before.flips if flip.where[0] == image]
    found += [before.astray[image]] if before.astray and before.astray[image] > 0 else []
    return max(found, default=np.inf)


def _unusable(reference: np.ndarray, margins: Margins) -> str | None:
    expected = (*reference.shape, len(margins.options))
    if margins.floors.shape != expected:
        return f"margins of shape {margins.floors.shape} where {expected} is expected"
    if np.isnan(margins.floors).any():
        return "NaN in the reference's margins"
    return None


def nearness(held: Sequence[Decisions]) -> dict[str, Any]:
    """How near to a toss-up the decisions are that have margins; empty where none has."""
    measured = [kind for kind in held if kind.fault is None and not np.isnan(kind.nearest)]
    if not measured:
        return {}
    nearest = min(measured, key=lambda kind: kind.nearest)
    return {
        "decisions": sum(kind.total for kind in measured),
        "flipped": sum(len(kind.flips) for kind in measured),
        "within": sum(kind.within for kind in measured),
        "nearest": nearest.nearest,
        "nearest_name": nearest.name,
    }


def restored(name: str, arrays: Mapping[str, np.ndarray]) -> Margins | None:
    """The margins that a record holds of a choice, as `capture` writes them; None where it holds none."""
    return Margins(arrays[f"option/{name}"], arrays[f"margin/{name}"]) if f"margin/{name}" in arrays else None


def farthest(margins: Margins, chosen: np.ndarray) -> float:
    """How far the farthest of these choices is from the exact one, in floors."""
    return float(_of(margins, chosen).max(initial=0.0))


def excuse(rows: Sequence[Row], behind: Callable[[Row], str]) -> list[Row]:
    """Rows of what is computed from decisions: behind a legal flip float32 results differ by more than their noise.

    Such a row is shown, not judged, where the float64 run of the same name, which no rounding flips, passes. behind: of
    a row, the kind of decision that flipped legally, "" where none did.
    """
    doubles = [row for row in rows if "float64" in row.what]
    sound = {row.name for row in doubles} - {row.name for row in doubles if not row.passed}
    return [
        replace(row, passed=None, note=f"behind a legal flip of {flipped}")
        if row.passed is False and "float64" not in row.what and row.name in sound and (flipped := behind(row))
        else row
        for row in rows
    ]


def legal_flip(held: Sequence[Decisions], beginning: str) -> str:
    """The kind of decision, its name so beginning, that flipped, where all that flipped did so legally; else "".

    Results are compared with exact ones: one that both sides take otherwise than exact scores do has flipped too.
    """
    behind = [k for k in held if k.name.startswith(beginning) and (k.flips or k.fault or max(k.astray, default=0.0))]
    legal = not any(kind.fault or kind.illegal or max(kind.astray, default=0.0) > K for kind in behind)
    return behind[0].name if behind and legal else ""
