"""What the answers are put together from."""
from typing import Any

from lib.alignment.compare import Comparison
from lib.alignment.evidence import Evidence, pointer
from lib.alignment.verdict import Answer, Number, Row, Verdict, decisions, fault


def identical(comparisons: list[Comparison]) -> list[Row]:
    """Rows for integers that must be equal, element by element."""
    return [
        fault(c.name, "decisions", c.fault) if c.fault
        else decisions(c.name, c.differing, c.size, f"first at {c.worst}" if c.differing else "")
        for c in comparisons
    ]  # fmt: skip


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
