"""Gates and verdicts: how close is right, and what follows from it.

A gate is K times a noise floor, and a noise floor is always measured: what the reference's own float32 run deviates
from its float64 run on the same bytes. No tolerance is a typed constant.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from lib.alignment.compare import Comparison, compare_sets, norm

# A right float32 implementation shows noise of the size of the floor, but with other signs and another order of
# summation. The golden records' README asks for "a small multiple (3 to 5) of that floor"; the upper end, because the
# worst of several hundred tensors is judged.
K = 5
REPEATS = 4  # runs of the reference moved by roundings, where one run is a poor sample of its noise
ROUNDING = 2.0**-24  # half a unit in the last place of float32, relative: no float32 run can be held to less
# A float64 run has 29 bits more. Eight of them go to the order of summation: PyTorch's float64 batch norm adds the
# values of a channel one by one, 51,200 of them in a batch of two at 320 pixels, and the rounding of n such sums grows
# like sqrt(n) = 2**7.8 (measured against math.fsum: 2e-15 to 6e-15, ours in Jittor 1e-16). The rest shows any fault
# that float32 noise covers.
SHARP = 2.0**-21
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
class Noise:
    """A measured floor: largest absolute deviation, and L2 norm of the deviation."""

    max_abs: float
    l2: float

    def times(self, factor: float) -> "Noise":
        return Noise(self.max_abs * factor, self.l2 * factor)

    def plus(self, other: "Noise") -> "Noise":
        return Noise(self.max_abs + other.max_abs, self.l2 + other.l2)

    def at_least(self, other: "Noise") -> "Noise":
        return Noise(max(self.max_abs, other.max_abs), max(self.l2, other.l2))


@dataclass(frozen=True)
class Row:
    """One judged number. `error`, `floor`, `gate` and `scale` have one unit; `passed` None: shown, not judged."""

    name: str
    what: str  # "every element", "first values", "L2 norm", "mean", "scalar", "decisions", … : what was compared
    error: float
    floor: float
    gate: float
    scale: float  # the reference's size, to make error and floor relative
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


def size(array: np.ndarray) -> Noise:
    """The array's largest magnitude and its L2: of a deviation, the floor that it shows."""
    return Noise(float(np.abs(array).max(initial=0.0)), norm(array))


def least_floor(relative: Iterable[tuple[float, int]]) -> Callable[[int], float]:
    """The least relative floor by a tensor's number of elements, from (relative deviation, elements) of a set of
    tensors.

    One rounding; those of fewer than FEW elements share the largest among them, and at least the median of the set.
    """
    known = list(relative)
    few = [deviation for deviation, elements in known if elements < FEW]
    shared = max(*few, float(np.median([deviation for deviation, _ in known])), ROUNDING) if few else ROUNDING
    return lambda elements: shared if elements < FEW else ROUNDING


def noise_floors(exact: Mapping[str, np.ndarray], rounded: Mapping[str, np.ndarray]) -> dict[str, Noise]:
    """Each tensor's floor from its float64 and float32 run, at least the set's `least_floor`; none for a fault."""
    found = [c for c in compare_sets(exact, rounded, "float32", diagnosed=False) if c.fault is None]
    least = least_floor((c.relative_l2, c.size) for c in found if c.scale_l2 > 0)
    return {c.name: Noise(c.max_abs, c.l2).at_least(Noise(c.scale_max, c.scale_l2).times(least(c.size))) for c in found}


def judge(
    comparisons: Iterable[Comparison],
    floors: Mapping[str, Noise],
    metric: str,
    what: str = "every element",
    slack: float = 0.0,
) -> list[Row]:
    """A row per comparison, gated by K floors; `slack` floors are added where the reference is itself a float32 run."""
    rows = []
    for found in comparisons:
        if found.fault or found.name not in floors:
            note = found.fault or "no noise floor: the reference has no usable float32 and float64 run of it"
            rows.append(fault(found.name, what, note))
            continue
        row = gated(found, floors[found.name], found.name, what, f"worst at {found.worst}", metric, K + slack)
        explained = not row.passed and found.diagnosis
        rows.append(replace(row, note=f"{row.note}; {found.diagnosis}") if explained else row)
    return rows


