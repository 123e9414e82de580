"""The questions of the alignment report; each answers one pair of sides from their records, and runs no model.

Pairs with the published side: error against its float64 numbers <= K x its own float32 error. Where it gives statistics
instead of a tensor, the gate follows from the tensor's: |norm(a) - norm(b)| <= norm(a - b), and a mean deviates by at
most norm(a - b) / sqrt(n). Pair torch-jittor: difference <= K x PyTorch's own float32 deviation from float64.
"""
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lib.alignment import references
from lib.alignment.compare import Comparison, compare_sets, norm
from lib.alignment.evidence import PAIRS, SIDES, Evidence, pointer
from lib.alignment.rows import (
    chosen, detections, excuse_flips, float64_factor, mapping, other_deviations, step_norms, step_residuals, tensors, true_zeros,
)  # fmt: skip
from lib.alignment.verdict import (
    TARGETS, Answer, K, Number, Row, Verdict, conclude, decisions, fault, judge_scalars, judge_value, target_status,
)  # fmt: skip
from lib.record import Record, measure, read


def structure(evidence: Evidence, a: str, b: str) -> Answer:
    """Entries by name, shape, type and kind, their order; parameter count; normalisation layers."""
    ours, theirs = ({row[0]: row[1:4] for row in evidence.field(s, "convert", "state")} for s in (b, a))
    rows = [mapping("state entries (shape, type, kind)", theirs, ours)]
    swapped = [x for x, y in zip(theirs, ours) if x != y]
    rows.append(decisions("order of the entries", len(swapped), len(theirs), f"first: {swapped[0]}" if swapped else ""))
    for name in ("parameters", "norm_layers"):
        x, y = (evidence.field(s, "convert", name) for s in (a, b))
        rows.append(decisions(name.replace("_", " "), int(x != y), 1, f"{x} and {y}"))
    numbers = [_number(evidence, "parameters", side, "convert", "parameters") for side in (a, b)]
    return conclude("structure", f"{a}-{b}", rows, _sources(evidence, "convert", a, b), numbers=numbers)


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
        _number(evidence, "loaded", side, "convert", "coverage", "loaded") for side in (a, b) if side != "published"
    ]
    return conclude("conversion", f"{a}-{b}", rows, _sources(evidence, "convert", a, b), numbers=numbers)


def forward(evidence: Evidence, a: str, b: str) -> Answer:
    """Raw outputs and named features in evaluation mode, and the detections they give."""
    if other := _other_case(evidence, "forward", a, b, "forward"):
        return other
    single = {side: evidence.arrays(side, "forward", "float32/") for side in (a, b)}
    double = {side: evidence.arrays(side, "forward", "float64/") for side in (a, b)}
    found = [{side: kept.pop("detections") for side, kept in runs.items() if "detections" in kept} for runs in (single, double)]
    rows = tensors(evidence, "forward", a, b, single, double, "max_abs")
    rows += detections(a, b, *found, *(evidence.field(b, "forward", name) for name in ("score_threshold", "max_detections")))
    if a == "published" and (live := evidence.field(b, "forward", "live")):
        rows += [judge_value(f"{live['name']} {live['version']}, {name}", "max_abs, run live on our weights", *found.values())
                 for name, found in live["outputs"].items()]  # fmt: skip
    return conclude("forward", f"{a}-{b}", rows, _sources(evidence, "forward", a, b))


def losses(evidence: Evidence, a: str, b: str) -> Answer:
    """Every loss component in every phase, and the raw training outputs they come from."""
    if other := _other_case(evidence, "loss", a, b, "losses"):
        return other
    per_phase = {side: evidence.field(side, "loss", "losses") for side in (a, b)}
    flat = {
        side: {run: {f"{phase}/{name}": value for phase, runs in phases.items() for name, value in runs.get(run, {}).items()}
               for run in ("float32", "float64")}
        for side, phases in per_phase.items()
    }  # fmt: skip
    exact, rounded = flat[a]["float64"], flat[a]["float32"]
    rows = judge_scalars(exact, rounded, flat[b]["float32"], exact if a == "published" else rounded)
    if flat[b]["float64"]:
        sharp = judge_scalars(exact, rounded, flat[b]["float64"], factor=float64_factor(evidence, "loss", a, b))
        rows += [replace(row, what="scalar, float64") for row in sharp]
    runs = [{s: evidence.arrays(s, "loss", f"{run}/output/") for s in (a, b)} for run in ("float32", "float64")]
    rows += tensors(evidence, "loss", a, b, *runs, "max_abs", "output/")
    return conclude("losses", f"{a}-{b}", rows, _sources(evidence, "loss", a, b))


