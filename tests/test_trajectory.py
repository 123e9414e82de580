"""Trajectories: right runs stay in the band of the controls, wrong ones leave it. The toy trains in torch only."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from lib import backend
from lib.alignment import steps
from lib.alignment.seeded import seeded_input, seeded_state
from lib.alignment.trajectory import HORIZON, LEAST, TOO_WIDE, band, inside, perturbed, sensitivity
from lib.alignment.verdict import ROUNDING, K
from lib.backend import nn
from lib.models.step import ParameterGroup
from lib.training.loop import Trainer
from lib.training.schedule import Recipe

STEPS = 40


# ------------------------------------------------------------------------------------------------- curves without a run
def chaotic(seed, growth=0.25, offset=0.0):
    """A falling curve with a deviation that grows exponentially from rounding, by its own factor in each run."""
    rng, step = np.random.default_rng(seed), np.arange(STEPS)
    deviation = rng.standard_normal() * ROUNDING * np.exp(growth * step) + ROUNDING * rng.standard_normal(STEPS)
    return 3 * np.exp(-step / 30) * (1 + deviation + offset)


CONTROLS = [chaotic(seed) for seed in range(LEAST)]


def test_right_runs_stay_inside_over_many_seeds():
    held = band(CONTROLS)
    stayed = [inside("loss", held, chaotic(seed)).passed for seed in range(100, 400)]
    assert held.horizon == STEPS
    assert np.mean(stayed) > 0.99


def test_the_band_ends_where_right_runs_part():
    runs = [chaotic(seed, growth=0.6) for seed in range(LEAST)]
    held = band(runs)
    assert 10 < held.horizon < STEPS
    edge = K * held.spread / np.abs(held.centre)
    assert edge[held.horizon] > HORIZON >= edge[: held.horizon].max()
    late = runs[0].copy()
    late[held.horizon :] *= 2
    assert inside("loss", held, late).passed, "beyond the horizon nothing is judged"


def test_a_run_that_leaves_early_fails_and_the_step_is_named():
    wrong = chaotic(7)
    wrong[12] *= 1.001
    row = inside("loss", band(CONTROLS), wrong)
    assert row.passed is False and "leaves at step 12" in row.note and row.error > row.gate
    assert sensitivity("loss", band(CONTROLS), wrong).passed


def test_a_wrong_run_that_stays_inside_shows_a_band_that_cannot_tell():
    row = sensitivity("loss", band(CONTROLS), CONTROLS[0])
    assert row.passed is False and "can't tell" in row.note


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_a_fault_and_never_inside(value):
    curve = CONTROLS[0].copy()
    curve[3] = value
    row = inside("loss", band(CONTROLS), curve)
    assert row.passed is False and "at step 3" in row.note
    assert "control run 0" in inside("loss", band([curve, *CONTROLS[1:]]), CONTROLS[0]).note


def test_what_is_no_band_is_a_fault():
    assert "at least 5" in band(CONTROLS[:4]).fault and "at least 5" in band([]).fault
    assert "equal length" in band([*CONTROLS[:4], CONTROLS[4][:-1]]).fault
    assert "nothing was perturbed" in band([CONTROLS[0]] * 5).fault
    assert "controls part" in band([run + i for i, run in enumerate(CONTROLS)]).fault
    assert "39 steps" in inside("loss", band(CONTROLS), CONTROLS[0][:-1]).note
    for held in (band(CONTROLS[:4]), band([CONTROLS[0]] * 5)):
        assert (
            inside("loss", held, CONTROLS[0]).passed is False and sensitivity("loss", held, CONTROLS[0]).passed is False
        )


@pytest.mark.parametrize("first", [1, 7])
def test_the_band_ends_where_a_control_leaves_the_others(first):
    far = CONTROLS[4].copy()
    far[first:] *= 1 + 1e-4
    held, wrong = band([*CONTROLS[:4], far]), CONTROLS[0].copy()
    assert held.horizon == first
    wrong[first - 1] *= 1 + 1e-4
    assert inside("loss", held, wrong).passed is False and inside("loss", held, far).passed
    assert band([*CONTROLS[:4], CONTROLS[4] * (1 + 1e-4)]).fault == TOO_WIDE


def test_weights_move_by_about_a_rounding():
    state = {"w": seeded_input("w", (64, 64)), "n": np.array(3, np.int64)}
    moved = perturbed(state, 1)
    share = np.mean(moved["w"] != state["w"])
    assert 0.3 < share < 1 and moved["w"].dtype == np.float32 and moved["n"] is state["n"]
    np.testing.assert_allclose(moved["w"], state["w"], rtol=6 * ROUNDING)
    assert (perturbed(state, 1)["w"] == moved["w"]).all() and (perturbed(state, 2)["w"] != moved["w"]).any()


# ---------------------------------------------------------------------------------------------------------- a toy run
@dataclass(frozen=True)
class Batch:
    images: np.ndarray
    targets: tuple = ()


BATCHES = [Batch(seeded_input(f"toy:{i}", (4, 2, 6, 6))) for i in range(STEPS)]
RECIPE = Recipe(
    optimiser="AdamW",
    options={"betas": (0.9, 0.999), "eps": 1e-8},
    learning_rate=5e-3,
    weight_decay=0.05,
    batch=4,
    epochs=1,
    average_decay=0.99,
    average_steps=10,
    clip=35.0,
)


def criterion(outputs, targets, image_size):
    error = outputs - 0.5
    return {"loss_square": backend.mean(error * error), "loss_size": backend.mean(backend.abs(outputs)) * 0.1}


def train(seed=None, batches=BATCHES, momentum=0.1, **changes):
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )
    state = seeded_state((name, backend.numpy(value).shape) for name, value in backend.named_state(model))
    backend.load_state(model, state if seed is None else perturbed(state, seed))
    names = tuple(name for name, _ in model.named_parameters())
    return steps.curves(Trainer(model, criterion, replace(RECIPE, **changes), STEPS, [ParameterGroup(names)]), batches)


@pytest.fixture(scope="module")
def bands():
    if backend.NAME != "torch":
        pytest.skip("the controls are PyTorch's")
    runs = [train(seed) for seed in range(LEAST)]
    return {name: band([run[name] for run in runs]) for name in runs[0]}


def rows(bands, curves):
    return [inside(name, held, curves[name]) for name, held in bands.items()]


def test_runs_that_differ_by_rounding_stay_in_the_band(bands):
    assert bands["loss"].horizon > 10 and set(bands) == {"loss_square", "loss_size", "gradient_norm", "loss"}
    shuffled = [Batch(batch.images[::-1].copy()) for batch in BATCHES]  # the same means, summed in another order
    for curves in (train(), train(11), train(batches=shuffled)):
        assert [row.note for row in rows(bands, curves) if row.passed is not True] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 5e-3 * 1.01},
        {"learning_rate": 5e-3 / 1.01},
        {"weight_decay": 0.055},
        {"clip": 0.1},
        {"options": {"betas": (0.9, 0.999), "eps": 1e-5}},
        {"options": {"betas": (0.9, 0.99), "eps": 1e-8}},
        {"batches": [*BATCHES[:5], BATCHES[6], BATCHES[5], *BATCHES[7:]]},
    ],
)
def test_a_wrong_run_leaves_it(bands, changes):
    curves = train(**changes)
    assert not all(row.passed for row in rows(bands, curves))
    assert sensitivity("loss", bands["loss"], curves["loss"]).passed
