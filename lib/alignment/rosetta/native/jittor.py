"""Jittor as its users meet it, but for the import, which the backend guards. Twin of `torch.py`."""

from collections.abc import Callable
from typing import Any

import jittor as framework
import numpy as np

from lib import backend  # noqa: F401  imports Jittor with the process kept as it was


def tensor(array: np.ndarray) -> framework.Var:
    """The array with its own type; probes of what happens without asking for the type build their own."""
    return framework.array(array, dtype=str(array.dtype))


def numpy(value: Any) -> Any:
    """A tensor's array; anything else as it is."""
    return value.numpy() if isinstance(value, framework.Var) else value


def gradient(function: Callable, tensors: list[framework.Var]) -> framework.Var:
    """d sum(function(*tensors)) / d tensors[0]."""
    return framework.grad(function(*tensors).sum(), tensors[0])


def sync() -> None:
    """Finish what is pending, so that no probe's kernels are fused with another's."""
    framework.sync_all(True)
