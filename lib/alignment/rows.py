"""What the questions are answered with: tensors, statistics, detections, updates of two sides turned into judged rows."""
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lib.alignment.compare import compare, compare_sets, match_detections, norm
from lib.alignment.evidence import Evidence
from lib.alignment.seeded import seeded_array
from lib.alignment.verdict import (
    FEW, ROUNDING, SHARP, K, Noise, Row, decisions, fault, judge, judge_scalars, judge_value, noise_floors, shared_floor,
)  # fmt: skip

Arrays = Mapping[str, np.ndarray]
BySide = Mapping[str, Arrays]


def chosen(arrays: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of these names, those that are there."""
    return {name: arrays[name] for name in names if name in arrays}


def float64_factor(evidence: Evidence, stage: str, a: str, b: str) -> float:
    """How much tighter float64 runs are judged: not at all where a side computes some of it in float32."""
    kinds = {evidence.field(side, stage, "float64") for side in (a, b) if side != "published"}
    return SHARP if kinds == {"full"} else 1.0


def tensors(evidence: Evidence, stage: str, a: str, b: str, single: BySide, double: BySide, metric: str,
            prefix: str = "", deviations: Mapping[str, float] | None = None) -> list[Row]:  # fmt: skip
    """Rows for all tensors of the pair; `single`, `double`: each side's float32 and float64 runs, without `prefix`.

    `deviations`: L2 by which other float32 runs of side a's framework lie from float64; a larger one raises the floor.
    """
    floors = noise_floors(double[a], single[a]) if double[a] else {}
    floors = {name: floor.times(max(1.0, (deviations or {}).get(name, 0.0) / floor.l2)) for name, floor in floors.items()}
    sharp = {name: floor.times(float64_factor(evidence, stage, a, b)) for name, floor in floors.items()}
    # A side that runs part of a model in float64 is judged on that part.
    both = {name: double[a][name] for name in double[a] if name in double[b]}
    rows = judge(compare_sets(both, chosen(double[b], tuple(both))), sharp, metric, "every element, float64") if both else []
    if a != "published":
        return judge(compare_sets(single[a], single[b]), floors, metric) + rows
    statistics = {
        name.removeprefix(prefix): entry for name, entry in evidence.field(a, stage, "statistics").items() if name.startswith(prefix)
    }
    known = {**double[a], **single[a], **statistics}
    if double[a]:
        rows = judge(compare_sets(double[a], chosen(single[b], tuple(double[a])), "float32"), floors, metric) + rows
    for name in (name for name in single[a] if name not in double[a]):
        rows += _against_float32(name, single[a][name], single[b], statistics[name], metric)
    partial = {name: entry for name, entry in statistics.items() if name not in single[a]}
    rows += _against_statistics(partial, single[b], "float32", 1.0)
    if double[b]:
        held = {name: entry for name, entry in partial.items() if name in double[b]}
        rows += _against_statistics(held, double[b], "float64", float64_factor(evidence, stage, a, b))
    return rows + [fault(n, "every element", "left over: not in the reference") for n in single[b] if n not in known]


def _against_float32(name: str, reference: np.ndarray, candidates: Arrays, entry: Mapping[str, Any], metric: str) -> list[Row]:
    """For a tensor published in float32 with the size of its error: one floor more than K, as the reference has its own."""
    floor = Noise(entry["floor_max"], entry["floor_max"] * np.sqrt(reference.size))
    return judge(compare_sets({name: reference}, chosen(candidates, (name,))), {name: floor}, metric, slack=1.0)


def _against_statistics(entries: Mapping[str, Mapping], candidates: Arrays, dtype: str, factor: float) -> list[Row]:
    """Rows for tensors of which the published side gives the norm, the mean and the first values in place of all.

    Floors: |norm(a) - norm(b)| <= norm(a - b); |mean(a) - mean(b)| <= norm(a - b) / sqrt(n).
    """
    sizes = {name: int(np.prod(entry["shape"])) for name, entry in entries.items()}
    floors = {name: _floor_l2(entry, sizes[name]) for name, entry in entries.items()}
    shared = shared_floor({n: (floors[n] / e["l2"], sizes[n]) for n, e in entries.items() if e["l2"]})
    rows = []
    for name, entry in entries.items():
        if name not in candidates:
            rows.append(fault(name, "L2 norm", "missing"))
            continue
        array, size = candidates[name], sizes[name]
        broken = compare(name, np.zeros(entry["shape"]), array, dtype).fault
        if broken:
            rows.append(fault(name, "L2 norm", broken))
            continue
        least = max(ROUNDING, shared if size < FEW else 0.0)
        floor = factor * max(floors[name], least * entry["l2"])
        suffix = ", float64" if dtype == "float64" else ""
        rows.append(judge_value(name, "L2 norm" + suffix, abs(norm(array) - entry["l2"]), floor, entry["l2"]))
        if entry.get("mean") is not None:
            error = abs(float(np.mean(array, dtype=np.float64)) - entry["mean"])
            rows.append(judge_value(name, "mean" + suffix, error, floor / np.sqrt(size), entry["l2"] / np.sqrt(size)))
        if entry.get("first") and dtype == "float32":
            error = np.abs(array.ravel()[: len(entry["first"])] - np.array(entry["first"])).max()
            rows.append(judge_value(name, "first values", error, entry["floor_max"], entry["max"], slack=1.0))
    return rows


def _floor_l2(entry: Mapping[str, Any], size: int) -> float:
    return entry["floor_l2"] if entry.get("floor_l2") is not None else entry["floor_max"] * float(np.sqrt(size))


def other_deviations(evidence: Evidence, exact: Arrays) -> dict[str, float]:
    """L2 by which PyTorch's other float32 gradients lie from float64: the published code's, and those of repeats.

    One run is a poor sample: where an activation's input lies within noise of zero, some runs take one slope and some
    the other, and the gradients behind it jump. `repeat/<i>/gradient/…` are runs whose input was moved by one rounding.
    """
    found: dict[str, float] = {}
    if evidence.get("published", "loss") and evidence.field("published", "loss", "case") == evidence.field("torch", "loss", "case"):
        for name, entry in evidence.field("published", "loss", "statistics").items():
            if name.startswith("gradient/"):
                found[name.removeprefix("gradient/")] = entry["floor_l2"]
    for name, array in evidence.arrays("torch", "loss", "repeat/").items():
        key = name.split("/", 2)[2]  # "<i>/gradient/<phase>/<parameter>"
        found[key] = max(found.get(key, 0.0), norm(array - exact[key]))
    return found


def true_zeros(evidence: Evidence, a: str, single: Arrays, double: Arrays) -> dict[str, float]:
    """Gradients ("phase/parameter") that are zero but for rounding, with the L2 of that noise in float32.

    Zero means: the float32 run deviates from the float64 run by more than the whole float64 gradient.
    """
    noise = {c.name: (c.l2, c.scale_l2) for c in compare_sets(double, single, "float32") if c.fault is None}
    if a == "published":
        statistics = evidence.field(a, "loss", "statistics")
        noise |= {
            name.removeprefix("gradient/"): (entry["floor_l2"], entry["l2"])
            for name, entry in statistics.items() if name.startswith("gradient/")
        }  # fmt: skip
    return {name: deviation for name, (deviation, size) in noise.items() if deviation > size}


def excuse_flips(rows: Sequence[Row]) -> list[Row]:
    """Rows of gradients, where a float32 run may leave its own floor for one reason that is no fault.

    An activation whose input lies within noise of zero takes the other slope on one side and not on the other; the
    gradients behind it jump. Legal where the float64 run of the same tensor, which has no such noise, passes, and the
    jump is no larger than K times the largest floor of the set.
    """
    single = [row for row in rows if "float64" not in row.what and row.scale > 0]
    largest = max((row.relative(row.floor) for row in single), default=0.0)
    doubles = [row for row in rows if "float64" in row.what]
    sound = {row.name for row in doubles} - {row.name for row in doubles if not row.passed}
    return [_excused(row, largest * row.scale) if row.passed is False and row.name in sound else row for row in rows]


def _excused(row: Row, floor: float) -> Row:
    if not row.error <= K * floor:
        return row
    return replace(row, what=f"{row.what}, flipped activation", floor=floor, gate=K * floor, passed=True,
                   note="beyond its own floor, held to the set's largest; its float64 run agrees")  # fmt: skip


def detections(a: str, b: str, single: Arrays, double: Arrays, threshold: float, limit: int) -> list[Row]:
    """Rows for detections (m, 6) or (m, 7) of each side, paired one to one.

    A detection that one side has alone is legal only where its score lies within the gate of the cut: the score
    threshold, or the lowest score kept where an image is full.
    """
    if missing := [side for side, runs in ((a, single), (b, single), (a, double)) if side not in runs]:
        return [fault("detections", "detections", f"missing on side {missing[0]}, which has no noise floor without them")]
    exact, rounded, candidate = (_with_image(runs[side]) for side, runs in ((a, double), (a, single), (b, single)))
    for side, found in ((a, rounded), (b, candidate)):
        if not np.isfinite(found).all():
            return [fault("detections", "detections", f"NaN or Inf on side {side}")]
    own = match_detections(exact, rounded)
    reference = exact if a == "published" else rounded
    floor_box = max(own.box, ROUNDING * float(np.abs(reference[:, 1:5]).max(initial=1.0)))
    floor_score = max(own.score, ROUNDING)
    found = match_detections(reference, candidate)
    alone = [reference[i] for i in found.only_reference] + [candidate[i] for i in found.only_candidate]
    cuts = {image: _cut(reference[reference[:, 0] == image], threshold, limit) for image in np.unique(reference[:, 0])}
    illegal = [row for row in alone if row[5] > cuts.get(row[0], threshold) + K * floor_score]
    note = f"first: image {illegal[0][0]:.0f}, label {illegal[0][6]:.0f}, score {illegal[0][5]:.4f}" if illegal else ""
    return [
        decisions("unmatched detections", len(illegal), len(reference), note),
        judge_value("box, pixels", "matched detections", found.box, floor_box, float(np.abs(reference[:, 1:5]).max(initial=1.0))),
        judge_value("score", "matched detections", found.score, floor_score, 1.0),
    ]


def _with_image(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows if rows.shape[1] == 7 else np.concatenate([np.zeros((len(rows), 1)), rows], axis=1)


def _cut(rows: np.ndarray, threshold: float, limit: int) -> float:
    return float(rows[:, 5].min()) if len(rows) >= limit else threshold


def mapping(name: str, reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> Row:
    """A row for two mappings that must be equal, entry by entry."""
    differing = [key for key in reference if candidate.get(key) != reference[key]]
    extra = [key for key in candidate if key not in reference]
    note = ""
    if differing:
        key = differing[0]
        note = f"{key}: missing" if key not in candidate else f"{key}: {candidate[key]} where the reference has {reference[key]}"
    elif extra:
        note = f"{extra[0]}: left over"
    elif not reference:
        return fault(name, "decisions", "empty comparison: the reference has no entry")
    return decisions(name, len(differing) + len(extra), len(reference), note)


def step_residuals(evidence: Evidence, side: str, variant: str) -> dict[str, float]:
    """How far each parameter's change is from AdamW's rule applied to the recorded gradient, in float32 roundings.

    First step of AdamW: w <- w (1 - lr decay) - lr g / (|g| + eps), g clipped by the global norm. One rounding is
    2**-24 (|w| + lr). NaN where gradient and change don't belong together; the published side, which has whole
    changes of one variant and of a few parameters, gives those. Weights: `seeded_array`.
    """
    settings = evidence.field(side, "loss", "optimiser", variant)
    changes = evidence.arrays(side, "loss", f"float32/step/{variant}/")
    gradients = evidence.arrays(side, "loss", f"float32/gradient/{settings['phase']}/")
    limit, total = settings["clip"], float(settings["grad_norm"]["float32"])
    factor = min(1.0, limit / (total + 1e-6)) if limit is not None else 1.0  # as torch.nn.utils.clip_grad_norm_
    lr, eps, decay = (settings[name] for name in ("lr", "eps", "weight_decay"))
    found = {}
    for name in changes if side == "published" else {**gradients, **changes}:
        gradient, change = gradients.get(name), changes.get(name)
        if gradient is None or change is None or gradient.shape != change.shape:
            found[name] = float("nan")
            continue
        weight, g = seeded_array(name, change.shape).astype(np.float64), factor * gradient.astype(np.float64)
        rule = -lr * decay * weight - lr * g / (np.abs(g) + eps)
        found[name] = float((np.abs(change - rule) / (ROUNDING * (np.abs(weight) + lr))).max(initial=0.0))
    return found


def step_norms(evidence: Evidence, a: str, b: str, variant: str, zero: set[str]) -> list[Row]:
    """Rows for the L2 of each parameter's change; not those whose true gradient is zero: AdamW makes noise a whole step."""
    def norms(side: str, run: str) -> dict[str, float]:
        if side == "published":
            held = {name: pair[run] for name, pair in evidence.field(side, "loss", "step_norms", variant).items()}
        else:
            held = {n: norm(array) for n, array in evidence.arrays(side, "loss", f"{run}/step/{variant}/").items()}
        return {f"{variant}/{name}": value for name, value in held.items() if name not in zero}

    exact, rounded = norms(a, "float64"), norms(a, "float32")
    rows = judge_scalars(exact, rounded, norms(b, "float32"), exact if a == "published" else rounded)
    if double := norms(b, "float64"):
        sharp = judge_scalars(exact, rounded, double, factor=float64_factor(evidence, "loss", a, b))
        rows += [replace(row, what="scalar, float64") for row in sharp]
    return [replace(row, what=row.what.replace("scalar", "L2 norm of the change")) for row in rows]
