"""Questions about runs: the data they see, their steps side by side, their curves, and how long they take."""

from dataclasses import replace

import numpy as np

from lib.alignment import datastages
from lib.alignment import trajectory as bands
from lib.alignment.evidence import Evidence, pointer
from lib.alignment.questions.parts import number, sources
from lib.alignment.verdict import Answer, Number, Verdict, conclude, decisions, judge_scalars


def data(evidence: Evidence, a: str, b: str) -> Answer:
    """The first batch's way from the files: each image decoded, after each function of its augmentation, batch, targets."""
    theirs, ours = (evidence.field(side, "lockstep", "data") for side in (a, b))
    answer = conclude("data", f"{a}-{b}", datastages.differences(theirs, ours), sources(evidence, "lockstep", a, b))
    if first := datastages.first_difference(answer.rows):
        return replace(answer, reason="data_differs", values=answer.values | {"first": first})
    return answer


def training(evidence: Evidence, a: str, b: str) -> Answer:
    """Same start, same batches, same first losses: judged. Curves and final mAP: shown, no gate is derived for them."""
    rows = []
    for name in ("initial_sha256", "batches_sha256"):
        x, y = (evidence.field(side, "train", name) for side in (a, b))
        rows.append(decisions(name.removesuffix("_sha256") + " bytes", int(x != y), 1))
    first = {side: evidence.field(side, "train", "first_step") for side in (a, b)}
    if "float64" in first[a]:
        rows += judge_scalars(
            first[a]["float64"],
            first[a]["float32"],
            first[b]["float32"],
            first[a]["float32"],
            repeats=first[a].get("repeats", ()),
        )
    learnt = {side: evidence.field(side, "train", "overfit") for side in (a, b)}
    rows += [
        decisions(
            f"{side}: eight images learnt by heart",
            int(not check["reached"]),
            1,
            f"AP50 {check['AP50']:.3f} after {check['steps']} steps",
        )
        for side, check in learnt.items()
        if check
    ]
    numbers = [number(evidence, "final_map", side, "train", "final", "AP") for side in (a, b)]
    numbers += [number(evidence, "training_seconds", side, "train", "seconds") for side in (a, b)]
    return conclude("training", f"{a}-{b}", rows, sources(evidence, "train", a, b), numbers=numbers)


def trajectory(evidence: Evidence, a: str, b: str) -> Answer:
    """The loss of b's run inside the band of a's controls, up to where right runs part; its parts are shown.

    UNDERPOWERED where it stays inside but the band could not have told: controls part at the first step, or the run with
    the wrong learning rate stays inside too.
    """
    held = {side: evidence.field(side, "lockstep", "curves") for side in (a, b)}
    controls, off, own = held[a]["controls"], held[a]["off"], held[b]["own"]
    band = bands.band([run["loss"] for run in controls])
    rows = [
        decisions("batches", int(held[a]["batches"] != held[b]["batches"]), 1),
        bands.inside("loss", band, own["loss"]),
    ]
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
    answer = conclude("trajectory", f"{a}-{b}", rows, sources(evidence, "lockstep", a, b))
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


def speed(evidence: Evidence, a: str, b: str) -> Answer:
    """Times side by side. Not judged, but for a clock that can't be right.

    The frameworks were timed in turns on one machine: the ratio is the record's own. The published code was timed
    elsewhere, in units of a matrix product, which is how the two are set side by side.
    """
    held = {
        side: {
            (c["operation"], c["batch"], tuple(c["size"])): (i, c)
            for i, c in enumerate(evidence.field(side, "speed", "cases"))
        }
        for side in (a, b)
    }
    records = sources(evidence, "speed", a, b)
    for side in (side for side in (a, b) if evidence.field(side, "speed", "deferred")):
        for (work, batch, _), (_, case) in held[side].items():
            if case["unsynchronised_ms"]["median"] >= case["synchronised_ms"]["median"]:
                values = {"side": side, "work": work, "batch": batch}
                return Answer("speed", f"{a}-{b}", Verdict.FAIL, "clock_fault", values, sources=records)
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
    return Answer(
        "speed", f"{a}-{b}", Verdict.SHOWN, "ratios", {"ratios": ratios}, numbers=tuple(numbers), sources=records
    )
