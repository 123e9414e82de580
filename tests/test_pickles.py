"""Weight files of strangers: old, damaged, hostile, mutated. Nothing in them runs, hangs or fills the memory."""

import io
import os
import pickle
import re
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from test_convert import same

from lib import backend
from lib.errors import UserError
from lib.training import checkpoints


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


BIG = bytearray, (2**34,)  # 16 GiB


@pytest.mark.parametrize("carrier", [as_pickle, as_torch_zip])
@pytest.mark.parametrize("function, arguments", [(os.system, ("touch ran",)), (eval, ("open('ran', 'w')",)), BIG])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_a_pickle_would_run_is_an_inert_thing(tmp_path, monkeypatch, carrier, function, arguments, protocol):
    """Beside the weights it is passed over, in their place it is named; it is never called."""
    monkeypatch.chdir(tmp_path)
    bomb, name = Bomb(function, *arguments), f"{function.__module__}.{function.__name__}"
    name = name if protocol > 2 else name.replace("builtins", "__builtin__")
    beside = carrier(
        tmp_path / "w", pickle.dumps({"hook": bomb, "state_dict": {"w": np.ones(2), "more": bomb}}, protocol)
    )
    read = checkpoints.read(beside)
    same(read.arrays, {"w": np.ones(2)})
    assert read.passed_over == ("more",) and "passed over: more" in str(read)
    alone = carrier(tmp_path / "w", pickle.dumps({"w": bomb}, protocol))
    with pytest.raises(UserError, match=rf"only w \({re.escape(name)}\), of which nothing was run") as caught:
        checkpoints.read(alone)
    assert not (tmp_path / "ran").exists() and "\n" not in str(caught.value)


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
        assert checkpoints.read(tmp_path / "w.pth").arrays["w"].ravel().tolist() == [1, 2]
    else:
        with pytest.raises(UserError, match="damaged"):
            checkpoints.read(tmp_path / "w.pth")


def test_a_file_that_unpacks_to_much_more_than_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "ROOM", 0)
    np.savez_compressed(tmp_path / "w.npz", w=np.zeros(10_000))
    with pytest.raises(UserError, match="would unpack to 80128 bytes, more than 8 times its size"):
        checkpoints.read(tmp_path / "w.npz")
    shared = torch_pickle((1000,), count=1000, names="abcdefghijklmnopqrstuvwxyz")
    write_zip(tmp_path / "w.pth", shared, k=np.ones(1000, np.float32).tobytes())
    with pytest.raises(UserError, match="would unpack to 104000 bytes, more than 2 times its size"):
        checkpoints.read(tmp_path / "w.pth")


def nested(depth):
    """(((…), (…)), …) as a dict's key: each level holds the one below twice, so that a hash would take for ever."""
    pairs = b"".join(b"h\0h\0\x86q\0" for _ in range(depth))
    return b"\x80\x02})q\0" + pairs + b"K\1s."


def claims(shape, count):
    """An array of this shape, of `count` numbers."""
    made = pickle.dumps({"w": np.ones(count, np.float32)}, 2)
    return made.replace(pickle.dumps((count,), 2)[2:-3], pickle.dumps(shape, 2)[2:-3])


@pytest.mark.parametrize(
    "content",
    [
        nested(200),
        b"\x80\x02}X\1\0\0\0wB\xff\xff\xff\xff",  # four gigabytes that are not there
        b"\x80\x04\x96" + struct.pack("<Q", 2**62) + b"x.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" + b"\x85" * 100_000 + b".",
        claims((-1,), 3),
        claims((2**40,), 3),
        b"\x80\x02}(X\1\0\0\0wcm\nC\n)\x81q\0}X\x08\0\0\0_modulesq\1}X\1\0\0\0ah\0ssbu.",  # a module in itself
    ],
)
def test_a_pickle_made_to_hang_or_to_fill_the_memory_ends_at_once(tmp_path, content):
    (tmp_path / "w.pkl").write_bytes(content)
    start = time.process_time()
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        checkpoints.read(tmp_path / "w.pkl")
    assert tracemalloc.get_traced_memory()[1] < 30e6 and time.process_time() - start < 5
    tracemalloc.stop()
    assert len(str(caught.value)) < 500


