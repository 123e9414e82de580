"""Jittor 1.3.11 under PyTorch's names and with PyTorch's meaning: one short function per difference.

This file and `jittor_nn.py` are the porting guide: every docstring states the rule that differs, and
`tests/test_backend.py` shows each against NumPy in float64. Kernels that mend speed or accuracy stand in
`jittor_kernels.py` and `jittor_windows.py`, what the import does to the process in `jittor_import.py`.
Twin of `torch.py`: the same names in the same order. What differs and cannot be mended:
* there are no 0-dimensional tensors: a scalar has shape [1]; `numpy` and `floats` give it back as a scalar;
* subnormal float32 numbers flush to zero in the whole process (the kernels are linked with -Ofast).
"""
import os as _os

import numpy as _np

from . import jittor_kernels as _kernels
from . import jittor_windows as _windows
from .jittor_import import jt as _jt
from jittor import exp, log, matmul, no_grad, ones_like, sqrt, where, zeros_like  # after the guarded import
from . import jittor_nn as nn
from .jittor_optim import SGD, AdamW
from .jittor_profile import profile

__all__ = [
    "NAME", "VERSION", "FLOAT64", "device", "set_device", "set_threads", "cache_path", "tensor", "numpy", "floats", "float64",
    "no_grad", "grad", "sync", "named_state", "load_state", "profile", "peak_device_memory", "nn", "AdamW", "SGD",
    "abs", "amax", "arange", "argmax", "binary_cross_entropy_with_logits", "cat", "chunk", "clamp", "exp",
    "floor_divide", "full", "interpolate", "log", "log_softmax", "matmul", "maximum", "mean", "minimum",
    "mul", "one_hot", "ones", "ones_like", "remainder", "sigmoid", "softmax", "split", "sqrt", "stack", "sum", "topk",
    "where", "zeros", "zeros_like",
]

NAME = "jittor"
VERSION = _jt.__version__
FLOAT64 = "full"  # but for SGD, whose Python scalars stay float32
Tensor = _jt.Var


def device() -> str:
    """The device on which every operator runs: "cpu" or "cuda"."""
    return "cuda" if _jt.flags.use_cuda else "cpu"


def set_device(name: str) -> None:
    """Choose "cpu" or "cuda"; ValueError if there is no such device. Jittor looks for CUDA at import only if
    the variable ALIGN_DEVICE says so."""
    if name not in ("cpu", "cuda") or name == "cuda" and not _jt.has_cuda:
        raise ValueError(f"device {name!r} is not available to Jittor {VERSION} on this machine")
    _jt.flags.use_cuda = int(name == "cuda")


def set_threads(count: int) -> None:
    """Let oneDNN and the kernels use `count` CPU threads; Jittor's own operators always use one."""
    _kernels.set_threads(count)


def cache_path() -> str | None:
    """The folder of the compiled kernels."""
    return _jt.flags.cache_path


def tensor(array: _np.ndarray) -> Tensor:
    """A tensor with the array's dtype and a copy of its values; Jittor alone makes float64 float32, int64 int32."""
    array = _np.asarray(array)
    value = _jt.array(array, dtype=str(array.dtype))
    value.is_scalar = array.ndim == 0
    return value


def numpy(value: Tensor) -> _np.ndarray:
    """The tensor's values, without its graph; what stands for a scalar has shape ()."""
    array = value.numpy()
    return array.reshape(()) if getattr(value, "is_scalar", False) else array


def floats(scalars: list[Tensor]) -> list[float]:
    """The values of one-element tensors, read after one synchronisation."""
    sync()  # one run of the whole pending graph: reading one by one would fuse, and compile, other kernels
    return [s.item() for s in scalars]


def float64(model: nn.Module) -> nn.Module:
    """Make every floating parameter and buffer float64, in place."""
    for _, value in named_state(model):
        if value.dtype == "float32":
            value.assign(value.float64())
    return model


