"""Questions about one step of training: losses, decisions, gradients, update, statistics."""

from dataclasses import replace

import numpy as np

from lib.alignment import lockstep as engine
from lib.alignment.compare import compare_sets, norm
from lib.alignment.decisions import excuse, nearness
from lib.alignment.evidence import Evidence
from lib.alignment.questions.parts import decided, holds, identical, other_case, sources
from lib.alignment.rows import (
    chosen,
    excuse_flips,
    float64_factor,
    measured_jumps,
    other_deviations,
    step_norms,
    step_residuals,
    tensors,
    true_zeros,
)
from lib.alignment.verdict import Answer, Row, Verdict, conclude, decisions, fault, judge_scalars, judge_value


def losses(evidence: Evidence, a: str, b: str) -> Answer:
    """Every loss component in every phase, and the raw training outputs they come from."""
    if other := other_case(evidence, "loss", a, b, "losses"):
        return other
    per_phase = {side: evidence.field(side, "loss", "losses") for side in (a, b)}
    flat = {
        side: {
            run: {
                f"{phase}/{name}": value for phase, runs in phases.items() for name, value in runs.get(run, {}).items()
            }
            for run in ("float32", "float64")
        }
        for side, phases in per_phase.items()
    }
    exact, rounded = flat[a]["float64"], flat[a]["float32"]
    repeats = _repeats(evidence) if a == "torch" else ()
    rows = judge_scalars(exact, rounded, flat[b]["float32"], exact if a == "published" else rounded, repeats=repeats)
    if flat[b]["float64"]:
        sharp = judge_scalars(
            exact, rounded, flat[b]["float64"], factor=float64_factor(evidence, "loss", a, b), repeats=repeats
        )
        rows += [replace(row, what="scalar, float64") for row in sharp]
    runs = [{s: evidence.arrays(s, "loss", f"{run}/output/") for s in (a, b)} for run in ("float32", "float64")]
    outputs = tensors(evidence, "loss", a, b, *runs, "max_abs", "output/")
    held, first = decided(evidence, "loss", a, b), next(iter(per_phase[a]))  # whose outputs they are
    rows = excuse(rows, held, _phase) + excuse(outputs, held, lambda row: f"{first}/")
    return conclude("losses", f"{a}-{b}", rows, sources(evidence, "loss", a, b))


def _repeats(evidence: Evidence) -> list[dict[str, float]]:
    """PyTorch's losses, "phase/name", in other float32 runs: one alone may lie near float64 by luck."""
    phases = evidence.get("torch", "loss").fields.get("repeats", {})
    return [
        {f"{phase}/{name}": float(value) for phase, run in zip(phases, runs) for name, value in run.items()}
        for runs in zip(*phases.values())
    ]


def assignment(evidence: Evidence, a: str, b: str) -> Answer:
    """The discrete decisions of a training step: the assigner's or the matcher's, and the selection of queries.

    Each that flipped has a row with its margin; what is legal follows from the reference's exact scores.
    """
    if other := other_case(evidence, "loss", a, b, "assignment"):
        return other
    held = decided(evidence, "loss", a, b)
    answer = conclude(
        "assignment", f"{a}-{b}", [row for kind in held for row in kind.rows()], sources(evidence, "loss", a, b)
    )
    values = answer.values | nearness(held)
    decided_so = answer.verdict is Verdict.PASS and "nearest" in values
    return replace(answer, reason="decided" if decided_so else answer.reason, values=values)


def _phase(row: Row) -> str:
    """How the names of what belongs to a row's phase begin."""
    return f"{row.name.split('/')[0]}/"


def gradients(evidence: Evidence, a: str, b: str) -> Answer:
    """Every parameter's gradient in every phase."""
    if other := other_case(evidence, "loss", a, b, "gradients"):
        return other
    single, double = (
        {s: evidence.arrays(s, "loss", f"{run}/gradient/") for s in (a, b)} for run in ("float32", "float64")
    )
    known = (
        (other_deviations(evidence, double[a], single[a]), measured_jumps(evidence, "gradient/"))
        if a == "torch"
        else ()
    )
    rows = tensors(evidence, "loss", a, b, single, double, "l2", "gradient/", *known)
    zero = true_zeros(evidence, a, single[a], double[a])
    noise = max(zero.values(), default=0.0)
    rows = excuse(excuse_flips([row for row in rows if row.name not in zero]), decided(evidence, "loss", a, b), _phase)
    # Where the true gradient is zero only noise is left, and its size varies more than a gradient's error: all such
    # parameters share the largest noise.
    for name in zero:
        what, there = "noise, true gradient zero", name in single[b]
        rows.append(
            judge_value(name, what, norm(single[b][name]), noise, 0.0) if there else fault(name, what, "missing")
        )
    return conclude("gradients", f"{a}-{b}", rows, sources(evidence, "loss", a, b), notes=sorted(zero))


