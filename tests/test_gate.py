"""The one gate: what moved runs reach, that right runs lie within it, and that each planted fault does not.

Moved runs are PyTorch's; what is judged by them is plain arrays.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import backend
from lib.alignment import gate
from lib.alignment.evidence import is_reference
from lib.alignment.gate import SHARP, C, K, Reach
from lib.alignment.seeded import seeded_input, seeded_state
from lib.alignment.verdict import ROUNDING
from lib.backend import nn

moving = pytest.mark.skipif(not is_reference(backend.NAME), reason="PyTorch's side alone runs moved")
IMAGES = seeded_input("gate", (4, 3, 12, 12))


class Net(nn.Module):
    """A bias before a norm, whose gradient is zero but for rounding, and a kink."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act, self.head = nn.LeakyReLU(0.1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        return self.head(backend.mean(x, (2, 3)))


def run(precision, change=lambda model: None):
    """Output, loss and gradients of the seeded net."""
    model = Net()
    backend.load_state(
        model, seeded_state((name, backend.numpy(value).shape) for name, value in backend.named_state(model))
    )
    model = (backend.float64(model) if precision == "float64" else model).train()
    change(model)
    output = model(backend.tensor(IMAGES.astype(precision)))
    loss = backend.mean(output * output * output)
    parameters = dict(model.named_parameters())
    found = dict(zip(parameters, backend.grad(loss, list(parameters.values()))))
    arrays = {name: backend.numpy(value) for name, value in {"output": output, "loss": loss, **found}.items()}
    return {name: np.reshape(array, array.shape or 1) for name, array in arrays.items()}


def inside(whole):
    """A part of a moved run all of which is moved."""

    def part(moving):
        with moving:
            return whole()

    return part


@pytest.fixture(scope="module")
def measured():
    exact = run("float64")
    return exact, gate.restored(gate.measured(exact, gate.runs(inside(lambda: run("float32")))))


def failing(measured, candidate, precision):
    exact, reach = measured
    factor = C if precision == "float32" else C * SHARP
    return {row.name for row in gate.judge(exact, candidate, reach, precision, reaching=factor) if not row.passed}


# ------------------------------------------------------------------------------------------------------- moved runs
@moving
def test_a_right_run_passes_and_a_true_zero_needs_no_rule(measured):
    exact, reach = measured
    assert np.abs(exact["conv.bias"]).max() < 1e-15 < reach["conv.bias"].max_abs
    assert not failing(measured, run("float32"), "float32") and not failing(measured, run("float64"), "float64")
    zeros = run("float32") | {"conv.bias": np.zeros(8, np.float32)}
    assert not failing(measured, zeros, "float32"), "zero is as right as any noise"
    assert failing(measured, run("float32") | {"head.bias": np.zeros(5, np.float32)}, "float32") == {"head.bias"}


@moving
def test_moved_runs_are_the_same_each_time_and_opposite_in_pairs(measured):
    from lib.backend.torch_moved import moved

    exact, _ = measured

    def of(roundings, seed):
        with moved(roundings, seed):
            return run("float32")["output"] - exact["output"]

    there, back, again, other = of(K, 3), of(-K, 3), of(K, 3), of(K, 4)
    assert np.array_equal(there, again) and not np.array_equal(there, other)
    assert np.linalg.norm(there + back) < 0.5 * np.linalg.norm(there), "but for its own roundings"
    assert np.array_equal(run("float32")["output"], run("float32")["output"]), "nothing stays moved"
    model = Net().eval()
    before = {name: backend.numpy(value).copy() for name, value in backend.named_state(model)}
    with moved(K, 3):
        model(backend.tensor(IMAGES))
    assert all(np.array_equal(backend.numpy(value), before[name]) for name, value in backend.named_state(model))


@moving
def test_what_parts_of_a_run_have_in_common_is_computed_once_and_stays_the_same():
    def wide(model):
        scale(model.head.weight, 1.5)

    def first(*parts):
        return next(
            gate.runs(*(inside(lambda at=at, of=of: {(at, k): v for k, v in of().items()}) for at, of in parts))
        )

    plain, other = lambda: run("float32"), lambda: run("float32", wide)
    together = first((0, plain), (1, plain), (2, other))
    alone = first((0, plain)) | first((1, plain)) | first((2, other))
    assert together.keys() == alone.keys() and all(np.array_equal(together[name], alone[name]) for name in alone)
    assert not np.array_equal(together[0, "output"], together[2, "output"])


