"""Weight files as {name: array}: PyTorch (zip, before 1.6, tar), Jittor, npz, safetensors. No framework is needed.

What a pickle names is never imported nor called (see pickles): of a checkpoint the weights are taken, whatever stands
beside them is passed over; a pickled module of any class gives its parameters and buffers by name. Layouts follow
torch/serialization.py (2.13) and jittor/__init__.py (1.3.11). Deliberate differences:
* bfloat16 becomes float32 (NumPy has no bfloat16; no value changes);
* of a checkpoint that holds averaged weights these are taken, as the published code of all three detectors does.
"""

import hashlib
import io
import json
import math
import mmap
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from lib.errors import UserError, some
from lib.record import TYPES, atomic
from lib.training import pickles
from lib.training.pickles import Array, Refused, Storage, Tensor, Thing

SUFFIXES = (".pth", ".pt", ".ckpt", ".pkl", ".bin", ".tar", ".npz", ".safetensors")
ROOM = 16 * 2**20  # bytes that any file may unpack to,
TIMES = {"a pickle": 2, "an archive": 8}  # and so many times its own size: shared storages, a compressed archive
JITTOR_END = b"HCAJSLHD"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
DTYPES = {"torch." + name: dtype for name, dtype in STORAGES.items()}
RAW = {dtype: np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<") for dtype in STORAGES.values()}
AVERAGED = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
LAST = ("state_dict", "model", "model_state_dict", "net", "network", "weights")
INSIDE = ("module", *LAST)  # where the weights may lie in one of those
PREFIXES = ("module.", "model.", "avg_model.")  # DataParallel's and Lightning's
COMPILED = "_orig_mod."  # torch.compile's, around the model or a part of it
AVERAGE = "avg_model."
SAFE = {code: dtype for dtype, code in TYPES.items() if dtype in RAW} | {"BF16": "bfloat16"}
METADATA = "classes"  # of a safetensors file: the names in the order of the labels, as JSON


@dataclass(frozen=True)
class Weights:
    """The weights of one file, under published names."""

    arrays: dict[str, np.ndarray]
    part: str = ""  # which part of the checkpoint they are; empty where it is nothing else
    averaged: bool = False
    others: bool = False  # whether it holds the last step's beside averaged ones
    passed_over: tuple[str, ...] = ()  # what stands among them and is no array
    classes: tuple[str, ...] = ()  # names by label, where the file says

    def __str__(self) -> str:
        """Which weights they are; empty where the file leaves no choice."""
        said = f"{'the averaged weights' if self.averaged else 'the weights'} in {self.part}" if self.part else ""
        if self.others and self.averaged:
            said += ", which the published code evaluates (python -m lib convert --take model gives the last step's)"
        elif self.others:
            said += ", not the averaged ones, which the published code evaluates"
        more = f"passed over: {some(self.passed_over)}, no arrays" if self.passed_over else ""
        return "; ".join(filter(None, (said, more)))

    def other_classes(self, classes: tuple[str, ...], where: str | os.PathLike) -> str:
        """What to say where the file's class names are not `classes`, those of `where`; empty where they are.

        UserError where they are the same in another order, which would give each class another's numbers.
        """
        if not self.classes or self.classes == classes:
            return ""
        said = f"the weights' classes are {some(self.classes)}, those of {where} {some(classes)}"
        if sorted(self.classes) == sorted(classes):
            raise UserError(f"{said}: the same in another order; number them as the weights do")
        return f"{said}: they are taken for the same, label by label"


Numbers = Callable[[Storage], np.ndarray]  # what a storage holds


def read(path: str | os.PathLike, take: str | None = None) -> Weights:
    """The weights in a file.

    `take`: "ema" or "model" (the last step's) where a checkpoint holds both; by default averaged ones where there are
    some. Of `avg_model.*` and `model.*` side by side (NanoDet's Lightning checkpoints), the former override the latter.
    Prefixes that all names have are dropped. UserError for an unknown suffix, a damaged file, one that unpacks to much
    more than its size, one without weights or without those asked for, and for quantised or complex ones.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of weights file; known are {' '.join(SUFFIXES)}")
    try:
        return _read(path, take)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}); check the path") from error
    except Exception as error:  # the bytes are a stranger's: whatever they provoke means a damaged file
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{path}: damaged ({said}); fetch or write it again") from error


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], classes: Iterable[str] = ()) -> None:
    """Write weights in the format of the suffix, complete or not at all.

    `.pth` loads with torch.load(weights_only=True), `.pkl` with jittor.load. `classes` are the names by label, which
    only safetensors has a place for.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise UserError(f"{path}: can't write this kind of weights file; known are {' '.join(WRITERS)}")
    with atomic(path) as temporary:
        WRITERS[path.suffix](
            temporary, {name: np.asarray(array, order="C") for name, array in arrays.items()}, tuple(classes)
        )


# ------------------------------------------------------------------------------------------------- what is taken
def _weights(root: Any, keys: tuple[str, ...], size: int, depth: int = 3) -> tuple[str, dict[str, Any]] | None:
    """Where in a pickle's content weights lie, as keys with dots between, and their nodes by name; None if nowhere."""
    if entries := pickles.module(root, size):
        return "", entries
    held = pickles.mapping(root)
    for key in keys if depth else ():
        if found := key in held and _weights(held[key], INSIDE, size, depth - 1):
            return f"{key}.{found[0]}".rstrip("."), found[1]
    return ("", held) if any(pickles.array(entry) for entry in held.values()) else None


def _chosen(root: Any, numbers: Numbers, path: Path, take: str | None) -> Weights:
    """The weights in a pickle's content; `numbers` fetches a storage."""
    size = path.stat().st_size
    last, averaged = _weights(root, LAST, size), _weights(root, AVERAGED, size)
    averaged = averaged if averaged and averaged[0] else None  # the root itself is no average
    found = last if take == "model" else averaged or last
    if found is None and averaged:
        raise UserError(f"{path}: holds averaged weights only; leave --take model out")
    if found is None:
        content = pickles.mapping(root) or {"it": root}
        held = [f"{key} ({node.made_by})" for key, node in content.items() if isinstance(node, Thing)]
        only = f", only {some(held)}, of which nothing was run" if held else ""
        raise UserError(f"{path}: holds no named weights{only}; save a state_dict")
    part, entries = found
    nodes = {name: pickles.array(entry) for name, entry in entries.items()}
    arrays = _arrays({name: node for name, node in nodes.items() if node}, numbers, path)
    passed_over = tuple(name for name, node in nodes.items() if not node and entries[name] is not None)
    weights = replace(_published(arrays, path, None if averaged else take), passed_over=passed_over)
    if averaged:
        return replace(weights, part=part, averaged=found is averaged, others=bool(last))
    return replace(weights, part=weights.part or part)


def _published(entries: dict[str, np.ndarray], path: Path, take: str | None) -> Weights:
    """Under names without the wrappers' prefixes; averaged entries override the last step's."""
    if bad := next((name for name in entries if not name.isprintable()), None):
        raise UserError(f"{path}: an entry is called {bad!r:.80}; give it a readable name")
    others = entries.keys() - {"n_averaged"}  # the counter of PyTorch's AveragedModel, which has the model as `module`
    counted = others and all(name.startswith("module.") for name in others)
    entries = _stripped({name: entries[name] for name in entries if name in others or not counted})
    last = {name: array for name, array in entries.items() if not name.startswith(AVERAGE)}
    averaged = _stripped({name: array for name, array in entries.items() if name.startswith(AVERAGE)})
    last = _stripped(last)
    if take == "ema" and not averaged:
        raise UserError(f"{path}: holds no averaged weights beside others; leave --take ema out")
    if not averaged or take == "model":
        return Weights(last, "model.*" if averaged else "", others=bool(averaged))
    return Weights(last | averaged, AVERAGE + "*", averaged=True, others=True)


def _stripped(entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without what wrappers put before every name, and torch.compile before some."""
    if len({name.replace(COMPILED, "") for name in entries}) < len(entries):
        raise ValueError(f"two entries whose names differ in {COMPILED} alone")
    entries = {name.replace(COMPILED, ""): array for name, array in entries.items()}
    while prefix := next((p for p in PREFIXES if entries and all(name.startswith(p) for name in entries)), None):
        entries = {name.removeprefix(prefix): array for name, array in entries.items()}
    return entries


# ----------------------------------------------------------------------------------------------------- formats, in
def _read(path: Path, take: str | None) -> Weights:
    """Told apart by the bytes: a suffix says little."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_size(sum(entry.file_size for entry in archive.infolist()), path, "an archive")
            names = archive.namelist()
            if pickle_name := next((name for name in names if name.endswith("/data.pkl")), None):
                return _torch_zip(archive, pickle_name.removesuffix("data.pkl"), path, take)
            return _published(_npz(archive, path), path, take)
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # reads no more than is there
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content):  # a header, behind its length
        return _safetensors(path, take)
    if content[257:262] == b"ustar":
        return _torch_tar(content, path, take)
    if content[-8:] == JITTOR_END and hashlib.sha1(memoryview(content)[:-28]).digest() != content[-28:-8]:
        raise UserError(f"{path}: its checksum does not match its content; fetch or write it again")
    storages: dict[str, str] = {}
    loaded = _unpickled(content, path, storages)
    if loaded == LEGACY_MAGIC:
        return _torch_legacy(content, path, take)
    return _chosen(loaded, {}.__getitem__, path, take)


def _unpickled(stream: BinaryIO, path: Path, storages: dict[str, str] | None = None) -> Any:
    """The next pickle of a stream; `storages` gets the dtype of every storage that it names."""

    def persistent(saved_id: Any) -> Any:
        kind, made_by, key, _, *rest = saved_id
        if kind == "module":  # the format before 1.6 keeps a class with its source
            return made_by
        dtype = DTYPES.get(made_by.made_by)
        if kind != "storage" or type(key) is not str or any(part is not None for part in rest[1:]):
            raise ValueError("not a plain tensor storage")
        if storages is not None:
            storages[key] = dtype
        return Storage(dtype or made_by.made_by, key, rest[0])

    return pickles.load(stream, path.stat().st_size, persistent)


def _torch_zip(archive: zipfile.ZipFile, folder: str, path: Path, take: str | None) -> Weights:
    if f"{folder}constants.pkl" in archive.namelist():
        raise UserError(f"{path}: is a TorchScript program; save the state_dict of the model that it was made from")
    order = f"{folder}byteorder"
    _check_order(order not in archive.namelist() or archive.read(order) == b"little", path)
    loaded = _unpickled(io.BytesIO(archive.read(f"{folder}data.pkl")), path)

    def numbers(storage: Storage) -> np.ndarray:
        return np.frombuffer(archive.read(f"{folder}data/{storage.key}"), RAW[storage.dtype], storage.count)

    return _chosen(loaded, numbers, path, take)


def _torch_legacy(stream: mmap.mmap, path: Path, take: str | None) -> Weights:
    """The format before PyTorch 1.6; `stream` stands behind the magic number.

    Pickles of protocol version, machine facts, content and storage keys, then per key an int64 count and the numbers.
    """
    _unpickled(stream, path)
    _check_order(_unpickled(stream, path)["little_endian"], path)
    storages: dict[str, str] = {}
    loaded = _unpickled(stream, path, storages)
    found = {key: _run(stream, storages[key]) for key in _unpickled(stream, path)}
    return _chosen(loaded, lambda storage: found[storage.key], path, take)


def _run(stream: BinaryIO, dtype: str) -> np.ndarray:
    """A storage at the stream's position: an int64 count, then the numbers."""
    (count,) = struct.unpack("<q", stream.read(8))
    return np.frombuffer(stream.read(count * RAW[dtype].itemsize), RAW[dtype], count)


def _torch_tar(content: mmap.mmap, path: Path, take: str | None) -> Weights:
    """PyTorch's first format: files of storages, of tensors over them, and of the pickle that names these by number."""
    with tarfile.open(fileobj=content, mode="r:") as archive:
        storages, tensors, body = (io.BytesIO(archive.extractfile(n).read()) for n in ("storages", "tensors", "pickle"))

    def plain(stream: BinaryIO) -> Any:
        return pickles.load(stream, len(content), dict[Any, Any]().__getitem__)

    found = {}
    for _ in range(plain(storages)):
        key, _, made_by = plain(storages)
        found[str(key)] = Storage(DTYPES[made_by.made_by], str(key), 0), _run(storages, DTYPES[made_by.made_by])
    for key, root, offset, count in plain(storages):
        storage, numbers = found[str(root)]
        found[str(key)] = storage._replace(key=str(key)), numbers[offset : offset + count]
    held = {}
    for _ in range(plain(tensors)):
        key, storage, _ = plain(tensors)
        (ndim,) = struct.unpack("<i4x", tensors.read(8))
        numbers = struct.unpack(f"<{2 * ndim + 1}q", tensors.read(8 * (2 * ndim + 1)))
        held[str(key)] = Tensor(found[str(storage)][0], numbers[-1], numbers[:ndim], numbers[ndim:-1])

    loaded = pickles.load(body, len(content), lambda key: key[0] if isinstance(key, tuple) else held[str(key)])
    return _chosen(loaded, lambda storage: found[storage.key][1], path, take)


def _check_order(little: bool, path: Path) -> None:
    if not little:
        raise UserError(f"{path}: written on a big-endian machine; save it again on a little-endian one")


def _check_size(total: int, path: Path, what: str) -> None:
    if total > ROOM + TIMES[what] * path.stat().st_size:
        raise UserError(
            f"{path}: would unpack to {total} bytes, more than {TIMES[what]} times its size: no checkpoint does; fetch "
            "it again, or save it uncompressed"
        )


def _arrays(nodes: dict[str, Tensor | Array | Refused], numbers: Numbers, path: Path) -> dict[str, np.ndarray]:
    """Arrays of their own; `numbers` fetches a storage."""
    for name, node in nodes.items():
        made_by = node.storage.dtype if isinstance(node, Tensor) else getattr(node, "made_by", None)
        if isinstance(node, Refused) or (isinstance(node, Tensor) and made_by not in RAW):
            raise UserError(f"{path}: {name} is of {made_by}; save plain weights, those before they were quantised")
    tensors = [node for node in nodes.values() if isinstance(node, Tensor)]
    total = sum(abs(math.prod(tensor.shape)) * RAW[tensor.storage.dtype].itemsize for tensor in tensors)
    _check_size(total, path, "a pickle")
    storages: dict[str, np.ndarray] = {}
    arrays = {}
    for name, node in nodes.items():
        if isinstance(node, Tensor):
            key = node.storage.key
            if key not in storages:
                storages[key] = numbers(node.storage)
            arrays[name] = _copy(node, storages[key])
        else:
            arrays[name] = _from_numpy(node, name, path)
    return arrays


def _copy(tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    """The tensor's elements; ValueError where it reaches outside its storage (as_strided would read other memory)."""
    shape, stride, size = tensor.shape, tensor.stride, math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if min((tensor.offset, *shape, *stride), default=0) < 0 or (size and last >= len(numbers)) or size > len(numbers):
        raise ValueError(f"a tensor of shape {shape} reaches outside its storage of {len(numbers)} elements")
    if not size:
        return np.zeros(shape, numbers.dtype)
    steps = [step * numbers.itemsize for step in stride]
    copied = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], shape, steps).copy()
    return _native(copied, tensor.storage.dtype)


