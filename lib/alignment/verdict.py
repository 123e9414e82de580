"""Rows and verdicts: how close is right, and what follows from it.

What a model computes is judged by `gate`. Here is what has no moved runs: the margins of decisions, detections, layers
one by one and steps of an optimiser. Their gate is K times a noise floor, which is always measured: what the
reference's own float32 run deviates from its float64 run on the same bytes. No tolerance is a typed constant.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from lib.alignment.compare import Comparison, compare_sets

# A right float32 implementation shows noise of the size of the floor, but with other signs and another order of
# summation. The golden records' README asks for "a small multiple (3 to 5) of that floor"; the upper end, because the
# worst of several hundred tensors is judged.
K = 5
ROUNDING = 2.0**-24  # half a unit in the last place of float32, relative: no float32 run can be held to less
# A float64 run has 29 bits more. Eight of them go to the order of summation: PyTorch's float64 batch norm adds the
# values of a channel one by one, 51,200 of them in a batch of two at 320 pixels, and the rounding of n such sums grows
# like sqrt(n) = 2**7.8 (measured against math.fsum: 2e-15 to 6e-15, ours in Jittor 1e-16). The rest shows any fault
# that float32 noise covers.
FINER = 2.0**-21
FEW = 16  # tensors of fewer elements share one relative floor: the noise of a handful of numbers can be zero by luck

# What people quote as tolerances, relative to the tensor's scale; stated beside each verdict, never judged.
TARGETS = {"forward": 1e-5, "losses": 1e-3, "gradients": 1e-4, "step": 1e-6}


class Verdict(StrEnum):
    """SHOWN: measured and shown, but no gate can be derived for it. UNDERPOWERED: what was measured can't tell.
    NOT COMPARABLE: the records are of runs that nobody may set side by side."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_RUN = "NOT RUN"
    NOT_COMPARABLE = "NOT COMPARABLE"
    SHOWN = "SHOWN"
    UNDERPOWERED = "UNDERPOWERED"


FAILED = (Verdict.FAIL, Verdict.NOT_COMPARABLE)  # nobody may hand in a report of these


@dataclass(frozen=True)
class Reach:
    """How far a tensor may lie from the exact one: the largest deviation, its L2, and the part of it along the exact
    tensor."""

    max_abs: float
    l2: float
    along: float

    @classmethod
    def of(cls, max_abs: float, l2: float) -> "Reach":
        """A noise floor, of which only these are known: no part of a deviation is longer than all of it."""
        return cls(max_abs, l2, l2)

    def times(self, factor: float) -> "Reach":
        return Reach(*(factor * distance for distance in astuple(self)))

    def at_least(self, other: "Reach") -> "Reach":
        return Reach(*map(max, astuple(self), astuple(other)))


METRICS = {"max_abs": "largest deviation", "l2": "L2", "along": "signed error"}  # the distances, in words


@dataclass(frozen=True)
class Row:
    """One judged number. `error`, `reach`, `gate` and `scale` have one unit; `passed` None: shown, not judged."""

    name: str
    what: str  # "every element", "first values", "L2 norm", "mean", "scalar", "decisions", … : what was compared
    error: float
    reach: float  # how far rounding may carry it; a margin's unit
    gate: float
    scale: float  # the reference's size, to make the others relative
    passed: bool | None
    note: str = ""

    @property
    def ratio(self) -> float:
        """error / gate: above 1 fails; a fault has infinity."""
        if np.isnan(self.error) or np.isnan(self.gate):
            return float("inf")
        if self.gate == 0:
            return 0.0 if self.error == 0 else float("inf")
        return self.error / self.gate

    def relative(self, value: float) -> float:
        return value / self.scale if self.scale else 0.0


@dataclass(frozen=True)
class Number:
    """A number that a side's record holds: `ref` as `evidence.pointer` gives it."""

    label: str  # key of the message catalogue
    side: str
    value: Any
    ref: str
    about: str = ""  # what the label leaves open: which COCO number, which batch size


