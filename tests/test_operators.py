"""Faults that show at no size that other stages run, and NaN that is covered up, are caught; both environments.

Both sides run on the same framework here: what is tested is whether what was planted is found.
"""

import json
from dataclasses import replace

import pytest
import synthetic_records as synthetic

from lib import backend
from lib.alignment import questions, references
from lib.alignment.evidence import Evidence
from lib.alignment.seeded import seeded_input, seeded_state
from lib.alignment.verdict import Verdict
from lib.backend import nn
from notebooks.stages import operators, poison
from notebooks.stages.operators import BATCH, Operator

MODEL = "nanodet-plus-m_320"
CASE = replace(references.case(MODEL, "loss"), targets=())
ONE = '{"tuple": [{"tensor": "0"}]}'
LAST = '{"tuple": [{"tuple": [{"tensor": "0/0"}, {"plain": -1}]}, {"dict": {}}]}'
DOUBLE = json.dumps(
    {
        "tuple": [
            {"tuple": [{"tensor": "0/0"}]},
            {"dict": {"scale_factor": {"plain": 2}, "mode": {"plain": "bilinear"}, "align_corners": {"plain": False}}},
        ]
    }
)
IMAGES = (BATCH, 6, "4 or 5", "6 or 7")
VALUES = seeded_input("operators", (2, 6, 8, 8))
USED = [
    Operator("norm", "BatchNorm2d", ONE, {"0": IMAGES}, {"0": VALUES}, 0, ""),
    Operator("conv", "Conv2d", ONE, {"0": IMAGES}, {"0": VALUES}, 0, ""),
    Operator("pool", "MaxPool2d", ONE, {"0": IMAGES}, {"0": VALUES}, 0, ""),
    Operator("lib.backend:interpolate", "interpolate", DOUBLE, {"0/0": IMAGES}, {"0/0": VALUES}, 0, ""),
    Operator("lib.backend:softmax", "softmax", LAST, {"0/0": (BATCH, "8 or 9", "30 or 40")}, {"0/0": VALUES}, 0, ""),
]


class HalfNorm(nn.BatchNorm2d):
    """In training its statistics leave out the images beyond the eighth."""

    def forward(self, x):
        right, seen = super().forward(x), x[:8]
        if not self.training or len(x) <= 8:
            return right
        mean = backend.mean(seen, (0, 2, 3), True)
        centred = seen - mean
        variance = backend.mean(centred * centred, (0, 2, 3), True)
        own = [value.reshape(1, -1, 1, 1) for value in (self.weight, self.bias)]
        return (x - mean) / backend.sqrt(variance + self.eps) * own[0] + own[1]


class WideConv(nn.Conv2d):
    """What is left of a row beyond whole vectors of eight is not computed."""

    def forward(self, x):
        y = super().forward(x)
        whole = y.shape[3] // 8 * 8
        return y if whole in (0, y.shape[3]) else backend.cat([y[..., :whole], y[..., whole:] * 0.0], 3)


