"""PyTorch as its users meet it. Twin of `jittor.py`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as framework


def tensor(array: np.ndarray) -> framework.Tensor:
    """The array with its own type."""
    return framework.tensor(array)


def numpy(value: Any) -> Any:
    """A tensor's array; anything else as it is."""
    return value.detach().numpy() if isinstance(value, framework.Tensor) else value


def gradient(function: Callable, tensors: list[framework.Tensor]) -> framework.Tensor:
    """d sum(function(*tensors)) / d tensors[0], zeros where the sum doesn't depend on it."""
    leaf = tensors[0].requires_grad_()
    (found,) = framework.autograd.grad(function(*tensors).sum(), [leaf], allow_unused=True)
    return framework.zeros_like(leaf) if found is None else found


def sync() -> None:
    """Nothing is pending: PyTorch runs eagerly on the CPU."""
