"""Products for Jittor on the CPU: of matrices, in linear layers and in convolutions.

Jittor multiplies batches by a broadcast and a sum, as it does every float64 product. oneDNN is in the process already
for convolutions, and its sgemm needs no more than a declaration. It has no float64: those products, which the noise of
float32 runs is measured against, are loops of our own, and a float64 convolution unrolls images to columns (one per
output pixel) and multiplies them by the weights; a gradient is the same product the other way round. Jittor's own loop
nest takes minutes where these take seconds.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from . import jt, on_cpu, read

KERNELS = read("products")


def _product(shape, a, b, turn_a: bool, turn_b: bool, sizes: tuple[int, int, int, int]):
    """Products of a and b, which hold `sizes` = (batch, m, n, k), in the given shape."""
    data = dict(zip(("batch", "m", "n", "k"), sizes), turn_a=int(turn_a), turn_b=int(turn_b))
    return KERNELS["matrix product"]([a, b], shape, data=data)[0]


class _Matmul(jt.Function):
    def execute(self, a, b):
        self.saved = a, b
        *batch, m, k = a.shape
        n = b.shape[-1]
        self.sizes = a.numel() // (m * k), m, n, k
        return _product([*batch, m, n], a, b, False, False, self.sizes)

    def grad(self, dy):
        (a, b), (batch, m, n, k) = self.saved, self.sizes
        return (
            _product(a.shape, dy, b, False, True, (batch, m, k, n)),
            _product(b.shape, a, dy, True, False, (batch, k, n, m)),
        )


@on_cpu(jt.matmul)
def matmul(a, b):
    """a (…, m, k) times b (…, k, n) or (k, n); the batches are equal. The gradient of Jittor's takes 25 times PyTorch's
    time."""
    if b.ndim == 2 and a.ndim > 2:
        return matmul(a.reshape((-1, a.shape[-1])), b).reshape((*a.shape[:-1], b.shape[-1]))
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"no product of shapes {a.shape} and {b.shape}")
    return _Matmul()(a, b)


class _Linear(jt.Function):
    def execute(self, x, weight, bias):
        self.saved = x, weight
        (n, k), m = weight.shape, x.numel() // weight.shape[1]
        data = {"batch": 1, "m": m, "n": n, "k": k, "turn_a": 0, "turn_b": 1}
        return KERNELS["linear layer"]([x, weight, bias], [*x.shape[:-1], n], data=data)[0]

    def grad(self, dy):
        x, weight = self.saved
        (n, k), m = weight.shape, x.numel() // weight.shape[1]
        return (
            _product(x.shape, dy, weight, False, False, (1, m, k, n)),
            _product(weight.shape, dy, x, True, False, (1, n, k, m)),
            KERNELS["column sums"]([dy], [n])[0],
        )


def _plain_linear(x, weight, bias=None):
    y = jt.matmul(x, weight.transpose(1, 0))
    return y if bias is None else y + bias


@on_cpu(_plain_linear)
def linear(x, weight, bias=None):
    """x (…, in) times weight (out, in) transposed, plus bias (out,); Jittor multiplies float64 in a loop nest."""
    return _Linear()(x, weight, jt.zeros(weight.shape[:1], x.dtype) if bias is None else bias)


class _Convolution(jt.Function):
    """By oneDNN's three primitives, called directly; in float64 by three kernels of ours."""

    def __init__(self, stride, padding, dilation, groups):
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def execute(self, x, weight):
        self.saved = x, weight
        if x.dtype != "float64":
            self.geometry = (*self.stride, *self.padding, *self.dilation, self.groups)
            return jt.mkl_ops.mkl_conv(x, weight, *self.geometry, "abcd", "oihw")
        (n, channels, *size), (out_channels, _, *kernel) = x.shape, weight.shape
        out = [
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in range(2)
        ]
        self.data = {"n": n, "groups": self.groups, "in_channels": channels, "out_channels": out_channels}
        for name in ("stride", "padding", "dilation"):
            self.data |= {f"{name}_{axis}": value for axis, value in zip("hw", getattr(self, name))}
        for name, sizes in (("in", size), ("out", out), ("kernel", kernel)):
            self.data |= {f"{name}_{axis}": value for axis, value in zip("hw", sizes)}
        return KERNELS["float64 convolution"]([x, weight], [n, out_channels, *out], data=self.data)[0]

    def grad(self, dy):
        x, weight = self.saved
        if x.dtype != "float64":
            backward_x, backward_w = jt.mkl_ops.mkl_conv_backward_x, jt.mkl_ops.mkl_conv_backward_w
            return (
                backward_x(weight, dy, *x.shape[2:], *self.geometry, "abcd", "oihw", "abcd"),
                backward_w(x, dy, *weight.shape[2:], *self.geometry, "abcd", "oihw", "abcd"),
            )
        name = "float64 convolution, {} gradient"
        return (
            KERNELS[name.format("input")]([dy, weight], x.shape, data=self.data)[0],
            KERNELS[name.format("weight")]([dy, x], weight.shape, data=self.data)[0],
        )