def tar_checkpoint(path):
    """PyTorch's first format, by hand: one storage, a part of it under another number, two tensors over them."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def described(number, of, made_by):  # of a storage its device, of a tensor its storage
        middle = text(of) if isinstance(of, str) else bytes([ord("K"), of])
        return b"\x80\x02(K" + bytes([number]) + middle + b"ctorch\n" + made_by.encode() + b"\nt."

    numbers = np.arange(6, dtype="<f4")
    storages = pickle.dumps(1, 2) + described(7, "cpu", "FloatStorage") + struct.pack("<q", 6) + numbers.tobytes()
    storages += pickle.dumps([(8, 7, 2, 4)], 2)
    tensors = pickle.dumps(2, 2) + described(1, 7, "FloatTensor") + struct.pack("<i4x5q", 2, 2, 3, 3, 1, 0)
    tensors += described(2, 8, "FloatTensor") + struct.pack("<i4x3q", 1, 2, 2, 1)
    entries = b"".join(text(name) + text(key) + b"Qs" for name, key in (("whole", "1"), ("every.other", "2")))
    body = b"\x80\x02}" + entries + b"."
    with tarfile.open(path, "w") as archive:
        for name, content in (("storages", storages), ("tensors", tensors), ("pickle", body)):
            (member := tarfile.TarInfo(name)).size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"whole": numbers.reshape(2, 3), "every.other": numbers[[3, 5]]}


def test_the_first_format_of_pytorch_is_read(tmp_path):
    expected = tar_checkpoint(tmp_path / "w.pth")
    same(checkpoints.read(tmp_path / "w.pth").arrays, expected)
    if backend.NAME == "torch":
        found = pytest.importorskip("torch").load(tmp_path / "w.pth", weights_only=False)
        same({name: tensor.numpy() for name, tensor in found.items()}, expected)


@pytest.mark.parametrize(
    "storage, made_by, named",
    [
        ("QUInt8Storage", "_rebuild_tensor_v2", "w is of torch.QUInt8Storage; save .* before they were quantised"),
        ("FloatStorage", "_rebuild_qtensor", "w is of torch._utils._rebuild_qtensor; save"),
        ("ComplexFloatStorage", "_rebuild_tensor_v2", "w is of torch.ComplexFloatStorage; save plain weights"),
    ],
)
def test_quantised_and_complex_weights_are_refused_by_name(tmp_path, storage, made_by, named):
    content = torch_pickle().replace(b"FloatStorage", storage.encode()).replace(b"_rebuild_tensor_v2", made_by.encode())
    write_zip(tmp_path / "w.pth", content, k=bytes(8))
    with pytest.raises(UserError, match=named):
        checkpoints.read(tmp_path / "w.pth")


def test_a_torchscript_program_and_a_mislabelled_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl"):
            archive.writestr(name, pickle.dumps({}))
    with pytest.raises(UserError, match="is a TorchScript program; save the state_dict"):
        checkpoints.read(tmp_path / "w.pt")
    for suffix in checkpoints.WRITERS:  # what it is stands in its bytes
        checkpoints.write(tmp_path / f"w{suffix}", {"w": np.ones(2)})
        for other in checkpoints.SUFFIXES:
            os.replace(tmp_path / f"w{suffix}", tmp_path / f"w{other}")
            same(checkpoints.read(tmp_path / f"w{other}").arrays, {"w": np.ones(2)})
            os.replace(tmp_path / f"w{other}", tmp_path / f"w{suffix}")


# ----------------------------------------------------------------------------------------------------------- mutations
def module_pickle():
    """A pickled module in protocol 2 with what stands beside it, by hand: no framework is needed."""
    text = {
        name: b"X" + struct.pack("<I", len(name)) + name.encode()
        for name in ("model", "ema", "_parameters", "_modules")
    }
    state = b"}(" + text["_parameters"] + torch_pickle(names="w")[2:-1]
    state += text["_modules"] + b"ccollections\nOrderedDict\n)Ru"
    return b"\x80\x02}" + text["model"] + b"cgone.models\nNet\n)\x81" + state + b"bs" + text["ema"] + b"Ns."


def targets(folder):
    """Small files of every format that has a pickle, each with a function that writes changed bytes back."""
    arrays = {"a": np.arange(40.0, dtype=np.float32), "b.c": np.ones((3, 2), np.float16)}
    checkpoints.write(folder / "plain.pth", arrays)
    with zipfile.ZipFile(folder / "plain.pth") as archive:
        inner = archive.read("archive/data.pkl")
    bomb = {"state_dict": arrays, "hook": Bomb(os.system, "touch ran"), "set": {1, 2}, "more": [OrderedDict(a=1)]}

    def zipped(content):
        write_zip(folder / "w.pth", content, **{"0": arrays["a"].tobytes(), "1": arrays["b.c"].tobytes()})
        return folder / "w.pth"

    def bare(content):
        (folder / "w.pkl").write_bytes(content)
        return folder / "w.pkl"

    return [
        (inner, zipped),
        (module_pickle(), zipped),
        (pickle.dumps(bomb, 2), bare),
        (pickle.dumps(bomb, 4), bare),
        (pickle.dumps(bomb, 5), bare),
    ]


def mutated(content, rng):
    """A few bytes changed, moved, doubled or left out, most of them into opcodes."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(2, len(content))), int(rng.integers(1, 9))
        kind = rng.integers(4)
        if kind == 0:
            content[at] = rng.choice(
                np.frombuffer(b"(.0123FIJKLMNPQRSTUVX]abcdeghijloqrstu}\x80\x81\x85\x8a\x8c\x93\x94", np.uint8)
            )
        elif kind == 1:
            content[at] = rng.integers(256)
        elif kind == 2:
            content[at:at] = content[at : at + length] * int(rng.integers(1, 50))
        else:
            del content[at : at + length]
    return bytes(content)


