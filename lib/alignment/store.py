"""Tensors of a whole network on disk, each kept once, in files of bounded size: nothing holds them all in memory.

`<folder>/tensors_<i>.safetensors` hold the tensors under the SHA-256 of their type, shape and bytes,
`<folder>/index.json`, written last, says which file has which and what else the writer wants to say. A folder without
index is unfinished.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from lib.errors import UserError
from lib.record import atomic, plain

INDEX = "index.json"
CHUNK = 64 * 2**20  # bytes gathered before a file is written


def digest(array: np.ndarray) -> str:
    """SHA-256 of the array's type, shape and bytes in C order."""
    seen = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    seen.update(np.ascontiguousarray(array))
    return seen.hexdigest()


class Writer:
    """Takes tensors in; `content` is what the index holds beside them."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, int] = {}  # digest -> number of its file
        self._waiting: dict[str, np.ndarray] = {}
        self._size = self._written = 0  # bytes waiting, files written
        self.content: dict[str, Any] = {}
        self.bytes = 0  # of distinct tensors

    def put(self, array: np.ndarray) -> str:
        """Keep the array; its digest."""
        array = np.array(array, order="C")
        name = digest(array)
        if name not in self._files:
            self._files[name] = self._written
            self._waiting[name] = array
            self.bytes += array.nbytes
            self._size += array.nbytes
            if self._size >= CHUNK:
                self._flush()
        return name

    def finish(self) -> None:
        """Write what is waiting, then the index."""
        self._flush()
        with atomic(self._folder / INDEX) as temporary:
            temporary.write_text(json.dumps(plain({"files": self._files, **self.content}), allow_nan=False))

    def _flush(self) -> None:
        if self._waiting:
            with atomic(_file(self._folder, self._written)) as temporary:
                temporary.write_bytes(safetensors.numpy.save(self._waiting))
        self._waiting, self._size, self._written = {}, 0, self._written + 1


@contextmanager
def writing(folder: str | Path) -> Iterator[Writer]:
    """A Writer whose folder is readable after a clean exit; what an earlier one left there goes first."""
    folder = Path(folder)
    (folder / INDEX).unlink(missing_ok=True)
    for stale in folder.glob("tensors_*.safetensors"):
        stale.unlink()
    writer = Writer(folder)
    yield writer
    writer.finish()


class Reader:
    """Gives tensors by digest; `content` as the writer left it."""

    def __init__(self, folder: Path, stack: ExitStack):
        self._folder, self._stack, self._open = folder, stack, {}
        try:
            self.content: Mapping[str, Any] = json.loads((folder / INDEX).read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder / INDEX}: can't be read ({error}); capture the reference's layers first"
            ) from error

    def get(self, name: str) -> np.ndarray:
        """A fresh array by its digest. UserError where the folder does not hold it."""
        try:
            number = self.content["files"][name]
            if number not in self._open:
                file = safetensors.safe_open(_file(self._folder, number), framework="numpy")
                self._open[number] = self._stack.enter_context(file)
            return self._open[number].get_tensor(name)
        except (KeyError, OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{self._folder}: tensor {name[:12]} is not there ({error}); capture the layers again"
            ) from error


@contextmanager
def reading(folder: str | Path) -> Iterator[Reader]:
    """A Reader, whose files are closed afterwards."""
    with ExitStack() as stack:
        yield Reader(Path(folder), stack)


def _file(folder: Path, number: int) -> Path:
    return folder / f"tensors_{number:04}.safetensors"
