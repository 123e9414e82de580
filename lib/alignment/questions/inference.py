"""Questions about the model before it learns: its entries, an image's way through it, detections, times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lib.alignment import divergence as depth
from lib.alignment import equivalence as bootstrap
from lib.alignment import initial
from lib.alignment.compare import compare_sets
from lib.alignment.decisions import FLIP, Decisions, excuse, legal_flip, nearness
from lib.alignment.equivalence import Equivalence, Outcome
from lib.alignment.evidence import pointer
from lib.alignment.gate import STORED, C
from lib.alignment.questions.pair import Pair, identical
from lib.alignment.rows import NOTHING, detections, mapping, reaches, tensors
from lib.alignment.verdict import Answer, K, Number, Row, Verdict, decisions, fault, judge_value

SUBNORMAL = "subnormal"  # numbers that Jittor's kernels take for zero, as they are linked with -Ofast


def structure(pair: Pair) -> Answer:
    """Entries by name, shape, type and kind, their order; parameter count; normalisation layers."""
    theirs, ours = ({row[0]: row[1:4] for row in state} for state in pair.fields("state"))
    other = [x for x in theirs if x in ours and theirs[x] != ours[x] and _wide(theirs[x]) == _wide(ours[x])]
    rows = [mapping("state entries (shape, type, kind)", theirs, ours | {name: theirs[name] for name in other})]
    if other:
        said = f"{other[0]}: {ours[other[0]][1]} where the reference has {theirs[other[0]][1]}"
        rows.append(decisions("integers of another type, whose values conversion compares", 0, len(other), said))
    swapped = [x for x, y in zip(theirs, ours) if x != y]
    if pair.holds("order"):
        first = f"first: {swapped[0]}" if swapped else ""
        rows.append(decisions("order of the entries", len(swapped), len(theirs), first))
    for name in ("parameters", "norm_layers"):
        x, y = pair.fields(name)
        rows.append(decisions(name.replace("_", " "), int(x != y), 1, f"{x} and {y}"))
    return pair.conclude(rows, pair.numbers("parameters", "parameters"))


def _wide(entry: list) -> list:
    """Shape, type and kind of an entry, any type of integers as int64."""
    return [entry[0], "int64" if entry[1].startswith("int") else entry[1], entry[2]]


def conversion(pair: Pair) -> Answer:
    """Every entry loaded, none left over, the bytes equal on both sides, each format's round trip bit-equal."""
    rows, sides = [], [side for side in (pair.a, pair.b) if side != "published"]
    for side in sides:
        for name in ("missing", "left_over", "misshapen", "not_finite"):
            found = pair.field(side, name)
            rows.append(decisions(f"{side}: {name.replace('_', ' ')}", len(found), 1, found[0] if found else ""))
        coverage = pair.field(side, "coverage")
        rows.append(decisions(f"{side}: entries not loaded", coverage["total"] - coverage["loaded"], coverage["total"]))
        for name, equal in pair.field(side, "round_trip").items():
            rows.append(decisions(f"{side}: {name} round trip, not bit-equal", int(not equal), 1))
    theirs, ours = ({row[0]: row[4] for row in state} for state in pair.fields("state"))
    known = {name: value for name, value in theirs.items() if value is not None}  # published: constants have no seed
    rows.append(mapping("bytes of the entries", known, {name: value for name, value in ours.items() if name in known}))
    return pair.conclude(rows, [pair.number("loaded", side, "coverage", "loaded") for side in sides])


def initialisation(pair: Pair) -> Answer:
    """Fresh weights: of one seed our shared source draws equal bytes; against the published distributions, and of a
    user's port, each parameter is one sample."""
    (theirs, ours), found = pair.fields("first"), pair.arrays("first/")
    if pair.a != "published" and (theirs == ours or pair.holds("start")):
        return pair.conclude([mapping("bytes of the fresh weights", theirs, ours)])
    rows = initial.against(theirs, found[pair.b]) if pair.a == "published" else initial.beside(*found.values())
    answer = pair.conclude(rows)
    return replace(answer, reason="starts_alike" if answer.verdict is Verdict.PASS else "starts_otherwise")


