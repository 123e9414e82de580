"""Functions under PyTorch's names and with PyTorch's meaning, on Jittor 1.3.11: one short function per difference.

Part of the porting guide that `jittor.py` opens. Kernels that mend speed or accuracy stand in `kernels/`, with rules.
"""

import numpy as np

from .jittor_import import jt
from .kernels import elementwise, products, windows

Tensor = jt.Var
asin, cos, exp, gather, log, sin = jt.arcsin, jt.cos, jt.exp, jt.gather, jt.log, jt.sin  # mean the same
where, zeros_like = jt.where, jt.zeros_like
adaptive_avg_pool2d, grid_sample = windows.adaptive_avg_pool, windows.grid_sample
linear, matmul = products.linear, products.matmul
mul, sigmoid = elementwise.scale, elementwise.sigmoid


def abs(x: Tensor) -> Tensor:
    """|x|, whose gradient at 0 is 0; Jittor's is 1."""
    return where(x > 0, x, where(x < 0, -x, x - x))


class _Largest(jt.Function):
    """The largest value along an axis that is kept, NaN where one is NaN, and then the gradient is NaN too; else the
    ties share it."""

    def execute(self, x, dim):
        spoilt = sum((x != x).cast(x.dtype), dim, keepdim=True)
        y = where(spoilt > 0, full_like(spoilt, float("nan")), jt.max(x, dim, keepdims=True))
        ties = (x == y).cast(x.dtype)
        self.share = ties / sum(ties, dim, keepdim=True)
        return y

    def grad(self, dy):
        return dy * self.share, None