def grad(scalar: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """d scalar / d tensor for each tensor, zeros where the scalar does not depend on it; the graph is kept."""
    return [_scalar(g, getattr(t, "is_scalar", False)) for g, t in zip(_jt.grad(scalar, tensors), tensors)]


def sync() -> None:
    """Return when all work issued so far is done: execution is lazy, an unsynchronised clock measures nothing."""
    _jt.sync_all(True)


def named_state(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer under its published name, in published order."""
    return list(model.named_state())


def load_state(model: nn.Module, values: dict[str, _np.ndarray]) -> None:
    """Overwrite the named entries, dtypes kept. KeyError on an unknown name, ValueError on another shape;
    Jittor's own `load_parameters` logs both and goes on."""
    entries = dict(named_state(model))
    for name, value in values.items():
        if (shape := numpy(entries[name]).shape) != _np.shape(value):
            raise ValueError(f"{name}: shape {_np.shape(value)} given, {shape} expected")
    for name, value in values.items():
        entry = entries[name]
        entry.update(tensor(_np.asarray(value, str(entry.dtype)).reshape(entry.shape)))
    sync()


def peak_device_memory() -> int | None:
    """Largest number of bytes the device allocator held so far; Jittor keeps no such number."""
    return None


def abs(x: Tensor) -> Tensor:
    """|x|, whose gradient at 0 is 0; Jittor's is 1."""
    return where(x > 0, x, where(x < 0, -x, x - x))


def amax(x: Tensor, dim, keepdim: bool = False) -> Tensor:
    """The largest value along `dim`, ties sharing the gradient equally; Jittor's gradient goes to every tie whole."""
    ties = (x == _jt.max(x, dim, keepdims=True)).float32().detach()
    return sum(where(ties > 0, x, zeros_like(x)), dim, keepdim) / sum(ties, dim, keepdim)


def arange(*bounds: int) -> Tensor:
    """int64 numbers; Jittor's are int32."""
    return _jt.arange(*bounds).int64()


def argmax(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """The index of the first largest value; Jittor returns (index, value)."""
    return _jt.argmax(x, dim, keepdims=keepdim)[0].int64()


def binary_cross_entropy_with_logits(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """log(1 + exp(x)) - x target, finite and differentiable for every logit; Jittor knows no reduction="none"."""
    loss = _kernels.binary_cross_entropy(x, target)
    return {"none": lambda v: v, "sum": sum, "mean": mean}[reduction](loss)


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """Joined along an existing axis."""
    return _jt.concat(list(tensors), dim)


def chunk(x: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    """`chunks` parts of equal size, the last possibly smaller."""
    return split(x, -(-x.shape[dim] // chunks), dim)


def clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """x within bounds, with gradient 1 at a bound; Jittor's is 0 there."""
    if min is not None:
        x = where(x < min, full_like(x, min), x)
    return x if max is None else where(x > max, full_like(x, max), x)


def floor_divide(a: Tensor, b: Tensor) -> Tensor:
    """The quotient rounded down: -7 by 3 is -3 (Jittor cuts off, as C does, and makes float quotients int32)."""
    return _jt.floor(a.float64() / b.float64()).cast(a.dtype)


def full(shape, value: float, dtype: str = "float32") -> Tensor:
    """A tensor of one value."""
    return _jt.full(list(shape), value, dtype)


def full_like(x: Tensor, value: float) -> Tensor:
    """A tensor of one value with the shape and dtype of x."""
    return _jt.full(x.shape, value, x.dtype)


def interpolate(x: Tensor, size=None, scale_factor: float | None = None, mode: str = "nearest",
                align_corners: bool | None = None) -> Tensor:
    """x (n, c, h, w) resized; nearest by default (Jittor: bilinear), and a scale factor is used as it is given
    (Jittor recomputes it from the rounded sizes)."""
    h, w = x.shape[2:]
    if size is None:
        size = int(h * scale_factor), int(w * scale_factor)
        ratios = 1 / scale_factor, 1 / scale_factor
    else:
        size = (size, size) if isinstance(size, int) else tuple(size)
        ratios = h / size[0], w / size[1]
    if align_corners:
        ratios = (h - 1) / max(size[0] - 1, 1), (w - 1) / max(size[1] - 1, 1)
    return _windows.resize(x, size, ratios, mode, bool(align_corners))


def log_softmax(x: Tensor, dim: int) -> Tensor:
    """log(softmax(x)), shifted by the largest value; Jittor's logsumexp([100, 100]) is inf."""
    shifted = x - _jt.max(x, dim, keepdims=True).detach()
    return shifted - log(sum(exp(shifted), dim, keepdim=True))


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """The larger of two, ties sharing the gradient; Jittor gives it to the first."""
    return where(a > b, a, where(a < b, b, (a + b) / 2))


def mean(x: Tensor, dim=None, keepdim: bool = False) -> Tensor:
    """`sum` over the number of values; NaN for none (Jittor: 0)."""
    total = sum(x, dim, keepdim)
    count = _np.prod(x.shape) / _np.prod(total.shape)
    return _scalar(total / (count or float("nan")), total.is_scalar)


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """The smaller of two, ties sharing the gradient; Jittor gives it to the first."""
    return where(a < b, a, where(a > b, b, (a + b) / 2))


def mul(x: Tensor, factor: Tensor) -> Tensor:
    """x times one trained number; the number's gradient is a sum over all of x, which Jittor adds one by one."""
    return _kernels.scale(x, factor)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """int64 (…, num_classes), 1 at each label."""
    return (labels.unsqueeze(-1) == _jt.arange(num_classes)).int64()


def ones(*shape, dtype: str = "float32") -> Tensor:
    """A tensor of ones; shape as numbers or as one sequence."""
    return full(shape if isinstance(shape[0], int) else shape[0], 1, dtype)


def remainder(a: Tensor, b: Tensor) -> Tensor:
    """What `floor_divide` leaves: -7 by 3 leaves 2, with the divisor's sign (Jittor: -1)."""
    return a - floor_divide(a, b) * b


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) at full precision; Jittor clips x at -30."""
    return _kernels.sigmoid(x)


def softmax(x: Tensor, dim: int) -> Tensor:
    """exp(x) / sum exp(x) along `dim`, which must be named (Jittor's default is every axis)."""
    share = exp(x - _jt.max(x, dim, keepdims=True).detach())
    return share / sum(share, dim, keepdim=True)


def split(x: Tensor, sizes, dim: int = 0) -> list[Tensor]:
    """Parts of the given size or sizes along `dim`."""
    length = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
    return list(_jt.split(x, list(sizes), dim))


def stack(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """Joined along a new axis; scalars give a vector."""
    if getattr(tensors[0], "is_scalar", False):
        return cat(tensors)
    return _jt.stack(list(tensors), dim)


def sum(x: Tensor, dim=None, keepdim: bool = False) -> Tensor:
    """The sum, accumulated in float64: Jittor adds float32 one by one (8e-4 off on 5.4 M values).

    Without `dim` a scalar; booleans and integers give int64.
    """
    floating = "float" in str(x.dtype)
    wide = x.float64() if floating else x.int64()
    if dim is None:
        total = wide.sum()
    else:
        dims = [d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)]
        total = wide.sum(dims, keepdims=keepdim)
    return _scalar(total.cast(x.dtype) if floating else total, dim is None or not keepdim and len(dims) == x.ndim)


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    """(values, indices) of the k largest, sorted; ties in order of index (PyTorch's order of ties is unspecified)."""
    return _jt.topk(x, k, dim, largest)


def zeros(*shape, dtype: str = "float32") -> Tensor:
    """A tensor of zeros; shape as numbers or as one sequence."""
    return full(shape if isinstance(shape[0], int) else shape[0], 0, dtype)


def _scalar(x: Tensor, is_scalar: bool) -> Tensor:
    x.is_scalar = is_scalar
    return x


set_device(_os.environ.get("ALIGN_DEVICE", "cpu"))
