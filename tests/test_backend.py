"""Every difference that the backend mends, against NumPy in float64; runs in both environments.

Accuracy: the largest error of each case is compared with PyTorch's own error on the same arrays, kept in
tests/golden/backend.json (`python tests/test_backend.py` in the torch environment writes it). Jittor may have at most
4 times PyTorch's error; PyTorch itself must still have about the recorded one.
"""
import ast
import json
import random
import signal
import ssl
import sys
from pathlib import Path

import numpy as np
import pytest

from lib import backend as B

RECORDED = Path(__file__).parent / "golden" / "backend.json"
ULP = 2.0 ** -24  # half a unit in the last place of float32 at 1: below it no float32 result can be told apart


def array(*shape, mean=0.0, std=1.0):
    return (mean + std * np.random.default_rng(shape).standard_normal(shape)).astype(np.float32)


def leaf(values):
    return B.nn.Parameter(B.tensor(np.asarray(values, np.float32)))


def wide(*arrays):
    return [a.astype(np.float64) for a in arrays]


# --- accuracy: each case gives (computed, expected in float64) pairs -----------------------------------------------

def batch_norm(mean_over_std):
    x, dy = array(4, 8, 16, 16, mean=mean_over_std), array(4, 8, 16, 17)[..., :16]
    weight, bias = array(8, mean=1, std=.1), array(8)
    norm = B.nn.BatchNorm2d(8)
    B.load_state(norm, {"weight": weight, "bias": bias})
    t = leaf(x)
    y = norm(t)
    gradients = B.grad(B.sum(y * B.tensor(dy)), [t, norm.weight, norm.bias])
    x, dy, weight, bias = wide(x, dy, weight, bias)
    per_channel = lambda v: v.reshape(1, -1, 1, 1)
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    normal = (x - mean) / np.sqrt(variance + 1e-5)
    centred = dy - dy.mean((0, 2, 3), keepdims=True) - normal * (dy * normal).mean((0, 2, 3), keepdims=True)
    n = x.size / 8
    return {"y": (y, normal * per_channel(weight) + per_channel(bias)),
            "dx": (gradients[0], per_channel(weight) * centred / np.sqrt(variance + 1e-5)),
            "dw": (gradients[1], (dy * normal).sum((0, 2, 3))), "db": (gradients[2], dy.sum((0, 2, 3))),
            "running_mean": (norm.running_mean, .1 * mean.ravel()),
            "running_var": (norm.running_var, .9 + .1 * variance.ravel() * n / (n - 1))}


def group_norm(offset):
    x, dy = array(2, 8, 6, 6, mean=offset, std=.1 if offset else 1), array(2, 8, 6, 7)[..., :6]
    weight, bias = array(8, mean=1, std=.1), array(8)
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
    return {"y": (y, normal * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)),
            "dx": (gradients[0], dx.reshape(x.shape)), "dw": (gradients[1], (dy * normal).sum((0, 2, 3))),
            "db": (gradients[2], dy.sum((0, 2, 3)))}


def sums():
    x = np.random.default_rng(1).random(5_400_000, np.float32)
    t = B.tensor(x.reshape(6, 900_000))
    return {"all": (B.sum(t), x.sum(dtype=np.float64)), "rows": (B.sum(t, 1), x.reshape(6, -1).sum(1, np.float64)),
            "columns": (B.sum(t, 0), x.reshape(6, -1).sum(0, np.float64)),
            "mean": (B.mean(B.tensor(np.full(10_000_000, .1, np.float32))), np.float64(np.float32(.1)))}


def saturation():
    x = np.array([-200, -88, -40, -10, -1e-4, 0, 1e-4, 3, 40, 200], np.float32)
    target = np.linspace(0, 1, len(x)).astype(np.float32)
    t = leaf(x)
    loss = B.binary_cross_entropy_with_logits(t, B.tensor(target), reduction="none")
    sigmoid = B.sigmoid(t)
    x, target = wide(x, target)
    s = np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))
    return {"sigmoid": (sigmoid, s), "sigmoid_gradient": (B.grad(B.sum(sigmoid), [t])[0], s * (1 - s)),
            "bce": (loss, np.logaddexp(0, x) - x * target), "bce_gradient": (B.grad(B.sum(loss), [t])[0], s - target)}


