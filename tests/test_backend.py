"""Every difference that the backend mends, against NumPy in float64; runs in both environments.

Accuracy: the largest error of each case is compared with PyTorch's own error on the same arrays, kept in
tests/golden/backend.json (`python tests/test_backend.py` in the torch environment writes it). Jittor may have at most
4 times PyTorch's error; PyTorch itself must still have about the recorded one.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lib import backend as B

RECORDED = Path(__file__).parent / "golden" / "backend.json"
ULP = 2.0**-24  # half a unit in the last place of float32 at 1: below it no float32 result can be told apart


def array(*shape, mean=0.0, std=1.0):
    return (mean + std * np.random.default_rng(shape).standard_normal(shape)).astype(np.float32)


def leaf(values):
    return B.nn.Parameter(B.tensor(np.asarray(values, np.float32)))


def wide(*arrays):
    return [a.astype(np.float64) for a in arrays]


# --- accuracy: each case gives (computed, expected in float64) pairs -----------------------------------------------


def batch_norm(mean_over_std):
    x, dy = array(4, 8, 16, 16, mean=mean_over_std), array(4, 8, 16, 17)[..., :16]
    weight, bias = array(8, mean=1, std=0.1), array(8)
    norm = B.nn.BatchNorm2d(8)
    B.load_state(norm, {"weight": weight, "bias": bias})
    t = leaf(x)
    y = norm(t)
    gradients = B.grad(B.sum(y * B.tensor(dy)), [t, norm.weight, norm.bias])
    x, dy, weight, bias = wide(x, dy, weight, bias)
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    normal = (x - mean) / np.sqrt(variance + 1e-5)
    centred = dy - dy.mean((0, 2, 3), keepdims=True) - normal * (dy * normal).mean((0, 2, 3), keepdims=True)
    n = x.size / 8
    return {
        "y": (y, normal * weight[:, None, None] + bias[:, None, None]),
        "dx": (gradients[0], weight[:, None, None] * centred / np.sqrt(variance + 1e-5)),
        "dw": (gradients[1], (dy * normal).sum((0, 2, 3))),
        "db": (gradients[2], dy.sum((0, 2, 3))),
        "running_mean": (norm.running_mean, 0.1 * mean.ravel()),
        "running_var": (norm.running_var, 0.9 + 0.1 * variance.ravel() * n / (n - 1)),
    }


def group_norm(offset):
    x, dy = array(2, 8, 6, 6, mean=offset, std=0.1 if offset else 1), array(2, 8, 6, 7)[..., :6]
    weight, bias = array(8, mean=1, std=0.1), array(8)
    norm = B.nn.GroupNorm(2, 8)
    B.load_state(norm, {"weight": weight, "bias": bias})
    t = leaf(x)
    y = norm(t)
    gradients = B.grad(B.sum(y * B.tensor(dy)), [t, norm.weight, norm.bias])
    x, dy, weight, bias = wide(x, dy, weight, bias)
    grouped = x.reshape(2, 2, -1)
    deviation = np.sqrt(grouped.var(2, keepdims=True) + 1e-5)
    normal = (grouped - grouped.mean(2, keepdims=True)) / deviation
    slope = (dy * weight.reshape(1, -1, 1, 1)).reshape(2, 2, -1)
    dx = (slope - slope.mean(2, keepdims=True) - normal * (slope * normal).mean(2, keepdims=True)) / deviation
    normal = normal.reshape(x.shape)
    return {
        "y": (y, normal * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)),
        "dx": (gradients[0], dx.reshape(x.shape)),
        "dw": (gradients[1], (dy * normal).sum((0, 2, 3))),
        "db": (gradients[2], dy.sum((0, 2, 3))),
    }


def sums():
    x = np.random.default_rng(1).random(5_400_000, np.float32)
    t = B.tensor(x.reshape(6, 900_000))
    return {
        "all": (B.sum(t), x.sum(dtype=np.float64)),
        "rows": (B.sum(t, 1), x.reshape(6, -1).sum(1, np.float64)),
        "columns": (B.sum(t, 0), x.reshape(6, -1).sum(0, np.float64)),
        "mean": (B.mean(B.tensor(np.full(10_000_000, 0.1, np.float32))), np.float64(np.float32(0.1))),
    }


def saturation():
    x = np.array([-200, -88, -40, -10, -1e-4, 0, 1e-4, 3, 40, 200], np.float32)
    target = np.linspace(0, 1, len(x)).astype(np.float32)
    t = leaf(x)
    loss = B.binary_cross_entropy_with_logits(t, B.tensor(target), reduction="none")
    sigmoid = B.sigmoid(t)
    x, target = wide(x, target)
    s = np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))
    return {
        "sigmoid": (sigmoid, s),
        "sigmoid_gradient": (B.grad(B.sum(sigmoid), [t])[0], s * (1 - s)),
        "bce": (loss, np.logaddexp(0, x) - x * target),
        "bce_gradient": (B.grad(B.sum(loss), [t])[0], s - target),
    }


def softmaxes():
    x, dy = array(5, 7, 8, std=4), array(5, 7, 9)[..., :8]
    x[0, 0] = 100
    t = leaf(x)
    y, z = B.softmax(t, 2), B.log_softmax(t, 2)
    dx, dz = B.grad(B.sum(y * B.tensor(dy)), [t])[0], B.grad(B.sum(z * B.tensor(dy)), [t])[0]
    x, dy = wide(x, dy)
    share = np.exp(x - x.max(2, keepdims=True))
    share /= share.sum(2, keepdims=True)
    return {
        "softmax": (y, share),
        "softmax_gradient": (dx, share * (dy - (dy * share).sum(2, keepdims=True))),
        "log_softmax": (z, np.log(share)),
        "log_gradient": (dz, dy - share * dy.sum(2, keepdims=True)),
    }


def resampling_matrix(size, out, mode, corners):
    matrix = np.zeros((out, size))
    for i in range(out):
        if mode == "nearest":
            matrix[i, i * size // out] = 1
            continue
        source = i * (size - 1) / (out - 1) if corners else max((i + 0.5) * size / out - 0.5, 0)
        low = min(int(source), size - 1)
        matrix[i, low] += 1 - (source - low)
        matrix[i, min(low + 1, size - 1)] += source - low
    return matrix


def resize(mode, size, corners=None):
    x, dy = array(2, 3, 7, 10), array(2, 3, *size)
    t = leaf(x)
    y = B.interpolate(t, size=size, mode=mode, align_corners=corners)
    dx = B.grad(B.sum(y * B.tensor(dy)), [t])[0]
    rows, columns = resampling_matrix(7, size[0], mode, corners), resampling_matrix(10, size[1], mode, corners)
    x, dy = wide(x, dy)
    return {
        "y": (y, np.einsum("ih,nchw,jw->ncij", rows, x, columns)),
        "dx": (dx, np.einsum("ih,ncij,jw->nchw", rows, dy, columns)),
    }


def convolution(c_in, c_out, kernel, stride, groups, bias, precision=np.float32):
    layer = B.nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bias)
    layer = B.float64(layer) if precision is np.float64 else layer
    weight, x = array(c_out, c_in // groups, kernel, kernel), array(2, c_in, 9, 12)
    values = {"weight": weight, **({"bias": array(c_out)} if bias else {})}
    B.load_state(layer, values)
    t = B.nn.Parameter(B.tensor(x.astype(precision)))
    y = layer(t)
    dy = array(*y.shape, 1)[..., 0]
    dx, dw = B.grad(B.sum(y * B.tensor(dy.astype(precision))), [t, layer.weight])
    x, weight, dy = wide(x, weight, dy)
    padded = np.pad(x, ((0, 0), (0, 0), *[(kernel // 2,) * 2] * 2))
    h, w = dy.shape[2:]
    out, d_padded, d_weight = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    for g in range(groups):
        i, o = (
            slice(g * c_in // groups, (g + 1) * c_in // groups),
            slice(g * c_out // groups, (g + 1) * c_out // groups),
        )
        for r in range(kernel):
            for s in range(kernel):
                window = np.s_[:, i, r : r + stride * h : stride, s : s + stride * w : stride]
                out[:, o] += np.einsum("nihw,oi->nohw", padded[window], weight[o, :, r, s])
                d_weight[o, :, r, s] = np.einsum("nihw,nohw->oi", padded[window], dy[:, o])
                d_padded[window] += np.einsum("nohw,oi->nihw", dy[:, o], weight[o, :, r, s])
    if bias:
        out += values["bias"].astype(np.float64).reshape(1, -1, 1, 1)
    inner = slice(kernel // 2, -(kernel // 2) or None)
    return {"y": (y, out), "dx": (dx, d_padded[:, :, inner, inner]), "dw": (dw, d_weight)}


def scale_and_bias():
    x, dy, bias = array(4, 8, 40, 40), array(4, 8, 40, 41)[..., :40], array(8)
    t, factor = leaf(x), leaf(1.5)
    layer = B.nn.Conv2d(8, 8, 1)
    B.load_state(layer, {"weight": np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1), "bias": bias})
    y = B.mul(layer(t), factor)
    dx, d_factor, d_bias = B.grad(B.sum(y * B.tensor(dy)), [t, factor, layer.bias])
    x, dy, bias = wide(x, dy, bias)
    shifted = x + bias.reshape(1, -1, 1, 1)
    return {
        "y": (y, 1.5 * shifted),
        "dx": (dx, 1.5 * dy),
        "factor": (d_factor, (dy * shifted).sum()),
        "bias": (d_bias, 1.5 * dy.sum((0, 2, 3))),
    }


# --- accuracy in both precisions: each gives a function, its arguments, and a reference that, from the gradient dy of
# the function's value and the arguments in float64, finds the value and the gradient of each argument


def module(kind, *options):
    """A function of (x, parameters…) by a module that holds these parameters."""

    def call(x, *parameters):
        made = kind(*options)
        for name, parameter in zip(("weight", "bias"), parameters):
            setattr(made, name, parameter)
        return made(x)

    return call


def elementwise(function, value, slope, x):
    return function, [x.astype(np.float32)], lambda dy, x: (value(x), dy * slope(x))


def activation(kind, value, slope):
    x = array(6, 700, std=4)
    x[0, :6] = -200, -30, -1e-4, 0, 30, 200
    return elementwise(kind(), value, slope, x)


def gelu():
    def share(x):
        return (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    return activation(
        B.nn.GELU, lambda x: x * share(x), lambda x: share(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    )


def silu():
    def share(x):
        return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))

    return activation(B.nn.SiLU, lambda x: x * share(x), lambda x: share(x) * (1 + x * share(-x)))


def linear():
    def reference(dy, x, w, b):
        return x @ w.T + b, dy @ w, np.einsum("nij,nik->jk", dy, x), dy.sum((0, 1))

    return module(B.nn.Linear, 64, 40), [array(3, 50, 64), array(40, 64), array(40)], reference


def product(a, b):
    def reference(dy, a, b):
        db = np.swapaxes(a, -1, -2) @ dy
        return a @ b, dy @ np.swapaxes(b, -1, -2), db if b.ndim == db.ndim else db.sum(0)

    return B.matmul, [a, b], reference


def layer_norm(offset):
    def reference(dy, x, weight, bias):
        deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        normal, slope = (x - x.mean(-1, keepdims=True)) / deviation, dy * weight
        centred = slope - slope.mean(-1, keepdims=True) - normal * (slope * normal).mean(-1, keepdims=True)
        return normal * weight + bias, centred / deviation, (dy * normal).sum((0, 1)), dy.sum((0, 1))

    x = array(5, 60, 96, mean=offset, std=0.1 if offset else 1)
    return module(B.nn.LayerNorm, 96), [x, array(96, mean=1, std=0.1), array(96)], reference


def rows_at(call, index, weight):
    def reference(dy, w):
        d_weight = np.zeros_like(w)
        np.add.at(d_weight, index, dy)
        return w[index], d_weight

    return call, [weight], reference


def embedding():
    labels = np.random.default_rng(3).integers(0, 10, (2, 40))
    return rows_at(lambda weight: module(B.nn.Embedding, 10, 8)(B.tensor(labels), weight), labels, array(10, 8))


def gather():
    index = np.random.default_rng(4).integers(0, 9, (2, 20, 5))
    return rows_at(
        lambda x: B.gather(x, 1, B.tensor(index)), (np.arange(2)[:, None, None], index, np.arange(5)), array(2, 9, 5)
    )


def pooling(call, size, starts, stops):
    """Means over [start, stop) of the rows and of the columns of an image of `size`."""
    shares = []
    for length, first, last in zip(size, starts, stops):
        shares.append(np.array([[(a <= i < b) / (b - a) for i in range(length)] for a, b in zip(first, last)]))

    def reference(dy, x):
        return (
            np.einsum("ih,nchw,jw->ncij", shares[0], x, shares[1]),
            np.einsum("ih,ncij,jw->nchw", shares[0], dy, shares[1]),
        )

    return call, [array(2, 3, *size)], reference


def adaptive(size, out):
    starts = [[i * s // o for i in range(o)] for s, o in zip(size, out)]
    stops = [[-(-(i + 1) * s // o) for i in range(o)] for s, o in zip(size, out)]
    return pooling(lambda x: B.adaptive_avg_pool2d(x, out), size, starts, stops)


def average_pool(size, kernel, stride, ceil_mode):
    counts = [(math.ceil if ceil_mode else math.floor)((s - kernel) / stride) + 1 for s in size]
    starts = [[i * stride for i in range(count)] for count in counts]
    stops = [[min(start + kernel, s) for start in first] for first, s in zip(starts, size)]
    call = B.nn.AvgPool2d(kernel, stride, ceil_mode=ceil_mode)
    return pooling(call, size, starts, stops)


def sampling():
    """Some points lie outside, some far outside, one on the very edge; pixels outside are zero."""
    grid = array(2, 20, 4, 2, std=0.7)
    grid[0, 0] = [[-40, 0.1], [0.3, 1e9], [-1e9, -1e9], [1, 0.2]]

    def reference(dy, x, grid):
        (_, _, h, w), dx, d_grid, y = x.shape, np.zeros_like(x), np.zeros_like(grid), 0
        column, row = ((grid[..., 0] + 1) * w - 1) / 2, ((grid[..., 1] + 1) * h - 1) / 2
        for right in (0, 1):
            for below in (0, 1):
                j, i = np.floor(column) + right, np.floor(row) + below
                held = (j >= 0) & (j < w) & (i >= 0) & (i < h)
                share_x, share_y = 1 - np.abs(column - j), 1 - np.abs(row - i)
                at = np.arange(2)[:, None, None], slice(None), *(np.where(held, k, 0).astype(int) for k in (i, j))
                pixels, weights = x[at], np.where(held, share_x * share_y, 0)  # (n, i, j, c)
                y = y + np.moveaxis(pixels * weights[..., None], -1, 1)
                np.add.at(dx, at, np.moveaxis(dy, 1, -1) * weights[..., None])
                slope = np.where(held, (np.moveaxis(dy, 1, -1) * pixels).sum(-1), 0)
                d_grid[..., 0] += slope * np.where(held, share_y, 0) * (2 * right - 1) * w / 2
                d_grid[..., 1] += slope * np.where(held, share_x, 0) * (2 * below - 1) * h / 2
        return y, dx, d_grid

    return B.grid_sample, [array(2, 3, 7, 10), grid], reference


DIFFERENTIATED = {
    "relu": lambda: activation(B.nn.ReLU, lambda x: np.maximum(x, 0), lambda x: x > 0),
    "relu6": lambda: activation(B.nn.ReLU6, lambda x: np.clip(x, 0, 6), lambda x: (x > 0) & (x < 6)),
    "silu": silu,
    "gelu": gelu,
    "linear": linear,
    "embedding": embedding,
    "gather": gather,
    "grid_sample": sampling,
    "sin": lambda: elementwise(B.sin, np.sin, np.cos, array(600, std=4)),
    "cos": lambda: elementwise(B.cos, np.cos, lambda x: -np.sin(x), array(600, std=4)),
    "asin": lambda: elementwise(B.asin, np.arcsin, lambda x: 1 / np.sqrt(1 - x * x), np.sin(array(600))),
    "matmul 4-D": lambda: product(array(2, 3, 70, 33), array(2, 3, 33, 45)),
    "matmul 3-D by 2-D": lambda: product(array(4, 7, 33), array(33, 45)),
    **{f"layer_norm offset={m}": lambda m=m: layer_norm(m) for m in (0, 1000)},
    "adaptive pool": lambda: adaptive((20, 14), (3, 4)),
    "adaptive pool whole": lambda: adaptive((20, 40), (5, 10)),
    "average pool": lambda: average_pool((9, 12), 3, 2, False),
    "average pool ceil overlapping": lambda: average_pool((9, 12), 3, 2, True),
    "average pool ceil": lambda: average_pool((7, 10), 2, 2, True),
}


def differentiated(case, precision=np.float32):
    function, arrays, reference = DIFFERENTIATED[case]()
    tensors = [B.nn.Parameter(B.tensor(a.astype(precision))) for a in arrays]
    y = function(*tensors)
    dy = array(*y.shape, 1)[..., 0]
    gradients = B.grad(B.sum(y * B.tensor(dy.astype(precision))), tensors)
    names = "y", *(f"d{i}" for i in range(len(arrays)))
    return dict(zip(names, zip((y, *gradients), reference(*wide(dy, *arrays)), strict=True)))


CASES = {
    **{f"batch_norm mean/std={m}": lambda m=m: batch_norm(m) for m in (0, 1, 10, 30, 100, 300)},
    **{f"group_norm offset={m}": lambda m=m: group_norm(m) for m in (0, 1000)},
    "sums": sums,
    "scale and bias": scale_and_bias,
    "saturation": saturation,
    "softmax": softmaxes,
    "bilinear up": lambda: resize("bilinear", (14, 20)),
    "bilinear odd": lambda: resize("bilinear", (5, 23)),
    "bilinear corners": lambda: resize("bilinear", (14, 20), True),
    "nearest": lambda: resize("nearest", (14, 30)),
    "pointwise": lambda: convolution(16, 8, 1, 1, 1, True),
    "dense 3x3 stride 2": lambda: convolution(3, 8, 3, 2, 1, False),
    "depthwise 5x5": lambda: convolution(8, 8, 5, 1, 8, False),
    "depthwise 3x3 stride 2": lambda: convolution(8, 8, 3, 2, 8, False),
    **{case: lambda case=case: differentiated(case) for case in DIFFERENTIATED},
}


def errors(case):
    """Largest absolute error per quantity, over the quantity's own scale."""
    found = {}
    for name, (got, expected) in CASES[case]().items():
        got = B.numpy(got)
        assert got.shape == np.shape(expected), f"{case} {name}: shape {got.shape}, expected {np.shape(expected)}"
        assert got.dtype == np.float32, f"{case} {name}: {got.dtype}"
        assert np.isfinite(got).all(), f"{case} {name}: not finite"
        found[name] = float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-30))
    return found


@pytest.mark.parametrize("case", CASES)
def test_as_accurate_as_pytorch(case):
    recorded = json.loads(RECORDED.read_text())[case]
    for name, error in errors(case).items():
        assert error <= 4 * max(recorded[name], ULP), f"{name}: error {error:.2e}, PyTorch has {recorded[name]:.2e}"


@pytest.mark.parametrize(
    "case", [c for c in DIFFERENTIATED if c != "layer_norm offset=1000"]
)  # NumPy errs as much there
def test_exact_in_float64(case):
    for name, (got, expected) in differentiated(case, np.float64).items():
        assert np.abs(B.numpy(got) - expected).max() < 1e-13 * np.abs(expected).max(), name


if __name__ == "__main__":
    assert B.NAME == "torch", "the recorded errors are PyTorch's"
    RECORDED.write_text(json.dumps({case: errors(case) for case in CASES}, indent=1) + "\n")
