"""A fault planted in one layer of ten is named by its path, forward and backward; both environments.

Both sides run on the same framework here: what is tested is whether the engine finds what was planted.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lib import backend, record
from lib.alignment import divergence, layers, reproduction, store, tree, verdict
from lib.alignment.seeded import seeded_input, seeded_state
from lib.backend import nn
from lib.errors import UserError

IMAGES = [seeded_input("toy", (2, 3, 8, 8))]


class Block(nn.Module):
    """Convolution, normalisation, activation, and its input added where the shapes allow."""

    def __init__(self, before, after):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.SiLU()
        self.same = before == after

    def forward(self, x):
        y = self.act(self.norm(self.conv(x)))
        return x + y if self.same else y


class Net(nn.Module):
    """Three blocks of three layers and a tenth, a convolution that is used twice."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(Block(3, 6), Block(6, 6), Block(6, 6))
        self.head = nn.Conv2d(6, 4, 1)

    def join(self, fine, coarse):
        return backend.cat([fine, coarse], 1)

    def forward(self, x):
        x = self.body(x)
        return self.join(self.head(x), self.head(x * 0.5))


def build(change=None):
    """A builder of seeded nets in evaluation mode, with change(net) applied to each."""

    def make(precision):
        net = Net()
        shapes = [(name, backend.numpy(value).shape) for name, value in backend.named_state(net)]
        backend.load_state(net, seeded_state(shapes))
        if change:
            change(net)
        return (backend.float64(net) if precision == "float64" else net).eval()

    return make


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers")
    layers.reference(build(), IMAGES, folder)
    return folder


def found(captured, change=None, **options):
    return divergence.localise(layers.candidate(build(change), IMAGES, captured, **options))


def answer(result):
    return verdict.conclude("divergence", "torch-jittor", result.rows(), [])


def set_state(net, name, value):
    backend.load_state(net, {name: np.asarray(value, np.float32)})


def scaled(name, factor):
    def change(net):
        values = {key: backend.numpy(value) for key, value in backend.named_state(net)}
        set_state(net, name, values[name] * np.float32(factor))

    return change


# ---------------------------------------------------------------------------------------------------------- capture
def test_a_right_model_diverges_nowhere(captured):
    result = found(captured)
    assert result.first("forward") is result.first("backward") is None
    assert answer(result).verdict is verdict.Verdict.PASS
    kinds = Counter(layer.kind for layer in result.layers)
    assert kinds["Conv2d"] == 5 and kinds["Block"] == 3 and kinds["Net"] == 1, "each call once, the head twice"
    assert result.layers[-1].path == "" and result.layers[-1].name == divergence.ROOT
    judged = {(way, precision) for layer in result.layers for (way, precision), row in layer.own.items() if row.passed}
    assert judged == {(way, precision) for way in layers.DIRECTIONS for precision in ("float32", "float64")}


def change_eps(net):
    net.body[1].norm.eps = 1e-3


def change_activation(net):
    net.body[2].act = nn.ReLU()


def change_order(net):
    net.join = lambda fine, coarse: backend.cat([coarse, fine], 1)


def change_shortcut(net):
    net.body[1].same = False


def make_nan(net):
    set_state(net, "body.0.norm.weight", np.full(6, np.nan))


def reverse_kernel(net):
    values = dict(backend.named_state(net))
    set_state(net, "body.2.conv.weight", backend.numpy(values["body.2.conv.weight"])[..., ::-1].copy())


@pytest.mark.parametrize(
    "change, path",
    [
        (change_eps, "body.1.norm"),
        (change_activation, "body.2.act"),
        (reverse_kernel, "body.2.conv"),
        (scaled("head.weight", 1 + 1e-4), "head"),
        (scaled("body.0.conv.bias", 0.0), "body.0.conv"),
        (scaled("body.1.norm.running_var", 1.01), "body.1.norm"),
        (change_shortcut, "body.1"),
        (change_order, ""),
    ],
)
def test_the_faulty_layer_is_named(captured, change, path):
    result = found(captured, change)
    assert {layer.path for layer in result.blamed("forward")} == {path}
    assert answer(result).verdict is verdict.Verdict.FAIL


@pytest.mark.parametrize(
    "change, path",
    [
        (change_eps, "body.1.norm"),
        (change_activation, "body.2.act"),
        (reverse_kernel, "body.2.conv"),
        (change_shortcut, "body.1"),
    ],
)
def test_and_so_it_is_backward(captured, change, path):
    assert {layer.path for layer in found(captured, change).blamed("backward")} == {path}


def test_of_two_faults_the_first_of_each_pass_is_named(captured):
    def both(net):
        change_eps(net)
        change_activation(net)

    result = found(captured, both)
    assert result.first("forward").path == "body.1.norm" and result.first("backward").path == "body.2.act"


