"""What the questions are answered with: tensors, statistics, detections, updates of two sides as judged rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lib.alignment.compare import compare, compare_sets, match_detections, norm
from lib.alignment.decisions import FLIP
from lib.alignment.evidence import Evidence
from lib.alignment.seeded import seeded_array
from lib.alignment.verdict import (
    ROUNDING,
    SHARP,
    K,
    Noise,
    Row,
    decisions,
    fault,
    held_to,
    judge,
    judge_scalars,
    judge_value,
    least_floor,
    noise_floors,
    size,
)

NOTHING = np.zeros((0, 7))
NO_NOISE = Noise(0.0, 0.0)
Arrays = Mapping[str, np.ndarray]
BySide = Mapping[str, Arrays]


def chosen(arrays: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of these names, those that are there."""
    return {name: arrays[name] for name in names if name in arrays}


def float64_factor(evidence: Evidence, stage: str, a: str, b: str) -> float:
    """How much tighter float64 runs are judged: not at all where some of it was computed, or kept, in float32."""
    return SHARP if {evidence.field(side, stage, "float64") for side in (a, b)} == {"full"} else 1.0


def tensors(
    evidence: Evidence,
    stage: str,
    a: str,
    b: str,
    single: BySide,
    double: BySide,
    metric: str,
    prefix: str = "",
    deviations: Mapping[str, Noise] | None = None,
    jumps: Mapping[str, Noise] | None = None,
) -> list[Row]:
    """Rows for all tensors of the pair; `single`, `double`: each side's float32 and float64 runs, without `prefix`.

    The published side records a selection: what the other has beside it is not judged here. `deviations`: by which
    other float32 runs of side a's framework lie from float64; a larger one raises the floor. `jumps`: what K times its
    noise makes a tensor jump. Both float32 runs may: their gate is K floors and two jumps wide.
    """
    exact, factor = double[a], float64_factor(evidence, stage, a, b)
    floors = noise_floors(exact, single[a]) if exact else {}
    floors = {name: floor.at_least((deviations or {}).get(name, floor)) for name, floor in floors.items()}
    wide = {name: floor.plus((jumps or {}).get(name, NO_NOISE).times(2 / K)) for name, floor in floors.items()}
    rows = _float64(exact, double[b], wide if factor == 1 else floors, factor, metric)
    if a != "published":
        return judge(compare_sets(single[a], single[b]), wide, metric) + rows
    if exact:
        rows = judge(compare_sets(exact, chosen(single[b], tuple(exact)), "float32"), wide, metric) + rows
    statistics = {
        name.removeprefix(prefix): entry
        for name, entry in evidence.field(a, stage, "statistics").items()
        if name.startswith(prefix)
    }
    own = _measured_floors(evidence, stage, prefix)
    for name, array in single[a].items():
        if name not in exact:  # published in float32 only: one floor more than K, as the reference has its own error
            most = statistics.get(name, {}).get("floor_max")
            known = own if most is None else {name: Noise(most, most * np.sqrt(array.size))}
            rows += judge(compare_sets({name: array}, chosen(single[b], (name,))), known, metric, slack=1.0)
    partial = {name: entry for name, entry in statistics.items() if name not in single[a]}
    rows += _against_statistics(partial, single[b], "float32", 1.0, own)
    if double[b]:
        held = {name: entry for name, entry in partial.items() if name in double[b] and not entry.get("rounded")}
        rows += _against_statistics(held, double[b], "float64", factor, own)
    return rows


def _measured_floors(evidence: Evidence, stage: str, prefix: str) -> dict[str, Noise]:
    """PyTorch's own float32 error, from its record: for tensors of which no golden record says the published one's."""
    if evidence.get("torch", stage) is None:
        return {}
    exact, rounded = (evidence.arrays("torch", stage, f"{run}/{prefix}") for run in ("float64", "float32"))
    floors = noise_floors(exact, chosen(rounded, tuple(exact)))
    # One run can lie close to its exact one by luck: none counts for less than the set's middle.
    scales = {name: size(exact[name]) for name in floors}
    relative = [(floors[n].max_abs / scale.max_abs, floors[n].l2 / scale.l2) for n, scale in scales.items() if scale.l2]
    middle = np.median(relative or [(0.0, 0.0)], 0).tolist()
    return {
        name: floors[name].at_least(Noise(middle[0] * scale.max_abs, middle[1] * scale.l2))
        for name, scale in scales.items()
    }