def gated(
    found: Comparison, floor: Noise, name: str, what: str, note: str, metric: str | None = None, k: float = K
) -> Row:
    """The row of a comparison without a fault: its largest deviation and its L2 are both gated by `k` floors.

    Shown is `metric` ("max_abs" or "l2"), or the other where that alone fails; None: the worse of the two in gates.
    """
    pairs = {"max_abs": (found.max_abs, floor.max_abs, found.scale_max), "l2": (found.l2, floor.l2, found.scale_l2)}
    rows = {
        kind: Row(name, what, error, base, k * base, scale, bool(error <= k * base), note)
        for kind, (error, base, scale) in pairs.items()
    }
    if metric and (not rows[metric].passed or all(row.passed for row in rows.values())):
        return rows[metric]
    worse = max(rows, key=lambda kind: (not rows[kind].passed, rows[kind].ratio))
    return replace(rows[worse], note=note + ", by its L2" * (worse == "l2" and metric is not None))


def held_to(row: Row, floor: float, **said: str) -> Row:
    """The row with another floor, and what is said of that, where its error is within that gate; else as it is."""
    return replace(row, floor=floor, gate=K * floor, passed=True, **said) if row.error <= K * floor else row


def judge_value(name: str, what: str, error: float, floor: float, scale: float, slack: float = 0.0) -> Row:
    """A row for one number; `slack` as in `judge`."""
    gate = (K + slack) * floor
    return Row(name, what, float(error), float(floor), float(gate), float(scale), bool(error <= gate))


Scalars = Mapping[str, Mapping[str, float]]  # precision -> name -> value; records write NaN as a string


def judge_scalars(
    theirs: Scalars, ours: Scalars, factor: float, repeats: Sequence[Mapping[str, float]] = (), exactly: bool = False
) -> list[Row]:
    """Rows for named scalars: the candidate's float32 run against the reference's (`exactly`: its float64 run), and its
    float64 run, where it has one, against the reference's, by floors that are `factor` times as wide.

    The floor is shared, as for any few numbers: the largest relative deviation among them, and among those of
    `repeats`, other runs like the reference's float32 one.
    """
    exact = {name: float(value) for name, value in theirs["float64"].items()}
    deviations = [
        abs(float(run[n]) - exact[n]) / abs(exact[n])
        for run in [theirs["float32"], *repeats]
        for n in exact
        if n in run and exact[n]
    ]
    shared = max([*deviations, ROUNDING])
    rows = _scalars(theirs["float64" if exactly else "float32"], ours["float32"], shared, "scalar")
    double = ours.get("float64")
    return rows + _scalars(exact, double, factor * shared, "scalar, float64") if double else rows


def _scalars(reference: Mapping[str, float], candidate: Mapping[str, float], floor: float, what: str) -> list[Row]:
    """A row each; floor: relative."""
    rows = []
    for name in [*reference, *(n for n in candidate if n not in reference)]:
        if name not in candidate or name not in reference:
            rows.append(fault(name, what, "missing" if name in reference else "left over"))
            continue
        value = float(reference[name])
        rows.append(judge_value(name, what, abs(float(candidate[name]) - value), floor * abs(value), abs(value)))
    return rows


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
    said = ("name", "what", "error", "gate", "floor", "ratio", "note")
    values = {"total": len(judged), "failing": len(failing)} | {key: getattr(worst, key) for key in said}
    if failing:
        key = "fault" if np.isnan(worst.error) else "differs" if worst.what == "decisions" else "beyond_gate"
        return Answer(question, pair, Verdict.FAIL, key, values, **common)
    measured = any(row.gate > 0 for row in judged)
    return Answer(question, pair, Verdict.PASS, "within_gate" if measured else "identical", values, **common)


def target_status(row: Row, target: float) -> str:
    """ "met", "missed", or "below rounding" where the noise floor itself lies above the target."""
    if np.isnan(row.error):
        return "missed"
    if row.relative(row.error) <= target:
        return "met"
    return "below rounding" if row.relative(row.floor) > target else "missed"
