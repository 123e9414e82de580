"""What data goes through, stage by stage: the first stage at which two sides differ is named, and by how much.

A stage is a name and arrays: the decoded image, each augmentation, the batch, the targets. Arrays are equal by hash, or,
where a tolerance in the array's own units is stated for the stage, by their largest difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lib.alignment.compare import compare_sets
from lib.alignment.store import digest
from lib.alignment.verdict import Row, fault


@dataclass(frozen=True, eq=False)
class Stage:
    """One station of one sample; `arrays` may be absent where only hashes were kept."""

    name: str
    digests: Mapping[str, str]  # array -> SHA-256 of type, shape and bytes
    arrays: Mapping[str, np.ndarray] | None = None


def stage(name: str, arrays: Mapping[str, np.ndarray], keep: bool = True) -> Stage:
    """The stage of these arrays, with copies of them or only their hashes."""
    held = {key: np.array(array, order="C") for key, array in arrays.items()}
    return Stage(name, {key: digest(array) for key, array in held.items()}, held if keep else None)


def compare(
    reference: Sequence[Stage], candidate: Sequence[Stage], tolerances: Mapping[str, float] | None = None
) -> list[Row]:
    """A row per stage up to the first that differs, which fails; the later ones, which inherit it, are shown."""
    tolerances = dict(tolerances or {})
    if not reference:
        return [fault("(nothing)", "data", "empty comparison: the reference has no stage")]
    rows: list[Row] = []
    names = [held.name for held in reference], [held.name for held in candidate]
    if names[0] != names[1]:
        at = next((i for i, pair in enumerate(zip(*names)) if pair[0] != pair[1]), min(map(len, names)))
        there, here = (side[at] if at < len(side) else "the end" for side in names)
        rows.append(
            fault(
                there if at < len(names[0]) else here, "data", f"stage {at} is {here} where the reference has {there}"
            )
        )
    first = None
    for ours, theirs in zip(reference, candidate):
        if ours.name != theirs.name:
            break
        for row in _stage(ours, theirs, tolerances.get(ours.name, 0.0)):
            if first is None or row.passed:
                rows.append(row)
            else:
                rows.append(replace(row, passed=None, note=f"behind {first}; {row.note}"))
        if first is None and any(row.passed is False for row in rows):
            first = ours.name
    return rows


def first_difference(rows: Sequence[Row]) -> str | None:
    """ "stage: array" of the first failing row."""
    return next((row.name for row in rows if row.passed is False), None)


def _stage(ours: Stage, theirs: Stage, tolerance: float) -> list[Row]:
    if not ours.digests and not theirs.digests:
        return [fault(ours.name, "data", "no elements")]
    rows = []
    for key in [*ours.digests, *(key for key in theirs.digests if key not in ours.digests)]:
        name = f"{ours.name}: {key}"
        if ours.digests.get(key) == theirs.digests.get(key):
            rows.append(Row(name, "bytes", 0.0, 0.0, tolerance, 1.0, True, "equal"))
        elif ours.arrays is None or theirs.arrays is None:
            missing = "" if key in ours.digests and key in theirs.digests else ": only one side has it"
            rows.append(fault(name, "bytes", f"other bytes{missing}"))
        else:
            kept = ({key: side.arrays[key]} if key in side.arrays else {} for side in (ours, theirs))
            [found] = compare_sets(*kept)
            if found.fault:
                rows.append(fault(name, "values", found.fault))
            else:
                note = f"worst at {found.worst}, {found.differing} of {found.size} differ"
                within = bool(found.max_abs <= tolerance)
                rows.append(Row(name, "values", found.max_abs, tolerance, tolerance, found.scale_max, within, note))
    return rows