def _float64(exact: Arrays, candidates: Arrays, floors: Mapping[str, Noise], factor: float, metric: str) -> list[Row]:
    """Rows of the float64 runs, judged tighter by `factor`; a side that runs part of a model in float64 is judged on
    that.

    A reference kept as float32 is compared after the same rounding, of which two are allowed.
    """
    names = [name for name in exact if name in candidates]
    if not names:
        return []
    sharp, rounded = {name: floors[name].times(factor) for name in names if name in floors}, chosen(candidates, names)
    for name in (name for name in names if exact[name].dtype == np.float32):
        sharp[name] = sharp[name].at_least(size(exact[name]).times(2 * ROUNDING / K))
        rounded[name] = candidates[name].astype(np.float32)
    return judge(compare_sets(chosen(exact, names), rounded), sharp, metric, "every element, float64")


def _against_statistics(
    entries: Mapping[str, Mapping], candidates: Arrays, dtype: str, factor: float, own: Mapping[str, Noise]
) -> list[Row]:
    """Rows for tensors of which the published side gives the norm, the mean and the first values in place of all.

    Floors: |norm(a) - norm(b)| <= norm(a - b); |mean(a) - mean(b)| <= norm(a - b) / sqrt(n). `own` where it gives none.
    """
    known = {name: value for name, entry in entries.items() if (value := _floor_l2(name, entry, own)) is not None}
    sizes = {name: int(np.prod(entry["shape"])) for name, entry in entries.items()}
    least = least_floor((known[n] / e["l2"], sizes[n]) for n, e in entries.items() if n in known and e["l2"])
    rows, suffix = [], ", float64" if dtype == "float64" else ""
    for name, entry in entries.items():
        array, broken = candidates.get(name), "missing"
        if array is not None:
            broken = compare(name, np.zeros(entry["shape"]), array, dtype, diagnosed=False).fault
            if name not in known:
                broken = "no noise floor: neither the published record nor a PyTorch record gives one"
        if broken:
            rows.append(fault(name, "L2 norm", broken))
            continue
        l2, root = entry["l2"], np.sqrt(sizes[name])
        floor, slack = factor * max(known[name], least(sizes[name]) * l2), 1.0 if entry.get("rounded") else 0.0
        rows.append(judge_value(name, "L2 norm" + suffix, abs(norm(array) - l2), floor, l2, slack))
        if entry.get("mean") is not None:
            error = abs(float(np.mean(array, dtype=np.float64)) - entry["mean"])
            rows.append(judge_value(name, "mean" + suffix, error, floor / root, l2 / root, slack))
        if entry.get("first") and dtype == "float32":
            error = np.abs(array.ravel()[: len(entry["first"])] - np.array(entry["first"])).max()
            rows.append(judge_value(name, "first values", error, entry["floor_max"], entry["max"], slack=1.0))
    return rows


def _floor_l2(name: str, entry: Mapping[str, Any], own: Mapping[str, Noise]) -> float | None:
    if entry.get("floor_l2") is not None:
        return entry["floor_l2"]
    if "floor_max" in entry:
        return entry["floor_max"] * float(np.sqrt(np.prod(entry["shape"])))
    return own[name].l2 if name in own else None


