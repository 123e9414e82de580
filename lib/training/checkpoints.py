"""Weight files as {name: array}: PyTorch (zip and pre-1.6), Jittor, npz, safetensors. No framework is needed.

Pickles are read by a machine that knows containers, tensors and NumPy arrays and nothing else: a global outside that
list ends the reading before anything is called. Layouts follow torch/serialization.py (2.13) and jittor/__init__.py
(1.3.11). Deliberate differences:
* no code is ever run;
* bfloat16 becomes float32 (NumPy has no bfloat16; no value changes);
* optimiser states and callbacks of a Lightning checkpoint are not looked at.
"""

import hashlib
import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from lib.errors import UserError
from lib.record import atomic

LIMIT = 4 * 2**30  # bytes one file may unpack to: ten times the largest published checkpoint
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
RAW = {dtype: np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<") for dtype in STORAGES.values()}
PREFIXES = ("module.", "model.")  # DataParallel's and Lightning's


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The weights in a file, under published names.

    A Lightning checkpoint gives its `state_dict`, in which `avg_model.*` (the averaged weights, which the published
    code evaluates) override `model.*`; prefixes common to all names are dropped. UserError for an unknown suffix, a
    damaged file, one that unpacks to more than LIMIT, or a pickle that wants anything but weights.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UserError(f"{path}: unknown kind of weights file; known are {' '.join(READERS)}")
    try:
        entries = READERS[path.suffix](path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error}); check the path") from error
    except Exception as error:  # the bytes are a stranger's: whatever they provoke means a damaged file
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); fetch or write it again") from error
    return _published(entries)


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write weights in the format of the suffix, complete or not at all.

    `.pth` loads with torch.load(weights_only=True), `.pkl` with jittor.load.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise UserError(f"{path}: can't write this kind of weights file; known are {' '.join(WRITERS)}")
    with atomic(path) as temporary:
        WRITERS[path.suffix](temporary, {name: np.asarray(array, order="C") for name, array in arrays.items()})


class _Storage(NamedTuple):
    """A run of numbers elsewhere in the file."""

    dtype: str
    key: str
    count: int


class _Tensor(NamedTuple):
    """A view of a storage, unchecked; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Dtype:
    """Stands for numpy.dtype while a pickle is read."""

    def __init__(self, code: str):
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"arrays of {code} are not weights")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray while a pickle is read: `array` appears when the pickle fills it in."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


class _Mapping(dict):
    """Stands for OrderedDict, whose attributes (a state_dict has `_metadata`) are not kept."""

    def __setstate__(self, state: Any) -> None:
        del state


class _Weights(pickle._Unpickler):
    """A pickle machine for weights only.

    The Python machine, not the C one: that one allocates what a hostile length field asks for before it reads. Globals
    become bound methods, because a pickle can set attributes on a class or a function but not on those.
    """

    def __init__(self, stream: io.BytesIO, path: Path):
        super().__init__(stream, encoding="utf-8")
        self._path = path
        self.storages: dict[str, str] = {}  # key -> dtype of every storage met
        allowed = {
            "collections.OrderedDict": self._mapping,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._content,
            "jittor.jittor_core.Var": self._content,
            "torch.Size": self._size,
            "numpy.ndarray": "ndarray",
            "numpy.dtype": self._dtype,
            "_codecs.encode": self._bytes,
        }
        for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
            allowed |= {f"{core}._reconstruct": self._array, f"{core}.scalar": self._scalar}
        self._allowed = allowed | {f"torch.{storage}": dtype for storage, dtype in STORAGES.items()}

    def find_class(self, module: str, name: str) -> Any:
        """What may be named in a pickle of weights; UserError for the rest."""
        if f"{module}.{name}" not in self._allowed:
            raise UserError(
                f"{self._path}: its pickle asks for {module}.{name}, which is not part of weights; nothing was run;"
                " save the state_dict alone and convert that"
            )
        return self._allowed[f"{module}.{name}"]

    def persistent_load(self, saved_id: tuple) -> _Storage:
        """A storage from ("storage", type, key, location, count) or the old format's six fields."""
        kind, dtype, key, _, count, *view = saved_id
        if kind != "storage" or dtype not in RAW or any(part is not None for part in view):
            raise ValueError("not a plain tensor storage")
        self.storages[key] = dtype
        return _Storage(dtype, key, count)

    def _mapping(self, items=()):
        return _Mapping(items)

    def _tensor(self, storage, offset, shape, stride, *_):
        return _Tensor(storage, offset, shape, stride)

    def _content(self, data, *_):  # what a wrapper holds
        return data

    def _size(self, items):
        return tuple(items)

    def _dtype(self, code, *_):
        return _Dtype(code)

    def _bytes(self, text, _):  # how Python 3 writes bytes in old protocols, always latin1
        return text.encode("latin1")

    def _array(self, *_):
        return _Array()

    def _scalar(self, dtype, raw):
        return np.frombuffer(raw, dtype.dtype)[0].item()


def _pickled(path: Path) -> dict[str, np.ndarray]:
    """Any of the formats that hide behind .pth, .pt, .ckpt and .pkl, told apart by their bytes."""
    if zipfile.is_zipfile(path):
        return _torch_zip(path)
    content = path.read_bytes()
    if content.endswith(JITTOR_END):
        content, digest = content[:-28], content[-28:-8]
        if hashlib.sha1(content).digest() != digest:
            raise UserError(f"{path}: its checksum does not match its content; fetch or write it again")
    stream = io.BytesIO(content)
    loaded = _Weights(stream, path).load()
    if loaded == LEGACY_MAGIC:
        return _torch_legacy(stream, path)
    return _arrays(loaded, {}.__getitem__, path)


