"""What follows from the rest of a record, derived again: a number that somebody changed no longer follows.

Here belongs what a record says twice, once as it was measured and once as a summary of that: COCO's numbers and its
detections, a curve and the lines of the log, a median and its samples, a norm and its array, a sum and its parts, a
time and the times it holds. What the summary is made of may lie beside the record (arrays, the log of a training, the
annotations); where it does not, the number is `absent`: nobody can say.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from lib.alignment import equivalence
from lib.alignment.compare import norm
from lib.alignment.evidence import REFERENCE, SIDES, Evidence
from lib.alignment.references import module
from lib.alignment.store import digest
from lib.data import coco
from lib.errors import UserError
from lib.evaluation import evaluate, published_form
from lib.record import ROOT, ArraysMissing, plain, sha256
from lib.training import log
from lib.training.runs import REPEATS

# The same float64 numbers added in another order, by another version of a library or on another processor: 2**13
# roundings of float64 are more than a sum of millions of terms shows, and less than anybody would forge.
ORDER = 2.0**-40
FILLED = 0.9  # of a benchmark's turn by what it timed: the rest is what a loop costs


@dataclass(frozen=True)
class Derived:
    """A number of a record, and what it is when derived again."""

    name: str
    recorded: Any
    again: Any
    holds: bool | None  # None: what it is derived from is not here

    @classmethod
    def equal(cls, name: str, recorded: Any, again: Any) -> "Derived":
        return cls(name, recorded, again, alike(recorded, plain(again)))

    @classmethod
    def within(cls, name: str, part: float, whole: float) -> "Derived":
        """A part is at most the whole."""
        return cls(name, whole, part, part <= whole * (1 + ORDER))

    @classmethod
    def absent(cls, name: str, what: str) -> "Derived":
        return cls(name, None, what, None)


def alike(one: Any, other: Any) -> bool:
    """Whether two values of JSON are the same, numbers but for the order in which they were added."""
    match one, other:
        case (bool(), _) | (_, bool()):
            return one is other
        case int() | float(), int() | float():
            return math.isclose(one, other, rel_tol=ORDER)
        case Mapping(), Mapping():
            return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
        case list() | tuple(), list() | tuple():
            return len(one) == len(other) and all(map(alike, one, other))
    return one == other


def again(evidence: Evidence, side: str, stage: str) -> list[Derived]:
    """Everything that follows from the rest of a side's record of a stage; nothing where that has no record."""
    if (side, stage) not in evidence.derived:
        held, how = evidence.get(side, stage), RULES.get(stage)
        brought = held and "without" in held.fields and module(evidence.model) is None  # a user's port: it holds less
        try:
            found = list(how(evidence, side, held.fields)) if held and how and not brought else []
        except KeyError as missing:
            path = evidence.path(side, stage)
            raise UserError(f"{path}: has no field {missing.args[0]}; run the stage again") from missing
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            path = evidence.path(side, stage)
            raise UserError(f"{path}: is not what the stage writes ({error}); run the stage again") from error
        evidence.derived[side, stage] = found
    return evidence.derived[side, stage]


def _convert(evidence: Evidence, side: str, fields: Mapping) -> Iterator[Derived]:
    sizes = [math.prod(shape) for _, shape, _, kind, _ in fields["state"] if kind == "param"]
    yield Derived.equal("parameters", fields["parameters"], sum(sizes))
    yield Derived.equal("coverage/total", fields["coverage"]["total"], len(fields["state"]))
    try:
        kept = evidence.arrays(side, "convert", "first/")
    except ArraysMissing:
        yield Derived.absent("first", "arrays of convert")
        return
    shapes = {name: shape for name, shape, *_ in fields["state"]}
    for name in kept.keys() & shapes.keys():
        values, shape = kept[name], shapes[name]
        if len(values) == math.prod(shape) or (values == values[0]).all():  # else some of its bytes were not kept
            yield Derived.equal(f"first/{name}", fields["first"][name], digest(np.resize(values, shape)))


def _divergence(evidence: Evidence, side: str, fields: Mapping) -> Iterator[Derived]:
    cost = fields["cost"]
    yield Derived.equal("cost/times_plain", cost["times_plain"], cost["seconds"] / cost["plain_seconds"])
    yield Derived.equal("cost/gb_per_second", cost["gb_per_second"], cost["bytes"] / cost["seconds"] / 1e9)
    yield _fits(evidence, side, "divergence", "cost/seconds", cost["seconds"])


def _loss(evidence: Evidence, side: str, fields: Mapping) -> Iterator[Derived]:
    for phase, runs in fields["losses"].items():
        for run, losses in runs.items():
            if "loss_total" in losses:
                parts = [float(value) for name, value in losses.items() if name != "loss_total"]
                yield Derived.equal(f"{phase}/{run}/loss_total", losses["loss_total"], math.fsum(parts))


