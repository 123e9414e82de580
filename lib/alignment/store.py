"""Tensors of a whole network on disk, each kept once and in a file of its own: nothing holds them all in memory.

`<folder>/<digest>.npy` is the tensor of that SHA-256 of its type, shape and bytes, `<folder>/index.json`, written last,
what else the writer wants to say. A folder without index is unfinished.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import UserError
from lib.record import atomic, plain

INDEX = "index.json"


def digest(array: np.ndarray) -> str:
    """SHA-256 of the array's type, shape and bytes in C order."""
    seen = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    seen.update(np.ascontiguousarray(array))
    return seen.hexdigest()


class Writer:
    """Takes tensors in; `content` is what the index holds."""

    def __init__(self, folder: Path):
        self._folder, self._kept = folder, set()
        self.content: dict[str, Any] = {}
        self.bytes = 0  # of distinct tensors

    def put(self, array: np.ndarray) -> str:
        """Keep the array; its digest."""
        name = digest(array)
        if name not in self._kept:
            self._kept.add(name)
            self.bytes += array.nbytes
            try:
                np.save(_file(self._folder, name), np.asarray(array, order="C"), allow_pickle=False)
            except OSError as error:
                why = error.strerror or error
                raise UserError(f"{self._folder}: can't be written ({why}); make room for it") from error
        return name


@contextmanager
def writing(folder: str | Path) -> Iterator[Writer]:
    """A Writer whose folder is readable after a clean exit; what an earlier one left there goes first."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: can't be made ({error.strerror}); give another folder") from error
    (folder / INDEX).unlink(missing_ok=True)
    for stale in folder.glob("*.npy"):
        stale.unlink()
    writer = Writer(folder)
    yield writer
    with atomic(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(plain(writer.content), allow_nan=False))


class Reader:
    """Gives tensors by digest; `content` as the writer left it. UserError where there is none."""

    def __init__(self, folder: Path):
        self._folder = folder
        try:
            self.content: Mapping[str, Any] = json.loads((folder / INDEX).read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder / INDEX}: can't be read ({error}); capture the reference's layers first"
            ) from error

    def get(self, name: str) -> np.ndarray:
        """A fresh array by its digest. UserError where the folder does not hold it."""
        try:
            return np.load(_file(self._folder, name), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{self._folder}: tensor {name[:12]} can't be read ({error}); capture the layers again"
            ) from error


@contextmanager
def reading(folder: str | Path) -> Iterator[Reader]:
    yield Reader(Path(folder))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"