def assignment(evidence: Evidence, a: str, b: str) -> Answer:
    """The assigner's decisions: which box, and which class, each prior is given."""
    if other := _other_case(evidence, "loss", a, b, "assignment"):
        return other
    theirs, ours = (evidence.arrays(side, "loss", "assignment/") for side in (a, b))
    rows = _identical(compare_sets(theirs, chosen(ours, tuple(theirs)) if a == "published" else ours))  # it records some phases
    return conclude("assignment", f"{a}-{b}", rows, _sources(evidence, "loss", a, b))


def gradients(evidence: Evidence, a: str, b: str) -> Answer:
    """Every parameter's gradient in every phase."""
    if other := _other_case(evidence, "loss", a, b, "gradients"):
        return other
    single, double = ({s: evidence.arrays(s, "loss", f"{run}/gradient/") for s in (a, b)} for run in ("float32", "float64"))
    deviations = other_deviations(evidence, double[a]) if a == "torch" else None
    rows = tensors(evidence, "loss", a, b, single, double, "l2", "gradient/", deviations)
    zero = true_zeros(evidence, a, single[a], double[a])
    noise = max(zero.values(), default=0.0)
    rows = excuse_flips([row for row in rows if row.name not in zero])
    # Where the true gradient is zero only noise is left, and its size varies more than a gradient's error: all such
    # parameters share the largest noise.
    for name in zero:
        what, there = "noise, true gradient zero", name in single[b]
        rows.append(judge_value(name, what, norm(single[b][name]), noise, 0.0) if there else fault(name, what, "missing"))
    return conclude("gradients", f"{a}-{b}", rows, _sources(evidence, "loss", a, b), notes=sorted(zero))


def step(evidence: Evidence, a: str, b: str) -> Answer:
    """One optimiser step: each side against the optimiser's rule applied to its own gradient, and the change's norms.

    Where a gradient element is smaller than its noise, AdamW's first step turns the noise's sign into a whole step:
    changes themselves can't be compared elementwise, the rule's residual can.
    """
    if other := _other_case(evidence, "loss", a, b, "step"):
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
            rows += [judge_value(f"{variant}/{name}", what + ", float64" * (run == "float64"), value, floor, 0.0)
                     for name, value in found.items()]  # fmt: skip
    for variant in variants:
        rows += step_norms(evidence, a, b, variant, zero)
    return conclude("step", f"{a}-{b}", rows, _sources(evidence, "loss", a, b), notes=sorted(zero))


def batch_norm(evidence: Evidence, a: str, b: str) -> Answer:
    """Running statistics after one training forward, counters included."""
    if other := _other_case(evidence, "loss", a, b, "batch_norm"):
        return other
    single, double = ({s: evidence.arrays(s, "loss", f"{run}/bn/") for s in (a, b)} for run in ("float32", "float64"))
    rows = tensors(evidence, "loss", a, b, single, double, "l2", "bn/")
    theirs, ours = (evidence.arrays(side, "loss", "bn/") for side in (a, b))
    if theirs or a != "published":  # not every golden record counts batches
        rows += _identical(compare_sets(theirs, chosen(ours, tuple(theirs)) if a == "published" else ours))
    return conclude("batch_norm", f"{a}-{b}", rows, _sources(evidence, "loss", a, b))