def _lockstep(evidence: Evidence, side: str, fields: Mapping) -> Iterator[Derived]:
    curves = {"own": fields["curves"]["own"]}
    if "off" in fields["curves"]:
        controls = enumerate(fields["curves"]["controls"])
        curves |= {"off": fields["curves"]["off"], **{f"control {i}": run for i, run in controls}}
    for name, run in curves.items():
        yield Derived.equal(f"curves/{name}/loss", run["loss"], _sums(run))
    for window in fields["windows"]:
        around = f"steps around {', '.join(window['events'])}"
        yield Derived.equal(around, len(window["steps"]), window["end"] - window["first"])
    try:
        arrays = evidence.arrays(side, "lockstep")
    except ArraysMissing:
        yield Derived.absent("norms", "arrays of lockstep")
        return
    for place, array in arrays.items():
        mode, run, step, kind, name = place.split("/", 4)
        line, exact = fields[mode]["steps"][int(step)], arrays.get(f"{mode}/float64/{step}/{kind}/{name}")
        yield Derived.equal(f"norm of {place}", line["norms"][run][kind][name], norm(array))
        if run == "float32" and exact is not None:
            noise = norm(np.subtract(array, exact, dtype=np.float64))
            yield Derived.equal(f"noise of {place}", line["noise"][kind][name], noise)


def _sums(columns: Mapping[str, Sequence[float]]) -> list[float]:
    """The loss of each step from its components."""
    return [math.fsum(map(float, parts)) for parts in zip(*(columns[name] for name in columns if "loss_" in name))]


def _train(evidence: Evidence, side: str, fields: Mapping) -> Iterator[Derived]:
    curves, seconds = fields["curves"], math.fsum(fields["curves"]["step_seconds"])
    yield Derived.equal("curves/loss", curves["loss"], _sums(curves))
    first = {name: column[0] for name, column in curves.items() if "loss_" in name}
    yield Derived.equal("first_step/float32", fields["first_step"]["float32"], first)
    yield Derived.equal("steps", fields["steps"], len(curves["step"]))
    planned = fields["schedule"]["steps_per_epoch"] * fields["schedule"]["recipe"]["epochs"]
    yield Derived.equal("schedule/steps", [fields["schedule"]["steps"], planned], [fields["steps"]] * 2)
    waited = math.fsum(curves["wait_seconds"])
    yield Derived.equal("seconds", fields["seconds"], seconds)
    yield Derived.equal("waiting_seconds", fields["waiting_seconds"], waited)
    yield Derived.equal("waiting_share", fields["waiting_share"], waited / seconds)
    own = math.fsum(curves["step_seconds"][fields.get("resumed_at", 0) :])  # of the process that ended it
    yield _fits(evidence, side, "train", "seconds", own)
    told = math.fsum(one["seconds"] - 0.001 for one in fields.get("cost", ()))  # rounded to milliseconds
    yield Derived.within("seconds hold cost", told, seconds)
    best = max(fields["epochs"], key=lambda numbers: numbers["AP"])  # the first of equals, as in training
    yield Derived.equal("final", fields["final"], {name: best[name] for name in fields["final"]})
    *_, start = fields["starts"].values()  # the last is the one whose curves these are
    yield Derived.equal("starts/after", {**start["after"], "step": best["step"]}, best)
    trained = [one for one in start["evaluations"] if one["epoch"] >= 0]
    yield Derived.equal("starts/evaluations", trained, fields["epochs"])
    yield from _log(evidence, side, fields)
    for place, one in enumerate(fields.get("repeats", ())):
        told = {"losses": one["losses"], "AP": one["AP"]}
        if place == 0:
            yield Derived.equal("repeats/0", told, {"losses": curves["loss"], "AP": fields["final"]["AP"]})
        elif lines := _lines(evidence, side, f"{REPEATS}/{place}/weights.safetensors", one["weights_sha256"]):
            columns, evaluations = log.curves(lines)
            again = {"losses": columns["loss"], "AP": max(found["AP"] for found in evaluations if found["epoch"] >= 0)}
            yield Derived.equal(f"repeats/{place} of the log", told, again)
        else:
            yield Derived.absent(f"repeats/{place}", "logs of train")


def _lines(evidence: Evidence, side: str, weights: str, digest: str) -> list[dict[str, Any]]:
    """The log of a training that left these weights, which lies beside the records of a report; [] without it."""
    kept = evidence.folder.parent / "runs" / evidence.model / side / weights
    path = kept.with_name("log.jsonl")
    return log.read_log(path) if path.is_file() and kept.is_file() and sha256(kept) == digest else []


def _log(evidence: Evidence, side: str, fields: Mapping) -> Iterator[Derived]:
    """Curves and numbers of a training from its own log."""
    kept = fields["checkpoint"]
    lines = _lines(evidence, side, PurePath(kept["path"]).name, kept["sha256"])
    if not lines:
        yield Derived.absent("curves", "logs of train")
        return
    curves, evaluations = log.curves(lines)
    yield Derived.equal("curves of the log", fields["curves"], curves)
    yield Derived.equal("schedule of the log", fields["schedule"]["changes"], log.schedule(lines))
    yield Derived.equal("epochs of the log", fields["epochs"], [one for one in evaluations if one["epoch"] >= 0])
    cost = [{"epoch": line["epoch"], **line["cost"]} for line in lines if "cost" in line]
    yield Derived.equal("cost of the log", fields["cost"], cost)