def softmaxes():
    x, dy = array(5, 7, 8, std=4), array(5, 7, 9)[..., :8]
    x[0, 0] = 100
    t = leaf(x)
    y, z = B.softmax(t, 2), B.log_softmax(t, 2)
    dx, dz = B.grad(B.sum(y * B.tensor(dy)), [t])[0], B.grad(B.sum(z * B.tensor(dy)), [t])[0]
    x, dy = wide(x, dy)
    share = np.exp(x - x.max(2, keepdims=True))
    share /= share.sum(2, keepdims=True)
    return {"softmax": (y, share), "softmax_gradient": (dx, share * (dy - (dy * share).sum(2, keepdims=True))),
            "log_softmax": (z, np.log(share)), "log_gradient": (dz, dy - share * dy.sum(2, keepdims=True))}


def resampling_matrix(size, out, mode, corners):
    matrix = np.zeros((out, size))
    for i in range(out):
        if mode == "nearest":
            matrix[i, i * size // out] = 1
            continue
        source = i * (size - 1) / (out - 1) if corners else max((i + .5) * size / out - .5, 0)
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
    return {"y": (y, np.einsum("ih,nchw,jw->ncij", rows, x, columns)),
            "dx": (dx, np.einsum("ih,ncij,jw->nchw", rows, dy, columns))}


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
        i, o = slice(g * c_in // groups, (g + 1) * c_in // groups), slice(g * c_out // groups, (g + 1) * c_out // groups)
        for r in range(kernel):
            for s in range(kernel):
                window = np.s_[:, i, r:r + stride * h:stride, s:s + stride * w:stride]
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
    return {"y": (y, 1.5 * shifted), "dx": (dx, 1.5 * dy), "factor": (d_factor, (dy * shifted).sum()),
            "bias": (d_bias, 1.5 * dy.sum((0, 2, 3)))}


CASES = {
    **{f"batch_norm mean/std={m}": lambda m=m: batch_norm(m) for m in (0, 1, 10, 30, 100, 300)},
    **{f"group_norm offset={m}": lambda m=m: group_norm(m) for m in (0, 1000)},
    "sums": sums, "scale and bias": scale_and_bias, "saturation": saturation, "softmax": softmaxes,
    "bilinear up": lambda: resize("bilinear", (14, 20)), "bilinear odd": lambda: resize("bilinear", (5, 23)),
    "bilinear corners": lambda: resize("bilinear", (14, 20), True), "nearest": lambda: resize("nearest", (14, 30)),
    "pointwise": lambda: convolution(16, 8, 1, 1, 1, True), "dense 3x3 stride 2": lambda: convolution(3, 8, 3, 2, 1, False),
    "depthwise 5x5": lambda: convolution(8, 8, 5, 1, 8, False),
    "depthwise 3x3 stride 2": lambda: convolution(8, 8, 3, 2, 8, False),
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


# --- meaning -------------------------------------------------------------------------------------------------------

def gradient(function, *arrays):
    tensors = [leaf(a) for a in arrays]
    return [B.numpy(g).tolist() for g in B.grad(B.sum(function(*tensors)), tensors)]


def test_gradients_flow_after_eval():
    model = B.nn.Sequential(B.nn.Conv2d(2, 3, 1), B.nn.BatchNorm2d(3))
    B.load_state(model, {"0.weight": array(3, 2, 1, 1)})
    model.eval()
    gradients = B.grad(B.sum(model(B.tensor(array(1, 2, 4, 4)))), [p for _, p in model.named_parameters()])
    assert all(np.abs(B.numpy(g)).max() > 0 for g in gradients)


def test_only_parameters_are_parameters_and_state_is_in_published_order():
    model = B.nn.Sequential(B.nn.BatchNorm2d(2), B.nn.Conv2d(2, 1, 1))
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [name for name, _ in B.named_state(model)] == [
        "0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked", "1.weight", "1.bias"]
    tracked = dict(B.named_state(model))["0.num_batches_tracked"]
    assert B.numpy(tracked).shape == () and B.numpy(tracked).dtype == np.int64
    model(B.tensor(array(2, 2, 3, 3)))
    assert B.numpy(tracked) == 1


def test_load_state_refuses_what_does_not_fit():
    layer = B.nn.Conv2d(2, 3, 1)
    with pytest.raises(ValueError, match="shape"):
        B.load_state(layer, {"bias": np.zeros(4, np.float32)})
    with pytest.raises(KeyError, match="scale"):
        B.load_state(layer, {"scale": np.zeros(3, np.float32)})


def test_scalars_have_no_axis():
    assert B.numpy(B.sum(B.tensor(array(3, 4)))).shape == ()
    assert B.numpy(B.mean(B.tensor(array(3)), 0)).shape == ()
    assert B.numpy(B.tensor(np.float32(2))).shape == ()
    assert B.numpy(B.stack([B.tensor(np.float32(2)), B.tensor(np.float32(3))])).tolist() == [2, 3]
    scale = leaf(2.0)
    assert B.numpy(B.grad(B.sum(scale * leaf(array(3))), [scale])[0]).shape == ()
    assert B.floats([B.tensor(np.float32(2)), B.tensor(np.array([3], np.float32))]) == [2, 3]


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "int32", "bool"])
def test_tensor_keeps_the_dtype_and_copies(dtype):
    source = np.array([1, 0, 1], dtype)
    held = B.tensor(source)
    source[0] = 0
    assert B.numpy(held).dtype == dtype and B.numpy(held).tolist() == [1, 0, 1]


def test_ties_share_the_gradient():
    assert gradient(B.maximum, [1, 2, 3], [1, 3, 2]) == [[.5, 0, 1], [.5, 1, 0]]
    assert gradient(B.minimum, [1, 2, 3], [1, 3, 2]) == [[.5, 1, 0], [.5, 0, 1]]
    assert gradient(lambda x: B.amax(x, 1), [[1, 1, 0], [1, 2, 0]]) == [[[.5, .5, 0], [0, 1, 0]]]


def test_clamp_and_abs_at_their_corners():
    assert gradient(lambda x: B.clamp(x, 0, 1), [-1, 0, .5, 1, 2]) == [[0, 1, 1, 1, 0]]
    assert gradient(B.abs, [-2, 0, 2]) == [[-1, 0, 1]]


def test_argmax_and_topk_give_indices():
    x = B.tensor(np.array([[1, 3, 2], [5, 4, 6]], np.float32))
    assert B.numpy(B.argmax(x, 1)).tolist() == [1, 2]
    values, indices = B.topk(x, 2, dim=1)
    assert B.numpy(values).tolist() == [[3, 2], [6, 5]] and B.numpy(indices).tolist() == [[1, 2], [2, 0]]


def test_integer_division_rounds_down():
    a, b = B.tensor(np.array([-7, 7, -7, 7])), B.tensor(np.array([3, 3, -3, -3]))
    assert B.numpy(B.floor_divide(a, b)).tolist() == [-3, 2, 2, -3]
    assert B.numpy(B.remainder(a, b)).tolist() == [2, 1, -1, -2]


def test_nan_and_infinity_are_themselves():
    x = B.tensor(np.array([np.nan, 1, 0], np.float32))
    assert B.numpy(x == x).tolist() == [False, True, True]
    assert B.numpy(1 / x)[2] == np.inf
    assert np.isnan(B.numpy(B.mean(B.tensor(np.zeros(0, np.float32)))))


def test_one_hot_split_chunk_cat():
    assert B.numpy(B.one_hot(B.tensor(np.array([1, 0])), 3)).tolist() == [[0, 1, 0], [1, 0, 0]]
    parts = B.chunk(B.tensor(array(2, 5)), 2, 1)
    assert [tuple(p.shape) for p in parts] == [(2, 3), (2, 2)]
    assert np.array_equal(B.numpy(B.cat(parts, 1)), array(2, 5))


def test_max_pool_first_of_equals_and_small_maps():
    pool = B.nn.MaxPool2d(3, 2, 1)
    x = leaf([[[[1, 1], [1, 1]]]])
    y = pool(x)
    assert B.numpy(y).tolist() == [[[[1]]]]
    assert B.numpy(B.grad(B.sum(y), [x])[0]).tolist() == [[[[1, 0], [0, 0]]]]


def test_hooks_see_the_output_and_can_be_removed():
    layer, seen = B.nn.LeakyReLU(.1), []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(B.numpy(output).tolist()))
    layer(B.tensor(np.array([-1, 2], np.float32)))
    handle.remove()
    layer(B.tensor(np.array([-1, 2], np.float32)))
    assert len(seen) == 1 and np.allclose(seen[0], [-.1, 2])


