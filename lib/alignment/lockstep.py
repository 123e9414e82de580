"""Two training runs side by side, step by step: which quantity of which parameter leaves its noise first.

Within a step the quantities stand in the order in which one causes the next: gradients, clipped gradients, learning
rates, moments, parameters, batch-norm statistics, average. The reference ran in float32 and in float64 from the same
bytes; a tensor's floor is the L2 of what its float32 deviates, and |norm(a) - norm(b)| <= norm(a - b). A gate is K
floors wide: the optimiser's own rule, not the moved runs' (`gate`). On the same gradients both precisions are judged.
On a training's own gradients float64 is, where both sides have it: behind an activation that flips within rounding
float32 jumps, and what float32 does to a gradient is the question "gradients". Noise grows from step to step: where the
reference's own two runs part by HORIZON of a typical gradient, rounding decides what follows, and from that step on
differences are shown but not judged.
`lib.alignment.steps` records.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lib.alignment.compare import compare_sets
from lib.alignment.trajectory import HORIZON
from lib.alignment.verdict import FEW, FINER, ROUNDING, Row, fault, judge, judge_value, noise_floors

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Step:
    """One quantity of one step, the worst of its tensors first."""

    step: int
    kind: str
    precision: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed is not False for row in self.rows)


@dataclass(frozen=True)
class Lockstep:
    """All steps in causal order."""

    steps: tuple[Step, ...]
    faults: tuple[Row, ...]

    def first(self) -> Step | None:
        """The first quantity beyond its gate."""
        return next((step for step in self.steps if not step.passed), None)

    def rows(self) -> list[Row]:
        """One row for each step, quantity and precision: its worst tensor."""
        return [*self.faults, *(step.rows[0] for step in self.steps)]


def side_by_side(
    reference: Mapping[str, Any],
    candidate: Mapping[str, Any],
    arrays: tuple[Arrays, Arrays] = ({}, {}),
    first: int = 0,
) -> Lockstep:
    """Judge the candidate's fields against the reference's; arrays: their selected tensors.

    first: the schedule's number of the first step.
    """
    faults = [*_groups(reference["groups"], candidate["groups"]), *_kinds(reference["sizes"], candidate["sizes"])]
    ours, theirs = reference["steps"], candidate["steps"]
    if not ours or len(ours) != len(theirs):
        faults.append(fault("steps", "lock-step", f"{len(theirs)} steps where the reference has {len(ours)}"))
    if "float64" not in reference["precisions"]:
        faults.append(fault("steps", "lock-step", "no noise floor: the reference has no float64 run"))
        return Lockstep((), tuple(faults))
    zero: set[str] = set()
    steps, horizon = [], first + _horizon(ours)
    for number, (mine, other) in enumerate(zip(ours, theirs), first):
        zero |= _true_zeros(mine)
        own_gradients = mine["norms"]["float64"].get("loss")  # of gradients fed there is no loss
        for kind, precision in itertools.product(mine["norms"]["float64"], other["norms"]):
            rows = [
                *_norms(number, kind, precision, mine, other, reference["sizes"], zero),
                *_tensors(number, kind, precision, arrays, zero),
            ]
            if number >= horizon:
                rows = [_shown(row, "beyond the horizon: the reference's own runs part here") for row in rows]
            elif own_gradients and precision == "float32":
                rows = [_shown(row, "judged in float64: a flipped activation makes it jump") for row in rows]
            if rows:
                steps.append(Step(number, kind, precision, tuple(sorted(rows, key=_severity))))
    return Lockstep(tuple(steps), tuple(faults))


def _relative(line: Mapping, kind: str) -> list[float]:
    """How far the norms of the reference's float32 tensors of a kind lie from the exact ones that are not zero."""
    noise = line["noise"][kind]
    return [
        float(noise[name]) / abs(float(value)) for name, value in line["norms"]["float64"][kind].items() if float(value)
    ]


def _horizon(lines: Sequence[Mapping]) -> int:
    """The first step at which the reference's float32 gradients lie HORIZON from its float64 ones, in the median."""
    parted = (i for i, line in enumerate(lines) if np.median(_relative(line, "gradient") or [0.0]) >= HORIZON)
    return next(parted, len(lines))


