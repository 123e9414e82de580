"""State in lock-step: each way to update wrongly is planted and named by step and quantity; both environments.

Both sides run on the same framework here: what is tested is whether the engine finds what was planted.
"""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from lib import backend, record
from lib.alignment import lockstep, steps, verdict
from lib.alignment.seeded import seeded_input, seeded_state
from lib.backend import nn
from lib.models.step import ParameterGroup
from lib.training.schedule import Recipe


class Rising(Recipe):
    """A rate that grows with every step."""

    def learning_rates(self, steps, groups):
        return super().learning_rates(steps, groups) * np.arange(1, 1 + self.epochs * steps)[:, None]


RECIPE = Rising(
    optimiser="AdamW",
    options={"betas": (0.9, 0.999), "eps": 1e-8},
    learning_rate=1e-3,
    weight_decay=0.05,
    batch=2,
    epochs=2,
    average_decay=0.9,
    average_steps=3,
    clip=1.0,
)
STEPS = 4


@dataclass(frozen=True)
class Batch:
    images: np.ndarray
    targets: tuple = ()


BATCHES = [Batch(seeded_input(f"toy:{i}", (2, 2, 4, 4))) for i in range(STEPS)]


def net(momentum=0.1):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, momentum=momentum), nn.SiLU(), nn.Conv2d(4, 3, 1)
    )
    shapes = [(name, backend.numpy(value).shape) for name, value in backend.named_state(model)]
    backend.load_state(model, seeded_state(shapes))
    return model


def criterion(outputs, targets, image_size):
    return {
        "loss_square": backend.mean(outputs * outputs),
        "loss_cube": backend.mean((outputs - 1.0) * outputs * outputs),
    }


GROUPS = (ParameterGroup(("0.weight", "3.weight")), ParameterGroup(("1.weight", "1.bias", "3.bias"), decays=False))


def trainers(
    change=lambda trainer: None,
    groups=GROUPS,
    precisions=("float32", "float64"),
    momentum=0.1,
    kind=steps.Watched,
    **changes,
):
    """A watched trainer per precision, each changed by change(trainer)."""
    found = {}
    for precision in precisions:
        model = backend.float64(net(momentum)) if precision == "float64" else net(momentum)
        found[precision] = kind(model, criterion, replace(RECIPE, **changes), 3, groups)
        change(found[precision])
    return found


def run(mode, **options):
    return steps.lockstep(
        trainers(**options), steps.fed if mode == "fed" else steps.native(BATCHES), STEPS, ("0.weight", "1.running_var")
    )


@pytest.fixture(scope="module", params=["fed", "native"])
def sound(request):
    return request.param, *run(request.param)


def judged(sound, **options):
    mode, fields, arrays = sound
    other, theirs = run(mode, **options)
    return lockstep.side_by_side(fields, json.loads(json.dumps(record.plain(other))), (arrays, theirs))


def test_the_same_run_passes_and_everything_is_watched(sound):
    result = judged(sound)
    assert result.first() is None and not result.faults
    assert verdict.conclude("lockstep", "torch-jittor", result.rows(), []).verdict is verdict.Verdict.PASS
    kinds = [
        "gradient",
        "clipped",
        "learning_rate",
        "step",
        "exp_avg",
        "exp_avg_sq",
        "parameter",
        "statistics",
        "average",
        "schedule",
    ]
    seen = list(dict.fromkeys(step.kind for step in result.steps))
    assert [kind for kind in seen if kind != "loss"] == kinds and ("loss" in seen) == (sound[0] == "native")
    assert any("every element" in row.what for step in result.steps for row in step.rows)


def test_some_steps_are_clipped_and_some_are_not(sound):
    _, fields, _ = sound
    norms = [line["norms"]["float32"] for line in fields["steps"]]
    clipped = [line["gradient"] != line["clipped"] for line in norms]
    assert any(clipped) and (sound[0] == "native" or not all(clipped))


def test_beyond_the_horizon_only_what_is_exact_is_judged(sound):
    """From the step on at which the reference's own runs part; a wrong rate or a NaN is a fault wherever it stands."""
    mode, fields, arrays = sound
    parted = json.loads(json.dumps(record.plain(fields)))
    noise = parted["steps"][2]["noise"]["gradient"]
    noise.update({name: abs(value) / 50 for name, value in parted["steps"][2]["norms"]["float64"]["gradient"].items()})

    def found(kind, factor, at):
        other = json.loads(json.dumps(record.plain(fields)))
        for run in other["steps"][at]["norms"].values():
            run[kind] = {name: value * factor for name, value in run[kind].items()}
        first = lockstep.side_by_side(parted, other, ({}, {})).first()
        return first and (first.step, first.kind)

    assert found("parameter", 1.01, 1) == (1, "parameter") and found("parameter", 1.01, 3) is None
    assert found("learning_rate", 1.01, 3) == (3, "learning_rate")
    assert found("parameter", float("nan"), 3) == (3, "parameter")