def _evaluate(evidence: Evidence, side: str, fields: Mapping) -> Iterator[Derived]:
    if evidence.get(REFERENCE, "train"):
        trained = evidence.field(REFERENCE, "train", "checkpoint", "sha256")
        yield Derived.equal("common_weights_sha256", fields["common_weights_sha256"], trained)
    try:
        arrays = evidence.arrays(side, "evaluate")
    except ArraysMissing:
        yield Derived.absent("own, common", "arrays of evaluate")
        return
    truth = _truth(evidence.get(side, "evaluate").provenance.inputs)
    for weights in ("own", "common"):
        prefix = f"matches/{weights}/"
        kept = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        once = np.ones((1, fields["images"]), int)
        value = equivalence.mean_average_precision(equivalence.restored(kept, fields["images"]), once)
        average = float(value[0])
        # COCO's number of a set without objects is -1, a mean over no class is none.
        yield Derived.equal(f"{weights}/AP of its matches", fields[weights]["AP"], -1 if np.isnan(average) else average)
        if truth is None:
            yield Derived.absent(weights, "annotations of evaluate")
            continue
        found = _in_published_form(truth, arrays[f"float32/{weights}/detections"])
        scored = evaluate(truth, found)
        yield Derived.equal(weights, fields[weights], scored.numbers)
        yield Derived.equal(f"{weights}_per_class", fields[f"{weights}_per_class"], scored.per_class)
        matched = equivalence.arrays(equivalence.matches(truth, found))
        same = kept.keys() == matched.keys() and all(np.array_equal(kept[name], matched[name]) for name in kept)
        yield Derived(f"{weights}, matches", "", "others", same)


def _truth(inputs: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The annotations that were evaluated on, the last file of data that the stage read; None where they are not what
    they were, or name images by numbers that float32 rows can't tell apart."""
    data = [(ROOT / path, sha) for path, sha in inputs.items() if PurePath(path).parent.name not in SIDES]
    for path, sha in data[-1:]:
        if path.is_file() and sha256(path) == sha:
            truth = coco.truth(path)[0]
            apart = {float(np.float32(image["id"])) for image in truth["images"]}
            return truth if len(apart) == len(truth["images"]) else None
    return None


def _in_published_form(truth: Mapping, rows: np.ndarray) -> list[dict[str, Any]]:
    """Detections (m, 7: image id, x1, y1, x2, y2, score, label) in COCO's result form."""
    ids = {float(np.float32(image["id"])): image["id"] for image in truth["images"]}
    categories = sorted(category["id"] for category in truth["categories"])
    return published_form([ids[float(row[0])] for row in rows], rows[:, None, 1:], categories)


def _speed(evidence: Evidence, side: str, fields: Mapping) -> Iterator[Derived]:
    taken = 0.0
    for case in fields["cases"]:
        name, turns, unit = f"{case['operation']}, batch {case['batch']}", case["turns_ms"], case["unit_ms"]["median"]
        calls = [call for turn in turns for call in turn]
        median = statistics.median(calls)
        yield Derived.equal(f"{name}: synchronised_ms", case["synchronised_ms"], _spread(calls))
        yield Derived.equal(f"{name}: images_per_second", case["images_per_second"], 1e3 * case["batch"] / median)
        yield Derived.equal(f"{name}: units", case["units"], median / unit)
        # A turn ends when its time has passed: a unit product and calls fill it where nothing runs elsewhere meanwhile.
        if evidence.get(side, "speed").provenance.device == "cpu":
            filled = unit + min(map(sum, turns))
            yield Derived.within(f"{name}: a turn", FILLED * 1e3 * fields["seconds_per_turn"], filled)
        for other, ratio in case["ratio_to"].items():
            theirs = evidence.get(other, "speed")
            for one in theirs.fields["cases"] if theirs else ():
                if all(one[key] == case[key] for key in ("operation", "batch", "size")):
                    medians = [map(statistics.median, held["turns_ms"]) for held in (case, one)]
                    yield Derived.equal(f"{name}: ratio_to", ratio, _spread([a / b for a, b in zip(*medians)]))
        taken += sum(calls) / 1e3
    yield _fits(evidence, side, "speed", "the calls", taken)


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": middle, "q1": low, "q3": high, "samples": len(values)}


def _fits(evidence: Evidence, side: str, stage: str, name: str, seconds: float) -> Derived:
    """What was timed took no longer than the stage."""
    return Derived.within(f"wall_seconds holds {name}", seconds, evidence.get(side, stage).provenance.wall_seconds)


RULES: dict[str, Callable[[Evidence, str, Mapping], Iterator[Derived]]] = {
    "convert": _convert,
    "divergence": _divergence,
    "loss": _loss,
    "lockstep": _lockstep,
    "train": _train,
    "evaluate": _evaluate,
    "speed": _speed,
}
