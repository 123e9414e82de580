"""What the notebook shows: the probes of a topic with both sides' answers, the advice and the verdict.

No framework is imported here, nor by the topics: both sides' records are enough.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.record import read

from .listing import Listing
from .probe import Probe
from .verdict import MODEL, STAGE, Finding, Verdict, agree, judge, values

NAMES = {"torch": "PyTorch", "jittor": "Jittor"}
SHOWN = 5  # values of an answer
DIGITS = (5, 7, 9)  # nine tell any two float32 numbers apart


@dataclass(frozen=True)
class Table:
    """A data frame whose texts are shown whole."""

    frame: pd.DataFrame

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
            return self.frame.to_html()


class Sheet:
    """Verdicts on probes from the records under a folder; a side without a record was not run."""

    def __init__(self, probes: Sequence[Probe], folder: str | PathLike):
        paths = {side: Path(folder, MODEL, side, f"{STAGE}.json") for side in NAMES}
        self.records: dict[str, Mapping[str, Any]] = {
            side: read(path).fields["probes"] for side, path in paths.items() if path.is_file()
        }
        self.probes, self._listing = probes, Listing()
        self.findings: dict[str, Finding] = {
            probe.name: judge(probe, self.records, self._listing.digest(probe)) for probe in probes
        }

    def sides(self) -> str:
        """Which sides have run, and how long it took, in one line."""
        known = [
            f"{NAMES[side]}: {len(found)} probes in {sum(entry['seconds'] for entry in found.values()):.0f} s"
            for side, found in self.records.items()
        ]
        absent = [
            f"{name}: NOT RUN, every verdict is unknown until this notebook has run in its kernel"
            for side, name in NAMES.items()
            if side not in self.records
        ]
        return "; ".join(known + absent)

    def answers(self, topic: str) -> Table:
        """Probes of a topic: question, what each side answers, verdict, advice."""
        rows = {probe.name: self._row(probe) for probe in self.probes if probe.topic == topic}
        return Table(pd.DataFrame.from_dict(rows, orient="index"))

    def code(self, topic: str) -> Table:
        """Probes of a topic: what runs on each side; a name stands for a function of the topic's module."""
        columns = {"torch": "PyTorch", "jittor": "Jittor", "backend": "backend"}
        rows = {
            probe.name: {title: self._listing.code(probe, side) for side, title in columns.items()}
            for probe in self.probes
            if probe.topic == topic
        }
        return Table(pd.DataFrame.from_dict(rows, orient="index"))

    def counts(self) -> Table:
        """How many probes of each topic (rows) have each verdict (columns)."""
        counted = Counter((probe.topic, self.findings[probe.name].verdict) for probe in self.probes)
        topics = dict.fromkeys(probe.topic for probe in self.probes)
        frame = pd.DataFrame({kind.value: {topic: counted[topic, kind] for topic in topics} for kind in Verdict})
        return Table(pd.concat([frame, frame.sum().to_frame("all").T]))

    def summary(self) -> str:
        """How many verdicts are of each kind, in one line."""
        counted = Counter(finding.verdict for finding in self.findings.values())
        return ", ".join(f"{kind.value} {counted[kind]}" for kind in Verdict)

    def reasons(self) -> Table:
        """Why a verdict is unknown, or what else there is to say about it."""
        rows = {
            name: {"verdict": found.verdict.value, "reason": found.reason}
            for name, found in self.findings.items()
            if found.reason
        }
        return Table(pd.DataFrame.from_dict(rows, orient="index", columns=["verdict", "reason"]))

    def _row(self, probe: Probe) -> dict[str, str]:
        verdict = self.findings[probe.name].verdict
        entries = {side: self.records.get(side, {}).get(probe.name, {}) for side in NAMES}
        answers = [entries["torch"].get("native"), entries["jittor"].get("native"), entries["jittor"].get("backend")]
        torch, jittor, through = texts(answers, verdict in (Verdict.MENDED, Verdict.DIFFERENT))
        return {
            "question": probe.question,
            "PyTorch": torch,
            "Jittor": jittor,
            "Jittor through the backend": through if probe.backend else "",
            "verdict": verdict.value,
            "advice": probe.advice,
        }


def texts(answers: Sequence[Mapping[str, Any] | None], apart: bool) -> list[str]:
    """Answers as text; `apart`: from the first place on, and with as many digits, as tell the first two apart."""
    start, digits = 0, DIGITS[0]
    if apart and all(answer is not None and answer["kind"] == "numbers" for answer in answers[:2]):
        first, second = (values(answer) for answer in answers[:2])
        if first.shape == second.shape and first.size > SHOWN:
            unequal = [not agree(a, b, 0.0) for a, b in zip(first.ravel(), second.ravel())]
            start = min(int(np.argmax(unequal)), first.size - SHOWN)
        digits = next((d for d in DIGITS if text(answers[0], start, d) != text(answers[1], start, d)), DIGITS[0])
    return [text(answer, start, digits) for answer in answers]


def text(answer: Mapping[str, Any] | None, start: int, digits: int) -> str:
    """An answer as text: SHOWN of its values from `start` on; "NOT RUN" for None."""
    if answer is None:
        return "NOT RUN"
    if answer["kind"] != "numbers":
        return ", ".join(answer["values"])
    shown = [
        value if isinstance(value, str) else str(value) if isinstance(value, int) else f"{value:.{digits}g}"
        for value in answer["values"][start : start + SHOWN]
    ]
    before, after = "… " if start else "", " …" if start + SHOWN < len(answer["values"]) else ""
    return before + ", ".join(shown) + after if shown else "nothing"
