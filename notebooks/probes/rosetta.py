"""Executable Rosetta: what both frameworks answer to the probes, compared.

Verdicts come from the sides' records (`probe.run` writes them): no framework runs here, and the same records give the
same verdicts. `count` is what a report counts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lib.record import Record, measure, read
from notebooks.probes import PROBES
from notebooks.probes.probe import MODEL, STAGE, Probe

NAMES = {"torch": "PyTorch", "jittor": "Jittor"}
NON_FINITE = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}  # as lib.record.plain writes them


class Verdict(StrEnum):
    """MENDED: Jittor's own operator differs, the backend's agrees. UNKNOWN is never taken for agreement."""

    SAME = "same"
    MENDED = "mended by the backend"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    reason: str = ""  # empty where the verdict says it all


def judge(probe: Probe, records: Mapping[str, Mapping[str, Any]], digest: str) -> Finding:
    """The verdict from side -> the `probes` of its record; `digest` names the version of the probe that is judged."""
    kinds = ("native",) if probe.backend is None else ("native", "backend")
    found = {}
    for side in NAMES:
        entry = records.get(side, {}).get(probe.name)
        if entry is None:
            return Finding(Verdict.UNKNOWN, f"{NAMES[side]} was not run")
        if entry["digest"] != digest:
            return Finding(Verdict.UNKNOWN, f"the record of {NAMES[side]} is of another version of this probe")
        for kind in kinds:
            answer = entry[kind] or {"kind": "raised", "values": ["no answer in the record"]}
            if answer["kind"] == "raised":
                return Finding(Verdict.UNKNOWN, f"{side}, {kind}: {answer['values'][0]}")
            found[side, kind] = values(answer)
    reference, tolerance = found["torch", "native"], 0.0
    if probe.expected is not None:
        reference, tolerance = np.asarray(probe.reference()), probe.tolerance()
    right = {who: agree(reference, answer, tolerance) for who, answer in found.items()}
    if not right["torch", "native"]:
        return Finding(Verdict.UNKNOWN, "PyTorch itself departs from what is expected of it")
    if not all(right[side, kinds[-1]] for side in NAMES):
        said = "natively the same, but not through the backend" if right["jittor", "native"] else ""
        return Finding(Verdict.DIFFERENT, said)
    return Finding(Verdict.SAME if right["jittor", "native"] else Verdict.MENDED)


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
    kinds = reference.dtype.kind + found.dtype.kind
    if reference.shape != found.shape or kinds.count("U") == 1:
        return False
    if "f" not in kinds:
        return bool((reference == found).all())
    return bool(np.isclose(found.astype(float), reference.astype(float), rtol=0, atol=tolerance, equal_nan=True).all())


def count(folder: str | PathLike, probes: Sequence[Probe] = PROBES) -> Record | None:
    """`all/none/rosetta` from both sides' records under `folder`; None, and no such record, where neither side has run.

    fields: total, counts {same, mended, different, unknown}, topics [{topic, the same four}], findings {probe: verdict,
    reason}.
    """
    inputs = list(_paths(folder).values())
    if not inputs:
        Path(folder, MODEL, "none", f"{STAGE}.json").unlink(missing_ok=True)
        return None
    with measure(STAGE, MODEL, folder, inputs=inputs) as out:
        held = Findings(probes, folder)
        out.fields |= {
            "total": len(probes),
            "counts": held.counted(),
            "topics": [{"topic": topic, **held.counted(topic)} for topic in held.topics],
            "findings": {name: asdict(found) for name, found in held.findings.items()},
        }
    return read(out.path)


def _paths(folder: str | PathLike) -> dict[str, Path]:
    """side -> its record, where there is one."""
    paths = {side: Path(folder, MODEL, side, f"{STAGE}.json") for side in NAMES}
    return {side: path for side, path in paths.items() if path.is_file()}


class Findings:
    """Verdicts on probes from the records under a folder; a side without a record was not run."""

    def __init__(self, probes: Sequence[Probe], folder: str | PathLike):
        self.probes, self.topics = probes, tuple(dict.fromkeys(probe.topic for probe in probes))
        self.records = {side: read(path).fields["probes"] for side, path in _paths(folder).items()}
        self.findings = {probe.name: judge(probe, self.records, probe.digest()) for probe in probes}

    def of(self, topic: str | None) -> list[Probe]:
        return [probe for probe in self.probes if topic in (None, probe.topic)]

    def counted(self, topic: str | None = None) -> dict[str, int]:
        """How many verdicts are of each kind, by its name in lower case; of one topic, or of all."""
        found = Counter(self.findings[probe.name].verdict for probe in self.of(topic))
        return {kind.name.lower(): found[kind] for kind in Verdict}
