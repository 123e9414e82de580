"""Weight files in and out of both frameworks: nothing lost, nothing run, every fault named.

Tests of what one framework itself reads or writes run in its environment only.
"""

import io
import os
import pickle
import struct
import subprocess
import zipfile
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


def write_zip(path, content, **entries):
    """A torch file around a pickle that somebody made by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, data in entries.items():
            archive.writestr(f"archive/data/{name}", data)


def torch_pickle(shape=(2,), stride=(1,), offset=0, key="k", count=2, names="w"):
    """What torch pickles for float32 tensors that share one storage, with fields of our choice."""

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + b"X" + struct.pack("<I", len(key)) + key.encode()
    storage += b"X\x03\0\0\0cpuJ" + struct.pack("<i", count) + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"J" + struct.pack("<i", offset)
    rebuilt += numbers(shape) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + b"".join(b"X\x01\0\0\0" + name.encode() + rebuilt + b"s" for name in names) + b"."


# ------------------------------------------------------------------------------------------------------- formats
@pytest.mark.parametrize("suffix", checkpoints.WRITERS)
@settings(max_examples=25)
@given(arrays=st.dictionaries(st.text("abc.é", min_size=1, max_size=8), ARRAYS, min_size=1, max_size=3))
def test_every_format_keeps_every_bit(tmp_path_factory, suffix, arrays):
    path = tmp_path_factory.mktemp("weights") / f"w{suffix}"
    checkpoints.write(path, arrays)
    same(checkpoints.read(path), arrays)


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
        same(checkpoints.read(tmp_path / f"{name}.pkl"), expected)


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
    found = checkpoints.read(tmp_path / "w.ckpt")
    expected = {
        name: v if isinstance(v, np.ndarray) else v.detach().float().numpy() if name == "half" else v.detach().numpy()
        for name, v in state.items()
    }
    same(found, {name: np.asarray(array, order="C") for name, array in expected.items()})


def test_averaged_weights_of_a_lightning_checkpoint_win(tmp_path):
    entries = {"model.a": np.zeros(1), "model.b": np.zeros(2), "avg_model.a": np.ones(1)}
    checkpoints.write(tmp_path / "w.ckpt.pth", entries)
    same(checkpoints.read(tmp_path / "w.ckpt.pth"), {"a": np.ones(1), "b": np.zeros(2)})


def test_prefixes_go_only_when_all_names_have_them(tmp_path):
    for names, expected in ((("module.model.a", "module.model.b"), {"a", "b"}), (("model.a", "b"), {"model.a", "b"})):
        checkpoints.write(tmp_path / "w.npz", {name: np.ones(1) for name in names})
        assert set(checkpoints.read(tmp_path / "w.npz")) == expected


# ---------------------------------------------------------------------------------------------- hostile and damaged
class Bomb:
    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def as_pickle(path, content):
    path.with_suffix(".pkl").write_bytes(content)
    return path.with_suffix(".pkl")


def as_torch_zip(path, content):
    write_zip(path.with_suffix(".pth"), content)
    return path.with_suffix(".pth")


@pytest.mark.parametrize("carrier", [as_pickle, as_torch_zip])
@pytest.mark.parametrize(
    "function, arguments, name",
    [
        (os.system, ("touch ran",), "posix.system"),
        (eval, ("open('ran', 'w')",), "builtins.eval"),
        (getattr, ("", "join"), "builtins.getattr"),
        (np.load, ("x",), "numpy.load"),
        (bytearray, (10**12,), "builtins.bytearray"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_wants_to_run_code_is_refused_by_name(
    tmp_path, monkeypatch, carrier, function, arguments, name, protocol
):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"state_dict": {"w": Bomb(function, *arguments)}}, protocol)
    path = carrier(tmp_path / "w", content)
    with pytest.raises(UserError, match=f"asks for .*{name.rsplit('.', 1)[-1]}, .*nothing was run") as caught:
        checkpoints.read(path)
    assert not (tmp_path / "ran").exists() and "\n" not in str(caught.value)


def test_only_containers_tensors_and_arrays_can_be_named():
    """What a pickle can call is immutable and belongs to one reading."""
    machine = checkpoints._Weights(io.BytesIO(), Path("w"))
    for value in machine._allowed.values():
        assert isinstance(value, str) or value.__self__ is machine
        with pytest.raises(AttributeError):
            value.anything = 1


@pytest.mark.parametrize(
    "fields, ok",
    [
        ({}, True),
        ({"shape": (2, 1), "stride": (1, 5)}, True),
        ({"offset": 1}, False),
        ({"offset": -1}, False),
        ({"stride": (2,)}, False),
        ({"stride": (-1,)}, False),
        ({"shape": (3,), "stride": (0,)}, False),
        ({"shape": (2, 1)}, False),
        ({"count": 3}, False),
        ({"key": "../k"}, False),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, fields, ok):
    write_zip(tmp_path / "w.pth", torch_pickle(**fields), k=struct.pack("<2f", 1, 2))
    if ok:
        assert checkpoints.read(tmp_path / "w.pth")["w"].ravel().tolist() == [1, 2]
    else:
        with pytest.raises(UserError, match="damaged"):
            checkpoints.read(tmp_path / "w.pth")


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "LIMIT", 8_000)
    np.savez_compressed(tmp_path / "w.npz", w=np.zeros(1_001))
    with pytest.raises(UserError, match="unpacks to more"):
        checkpoints.read(tmp_path / "w.npz")
    shared = torch_pickle((100,), count=100, names="abcdefghijklmnopqrstuvwxyz")
    write_zip(tmp_path / "w.pth", shared, k=np.ones(100, np.float32).tobytes())
    with pytest.raises(UserError, match="tensors would take more"):
        checkpoints.read(tmp_path / "w.pth")


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize("suffix", checkpoints.WRITERS)
@pytest.mark.parametrize("fault", [cut, flip, lambda content: b"", lambda content: b"hello"])
def test_a_damaged_file_is_one_line(tmp_path, suffix, fault):
    path = tmp_path / f"w{suffix}"
    arrays = {"w": np.arange(1000.0)}
    checkpoints.write(path, arrays)
    path.write_bytes(fault(path.read_bytes()))
    if (suffix, fault) == (".safetensors", flip):  # has no checksum: a flipped weight is still a weight
        assert (checkpoints.read(path)["w"] != arrays["w"]).sum() == 1
        return
    with pytest.raises(UserError, match="damaged|does not match") as caught:
        checkpoints.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 3}, "'epoch' is a int"),
        ({0: np.ones(1)}, "0 is a Array, not a named"),
        ([1, 2], "holds no named weights"),
        ({}, "holds no named weights"),
        ({"w": np.array(["a"])}, "damaged"),
        ({"w": np.array([{}])}, "damaged"),
    ],
)
def test_a_pickle_without_weights_is_one_line(tmp_path, content, message):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(UserError, match=message):
        checkpoints.read(tmp_path / "w.pkl")


def test_npz_objects_and_unknown_suffixes_are_one_line(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.array([{}]))
    with pytest.raises(UserError, match="damaged"):
        checkpoints.read(tmp_path / "w.npz")
    for action in (checkpoints.read, lambda path: checkpoints.write(path, {})):
        with pytest.raises(UserError, match="kind of weights file"):
            action(tmp_path / "w.h5")
    with pytest.raises(UserError, match="can't be read"):
        checkpoints.read(tmp_path / "nowhere.npz")


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
        (with_value("backbone.1.running_var", np.nan), "1 with NaN or infinity: backbone.1.running_var"),
        (with_value("scale", np.inf), "1 with NaN or infinity: scale"),
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
    same({name: convert.state(model)[name] for name in coverage.loaded}, dict(np.load(path)))


# --------------------------------------------------------------------------------------------------- both frameworks
RELAY = """
import sys
from lib import convert, models
from lib.training import checkpoints
model = models.build("nanodet-plus-m_320", num_classes=3, seed=1)
convert.load(model, sys.argv[1])
checkpoints.write(sys.argv[2], convert.state(model))
"""


@pytest.mark.slow
@pytest.mark.parametrize("there, back", [(".pth", ".pkl"), (".safetensors", ".npz")])
def test_a_round_trip_through_the_other_framework_keeps_every_bit(tmp_path, there, back):
    """torch -> Jittor -> torch, and the other way round, by files."""
    from lib import models

    other = ROOT / "envs" / ("jt" if backend.NAME == "torch" else "torch") / "bin" / "python"
    python = os.environ.get("OTHER_PYTHON", str(other))
    if not Path(python).exists():
        pytest.skip(f"{python} is absent: make envs, or set OTHER_PYTHON")
    expected = seeded(models.build("nanodet-plus-m_320", num_classes=3))
    checkpoints.write(tmp_path / f"there{there}", expected)
    subprocess.run(
        [python, "-c", RELAY, tmp_path / f"there{there}", tmp_path / f"back{back}"],
        cwd=ROOT,
        check=True,
        env=os.environ | {"nvcc_path": "", "log_silent": "1"},
    )
    same(checkpoints.read(tmp_path / f"back{back}"), expected)