def _from_numpy(node: Array, name: str, path: Path) -> np.ndarray:
    """A pickled NumPy array."""
    raw = node.raw.args[0] if isinstance(node.raw, Thing) else node.raw  # bytes as text: Python 3's protocol 2,
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # and Python 2's
    order = node.dtype.state[1] if node.dtype.state else "|"
    return _plain(raw, order + node.dtype.args[0], node.shape, node.fortran, name, path)


def _plain(raw: bytes, code: str, shape: tuple[int, ...], fortran: bool, name: str, path: Path) -> np.ndarray:
    """The array that these bytes are."""
    dtype = np.dtype(code) if re.fullmatch(r"[<>|=]?[biuf]\d", code) else None
    if dtype is None or dtype.name not in STORAGES.values():
        raise UserError(f"{path}: {name} is of {code}, not of real numbers that weights have; leave it out")
    numbers = np.frombuffer(raw, dtype)
    if min(shape, default=0) < 0 or math.prod(shape) != numbers.size:
        raise ValueError(f"an array of shape {shape} with {numbers.size} numbers")
    return np.array(numbers.reshape(shape, order="F" if fortran else "C"), dtype.newbyteorder("="), order="C")


def _npz(archive: zipfile.ZipFile, path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        if name == member:
            raise UserError(f"{path}: holds {member!r:.80}, which is no array; give a file that numpy.savez wrote")
        stream = io.BytesIO(archive.read(member))
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        arrays[name] = _plain(stream.read(), dtype.str, shape, fortran, name, path)
    return arrays


def _safetensors(path: Path, take: str | None) -> Weights:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    entries = dict(safetensors.deserialize(path.read_bytes()))
    if any(name.startswith("average/") for name in entries):
        raise UserError(
            f"{path}: is the state of a training, to go on with; its weights are in weights.safetensors beside it"
        )
    arrays = {}
    for name, entry in entries.items():
        if entry["dtype"] not in SAFE:
            raise UserError(
                f"{path}: {name} is of {entry['dtype']}; save plain weights, those before they were quantised"
            )
        dtype = SAFE[entry["dtype"]]
        arrays[name] = _native(np.frombuffer(entry["data"], RAW[dtype]).reshape(entry["shape"]), dtype)
    names = json.loads(metadata.get(METADATA, "[]"))
    return replace(_published(arrays, path, take), classes=tuple(map(str, names)))


def _native(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """In this machine's order; bfloat16 as float32, whose upper half it is."""
    if dtype == "bfloat16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


# ---------------------------------------------------------------------------------------------------- formats, out


def _write_jittor(path: Path, arrays: dict[str, np.ndarray], _: tuple[str, ...]) -> None:
    content = pickle.dumps(arrays, 4)
    path.write_bytes(content + hashlib.sha1(content).digest() + JITTOR_END)


def _write_torch(path: Path, arrays: dict[str, np.ndarray], _: tuple[str, ...]) -> None:
    """The zip layout of torch.save; entries are stored, with a fixed date, so that equal weights give equal bytes."""
    files = {"data.pkl": _torch_pickle(arrays), "byteorder": b"little"}
    files |= {f"data/{index}": array.tobytes() for index, array in enumerate(arrays.values())}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {"version": b"3\n"}).items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)