@on_cpu(lambda x, weight, *geometry: jt.nn.conv2d(x, weight, None, *geometry))
def conv2d(x, weight, stride, padding, dilation, groups):
    """Convolution of x (n, c, h, w) without bias.

    Jittor's own `nn.Conv` writes a loop nest for its tuner to recognise, one kernel per group count; oneDNN's
    primitives called directly are three kernels for every convolution of a model.
    """
    return _Convolution(stride, padding, dilation, groups)(x, weight)


def inference_rule(weight, bias, stride, padding, dilation, groups) -> Callable | None:
    """A faster function of x (n, c, h, w) than convolution and bias, without a gradient; None: there is none. oneDNN's
    convolution reorders images before and after, which takes as long again where kernels are small."""
    (out_channels, channels, *size), geometry = weight.shape, (stride, padding, dilation)
    square = stride[0] == stride[1] and padding[0] == padding[1] and dilation == (1, 1) and size[0] == size[1]
    if geometry == ((1, 1), (0, 0), (1, 1)) and size == [1, 1] and groups == 1:
        return partial(pointwise, weight=weight, bias=bias)
    if square and channels == 1 and groups == out_channels:
        return partial(depthwise, weight=weight, bias=bias, stride=stride[0], padding=padding[0])
    if geometry == ((1, 1),) * 3 and size == [3, 3] and groups == 1 and channels >= 16 and weight.dtype == "float32":
        return partial(in_tiles, weight=weight, bias=bias, entered=jt.array(_entered(weight.numpy())))
    return None


@on_cpu(lambda x, weight, bias: jt.nn.conv2d(x, weight, bias))
def pointwise(x, weight, bias):
    """1 x 1 convolution of x (n, c, h, w) with a bias: a product of matrices as they lie."""
    return KERNELS["pointwise convolution"]([x, weight, bias], [x.shape[0], weight.shape[0], *x.shape[2:]])[0]


def _plain_depthwise(x, weight, bias, stride: int, padding: int):
    return jt.nn.conv2d(x, weight, bias, stride, padding, 1, weight.shape[0])


@on_cpu(_plain_depthwise)
def depthwise(x, weight, bias, stride: int, padding: int):
    """Convolution of each channel of x (n, c, h, w) with a square kernel of its own, (c, 1, size, size), and a bias."""
    shape = [*x.shape[:2], *((length + 2 * padding - weight.shape[2]) // stride + 1 for length in x.shape[2:])]
    return KERNELS["depthwise convolution"]([x, weight, bias], shape, data={"stride": stride, "padding": padding})[0]


# The points of `in_tiles` beside infinity: down, and across, where those of the textbooks are 0, ±1 and ±2, with two to
# three times the error. Tiles of 4 x 4 take a quarter of the multiplications instead of a third; the gate of the
# inference form then refused Gold-YOLO N.
DOWN, NEAR, FAR = (0, 1, -1), 5 / 7, 3 / 2
BAND = 1 << 20  # numbers at a time: 4 MiB, which stay in a cache


def _values(points: tuple[float, ...]) -> np.ndarray:
    """(points and infinity, 3): what gives a kernel's share of the polynomials' values there."""
    scales = [np.prod([p - q for q in points if q != p]) for p in points]
    return np.array([[1 / s, p / s, p * p / s] for p, s in zip(points, scales)] + [[0, 0, 1]])


def _entered(weight: np.ndarray) -> np.ndarray:
    """Kernels (o, c, 3, 3) at the 24 points, float32 (24, o, c), rounded once."""
    at = _values(DOWN) @ weight.astype(np.float64) @ _values((0, NEAR, -NEAR, FAR, -FAR)).T  # (o, c, 4, 6)
    return at.transpose(2, 3, 0, 1).reshape(24, *weight.shape[:2]).astype(np.float32)


@on_cpu(lambda x, weight, bias, entered: jt.nn.conv2d(x, weight, bias, padding=1))
def in_tiles(x, weight, bias, entered):
    """3 x 3 convolution of x (n, c, h, w), padded by 1, with a bias, in a third of the multiplications (Winograd's
    F(2 x 4, 3 x 3); Lavin and Gray 2015, arXiv:1509.09308), with the rounding noise of the sum itself, at most half as
    much again. What is not finite spoils its whole tile. entered: the kernels by `_entered`."""
    data = {"near": NEAR, "far": FAR, "band": BAND}
    shape = [x.shape[0], weight.shape[0], *x.shape[2:]]
    return KERNELS["convolution in tiles"]([x, entered, bias], shape, data=data)[0]
