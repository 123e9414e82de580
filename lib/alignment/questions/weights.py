"""Questions about the model before it computes: its entries, their bytes, where they come from."""

from lib.alignment.evidence import Evidence
from lib.alignment.questions.parts import holds, number, sources
from lib.alignment.rows import mapping
from lib.alignment.verdict import Answer, conclude, decisions


def structure(evidence: Evidence, a: str, b: str) -> Answer:
    """Entries by name, shape, type and kind, their order; parameter count; normalisation layers."""
    ours, theirs = ({row[0]: row[1:4] for row in evidence.field(s, "convert", "state")} for s in (b, a))
    rows = [mapping("state entries (shape, type, kind)", theirs, ours)]
    swapped = [x for x, y in zip(theirs, ours) if x != y]
    if holds(evidence, "convert", "order", a, b):
        rows.append(
            decisions("order of the entries", len(swapped), len(theirs), f"first: {swapped[0]}" if swapped else "")
        )
    for name in ("parameters", "norm_layers"):
        x, y = (evidence.field(s, "convert", name) for s in (a, b))
        rows.append(decisions(name.replace("_", " "), int(x != y), 1, f"{x} and {y}"))
    numbers = [number(evidence, "parameters", side, "convert", "parameters") for side in (a, b)]
    return conclude("structure", f"{a}-{b}", rows, sources(evidence, "convert", a, b), numbers=numbers)


def conversion(evidence: Evidence, a: str, b: str) -> Answer:
    """Every entry loaded, none left over, the bytes equal on both sides, each format's round trip bit-equal."""
    rows = []
    for side in (a, b):
        if side == "published":
            continue
        for name in ("missing", "left_over", "misshapen", "not_finite"):
            found = evidence.field(side, "convert", name)
            rows.append(decisions(f"{side}: {name.replace('_', ' ')}", len(found), 1, found[0] if found else ""))
        coverage = evidence.field(side, "convert", "coverage")
        rows.append(decisions(f"{side}: entries not loaded", coverage["total"] - coverage["loaded"], coverage["total"]))
        for name, equal in evidence.field(side, "convert", "round_trip").items():
            rows.append(decisions(f"{side}: {name} round trip, not bit-equal", int(not equal), 1))
    theirs, ours = ({row[0]: row[4] for row in evidence.field(s, "convert", "state")} for s in (a, b))
    known = {name: value for name, value in theirs.items() if value is not None}  # published: constants have no seed
    rows.append(mapping("bytes of the entries", known, {name: value for name, value in ours.items() if name in known}))
    numbers = [
        number(evidence, "loaded", side, "convert", "coverage", "loaded") for side in (a, b) if side != "published"
    ]
    return conclude("conversion", f"{a}-{b}", rows, sources(evidence, "convert", a, b), numbers=numbers)


def initialisation(evidence: Evidence, a: str, b: str) -> Answer:
    """Fresh weights of one seed: drawn by NumPy from (seed, name), so both frameworks must start from the same bytes."""
    theirs, ours = (evidence.field(side, "lockstep", "initial") for side in (a, b))
    rows = [mapping("bytes of the fresh weights", theirs, ours)]
    return conclude("initialisation", f"{a}-{b}", rows, sources(evidence, "lockstep", a, b))