def forward(pair: Pair) -> Answer:
    """Raw outputs and named features in evaluation mode, the decisions on their way, and the detections they give."""
    runs, held = pair.runs(), pair.decided()
    found = [{side: kept.pop("detections") for side, kept in run.items() if "detections" in kept} for run in runs]
    whole, _ = ([_integers(kept) for kept in run.values()] for run in runs)
    rows = [row for kind in held for row in kind.rows()]
    rows += excuse(tensors(*pair.where, *runs, "max_abs"), lambda row: legal_flip(held, ""))
    rows += identical(compare_sets(*whole)) if any(whole) else []
    if pair.holds("detections"):
        near = pair.exact().get("near/detections", NOTHING)
        limits = (pair.field(pair.b, name) for name in ("score_threshold", "max_detections"))
        rows += detections(pair.a, pair.b, *found, *limits, near)
        held += _nearest(len(found[0].get(pair.b, ())), near)
    if pair.a == "published" and (live := pair.field(pair.b, "live")):
        what, who = "max_abs, run live on our weights", f"{live['name']} {live['version']}"
        reach = reaches(pair.evidence, pair.stage, pair.b, "final/")
        for name, output in live["outputs"].items():
            sizes = output["error"], reach[name].max_abs, output["scale"]
            rows.append(judge_value(f"{who}, {name}", what, *sizes, C, STORED["float32"]))
    answer = pair.conclude(rows)
    if not (values := nearness(held)):
        return answer
    values["flipped"] = sum(row.what == FLIP for row in rows)
    reason = "within_gate_decided" if answer.reason == "within_gate" else answer.reason
    return replace(answer, reason=reason, values=answer.values | values)


def _nearest(total: int, near: np.ndarray) -> list[Decisions]:
    """How near detections came to suppression, or to the last place; nothing where no exact scores say so."""
    margins = near[:, 6]
    if not len(near):
        return []
    return [Decisions("detections", total, (), None, float(margins.min()), int(np.count_nonzero(margins <= K)))]