def _torch_zip(path: Path) -> dict[str, np.ndarray]:
    with _opened(path) as archive:
        (pickle_name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = pickle_name.removesuffix("data.pkl")
        order = f"{folder}byteorder"
        _check_order(order not in archive.namelist() or archive.read(order) == b"little", path)
        loaded = _Weights(io.BytesIO(archive.read(pickle_name)), path).load()

        def numbers(storage: _Storage) -> np.ndarray:
            return np.frombuffer(archive.read(f"{folder}data/{storage.key}"), RAW[storage.dtype], storage.count)

        return _arrays(loaded, numbers, path)


def _torch_legacy(stream: io.BytesIO, path: Path) -> dict[str, np.ndarray]:
    """The format before PyTorch 1.6; `stream` stands behind the magic number.

    Pickles of protocol version, machine facts, content and storage keys, then per key an int64 count and the numbers.
    """
    _Weights(stream, path).load()
    _check_order(_Weights(stream, path).load()["little_endian"], path)
    content = _Weights(stream, path)
    loaded = content.load()
    found = {}
    for key in _Weights(stream, path).load():
        (count,) = struct.unpack("<q", stream.read(8))
        dtype = RAW[content.storages[key]]
        found[key] = np.frombuffer(stream.read(count * dtype.itemsize), dtype, count)
    return _arrays(loaded, lambda storage: found[storage.key], path)


def _check_order(little: bool, path: Path) -> None:
    if not little:
        raise UserError(f"{path}: written on a big-endian machine; save it again on a little-endian one")


def _state(loaded: Any, path: Path) -> dict[str, Any]:
    """The part of a checkpoint that holds the weights."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{path}: holds no named weights; save a state_dict")
    return loaded


def _arrays(loaded: Any, numbers: Callable[[_Storage], np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The weights of a checkpoint as arrays of their own; `numbers` fetches a storage."""
    state = _state(loaded, path)
    for name, entry in state.items():
        filled = isinstance(entry, _Tensor) or (isinstance(entry, _Array) and entry.array is not None)
        if not (filled and isinstance(name, str)):
            kind = type(entry).__name__.strip("_")
            raise UserError(f"{path}: {name!r} is a {kind}, not a named array; save the state_dict alone")
    tensors = [entry for entry in state.values() if isinstance(entry, _Tensor)]
    total = sum(abs(math.prod(tensor.shape)) * RAW[tensor.storage.dtype].itemsize for tensor in tensors)
    _check_size(total, path, "its tensors would take")
    storages: dict[str, np.ndarray] = {}
    arrays = {}
    for name, entry in state.items():
        if isinstance(entry, _Tensor):
            key = entry.storage.key
            if key not in storages:
                storages[key] = numbers(entry.storage)
            arrays[name] = _copy(entry, storages[key])
        else:
            arrays[name] = np.array(entry.array, dtype=entry.array.dtype.newbyteorder("="), order="C")
    return arrays


def _copy(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """The tensor's elements; ValueError where it reaches outside its storage (as_strided would read other memory)."""
    shape, stride, size = tensor.shape, tensor.stride, math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if min((tensor.offset, *shape, *stride), default=0) < 0 or (size and last >= len(numbers)) or size > len(numbers):
        raise ValueError(f"a tensor of shape {shape} reaches outside its storage of {len(numbers)} elements")
    if not size:
        return np.zeros(shape, numbers.dtype)
    steps = [step * numbers.itemsize for step in stride]
    copied = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], shape, steps).copy()
    if tensor.storage.dtype == "bfloat16":  # the upper half of a float32
        return (copied.astype(np.uint32) << 16).view(np.float32)
    return copied.astype(copied.dtype.newbyteorder("="))


def _npz(path: Path) -> dict[str, np.ndarray]:
    with _opened(path), np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _opened(path: Path) -> zipfile.ZipFile:
    """An archive; UserError where it declares more than LIMIT: zipfile reads no more of an entry than it declares."""
    archive = zipfile.ZipFile(path)
    _check_size(sum(entry.file_size for entry in archive.infolist()), path, "unpacks to")
    return archive


def _check_size(total: int, path: Path, what: str) -> None:
    if total > LIMIT:
        raise UserError(f"{path}: {what} more than {LIMIT >> 30} GiB; this is no detector's checkpoint")


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    arrays = safetensors.numpy.load(path.read_bytes())
    if any(name.startswith("average/") for name in arrays):
        raise UserError(
            f"{path}: is the state of a training, to go on with; its weights are in weights.safetensors beside it"
        )
    return arrays


def _published(entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names without the wrappers' prefixes, averaged weights instead of the last step's."""
    last = {name: array for name, array in entries.items() if not name.startswith("avg_model.")}
    averaged = {name.removeprefix("avg_model."): entries[name] for name in entries if name not in last}
    while prefix := next((p for p in PREFIXES if last and all(name.startswith(p) for name in last)), None):
        last = {name.removeprefix(prefix): array for name, array in last.items()}
    return last | averaged


def _write_jittor(path: Path, arrays: dict[str, np.ndarray]) -> None:
    content = pickle.dumps(arrays, 4)
    path.write_bytes(content + hashlib.sha1(content).digest() + JITTOR_END)


def _write_torch(path: Path, arrays: dict[str, np.ndarray]) -> None:
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


READERS = dict.fromkeys((".pth", ".pt", ".ckpt", ".pkl"), _pickled) | {".npz": _npz, ".safetensors": _safetensors}
WRITERS = {
    ".pth": _write_torch,
    ".pkl": _write_jittor,
    ".npz": lambda path, arrays: np.savez(path, **arrays),
    ".safetensors": lambda path, arrays: path.write_bytes(safetensors.numpy.save(arrays)),
}
