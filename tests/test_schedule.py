"""Rates, momenta, accumulation, averages and input sizes against the published curves. Both environments."""

import json
import math

import numpy as np
import pytest

from lib import backend, models
from lib.errors import UserError
from lib.models.step import ParameterGroup
from lib.training.loop import optimiser
from lib.training.schedule import recipe, scaled

PUBLISHED = recipe("nanodet-plus-m_320")
GOLD = recipe("gold-yolo-s")
RT_DETR = recipe("rtdetr_r18vd")
IMAGES = 118287  # of COCO's training split


# ---------------------------------------------------------------------------------------------------- NanoDet-Plus
@pytest.fixture(scope="module")
def curves(golden):
    return json.loads((golden / "schedule" / "schedule_ema.json").read_text())


@pytest.mark.parametrize("steps", [1232, 172, 59])
def test_learning_rates_are_the_published_ones(curves, steps):
    case = next(
        case
        for name, case in curves["cases"].items()
        if name.split("_iters")[0].endswith(str(steps)) or f"_{steps}_" in name
    )
    rates = PUBLISHED.learning_rates(steps)
    assert rates.shape == (300 * steps, 1)
    rates = rates[:, 0]
    np.testing.assert_array_equal(rates[::steps], case["first_step_lr_per_epoch"])
    np.testing.assert_array_equal(rates[steps - 1 :: steps], case["last_step_lr_per_epoch"])
    for step, epoch, rate in case["some_steps[global_step,epoch,lr]"]:
        assert step // steps == epoch and rates[step] == rate


def test_first_rate_and_last_warm_up_step():
    rates = PUBLISHED.learning_rates(1232)[:, 0]
    assert rates[0] == pytest.approx(1e-7, rel=1e-12)
    assert rates[500] == 1e-3 and rates[499] < 1e-3


def test_weight_of_a_new_value_is_the_published_one(curves):
    for update, weight in curves["ema_weight_of_new_value"].items():
        assert PUBLISHED.average_weight(int(update)) == pytest.approx(weight, rel=1e-12)


def test_scaling_keeps_the_published_recipe_where_the_run_is_long():
    assert scaled(PUBLISHED, 118287, batch=96, epochs=300) == PUBLISHED
    short = scaled(PUBLISHED, 160, batch=8, epochs=10, rate=2.0)
    assert (short.warmup_steps, short.average_steps) == (10, 4)
    assert 1 / (1 - short.average_decay) == pytest.approx(10)  # steps: the window is the same 5 % of the run
    assert short.final_learning_rate == pytest.approx(1e-4) and short.weight_decay == PUBLISHED.weight_decay


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(UserError, match="smaller batch"):
        scaled(PUBLISHED, 7, batch=8, epochs=1)


# ------------------------------------------------------------------------------------------------------- Gold-YOLO
def groups_of(model: str) -> tuple[ParameterGroup, ...]:
    return models.parameter_groups(model, models.build(model, 2, seed=None))


@pytest.fixture(scope="module")
def gold():
    """A long run at batch 16: 7,392 steps an epoch, a warm-up of three epochs."""
    return scaled(GOLD, IMAGES, batch=16, epochs=300), IMAGES // 16


def test_gold_yolo_groups_are_norms_weights_and_biases():
    norms, weights, biases = groups_of("gold-yolo-n")
    assert [group.decays for group in (norms, weights, biases)] == [False, True, False]
    assert [group.warmup_from for group in (norms, weights, biases)] == [0.0, 0.0, 0.1]
    assert all(name.endswith(".bias") for name in biases.names) and not set(norms.names) & set(weights.names)