def test_no_grad_does_not_freeze_a_module_built_inside():
    with B.no_grad():
        layer = B.nn.Conv2d(1, 1, 1)
    y = layer(B.tensor(array(1, 1, 2, 2)))
    assert np.abs(B.numpy(B.grad(B.sum(y * y + y), [layer.bias])[0])) > 0


def test_gradient_of_the_unused_is_zero():
    used, unused = leaf(array(2)), leaf(array(3))
    assert B.numpy(B.grad(B.sum(used * used), [used, unused])[1]).tolist() == [0, 0, 0]


def kernel_pairs():
    x, scale, shift = array(2, 8, 5, 6), array(8), array(8, 1)[:, 0]
    return {"batch_norm": ((x, scale, shift), (1e-5,)), "group_norm": ((x, 2, scale, shift), (1e-5,)),
            "affine": ((x, scale, shift), ()), "leaky_relu": ((x,), (.1,)),
            "add_bias": ((x, shift), ()), "sigmoid": ((x,), ()), "scale": ((x, np.float32(1.5)), ()),
            "binary_cross_entropy": ((x, np.abs(x) % 1), ()), "max_pool": ((x,), (3, 2, 1)),
            "conv2d": ((x, array(8, 1, 3, 3)), ((1, 1), (1, 1), (1, 1), 8)),
            "resize": ((x,), ((10, 12), (.5, .5), "bilinear", False))}


