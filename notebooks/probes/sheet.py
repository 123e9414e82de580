"""The sheet of probes: what both frameworks answered, topic by topic, as notebook 30_migration shows it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lib.show.messages import words
from lib.show.tables import Frame, Name, said
from notebooks.probes.probe import Probe
from notebooks.probes.rosetta import NAMES, Findings, Verdict, agree, values

SHOWN = 5  # values of an answer
DIGITS = (5, 7, 9)  # nine tell any two float32 numbers apart


class Sheet(Findings):
    """Verdicts on probes, as tables."""

    def sides(self) -> str:
        """Which sides have run, and how long it took, a line each."""
        say, lines = words(), []
        for side, name in NAMES.items():
            held = self.records.get(side, {}).values()
            spent = f"{sum(entry['seconds'] for entry in held):.0f}"
            key = "probes.ran" if held else "probes.absent"
            lines.append(say(key).format(side=name, count=len(held), seconds=spent))
        return "\n".join(lines)

    def answers(self, topic: str) -> Frame:
        """Probes of a topic: question, what each side answers, verdict, advice; what a port must know comes first."""
        order = [Verdict.DIFFERENT, Verdict.MENDED, Verdict.UNKNOWN, Verdict.SAME]
        held = sorted(self.of(topic), key=lambda probe: order.index(self.findings[probe.name].verdict))
        return _rows({probe.name: self._row(probe) for probe in held})

    def code(self, topic: str) -> Frame:
        """Probes of a topic: what runs on each side; a name stands for a function of the topic's module."""
        columns = {"PyTorch": "torch", "Jittor": "jittor", "backend": "backend"}
        return _rows({p.name: {title: p.code(side) for title, side in columns.items()} for p in self.of(topic)})

    def counts(self) -> Frame:
        """How many probes of each topic (rows) have each verdict (columns)."""
        rows = {topic: self.counted(topic) for topic in self.topics} | {"all": self.counted()}
        return _rows(rows).rename(columns={kind.name.lower(): kind.value for kind in Verdict})

    def summary(self) -> str:
        """How many verdicts are of each kind, in one line."""
        counts = zip(Verdict, self.counted().values())
        return words()("join.list").join(f"{said(kind.value)} {number}" for kind, number in counts)

    def reasons(self) -> Frame:
        """Why a verdict is unknown, or what else there is to say about it."""
        said = {name: asdict(found) for name, found in self.findings.items() if found.reason}
        return _rows(said, columns=["verdict", "reason"])

    def _row(self, probe: Probe) -> dict[str, str]:
        verdict = self.findings[probe.name].verdict
        entries = {side: self.records.get(side, {}).get(probe.name, {}) for side in NAMES}
        answers = [entries["torch"].get("native"), entries["jittor"].get("native"), entries["jittor"].get("backend")]
        said = texts(answers, verdict in (Verdict.MENDED, Verdict.DIFFERENT))
        # No words, but for what has not run: a type is no precision, and True no yes.
        torch, jittor, through = (one if answer is None else Name(one) for answer, one in zip(answers, said))
        return {
            "question": probe.question,
            "PyTorch": torch,
            "Jittor": jittor,
            "Jittor through the backend": through if probe.backend else "",
            "verdict": verdict.value,
            "advice": probe.advice,
        }


def _rows(rows: Mapping[str, Mapping[str, Any]], columns: Iterable[str] | None = None) -> Frame:
    return Frame.from_dict(rows, orient="index", columns=columns)


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
    held = answer["values"][start : start + SHOWN]
    shown = [f"{value:.{digits}g}" if isinstance(value, float) else str(value) for value in held]
    before, after = "… " if start else "", " …" if start + SHOWN < len(answer["values"]) else ""
    return before + ", ".join(shown) + after if shown else "nothing"
