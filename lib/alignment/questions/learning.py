"""Questions about training: one step's losses, decisions, gradients, update and statistics; many steps; whole runs."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lib.alignment import datastages, prescribed
from lib.alignment import lockstep as engine
from lib.alignment import trajectory as bands
from lib.alignment.compare import compare_sets, norm
from lib.alignment.decisions import excuse, nearness
from lib.alignment.evidence import Evidence
from lib.alignment.questions.pair import Pair, identical
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
from lib.alignment.verdict import SHARP, Answer, Row, Verdict, decisions, fault, judge_scalars, judge_value


def recipe(pair: Pair) -> Answer:
    """Every number of the recipe, a row each: weights, candidates, rates, groups, augmentation's ranges in their order.

    How many tensors a group has is published of the sizes alone that have golden files.
    """
    theirs, ours = (dict(_leaves("", numbers)) for numbers in pair.fields("recipe"))
    asked = [*theirs, *(name for name in ours if name not in theirs and not name.endswith("/tensors"))]
    rows = []
    for name in asked:
        first, second = (numbers.get(name, "nothing") for numbers in (theirs, ours))
        rows.append(decisions(name, int(first != second), 1, f"{second} where the reference has {first}"))
    return pair.conclude(rows)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each number alone, those of a list by their place in it; an empty list as it is."""
    held = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) and value else None
    if held is None:
        yield name, value
        return
    for key, one in held:
        yield from _leaves(f"{name}, {key}" if name else str(key), one)


def data(pair: Pair) -> Answer:
    """The first batch's way from the files: each image decoded, each function of its augmentation, batch, targets."""
    answer = pair.conclude(datastages.differences(*pair.fields("data")))
    if first := datastages.first_difference(answer.rows):
        return replace(answer, reason="data_differs", values=answer.values | {"first": first})
    return answer


def losses(pair: Pair) -> Answer:
    """Every loss component in every phase, and the raw training outputs they come from."""
    theirs, ours = map(_by_precision, pair.fields("losses"))
    repeats = _repeats(pair.evidence) if pair.a == "torch" else ()
    rows = judge_scalars(theirs, ours, float64_factor(*pair.where), repeats, exactly=pair.a == "published")
    outputs = tensors(*pair.where, *pair.runs("output/"), "max_abs", "output/")
    held, first = pair.decided(), next(iter(pair.field(pair.a, "losses")))  # whose outputs they are
    return pair.conclude(excuse(rows, held, _phase) + excuse(outputs, held, lambda row: f"{first}/"))


