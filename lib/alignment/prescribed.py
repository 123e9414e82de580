"""What the published trainers set at each step, said again as their loops say it: one step after another.

Follows NanoDet-Plus be9b4a9 (trainer/task.py, weight_averager/ema.py, torch's CosineAnnealingLR), Gold-YOLO 225ddd2e
(yolov6/core/engine.py, solver/build.py, utils/ema.py) and RT-DETR 068dfde (src/optim/ema.py, constant rates). The
numbers come from the run's recipe, whose own are held against the published table by the question "recipe".
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lib.alignment.verdict import Row, decisions
from lib.data import transforms
from lib.families import NAMES, family

# Of a formula computed in another order: many roundings of float64, and less than anybody would call another schedule.
SAME = 2.0**-30
Columns = dict[str, list[float | None]]  # one number per step, None where that step has no such number


def columns(changes: Mapping[str, Sequence[Sequence]], count: int) -> Columns:
    """`log.changes` written out, `count` numbers each."""
    found: Columns = {}
    for name, held in changes.items():
        ends = [*(place for place, _ in held[1:]), count]
        found[name] = [value for (place, value), end in zip(held, ends) for _ in range(place, end)]
    return found


def between(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[int, Row]]:
    """A row per quantity: in how many steps the two runs' numbers differ; before it the first such step."""
    first, second = (_written_out(run) for run in (a, b))
    names, length = dict.fromkeys([*first, *second]), a["steps_per_epoch"]
    return [_row(name, first.get(name, []), second.get(name, []), 0.0, length) for name in names]


def kept(model: str, run: Mapping[str, Any]) -> list[tuple[int, Row]]:
    """The same of a run against what is prescribed; none of a model that nobody published, and none in mixed precision,
    where overflows leave updates out."""
    found = _written_out(run)
    if model not in NAMES or "scale" in found:
        return []
    expected: Columns = {}
    for i, line in enumerate(_steps(family(model), run)):
        for name in dict.fromkeys([*expected, *line]):
            expected.setdefault(name, [None] * i).append(line.get(name))
    recipe = transforms.recipe(model)
    epochs = run["recipe"]["epochs"]
    flags = [asdict(recipe) | _last_epochs(family(model), epoch, epochs) for epoch in range(epochs)]
    expected |= {f"augmentation/{name}": [one[name] for one in flags] for name in _numbers(flags[0])}
    return [_row(name, expected[name], found.get(name, []), SAME, run["steps_per_epoch"]) for name in expected]


def _written_out(run: Mapping[str, Any]) -> Columns:
    flags = {f"augmentation/{name}": held for name, held in run["augmentation"].items()}
    return columns(run["changes"], run["steps"]) | columns(flags, run["recipe"]["epochs"])


def _numbers(values: Mapping[str, Any]) -> list[str]:
    return [name for name, value in values.items() if isinstance(value, int | float)]


def _row(name: str, expected: Sequence, found: Sequence, tolerance: float, length: int) -> tuple[int, Row]:
    """The first step whose number differs by more than a share, and a row of how many do. length: of an epoch."""
    total = max(len(expected), len(found))
    pairs = list(zip([*expected, *[None] * (total - len(expected))], [*found, *[None] * (total - len(found))]))
    apart = [i for i, (one, other) in enumerate(pairs) if not _same(one, other, tolerance)]
    if not apart:
        return 0, decisions(name, 0, total)
    one, other = ("nothing" if value is None else value for value in pairs[apart[0]])
    unit, steps = ("epoch", length) if name.startswith("augmentation/") else ("step", 1)
    row = decisions(name, len(apart), total, f"{unit} {apart[0]}: {other} where {one} is expected")
    return apart[0] * steps, row


def _same(one: Any, other: Any, tolerance: float) -> bool:
    return one == other or (None not in (one, other) and math.isclose(float(one), float(other), rel_tol=tolerance))