def step(evidence: Evidence, a: str, b: str) -> Answer:
    """One optimiser step: each side against the optimiser's rule applied to its own gradient, and the change's norms.

    Where a gradient element is smaller than its noise, AdamW's first step turns the noise's sign into a whole step:
    changes themselves can't be compared elementwise, the rule's residual can.
    """
    if other := other_case(evidence, "loss", a, b, "step"):
        return other
    gradients_of_a = (evidence.arrays(a, "loss", f"{run}/gradient/") for run in ("float32", "float64"))
    zero = {name.split("/", 1)[1] for name in true_zeros(evidence, a, *gradients_of_a)}
    rows = []
    variants = [v for v in evidence.field(b, "loss", "optimiser") if v in evidence.field(a, "loss", "optimiser")]
    for run in ("float32", "float64"):
        residuals = {side: {v: step_residuals(evidence, side, v, run) for v in variants} for side in (a, b)}
        # In roundings of the parameter, so that what a few tensors of one variant show holds for all. The rule itself,
        # computed here in float64, leaves a few.
        floor = max((value for found in residuals[a].values() for value in found.values()), default=float("nan"))
        if run == "float64" and np.isnan(floor):
            continue  # the reference has no float64 step
        for variant, found in residuals[b].items():
            what = f"roundings away from {evidence.field(b, 'loss', 'optimiser', variant, 'rule')}'s rule"
            rows += [
                judge_value(f"{variant}/{name}", what + ", float64" * (run == "float64"), value, floor, 0.0)
                for name, value in found.items()
            ]
    held = decided(evidence, "loss", a, b)
    for variant in variants:
        phase = evidence.field(b, "loss", "optimiser", variant, "phase")
        rows += excuse(step_norms(evidence, a, b, variant, zero), held, lambda row, phase=phase: f"{phase}/")
    return conclude("step", f"{a}-{b}", rows, sources(evidence, "loss", a, b), notes=sorted(zero))


def batch_norm(evidence: Evidence, a: str, b: str) -> Answer:
    """Running statistics after one training forward, counters included."""
    if other := other_case(evidence, "loss", a, b, "batch_norm"):
        return other
    single, double = ({s: evidence.arrays(s, "loss", f"{run}/bn/") for s in (a, b)} for run in ("float32", "float64"))
    rows = tensors(evidence, "loss", a, b, single, double, "l2", "bn/")
    theirs, ours = (evidence.arrays(side, "loss", "bn/") for side in (a, b))
    if holds(evidence, "loss", "counters", a, b) and (
        theirs or a != "published"
    ):  # not every golden record counts batches
        rows += identical(compare_sets(theirs, chosen(ours, tuple(theirs)) if a == "published" else ours))
    return conclude("batch_norm", f"{a}-{b}", rows, sources(evidence, "loss", a, b))


def lockstep(evidence: Evidence, a: str, b: str) -> Answer:
    """Every quantity of every step of two trainings side by side: with the same gradients fed to both, and with their own."""
    batches = [evidence.field(side, "lockstep", "batches") for side in (a, b)]
    rows, first = [decisions("batches", int(batches[0] != batches[1]), 1)], None
    for mode in ("fed", "native"):
        mine, other = (evidence.field(side, "lockstep", mode) for side in (a, b))
        result = engine.side_by_side(
            mine, other, tuple(evidence.arrays(side, "lockstep", f"{mode}/") for side in (a, b))
        )
        rows += [replace(row, name=f"{mode}, {row.name}") for row in result.rows()]
        if first is None and (apart := result.first()):
            first = {
                "mode": mode,
                "step": apart.step,
                "kind": apart.kind.replace("_", " "),
                "precision": apart.precision,
                "tensor": apart.rows[0].name,
            }
    answer = conclude("lockstep", f"{a}-{b}", rows, sources(evidence, "lockstep", a, b))
    if answer.verdict is Verdict.FAIL and first:
        return replace(answer, reason="first_apart", values=answer.values | first)
    return answer
