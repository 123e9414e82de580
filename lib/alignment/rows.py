"""What the questions are answered with: tensors, statistics, detections, updates of two sides as judged rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.alignment import gate, verdict
from lib.alignment.compare import compare, match_detections, norm
from lib.alignment.decisions import FLIP
from lib.alignment.evidence import REFERENCE, Evidence
from lib.alignment.gate import SHARP, STORED, C, Reach
from lib.alignment.seeded import seeded_array
from lib.alignment.verdict import ROUNDING, K, Row, decisions, fault, judge_value

NOTHING = np.zeros((0, 7))
Arrays = Mapping[str, np.ndarray]
BySide = Mapping[str, Arrays]


def chosen(arrays: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of these names, those that are there."""
    return {name: arrays[name] for name in names if name in arrays}


def float64_factor(evidence: Evidence, stage: str, a: str, b: str) -> float:
    """How much tighter float64 runs are judged: not at all where some of it was computed, or kept, in float32."""
    return SHARP if {evidence.field(side, stage, "float64") for side in (a, b)} == {"full"} else 1.0


def reaches(evidence: Evidence, stage: str, side: str, prefix: str = "") -> dict[str, Reach]:
    """How far rounding carries each tensor, as PyTorch's record has it, without prefix; nothing where that is of
    another case than the side's."""
    same = evidence.field(REFERENCE, stage, "case") == evidence.field(side, stage, "case")
    return gate.restored(evidence.field(REFERENCE, stage, "reach"), prefix) if same else {}


def tensors(
    evidence: Evidence, stage: str, a: str, b: str, single: BySide, double: BySide, metric: str, prefix: str = ""
) -> list[Row]:
    """Rows for all tensors of the pair; `single`, `double`: each side's float32 and float64 runs, without `prefix`.

    The published side records a selection: what the other has beside it is not judged here, and of some it has float32
    runs alone, or statistics. A side that runs part of a model in float64 is judged on that.
    """
    exact, reach, sharp = double[a], reaches(evidence, stage, b, prefix), C * float64_factor(evidence, stage, a, b)
    both = [name for name in exact if name in double[b]]
    rows = gate.judge(chosen(exact, both), chosen(double[b], both), reach, "float64", metric, sharp) if both else []
    if a != "published":
        return gate.judge(exact, single[b], reach, "float32", metric) + rows
    if exact:
        rows = gate.judge(exact, chosen(single[b], tuple(exact)), reach, "float32", metric) + rows
    rounded = {name: array for name, array in single[a].items() if name not in exact}
    if rounded:
        rows += gate.judge(rounded, chosen(single[b], tuple(rounded)), reach, "float32", metric, 2 * C)
    for key, entry in evidence.field(a, stage, "statistics").items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name not in single[a]:
            rows += _against_statistics(name, entry, single[b].get(name), reach.get(name), "float32", C)
            if name in double[b] and not entry.get("rounded"):
                rows += _against_statistics(name, entry, double[b][name], reach.get(name), "float64", sharp)
    return rows


def _against_statistics(
    name: str, entry: Mapping[str, Any], array: np.ndarray | None, reach: Reach | None, precision: str, reaching: float
) -> list[Row]:
    """Rows for a tensor of which the published side gives the norm, the mean and the first values in place of all.

    Of a float32 run ("rounded", and the first values always) it lies twice as far: so do two such runs.
    """
    suffix, broken = ", float64" if precision == "float64" else "", "missing"
    if array is not None:
        broken = compare(name, np.zeros(entry["shape"]), array, precision, diagnosed=False).fault
        broken = broken or (None if reach else "no reach: PyTorch's record has no moved runs of it")
    if broken:
        return [fault(name, "L2 norm" + suffix, broken)]
    l2, root, far = entry["l2"], np.sqrt(array.size), 2 * C if entry.get("rounded") else reaching
    stored = STORED[precision]
    rows = [judge_value(name, "L2 norm" + suffix, abs(norm(array) - l2), reach.l2, l2, far, stored)]
    if entry.get("mean") is not None:
        error = abs(float(np.mean(array, dtype=np.float64)) - entry["mean"])
        rows.append(judge_value(name, "mean" + suffix, error, reach.l2 / root, l2 / root, far, stored))
    if entry.get("first") and precision == "float32":
        error = np.abs(array.ravel()[: len(entry["first"])] - np.array(entry["first"])).max()
        rows.append(judge_value(name, "first values", error, reach.max_abs, entry["max"], 2 * C, stored))
    return rows


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


def noise_alone(evidence: Evidence, phase: str) -> set[str]:
    """Parameters whose gradient rounding moves by more than all of it: AdamW makes a whole step of that noise."""
    exact = evidence.arrays(REFERENCE, "loss", f"float64/gradient/{phase}/")
    reach = reaches(evidence, "loss", REFERENCE, f"gradient/{phase}/")
    return {name for name, array in exact.items() if reach[name].l2 > norm(array)}


def step_norms(evidence: Evidence, a: str, b: str, variant: str, left_out: set[str]) -> list[Row]:
    """Rows for the L2 of each parameter's change in float64, but for those left out: what a side says of its own groups
    and rates its rule follows, whether they are right or not.

    Few numbers share a floor: the largest relative deviation of the reference's float32 norms.
    """

    def norms(side: str, run: str) -> dict[str, float]:
        if side == "published":
            held = {name: pair[run] for name, pair in evidence.field(side, "loss", "step_norms", variant).items()}
        else:
            held = {n: norm(array) for n, array in evidence.arrays(side, "loss", f"{run}/step/{variant}/").items()}
        return {name: value for name, value in held.items() if name not in left_out}

    exact, rounded, found = norms(a, "float64"), norms(a, "float32"), norms(b, "float64")
    apart = (abs(rounded[name] - value) / value for name, value in exact.items() if name in rounded and value)
    floor = max([*apart, ROUNDING]) * (verdict.FINER if float64_factor(evidence, "loss", a, b) < 1 else 1.0)
    what, rows = "L2 norm of the change, float64", []
    for name, value in exact.items() if found else ():
        error = abs(found.get(name, np.nan) - value)
        rows.append(judge_value(f"{variant}/{name}", what, error, floor * value, value))
    return rows
