"""What an exam's results say: tables, and the verdict in words."""

from collections.abc import Sequence

from lib.show.messages import words
from lib.show.tables import Frame, said
from notebooks.exam.examination import CAUGHT, CLEAN, LOCALISED, Result
from notebooks.exam.gates import GATES
from notebooks.exam.planting import Fault
from notebooks.faults import FAULTS


def faults(held: Sequence[Result]) -> list[Result]:
    return [result for result in held if result.kind != "clean"]


def clean(held: Sequence[Result]) -> list[Result]:
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


def catalogue(planted: Sequence[Fault]) -> Frame:
    """A row per fault, before any is planted."""
    rows = [{"fault": f.name, "what people do": f.people, "class": f.kind, "in": f.subject} for f in planted]
    return Frame(rows, columns=["fault", "what people do", "class", "in"])


def by_gate(held: Sequence[Result]) -> Frame:
    """How many faults each gate was the first to catch, in the gates' order."""
    rows = [{"gate": gate, "faults caught first": sum(r.gate == gate for r in faults(held))} for gate in GATES]
    return Frame(rows, columns=["gate", "faults caught first"])


def table(held: Sequence[Result]) -> Frame:
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
    return Frame(rows, columns=columns)


def _shown(named: Sequence[str]) -> str:
    more = _say("more", count=len(named) - 1) if len(named) > 1 else ""
    return named[0] + more if named else ""


def summary(held: Sequence[Result]) -> str:
    """The exam in lines: numbers, survivors, what was not localised, false alarms, the verdict."""
    planted, right = faults(held), [r for r in faults(held) if r.caught and r.localised]
    if not planted:
        return _say("none")
    caught, ran = len(planted) - len(survivors(held)), len(clean(held))
    lines = [
        _say("caught", count=caught, of=len(planted), share=f"{caught / len(planted):.0%}", asked=f"{CAUGHT:.0%}"),
        _say("localised", count=len(right), share=f"{len(right) / len(planted):.0%}", asked=f"{LOCALISED:.0%}"),
        _say("alarms", count=len(alarms(held)), of=ran),
        _say("seconds", count=f"{sum(r.seconds for r in held):.0f}"),
    ]
    known = len(FAULTS)
    if missing := known - len(planted) + len(CLEAN) - ran:
        lines.append(_say("missing", count=missing, faults=known, clean=len(CLEAN)))
    lines += [
        _say("survivor", name=r.name, subject=r.subject, people=words().term(r.people), ratio=f"{r.ratio:.2g}")
        for r in survivors(held)
    ]
    nothing = _say("nothing")
    lines += [
        _say("misplaced", name=r.name, gate=said(r.gate), named=_shown(r.named) or nothing) for r in misplaced(held)
    ]
    lines += [
        _say("alarm", name=r.name, subject=r.subject, gate=said(r.gate), named=_shown(r.named), note=r.note)
        for r in alarms(held)
    ]
    return "\n".join([*lines, verdict(held)])


def _say(key: str, **values: object) -> str:
    """A line of the exam in the shell's language."""
    return words()(f"exam.{key}").format(**values)