@pytest.mark.parametrize("step", [0, 1, 999, 7391, 7392, 22175, 22176, 22177, 7392 * 150 + 7, 7392 * 300 - 1])
def test_gold_yolo_rates_are_interpolated_in_the_warm_up_and_follow_the_cosine(gold, step):
    """yolov6/core/engine.py: np.interp(step, [0, warm-up], [start, rate * cosine of the epoch]) for each group."""
    run, steps = gold
    factor = (1 - math.cos(math.pi * (step // steps) / 300)) / 2 * (0.01 - 1) + 1
    warmup = max(round(3 * steps), 1000)
    expected = [np.interp(step, [0, warmup], [start, 0.01 * 16 / 32 * factor]) for start in (0.0, 0.0, 0.1)]
    groups = (ParameterGroup(), ParameterGroup(), ParameterGroup(warmup_from=0.1))
    assert run.learning_rates(steps, groups)[step] == pytest.approx(expected, rel=1e-12, abs=1e-18)
    assert run.momenta(steps)[step] == pytest.approx(np.interp(step, [0, warmup], [0.8, 0.937]), rel=1e-12)
    assert run.accumulations(steps)[step] == max(1, np.interp(step, [0, warmup], [1, 64 / 16]).round())


def test_gold_yolo_warms_up_for_a_thousand_steps_at_least():
    rates = GOLD.learning_rates(100)[:, 0]
    assert rates[500] == pytest.approx(0.5 * 0.01 * ((1 - math.cos(math.pi * 5 / 300)) / 2 * -0.99 + 1))
    assert GOLD.accumulations(100)[[0, 499, 501, 1000]].tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "model, batch, rate, decay",
    [
        ("gold-yolo-s", 256, 0.08, 0.002),
        ("gold-yolo-n", 128, 0.08, 0.001),
        ("gold-yolo-s", 32, 0.01, 5e-4),
        ("gold-yolo-s", 16, 0.005, 5e-4),
        ("gold-yolo-s", 48, 0.015, 3.75e-4),
    ],
)
def test_gold_yolo_rate_follows_the_batch_and_decay_the_images_per_update(model, batch, rate, decay):
    """lr0 * batch / 32, decay * batch * max(1, round(64 / batch)) / 64; 0.002 and 0.001 are the README's."""
    run = scaled(recipe(model), IMAGES, batch=batch, epochs=300)
    assert (run.learning_rate, run.weight_decay) == (pytest.approx(rate), pytest.approx(decay))


def test_gold_yolo_keeps_its_published_recipe_at_its_batch_and_neither_ramp_nor_sum_in_a_short_run():
    assert scaled(GOLD, IMAGES, batch=32, epochs=300) == GOLD
    short = scaled(GOLD, 160, batch=8, epochs=15)
    assert set(short.accumulations(20)) == {1} and (short.warmup_epochs, short.warmup_steps) == (0, 15)
    assert short.weight_decay == pytest.approx(5e-4 * 8 / 64)


# --------------------------------------------------------------------------------------------------------- RT-DETR
def test_rt_detr_rates_are_constant_and_a_tenth_in_the_backbone():
    groups = groups_of("rtdetr_r18vd")
    rates = RT_DETR.learning_rates(10, groups)
    assert RT_DETR.momenta(10) is None and set(RT_DETR.accumulations(10)) == {1}
    np.testing.assert_allclose(rates, np.tile([1e-5, 1e-5, 1e-4, 1e-4], (720, 1)), rtol=1e-12)
    assert [len(group.names) for group in groups] == [46, 23, 159, 98]  # published with 80 classes: as many tensors


def test_the_optimiser_gets_rates_and_decay_of_its_groups(monkeypatch):
    model = models.build("rtdetr_r18vd", 2, seed=None)
    taken = {}
    monkeypatch.setattr(backend, "AdamW", lambda groups, **options: taken.update(groups=groups, options=options))
    optimiser(model, models.parameter_groups("rtdetr_r18vd", model), RT_DETR)
    assert [group["lr"] for group in taken["groups"]] == pytest.approx([1e-5, 1e-5, 1e-4, 1e-4])
    assert [group["weight_decay"] for group in taken["groups"]] == [0.0, 1e-4, 0.0, 1e-4]
    assert all(name.startswith("backbone.") for group in taken["groups"][:2] for name, _ in group["parameters"])
    assert taken["options"]["betas"] == (0.9, 0.999) and RT_DETR.clip == 0.1


def test_rt_detr_sides_keep_their_proportion_to_the_input():
    published = (480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800)
    assert scaled(RT_DETR, IMAGES, batch=16, epochs=72).sides == published
    half = (256, 256, 288, 288, 320, 320, 320, 320, 352, 352, 384, 384, 416)
    assert scaled(RT_DETR, IMAGES, batch=16, epochs=72, size=(320, 320)).sides == half
    assert set(scaled(RT_DETR, 64, batch=8, epochs=1, size=(96, 96)).sides) == {64, 96, 128}
    assert set(scaled(RT_DETR, 64, batch=8, epochs=1, size=(32, 32)).sides) == {32}


def test_an_input_that_is_not_square_and_other_families_have_no_sides():
    assert scaled(RT_DETR, IMAGES, batch=16, epochs=72, size=(480, 640)).sides == ()
    assert PUBLISHED.sides == GOLD.sides == ()


# --------------------------------------------------------------------------------------------------------- average
@pytest.mark.parametrize("published", [GOLD, RT_DETR], ids=["gold_yolo", "rt_detr"])
@pytest.mark.parametrize("update", [1, 2, 500, 2000, 100_000])
def test_the_average_decays_as_published(published, update):
    """Both: a decay of 0.9999 * (1 - exp(-updates / 2000)), counted from 1."""
    assert published.average_weight(update) == pytest.approx(1 - 0.9999 * (1 - math.exp(-update / 2000)), rel=1e-12)
