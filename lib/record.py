"""Records: what a stage measured, with everything needed to believe it and to measure it again.

A record is `<folder>/<model>/<side>/<stage>.json`, its arrays lie beside it in `<stage>.safetensors`, and the JSON
holds the SHA-256 of each array: a half-replaced pair is noticed when it is read. Stages write records and judge
nothing; `lib.alignment` and `lib.report` read them.
"""

import errno
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import psutil
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError

from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SCHEMA_VERSION = 1
# The distributions that shape a number: they decode, resize, score or store.
VERSIONED = ("numpy", "opencv-python-headless", "pillow", "pycocotools", "safetensors", "scipy")
# NumPy's types under safetensors' names, in the order in which a file has them, so that each array is aligned.
TYPES = {
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
RESTARTS = "RECORD_RESTARTS"  # variable that tells a stage, as a JSON list, why it was started again
SOURCES = "RECORD_SOURCES"  # likewise, the list whose digests it records
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ArraysMissing(UserError):
    """A record is here without its arrays, which are large: a report may travel so."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Part):
    """The machine a stage ran on; memory in GiB."""

    cpu: str
    cores: int
    memory_gib: float
    os: str


class Provenance(_Part):
    """Where a record came from; `framework` is "none" where none ran, `git_*` are null outside a checkout."""

    command: str
    framework: str
    versions: dict[str, str]
    seed: int | None
    threads: int
    wait_policy: str = "unknown"  # of OpenMP's threads, see `wait_policy`
    device: str
    machine: Machine
    cache_path: str | None
    git_commit: str | None
    git_dirty: bool | None
    sources: dict[str, str] = {}  # path -> SHA-256, see `sources`
    inputs: dict[str, str]  # path (relative to the project where it lies inside) -> SHA-256
    started: str  # UTC, ISO 8601
    wall_seconds: float
    peak_rss_mib: float  # of the process, since it started
    restarts: tuple[str, ...] = ()  # why the stage was started again: of what its process had died


class ArrayEntry(_Part):
    """One array of the safetensors file; `sha256` is over its little-endian C-order bytes."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


class Record(_Part):
    """What one stage measured for one model on one side.

    `fields` is plain JSON in the order the stage wrote it; NaN and infinities are the strings "NaN", "Infinity" and
    "-Infinity", so that no reader takes a missing number for a good one.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    run_id: str  # "model/side/stage"
    stage: str
    model: str
    side: Literal["published", "torch", "jittor", "none"]
    fields: dict[str, Any]
    arrays: dict[str, ArrayEntry]
    provenance: Provenance

    @model_validator(mode="after")
    def _is_of_one_run(self) -> "Record":
        """Its id says whose it is, and so does the framework that ran."""
        if self.run_id != f"{self.model}/{self.side}/{self.stage}":
            raise ValueError(f"{self.run_id} is not {self.model}/{self.side}/{self.stage}")
        if self.side in ("torch", "jittor") and self.provenance.framework != self.side:
            raise ValueError(f"{self.run_id} was measured by {self.provenance.framework}")
        return self


@dataclass
class Measurement:
    """What a stage fills in while it runs; `path` is set when the record is on disk."""

    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    path: Path | None = None


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); on a clean exit it becomes `path`, otherwise it vanishes.

    A full disk or a folder that can't be written is a UserError; what `path` held before stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(path, error) from error
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in FULL or (error.filename == str(temporary) and error.errno != errno.ENOENT):
            raise unwritten(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def unwritten(path: Path, error: OSError) -> UserError:
    """What to say of a file or folder that a disk refused to write."""
    remedy = "free some disk space and run again" if error.errno in FULL else "choose another folder"
    return UserError(f"{path}: can't be written ({error.strerror}); {remedy}")


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes; UserError if it can't be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); check the path") from error


def plain(value: Any, where: str = "fields") -> Any:
    """`value` as plain JSON: NumPy scalars become Python numbers, NaN and infinities strings, tuples lists.

    TypeError for anything else (arrays belong into the record's arrays).
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where}: {type(value).__name__} is not plain JSON")


def write(folder: str | os.PathLike, record: Record, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write the record and its arrays under `folder` and return the JSON's path; both files appear, or neither.

    `record.arrays` is filled in here from `arrays`.
    """
    path = Path(folder) / record.model / record.side / f"{record.stage}.json"
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    entries = {name: array_entry(array) for name, array in ordered.items()}
    record = record.model_copy(update={"fields": plain(record.fields), "arrays": entries})
    text = record.model_dump_json(indent=1) + "\n"  # json's writer takes ten times as long
    companion = path.with_suffix(".safetensors")
    if not ordered:
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        companion.unlink(missing_ok=True)  # an earlier run of this stage may have had arrays
        return path
    with atomic(path) as temporary, atomic(companion) as temporary_arrays:
        temporary.write_text(text, encoding="utf-8")
        _write_arrays(temporary_arrays, ordered)
    return path


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """The bytes of safetensors.numpy.save, one array after another: a loss record would else be in memory three times.

    Not by save_file: its Rust side hides the operating system's error number.
    """
    header, start = {}, 0
    names = sorted(arrays, key=lambda name: (list(TYPES).index(arrays[name].dtype.name), name))
    for name in names:
        dtype, end = TYPES[arrays[name].dtype.name], start + arrays[name].nbytes
        header[name] = {"dtype": dtype, "shape": arrays[name].shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            stream.write(arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False))


def read(path: str | os.PathLike) -> Record:
    """The record in a JSON file; UserError if it is absent, cut off, of another schema, or not a record."""
    path = Path(path)
    try:
        return Record.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); run the stage that writes it") from error
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise UserError(f"{path}: not a record of schema {SCHEMA_VERSION}: {fault}; run its stage again") from error
    except (ValueError, RecursionError) as error:  # truncated JSON, or bytes that are not UTF-8
        raise UserError(f"{path}: not valid JSON ({error}); run its stage again") from error


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of the record at `path` (its JSON), each checked against the shape, dtype and hash stated there."""
    path = Path(path)
    entries = read(path).arrays
    if not entries:
        return {}
    companion = path.with_suffix(".safetensors")
    if not companion.exists():
        raise ArraysMissing(f"{companion}: the arrays of {path.name} are not here; bring them, or run the stage again")
    try:
        arrays = safetensors.numpy.load(companion.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{companion}: arrays of {path.name} can't be read ({error}); run the stage again") from error
    if differing := sorted(arrays.keys() ^ entries.keys()):
        raise UserError(f"{companion}: its arrays are not those of {path.name} ({differing[0]}); run the stage again")
    for name, array in arrays.items():
        if array_entry(array) != entries[name]:
            raise UserError(f"{companion}: {name} is not what {path.name} was written with; run the stage again")
    return arrays


@contextmanager
def measure(
    stage: str,
    model: str,
    folder: str | os.PathLike,
    inputs: Iterable[str | os.PathLike] = (),
    seed: int | None = None,
    side: ModuleType | None = None,
) -> Iterator[Measurement]:
    """Time a stage and write its record on a clean exit; after an exception earlier records are as they were.

    `side` is `lib.backend` where a framework runs, None for framework-free stages. `inputs` are the files read.
    RECORD_COMMAND in the environment, where set, is the command recorded (a notebook's kernel can't know it), and
    RECORD_RESTARTS the list of `restarts`.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    measurement = Measurement()
    hashes = {_shown(path): sha256(path) for path in inputs}
    yield measurement
    name = side.NAME if side else "none"
    commit, dirty = git_state()
    provenance = Provenance(
        command=os.environ.get("RECORD_COMMAND") or shlex.join(sys.orig_argv),
        framework=name,
        versions=_versions(side),
        seed=seed,
        threads=threads(),
        wait_policy=wait_policy(),
        device=side.device() if side else "cpu",
        machine=machine(),
        cache_path=side.cache_path() if side else None,
        git_commit=commit,
        git_dirty=dirty,
        sources=sources(),
        inputs=hashes,
        started=started.isoformat(timespec="seconds"),
        wall_seconds=round(time.perf_counter() - clock, 3),
        peak_rss_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),  # Linux counts KiB
        restarts=json.loads(os.environ.get(RESTARTS) or "[]"),
    )
    record = Record(
        run_id=f"{model}/{name}/{stage}",
        stage=stage,
        model=model,
        side=name,
        fields=measurement.fields,
        arrays={},
        provenance=provenance,
    )
    measurement.path = write(folder, record, measurement.arrays)


def threads() -> int:
    """How many threads the kernels may use: OMP_NUM_THREADS, else the cores this process may run on."""
    stated = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(stated) if stated.isdigit() else len(os.sched_getaffinity(0))


def wait_policy() -> str:
    """How a thread waits for its team: "passive" sleeps, "active" spins, "default" spins for a few milliseconds."""
    return os.environ.get("OMP_WAIT_POLICY", "default").lower()


def machine() -> Machine:
    """This machine: processor name, cores, memory, operating system."""
    facts = Path("/proc/cpuinfo")
    text = facts.read_text(encoding="utf-8", errors="replace") if facts.exists() else ""
    found = re.search(r"^model name.*?: *(.*?) *$", text, re.MULTILINE)
    return Machine(
        cpu=found[1] if found else platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        os=platform.platform(),
    )


def git_state(root: Path = ROOT) -> tuple[str | None, bool | None]:
    """(commit, whether files differ from it) of the checkout at `root`; (None, None) where there is none."""
    try:
        # An exported copy inside some other checkout must not borrow that one's commit.
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None, None
        return _git(root, "rev-parse", "HEAD"), bool(_git(root, "status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def sources() -> dict[str, str]:
    """SHA-256 of each file of lib that a job says both sides of its stage depend on; none where no job runs. Records of
    two commits are of one source where these are equal."""
    return {name: sha256(ROOT / name) for name in json.loads(os.environ.get(SOURCES) or "[]")}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _versions(side: ModuleType | None) -> dict[str, str]:
    found = {"python": platform.python_version()}
    if side:
        found[side.NAME] = side.VERSION
    for name in VERSIONED:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _shown(path: str | os.PathLike) -> str:
    """`path` relative to the project where it lies inside, so that records of two clones agree."""
    resolved = Path(path).resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else str(path)


def array_entry(array: np.ndarray) -> ArrayEntry:
    """What a record says of one of its arrays."""
    seen = hashlib.sha256(np.ascontiguousarray(array))  # not tobytes: the copy takes longer than the hash
    return ArrayEntry(shape=array.shape, dtype=array.dtype.name, sha256=seen.hexdigest())
