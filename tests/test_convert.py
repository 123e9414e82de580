"""Weight files in and out of both frameworks: nothing lost, nothing run, every fault named.

Tests of what one framework itself reads or writes run in its environment only.
"""

import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lib import backend, convert
from lib.backend import nn
from lib.errors import UserError
from lib.training import checkpoints

ROOT = Path(__file__).resolve().parents[1]
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
# Floats as bit patterns: NaNs and subnormals too, which hypothesis can't draw in Jittor's process (it flushes to zero).
ARRAYS = st.one_of(
    *(npst.arrays(dtype, SHAPES) for dtype in ("int64", "int32", "int16", "int8", "uint8", "bool")),
    *(npst.arrays(f"u{size}", SHAPES).map(lambda bits, size=size: bits.view(f"f{size}")) for size in (2, 4, 8)),
)


class Toy(nn.Module):
    """A bit of everything: convolution with bias, batch norm with its counter, a 0-dimensional parameter."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.scale = nn.Parameter(backend.tensor(np.ones((), np.float32)))
        self.aux_head = nn.Conv2d(4, 2, 1)


def seeded(model):
    rng = np.random.default_rng(5)
    return {
        name: rng.normal(size=a.shape).astype(a.dtype) if a.dtype.kind == "f" else a + 3
        for name, a in convert.state(model).items()
    }


def same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        assert found[name].tobytes() == array.tobytes(), name


# ------------------------------------------------------------------------------------------------------- formats
@pytest.mark.parametrize("suffix", checkpoints.WRITERS)
@settings(max_examples=25)
@given(arrays=st.dictionaries(st.text("abc.é", min_size=1, max_size=8), ARRAYS, min_size=1, max_size=3))
def test_every_format_keeps_every_bit(tmp_path_factory, suffix, arrays):
    path = tmp_path_factory.mktemp("weights") / f"w{suffix}"
    checkpoints.write(path, arrays)
    same(checkpoints.read(path).arrays, arrays)


@pytest.mark.parametrize("suffix", checkpoints.WRITERS)
def test_a_model_survives_every_format(tmp_path, suffix):
    model = Toy()
    expected = seeded(model)
    assert convert.load(model, expected).loaded == tuple(expected)
    checkpoints.write(tmp_path / f"w{suffix}", convert.state(model))
    fresh = Toy()
    convert.load(fresh, tmp_path / f"w{suffix}")
    same(convert.state(fresh), expected)


def test_equal_weights_give_equal_files(tmp_path):
    arrays = {"w": np.arange(3.0)}
    for suffix in checkpoints.WRITERS:
        checkpoints.write(tmp_path / f"a{suffix}", arrays)
        checkpoints.write(tmp_path / f"b{suffix}", arrays)
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_each_framework_reads_what_we_write_for_it(tmp_path):
    arrays = seeded(Toy())
    if backend.NAME == "torch":
        torch = pytest.importorskip("torch")
        checkpoints.write(tmp_path / "w.pth", arrays)
        found = torch.load(tmp_path / "w.pth", weights_only=True)
        assert isinstance(found, OrderedDict) and list(found) == list(arrays)
        same({name: tensor.numpy() for name, tensor in found.items()}, arrays)
    else:
        jittor = pytest.importorskip("jittor")
        checkpoints.write(tmp_path / "w.pkl", arrays)
        same(jittor.load(str(tmp_path / "w.pkl")), arrays)


def test_we_read_what_jittor_writes(tmp_path):
    jittor = pytest.importorskip("jittor")
    expected = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1, np.float32)}
    jittor.save({name: jittor.array(array) for name, array in expected.items()}, str(tmp_path / "vars.pkl"))
    jittor.save(expected, str(tmp_path / "arrays.pkl"))
    for name in ("vars", "arrays"):
        same(checkpoints.read(tmp_path / f"{name}.pkl").arrays, expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_we_read_what_torch_writes(tmp_path, zipped):
    """Views, shared storages, bfloat16, parameters; the old format too; optimiser states in between are skipped."""
    torch = pytest.importorskip("torch")
    base = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(
        view=base.t()[1:],
        row=base[2],
        half=torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
        scalar=torch.tensor(3.0),
        empty=torch.zeros(0, 3),
        parameter=nn.Parameter(torch.ones(2)),
        counter=torch.tensor(7),
        mask=torch.tensor([True, False]),
        array=np.arange(3.0),
    )
    other = {"moments": {0: torch.full((5,), 9.0)}, "best": np.float64(0.3), "size": torch.Size([2])}
    checkpoint = {"epoch": 3, "optimizer": other, "state_dict": state}
    torch.save(checkpoint, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
    found = checkpoints.read(tmp_path / "w.ckpt").arrays
    expected = {
        name: v if isinstance(v, np.ndarray) else v.detach().float().numpy() if name == "half" else v.detach().numpy()
        for name, v in state.items()
    }
    same(found, {name: np.asarray(array, order="C") for name, array in expected.items()})


def test_averaged_weights_of_a_lightning_checkpoint_win(tmp_path):
    entries = {"model.a": np.zeros(1), "model.b": np.zeros(2), "avg_model.a": np.ones(1)}
    checkpoints.write(tmp_path / "w.ckpt.pth", entries)
    same(checkpoints.read(tmp_path / "w.ckpt.pth").arrays, {"a": np.ones(1), "b": np.zeros(2)})


def test_weights_carry_their_class_names(tmp_path):
    checkpoints.write(tmp_path / "w.safetensors", {"w": np.ones(1)}, ("cat", "狗"))
    weights = checkpoints.read(tmp_path / "w.safetensors")
    assert weights.classes == ("cat", "狗") and weights.other_classes(("cat", "狗"), "val.json") == ""
    with pytest.raises(
        UserError, match="weights' classes are cat, 狗, those of val.json 狗, cat: the same in another order"
    ):
        weights.other_classes(("狗", "cat"), "val.json")
    assert "taken for the same, label by label" in weights.other_classes(("cat", "dog"), "val.json")
    checkpoints.write(tmp_path / "w.pth", {"w": np.ones(1)}, ("cat", "狗"))
    assert checkpoints.read(tmp_path / "w.pth").other_classes(("a",), "val.json") == ""


@pytest.mark.parametrize(
    "names",
    [
        ("module.a", "module.b.c"),
        ("_orig_mod.module.model.a", "_orig_mod.module.model.b.c"),
        ("model._orig_mod.a", "model._orig_mod.b.c"),
        ("module.model.module.a", "module.model.module.b._orig_mod.c"),
        ("avg_model.module.a", "avg_model.module.b.c"),
        ("n_averaged", "module.a", "module.b.c"),
        ("module.model.a", "module.model.b.c", "module.avg_model.a", "module.avg_model.b.c"),
    ],
)
def test_what_wrappers_put_before_names_goes_in_any_order(tmp_path, names):
    checkpoints.write(tmp_path / "w.npz", {name: np.full(1, "avg" in name, float) for name in names})
    read = checkpoints.read(tmp_path / "w.npz")
    assert set(read.arrays) == {"a", "b.c"} and read.others == (len(names) == 4)
    assert all(array == ("avg_model" in names[-1]) for array in read.arrays.values())
    if read.others:
        assert not checkpoints.read(tmp_path / "w.npz", "model").arrays["a"].any()


CONTENTS = {  # what people save: (content, the keys that lead to the averaged weights, those to the last step's)
    "torchvision's references": (
        lambda last, averaged: {"model": last, "model_ema": averaged, "epoch": 3},
        "model_ema",
        "model",
    ),
    "timm's": (lambda last, averaged: {"state_dict": last, "state_dict_ema": averaged}, "state_dict_ema", "state_dict"),
    "arrays beside": (
        lambda last, averaged: {"mean": np.ones(3), "epoch": np.array(3), "model": last, "ema": averaged},
        "ema",
        "model",
    ),
    "a dict in a dict": (
        lambda last, averaged: {"state": {}, "ema": {"state_dict": averaged}, "net": {"module": last}},
        "ema.state_dict",
        "net.module",
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_other_layouts_of_averaged_weights(tmp_path, name):
    make, averaged, last = CONTENTS[name]
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(make({"w": np.zeros(1)}, {"w": np.ones(1)}), 4))
    for take, part, value in ((None, averaged, 1), ("ema", averaged, 1), ("model", last, 0)):
        read = checkpoints.read(tmp_path / "w.pkl", take)
        assert (read.part, read.arrays["w"][0], read.others) == (part, value, True)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"w": np.zeros(1)}, 4))
    with pytest.raises(UserError, match="no averaged weights beside others; leave --take ema out"):
        checkpoints.read(tmp_path / "w.pkl", "ema")


def test_prefixes_go_only_when_all_names_have_them(tmp_path):
    for names, expected in ((("module.model.a", "module.model.b"), {"a", "b"}), (("model.a", "b"), {"model.a", "b"})):
        checkpoints.write(tmp_path / "w.npz", {name: np.ones(1) for name in names})
        assert set(checkpoints.read(tmp_path / "w.npz").arrays) == expected


# ------------------------------------------------------------------------------------------------------- coverage
def without(name):
    return lambda state: state.pop(name)


def reshaped(name):
    return lambda state: state.update({name: state[name][None]})


def with_value(name, value):
    return lambda state: state[name].fill(value)


@pytest.mark.parametrize(
    "fault, message",
    [
        (without("backbone.0.bias"), "1 missing: backbone.0.bias"),
        (without("backbone.1.num_batches_tracked"), "1 missing: backbone.1.num_batches_tracked"),
        (without("scale"), "1 missing: scale"),
        (lambda state: state.update(extra=np.ones(1)), "1 left over: extra"),
        (
            reshaped("backbone.0.bias"),
            r"1 of the wrong shape or kind: backbone.0.bias float32\[1, 4\] for float32\[4\]",
        ),
        (reshaped("scale"), r"scale float32\[1\] for float32\[\]"),
        (lambda state: state.update(scale=np.array(1)), r"scale int64\[\] for float32\[\]"),
        (with_value("backbone.1.running_var", np.nan), "1 with NaN, infinity or .*: backbone.1.running_var"),
        (with_value("scale", np.inf), "1 with NaN, infinity or too large a number: scale"),
        (lambda state: state.update(scale=np.array(1e39)), "1 with NaN, infinity or too large a number: scale"),
    ],
)
def test_strict_loading_names_every_fault_and_changes_nothing(fault, message):
    model = Toy()
    before, given_weights = convert.state(model), seeded(model)
    fault(given_weights)
    with pytest.raises(UserError, match=message):
        convert.load(model, given_weights)
    same(convert.state(model), before)


def test_faults_are_counted_and_the_first_three_named():
    with pytest.raises(
        UserError,
        match=r"^the given weights: \d+ missing: (\S+, ){3}…; 1 left over: x; nothing was loaded .no entry fits: they ",
    ):
        convert.load(Toy(), {"x": np.ones(1)})


def test_what_differs_in_shapes_alone_may_have_other_classes():
    weights = seeded(Toy())
    reshaped("aux_head.bias")(weights)
    with pytest.raises(UserError, match="they may be of another number of classes"):
        convert.load(Toy(), weights)
    with pytest.raises(UserError, match=r"1 left over: x; .*nothing was loaded$"):
        convert.load(Toy(), weights | {"x": np.ones(1)})


def test_the_state_of_a_training_is_no_weights_file(tmp_path):
    checkpoints.write(tmp_path / "checkpoint.safetensors", {"average/a": np.ones(1), "model/a": np.ones(1)})
    with pytest.raises(UserError, match="its weights are in weights.safetensors beside it"):
        checkpoints.read(tmp_path / "checkpoint.safetensors")


def test_an_absent_branch_is_allowed_by_name_as_a_whole():
    model = Toy()
    own, weights = convert.state(model), seeded(model)
    bias = weights.pop("aux_head.bias")
    with pytest.raises(UserError, match="1 missing: aux_head.bias"):
        convert.load(model, weights, absent=("aux_head.",))
    weight = weights.pop("aux_head.weight")
    assert weight.shape == (2, 4, 1, 1) and bias.shape == (2,)
    coverage = convert.load(model, weights, absent=("aux_head.",))
    assert coverage.absent == ("aux_head.weight", "aux_head.bias") and coverage.loaded == tuple(weights)
    same(convert.state(model), own | weights)
    del weights["backbone.1.num_batches_tracked"]
    assert (
        "backbone.1.num_batches_tracked"
        in convert.load(model, weights, absent=("aux_head.", ".num_batches_tracked")).absent
    )


def test_loading_what_fits_reports_the_rest():
    model = Toy()
    own, weights = convert.state(model), seeded(model)
    weights.pop("scale")
    weights |= {"extra": np.ones(1), "backbone.0.bias": np.ones(5), "aux_head.bias": np.full(2, np.nan)}
    coverage = convert.load(model, weights, strict=False)
    assert (coverage.missing, coverage.left_over) == (("scale",), ("extra",))
    assert (coverage.misshapen, coverage.not_finite) == (("backbone.0.bias",), ("aux_head.bias",))
    expected = {name: weights[name] if name in coverage.loaded else own[name] for name in own}
    same(convert.state(model), expected)


def test_half_precision_weights_are_widened():
    model = Toy()
    weights = {name: a.astype(np.float16) if a.dtype.kind == "f" else a for name, a in seeded(model).items()}
    convert.load(model, weights)
    same(convert.state(model), {name: a.astype(convert.state(model)[name].dtype) for name, a in weights.items()})


def test_the_state_is_a_copy():
    model = Toy()
    convert.state(model)["backbone.0.bias"][:] = 9
    assert (convert.state(model)["backbone.0.bias"] != 9).all()


def test_published_coco_weights_lack_only_the_auxiliary_branch(shared):
    from lib import models

    model = models.build("nanodet-plus-m_320")
    path = shared / "real" / "weights" / "nanodet-plus-m_320.npz"
    with pytest.raises(UserError, match=r"242 missing: aux_fpn\..*on purpose: --absent aux_fpn. aux_head.\)$"):
        convert.load(model, path)
    coverage = convert.load(model, path, absent=("aux_fpn.", "aux_head."))
    assert (len(coverage.loaded), len(coverage.absent)) == (645, 242)
    state = convert.state(model)
    same({name: state[name] for name in coverage.loaded}, dict(np.load(path)))


# --------------------------------------------------------------------------------------------------- both frameworks
RELAY = """
import sys
from lib import convert, models
from lib.training import checkpoints
for there, back in zip(sys.argv[1::2], sys.argv[2::2]):
    model = models.build("nanodet-plus-m_320", num_classes=3, seed=1)
    convert.load(model, there)
    checkpoints.write(back, convert.state(model))
"""


@pytest.mark.slow
def test_a_round_trip_through_the_other_framework_keeps_every_bit(tmp_path):
    """torch -> Jittor -> torch, and the other way round, by files of every format."""
    from lib import models

    other = ROOT / "envs" / ("jt" if backend.NAME == "torch" else "torch") / "bin" / "python"
    python = os.environ.get("OTHER_PYTHON", str(other))
    if not Path(python).exists():
        pytest.skip(f"{python} is absent: make envs, or set OTHER_PYTHON")
    expected = seeded(models.build("nanodet-plus-m_320", num_classes=3, seed=None))
    files = [tmp_path / name for name in ("there.pth", "back.pkl", "there.safetensors", "back.npz")]
    for there in files[::2]:
        checkpoints.write(there, expected)
    environ = os.environ | {"nvcc_path": "", "log_silent": "1"}
    subprocess.run([python, "-c", RELAY, *files], cwd=ROOT, check=True, env=environ)
    for back in files[1::2]:
        same(checkpoints.read(back).arrays, expected)
