"""The inference form is the same function: layer by layer against float64 rules, model by model by the gate, and every
planted fault is seen. Both environments."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from lib import backend, convert, models
from lib.alignment import capture, form, references
from lib.alignment.verdict import Row
from lib.backend import nn
from lib.commands import arguments
from lib.errors import UserError
from lib.models import inference
from lib.training import checkpoints

NAMES = ("nanodet-plus-m_320", "gold-yolo-n", "rtdetr_r18vd")
LAYERS = [  # channels in and out, kernel, stride, groups, bias, eps
    (3, 8, 3, 2, 1, False, 1e-5),
    (8, 8, 5, 1, 8, False, 1e-3),
    (8, 12, 3, 1, 4, True, 1e-3),
    (6, 4, 1, 1, 1, True, 0.5),
]


def drawn(layer, seed=0):
    """(convolution, norm) in float64 with random weights and statistics, the norm in eval()."""
    c_in, c_out, kernel, stride, groups, bias, eps = layer
    pair = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bias), nn.BatchNorm2d(c_out, eps=eps)
    draw = np.random.default_rng(seed)
    for module in pair:
        backend.float64(module).eval()
        values = {name: draw.standard_normal(backend.numpy(v).shape) for name, v in backend.named_state(module)}
        values = {name: v for name, v in values.items() if name != "num_batches_tracked"}
        backend.load_state(module, values | {k: v**2 / 2 for k, v in values.items() if k == "running_var"})
    return pair


def error(layers, other, c_in):
    """The largest deviation of two functions on one image, in parts of the first one's largest value."""
    x = backend.tensor(np.random.default_rng(9).standard_normal((2, c_in, 9, 7)))
    with backend.no_grad():
        first, second = backend.numpy(layers(x)), backend.numpy(other(x))
    return np.abs(first - second).max() / np.abs(first).max()


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_folded_norm_is_the_same_function(layer):
    convolution, norm = drawn(layer)
    assert error(lambda x: norm(convolution(x)), inference.merged((convolution, norm)), layer[0]) < 1e-13
    eps, norm.eps = norm.eps, 0.0  # a fault that people make
    faulty = inference.merged((convolution, norm))
    norm.eps = eps
    assert error(lambda x: norm(convolution(x)), faulty, layer[0]) > 1e-7


def test_branches_are_one_convolution():
    """Three branches as RepVGG has them, in groups too, of which the last is the input itself."""
    dense, pointwise = drawn((8, 8, 3, 1, 2, False, 1e-3)), drawn((8, 8, 1, 1, 2, True, 1e-3), 1)
    identity = drawn((8, 8, 1, 1, 1, False, 1e-3), 2)[1]
    whole = inference.merged(dense, pointwise, (None, identity))

    def branches(x):
        return dense[1](dense[0](x)) + pointwise[1](pointwise[0](x)) + identity(x)

    assert error(branches, whole, 8) < 1e-13


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "c_in, c_out, kernel, groups", [(16, 20, 3, 1), (18, 18, 5, 18), (18, 18, 3, 18), (6, 7, 1, 1)]
)
@pytest.mark.parametrize("precision, allowed", [("float32", 2e-6), ("float64", 1e-13)])
def test_a_tuned_convolution_is_the_same_function(c_in, c_out, kernel, groups, stride, precision, allowed, monkeypatch):
    """Maps wider than a vector, of odd sizes, in more than one band."""
    if backend.NAME == "jittor":
        monkeypatch.setattr("lib.backend.kernels.products.BAND", 1)
    layer = inference.merged(drawn((c_in, c_out, kernel, stride, groups, False, 1e-3)))
    x = np.random.default_rng(1).standard_normal((2, c_in, 19, 37))
    with backend.no_grad():
        exact = backend.numpy(layer(backend.tensor(x)))
        given = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups)
        if precision == "float64":
            backend.float64(given)
        backend.load_state(given, {name: backend.numpy(value) for name, value in backend.named_state(layer)})
        found = backend.numpy(backend.tuned(given)(backend.tensor(x.astype(precision))))
    assert found.dtype == precision and np.abs(found - exact).max() < allowed * np.abs(exact).max()


def seeded(name):
    return capture.seeded_model(name, references.case(name, "forward")).eval()


@pytest.mark.parametrize("name", NAMES)
def test_every_detector_passes_its_gate_and_stays_as_it_was(name, monkeypatch):
    model = seeded(name)
    before = [backend.numpy(value).tobytes() for _, value in backend.named_state(model)]
    rows = form.judged(name, model)
    assert len(rows) > 50 and [row for row in rows if not row.passed] == []
    assert before == [backend.numpy(value).tobytes() for _, value in backend.named_state(model)]
    assert not model.training and any(map(inference._is_norm, model.modules()))
    found = inference.inference_form(model)
    assert not found.training and not any(map(inference._is_norm, found.modules()))

    def without_eps(given):
        faulty = copy.deepcopy(given)
        for module in filter(inference._is_norm, faulty.modules()):
            module.eps = 0.0
        return inference.inference_form(faulty)

    monkeypatch.setattr(form, "inference_form", without_eps)
    failing = {row.what for row in form.judged(name, model) if not row.passed}
    assert failing == {"every element", "every element, float64"}


def test_a_model_in_training_is_refused():
    with pytest.raises(UserError, match=r"the model is in train\(\); call model.eval\(\) first"):
        inference.inference_form(models.build(NAMES[0], 1, None).train())


def test_a_norm_that_nobody_folds_is_named():
    model = models.build(NAMES[0], 1, None).eval()
    model.head.other = nn.BatchNorm2d(4)
    with pytest.raises(inference.Unfolded, match="head.other: a batch norm that no convolution takes"):
        inference.inference_form(model)


@pytest.mark.parametrize("passed", [True, False])
def test_commands_run_the_form_that_the_gate_accepts(passed, tmp_path, monkeypatch, capsys):
    model, file = models.build(NAMES[0], 1), tmp_path / "weights.npz"
    checkpoints.write(file, convert.state(model))
    row = Row("stem", "every element", 2.0 - passed, 0.2, 1.0, 1.0, passed)
    monkeypatch.setattr(form, "judged", lambda name, given: [row])
    chosen = SimpleNamespace(model=NAMES[0], weights=file, absent=())
    run = arguments.load(model, chosen, checkpoints.read(file), ("cat",), file)
    assert (run is not model) is passed and not run.training
    assert (
        "run as trained; with norms folded into convolutions, stem is off by 2" in capsys.readouterr().out
    ) != passed
    for error, said in (
        (inference.Unfolded("head.other: a batch norm"), "head.other: a batch norm"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "memory ran out"),
        (ValueError("a fault of ours"), None),
    ):
        monkeypatch.setattr(form, "judged", Mock(side_effect=error))
        with nullcontext() if said else pytest.raises(ValueError, match="a fault of ours"):
            assert arguments.load(model, chosen, checkpoints.read(file), ("cat",), file) is model
            assert f"run as trained; {said}" in capsys.readouterr().out
