"""A right candidate that rounds otherwise: the same function, with sums in another order.

Convolutions and linear layers add up their inputs in two parts, drawn from the seed. In exact arithmetic nothing
changes; in float32 and in float64 every output and every gradient is rounded otherwise, as in another framework.
"""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lib.backend import nn, tensor
from notebooks.exam.planting import Change


def otherwise_rounded(seed: int) -> tuple[Change, ...]:
    """Changes that make a candidate round otherwise."""

    def of(axis: int) -> Callable[[Callable], Callable]:
        return lambda original: lambda self, x: _in_parts(original, self, x, axis, seed)

    return Change(nn.Conv2d, "forward", of(1)), Change(nn.Linear, "forward", of(-1))


def _in_parts(original: Callable, layer: nn.Module, x: Any, axis: int, seed: int) -> Any:
    """layer(x) as the sum over two parts of the inputs' features; the bias, which is in both, is taken away once."""
    length = x.shape[axis]
    rng = np.random.default_rng((seed, zlib.crc32(str(tuple(layer.weight.shape)).encode())))
    mask = (rng.random(length) < 0.5).astype(str(x.dtype).rpartition(".")[2])
    mask = mask.reshape([length if i == axis % len(x.shape) else 1 for i in range(len(x.shape))])
    found = original(layer, x * tensor(mask)) + original(layer, x * tensor(1 - mask))
    if layer.bias is None:
        return found
    return found - layer.bias.reshape(*[-1 if i == axis % len(found.shape) else 1 for i in range(len(found.shape))])
