"""Verdicts on probes from the sides' records: no framework runs here, and the same records give the same verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from .probe import Probe

STAGE, MODEL = "rosetta", "all"  # of the records: probes belong to no model
NON_FINITE = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}  # as lib.record.plain writes them


class Verdict(str, Enum):
    """MENDED: Jittor's own operator differs, the backend's agrees. UNKNOWN is never taken for agreement."""

    SAME = "same"
    MENDED = "mended by the backend"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    reason: str  # empty where the verdict says it all


def judge(probe: Probe, records: Mapping[str, Mapping[str, Any]], digest: str) -> Finding:
    """The verdict from side -> the `probes` of its record; `digest` names the version of the probe that is judged."""
    entries = {}
    for side in ("torch", "jittor"):
        entry = records.get(side, {}).get(probe.name)
        if entry is None:
            return Finding(Verdict.UNKNOWN, f"{side} was not run")
        if entry["digest"] != digest:
            return Finding(Verdict.UNKNOWN, f"the record of {side} is of another version of this probe")
        entries[side] = entry
    kinds = ("native",) if probe.backend is None else ("native", "backend")
    for side, kind in ((side, kind) for side in entries for kind in kinds):
        answer = entries[side][kind]
        if answer is None or answer["kind"] == "raised":
            message = answer["values"][0] if answer else "no answer in the record"
            return Finding(Verdict.UNKNOWN, f"{side}, {kind}: {message}")
    reference, tolerance = values(entries["torch"]["native"]), 0.0
    if probe.expected is not None:
        reference, tolerance = np.asarray(probe.reference()), probe.tolerance()
    right = {
        (side, kind): agree(reference, values(entries[side][kind]), tolerance) for side in entries for kind in kinds
    }
    if not right["torch", "native"]:
        return Finding(Verdict.UNKNOWN, "PyTorch itself departs from what is expected of it")
    if not all(right[side, kinds[-1]] for side in entries):
        return Finding(
            Verdict.DIFFERENT, "natively the same, but not through the backend" if right["jittor", "native"] else ""
        )
    return Finding(Verdict.SAME if right["jittor", "native"] else Verdict.MENDED, "")


def values(answer: Mapping[str, Any]) -> np.ndarray:
    """The array of a recorded answer; texts as an array of texts."""
    if answer["kind"] == "text":
        return np.array(answer["values"], dtype=str)
    numbers = [NON_FINITE[v] if isinstance(v, str) else v for v in answer["values"]]
    whole = all(isinstance(v, int) for v in numbers)
    return np.array(numbers, np.int64 if whole else np.float64).reshape(answer["shape"])


def agree(reference: np.ndarray, found: np.ndarray, tolerance: float) -> bool:
    """Whether two answers have one kind, one shape (a scalar counts as one element) and values within the tolerance.

    NaN agrees with NaN alone, an infinity with itself, a whole number with itself. Nothing is broadcast; two empty
    answers agree.
    """
    reference, found = np.atleast_1d(reference), np.atleast_1d(found)
    if (reference.dtype.kind == "U") != (found.dtype.kind == "U") or reference.shape != found.shape:
        return False
    if reference.dtype.kind == "U":
        return bool((reference == found).all())
    same = reference == found
    if reference.dtype.kind in "iub" and found.dtype.kind in "iub":
        return bool(same.all())
    a, b = reference.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    near = np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)) <= tolerance
    return bool((same | np.isnan(a) & np.isnan(b) | finite & near).all())
