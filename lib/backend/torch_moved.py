"""Float32 runs of PyTorch in which the result of every operation is moved by a few roundings: what rounding may do.

Only PyTorch is moved, since it is the reference: `jittor.py` has no twin of this.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PERIOD = 65521  # normal numbers, drawn once; a prime, so that rows and channels of larger tensors take others

# They make no number: what they give was one before.
COPIES = (
    "_to_copy _unsafe_index abs amax amin arange cat clamp clamp_max clamp_min clone constant_pad_nd "
    "copy_ detach empty empty_like empty_strided fill_ flip full full_like gather index index_put "
    "index_put_ index_select lift_fresh masked_fill masked_fill_ max max_pool2d_with_indices maximum min "
    "minimum neg new_empty new_empty_strided new_zeros normal_ ones ones_like relu repeat resize_ roll "
    "scalar_tensor scatter scatter_ select_backward set_ sign slice_backward sort stack "
    "threshold_backward topk upsample_nearest2d where zero_ zeros zeros_like"
)
EXACT = {f"aten::{name}" for name in COPIES.split()}
# Nearly all of the time: what several runs of one draw have in common is computed once.
PRODUCTS = {f"aten::{name}" for name in ("addmm", "baddbmm", "bmm", "convolution", "convolution_backward", "mm")}


@cache
def _noise() -> Tensor:
    return torch.empty(PERIOD).normal_(generator=torch.Generator().manual_seed(0)).repeat(2)


class _Moving(TorchDispatchMode):
    """Multiplies float32 results by 1 + scale (n + c): n normal for each element, c for the operation."""

    def __init__(self, scale: float, seed: int, products: dict | None):
        super().__init__()
        self._scale, self._random, self._place, self._products = scale, random.Random(seed), 0, products

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to skip what is not compiled anyway, PyTorch would import its compiler, for seconds."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), named: dict | None = None) -> Any:
        name = function._schema.name
        if name in EXACT:
            return function(*arguments, **(named or {}))
        if name in PRODUCTS and self._products is not None:
            return self._product(function, arguments)
        return self._computed(function, arguments, named or {})

    def _product(self, function: Any, arguments: tuple) -> Any:
        """The moved result, which is known where an earlier run of this draw had the same numbers at this place."""
        given, place = (function, *arguments), self._place
        kept, found = self._products.get(place, ((), None))
        if len(kept) != len(given) or not all(map(_same, kept, given)):
            found = self._computed(function, arguments, {})
            self._products[place] = given, _copied(found)
            return found
        for _ in filter(_single, found if isinstance(found, tuple) else (found,)):
            self._drawn()
        return _copied(found)

    def _computed(self, function: Any, arguments: tuple, named: dict) -> Any:
        found, name = function(*arguments, **named), function._schema.name
        if name in NORMS and _single(arguments[0]):
            _within(lambda tensor: self._move(tensor.clone()), *NORMS[name], found, arguments)
        for tensor in filter(_single, _made(function, arguments, found)):
            self._move(tensor)
        return found

    def _drawn(self) -> tuple[int, float]:
        """Where an operation's stretch of the noise starts, and what moves all of its result."""
        self._place += 1
        return self._random.randrange(PERIOD), self._random.gauss(0.0, 1.0)

    def _move(self, tensor: Tensor) -> Tensor:
        count, (start, common) = tensor.numel(), self._drawn()
        noise = _noise().narrow(0, start, min(count, PERIOD))
        tensor.add_(tensor, alpha=self._scale * common)
        if count <= PERIOD:
            return tensor.addcmul_(tensor, noise.view(tensor.shape), value=self._scale)
        if not tensor.is_contiguous():
            noise = noise.repeat(count // PERIOD + 1)[:count].view(tensor.shape)
            return tensor.addcmul_(tensor, noise, value=self._scale)
        rows, rest = tensor.view(-1).split((count - count % PERIOD, count % PERIOD))
        rows = rows.view(-1, PERIOD)
        rows.addcmul_(rows, noise, value=self._scale)
        rest.addcmul_(rest, noise[: len(rest)], value=self._scale)
        return tensor


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    return value.clone() if isinstance(value, Tensor) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        alike = isinstance(other, Tensor) and (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and torch.equal(one, other)
    return type(one) is type(other) and one == other


def _single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.numel() > 0


# -------------------------------------------------------------------------- what rounds within an operation
# A norm computes a few numbers of each channel or row first. They round once, and carry all that is computed from them
# along: what is a mean over the channel again, as the next norm's statistics or the gradient of a bias, has no other
# noise of that size. Results are affine in x then, so that moving these numbers adds A x + B to them.
PLACES = {  # among a norm's arguments: x, weight, bias; among its gradient's: x, weight, mean, scale
    "batch": ((0, 1, 2), (1, 2, 5, 6)),
    "layer": ((0, 2, 3), (1, 5, 3, 4)),
    "group": ((0, 1, 2), (1, 4, 2, 3)),
}
NORMS = {f"aten::native_{kind}_norm{end}": (kind, bool(end)) for kind in PLACES for end in ("", "_backward")}


def _within(moved: Callable[[Tensor], Tensor], kind: str, backward: bool, found: tuple, arguments: tuple) -> None:
    """Move what a norm, or its gradient, has computed on the way to found.

    y = (x - mean) scale weight + bias. dx = (own - shift - (x - mean) scale slope) scale, of own = dy weight, with the
    means shift of own and slope of own times the normalised x.
    """
    x, weight, *others = (arguments[place] for place in PLACES[kind][backward])
    evaluating = kind == "batch" and not arguments[7 if backward else 5]
    if found[0] is None or (backward and evaluating):
        return
    view, axes = _seen(kind, x, arguments)
    weight = torch.ones(()) if weight is None else view(weight)
    if not backward:
        mean, scale = (arguments[3], (arguments[4] + arguments[7]).rsqrt()) if evaluating else found[1:]
        mean, scale = view(mean), view(scale)
        bias = torch.zeros(()) if others[0] is None else view(others[0])
        factor, other = scale * weight, moved(moved(scale) * weight)
        change = moved(bias - moved(mean) * other) - (bias - mean * factor)
        view(found[0]).addcmul_(view(x), other - factor).add_(change)
        return
    mean, scale = map(view, others)
    if kind == "batch" and found[1] is not None:
        shift, slope = (view(one) * weight * (mean.numel() / x.numel()) for one in (found[2], found[1]))
    else:
        own = view(arguments[0]) * weight
        shift = own.mean(axes, keepdim=True)
        slope = ((own * view(x)).mean(axes, keepdim=True) - mean * shift) * scale
    change = (slope - moved(slope)) * scale * scale
    view(found[0]).addcmul_(view(x), change).add_((shift - moved(shift)) * scale - change * mean)


def _seen(kind: str, x: Tensor, arguments: tuple) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...]]:
    """How maps (n, c, …), numbers of a channel (c,) and of a group (n, groups) are seen to broadcast, and over which
    axes a norm's means are taken."""
    if kind == "layer":
        length = next(len(one) for one in arguments if isinstance(one, list | tuple))
        return lambda one: one, tuple(range(x.dim() - length, x.dim()))
    groups = next(one for one in arguments[::-1] if type(one) is int) if kind == "group" else 1

    def view(one: Tensor) -> Tensor:
        if kind == "group" and one.dim() == 2:
            return one[:, :, None, None]
        n, channels = (1, *one.shape) if one.dim() == 1 else one.shape[:2]
        return one.reshape(n, groups, channels // groups, -1)

    return view, (2, 3) if kind == "group" else (0, 1, 3)


@cache
def _makes(function: Any) -> list[bool]:
    """Of each result of an operation, whether it is computed: no view."""
    return [kind.alias_info is None or kind.alias_info.is_write for kind in function._schema.returns]


def _made(function: Any, arguments: tuple, found: Any) -> list[Any]:
    """What the operation has computed, and a norm's running statistics."""
    parts, makes = found if isinstance(found, tuple | list) else (found,), _makes(function)
    made = [part for part, own in zip(parts, makes * len(parts) if len(makes) == 1 else makes) if own]
    if function._schema.name == "aten::native_batch_norm" and arguments[5]:
        made += arguments[3:5]  # which the schema does not call written
    return made


@contextmanager
def moved(roundings: float, seed: int, products: dict | None = None) -> Iterator[None]:
    """Every float32 result of an operation, forward and backward, is moved by about so many roundings more.

    products: of earlier runs of these roundings and this seed, whose operations began alike.
    A run of one seed with the roundings negated moves by the same amounts, the other way, but for what float32 itself
    rounds. What only moves data, or aliases it, does not round and stays.
    """
    with _Moving(roundings * 2.0**-24, seed, products):
        yield