def other_deviations(evidence: Evidence, exact: Arrays, rounded: Arrays) -> dict[str, Noise]:
    """By how much PyTorch's other float32 gradients lie from float64: the published code's, and those of repeats.

    One run is a poor sample. `repeat/<i>/gradient/…` are runs whose input was moved by one rounding; each metric is
    measured, as noise of another origin lies elsewhere in a tensor. Of the published run only the L2 is known: it is
    taken to lie where that of `rounded` does.
    """
    found: dict[str, Noise] = {}
    if evidence.get("published", "loss") and evidence.field("published", "loss", "case") == evidence.field(
        "torch", "loss", "case"
    ):
        for name, entry in evidence.field("published", "loss", "statistics").items():
            key = name.removeprefix("gradient/")
            if key != name and key in exact and (own := size(rounded[key] - exact[key])).l2:
                found[key] = Noise(own.max_abs * _published_deviation(entry) / own.l2, _published_deviation(entry))
    for name, array in evidence.arrays("torch", "loss", "repeat/").items():
        key = name.split("/", 2)[2]  # "<i>/gradient/<phase>/<parameter>"
        found[key] = size(array - exact[key]).at_least(found.get(key, NO_NOISE))
    return found


def measured_jumps(evidence: Evidence, prefix: str) -> dict[str, Noise]:
    """What PyTorch's gradients, or an update's changes, jump by where an activation's input lies within K roundings of
    zero.

    `capture` measures it. prefix: "gradient/" or "step/", which the names given have not. A gate of K floors lets a
    right run be K times as noisy. Where a gradient answers smoothly that moves it by K floors. Where it does not,
    because the activation takes its other slope, it moves it by the jump, whatever the floor, and one float32 run
    rarely shows which: clean runs of the exam lie up to 200 gates of that away. A jump lies in a few elements: its
    largest deviation is measured beside its L2.
    """
    held = evidence.get("torch", "loss").fields.get("jumps", {})
    return {
        name.removeprefix(prefix): Noise(*map(float, pair)) for name, pair in held.items() if name.startswith(prefix)
    }


def _published_deviation(entry: Mapping[str, Any]) -> float:
    """L2 of the published float32 error, or at least by how much the norms of its two runs differ."""
    return entry["floor_l2"] if "floor_l2" in entry else abs(entry["l2_float32"] - entry["l2"])


def true_zeros(evidence: Evidence, a: str, single: Arrays, double: Arrays) -> dict[str, float]:
    """Gradients ("phase/parameter") that are zero but for rounding, with the L2 of that noise in float32.

    Zero means: the float32 run deviates from the float64 run by more than the whole float64 gradient.
    """
    compared = compare_sets(double, single, "float32", diagnosed=False)
    noise = {c.name: (c.l2, c.scale_l2) for c in compared if c.fault is None}
    if a == "published":
        statistics = evidence.field(a, "loss", "statistics")
        noise |= {
            name.removeprefix("gradient/"): (_published_deviation(entry), entry["l2"])
            for name, entry in statistics.items()
            if name.startswith("gradient/")
        }
    return {name: deviation for name, (deviation, size) in noise.items() if deviation > size}


def excuse_flips(rows: Sequence[Row]) -> list[Row]:
    """Rows of gradients, where a float32 run may leave its own floor for one reason that is no fault.

    An activation whose input lies within noise of zero takes the other slope on one side and not on the other; the
    gradients behind it jump. Legal where the float64 run of the same tensor, which has no such noise, passes, and the
    jump is no larger than K times the largest floor of the set.
    """
    judged = [row for row in rows if row.passed is not None]
    single = [row.relative(row.floor) for row in judged if "float64" not in row.what and row.scale > 0]
    doubles = [row for row in judged if "float64" in row.what]
    sound = {row.name for row in doubles} - {row.name for row in doubles if not row.passed}
    note, largest = "beyond its own floor, held to the set's largest; its float64 run agrees", max(single, default=0.0)
    return [
        held_to(row, largest * row.scale, what=f"{row.what}, flipped activation", note=note)
        if row.passed is False and row.name in sound
        else row
        for row in rows
    ]


