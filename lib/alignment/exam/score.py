"""What an exam's results say: tables, and the verdict in words."""

from collections.abc import Sequence

import pandas as pd

from lib.alignment.exam import planting
from lib.alignment.exam.examination import CAUGHT, CLEAN, LOCALISED, Result
from lib.alignment.exam.gates import GATES
from lib.alignment.exam.planting import Fault
from lib.alignment.rosetta import Whole


def faults(held: Sequence[Result]) -> list[Result]:
    """The results of planted faults."""
    return [result for result in held if result.kind != "clean"]


def clean(held: Sequence[Result]) -> list[Result]:
    """The results of clean runs."""
    return [result for result in held if result.kind == "clean"]


def survivors(held: Sequence[Result]) -> list[Result]:
    """Faults that went through all gates."""
    return [result for result in faults(held) if not result.caught]


def alarms(held: Sequence[Result]) -> list[Result]:
    """Clean runs that a gate held back."""
    return [result for result in clean(held) if result.caught]


def misplaced(held: Sequence[Result]) -> list[Result]:
    """Faults that were caught, with something else named."""
    return [result for result in faults(held) if result.caught and not result.localised]


def verdict(held: Sequence[Result]) -> str:
    """PASS where enough is caught and localised and nothing clean is held back; NOT RUN where that can't be said."""
    planted = faults(held)
    right = sum(result.caught and result.localised for result in planted)
    enough = len(planted) - len(survivors(held)) >= CAUGHT * len(planted) and right >= LOCALISED * len(planted)
    if not enough or alarms(held):
        return "FAIL"
    return "PASS" if planted and clean(held) else "NOT RUN"


def catalogue(planted: Sequence[Fault]) -> Whole:
    """A row per fault, before any is planted."""
    rows = [{"fault": f.name, "what people do": f.people, "class": f.kind, "in": f.subject} for f in planted]
    return Whole(pd.DataFrame(rows, columns=["fault", "what people do", "class", "in"]))


def by_gate(held: Sequence[Result]) -> Whole:
    """How many faults each gate was the first to catch, in the gates' order."""
    rows = [{"gate": gate, "faults caught first": sum(r.gate == gate for r in faults(held))} for gate in GATES]
    return Whole(pd.DataFrame(rows, columns=["gate", "faults caught first"]))


def table(held: Sequence[Result]) -> Whole:
    """A row per fault or clean run."""
    rows = [
        {
            "fault": r.name,
            "what people do": r.people,
            "in": r.subject,
            "caught by": r.gate,
            "times the gate": r.ratio,
            "named": _shown(r.named),
            "localised": "yes" if r.caught and r.localised else "no",
        }
        for r in held
    ]
    columns = ["fault", "what people do", "in", "caught by", "times the gate", "named", "localised"]
    return Whole(pd.DataFrame(rows, columns=columns))


def _shown(named: Sequence[str]) -> str:
    return named[0] + (f" and {len(named) - 1} more" if len(named) > 1 else "") if named else ""


def summary(held: Sequence[Result]) -> str:
    """The exam in lines: numbers, survivors, what was not localised, false alarms, the verdict."""
    planted, right = faults(held), [r for r in faults(held) if r.caught and r.localised]
    if not planted:
        return "NOT RUN: no fault was planted; `make exam` plants them"
    caught = len(planted) - len(survivors(held))
    lines = [
        f"{caught} of {len(planted)} faults caught ({caught / len(planted):.0%}; asked: {CAUGHT:.0%})",
        f"{len(right)} localised ({len(right) / len(planted):.0%}; asked: {LOCALISED:.0%})",
        f"{len(alarms(held))} false alarms in {len(clean(held))} clean runs (asked: none)",
        f"{sum(r.seconds for r in held):.0f} s",
    ]
    known = len(planting.catalogue())
    if missing := known - len(planted) + len(CLEAN) - len(clean(held)):
        lines.append(f"not run: {missing} of the whole exam's {known} faults and {len(CLEAN)} clean runs")
    lines += [
        f"survivor: {r.name} ({r.subject}); {r.people}: its largest error is {r.ratio:.2g} of a gate"
        for r in survivors(held)
    ]
    lines += [f"not localised: {r.name}; {r.gate} names {_shown(r.named) or 'nothing'}" for r in misplaced(held)]
    lines += [f"false alarm: {r.name} ({r.subject}); {r.gate}, {_shown(r.named)}: {r.note}" for r in alarms(held)]
    return "\n".join([*lines, verdict(held)])
