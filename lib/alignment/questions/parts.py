"""What the answers are put together from."""

import numpy as np

from lib.alignment.compare import Comparison
from lib.alignment.decisions import Decisions, judge, restored
from lib.alignment.evidence import REFERENCE, Evidence, pointer
from lib.alignment.verdict import Answer, Number, Row, Verdict, decisions, fault


def identical(comparisons: list[Comparison]) -> list[Row]:
    """Rows for integers that must be equal, element by element."""
    return [
        fault(c.name, "decisions", c.fault)
        if c.fault
        else decisions(c.name, c.differing, c.size, f"first at {c.worst}" if c.differing else "")
        for c in comparisons
    ]


def decided(evidence: Evidence, stage: str, a: str, b: str) -> list[Decisions]:
    """Each kind of discrete decision in two records, judged by the reference framework's exact scores.

    The published record keeps what was chosen, of some kinds; how near that was is PyTorch's to say, where it ran the case.
    """
    theirs, ours = (evidence.arrays(side, stage, "assignment/") for side in (a, b))
    arrays = exact_arrays(evidence, stage, b)
    follows = evidence.get(REFERENCE, stage).fields.get("follows", {}) if arrays else {}

    def one(name: str) -> Decisions:
        reference = theirs.get(name, arrays.get(f"assignment/{name}"))
        if reference is None or name not in ours:
            return Decisions(name, 0, (), "missing" if name in theirs else "left over: the reference has no such entry")
        before = follows.get(name)
        return judge(name, reference, ours[name], restored(name, arrays), one(before) if before else None)

    return [one(name) for name in (theirs if a == "published" else dict.fromkeys([*theirs, *ours]))]


def exact_arrays(evidence: Evidence, stage: str, side: str) -> dict[str, np.ndarray]:
    """What the reference framework's record of a stage holds, with its exact scores; nothing where it ran another case."""
    held = evidence.get(REFERENCE, stage)
    same = held is not None and held.fields["case"] == evidence.field(side, stage, "case")
    return evidence.arrays(REFERENCE, stage) if same else {}


def other_case(evidence: Evidence, stage: str, a: str, b: str, question: str) -> Answer | None:
    """A failing answer where the two records measured different inputs; None where they are of one case."""
    cases = [evidence.field(side, stage, "case") for side in (a, b)]
    if cases[0] == cases[1]:
        return None
    values = {"first": cases[0], "second": cases[1]}
    return Answer(question, f"{a}-{b}", Verdict.FAIL, "other_case", values, sources=sources(evidence, stage, a, b))


def holds(evidence: Evidence, stage: str, what: str, a: str, b: str) -> bool:
    """Whether both records have this: those of a user's port name in "without" what nobody measured."""
    return not any(what in evidence.get(side, stage).fields.get("without", ()) for side in (a, b))


def sources(evidence: Evidence, stage: str, a: str, b: str) -> tuple[str, ...]:
    return tuple(evidence.run_id(side, stage) for side in (a, b))


def number(evidence: Evidence, label: str, side: str, stage: str, *keys: str, about: str = "") -> Number:
    ref = pointer(evidence.run_id(side, stage), "fields", *keys)
    return Number(label, side, evidence.field(side, stage, *keys), ref, about)