def _torch_pickle(arrays: dict[str, np.ndarray]) -> bytes:
    """What torch.save pickles for an OrderedDict of contiguous CPU tensors, opcode by opcode (protocol 2)."""

    def text(value: str) -> bytes:
        encoded = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded

    def integers(values: tuple[int, ...]) -> bytes:
        return pickle.MARK + b"".join(pickle.BININT + struct.pack("<i", value) for value in values) + pickle.TUPLE

    storages = {dtype: storage for storage, dtype in STORAGES.items()}
    empty = b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    parts = [pickle.PROTO + b"\x02", empty, pickle.MARK]
    for index, (name, array) in enumerate(arrays.items()):
        stride = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        storage = f"ctorch\n{storages[array.dtype.name]}\n".encode()
        size = pickle.BININT + struct.pack("<i", array.size)
        parts += [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n", pickle.MARK]
        parts += [pickle.MARK, text("storage"), storage, text(str(index)), text("cpu"), size, pickle.TUPLE]
        parts += [pickle.BINPERSID, pickle.BININT + struct.pack("<i", 0), integers(array.shape), integers(stride)]
        parts += [pickle.NEWFALSE, empty, pickle.TUPLE, pickle.REDUCE]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray], classes: tuple[str, ...]) -> None:
    path.write_bytes(safetensors.numpy.save(arrays, {METADATA: json.dumps(classes)} if classes else None))


WRITERS = {
    ".pth": _write_torch,
    ".pkl": _write_jittor,
    ".npz": lambda path, arrays, _: np.savez(path, **arrays),
    ".safetensors": _write_safetensors,
}
