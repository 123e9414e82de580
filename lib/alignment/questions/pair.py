"""Two sides' records of one stage, and what the answers about them are put together from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.alignment.compare import Comparison
from lib.alignment.decisions import Decisions, judge, restored
from lib.alignment.evidence import REFERENCE, Evidence, pointer
from lib.alignment.verdict import Answer, Number, Row, Verdict, conclude, decisions, fault

Runs = dict[str, dict[str, np.ndarray]]  # side -> arrays by name


@dataclass(frozen=True)
class Pair:
    """What one question is asked of: the records of `stage` of side a, which is the reference, and side b."""

    evidence: Evidence
    question: str
    stage: str
    a: str
    b: str

    @property
    def where(self) -> tuple[Evidence, str, str, str]:
        """As the functions of `rows` take it."""
        return self.evidence, self.stage, self.a, self.b

    def field(self, side: str, *keys: str) -> Any:
        """A field of the side's record."""
        return self.evidence.field(side, self.stage, *keys)

    def fields(self, *keys: str) -> list[Any]:
        """The same field of both."""
        return [self.field(side, *keys) for side in (self.a, self.b)]

    def arrays(self, prefix: str) -> Runs:
        """The arrays of both whose name starts with prefix, without it."""
        return {side: self.evidence.arrays(side, self.stage, prefix) for side in (self.a, self.b)}

    def runs(self, group: str = "") -> list[Runs]:
        """The arrays of a group in both precisions."""
        return [self.arrays(f"{run}/{group}") for run in ("float32", "float64")]

    def holds(self, what: str) -> bool:
        """Whether both records have this: those of a user's port name in "without" what nobody measured."""
        records = (self.evidence.get(side, self.stage) for side in (self.a, self.b))
        return not any(what in record.fields.get("without", ()) for record in records)

    def number(self, label: str, side: str, *keys: str, about: str = "") -> Number:
        """A number of the side's record."""
        ref = pointer(self.evidence.run_id(side, self.stage), "fields", *keys)
        return Number(label, side, self.field(side, *keys), ref, about)

    def numbers(self, label: str, *keys: str, about: str = "") -> list[Number]:
        """The same number of both."""
        return [self.number(label, side, *keys, about=about) for side in (self.a, self.b)]

    def same(self, what: str, *keys: str) -> Row:
        """A row that fails where a field of the two differs."""
        first, second = self.fields(*keys)
        return decisions(what, int(first != second), 1)

    def answer(self, verdict: Verdict, reason: str, values: dict[str, Any], numbers: Sequence[Number] = ()) -> Answer:
        """An answer without rows."""
        said = {"numbers": tuple(numbers), "sources": self.sources}
        return Answer(self.question, f"{self.a}-{self.b}", verdict, reason, values, **said)

    def conclude(self, rows: Sequence[Row], numbers: Sequence[Number] = (), notes: Sequence[str] = ()) -> Answer:
        """The answer that rows give."""
        return conclude(self.question, f"{self.a}-{self.b}", rows, self.sources, numbers=numbers, notes=notes)

    @property
    def sources(self) -> tuple[str, ...]:
        """The two records' ids."""
        return tuple(self.evidence.run_id(side, self.stage) for side in (self.a, self.b))

    def decided(self) -> list[Decisions]:
        """Each kind of discrete decision in the two records, judged by the reference framework's exact scores.

        The published record keeps what was chosen, of some kinds; how near that was is PyTorch's to say, where it ran
        the case.
        """
        theirs, ours = self.arrays("assignment/").values()
        exact = self.exact()
        follows = self.evidence.get(REFERENCE, self.stage).fields.get("follows", {}) if exact else {}

        def one(name: str) -> Decisions:
            reference = theirs.get(name, exact.get(f"assignment/{name}"))
            if reference is None or name not in ours:
                missing = "missing" if name in theirs else "left over: the reference has no such entry"
                return Decisions(name, 0, (), missing)
            before = follows.get(name)
            return judge(name, reference, ours[name], restored(name, exact), one(before) if before else None)

        return [one(name) for name in (theirs if self.a == "published" else dict.fromkeys([*theirs, *ours]))]

    def exact(self) -> dict[str, np.ndarray]:
        """The arrays of the reference framework's record, with its exact scores; none where it ran another case."""
        held = self.evidence.get(REFERENCE, self.stage)
        same = held is not None and held.fields["case"] == self.field(self.b, "case")
        return self.evidence.arrays(REFERENCE, self.stage) if same else {}


def identical(comparisons: Sequence[Comparison]) -> list[Row]:
    """Rows for integers that must be equal, element by element."""
    return [
        fault(c.name, "decisions", c.fault)
        if c.fault
        else decisions(c.name, c.differing, c.size, f"first at {c.worst}" if c.differing else "")
        for c in comparisons
    ]