@moving
def test_an_operation_is_moved_by_k_roundings_one_by_one_and_together():
    from lib.backend.torch_moved import moved

    ones, apart = np.ones((200, 500), np.float32), []
    for seed in range(40):
        with moved(K, seed):
            apart.append((backend.numpy(backend.tensor(ones) * 1.0) - 1) / ROUNDING)
    assert np.std(apart[0]) == pytest.approx(K, rel=0.05)
    assert 0.6 * K < np.std([one.mean() for one in apart]) < 1.5 * K
    with moved(K, 0):
        held = backend.tensor(ones)
        assert np.array_equal(backend.numpy(backend.cat([held, held]).reshape(500, 400)), np.ones((500, 400)))


@moving
def test_what_an_activation_that_flips_within_rounding_does_is_within_reach():
    """Of two inputs one lies on the kink: a right run takes either slope there, and the gradient jumps."""

    def kinked(precision="float32"):
        start = nn.Parameter(backend.tensor(np.array([1.0, 2.0], precision)))
        return {"gradient": backend.numpy(backend.grad(backend.sum(nn.LeakyReLU(0.1)(start * 3.0 - 3.0)), [start])[0])}

    exact = kinked("float64")
    assert exact["gradient"] == pytest.approx([0.3, 3.0])
    reach = gate.restored(gate.measured(exact, gate.runs(inside(kinked))))
    assert reach["gradient"].max_abs == pytest.approx(2.7, rel=1e-5)


NORMS = {  # their channels or rows, and how these become a mean each, in which all else that rounds averages out
    "batch norm": (lambda: nn.BatchNorm2d(8), (0, 2, 3)),
    "group norm": (lambda: nn.GroupNorm(8, 8), (2, 3)),
    "layer norm": (lambda: nn.LayerNorm((24, 24)), (2, 3)),
}


@moving
@pytest.mark.parametrize("name", NORMS)
def test_the_numbers_that_a_norm_computes_first_are_moved(name, monkeypatch):
    """A right run whose sums over a channel end three roundings off lies beyond the gate where moved runs do not move
    them."""
    from lib.backend import torch_moved

    build, axes = NORMS[name]
    x = (seeded_input("x", (2, 8, 24, 24)) + np.linspace(-3, 3, 8)[:, None, None]).astype(np.float32)
    dy = (3 + seeded_input("dy", x.shape)).astype(np.float32)

    def means(y, dx):
        return {"y": y.astype(np.float64).mean(axes), "dx": dx.astype(np.float64).mean(axes)}

    def run(precision):
        model = (backend.float64(build()) if precision == "float64" else build()).train()
        start = nn.Parameter(backend.tensor(x.astype(precision)))
        y = model(start * 1.0)
        [dx] = backend.grad(backend.sum(y * backend.tensor(dy.astype(precision))), [start])
        return means(backend.numpy(y), backend.numpy(dx))

    def off(number, kind):
        return number * (1 + 3 * ROUNDING * np.sign(seeded_input(kind, number.shape)))

    values = x.astype(np.float64)
    mean, scale = off(values.mean(axes, keepdims=True), "mean"), (values.var(axes, keepdims=True) + 1e-5) ** -0.5
    y = (values - mean) * off(scale, "scale")
    shift, slope = dy.mean(axes, keepdims=True, dtype=np.float64), (dy * y).mean(axes, keepdims=True)
    right = {
        name: one.astype(np.float32) for name, one in means(y, (dy - off(shift, "shift") - y * slope) * scale).items()
    }
    exact = run("float64")

    def ratios():
        reach = gate.restored(gate.measured(exact, gate.runs(inside(lambda: run("float32")))))
        return {row.name: row.ratio for row in gate.judge(exact, right, reach, "float32")}

    assert max(ratios().values()) < 1
    monkeypatch.setattr(torch_moved, "NORMS", {})
    assert max(ratios().values()) > 1