def detections(
    a: str, b: str, single: Arrays, double: Arrays, threshold: float, limit: int, near: np.ndarray = NOTHING
) -> list[Row]:
    """Rows for detections (m, 6) or (m, 7) of each side, paired one to one, and for each that one side has alone.

    Such a one is legal only where its score lies within the gate of the cut, the score threshold or the lowest score
    kept where an image is full; or where it is one of `near` (k, 7), by exact scores: box, score, label, and the margin
    in floors to the other fate.
    """
    measured = a if a in double else b  # the published record may hold no float64 run: the other side's own error then
    if missing := [side for side, runs in ((a, single), (b, single), (measured, double)) if side not in runs]:
        note = f"missing on side {missing[0]}, which has no noise floor without them"
        return [fault("detections", "detections", note)]
    exact, rounded, candidate = map(_with_image, (double[measured], single[measured], single[b]))
    reference = exact if a == measured == "published" else _with_image(single[a])
    for side, found in ((a, reference), (b, candidate)):
        if not np.isfinite(found).all():
            return [fault("detections", "detections", f"NaN or Inf on side {side}")]
    own, found = match_detections(exact, rounded), match_detections(reference, candidate)
    scale = float(np.abs(reference[:, 1:5]).max(initial=1.0))
    floor_box, floor_score = max(own.box, ROUNDING * scale), max(own.score, ROUNDING)
    cuts = {image: _cut(reference[reference[:, 0] == image], threshold, limit) for image in np.unique(reference[:, 0])}
    flips = []
    for side, rows in ((a, reference[list(found.only_reference)]), (b, candidate[list(found.only_candidate)])):
        beyond = np.maximum(rows[:, 5] - np.array([cuts.get(row[0], threshold) for row in rows]), 0) / floor_score
        margins = np.minimum(beyond, _near(rows, near, K * floor_box, K * floor_score))
        flips += [_alone(side, row, float(margin)) for row, margin in zip(rows, margins)]
    illegal = [flip for flip in flips if not flip.passed]
    return [
        decisions("unmatched detections", len(illegal), len(reference), f"first: {illegal[0].name}" if illegal else ""),
        judge_value("box, pixels", "matched detections", found.box, floor_box, scale),
        judge_value("score", "matched detections", found.score, floor_score, 1.0),
        *flips,
    ]


def _near(rows: np.ndarray, near: np.ndarray, box: float, score: float) -> np.ndarray:
    """The margin of the near miss that each detection (m, 7) is, infinite where none; each stands for one."""
    found, left = np.full(len(rows), np.inf), np.ones(len(near), bool)
    for index, row in enumerate(rows):
        here = (np.abs(near[:, :4] - row[1:5]) <= box).all(1) & (np.abs(near[:, 4] - row[5]) <= score)
        same = left & here & (near[:, 5] == row[6])
        for first in np.flatnonzero(same)[:1]:
            found[index], left[first] = near[first, 6], False
    return found


def _alone(side: str, row: np.ndarray, margin: float) -> Row:
    """A detection (7,) that one side has alone."""
    where = f"detection in image {row[0]:.0f}, label {row[6]:.0f}, score {row[5]:.4f}"
    return Row(where, FLIP, margin, 1.0, float(K), 0.0, bool(margin <= K), f"alone on side {side}")