def test_of_own_gradients_float64_is_judged_and_of_gradients_that_are_fed_both_are(sound):
    """A flipped activation makes float32 jump; NaN is a fault in either."""
    mode, fields, _ = sound

    def first(precision, factor):
        other = json.loads(json.dumps(record.plain(fields)))
        norms = other["steps"][0]["norms"][precision]["gradient"]
        norms["3.bias"] = factor * float(norms["3.bias"])
        return lockstep.side_by_side(fields, other).first()

    assert first("float64", 1.001) and first("float32", float("nan"))
    assert (first("float32", 1.001) is None) == (mode == "native")


def shift_rates(trainer):
    trainer.rates = np.roll(trainer.rates, -1, 0)


def average_off_by_one(trainer):
    update = trainer.average.update
    trainer.average.update = lambda count: update(count + 1)


def average_before_update(trainer):
    """Takes in the weights of the step before."""
    old, update = trainer._optimiser.step, trainer.average.update
    trainer._optimiser.step = lambda gradients: (update(trainer.updates + 1), old(gradients))
    trainer.average.update = lambda count: None


@pytest.mark.parametrize(
    "options, step, kind",
    [
        ({"change": shift_rates}, 0, "learning_rate"),
        ({"change": average_off_by_one}, 0, "average"),
        ({"change": average_before_update}, 0, "average"),
        ({"clip": 1.1}, 0, "clipped"),
        ({"learning_rate": 1.01e-3}, 0, "learning_rate"),
        ({"options": {"betas": (0.9, 0.998), "eps": 1e-8}}, 0, "exp_avg_sq"),
        ({"options": {"betas": (0.8, 0.999), "eps": 1e-8}}, 0, "exp_avg"),
        ({"options": {"betas": (0.9, 0.999), "eps": 1e-6}}, 0, "parameter"),
        ({"weight_decay": 0.051}, 0, "parameter"),
        ({"average_decay": 0.99}, 0, "average"),
    ],
)
def test_the_first_wrong_quantity_is_named(sound, options, step, kind):
    if sound[0] == "fed" and "clip" in options:
        step = next(
            i
            for i, line in enumerate(sound[1]["steps"])
            if line["norms"]["float32"]["gradient"] != line["norms"]["float32"]["clipped"]
        )
    first = judged(sound, **options).first()
    assert (first.step, first.kind) == (step, kind)
    assert not first.rows[0].passed and f"step {step}:" in first.rows[0].name


def test_decay_on_the_wrong_group_is_named(sound):
    moved = (ParameterGroup(("0.weight", "3.weight", "1.weight")), ParameterGroup(("1.bias", "3.bias"), decays=False))
    result = judged(sound, groups=moved)
    assert [(row.name, row.note) for row in result.faults] == [("1.weight", "decay True where the reference has False")]
    left_out = judged(sound, groups=(GROUPS[0], ParameterGroup(("1.weight", "3.bias"), decays=False)))
    assert "not updated" in {row.name: row.note for row in left_out.faults}["1.bias"]


def test_batch_norm_momentum_shows_in_the_statistics():
    fields, arrays = run("native")
    other, theirs = run("native", momentum=0.11)
    first = lockstep.side_by_side(fields, other, (arrays, theirs)).first()
    assert (first.step, first.kind) == (0, "statistics") and "running" in first.rows[0].name


def test_nan_a_missing_step_and_a_missing_tensor_are_faults(sound):
    mode, fields, _ = sound

    def spoiled(change):
        other = json.loads(json.dumps(record.plain(fields)))
        change(other)
        return lockstep.side_by_side(fields, other)

    nan = spoiled(lambda other: other["steps"][1]["norms"]["float32"]["parameter"].update({"1.bias": "NaN"}))
    assert (nan.first().step, nan.first().kind, nan.first().rows[0].note) == (1, "parameter", "nan")
    short = spoiled(lambda other: other["steps"].pop())
    assert "3 steps where the reference has 4" in short.faults[0].note
    gone = spoiled(lambda other: other["sizes"]["average"].pop("1.bias"))
    assert gone.faults[0].name == "average/1.bias" and gone.faults[0].note == "missing"
    assert lockstep.side_by_side(fields, {**fields, "steps": []}).faults


def test_without_a_float64_run_there_is_no_floor():
    fields, _ = run("fed", precisions=("float32",))
    result = lockstep.side_by_side(fields, fields)
    assert not result.steps and "no noise floor" in result.faults[0].note