def test_what_float32_noise_covers_float64_shows(captured):
    """A factor that is half a rounding of float32 away."""

    def change(net):
        net.body[1].norm.eps = 1e-5 * (1 + 1e-4)

    assert found(captured, change, precisions=("float32",)).first("forward") is None
    assert found(captured, change).first("forward").path == "body.1.norm"


def test_a_leaf_noisier_than_the_reference_is_excused_only_where_float64_agrees(captured):
    """As a convolution that adds in another order is."""
    fields = layers.candidate(build(), IMAGES, captured)
    conv = next(call for call in fields["layers"] if call["path"] == "body.1.conv")
    single = conv["errors"]["float32"]["forward"]
    rows = [layer.own["forward", "float32"] for layer in divergence.localise(fields).layers if layer.leaf]
    largest = max(row.relative(row.reach) for row in rows)
    single["l2"] = 7 * largest * single["scale_l2"]
    noisiest = next(call for call in fields["layers"] if call["path"] == "body.0.norm")["errors"]["float32"]["forward"]
    assert divergence.localise(fields).first("forward").path == "body.1.conv", "no leaf is as noisy"
    noisiest |= {"floor_l2": 2 * largest * noisiest["scale_l2"], "floor_max": 2 * largest * noisiest["scale_max"]}
    result = divergence.localise(fields)
    assert result.first("forward") is None
    assert any("held to the leaves' largest" in row.note for row in result.rows())
    conv["errors"]["float64"]["forward"]["l2"] = single["l2"]
    assert divergence.localise(fields).first("forward").path == "body.1.conv"


def test_nan_is_a_fault_that_says_so(captured):
    result = found(captured, make_nan)
    assert result.first("forward").path == "body.0.norm"
    assert "nan at" in result.first("forward").own["forward", "float32"].note
    assert result.layers[-1].inherited["output"] == float("inf")


def test_the_error_is_inherited_but_not_owned_behind_the_fault(captured):
    result = found(captured, change_eps)
    layer = next(layer for layer in result.layers if layer.path == "body.2.conv")
    assert not layer.fails("forward") and layer.inherited["input"] > 1e-4 and layer.amplification("forward") > 0
    before = next(layer for layer in result.layers if layer.path == "body.0.conv")
    assert before.inherited["output"] == 0 and before.amplification("forward") is None
    assert before.inherited["output_gradient"] > 1e-5, "backward it is behind the fault"


# ------------------------------------------------------------------------------------------- other modules, other maps
class Renamed(nn.Module):
    """The net under other names, with a part of its own."""

    def __init__(self, net):
        super().__init__()
        self.first, self.stages, self.last = nn.Identity(), net.body, net.head

    def forward(self, x):
        x = self.stages(self.first(x))
        return backend.cat([self.last(x), self.last(x * 0.5)], 1)


def test_a_name_map_leads_to_modules_of_other_names(captured):
    names = {"head": "last", "body.0.conv": "stages.0.conv", "body.1.norm": "stages.1.norm", "": ""}
    fields = layers.candidate(lambda precision: Renamed(build()(precision)).eval(), IMAGES, captured, names=names)
    assert answer(divergence.localise(fields)).verdict is verdict.Verdict.PASS
    assert "first" in fields["apart"]["candidate"] and "body.2" in fields["apart"]["reference"]
    wrong = layers.candidate(
        lambda precision: Renamed(build(change_eps)(precision)).eval(), IMAGES, captured, names=names
    )
    assert divergence.localise(wrong).first("forward").path == "body.1.norm"


def test_missing_and_extra_modules_are_faults(captured):
    fields = layers.candidate(lambda precision: Renamed(build()(precision)).eval(), IMAGES, captured)
    failing = {row.name: row.note for row in divergence.localise(fields).rows() if row.passed is False}
    assert "missing" in failing["head"] and "left over" in failing["first"]


def test_a_module_that_stands_twice_counts_once(tmp_path):
    def make(precision):
        act = nn.ReLU()
        return nn.Sequential(act, nn.Sequential(act)).eval()

    layers.reference(make, IMAGES, tmp_path)
    result = divergence.localise(layers.candidate(make, IMAGES, tmp_path))
    assert [layer.name for layer in result.layers] == ["0", "0 (call 2)", "1", divergence.ROOT] and not result.faults


def test_nothing_looked_at_is_a_fault(captured):
    fields = layers.candidate(build(), IMAGES, captured, names={})
    assert answer(divergence.localise(fields)).verdict is verdict.Verdict.FAIL


class Noisy(nn.Module):
    """Gives another result each time."""

    calls = 0

    def forward(self, x):
        Noisy.calls += 1
        return x * float(Noisy.calls)


