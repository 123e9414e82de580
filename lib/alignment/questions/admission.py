"""What two records must be before a question is asked of what they say.

Of one run each: one source, seed, data, libraries and case, or they are not comparable. Right in themselves: what
follows from the rest of a record does. And two: float32 runs of two frameworks differ in nearly every tensor, and what
they measure as their rounding noise is of one size.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from lib.alignment import derived, gate
from lib.alignment.evidence import SIDES, Evidence
from lib.alignment.verdict import Answer, K, Verdict
from lib.record import VERSIONED, Record

# What the stages were asked for, where both records say it.
ASKED = ("case", "images", "classes", "size", "batch", "steps", "score_threshold", "max_detections")
ASKED += ("threads", "rounds", "seconds_per_turn")
# Where rounding shows in so many elements of a tensor, two frameworks that round otherwise agree in all of them by
# chance as often as 64 coins show heads. Tensors without rounding (inputs, zeros, what is selected) may well be equal;
# so may those of a first layer that both compute in one order: therefore more than half of all tensors.
NOISY = 64
# Two right runs measure noise of one size: a gate has K of it for what is left to chance, and so may each side.
APART = K * K
# Judged by the reach of moved runs, the largest of several, about two deviations, that round K times as much.
MOVED = ("forward", "losses", "gradients", "batch_norm")

Refusal = tuple[Verdict, str, dict[str, Any]]  # what becomes of every question, why, and what the sentence names


def refused(evidence: Evidence, stage: str, a: str, b: str) -> Refusal | None:
    """Why nothing is asked of the records of two sides, or None."""
    records = [evidence.get(side, stage) for side in (a, b)]
    for name, first, second in _told(*records):
        if first != second:
            if isinstance(first, list) and isinstance(second, list):
                pairs = zip_longest(first, second, fillvalue="nothing")
                first, second = next((one, other) for one, other in pairs if one != other)
            values = {"name": name, "first_value": str(first), "second_value": str(second)}
            return Verdict.NOT_COMPARABLE, "not_comparable", values
    for side in (side for side in (a, b) if side != "published"):
        for found in derived.again(evidence, side, stage):
            if found.holds is False:
                return Verdict.FAIL, "not_derived", {"record": evidence.run_id(side, stage), "name": found.name}
    for name, first, second in _in_both("", *map(_noises, records)):
        if first and second and not 1 / APART <= first / second <= APART:
            values = {"name": name, "first_value": first, "second_value": second}
            return Verdict.FAIL, "noise_apart", values
    if b == "jittor":
        names, equal = _same_bits(evidence, stage, a, b)
        # A port that a user brings may well be one layer that both compute alike.
        least = NOISY if "without" in records[1].fields else 1
        if len(names) >= least and 2 * len(equal) > len(names):
            return Verdict.FAIL, "same_bits", {"equal": len(equal), "total": len(names), "name": equal[0]}
    return None


def _told(a: Record, b: Record) -> Iterator[tuple[str, Any, Any]]:
    """What must be the same of both: name, one, other. Published numbers are nobody's run here but for their case."""
    if "published" not in (a.side, b.side):
        if a.provenance.sources and b.provenance.sources:
            yield from _in_both("", a.provenance.sources, b.provenance.sources)
        else:
            yield "commit", a.provenance.git_commit, b.provenance.git_commit
        yield "seed", a.provenance.seed, b.provenance.seed
        first, second = _inputs(a), _inputs(b)
        yield "files read", sorted(first), sorted(second)
        yield from _in_both("", first, second)
        yield from _in_both("version of ", *(_versions(one) for one in (a, b)))
    yield from _in_both("", *({name: one.fields[name] for name in ASKED if name in one.fields} for one in (a, b)))


def _in_both(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    return ((what + name, a[name], b[name]) for name in a if name in b)


def _inputs(one: Record) -> dict[str, str]:
    """Digest of each file read, by its name, and by its folder's where several have that: data may lie elsewhere on
    another machine. Weights are a side's own."""
    read = {Path(path): digest for path, digest in one.provenance.inputs.items() if Path(path).parent.name not in SIDES}
    named = Counter(path.name for path in read)
    return {
        path.name if named[path.name] == 1 else f"{path.parent.name}/{path.name}": digest
        for path, digest in read.items()
    }


def _versions(one: Record) -> dict[str, str]:
    return {name: version for name, version in one.provenance.versions.items() if name in VERSIONED}


def _same_bits(evidence: Evidence, stage: str, a: str, b: str) -> tuple[list[str], list[str]]:
    """Names of a's float32 tensors in which rounding shows, and which of them b has to the last bit."""
    theirs, ours = (_rounded(evidence, side, stage) for side in (a, b))
    exact = evidence.arrays(a, stage, "float64/") if stage != "lockstep" and evidence.get(a, stage).arrays else {}
    noisy = [name for name, single in theirs.items() if stage == "lockstep" or _noise(single, exact.get(name)) >= NOISY]
    return noisy, [name for name in noisy if name in ours and np.array_equal(theirs[name], ours[name])]


def _rounded(evidence: Evidence, side: str, stage: str) -> dict[str, Any]:
    """What a float32 run gave: the arrays of its record, and the losses of a training, step by step.

    Of lock-step the norms of gradients and statistics of the run that is fed nothing, where its noise is not zero: what
    is fed to both may be equal, and so may a parameter that a small rate leaves as it is.
    """
    held = evidence.get(side, stage)
    if stage == "lockstep":
        sizes, steps = held.fields["native"]["sizes"], held.fields["native"]["steps"]
        return {
            f"step {i}, {kind} of {name}": norm
            for i, line in enumerate(steps)
            for kind in ("gradient", "statistics")
            for name, norm in line["norms"]["float32"].get(kind, {}).items()
            if line.get("noise", {}).get(kind, {}).get(name) and sizes[kind][name] >= NOISY
        }
    curves = held.fields["curves"] if stage == "train" else {}
    found = {name: np.array(column, float) for name, column in curves.items() if "loss" in name}
    return found | (evidence.arrays(side, stage, "float32/") if held.arrays else {})


def _noise(single: np.ndarray, exact: np.ndarray | None) -> int:
    """In how many elements rounding shows; where there is no exact run, in all that are not zero."""
    same = exact is not None and exact.shape == single.shape
    return int(np.count_nonzero(single != (exact.astype(np.float32) if same else 0)))


def _noises(one: Record) -> dict[str, float]:
    """What a record says of the rounding of each kind of score that decides something."""
    return {
        f"{kind}: {name}": size for kind, held in one.fields.get("noise", {}).items() for name, size in held.items()
    }


def held_up(answer: Answer) -> Answer:
    """The answer, FAIL where most of what it compares lies far below the reach of rounding: none reaches so far.

    Two float32 runs lie about as far apart as each from the exact result.
    """
    judged = [row for row in answer.rows if row.error > 0 and row.reach > 0 and "float64" not in row.what]
    if answer.pair != "torch-jittor" or len(judged) < NOISY or answer.verdict is Verdict.FAIL:
        return answer
    middle = float(np.median([row.error / row.reach for row in judged]))
    if middle * APART * (2 * gate.K if answer.question in MOVED else 1) >= 1:
        return answer
    values = {"total": len(judged), "ratio": middle}
    return replace(answer, verdict=Verdict.FAIL, reason="reach_too_wide", values=values)