@dataclass(frozen=True)
class Answer:
    """The verdict on one question for one pair; `reason` is a key of the message catalogue, `values` fill it in."""

    question: str
    pair: str  # "published-torch", …
    verdict: Verdict
    reason: str
    values: dict[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    numbers: tuple[Number, ...] = ()
    sources: tuple[str, ...] = ()  # run ids of the records it rests on
    notes: tuple[str, ...] = ()  # names of what was set apart, and why


def least_floor(relative: Iterable[tuple[float, int]]) -> Callable[[int], float]:
    """The least relative floor by a tensor's number of elements, from (relative deviation, elements) of a set of
    tensors.

    One rounding; those of fewer than FEW elements share the largest among them, and at least the median of the set.
    """
    known = list(relative)
    few = [deviation for deviation, elements in known if elements < FEW]
    shared = max(*few, float(np.median([deviation for deviation, _ in known])), ROUNDING) if few else ROUNDING
    return lambda elements: shared if elements < FEW else ROUNDING


def noise_floors(exact: Mapping[str, np.ndarray], rounded: Mapping[str, np.ndarray]) -> dict[str, Reach]:
    """Each tensor's floor from its float64 and float32 run, at least the set's `least_floor`; none for a fault."""
    found = [c for c in compare_sets(exact, rounded, "float32", diagnosed=False) if c.fault is None]
    least = least_floor((c.relative_l2, c.size) for c in found if c.scale_l2 > 0)
    return {
        c.name: Reach.of(c.max_abs, c.l2).at_least(Reach.of(c.scale_max, c.scale_l2).times(least(c.size)))
        for c in found
    }


def gated(
    found: Comparison,
    reach: Reach,
    times: float,
    name: str,
    what: str,
    note: str,
    metric: str = "",
    stored: float = 0.0,
) -> Row:
    """The row of a comparison without a fault: each distance is gated by so many reaches, and by what storing rounds.

    Shown is `metric`, or another that alone fails; "": the worst in gates.
    """
    rows = {}
    for kind, own, scale in zip(METRICS, astuple(reach), (found.scale_max, found.scale_l2, found.scale_l2)):
        error, gate = getattr(found, kind), times * own + stored * scale
        rows[kind] = Row(name, what, error, own, gate, scale, bool(error <= gate), note)
    failing = [kind for kind in rows if not rows[kind].passed]
    if metric:
        shown = metric if metric in failing or not failing else failing[0]
    else:
        shown = max(rows, key=lambda kind: (kind in failing, rows[kind].ratio))
    note += f", by its {METRICS[shown]}" * (shown != (metric or shown))
    return replace(rows[shown], note=f"{note}; {found.diagnosis}" if failing and found.diagnosis else note)


def judge(
    comparisons: Iterable[Comparison], floors: Mapping[str, Reach], metric: str, what: str = "every element"
) -> list[Row]:
    """A row per comparison, gated by K of its noise floors."""
    missing = "no noise floor: the reference has no usable float32 and float64 run of it"
    return [
        fault(found.name, what, found.fault or missing)
        if found.fault or found.name not in floors
        else gated(found, floors[found.name], K, found.name, what, f"worst at {found.worst}", metric)
        for found in comparisons
    ]


def held_to(row: Row, floor: float, **said: str) -> Row:
    """The row with another floor, and what is said of that, where its error is within that gate; else as it is."""
    return replace(row, reach=floor, gate=K * floor, passed=True, **said) if row.error <= K * floor else row


def judge_value(
    name: str, what: str, error: float, reach: float, scale: float, times: float = K, stored: float = 0.0
) -> Row:
    """A row for one number, gated by so many reaches (a noise floor's: K), and by what storing rounds."""
    gate = times * reach + stored * scale
    return Row(name, what, float(error), float(reach), float(gate), float(scale), bool(error <= gate))


def decisions(name: str, differing: int, total: int, note: str = "") -> Row:
    """A row for what must be identical: the number of differences, of `total`."""
    return Row(name, "decisions", float(differing), 0.0, 0.0, float(total), differing == 0, note)


def fault(name: str, what: str, note: str) -> Row:
    """A row that fails whatever the gate."""
    nan = float("nan")
    return Row(name, what, nan, nan, nan, nan, False, note)


def conclude(
    question: str,
    pair: str,
    rows: Sequence[Row],
    sources: Sequence[str],
    *,
    numbers: Sequence[Number] = (),
    notes: Sequence[str] = (),
) -> Answer:
    """PASS when every judged row passes and at least one was judged; SHOWN when none was; FAIL on no rows at all."""
    common = {"rows": tuple(rows), "numbers": tuple(numbers), "sources": tuple(sources), "notes": tuple(notes)}
    judged = [row for row in rows if row.passed is not None]
    failing = [row for row in judged if not row.passed]
    if not rows:
        return Answer(question, pair, Verdict.FAIL, "nothing_compared", **common)
    if not judged:
        return Answer(question, pair, Verdict.SHOWN, "no_gate", {"total": len(rows)}, **common)
    worst = max(failing or judged, key=lambda row: row.ratio)
    said = ("name", "what", "error", "gate", "reach", "ratio", "note")
    values = {"total": len(judged), "failing": len(failing)} | {key: getattr(worst, key) for key in said}
    if failing:
        key = "fault" if np.isnan(worst.error) else "differs" if worst.what == "decisions" else "beyond_gate"
        return Answer(question, pair, Verdict.FAIL, key, values, **common)
    measured = any(row.gate > 0 for row in judged)
    return Answer(question, pair, Verdict.PASS, "within_gate" if measured else "identical", values, **common)


def target_status(row: Row, target: float) -> str:
    """ "met", "missed", or "below rounding" where rounding may carry the number beyond the target."""
    if np.isnan(row.error):
        return "missed"
    if row.relative(row.error) <= target:
        return "met"
    return "below rounding" if row.relative(row.reach) > target else "missed"