def test_a_layer_that_is_no_function_of_its_inputs_is_shown_not_judged(tmp_path):
    def make(precision):
        return nn.Sequential(Noisy(), nn.ReLU()).eval()

    layers.reference(make, IMAGES, tmp_path)
    result = divergence.localise(layers.candidate(make, IMAGES, tmp_path))
    noisy, relu, _ = result.layers
    assert all(row.passed is None and "each time" in row.note for row in noisy.own.values())
    assert relu.own["forward", "float32"].passed


class Told(nn.Module):
    """Its part multiplies by what the root tells it, and forgets that afterwards."""

    def __init__(self):
        super().__init__()
        self.part = Factor()

    def forward(self, x):
        self.part.factor = 3.0
        y = self.part(x)
        self.part.factor = 1.0
        return y


class Factor(nn.Module):
    factor = 1.0

    def forward(self, x):
        return x * self.factor


def test_a_layer_that_is_told_something_beside_its_inputs_is_shown_not_judged(tmp_path):
    layers.reference(lambda precision: Told().eval(), IMAGES, tmp_path)
    result = divergence.localise(layers.candidate(lambda precision: Told().eval(), IMAGES, tmp_path))
    part, whole = result.layers
    assert all(row.passed is None and "positional" in row.note for row in part.own.values())
    assert whole.own["forward", "float32"].passed


# -------------------------------------------------------------------------------------------------- records and files
def test_fields_survive_a_record_and_a_depth_curve_has_a_point_per_call(captured):
    fields = layers.candidate(build(make_nan), IMAGES, captured)
    again = divergence.localise(json.loads(json.dumps(record.plain(fields))))
    assert again.first("forward").path == "body.0.norm"
    curve = again.depth("forward")
    assert {len(column) for column in curve.values()} == {len(again.layers)}
    assert curve["blamed"].count(True) == 1 and curve["own"][0] < 1e-5 and curve["own"][1] is None


def right():
    return build()("float32")


def wrong():
    return build(change_eps)("float32")


def test_the_reproduction_script_runs_one_layer_alone(captured, tmp_path):
    root = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": f"{root.parent}{os.pathsep}{root}"}
    for builder, least, most in (("test_divergence:right", 0, 1e-6), ("test_divergence:wrong", 1e-4, 1)):
        script = reproduction.write(
            captured, "body.1.norm", tmp_path / builder[-5:], {backend.NAME: (builder, "body.1.norm")}
        )
        said = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=True
        ).stdout
        assert said.count("none") == 2 and f"{backend.NAME} output" in said
        assert least <= float(said.split()[-1]) < most


def test_a_layer_that_was_not_captured_has_no_script(captured, tmp_path):
    with pytest.raises(UserError, match="body.7 call 0: was not captured"):
        reproduction.write(captured, "body.7", tmp_path, {})


def test_an_unfinished_capture_is_one_line(tmp_path):
    with pytest.raises(UserError, match="capture the reference's layers first"):
        layers.candidate(build(), IMAGES, tmp_path)


def test_a_store_keeps_equal_tensors_once_as_they_are(tmp_path):
    (tmp_path / "stale.npy").touch()
    arrays = [seeded_input(str(i % 5), (16, 16)) for i in range(8)]
    arrays += [np.array(3, np.int64), np.zeros((2, 0), np.float32), seeded_input("turned", (3, 4)).T]
    with store.writing(tmp_path) as writer:
        digests = [writer.put(array) for array in arrays]
    assert len(set(digests)) == len(list(tmp_path.glob("*.npy"))) == 8
    assert writer.bytes == 5 * 1024 + 8 + 48
    with store.reading(tmp_path) as reader:
        for digest, array in zip(digests, arrays):
            found = reader.get(digest)
            assert found.tobytes() == array.tobytes() and found.shape == array.shape and found.flags.c_contiguous
        (tmp_path / f"{digests[0]}.npy").write_bytes(b"")
        for gone in ("0" * 64, digests[0]):
            with pytest.raises(UserError, match=f"{gone[:12]} can't be read"):
                reader.get(gone)


def test_arguments_are_taken_apart_and_put_together():
    value = ([np.zeros(1), {"a": np.ones(2)}], 3, None, (True, "x"))
    structure, tensors = tree.take_apart(value, lambda part: isinstance(part, np.ndarray))
    assert set(tensors) == {"0/0", "0/1/a"} and tree.opaque(structure) is None
    assert json.loads(json.dumps(structure)) == structure
    again = tree.put_together(structure, tensors)
    assert again[0][1]["a"] is value[0][1]["a"] and again[1:] == value[1:]
    assert tree.opaque(tree.take_apart([object()], lambda part: False)[0]) == "object"