PLANTED = {
    "a weight 1e-5 off": (lambda model: scale(model.head.weight, 1 + 1e-5), "float64"),
    "a weight 1e-3 off": (lambda model: scale(model.norm.weight, 1 + 1e-3), "float32"),
    "another epsilon": (lambda model: setattr(model.norm, "eps", 1.1e-5), "float64"),
    "another slope": (lambda model: setattr(model, "act", nn.LeakyReLU(0.1001)), "float32"),
}


def scale(parameter, factor):
    parameter.data.mul_(factor)


@moving
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_out_of_reach(measured, name):
    change, precision = PLANTED[name]
    assert "output" in failing(measured, run(precision, change), precision)


@moving
def test_a_batch_norm_s_means_are_those_that_its_gradients_hold():
    """Of a norm without weights they are computed; moved by half, they say the same."""
    import torch

    from lib.backend import torch_moved

    x, dy = (torch.tensor(seeded_input(name, (2, 6, 9, 11))) for name in ("x", "dy"))
    weight, centre, scale = (torch.tensor(seeded_input(name, (6,))) for name in ("weight", "centre", "scale"))
    held, found = (centre, scale, True, 1e-5), []
    for known in (True, False):
        of_weight = (dy * (x - centre.view(1, -1, 1, 1))).sum((0, 2, 3)) * scale
        sums = (of_weight, dy.sum((0, 2, 3))) if known else (None, None)
        found.append(torch.zeros_like(x))
        arguments = (dy, x, weight, None, None, *held)
        torch_moved._within(lambda one: 1.5 * one, "batch", True, (found[-1], *sums), arguments)
    assert torch.allclose(*found, rtol=1e-4, atol=1e-5) and found[0].abs().max() > 0.01


# ----------------------------------------------------------------------------------------------------------- the rule
def row_of(exact, candidate, reach, precision="float32", **how):
    [row] = gate.judge({"x": exact}, {"x": candidate}, {"x": reach}, precision, **how)
    return row


@given(st.floats(1e-9, 1e3), st.floats(0.0, 2 * C, allow_subnormal=False))  # Jittor flushes subnormals
@settings(max_examples=50, deadline=None)
def test_the_gate_is_c_reaches_and_what_storing_rounds(reach, factor):
    exact = np.zeros(3)
    apart = np.array([factor * reach, 0.0, 0.0], np.float32)
    row = row_of(exact, apart, Reach(reach, reach, 0.0))
    assert row.passed == (float(apart[0]) <= C * reach) and row.reach == reach and row.gate == C * reach
    stored = row_of(np.ones(3), np.full(3, 1 + ROUNDING), Reach(0.0, 0.0, 0.0), "float64")
    assert not stored.passed, "float64 stores better than that"


def test_a_relative_error_shows_along_the_exact_tensor_where_noise_hides_it():
    exact, noise = seeded_input("exact", (100, 100)).astype(np.float64), seeded_input("noise", (100, 100))
    moved = [1e-3 * exact * seeded_input(f"moved {draw}", exact.shape) for draw in range(gate.R)]
    reach = Reach(*(max(kind) for kind in zip(*(distances(exact, one) for one in moved))))
    right = row_of(exact, (exact + 5e-4 * exact * noise).astype(np.float32), reach)
    wrong = row_of(exact, (exact * (1 + 1e-4) + 5e-4 * exact * noise).astype(np.float32), reach)
    assert right.passed and not wrong.passed and "signed error" in wrong.note
    assert wrong.error == pytest.approx(1e-4 * np.linalg.norm(exact), rel=0.1)


def distances(exact, apart):
    return np.abs(apart).max(), np.linalg.norm(apart), abs(np.vdot(apart, exact)) / np.linalg.norm(exact)


def test_without_moved_runs_nothing_passes():
    [row] = gate.judge({"x": IMAGES}, {"x": IMAGES}, {}, "float32")
    assert not row.passed and "no reach" in row.note


def test_what_nothing_moves_may_be_rounded_once():
    exact, still = np.array([0.1, 0.7]), Reach(0.0, 0.0, 0.0)
    assert row_of(exact, exact.astype(np.float32), still).passed
    assert not row_of(exact, (exact * (1 + 3e-7)).astype(np.float32), still).passed
