"""The verdicts on all probes as a record of their own, so that a report can count them without judging anything."""

from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from lib.record import Record, measure, read

from .probe import Probe
from .sheet import NAMES, Sheet
from .topics import PROBES
from .verdict import MODEL, STAGE, Finding, Verdict


def write(folder: str | PathLike, probes: Sequence[Probe] = PROBES) -> Record | None:
    """`all/none/rosetta` from both sides' records under `folder`; None, and no such record, where neither side has run.

    fields: total, counts {same, mended, different, unknown}, topics [{topic, the same four}], findings {probe: verdict, reason}.
    """
    inputs = [path for side in NAMES if (path := Path(folder, MODEL, side, f"{STAGE}.json")).is_file()]
    if not inputs:
        Path(folder, MODEL, "none", f"{STAGE}.json").unlink(missing_ok=True)
        return None
    with measure(STAGE, MODEL, folder, inputs=inputs) as out:
        findings = Sheet(probes, folder).findings
        out.fields |= {
            "total": len(probes),
            "counts": _counted(probes, findings),
            "topics": [
                {"topic": topic, **_counted([probe for probe in probes if probe.topic == topic], findings)}
                for topic in dict.fromkeys(probe.topic for probe in probes)
            ],
            "findings": {
                name: {"verdict": found.verdict.value, "reason": found.reason} for name, found in findings.items()
            },
        }
    return read(out.path)


def _counted(probes: Sequence[Probe], findings: Mapping[str, Finding]) -> dict[str, int]:
    counted = Counter(findings[probe.name].verdict for probe in probes)
    return {kind.name.lower(): counted[kind] for kind in Verdict}