@pytest.mark.skipif(B.NAME != "jittor", reason="PyTorch needs no kernels of ours")
@pytest.mark.parametrize("name", kernel_pairs())
def test_kernels_are_the_plain_formulation(name):
    from lib.backend import jittor_kernels, jittor_windows
    kernels = jittor_kernels if hasattr(jittor_kernels, name) else jittor_windows
    arrays, options = kernel_pairs()[name]
    results = []
    for function, extra in ((getattr(kernels, name), options), (getattr(kernels, f"plain_{name}"),
                            options[:1] + options[2:] if name == "resize" else options)):
        tensors = [leaf(a) if isinstance(a, (np.ndarray, np.float32)) else a for a in arrays]
        y = function(*tensors, *extra)
        y = y[0] if isinstance(y, tuple) else y
        leaves = [t for t in tensors if not isinstance(t, int)]
        dy = B.tensor(array(*y.shape, 1)[..., 0])
        results.append([B.numpy(v) for v in (y, *B.grad(B.sum(y * dy), leaves))])
    for kernel, plain in zip(*results):
        assert np.abs(kernel - plain).max() < 2e-5 * np.abs(plain).max()


def reference_adamw(p, gradients, lr, decay, beta=(.9, .999), eps=1e-8):
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        p = p * (1 - lr * decay)
        m, v = beta[0] * m + (1 - beta[0]) * g, beta[1] * v + (1 - beta[1]) * g * g
        p = p - lr / (1 - beta[0] ** t) * m / (np.sqrt(v / (1 - beta[1] ** t)) + eps)
    return p


def reference_sgd(p, gradients, lr, decay, momentum=.9):
    buffer = None
    for g in gradients:
        g = g + decay * p
        buffer = g if buffer is None else momentum * buffer + g
        p = p - lr * (g + momentum * buffer)
    return p


@pytest.mark.skipif(B.NAME != "jittor", reason="PyTorch needs no kernels of ours")
def test_the_adamw_kernel_is_the_plain_formulation():
    from lib.backend.jittor_optim import adamw, plain_adamw
    data = {"step": 3, "lr": .01, "weight_decay": .05, "eps": 1e-8, "beta1": .9, "beta2": .999}
    values = [B.tensor(array(40, 3)), B.tensor(array(40, 4)[:, :3]), B.tensor(array(40, 5)[:, :3]),
              B.tensor(np.abs(array(40, 6)[:, :3]))]
    for kernel, plain in zip(adamw(*values, data), plain_adamw(*values, data)):
        assert np.abs(B.numpy(kernel) - B.numpy(plain)).max() < 1e-6


