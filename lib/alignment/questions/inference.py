"""Questions about inference: one image, its way through the layers, and a data set's detections."""

from dataclasses import replace

import numpy as np

from lib.alignment import divergence as depth
from lib.alignment import equivalence as bootstrap
from lib.alignment.compare import compare_sets
from lib.alignment.decisions import FLIP, Decisions, excuse, nearness
from lib.alignment.equivalence import Equivalence, Outcome
from lib.alignment.evidence import Evidence
from lib.alignment.questions.parts import decided, exact_arrays, holds, identical, number, other_case, sources
from lib.alignment.rows import NOTHING, detections, tensors
from lib.alignment.verdict import Answer, K, Row, Verdict, conclude, decisions, fault, judge_value


def forward(evidence: Evidence, a: str, b: str) -> Answer:
    """Raw outputs and named features in evaluation mode, the decisions on their way, and the detections they give."""
    if other := other_case(evidence, "forward", a, b, "forward"):
        return other
    single = {side: evidence.arrays(side, "forward", "float32/") for side in (a, b)}
    double = {side: evidence.arrays(side, "forward", "float64/") for side in (a, b)}
    found = [
        {side: kept.pop("detections") for side, kept in runs.items() if "detections" in kept}
        for runs in (single, double)
    ]
    whole, _ = ({side: _integers(kept) for side, kept in runs.items()} for runs in (single, double))
    held = decided(evidence, "forward", a, b)
    rows = [row for kind in held for row in kind.rows()]
    rows += excuse(tensors(evidence, "forward", a, b, single, double, "max_abs"), held, lambda row: "")
    rows += identical(compare_sets(whole[a], whole[b])) if any(whole.values()) else []
    if holds(evidence, "forward", "detections", a, b):
        near = exact_arrays(evidence, "forward", b).get("near/detections", NOTHING)
        limits = (evidence.field(b, "forward", name) for name in ("score_threshold", "max_detections"))
        rows += detections(a, b, *found, *limits, near)
        held += _nearest(len(found[0].get(b, ())), near)
    if a == "published" and (live := evidence.field(b, "forward", "live")):
        rows += [
            judge_value(
                f"{live['name']} {live['version']}, {name}", "max_abs, run live on our weights", *found.values()
            )
            for name, found in live["outputs"].items()
        ]
    answer = conclude("forward", f"{a}-{b}", rows, sources(evidence, "forward", a, b))
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


def divergence(evidence: Evidence, a: str, b: str) -> Answer:
    """Each layer's own error, its inputs the reference's: the first layer beyond its gate, forward and backward."""
    if other := other_case(evidence, "divergence", a, b, "divergence"):
        return other
    captured = [evidence.field(side, "divergence", "captured") for side in (a, b)]
    found = depth.localise(evidence.get(b, "divergence").fields)
    rows = [decisions("capture that both speak of", int(captured[0] != captured[1]), 1), *found.rows()]
    numbers = [
        number(evidence, name, side, "divergence", "cost", name)
        for name in ("times_plain", "gb_per_second")
        for side in (a, b)
    ]
    answer = conclude("divergence", f"{a}-{b}", rows, sources(evidence, "divergence", a, b), numbers=numbers)
    if answer.verdict is Verdict.PASS:
        values = answer.values | {"layers": len(found.layers)} | _amplification(found)
        return replace(answer, reason="diverges_nowhere", values=values)
    first = {direction: found.first(direction) for direction in depth.DIRECTIONS}
    if not any(first.values()):
        return answer
    names = {direction: layer.name if layer else "–" for direction, layer in first.items()}
    script = evidence.field(b, "divergence", "reproduction") or "–"
    return replace(answer, reason="diverges_at", values=answer.values | names | {"script": script})


def _amplification(found: depth.Divergence) -> dict[str, str | float]:
    """The layer that makes most of the error that reaches it."""
    leaves = {layer.name: layer.amplification("forward") for layer in found.layers if layer.leaf}
    factors = {name: factor for name, factor in leaves.items() if factor is not None}
    most = max(factors, key=factors.__getitem__, default="–")
    return {"amplifier": most, "amplification": factors.get(most, 0.0)}


def evaluation(evidence: Evidence, a: str, b: str) -> Answer:
    """The same trained weights in both: detections matched one to one; the COCO numbers beside them."""
    shas = [evidence.field(side, "evaluate", "common_weights_sha256") for side in (a, b)]
    rows = [decisions("common weights", int(shas[0] != shas[1]), 1)]
    runs = [
        {
            side: kept["common/detections"]
            for side in (a, b)
            if "common/detections" in (kept := evidence.arrays(side, "evaluate", prefix))
        }
        for prefix in ("float32/", "float64/")
    ]
    limits = [evidence.field(a, "evaluate", name) for name in ("score_threshold", "max_detections")]
    rows += detections(a, b, *runs, *limits)
    numbers = [
        number(evidence, "coco", side, "evaluate", "common", name, about=name)
        for name in evidence.field(a, "evaluate", "common")
        for side in (a, b)
    ]
    return conclude("evaluation", f"{a}-{b}", rows, sources(evidence, "evaluate", a, b), numbers=numbers)


def equivalence(evidence: Evidence, a: str, b: str) -> Answer:
    """The difference of mAP with what the choice of images leaves open: common weights judged, own weights shown.

    How far a training repeated would vary is in no interval over images: that own weights differ is no fault by itself.
    """
    found: dict[str, Equivalence] = {}
    rows = []
    for weights in ("common", "own"):
        held = [
            bootstrap.restored(
                evidence.arrays(side, "evaluate", f"matches/{weights}/"), evidence.field(side, "evaluate", "images")
            )
            for side in (a, b)
        ]
        try:
            found[weights] = bootstrap.difference(*held)
        except ValueError as error:
            rows.append(fault(f"{weights} weights", "difference of mAP", str(error)))
            continue
        rows.append(_difference(f"{weights} weights", found[weights], weights == "common"))
    answer = conclude("equivalence", f"{a}-{b}", rows, sources(evidence, "evaluate", a, b))
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
    """floor: half the wider interval, what the choice of images leaves open."""
    low, high = found.difference_interval
    passed = {Outcome.EQUIVALENT: True, Outcome.DIFFERENT: False}.get(found.outcome) if judged else None
    return Row(
        name,
        "difference of mAP",
        abs(found.difference),
        (high - low) / 2,
        found.margin,
        found.reference,
        passed,
        f"{found.outcome.value}: {found.reason}",
    )