def _with_image(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows if rows.shape[1] == 7 else np.concatenate([np.zeros((len(rows), 1)), rows], axis=1)


def _cut(rows: np.ndarray, threshold: float, limit: int) -> float:
    return float(rows[:, 5].min()) if len(rows) >= limit else threshold


def mapping(name: str, reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> Row:
    """A row for two mappings that must be equal, entry by entry."""
    differing = [key for key in reference if candidate.get(key) != reference[key]]
    extra = [key for key in candidate if key not in reference]
    note = f"{extra[0]}: left over" if extra else ""
    if differing:
        key = differing[0]
        said = f"{candidate[key]} where the reference has {reference[key]}" if key in candidate else "missing"
        note = f"{key}: {said}"
    elif not extra and not reference:
        return fault(name, "decisions", "empty comparison: the reference has no entry")
    return decisions(name, len(differing) + len(extra), len(reference), note)


def step_residuals(evidence: Evidence, side: str, variant: str, run: str = "float32") -> dict[str, float]:
    """How far each parameter's change is from the optimiser's rule applied to the recorded gradient, in roundings of
    `run`.

    One rounding is 2**-24 or 2**-53 (|weight| + |change|), but at least that of a whole step of AdamW. NaN where
    gradient and change don't belong together; the published side, which has whole changes of one variant and of a few
    parameters, gives those. Float64 shows what a float32 rounding hides: a decay of 1e-8 of the weight, for one.
    """
    rounding = {"float32": ROUNDING, "float64": 2.0**-53}[run]
    settings = evidence.field(side, "loss", "optimiser", variant)
    changes = evidence.arrays(side, "loss", f"{run}/step/{variant}/")
    gradients = evidence.arrays(side, "loss", f"{run}/gradient/{settings['phase']}/")
    weights = evidence.arrays(side, "loss", "weights/")
    limit, total = settings["clip"], float(settings["grad_norm"][run])
    factor = min(1.0, limit / (total + 1e-6)) if limit is not None else 1.0  # as torch.nn.utils.clip_grad_norm_
    members = {name: group for group in settings["groups"] for name in group["names"]}
    found = {}
    expected = changes
    if side != "published" and gradients:
        expected = {**dict.fromkeys(members or gradients, 0), **changes}
    for name in expected:
        gradient, change = gradients.get(name), changes.get(name)
        if gradient is None or change is None or gradient.shape != change.shape:
            found[name] = float("nan")
            continue
        weight = np.asarray(weights.get(name, seeded_array(name, change.shape)), np.float64)
        scaled, group = factor * gradient.astype(np.float64), members.get(name, WHOLE)
        exact, step = FIRST_STEP[settings["rule"]](settings, group, weight, scaled)
        found[name] = float((np.abs(change - exact) / (rounding * (np.abs(weight) + step))).max(initial=0.0))
    return found


WHOLE = {"factor": 1.0, "decays": True}  # the group of a parameter where all are treated alike
Rule = tuple[np.ndarray, np.ndarray | float]  # the change, and its size for the purpose of rounding


def _adamw(settings: Mapping[str, Any], group: Mapping[str, Any], weight: np.ndarray, gradient: np.ndarray) -> Rule:
    """First step of AdamW: w <- w (1 - lr decay) - lr g / (|g| + eps)."""
    lr, decay = settings["lr"] * group["factor"], settings["weight_decay"] * group["decays"]
    return -lr * decay * weight - lr * gradient / (np.abs(gradient) + settings["options"]["eps"]), lr


def _sgd(settings: Mapping[str, Any], group: Mapping[str, Any], weight: np.ndarray, gradient: np.ndarray) -> Rule:
    """First step of SGD with Nesterov momentum: the buffer is d = g + decay w, and w <- w - lr (1 + momentum) d."""
    lr, decay = settings["lr"] * group["factor"], settings["weight_decay"] * group["decays"]
    change = -lr * (1 + settings["options"]["momentum"]) * (gradient + decay * weight)
    return change, np.abs(change)


FIRST_STEP = {"AdamW": _adamw, "SGD": _sgd}


def step_norms(evidence: Evidence, a: str, b: str, variant: str, zero: set[str]) -> list[Row]:
    """Rows for the L2 of each parameter's change, but for true gradients of zero: AdamW makes noise a whole step."""

    def norms(side: str, run: str) -> dict[str, float]:
        if side == "published":
            held = {name: pair[run] for name, pair in evidence.field(side, "loss", "step_norms", variant).items()}
        else:
            held = {n: norm(array) for n, array in evidence.arrays(side, "loss", f"{run}/step/{variant}/").items()}
        return {f"{variant}/{name}": value for name, value in held.items() if name not in zero}

    sides = ({run: norms(side, run) for run in ("float32", "float64")} for side in (a, b))
    rows = judge_scalars(*sides, float64_factor(evidence, "loss", a, b), exactly=a == "published")
    jumps = measured_jumps(evidence, "step/") if a == "torch" else {}
    for i, row in enumerate(rows):
        if row.name in jumps and row.what == "scalar" and row.floor == row.floor:
            floor = row.floor + 2 / K * jumps[row.name].l2
            rows[i] = judge_value(row.name, row.what, row.error, floor, row.scale)
    return [replace(row, what=row.what.replace("scalar", "L2 norm of the change")) for row in rows]
