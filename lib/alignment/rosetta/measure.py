"""Run the probes on the framework of this environment and record what it answers; nothing is judged here."""

import time
import warnings
from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import numpy as np

from lib import backend
from lib.record import measure

from . import native
from .listing import Listing
from .probe import Probe
from .verdict import MODEL, STAGE


def run(probes: Iterable[Probe], folder: str | PathLike) -> dict[str, Any]:
    """Answers of this side by probe, written as its record "rosetta" under `folder` and returned."""
    listing = Listing()
    with measure(STAGE, MODEL, folder, side=backend) as m:
        m.fields["probes"] = {probe.name: {"digest": listing.digest(probe), **answers(probe)} for probe in probes}
    return m.fields["probes"]


def answers(probe: Probe) -> dict[str, Any]:
    """What the framework and the backend answer here, and the seconds it took."""
    started = time.perf_counter()
    code = getattr(probe, backend.NAME)
    found = {
        "native": answer(lambda: by_framework(probe, code)),
        "backend": answer(lambda: by_backend(probe)) if probe.backend else None,
    }
    return {**found, "seconds": round(time.perf_counter() - started, 3)}


def by_framework(probe: Probe, code: Callable) -> Any:
    """The native answer, as arrays, numbers or texts."""
    tensors = [native.tensor(x) for x in probe.inputs]
    function = lambda *values: code(native.framework, *values)  # noqa: E731
    found = native.numpy(native.gradient(function, tensors) if probe.gradient else function(*tensors))
    native.sync()
    return found


def by_backend(probe: Probe) -> Any:
    """The backend's answer."""
    tensors = [backend.tensor(x) for x in probe.inputs]
    if probe.gradient:
        tensors[0] = backend.nn.Parameter(tensors[0])
        found = backend.grad(backend.sum(probe.backend(backend, *tensors)), tensors[:1])[0]
    else:
        found = probe.backend(backend, *tensors)
    backend.sync()
    plain = isinstance(found, str | bool | int | float | list | np.ndarray | np.generic)
    return found if plain else backend.numpy(found)


def answer(call: Callable[[], Any]) -> dict[str, Any]:
    """A recorded answer: kind "numbers" with shape and type, "text", or "raised" with the first line of the message.

    Whatever an installed version raises belongs into its record, and the other probes go on; its warnings about what
    a probe asks for on purpose don't.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            found = call()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return {"kind": "raised", "values": [f"{type(error).__name__}: {lines[0][:200]}"]}
    array = np.asarray(found)
    if array.dtype.kind == "U":
        return {"kind": "text", "values": [str(text) for text in array.ravel()]}
    if array.dtype.kind not in "fiub":
        return {"kind": "raised", "values": [f"TypeError: an answer of type {type(found).__name__} can't be recorded"]}
    return {"kind": "numbers", "shape": list(array.shape), "dtype": array.dtype.name, "values": array.ravel().tolist()}