def training(evidence: Evidence, a: str, b: str) -> Answer:
    """Same start, same batches, same first losses: judged. Curves and final mAP: shown, no gate is derived for them."""
    rows = []
    for name in ("initial_sha256", "batches_sha256"):
        x, y = (evidence.field(side, "train", name) for side in (a, b))
        rows.append(decisions(name.removesuffix("_sha256") + " bytes", int(x != y), 1))
    first = {side: evidence.field(side, "train", "first_step") for side in (a, b)}
    if "float64" in first[a]:
        rows += judge_scalars(first[a]["float64"], first[a]["float32"], first[b]["float32"], first[a]["float32"])
    learnt = {side: evidence.field(side, "train", "overfit") for side in (a, b)}
    rows += [decisions(f"{side}: eight images learnt by heart", int(not check["reached"]), 1, f"AP50 {check['AP50']:.3f} after {check['steps']} steps")
             for side, check in learnt.items() if check]  # fmt: skip
    numbers = [_number(evidence, "final_map", side, "train", "final", "AP") for side in (a, b)]
    numbers += [_number(evidence, "training_seconds", side, "train", "seconds") for side in (a, b)]
    return conclude("training", f"{a}-{b}", rows, _sources(evidence, "train", a, b), numbers=numbers)


def evaluation(evidence: Evidence, a: str, b: str) -> Answer:
    """The same trained weights in both: detections matched one to one; the COCO numbers beside them."""
    shas = [evidence.field(side, "evaluate", "common_weights_sha256") for side in (a, b)]
    rows = [decisions("common weights", int(shas[0] != shas[1]), 1)]
    runs = [
        {side: kept["common/detections"] for side in (a, b) if "common/detections" in (kept := evidence.arrays(side, "evaluate", prefix))}
        for prefix in ("float32/", "float64/")
    ]
    limits = [evidence.field(a, "evaluate", name) for name in ("score_threshold", "max_detections")]
    rows += detections(a, b, *runs, *limits)
    numbers = [
        _number(evidence, "coco", side, "evaluate", "common", name, about=name)
        for name in evidence.field(a, "evaluate", "common") for side in (a, b)
    ]  # fmt: skip
    return conclude("evaluation", f"{a}-{b}", rows, _sources(evidence, "evaluate", a, b), numbers=numbers)


def speed(evidence: Evidence, a: str, b: str) -> Answer:
    """Times side by side. Not judged, but for a clock that can't be right.

    The frameworks were timed in turns on one machine: the ratio is the record's own. The published code was timed
    elsewhere, in units of a matrix product, which is how the two are set side by side.
    """
    held = {
        side: {(c["operation"], c["batch"], tuple(c["size"])): (i, c) for i, c in enumerate(evidence.field(side, "speed", "cases"))}
        for side in (a, b)
    }
    sources = _sources(evidence, "speed", a, b)
    for side in (side for side in (a, b) if evidence.field(side, "speed", "deferred")):
        for (work, batch, _), (_, case) in held[side].items():
            if case["unsynchronised_ms"]["median"] >= case["synchronised_ms"]["median"]:
                values = {"side": side, "work": work, "batch": batch}
                return Answer("speed", f"{a}-{b}", Verdict.FAIL, "clock_fault", values, sources=sources)
    keys = ("units",) if a == "published" else ("synchronised_ms", "median")
    numbers, ratios = [], {}
    for key, (i, case) in held[a].items():
        if key not in held[b]:
            continue
        j, other = held[b][key]
        about = f"{key[0]}, batch {key[1]}"
        ratios[about] = other["units"] / case["units"] if a == "published" else other["ratio_to"][a]["median"]
        for side, index, found in ((a, i, case), (b, j, other)):
            value = found["units"] if a == "published" else found["synchronised_ms"]["median"]
            ref = pointer(evidence.run_id(side, "speed"), "fields", "cases", index, *keys)
            numbers.append(Number(keys[0], side, value, ref, about))
    return Answer("speed", f"{a}-{b}", Verdict.SHOWN, "ratios", {"ratios": ratios}, numbers=tuple(numbers), sources=sources)