FORBIDDEN = {
    "import",
    "exec",
    "compile",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
}


@pytest.mark.parametrize("suffix", checkpoints.WRITERS)
def test_reading_takes_about_twice_the_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    checkpoints.write(path, {f"layer{number}": np.full((500, 1000), number, np.float32) for number in range(10)})
    tracemalloc.start()
    read = checkpoints.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read.arrays) == 10 and peak < 2.2 * path.stat().st_size


def test_five_hundred_mutations_run_nothing_and_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran, watching = [], True
    sys.addaudithook(lambda event, _: ran.append(event) if watching and event in FORBIDDEN else None)
    rng, read = np.random.default_rng(17), 0
    held = targets(tmp_path)
    checkpoints.read(held[0][1](held[0][0]))  # what is imported on first use
    ran.clear()
    tracemalloc.start()
    try:
        for number in range(500):
            content, write = held[number % len(held)]
            path = write(mutated(content, rng))
            tracemalloc.reset_peak()
            start, before = time.process_time(), tracemalloc.get_traced_memory()[0]
            try:
                read += bool(checkpoints.read(path).arrays)
            except UserError as error:
                assert "\n" not in str(error)
            assert time.process_time() - start < 2, number
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 2 * path.stat().st_size + 500_000, (number, peak)
    finally:
        watching = False
        tracemalloc.stop()
    assert ran == [] and not (tmp_path / "ran").exists()
    assert 20 < read < 480  # both ends are reached


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
        assert (checkpoints.read(path).arrays["w"] != arrays["w"]).sum() == 1
        return
    with pytest.raises(UserError, match="damaged|does not match") as caught:
        checkpoints.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 3}, "holds no named weights"),
        ({0: np.ones(1)}, "holds no named weights"),
        ([1, 2], "holds no named weights"),
        ({}, "holds no named weights"),
        ({"w": np.array(["a"])}, "w is of .U1, not of real numbers"),
        ({"w": np.array([{}])}, "w is of .O8, not of real numbers"),
        ({"w": np.array([1j])}, "w is of <c16, not of real numbers"),
        ({"w": np.array([1], np.uint32)}, "w is of <u4, not of real numbers"),
        ({"w\x1b[31m": np.ones(1)}, "give it a readable name"),
    ],
)
def test_a_pickle_without_weights_is_one_line(tmp_path, content, message):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(UserError, match=message):
        checkpoints.read(tmp_path / "w.pkl")


def test_npz_objects_and_unknown_suffixes_are_one_line(tmp_path):
    for content in (np.array([{}]), np.array(["a"]), np.array([1j]), np.array([1], np.uint16)):
        np.savez(tmp_path / "w.npz", w=content)
        with pytest.raises(UserError, match="w is of .*, not of real numbers"):
            checkpoints.read(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(UserError, match="'notes.txt', which is no array"):
        checkpoints.read(tmp_path / "w.npz")
    for action in (checkpoints.read, lambda path: checkpoints.write(path, {})):
        with pytest.raises(UserError, match="kind of weights file"):
            action(tmp_path / "w.h5")
    with pytest.raises(UserError, match="can't be read"):
        checkpoints.read(tmp_path / "nowhere.npz")