def _integers(kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take the outputs that are no real numbers out of a run; they are decisions, which must be equal."""
    return {name: kept.pop(name) for name in list(kept) if kept[name].dtype.kind != "f"}


def divergence(pair: Pair) -> Answer:
    """Each layer's own error, its inputs the reference's: the first layer beyond its gate, forward and backward."""
    found = depth.localise(pair.evidence.get(pair.b, pair.stage).fields)
    rows = [pair.same("capture that both speak of", "captured"), *found.rows()]
    numbers = [number for name in ("times_plain", "gb_per_second") for number in pair.numbers(name, "cost", name)]
    answer = pair.conclude(rows, numbers)
    if answer.verdict is Verdict.PASS:
        values = answer.values | {"layers": len(found.layers)} | _amplification(found)
        return replace(answer, reason="diverges_nowhere", values=values)
    first = {direction: found.first(direction) for direction in depth.DIRECTIONS}
    if not any(first.values()):
        return answer
    names = {direction: layer.name if layer else "–" for direction, layer in first.items()}
    script = pair.field(pair.b, "reproduction") or "–"
    return replace(answer, reason="diverges_at", values=answer.values | names | {"script": script})


def _amplification(found: depth.Divergence) -> dict[str, str | float]:
    """The layer that makes most of the error that reaches it."""
    leaves = {layer.name: layer.amplification("forward") for layer in found.layers if layer.leaf}
    factors = {name: factor for name, factor in leaves.items() if factor is not None}
    most = max(factors, key=factors.__getitem__, default="–")
    return {"amplifier": most, "amplification": factors.get(most, 0.0)}


def operators(pair: Pair) -> Answer:
    """Each kind of operator alone, at sizes across block edges: errors judged as those of a network's own layers.

    The reference's float32 run is held against its float64 run with everything moved by K roundings.
    """
    theirs, ours = pair.fields("swept")
    rows = [
        replace(row, what=row.what.replace("own error", "the reference's own error"))
        for row in depth.localise(theirs).rows()
    ]
    rows = [pair.same("capture that both speak of", "captured"), *depth.localise(ours).rows(), *rows]
    refused = [f"{call['path']}: {call['unable']}" for call in theirs["layers"] if call["unable"]]
    large = [f"{name}: too large to keep, run on fewer images alone" for name in pair.field(pair.a, "too_large")]
    return pair.conclude(rows, notes=[*refused, *large])


def poison(pair: Pair) -> Answer:
    """Where NaN, infinity, huge or subnormal numbers or nothing go in: every result is of the same kind, zero, NaN,
    infinite or another number, and where one side gives none the other does not either.

    Said and not judged is what is right as well: subnormal numbers taken for zero, and what is as in float64.
    """
    rows, calls = [pair.same("capture that both speak of", "poison_captured")], pair.field(pair.b, "poisoned")
    for one in calls:
        name, (theirs, ours) = f"{one['name']}, {one['poison']}", one["said"]
        if bool(theirs) != bool(ours):
            said = f"the reference: {theirs or 'gives a result'}; here: {ours or 'gives a result'}"
            rows.append(fault(name, "poisoned", said))
            continue
        other = theirs != ours and theirs.startswith("UserError")  # of one source is one message
        rows.append(decisions(name, other or one["differing"], one["elements"], one["first"] or ours))
    apart = [one for one in calls if one["otherwise"] and one["poison"] != SUBNORMAL]
    answer = pair.conclude(rows, notes=[f"{one['name']}, {one['poison']}: {one['otherwise']}" for one in apart])
    if answer.verdict is not Verdict.PASS:
        return answer
    values = {
        "calls": len(calls),
        "special": sum(one["special"] for one in calls),
        "flushed": sum(one["flushed"] + (one["otherwise"] if one not in apart else 0) for one in calls),
        "exact": sum(one["otherwise"] for one in apart),
    }
    return replace(answer, reason="alike_when_poisoned", values=answer.values | values)


def evaluation(pair: Pair) -> Answer:
    """The same trained weights in both: detections matched one to one; the COCO numbers beside them."""
    name = "common/detections"
    runs = [{side: kept[name] for side, kept in run.items() if name in kept} for run in pair.runs()]
    limits = [pair.field(pair.a, name) for name in ("score_threshold", "max_detections")]
    rows = [
        pair.same("common weights", "common_weights_sha256"),
        *detections(pair.a, pair.b, *runs, *limits),
    ]
    coco = (pair.numbers("coco", "common", name, about=name) for name in pair.field(pair.a, "common"))
    return pair.conclude(rows, [number for numbers in coco for number in numbers])


def equivalence(pair: Pair) -> Answer:
    """The difference of mAP with what the choice of images leaves open: common weights judged, own weights shown.

    How far a training repeated would vary is in no interval over images: that own weights differ is no fault by itself.
    """
    found: dict[str, Equivalence] = {}
    rows = []
    for weights in ("common", "own"):
        matches = pair.arrays(f"matches/{weights}/").values()
        try:
            held = map(bootstrap.restored, matches, pair.fields("images"))
            found[weights] = bootstrap.difference(*held)
        except ValueError as error:
            rows.append(fault(f"{weights} weights", "difference of mAP", str(error)))
            continue
        rows.append(_difference(f"{weights} weights", found[weights], weights == "common"))
    answer = pair.conclude(rows)
    if len(found) < 2:
        return answer
    common, own = found["common"], found["own"]
    low, high = common.equivalence_interval if common.outcome is Outcome.EQUIVALENT else common.difference_interval
    values = {
        "outcome": common.outcome.value,
        "difference": common.difference,
        "low": low,
        "high": high,
        "margin": common.margin,
        "images": common.images,
        "own": own.outcome.value,
        "own_difference": own.difference,
        "own_low": own.difference_interval[0],
        "own_high": own.difference_interval[1],
    }
    return replace(answer, verdict=_MEANS[common.outcome], reason="map_difference", values=answer.values | values)


_MEANS = {Outcome.EQUIVALENT: Verdict.PASS, Outcome.DIFFERENT: Verdict.FAIL, Outcome.UNDERPOWERED: Verdict.UNDERPOWERED}


def _difference(name: str, found: Equivalence, judged: bool) -> Row:
    """reach: half the wider interval, what the choice of images leaves open."""
    low, high = found.difference_interval
    passed = {Outcome.EQUIVALENT: True, Outcome.DIFFERENT: False}.get(found.outcome) if judged else None
    sizes = abs(found.difference), (high - low) / 2, found.margin, found.reference
    return Row(name, "difference of mAP", *sizes, passed, f"{found.outcome.value}: {found.reason}")


STEADY = 0.1  # a tenth: from 1 no ratio of times that scatter more can be told
BESIDE = 0.1  # of a core: so much others, as the daemons of any system, may take of those that the threads run on


def speed(pair: Pair) -> Answer:
    """Times side by side. Not judged, but for a clock that can't be right, and a form that is another function.

    The frameworks were timed in turns on one machine: the ratio is the record's own. The published code was timed
    elsewhere, in units of a matrix product, which is how the two are set side by side. UNDERPOWERED where the turns, or
    what ran beside them, leave no ratio to believe in, and where nobody could judge the form.
    """
    published = pair.a == "published"
    held = [
        {(case["operation"], case["batch"], tuple(case["size"])): (i, case) for i, case in enumerate(cases)}
        for cases in pair.fields("cases")
    ]
    if lie := _clock_fault(pair, held):
        return pair.answer(Verdict.FAIL, "clock_fault", lie)
    keys = ("units",) if published else ("synchronised_ms", "median")
    numbers, ratios, forms, disturbed, unjudged = [], {}, [], {}, {}
    for key, (i, case) in held[0].items():
        if key not in held[1]:
            continue
        j, other = held[1][key]
        about = f"{_work(case, other)}, batch {key[1]}"
        if _forms(case, other) != ("inference", "training"):  # more work than the reference's: no ratio of one function
            ratios[about] = other["units"] / case["units"] if published else other["ratio_to"][pair.a]["median"]
        for side, index, found, against in ((pair.a, i, case, pair.b), (pair.b, j, other, pair.a)):
            value = found["units"] if published else found["synchronised_ms"]["median"]
            ref = pointer(pair.evidence.run_id(side, pair.stage), "fields", "cases", index, *keys)
            numbers.append(Number(keys[0], side, value, ref, about))
            judged = found.get("form_judged") or {}
            if "unable" in judged:
                unjudged = {"side": side, "unable": judged["unable"]}
            elif judged:
                forms.append(_same_function(f"{side}, batch {key[1]}", **judged["worst"]))
            doubt = disturbance(found, against, _idle(pair, side))
            if doubt.disturbs:
                disturbed = {"work": about, "side": side, "scatter": doubt.scatter, "others": doubt.others}
    values, verdict, reason = {"ratios": ratios, **disturbed}, Verdict.SHOWN, "ratios"
    if forms:
        worst = max(forms, key=lambda row: row.ratio)
        values |= {"total": len(forms), "failing": sum(not row.passed for row in forms)}
        values |= {key: getattr(worst, key) for key in ("name", "error", "gate", "ratio")}
        verdict, reason = (verdict, "ratios_form") if worst.passed else (Verdict.FAIL, "form_differs")
    if unjudged and verdict is Verdict.SHOWN:
        values |= unjudged
        verdict, reason = Verdict.UNDERPOWERED, "ratios_unjudged"
    elif disturbed and verdict is Verdict.SHOWN:
        verdict, reason = Verdict.UNDERPOWERED, "ratios_disturbed"
    return replace(pair.answer(verdict, reason, values, numbers), rows=tuple(forms))


def _same_function(where: str, name: str, what: str, **values: Any) -> Row:
    """The row of what a form was off by the most, judged again."""
    return judge_value(f"{where}: {name}", what, *(float(values[key]) for key in ("error", "reach", "scale")))


def _clock_fault(pair: Pair, held: Sequence[Mapping]) -> dict[str, Any] | None:
    """Where not waiting took as long as waiting although calls return before the work is done."""
    for side, cases in zip((pair.a, pair.b), held):
        for (work, batch, _), (_, case) in cases.items() if pair.field(side, "deferred") else ():
            if case["unsynchronised_ms"]["median"] >= case["synchronised_ms"]["median"]:
                return {"side": side, "work": work, "batch": batch}
    return None


@dataclass(frozen=True)
class Disturbance:
    """What makes a case's times doubtful.

    scatter: how far the turns scatter around their middle, by quartiles. others: cores that other processes of the
    whole machine took meanwhile. idle: the machine's cores less the benchmark's threads.
    """

    scatter: float
    others: float
    idle: int

    @property
    def disturbs(self) -> bool:
        """Others do where they take what the threads run on; on a machine of many cores they have their own, and what
        they slow all the same shows in the scatter."""
        return self.scatter > STEADY or self.others > max(self.idle, 0) + BESIDE


def _idle(pair: Pair, side: str) -> int:
    """The machine's cores beside the benchmark's threads; all of them for published times, which name none."""
    held = pair.evidence.get(side, pair.stage)
    return held.provenance.machine.cores - held.fields.get("threads", 0)


def disturbance(case: Mapping, against: str, idle: int) -> Disturbance:
    """Of a case of a record; nothing for one that was written before anybody looked.

    The turns' ratio to the other side is looked at, where there is one: what slows both by as much does no harm.
    """
    if "others_cores" not in case:
        return Disturbance(0.0, 0.0, idle)
    turns = case["ratio_to"].get(against) or dict(
        zip(("q1", "median", "q3"), np.percentile([np.median(turn) for turn in case["turns_ms"]], (25, 50, 75)))
    )
    scatter = float(turns["q3"] - turns["q1"]) / float(turns["median"])
    return Disturbance(scatter, float(np.mean(case["others_cores"])), idle)


def _forms(*cases: Mapping) -> tuple[str, ...]:
    """The forms in which models were timed: that in which they are trained where a record names none."""
    return tuple(case.get("form", "training") for case in cases)


def _work(case: Mapping, other: Mapping) -> str:
    """What was timed; "forward" alone is the form in which models are trained."""
    first, second = _forms(case, other)
    if case["operation"] == "train" or first == second == "training":
        return case["operation"]
    return f"forward in {second} form" + f" against {first} form" * (first != second)