def test_adamw_in_float64():
    start, gradients = array(4, 3).astype(np.float64), [array(4, 3, s)[..., 0].astype(np.float64) for s in range(1, 9)]
    held = B.nn.Parameter(B.tensor(start))
    optimiser = B.AdamW([{"parameters": [("a", held)], "weight_decay": .05}], lr=.01)
    for gradient in gradients:
        optimiser.step([B.tensor(gradient)])
        B.sync()
    assert np.abs(B.numpy(held) - reference_adamw(start, gradients, .01, .05)).max() < 1e-14


@pytest.mark.parametrize("make, reference", [
    (lambda groups: B.AdamW(groups, lr=.01), reference_adamw),
    (lambda groups: B.SGD(groups, lr=.01, momentum=.9, nesterov=True), reference_sgd)])
def test_optimisers_and_their_resumption(make, reference):
    start = [array(4, 3), array(5)]
    gradients = [[array(4, 3, step)[..., 0], array(5, step)[..., 0]] for step in range(1, 13)]
    tensors = [leaf(a) for a in start]
    groups = lambda: [{"parameters": [("a", tensors[0])], "weight_decay": .05},
                      {"parameters": [("b", tensors[1])], "weight_decay": 0.}]
    optimiser = make(groups())
    for step, given in enumerate(gradients):
        if step == 5:
            saved, optimiser = optimiser.state(), make(groups())
            optimiser.load_state(saved)
        optimiser.step([B.tensor(g) for g in given])
        B.sync()
    for t, a, k, decay in zip(tensors, start, (0, 1), (.05, 0)):
        expected = reference(a.astype(np.float64), [g[k].astype(np.float64) for g in gradients], .01, decay)
        assert np.abs(B.numpy(t) - expected).max() < 2e-6


def test_float64_reaches_every_floating_entry():
    model = B.float64(B.nn.Sequential(B.nn.Conv2d(2, 2, 1), B.nn.BatchNorm2d(2)))
    kinds = {name: str(B.numpy(t).dtype) for name, t in B.named_state(model)}
    assert kinds.pop("1.num_batches_tracked") == "int64" and set(kinds.values()) == {"float64"}
    x = array(2, 2, 5, 5).astype(np.float64)
    y = B.numpy(model[1](B.tensor(x)))
    expected = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
    assert np.abs(y - expected).max() < 1e-13


@pytest.mark.parametrize("c_in, c_out, kernel, stride, groups", [(16, 8, 1, 1, 1), (3, 8, 3, 2, 1), (8, 8, 5, 1, 8),
                                                                  (8, 4, 3, 2, 2)])
def test_convolution_in_float64(c_in, c_out, kernel, stride, groups):
    for name, (got, expected) in convolution(c_in, c_out, kernel, stride, groups, False, np.float64).items():
        assert np.abs(B.numpy(got) - expected).max() < 1e-13 * np.abs(expected).max(), name


def test_import_leaves_the_process_as_it_was():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert ssl._create_default_https_context is ssl.create_default_context
    assert sys.excepthook.__module__ == "sys" or "pytest" in sys.excepthook.__module__
    assert sys.getrecursionlimit() < 100_000
    before = random.getstate()[1][:3]
    import lib.backend  # noqa: F401
    assert random.getstate()[1][:3] == before


def test_twins_have_the_same_names():
    listed = []
    for name in ("torch", "jittor"):
        tree = ast.parse((Path(B.__file__).parent / f"{name}.py").read_text())
        listed.append(next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
                           and getattr(node.targets[0], "id", "") == "__all__"))
    assert listed[0] == listed[1]
    assert not [name for name in listed[0] if not hasattr(B, name)]


if __name__ == "__main__":
    assert B.NAME == "torch", "the recorded errors are PyTorch's"
    RECORDED.write_text(json.dumps({case: errors(case) for case in CASES}, indent=1) + "\n")
