"""A probe: one question that PyTorch and Jittor may answer differently, as code that runs in each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.alignment.verdict import ROUNDING, K

DRAWS = 8  # roundings of the inputs that are tried
ROUNDINGS = {np.float32: ROUNDING, np.float64: 2.0**-53}  # np.finfo warns in Jittor's process, which flushes subnormals


@dataclass(frozen=True, kw_only=True)
class Probe:
    """`jittor(jt, *tensors)`, `torch(torch, *tensors)` and `backend(lib.backend, *tensors)` answer the question.

    An answer is a tensor, an array, a number, a text, or a list of numbers or texts. `expected` gives PyTorch's answer
    in float64 from the same inputs, as arrays or numbers of any type; None where no rule defines it, and PyTorch's own
    run is the reference. `backend` is None where the backend has no such name.
    """

    topic: str
    name: str
    question: str
    advice: str  # the rule for a port, one sentence
    jittor: Callable[..., Any]
    torch: Callable[..., Any]
    backend: Callable[..., Any] | None = None
    expected: Callable[..., Any] | None
    inputs: tuple[np.ndarray, ...] = ()
    gradient: bool = False  # measured is the gradient of the answer's sum by the first input
    cancels: bool = False  # one rounding of an input is worth more than one of the answer
    precision: type = np.float32  # of the arithmetic

    def reference(self) -> Any:
        """The expected answer."""
        return self.expected(*self.wide())

    def wide(self) -> list[np.ndarray]:
        """The inputs, floating ones as float64."""
        return [x.astype(np.float64) if x.dtype.kind == "f" else x for x in self.inputs]

    def tolerance(self) -> float:
        """K roundings of the largest answer; where terms cancel, of what one rounding of every input does to the answer.

        Text has none. The second part is measured: the expected function on inputs moved by half a unit in their last
        place, up or down by a seeded coin, DRAWS times.
        """
        exact = np.asarray(self.reference())
        if exact.dtype.kind not in "fiub" or exact.size == 0:
            return 0.0
        rounding = ROUNDINGS[self.precision]
        finite = np.abs(exact[np.isfinite(exact)], dtype=np.float64)
        floor = rounding * finite.max(initial=0.0)
        if self.cancels:
            floor += max(np.nanmax(np.abs(self.expected(*self.moved(rounding, draw)) - exact)) for draw in range(DRAWS))
        return K * float(floor)

    def moved(self, rounding: float, draw: int) -> list[np.ndarray]:
        """The wide inputs with each floating value one rounding up or down."""
        coin = np.random.default_rng(draw)
        return [
            x * (1 + rounding * coin.choice([-1.0, 1.0], x.shape)) if x.dtype.kind == "f" else x for x in self.wide()
        ]


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
