"""A probe: one question that PyTorch and Jittor may answer differently, as code that runs in each of them.

The probes themselves are data and lie beside this. Here is what they are written with, and what asks them of the
framework of this environment; `rosetta` compares what both sides have answered. Only asking imports one.
"""

import ast
import hashlib
import inspect
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from os import PathLike
from types import ModuleType
from typing import Any

import numpy as np

from lib.alignment.verdict import ROUNDING, K
from lib.record import measure

STAGE, MODEL = "rosetta", "all"  # of the records: probes belong to no model
DRAWS = 8  # roundings of the inputs that are tried
ROUNDINGS = {np.float32: ROUNDING, np.float64: 2.0**-53}  # np.finfo warns in Jittor's process, which flushes subnormals
ALIASES = {"jittor": "jt", "torch": "torch", "backend": "B"}  # whom F stands for in code that sides share


@dataclass(frozen=True, kw_only=True)
class Given:
    inputs: tuple[np.ndarray, ...] = ()
    gradient: bool = False  # measured is the gradient of the answer's sum by the first input
    cancels: bool = False  # one rounding of an input is worth more than one of the answer
    precision: type = np.float32  # of the arithmetic

    def ask(
        self,
        question: str,
        advice: str,
        *,
        expected: Callable[..., Any] | None,
        every: Callable[..., Any] | None = None,
        both: Callable[..., Any] | None = None,
        **own: Callable[..., Any],
    ) -> "Probe":
        """The probe. every: code for both frameworks and the backend; both: for the frameworks; own: for one side."""
        sides = {"backend": every, "torch": both or every, "jittor": both or every} | own
        return Probe(question=question, advice=advice, expected=expected, **vars(self), **sides)


@dataclass(frozen=True, kw_only=True)
class Probe(Given):
    """`jittor(jt, *tensors)`, `torch(torch, *tensors)` and `backend(lib.backend, *tensors)` answer the question.

    An answer is a tensor, an array, a number, a text, or a list of numbers or texts. `expected` gives PyTorch's answer
    in float64 from the same inputs, as arrays or numbers of any type; None where no rule defines it, and PyTorch's own
    run is the reference. `backend` is None where the backend has no such name.
    """

    question: str
    advice: str  # the rule for a port, one sentence
    jittor: Callable[..., Any]
    torch: Callable[..., Any]
    backend: Callable[..., Any] | None
    expected: Callable[..., Any] | None
    name: str = ""  # both are its place in notebooks/probes
    topic: str = ""

    def reference(self) -> Any:
        return self.expected(*self.wide())

    def wide(self, rounding: float = 0.0, draw: int = 0) -> list[np.ndarray]:
        """The inputs, floating ones as float64, each value `rounding` up or down by a seeded coin."""
        coin = np.random.default_rng(draw)
        return [
            x.astype(np.float64) * (1 + rounding * coin.choice([-1.0, 1.0], x.shape)) if x.dtype.kind == "f" else x
            for x in self.inputs
        ]

    def tolerance(self) -> float:
        """K roundings of the largest answer; where terms cancel, of what one rounding of every input does to it.

        Text has none. The second part is measured: the expected function on inputs moved by half a unit in their last
        place, DRAWS times.
        """
        exact = np.asarray(self.reference())
        if exact.dtype.kind not in "fiub" or exact.size == 0:
            return 0.0
        rounding = ROUNDINGS[self.precision]
        floor = rounding * np.abs(exact[np.isfinite(exact)], dtype=np.float64).max(initial=0.0)
        if self.cancels:
            moved = (self.expected(*self.wide(rounding, draw)) for draw in range(DRAWS))
            floor += max(np.nanmax(np.abs(answer - exact)) for answer in moved)
        return K * float(floor)

    def code(self, side: str) -> str:
        """What `side` ("jittor", "torch", "backend") runs: a lambda's expression, a function's name, or ""."""
        if getattr(self, side) is None:
            return ""
        written = {word.arg: word.value for word in _table(self.torch.__module__)[0][self.name].keywords}
        found = written.get(side) or (written.get("both") if side != "backend" else None) or written["every"]
        return re.sub(r"\bF\b", ALIASES[side], ast.unparse(found.body if isinstance(found, ast.Lambda) else found))

    def digest(self) -> str:
        """Changes with the probe or with anything else that its module defines."""
        calls, helpers = _table(self.torch.__module__)
        return hashlib.sha256((ast.unparse(calls[self.name]) + helpers).encode()).hexdigest()[:16]


def given(*inputs: np.ndarray, **how: Any) -> Given:
    """What `ask` is asked of; how: as in Given."""
    return Given(inputs=inputs, **how)


ask = Given().ask


@cache
def _table(module: str) -> tuple[dict[str, ast.Call], str]:
    """(calls of `ask` by name, everything else) of a topic's source."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    table = next(node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets) == "PROBES")
    calls = {ast.literal_eval(key): call for key, call in zip(table.value.keys, table.value.values)}
    return calls, "".join(ast.unparse(node) for node in tree.body if node is not table)


# ---------------------------------------------------------------------------------------------- what probes are made of
def attempt(call: Callable[[], Any]) -> Any:
    """The call's value, or the text "raises": for questions about raising itself."""
    try:
        return call()
    except Exception:
        return "raises"


def dtype(value: Any) -> str:
    """A tensor's type under NumPy's name."""
    return str(value.dtype).removeprefix("torch.")


def f32(*values: Any) -> np.ndarray:
    """A float32 array of numbers or rows."""
    return np.array(values, np.float32)


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """Normal float32 numbers, the same for a shape every time."""
    return (mean + std * np.random.default_rng(shape).standard_normal(shape)).astype(np.float32)


def gradient(framework: ModuleType, value: Any, tensor: Any) -> Any:
    """d sum(value) / d tensor, asked as the framework or the backend is asked; zeros where there is no dependence."""
    if hasattr(framework, "autograd"):
        (found,) = framework.autograd.grad(framework.sum(value), [tensor], allow_unused=True)
        return framework.zeros_like(tensor) if found is None else found
    return framework.grad(framework.sum(value), [tensor])[0]


# ------------------------------------------------------------------------------------------------ asking the framework
def run(probes: Iterable[Probe], folder: str | PathLike) -> dict[str, Any]:
    """Answers of this side by probe, written as its record "rosetta" under `folder` and returned; nothing is judged."""
    from lib import backend

    with measure(STAGE, MODEL, folder, side=backend) as m:
        m.fields["probes"] = {probe.name: {"digest": probe.digest(), **answers(probe)} for probe in probes}
    return m.fields["probes"]


def answers(probe: Probe) -> dict[str, Any]:
    """What the framework and the backend answer here, and the seconds it took."""
    from lib import backend  # first: it imports Jittor with the process kept as it was

    native, started = import_module(backend.NAME), time.perf_counter()
    asked = {"native": (getattr(probe, backend.NAME), native), "backend": (probe.backend, backend)}
    found = {kind: answer(partial(_asked, probe, *whom)) if whom[0] else None for kind, whom in asked.items()}
    return {**found, "seconds": round(time.perf_counter() - started, 3)}


def _asked(probe: Probe, code: Callable[..., Any], framework: ModuleType) -> Any:
    """The answer as an array, a number, a text or a list; the work is done: no other probe's is fused with it."""
    from lib import backend

    tensors = [backend.tensor(x) for x in probe.inputs]
    if probe.gradient:
        tensors[0].requires_grad = True
    found = code(framework, *tensors)
    if probe.gradient:
        found = gradient(framework, found, tensors[0])
    backend.sync()
    return backend.numpy(found) if hasattr(found, "detach") else found


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