COLUMNS = ("name", "what", "error", "floor", "gate", "ratio", "scale", "passed", "note", "target")
# What is asked, in the order of the report: question -> (stage its records come from, whether the published side has it, how).
QUESTIONS: dict[str, tuple[str, bool, Callable[[Evidence, str, str], Answer]]] = {
    "structure": ("convert", True, structure),
    "conversion": ("convert", True, conversion),
    "forward": ("forward", True, forward),
    "losses": ("loss", True, losses),
    "assignment": ("loss", True, assignment),
    "gradients": ("loss", True, gradients),
    "step": ("loss", True, step),
    "batch_norm": ("loss", True, batch_norm),
    "training": ("train", False, training),
    "evaluation": ("evaluate", False, evaluation),
    "speed": ("speed", True, speed),
}


def answers(folder: str | Path, model: str) -> list[Answer]:
    """One answer per question and pair that can have one; NOT RUN where a record is missing."""
    evidence = Evidence(folder, model)
    found = []
    for question, (stage, has_published, answer) in QUESTIONS.items():
        for a, b in (pair for pair in PAIRS if has_published or "published" not in pair):
            if missing := [evidence.run_id(side, stage) for side in (a, b) if evidence.get(side, stage) is None]:
                found.append(Answer(question, f"{a}-{b}", Verdict.NOT_RUN, "no_record", {"missing": ", ".join(missing)}))
            else:
                found.append(answer(evidence, a, b))
    return found


def judge_records(folder: str | Path, models: Iterable[str], golden: Path = references.GOLDEN) -> list[Record]:
    """Write the published side's records of each model, answer all questions, and save the verdicts as records.

    Returns these, `<model>/none/compare`.
    """
    return [_judge_model(Path(folder), model, golden) for model in models]


def _judge_model(folder: Path, model: str, golden: Path) -> Record:
    references.write(folder, model, golden)
    inputs = sorted(path for side in SIDES for path in (folder / model / side).glob("*.json"))
    with measure("compare", model, folder, inputs=inputs) as measurement:
        measurement.fields |= {"k": K, "columns": list(COLUMNS)}
        measurement.fields["verdicts"] = [_plain(answer) for answer in answers(folder, model)]
    return read(measurement.path)


def _plain(answer: Answer) -> dict[str, Any]:
    """The answer as JSON: rows as lists under COLUMNS, with the status of the quoted target where there is one."""
    target = TARGETS.get(answer.question)
    statuses = [target_status(row, target) if target and row.scale else None for row in answer.rows]
    return {
        "question": answer.question, "pair": answer.pair, "verdict": answer.verdict.value, "reason": answer.reason,
        "values": answer.values, "target": target, "targets": dict(Counter(status for status in statuses if status)),
        "sources": answer.sources, "notes": answer.notes, "numbers": [asdict(number) for number in answer.numbers],
        "rows": [
            [r.name, r.what, r.error, r.floor, r.gate, r.ratio, r.scale, r.passed, r.note, status]
            for r, status in zip(answer.rows, statuses)
        ],
    }  # fmt: skip


def _identical(comparisons: list[Comparison]) -> list[Row]:
    """Rows for integers that must be equal, element by element."""
    return [
        fault(c.name, "decisions", c.fault) if c.fault
        else decisions(c.name, c.differing, c.size, f"first at {c.worst}" if c.differing else "")
        for c in comparisons
    ]  # fmt: skip


def _other_case(evidence: Evidence, stage: str, a: str, b: str, question: str) -> Answer | None:
    """A failing answer where the two records measured different inputs; None where they are of one case."""
    cases = [evidence.field(side, stage, "case") for side in (a, b)]
    if cases[0] == cases[1]:
        return None
    values = {"first": cases[0], "second": cases[1]}
    return Answer(question, f"{a}-{b}", Verdict.FAIL, "other_case", values, sources=_sources(evidence, stage, a, b))


def _sources(evidence: Evidence, stage: str, a: str, b: str) -> tuple[str, ...]:
    return tuple(evidence.run_id(side, stage) for side in (a, b))


def _number(evidence: Evidence, label: str, side: str, stage: str, *keys: str, about: str = "") -> Number:
    ref = pointer(evidence.run_id(side, stage), "fields", *keys)
    return Number(label, side, evidence.field(side, stage, *keys), ref, about)