def cut_softmax(x, dim):
    """The sum leaves the tail out."""
    large = backend.exp(x - backend.amax(x, dim, True))
    return large / backend.sum(large[..., : max(large.shape[-1] // 8 * 8, 1)], dim, True)


def off(x):
    """x, whose gradient is a thousandth too large in float32."""
    return x * 1.001 - x.detach() * 0.001 if "float32" in str(x.dtype) else x


class OffPool(nn.MaxPool2d):
    """As `off`."""

    def forward(self, x):
        return super().forward(off(x))


def off_interpolate(x, *arguments, interpolate=backend.interpolate, **options):
    return interpolate(off(x), *arguments, **options)


def zeros_for_nan(scalar, tensors, retain_graph=True, grad=backend.grad):
    return [backend.where(g == g, g, backend.zeros_like(g)) for g in grad(scalar, tensors, retain_graph)]


def side(monkeypatch, norm=nn.BatchNorm2d, conv=nn.Conv2d, pool=nn.MaxPool2d):
    """The layers with seeded weights, in place of a model's."""

    def parts(model, case, seed, precision):
        held = {"norm": norm(6), "conv": conv(6, 5, 3, padding=1), "pool": pool(3, 2, 1)}
        for path, layer in held.items():
            shapes = [(f"{path}.{name}", backend.numpy(value).shape) for name, value in backend.named_state(layer)]
            values = seeded_state(shapes)
            backend.load_state(layer, {name.partition(".")[2]: array for name, array in values.items()})
        return {path: backend.float64(layer) if precision == "float64" else layer for path, layer in held.items()}

    monkeypatch.setattr(operators, "parts", parts)
    monkeypatch.setattr(operators, "of_criteria", lambda *_: [])


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """Folder, and what the reference says."""
    folder = tmp_path_factory.mktemp("operators")
    with pytest.MonkeyPatch.context() as patch:
        side(patch)
        patch.setattr(poison, "STEPS", ())
        fields = operators.reference(MODEL, CASE, USED, folder, 0)
        return folder, fields | poison.reference(MODEL, CASE, USED, folder / "poison", 0)


def answer(question, captured, records):
    """What the comparison says of this side, now that a fault is planted."""
    folder, theirs = captured
    fields = operators.candidate(MODEL, CASE, folder, 0) if question == "operators" else {}
    fields |= poison.candidate(MODEL, CASE, folder / "poison", 0) if question == "poison" else {}
    for name, held in (("torch", theirs), ("jittor", fields)):
        synthetic.write(records, name, "operators", held, {})
    return questions.ask(question, Evidence(records, synthetic.MODEL), "torch", "jittor")


@pytest.mark.parametrize("question", ["operators", "poison"])
def test_right_operators_pass(captured, tmp_path, monkeypatch, question):
    side(monkeypatch)
    found = answer(question, captured, tmp_path)
    assert found.verdict is Verdict.PASS, found.values
    names = " ".join(row.name for row in found.rows)
    assert question == "poison" or all(f" {images} × " in names for images in operators.BATCHES)


@pytest.mark.parametrize(
    "changes, name",
    [({"norm": HalfNorm}, "norm"), ({"conv": WideConv}, "conv"), ({}, "softmax")],
    ids=["norm beyond the eighth image", "conv beyond whole vectors", "softmax without its tail"],
)
def test_what_shows_only_at_other_sizes_is_found(captured, tmp_path, monkeypatch, changes, name):
    side(monkeypatch, **changes)
    if not changes:
        monkeypatch.setattr(backend, "softmax", cut_softmax)
    found = answer("operators", captured, tmp_path)
    assert found.verdict is Verdict.FAIL
    failing = [row.name for row in found.rows if row.passed is False]
    assert {one.split()[0] for one in failing} == {name}
    assert name != "norm" or {one.split()[1] for one in failing} == {"9", "17"}, "eight images are right"


@pytest.mark.parametrize("layers, functions", [({"pool": OffPool}, {}), ({}, {"interpolate": off_interpolate})])
def test_a_thousandth_of_a_float32_gradient_is_found(captured, tmp_path, monkeypatch, layers, functions):
    """In a whole network activations that flip within rounding hide it; alone it is thousands of gates."""
    side(monkeypatch, **layers)
    for name, function in functions.items():
        monkeypatch.setattr(backend, name, function)
    failing = [row for row in answer("operators", captured, tmp_path).rows if row.passed is False]
    assert len(failing) == len(operators.BATCHES) and min(row.ratio for row in failing) > 100
    assert {(row.name.split()[0], row.what) for row in failing} == {
        (*{**layers, **functions}, "own error, backward, float32")
    }


def test_what_is_too_large_to_keep_is_named(tmp_path, monkeypatch):
    side(monkeypatch)
    monkeypatch.setattr(operators, "LARGE", 1)
    theirs = operators.reference(MODEL, CASE, USED, tmp_path / "kept", 0)
    found = answer("operators", (tmp_path / "kept", theirs), tmp_path)
    assert theirs["too_large"] and len(found.notes) == len(theirs["too_large"])
    assert found.notes[0].startswith(theirs["too_large"][0]) and "too large to keep" in found.notes[0]


def test_gradients_without_nan_are_found(captured, tmp_path, monkeypatch):
    side(monkeypatch)
    monkeypatch.setattr(backend, "grad", zeros_for_nan)
    found = answer("poison", captured, tmp_path)
    assert found.verdict is Verdict.FAIL
    failing = {row.name: row.note for row in found.rows if row.passed is False}
    assert any("NaN in the gradient" in name and "NaN, here zero" in note for name, note in failing.items())