def _shown(row: Row, note: str) -> Row:
    """The row without its gate's word; faults (NaN, a missing tensor) and what must be equal (a rate) stay judged."""
    return replace(row, passed=None, note=note) if row.gate > 0 else row


def _severity(row: Row) -> tuple:
    return row.passed is not False, row.passed is None, -row.ratio


def _norms(
    number: int, kind: str, precision: str, mine: Mapping, other: Mapping, sizes: Mapping, zero: set[str]
) -> Iterator[Row]:
    """A row per tensor: its norm against the reference's exact one."""
    noise, relative = mine["noise"][kind], _relative(mine, kind)
    found = {name: float(value) for name, value in other["norms"][precision].get(kind, {}).items()}
    # Losses are few numbers and share the largest; small tensors the median, as many are noise.
    typical = float((np.max if kind == "loss" else np.median)(relative)) if relative else 0.0
    what = f"norm of the {kind.replace('_', ' ')}, {precision}"
    for name, value in mine["norms"]["float64"][kind].items():
        label = f"step {number}: {name}"
        if not np.isfinite(found.get(name, np.nan)):
            yield fault(label, what, f"{found[name]}" if name in found else "missing")
            continue
        scale, error = abs(float(value)), abs(found[name] - float(value))
        # A handful of numbers can agree by luck; what is counted or set has no noise and is exact.
        counted = not float(noise[name]) and kind in ("learning_rate", "schedule", "step")
        counted = counted or name.endswith("num_batches_tracked")
        least = 0.0 if counted else max(ROUNDING, typical if sizes[kind].get(name, FEW) < FEW else 0.0)
        floor = max(float(noise[name]), least * scale)
        row = judge_value(label, what, error, floor * (FINER if precision == "float64" else 1.0), scale)
        yield replace(row, passed=None, note="true gradient zero: only noise moves it") if name in zero else row


def _tensors(number: int, kind: str, precision: str, arrays: tuple[Arrays, Arrays], zero: set[str]) -> list[Row]:
    """A row per selected tensor, element by element."""

    def of(side: Arrays, run: str) -> dict[str, np.ndarray]:
        start = f"{run}/{number}/{kind}/"
        named = {name.removeprefix(start): array for name, array in side.items() if name.startswith(start)}
        return {name: array for name, array in named.items() if array.dtype.kind == "f" and name not in zero}

    exact = of(arrays[0], "float64")
    if not exact:
        return []
    floors = noise_floors(exact, {name: array for name, array in of(arrays[0], "float32").items() if name in exact})
    floors = {name: floor.times(FINER if precision == "float64" else 1.0) for name, floor in floors.items()}
    found = compare_sets(exact, of(arrays[1], precision), precision)
    rows = judge(found, floors, "l2", f"every element of the {kind}, {precision}")
    return [replace(row, name=f"step {number}: {row.name}") for row in rows]


def _true_zeros(line: Mapping[str, Any]) -> set[str]:
    """Parameters whose float32 gradient is all noise, which AdamW, dividing by its size, turns into steps."""
    exact, noise = line["norms"]["float64"]["gradient"], line["noise"]["gradient"]
    return {name for name, value in exact.items() if float(noise[name]) > abs(float(value))}


def _groups(ours: Mapping[str, list], theirs: Mapping[str, list]) -> Iterator[Row]:
    """A failing row per parameter that is treated otherwise."""
    words = ("learning-rate factor", "decay", "warm-up start")
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        said = "" if name in theirs else "not updated by the candidate"
        if name not in ours:
            said = "updated by the candidate alone"
        elif name in theirs:
            pairs = zip(words, ours[name], theirs[name])
            said = "; ".join(f"{word} {b} where the reference has {a}" for word, a, b in pairs if a != b)
        if said:
            yield fault(name, "parameter group", said)


def _kinds(ours: Mapping[str, Mapping[str, int]], theirs: Mapping[str, Mapping[str, int]]) -> Iterator[Row]:
    """A failing row per tensor that one side alone has, or has in another size."""
    a, b = (
        {f"{kind}/{name}": np.array(size) for kind, sizes in side.items() for name, size in sizes.items()}
        for side in (ours, theirs)
    )
    for found in compare_sets(a, b):
        if found.fault or found.differing:
            yield fault(
                found.name, "state", found.fault or f"{b[found.name]} elements where {a[found.name]} are expected"
            )
