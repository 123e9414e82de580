"""Questions about training: one step's losses, decisions, gradients, update and statistics; many steps; whole runs."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from lib.alignment import datastages, equivalence, gate, prescribed
from lib.alignment import lockstep as engine
from lib.alignment import trajectory as bands
from lib.alignment.compare import compare_sets
from lib.alignment.decisions import excuse, legal_flip, nearness
from lib.alignment.equivalence import Outcome
from lib.alignment.evidence import REFERENCE, pointer
from lib.alignment.gate import SHARP, C
from lib.alignment.questions.pair import Pair, identical
from lib.alignment.rows import (
    chosen,
    float64_factor,
    mapping,
    noise_alone,
    reaches,
    step_norms,
    step_residuals,
    tensors,
)
from lib.alignment.verdict import Answer, K, Number, Row, Verdict, decisions, judge_value


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
    reach = reaches(pair.evidence, pair.stage, pair.b, "loss/")
    both = map(_by_precision, pair.fields("losses"))
    rows = gate.judge_scalars(*both, reach, C * float64_factor(*pair.where))
    outputs = tensors(*pair.where, *pair.runs("output/"), "max_abs", "output/")
    held, first = pair.decided(), next(iter(pair.field(pair.a, "losses")))  # whose outputs they are
    return pair.conclude(
        excuse(rows, lambda row: legal_flip(held, _phase(row)))
        + excuse(outputs, lambda row: legal_flip(held, f"{first}/"))
    )


def _by_precision(phases: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Losses by precision and "phase/name"."""
    return {
        run: {f"{phase}/{name}": value for phase, runs in phases.items() for name, value in runs.get(run, {}).items()}
        for run in ("float32", "float64")
    }


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
    rows = tensors(*pair.where, *pair.runs("gradient/"), "l2", "gradient/")
    held = pair.decided()
    return pair.conclude(excuse(rows, lambda row: legal_flip(held, _phase(row))))


def step(pair: Pair) -> Answer:
    """One optimiser step: each side against the optimiser's rule applied to its own gradient, and the change's norms.

    Where a gradient element is smaller than its noise, AdamW's first step turns the noise's sign into a whole step:
    changes themselves can't be compared elementwise, the rule's residual can.
    """
    rows = []
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
    noisy = set()
    for variant in variants:
        noisy |= (own := noise_alone(pair.evidence, settings[variant]["phase"]))
        rows += step_norms(pair.evidence, pair.a, pair.b, variant, own)
        if pair.a == REFERENCE:
            rows.append(mapping(f"{variant}: rule, rates, groups", *map(_stated, (theirs[variant], settings[variant]))))
    return pair.conclude(rows, notes=sorted(noisy))


def _stated(settings: dict[str, Any]) -> dict[str, Any]:
    """What a step's settings say, but for the gradient's size, which was measured; a group's names in any order."""
    groups = [{**group, "names": sorted(group["names"])} for group in settings["groups"]]
    return {name: value for name, value in settings.items() if name != "grad_norm"} | {"groups": groups}


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
    placed = [(step, replace(row, name=f"{who}, {row.name}")) for who, own in found.items() for step, row in own]
    rows = [row for _, row in placed]
    answer = pair.conclude(rows)
    values = answer.values | {"numbers": int(sum(row.scale for row in rows)), "steps": held[pair.a]["steps"]}
    if answer.verdict is Verdict.FAIL:
        _, apart = min((one for one in placed if not one[1].passed), key=lambda one: one[0])
        return replace(answer, reason="schedule_left", values=values | {"quantity": apart.name, "first": apart.note})
    return replace(answer, reason="schedule_kept", values=values)


def training(pair: Pair) -> Answer:
    """Same start, same batches, same first losses: judged. Curves and final mAP: shown, no gate is derived for them;
    where the training was repeated, the difference of the mean mAPs is judged.

    Where float32 takes a decision otherwise than float64, its gate is as wide as what that changes; float64 tells then.
    """
    rows = [pair.same(f"{name} bytes", f"{name}_sha256") for name in ("initial", "batches")]
    theirs, ours = pair.fields("first_step")
    if "float64" in theirs:  # a distilled model's are not asked for
        reach = gate.restored(pair.field(pair.a, "first_step", "reach"))
        judged = gate.judge_scalars(theirs, ours, reach, C * SHARP)
        legal = 0 < float(pair.field(pair.b, "first_step", "astray")) <= K
        rows += excuse(judged, lambda row: "the assignment" if legal else "")
    for side, check in zip((pair.a, pair.b), pair.fields("overfit")):
        if check:
            note = f"AP50 {check['AP50']:.3f} after {check['steps']} steps"
            rows.append(decisions(f"{side}: eight images learnt by heart", int(not check["reached"]), 1, note))
    numbers = pair.numbers("final_map", "final", "AP") + pair.numbers("training_seconds", "seconds")
    several = [pair.evidence.get(side, pair.stage).fields.get("repeats", ()) for side in (pair.a, pair.b)]
    if max(map(len, several)) < 2:
        return pair.conclude(rows, numbers)
    return _repeated(pair, rows, numbers, *several)


def _repeated(pair: Pair, rows: list[Row], numbers: list[Number], theirs: list[dict], ours: list[dict]) -> Answer:
    """The answer where trainings were repeated: rows on the first of them, and the difference of the mean mAPs."""
    plans = [[(one["seed"], one["roundings"]) for one in side] for side in (theirs, ours)]
    if plans[0] != plans[1]:
        return pair.conclude([*rows, decisions("seeds and roundings of the repeated trainings", 1, 1)], numbers)
    bits = sum(a["losses"][-1] == b["losses"][-1] for a, b in zip(theirs, ours))
    note = "rounding parts any two trainings: one side's are the other's"
    rows = [*rows, decisions("repeated trainings that end in the same loss to the last bit", bits, len(ours), note)]
    found = equivalence.means(*([one["AP"] for one in side] for side in (theirs, ours)))
    passed = {Outcome.EQUIVALENT: True, Outcome.DIFFERENT: False}.get(found.outcome)
    sizes = abs(found.difference), (found.high - found.low) / 2, equivalence.MARGIN, found.reference
    answer = pair.conclude([*rows, Row("repeated trainings", "difference of mean mAP", *sizes, passed)], numbers)
    if any(row.passed is False for row in rows):
        return answer
    for side, trainings in ((pair.a, theirs), (pair.b, ours)):
        for place, one in enumerate(trainings):
            about = f"seed {one['seed']}" + f", moved by rounding {one['roundings']}" * (one["roundings"] > 0)
            keys, run_id = ("fields", "repeats", place), pair.evidence.run_id(side, pair.stage)
            last = pointer(run_id, *keys, "losses", len(one["losses"]) - 1)
            numbers.append(Number("repeated_map", side, one["AP"], pointer(run_id, *keys, "AP"), about))
            numbers.append(Number("repeated_loss", side, one["losses"][-1], last, about))
    values = {"trainings": len(ours), "margin": equivalence.MARGIN, "power": equivalence.POWER, **asdict(found)}
    verdict = Verdict.UNDERPOWERED if passed is None else answer.verdict
    reason = "repeats_alike" if np.isnan(found.smallest) else "repeats"
    more = {"reason": reason, "values": answer.values | values, "numbers": tuple(numbers)}
    return replace(answer, verdict=verdict, **more)