# ------------------------------------------------------------------------------------------------- what is published
def _steps(kind: str, run: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """The numbers of each step."""
    recipe, length, options = run["recipe"], run["steps_per_epoch"], run["recipe"]["options"]
    updates = waiting = 0
    for step, (rates, momentum, due) in enumerate(_RULES[kind](recipe, length, run["groups"])):
        waiting += 1
        if updated := waiting >= due:
            updates, waiting = updates + 1, 0
        line: dict[str, float] = {"step": step, "epoch": step // length, "updates": updates, "waiting": waiting}
        if not updated:
            yield line
            continue
        for i, ((_, decays, _), rate) in enumerate(zip(run["groups"], rates)):
            line[f"learning_rate/{i}"] = rate
            line[f"weight_decay/{i}"] = recipe["weight_decay"] if decays else 0.0
            if recipe["optimiser"] == "AdamW":
                line |= {f"beta1/{i}": options["betas"][0], f"beta2/{i}": options["betas"][1]}
                line[f"eps/{i}"] = options["eps"]
            else:
                line[f"momentum/{i}"] = momentum
        if recipe["optimiser"] == "AdamW":
            line |= {"optimiser_steps/fewest": updates, "optimiser_steps/most": updates}
        ramp = 1 - math.exp(-(recipe["average_start"] + updates) / recipe["average_steps"])
        yield line | {"average_weight": 1 - recipe["average_decay"] * ramp}


Rule = Iterator[tuple[list[float], float, int]]  # of each step: rates by group, momentum, batches to an update


def _nanodet_plus(recipe: Mapping[str, Any], length: int, groups: Sequence) -> Rule:
    """A scheduler that goes on from the rate it finds, which the warm-up has overwritten."""
    full, last, warmup = recipe["learning_rate"], recipe["final_learning_rate"], recipe["warmup_steps"]
    rate = full
    for step in range(recipe["epochs"] * length):
        epoch, place = divmod(step, length)
        if epoch and not place:
            now, before = (1 + math.cos(math.pi * one / recipe["epochs"]) for one in (epoch, epoch - 1))
            rate = now / before * (rate - last) + last
        if step <= warmup:
            rate = full * (1 - (1 - step / warmup) * (1 - recipe["warmup_ratio"]))
        yield [rate] * len(groups), 0.0, 1


def _gold_yolo(recipe: Mapping[str, Any], length: int, groups: Sequence) -> Rule:
    """Interpolated up to the end of the warm-up, of which the end itself is no part."""
    warmup = max(round(recipe["warmup_epochs"] * length), recipe["warmup_steps"])
    momentum, together = recipe["options"]["momentum"], recipe["nominal_batch"] / recipe["batch"]
    for step in range(recipe["epochs"] * length):
        wave = (1 - math.cos(math.pi * (step // length) / recipe["epochs"])) / 2 * (recipe["final_ratio"] - 1) + 1
        full = [recipe["learning_rate"] * factor * wave for factor, _, _ in groups]
        if step >= warmup:
            yield full, momentum, max(1, round(together))
            continue
        ends = [(start, rate) for (_, _, start), rate in zip(groups, full)]
        ends += [(recipe["warmup_momentum"], momentum), (1.0, together)]
        *rates, now, due = (float(np.interp(step, [0, warmup], pair)) for pair in ends)
        yield rates, now, max(1, round(due))


def _rt_detr(recipe: Mapping[str, Any], length: int, groups: Sequence) -> Rule:
    """Constant, but for the backbone's own rate."""
    for _ in range(recipe["epochs"] * length):
        yield [recipe["learning_rate"] * factor for factor, _, _ in groups], 0.0, 1


_RULES = {"nanodet_plus": _nanodet_plus, "gold_yolo": _gold_yolo, "rt_detr": _rt_detr}


def _last_epochs(kind: str, epoch: int, epochs: int) -> dict[str, float]:
    """Gold-YOLO's last fifteen epochs of three hundred have no mosaic and mix nothing."""
    alone = kind == "gold_yolo" and epoch >= epochs - min(15, round(epochs * 15 / 300))
    return {"mosaic": 0.0, "mixup": 0.0} if alone else {}
