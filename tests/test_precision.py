"""The arithmetic of mixed precision, on the CPU in float32, whose overflow stands for float16's. Both environments."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from test_training import SHORT, SUMMING, Batches, Scaled, all_of, criterion, run, steps_of, toy_state

from lib import backend
from lib.alignment.seeded import seeded_input
from lib.errors import UserError
from lib.models.step import ParameterGroup
from lib.training import loop as training
from lib.training.log import read_log
from lib.training.loop import NORM, Trainer, train
from lib.training.precision import STEADY, LossScale, check_available, mixed_forward

HUGE = 2.0**126  # times a gradient of 4 or more this is beyond float32


@pytest.fixture
def mixed(monkeypatch):
    """As if this machine had a GPU: the context changes nothing."""
    monkeypatch.setattr(backend, "mixed_precision", nullcontext)
    monkeypatch.setattr(training, "check_available", lambda precision: None)


def trainer(precision, recipe=SHORT, scale=None):
    model = Scaled()
    made = Trainer(model, criterion, recipe, 3, all_of(model), None, precision)
    if scale:
        made.scale.value = scale
    return made


def issue(one, number=0, times=1.0):
    asked = one.issue(seeded_input(f"toy:{number}", (2, 2, 4, 4)) * np.float32(times), [])
    return dict(zip(asked, backend.floats(list(asked.values())), strict=True))


def equal(a, b):
    for name, value in toy_state(a.model).items():
        np.testing.assert_array_equal(value, toy_state(b.model)[name], err_msg=name)


def test_on_the_cpu_one_line_says_that_there_is_none(tmp_path):
    with pytest.raises(UserError, match="not available on the CPU.*--device cuda"):
        check_available("mixed")
    with pytest.raises(UserError, match="'half' is unknown"):
        check_available("half")
    check_available("float32")
    with pytest.raises(UserError, match="not available on the CPU"):
        train(Scaled(), criterion, Batches(), SHORT, tmp_path, groups=[ParameterGroup(())], precision="mixed")


def test_the_scale_halves_on_overflow_and_doubles_after_many_good_updates():
    scale = LossScale(8.0)
    scale.update(False)
    assert (scale.value, scale.steady) == (4.0, 0)
    for _ in range(STEADY - 1):
        scale.update(True)
    assert (scale.value, scale.steady) == (4.0, STEADY - 1)
    scale.update(True)
    assert (scale.value, scale.steady) == (8.0, 0)
    other = LossScale()
    other.load_state(LossScale(2.0, 7).state())
    assert other == LossScale(2.0, 7)


def test_gradients_are_unscaled_before_they_are_clipped(mixed):
    """Powers of two round nothing: the step and the norm are exactly those without a scale."""
    recipe = replace(SHORT, clip=0.01)
    plain, scaled = trainer("float32", recipe), trainer("mixed", recipe)
    for number in range(3):
        assert issue(plain, number) == issue(scaled, number)
    assert issue(plain)[NORM] > recipe.clip  # it does clip
    issue(scaled)
    equal(plain, scaled)


def test_an_update_that_overflows_is_left_out(mixed):
    one, untouched = trainer("mixed", scale=HUGE), trainer("float32")
    values = issue(one, times=30.0)
    assert not np.isfinite(values[NORM]) and np.isfinite([v for n, v in values.items() if n != NORM]).all()
    assert (one.updates, one.step, one.scale.value) == (0, 1, HUGE / 2)
    for name, value in dict(one.model.named_parameters()).items():
        np.testing.assert_array_equal(
            backend.numpy(value), backend.numpy(dict(untouched.model.named_parameters())[name]), err_msg=name
        )
    one.scale.value = 1.0
    issue(one)
    assert one.updates == 1


def test_gradients_summed_with_one_that_overflowed_are_dropped(mixed):
    one = trainer("mixed", SUMMING)  # the second update sums four batches
    for number in range(3):
        if number == 2:
            one.scale.value = HUGE
        issue(one, number, times=30.0 if number == 2 else 1.0)
        one.scale.value = 1.0
    assert one.updates == 1 and one._sum  # not due yet
    for number in (3, 4):
        issue(one, number)
    assert one.updates == 1 and not one._sum and one.scale.value == 0.5


class Halves(backend.nn.Module):
    """Gives outputs of half precision, nested as the models' are."""

    def forward(self, images):
        half = images.half() if hasattr(images, "half") else images.float16()
        return {"boxes": [half, images], "meta": (3, "dn"), "labels": backend.argmax(images, 1)}


def test_outputs_leave_mixed_precision_as_float32(mixed):
    images = backend.tensor(np.array([[0.1, 1.5]], np.float32))
    found = mixed_forward(Halves(), images)
    assert [backend.numpy(box).dtype for box in found["boxes"]] == [np.float32] * 2
    np.testing.assert_array_equal(
        backend.numpy(found["boxes"][0]), np.array([[0.1, 1.5]], np.float16).astype(np.float32)
    )
    assert found["meta"] == (3, "dn") and backend.numpy(found["labels"]).dtype.kind == "i"


def test_a_run_logs_its_scale_and_resumes_with_it(tmp_path, mixed, monkeypatch):
    monkeypatch.setattr(training, "LossScale", lambda: LossScale(HUGE * 2))
    straight = run(tmp_path / "straight", precision="mixed")
    scales = [line["scale"] for line in steps_of(straight.log)]
    skipped = [line[NORM] is None for line in steps_of(straight.log)]
    assert skipped[0] and scales[0] == HUGE and skipped == [a < b for a, b in zip(scales, [HUGE * 2, *scales])]
    with pytest.raises(UserError, match="loss_square is nan"):
        run(tmp_path / "killed", (4, "nan"), precision="mixed")
    resumed = run(tmp_path / "killed", precision="mixed")
    assert resumed.resumed_at == 4 and resumed.checkpoint.read_bytes() == straight.checkpoint.read_bytes()
    assert "cost" in read_log(resumed.log)[-1]


def test_gradients_that_no_scale_mends_end_the_run(tmp_path, mixed, monkeypatch):
    monkeypatch.setattr(training, "LossScale", lambda: LossScale(1.0))
    monkeypatch.setattr(backend, "grad", lambda scalar, tensors, **_: [t * np.float32("inf") for t in tensors])
    with pytest.raises(UserError, match="gradient_norm is (inf|nan) at step 0"):
        run(tmp_path, precision="mixed")