def _by_precision(phases: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Losses by precision and "phase/name"."""
    return {
        run: {f"{phase}/{name}": value for phase, runs in phases.items() for name, value in runs.get(run, {}).items()}
        for run in ("float32", "float64")
    }


def _repeats(evidence: Evidence) -> list[dict[str, float]]:
    """PyTorch's losses in other float32 runs: one alone may lie near float64 by luck."""
    phases = evidence.get("torch", "loss").fields.get("repeats", {})
    runs = ({phase: {"float32": run} for phase, run in zip(phases, draw)} for draw in zip(*phases.values()))
    return [_by_precision(run)["float32"] for run in runs]


def _phase(row: Row) -> str:
    """How the names of what belongs to a row's phase begin."""
    return f"{row.name.split('/')[0]}/"


def assignment(pair: Pair) -> Answer:
    """The discrete decisions of a training step: the assigner's or the matcher's, and the selection of queries.

    Each that flipped has a row with its margin; what is legal follows from the reference's exact scores.
    """
    held = pair.decided()
    answer = pair.conclude([row for kind in held for row in kind.rows()])
    values = answer.values | nearness(held)
    decided_so = answer.verdict is Verdict.PASS and "nearest" in values
    return replace(answer, reason="decided" if decided_so else answer.reason, values=values)


def gradients(pair: Pair) -> Answer:
    """Every parameter's gradient in every phase."""
    single, double = pair.runs("gradient/")
    own = single[pair.a], double[pair.a]
    known = ()
    if pair.a == "torch":
        known = other_deviations(pair.evidence, *own[::-1]), measured_jumps(pair.evidence, "gradient/")
    rows = tensors(*pair.where, single, double, "l2", "gradient/", *known)
    zero = true_zeros(pair.evidence, pair.a, *own)
    rows = excuse(excuse_flips([row for row in rows if row.name not in zero]), pair.decided(), _phase)
    # Where the true gradient is zero only noise is left, and its size varies more than a gradient's error: all such
    # parameters share the largest noise.
    what, noise = "noise, true gradient zero", max(zero.values(), default=0.0)
    for name in zero:
        found = single[pair.b].get(name)
        rows.append(fault(name, what, "missing") if found is None else judge_value(name, what, norm(found), noise, 0.0))
    return pair.conclude(rows, notes=sorted(zero))


def step(pair: Pair) -> Answer:
    """One optimiser step: each side against the optimiser's rule applied to its own gradient, and the change's norms.

    Where a gradient element is smaller than its noise, AdamW's first step turns the noise's sign into a whole step:
    changes themselves can't be compared elementwise, the rule's residual can.
    """
    own = (run[pair.a] for run in pair.runs("gradient/"))
    zero, rows = {name.split("/", 1)[1] for name in true_zeros(pair.evidence, pair.a, *own)}, []
    theirs, settings = pair.fields("optimiser")
    variants = [variant for variant in settings if variant in theirs]
    for run in ("float32", "float64"):
        residuals = {
            side: {variant: step_residuals(pair.evidence, side, variant, run) for variant in variants}
            for side in (pair.a, pair.b)
        }
        # In roundings of the parameter, so that what a few tensors of one variant show holds for all. The rule itself,
        # computed here in float64, leaves a few.
        floor = max((value for found in residuals[pair.a].values() for value in found.values()), default=float("nan"))
        if run == "float64" and np.isnan(floor):
            continue  # the reference has no float64 step
        for variant, found in residuals[pair.b].items():
            what = f"roundings away from {settings[variant]['rule']}'s rule" + ", float64" * (run == "float64")
            rows += [judge_value(f"{variant}/{name}", what, value, floor, 0.0) for name, value in found.items()]
    held = pair.decided()
    for variant in variants:
        phase, norms = settings[variant]["phase"], step_norms(pair.evidence, pair.a, pair.b, variant, zero)
        rows += excuse(norms, held, lambda row, phase=phase: f"{phase}/")
    return pair.conclude(rows, notes=sorted(zero))


def batch_norm(pair: Pair) -> Answer:
    """Running statistics after one training forward, counters included."""
    rows = tensors(*pair.where, *pair.runs("bn/"), "l2", "bn/")
    theirs, ours = pair.arrays("bn/").values()
    published = pair.a == "published"
    if pair.holds("counters") and (theirs or not published):  # not every golden record counts batches
        rows += identical(compare_sets(theirs, chosen(ours, tuple(theirs)) if published else ours))
    return pair.conclude(rows)


def lockstep(pair: Pair) -> Answer:
    """Every quantity of every step of two trainings side by side, with the same gradients fed to both and their own."""
    rows, first = [pair.same("batches", "batches")], None
    runs = [
        (mode, engine.side_by_side(*pair.fields(mode), tuple(pair.arrays(f"{mode}/").values())))
        for mode in ("fed", "native")
    ]
    theirs, ours = pair.fields("windows")
    places = [[[one[key] for key in ("events", "first", "resumed", "end")] for one in side] for side in (theirs, ours)]
    rows.append(decisions("windows", int(places[0] != places[1]), 1))
    for mine, other in zip(theirs, ours):
        around = f"window around {', '.join(mine['events'])}"
        runs.append((around, engine.side_by_side(mine, other, first=mine["first"])))
    for mode, result in runs:
        rows += [replace(row, name=f"{mode}, {row.name}") for row in result.rows()]
        if first is None and (apart := result.first()):
            kind, tensor = apart.kind.replace("_", " "), apart.rows[0].name
            first = {
                "mode": mode,
                "step": apart.step,
                "kind": kind,
                "precision": apart.precision,
                "tensor": tensor,
            }
    answer = pair.conclude(rows)
    if answer.verdict is Verdict.FAIL and first:
        return replace(answer, reason="first_apart", values=answer.values | first)
    return answer


def trajectory(pair: Pair) -> Answer:
    """The loss of b's run inside the band of a's controls, up to where right runs part; its parts are shown.

    UNDERPOWERED where it stays inside but the band could not have told: controls part at the first step, or the run
    with the wrong learning rate stays inside too.
    """
    held, own = pair.field(pair.a, "curves"), pair.field(pair.b, "curves", "own")
    controls, off = held["controls"], held["off"]
    band = bands.band([run["loss"] for run in controls])
    rows = [pair.same("batches", "curves", "batches"), bands.inside("loss", band, own["loss"])]
    inside = rows[-1].passed is not False or band.fault == bands.TOO_WIDE
    rows.append(bands.sensitivity("loss", band, off["loss"]))
    telling = rows[-1].passed and not band.fault
    parts = {name: bands.band([run[name] for run in controls]) for name in controls[0] if name != "loss"}
    rows += [
        replace(bands.inside(name, part, own.get(name, ())), passed=None)
        for name, part in parts.items()
        if not part.fault
    ]
    if inside and not telling:
        rows = [row if row.what == "decisions" else replace(row, passed=None) for row in rows]
    answer = pair.conclude(rows)
    if answer.verdict is Verdict.FAIL:
        return answer
    left = band.exit(np.asarray(off["loss"], float))
    values = answer.values | {
        "controls": len(controls),
        "steps": len(own["loss"]),
        "horizon": band.horizon,
        "left": "–" if left is None else left,
    }
    if telling:
        return replace(answer, reason="stays_in_band", values=values)
    return replace(answer, verdict=Verdict.UNDERPOWERED, reason="band_cannot_tell", values=values)


def schedule(pair: Pair) -> Answer:
    """The rates, momenta and counts of every step of both trainings: equal, and those that the published rule gives."""
    held = dict(zip((pair.a, pair.b), pair.fields("schedule")))
    found = {"both": prescribed.between(*held.values())}
    found |= {side: prescribed.kept(pair.evidence.model, run) for side, run in held.items()}
    rows = [replace(row, name=f"{who}, {row.name}") for who, own in found.items() for row in own]
    answer = pair.conclude(rows)
    values = answer.values | {"numbers": int(sum(row.scale for row in rows)), "steps": held[pair.a]["steps"]}
    if answer.verdict is Verdict.FAIL:
        apart = min((row for row in rows if not row.passed), key=lambda row: int(row.note.split(":")[0].split()[1]))
        return replace(answer, reason="schedule_left", values=values | {"quantity": apart.name, "first": apart.note})
    return replace(answer, reason="schedule_kept", values=values)


def training(pair: Pair) -> Answer:
    """Same start, same batches, same first losses: judged. Curves and final mAP: shown, no gate is derived for them.

    Where float32 takes a decision otherwise than float64, its gate is as wide as what that changes; float64 tells then.
    """
    rows = [pair.same(f"{name} bytes", f"{name}_sha256") for name in ("initial", "batches")]
    theirs, ours = pair.fields("first_step")
    if "float64" in theirs:
        rows += judge_scalars(theirs, ours, SHARP, theirs.get("repeats", ()))
    for side, check in zip((pair.a, pair.b), pair.fields("overfit")):
        if check:
            note = f"AP50 {check['AP50']:.3f} after {check['steps']} steps"
            rows.append(decisions(f"{side}: eight images learnt by heart", int(not check["reached"]), 1, note))
    numbers = pair.numbers("final_map", "final", "AP") + pair.numbers("training_seconds", "seconds")
    return pair.conclude(rows, numbers)