def amax(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """The largest value along `dim`, ties sharing the gradient equally, NaN the largest; Jittor's gradient goes to
    every tie whole, and it passes NaN over."""
    y, axis = _Largest()(x, dim), dim % x.ndim
    return y if keepdim else y.reshape([*x.shape[:axis], *x.shape[axis + 1 :]] or [1])


def arange(*bounds: int) -> Tensor:
    """int64 numbers; Jittor's are int32."""
    return jt.arange(*bounds).int64()


def argmax(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """The index of the first largest value; Jittor returns (index, value)."""
    return jt.argmax(x, dim, keepdims=keepdim)[0].int64()


def binary_cross_entropy_with_logits(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """log(1 + exp(x)) - x target, finite and differentiable for every logit; Jittor knows no reduction="none"."""
    loss = elementwise.binary_cross_entropy(x, target)
    return {"none": lambda v: v, "sum": sum, "mean": mean}[reduction](loss)


def array(values: np.ndarray) -> Tensor:
    """The values in their own dtype; Jittor alone makes float64 float32, int64 int32.

    One number of eight bytes is stored at once. Jittor stores one that several kernels share by a kernel whose key has
    no dtype: after a float32 was stored so, four bytes of a float64 are, and the others are what lay there.
    """
    value = jt.array(values, dtype=str(values.dtype))
    return value.sync() if values.size == 1 and values.itemsize == 8 else value


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """Joined along an existing axis."""
    return jt.concat(list(tensors), dim)


def chunk(x: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    """`chunks` parts of equal size, the last possibly smaller."""
    return split(x, -(-x.shape[dim] // chunks), dim)


def clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """x within bounds, with gradient 1 at a bound and 0 at NaN, which stays; Jittor's is 0 and 1 there."""
    x = where(x != x, x.detach(), x)
    if min is not None:
        x = where(x < min, full_like(x, min), x)
    return x if max is None else where(x > max, full_like(x, max), x)


def floor_divide(a: Tensor, b: Tensor) -> Tensor:
    """The quotient rounded down: -7 by 3 is -3 (Jittor cuts off, as C does, and makes float quotients int32)."""
    return jt.floor(a.float64() / b.float64()).cast(a.dtype)


def full(shape, value: float, dtype: str = "float32") -> Tensor:
    """A tensor of one value; Jittor rounds a Python number to float32 even for a float64 tensor."""
    return array(np.array([value], str(dtype))).broadcast(list(shape))


def full_like(x: Tensor, value: float) -> Tensor:
    """A tensor of one value with the shape and dtype of x."""
    return full(x.shape, value, x.dtype)


def interpolate(
    x: Tensor, size=None, scale_factor: float | None = None, mode: str = "nearest", align_corners: bool | None = None
) -> Tensor:
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
    return windows.resize(x, size, ratios, mode, bool(align_corners))


def log_softmax(x: Tensor, dim: int) -> Tensor:
    """log(softmax(x)), shifted by the largest value; Jittor's logsumexp([100, 100]) is inf.

    What is shifted is kept: in one kernel -Ofast makes (x - max) - log x - (max + log), in which log is lost."""
    shifted = (x - jt.max(x, dim, keepdims=True).detach()).stop_fuse()
    return shifted - log(sum(exp(shifted), dim, keepdim=True))


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """The larger of two, ties sharing the gradient; Jittor gives it to the first."""
    return where(a > b, a, where(a < b, b, (a + b) / 2))


def mean(x: Tensor, dim=None, keepdim: bool = False) -> Tensor:
    """`sum` over the number of values; NaN for none (Jittor: 0)."""
    total = sum(x, dim, keepdim)
    count = np.prod(x.shape) / np.prod(total.shape)
    return scalar(total / (count or float("nan")), total.is_scalar)


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """The smaller of two, ties sharing the gradient; Jittor gives it to the first."""
    return where(a < b, a, where(a > b, b, (a + b) / 2))


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """int64 (…, num_classes), 1 at each label."""
    return (labels.unsqueeze(-1) == jt.arange(num_classes)).int64()


def ones(*shape, dtype: str = "float32") -> Tensor:
    """A tensor of ones; shape as numbers or as one sequence."""
    return full(shape if isinstance(shape[0], int) else shape[0], 1, dtype)


def remainder(a: Tensor, b: Tensor) -> Tensor:
    """What `floor_divide` leaves: -7 by 3 leaves 2, with the divisor's sign (Jittor: -1)."""
    return a - floor_divide(a, b) * b


def softmax(x: Tensor, dim: int) -> Tensor:
    """exp(x) / sum exp(x) along `dim`, which must be named (Jittor's default is every axis)."""
    if dim in (-1, x.ndim - 1):
        return elementwise.softmax(x)
    share = exp(x - jt.max(x, dim, keepdims=True).detach())
    return share / sum(share, dim, keepdim=True)


def split(x: Tensor, sizes, dim: int = 0) -> list[Tensor]:
    """Parts of the given size or sizes along `dim`."""
    length = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
    return list(jt.split(x, list(sizes), dim))


def stack(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """Joined along a new axis; scalars give a vector."""
    if getattr(tensors[0], "is_scalar", False):
        return cat(tensors)
    return jt.stack(list(tensors), dim)


def sum(x: Tensor, dim=None, keepdim: bool = False) -> Tensor:
    """The sum, accumulated in float64: Jittor adds float32 one by one (8e-4 off on 5.4 M values).

    Without `dim` a scalar; booleans and integers give int64.
    """
    floating = "float" in str(x.dtype)
    if dim is None:
        return scalar(elementwise.total(x) if floating else x.int64().sum(), True)
    dims = [d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)]
    wide = (x.float64() if floating else x.int64()).sum(dims, keepdims=keepdim)
    return scalar(wide.cast(x.dtype) if floating else wide, not keepdim and len(dims) == x.ndim)


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    """(values, int64 indices) of the k largest, sorted, NaN the largest of all; ties in order of index (PyTorch's order
    of ties is unspecified). Jittor's indices are int32, it passes NaN over, and of nothing it gives another shape."""
    if not x.numel():
        part = split(x, k, dim)[0]
        return part, part.int64()
    _, indices = jt.topk(where(x != x, full_like(x, float("inf")), x), k, dim, largest)
    return gather(x, dim, indices), indices.int64()


def zeros(*shape, dtype: str = "float32") -> Tensor:
    """A tensor of zeros; shape as numbers or as one sequence."""
    return full(shape if isinstance(shape[0], int) else shape[0], 0, dtype)


def scalar(x: Tensor, is_scalar: bool) -> Tensor:
    """x, marked as standing for a 0-dimensional tensor or not."""
    x.is_scalar = is_scalar
    return x
