"""What the backend's functions, modules and optimisers mean, to the corner cases; runs in both environments.

Kernels of ours are also compared with the same rule in Jittor's own operators.
"""

import importlib
import math
import os
import random
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_backend import array, convolution, leaf

from lib import backend as B
from lib.machine import notebook


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
        "0.weight",
        "0.bias",
        "0.running_mean",
        "0.running_var",
        "0.num_batches_tracked",
        "1.weight",
        "1.bias",
    ]
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


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_a_number_that_several_kernels_share_keeps_its_eight_bytes(dtype):
    """Jittor's kernel that stores it knows no dtype: the lock-step of float64 averages told, 9.40 instead of 5.37."""
    for kind, number in (("float32", 0.3), (dtype, 7), (dtype, 11)):
        places = [B.tensor(np.ones(shape, kind)) for shape in ((4,), (2, 3), (5,), (2, 2, 2))]
        B.sync()
        shared = B.tensor(np.full(1, number, kind))
        products = [place * shared for place in places]
        B.sync()
        for found in (shared, *products):
            assert (B.numpy(found) == np.full(1, number, kind)).all()


def test_ties_share_the_gradient():
    assert gradient(B.maximum, [1, 2, 3], [1, 3, 2]) == [[0.5, 0, 1], [0.5, 1, 0]]
    assert gradient(B.minimum, [1, 2, 3], [1, 3, 2]) == [[0.5, 1, 0], [0.5, 0, 1]]
    assert gradient(lambda x: B.amax(x, 1), [[1, 1, 0], [1, 2, 0]]) == [[[0.5, 0.5, 0], [0, 1, 0]]]


def test_clamp_and_abs_at_their_corners():
    assert gradient(lambda x: B.clamp(x, 0, 1), [-1, 0, 0.5, 1, 2]) == [[0, 1, 1, 1, 0]]
    assert gradient(B.abs, [-2, 0, 2]) == [[-1, 0, 1]]


def test_bounds_keep_their_float64_digits():
    x = np.array([0, 0.5, 1])
    assert np.array_equal(B.numpy(B.clamp(B.tensor(x), 0.1, 0.7)), np.clip(x, 0.1, 0.7))


def test_argmax_and_topk_give_indices():
    x = B.tensor(np.array([[1, 3, 2], [5, 4, 6]], np.float32))
    assert B.numpy(B.argmax(x, 1)).tolist() == [1, 2]
    values, indices = B.topk(x, 2, dim=1)
    assert B.numpy(values).tolist() == [[3, 2], [6, 5]] and B.numpy(indices).tolist() == [[1, 2], [2, 0]]
    assert B.numpy(indices).dtype == np.int64


def test_a_float64_sum_does_not_add_up_rounding():
    x = np.random.default_rng(0).random((2, 2100, 80))
    exact = math.fsum(x.ravel())
    assert B.floats([B.sum(B.tensor(x))])[0] == pytest.approx(exact, rel=2e-15)


def test_integer_division_rounds_down():
    a, b = B.tensor(np.array([-7, 7, -7, 7])), B.tensor(np.array([3, 3, -3, -3]))
    assert B.numpy(B.floor_divide(a, b)).tolist() == [-3, 2, 2, -3]
    assert B.numpy(B.remainder(a, b)).tolist() == [2, 1, -1, -2]


def test_nan_and_infinity_are_themselves():
    x = B.tensor(np.array([np.nan, 1, 0], np.float32))
    assert B.numpy(x == x).tolist() == [False, True, True]
    assert B.numpy(1 / x)[2] == np.inf


def test_nan_is_not_passed_over():
    """It is the largest of all; where a slope is decided by bounds it is out of them, as in PyTorch."""
    rows = np.array([[1, np.nan, 3], [2, 5, 4]], np.float32)
    values, indices = B.topk(B.tensor(rows), 2, 1)
    assert np.array_equal(B.numpy(values), [[np.nan, 3], [5, 4]], equal_nan=True)
    assert B.numpy(indices).tolist() == [[1, 2], [1, 2]]
    assert np.array_equal(B.numpy(B.amax(B.tensor(rows), 1)), [np.nan, 5], equal_nan=True)
    (slopes,) = gradient(lambda x: B.amax(x, 1), rows)
    assert np.isnan(slopes[0]).all() and slopes[1] == [0, 1, 0]
    bounded = [np.nan, 0.5, 7] * 32  # whole vectors: in the rest PyTorch's ReLU6 hands the gradient on
    assert gradient(B.nn.ReLU6(), bounded) == [[0, 1, 0] * 32] == gradient(lambda x: B.clamp(x, 0, 1), bounded)
    assert np.isnan(B.numpy(B.clamp(B.tensor(np.array(bounded, np.float32)), 0, 1))[0])


def test_a_shift_by_a_large_number_loses_nothing():
    """Compiled as one kernel, 1000 took the last three digits with it, and 1e30 all."""
    x = np.array([[1e30, 1e30, 0], [1000, 1000, 3]], np.float32)
    assert B.numpy(B.log_softmax(B.tensor(x), 1))[:, :2] == pytest.approx(-math.log(2), rel=2e-7)


def test_infinity_next_to_a_pixel_does_not_reach_it():
    x = np.array([[[[1, np.inf], [2, 3]]]], np.float32)
    assert np.array_equal(B.numpy(B.interpolate(B.tensor(x), scale_factor=2)), x.repeat(2, 2).repeat(2, 3))


def test_of_no_images_there_are_no_results_and_no_gradients():
    weight, x = leaf(array(3, 2)), leaf(np.zeros((0, 2), np.float32))
    products = [B.numpy(g) for g in B.grad(B.sum(B.linear(x, weight)), [weight])]
    assert not products[0].any()
    assert [B.numpy(part).shape for part in B.topk(x, 1, 1)] == [(0, 1)] * 2
    norm = B.nn.BatchNorm2d(2)
    norm(B.tensor(np.zeros((0, 2, 3, 3), np.float32)))
    state = {name: B.numpy(value) for name, value in B.named_state(norm)}
    assert not state["running_mean"].any() and (state["running_var"] == 1).all() and state["num_batches_tracked"] == 1
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


def test_an_embedding_s_padding_is_not_trained():
    embedding = B.nn.Embedding(3, 2, padding_idx=1)
    B.load_state(embedding, {"weight": array(3, 2)})
    y = embedding(B.tensor(np.array([0, 1, 1, 2, 2])))
    assert np.array_equal(B.numpy(y), array(3, 2)[[0, 1, 1, 2, 2]])
    assert B.numpy(B.grad(B.sum(y), [embedding.weight])[0]).tolist() == [[1, 1], [0, 0], [2, 2]]


def test_activations_at_their_corners():
    assert gradient(B.nn.ReLU(), [-1, 0, 1]) == [[0, 0, 1]]
    assert gradient(B.nn.ReLU6(), [-1, 0, 3, 6, 7]) == [[0, 0, 1, 0, 0]]
    for kind in (B.nn.ReLU, B.nn.ReLU6, B.nn.SiLU, B.nn.GELU):
        assert np.isnan(B.numpy(kind()(B.tensor(np.array([np.nan], np.float32)))))


def test_infinite_logits():
    """Masked attention and RT-DETR's anchors outside the image: shares and boxes are exact, gradients zero."""
    x = np.array([[0, -np.inf, 0], [np.inf, -np.inf, 0]], np.float32)
    assert np.allclose(B.numpy(B.softmax(B.tensor(x[:1]), -1)), [[0.5, 0, 0.5]])
    assert gradient(lambda x: B.softmax(x, -1) * B.tensor(np.array([[1, 2, 1]], np.float32)), x[:1]) == [[[0, 0, 0]]]
    assert B.numpy(B.sigmoid(B.tensor(x[1]))).tolist() == [1, 0, 0.5]
    assert gradient(B.sigmoid, x[1]) == [[0, 0, 0.25]]


def test_a_point_on_the_grid_reads_its_pixel():
    """Pixel centres of a 2 x 2 image lie at -0.5 and 0.5; at an edge half of what is read is the zero outside."""
    x = B.tensor(np.array([[[[1, 2], [3, 4]]]], np.float32))
    grid = np.array([[[[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [1, -0.5], [1, 1], [3, 0]]]], np.float32)
    assert B.numpy(B.grid_sample(x, B.tensor(grid))).tolist() == [[[[1, 2, 3, 1, 1, 0]]]]


def test_matrix_products_refuse_what_does_not_fit():
    with pytest.raises((ValueError, RuntimeError)):
        B.matmul(B.tensor(array(2, 3, 4)), B.tensor(array(2, 5, 4)))


def test_hooks_see_the_output_and_can_be_removed():
    layer, seen = B.nn.LeakyReLU(0.1), []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(B.numpy(output).tolist()))
    layer(B.tensor(np.array([-1, 2], np.float32)))
    handle.remove()
    layer(B.tensor(np.array([-1, 2], np.float32)))
    assert len(seen) == 1 and np.allclose(seen[0], [-0.1, 2])


def test_no_grad_does_not_freeze_a_module_built_inside():
    with B.no_grad():
        layer = B.nn.Conv2d(1, 1, 1)
    y = layer(B.tensor(array(1, 1, 2, 2)))
    assert np.abs(B.numpy(B.grad(B.sum(y * y + y), [layer.bias])[0])) > 0


def test_gradient_of_the_unused_is_zero():
    used, unused = leaf(array(2)), leaf(array(3))
    assert B.numpy(B.grad(B.sum(used * used), [used, unused])[1]).tolist() == [0, 0, 0]


def test_a_graph_is_used_again_only_where_it_is_retained():
    t = leaf(array(3))
    y = B.sum(B.exp(t * t))
    first, again, last = (B.numpy(B.grad(y, [t], retain_graph=kept)[0]) for kept in (True, True, False))
    assert np.array_equal(first, again) and np.array_equal(first, last) and first.all()
    if B.NAME == "torch":
        with pytest.raises(RuntimeError, match="a second time"):
            B.grad(y, [t])
    else:
        assert not B.numpy(B.grad(y, [t])[0]).any()


def test_the_gradient_of_a_scalar_made_of_scalars():
    """In one process float64 after float32, as records are made: Jittor fused the first gradient, 1, away from who
    reads it."""
    x = array(2, 50, 20)
    for kind in (np.float32, np.float64):
        t = B.nn.Parameter(B.tensor(x.astype(kind)))
        parts = [B.sum(t * t), B.sum(t * t * t), B.sum(t) / 7.0]  # kept, as a training keeps them for its log
        total = parts[0] + parts[1] + parts[2]
        assert np.allclose(B.numpy(B.grad(total, [t])[0]), 2 * x + 3 * x * x + 1 / 7, rtol=1e-5, atol=1e-5)


def in_tiles(function, x, weight, bias):
    from lib.backend.kernels import products

    return function(x, weight, bias, B.tensor(products._entered(B.numpy(weight))))


def kernel_pairs():
    """By module and function: the arrays whose gradients are compared, and what else it takes, a function of them."""
    x, scale, shift = array(2, 8, 5, 6), array(8), array(8, 1)[:, 0]
    return {
        "normalise": {
            "batch_norm": ((x, scale, shift), lambda f, *v: f(*v, 1e-5)[0]),
            "group_norm": ((x, scale, shift), lambda f, x, *v: f(x, 2, *v, 1e-5)),
            "layer_norm": ((x, array(6), array(6, 1)[:, 0]), lambda f, *v: f(*v, 1e-5)),
            "affine": ((x, scale, shift), None),
            "add_bias": ((x, shift), None),
            "blend": ((scale, shift), lambda f, *v: f(*v, 0.1, 1.5)),
        },
        "elementwise": {
            **dict.fromkeys(("relu", "relu6", "silu", "gelu", "sigmoid", "softmax", "total"), ((x,), None)),
            "leaky_relu": ((x,), lambda f, x: f(x, 0.1)),
            "binary_cross_entropy": ((x, np.abs(x) % 1), None),
        },
        "products": {
            "matmul": ((x, array(2, 8, 6, 3)), None),
            "linear": ((x, array(7, 6), array(7)), None),
            "conv2d": ((x, array(8, 1, 3, 3)), lambda f, *v: f(*v, (1, 1), (1, 1), (1, 1), 8)),
            "pointwise": ((x, array(7, 8, 1, 1), array(7)), None),
            "depthwise": ((x, array(8, 1, 5, 5), array(8)), lambda f, *v: f(*v, 2, 2)),
            "in_tiles": ((x, array(7, 8, 3, 3), array(7)), in_tiles),
        },
        "windows": {
            "max_pool": ((x,), lambda f, x: f(x, 3, 2, 1)),
            "avg_pool": ((x,), lambda f, x: f(x, 2, 2, True)),
            "adaptive_avg_pool": ((x,), lambda f, x: f(x, (3, 4))),
            "resize": ((x,), lambda f, x: f(x, (10, 12), (0.5, 0.5), "bilinear", False)),
            "grid_sample": ((x, array(2, 9, 3, 2, std=0.7)), None),
        },
    }


def test_a_trained_factor_is_plain_multiplication_with_a_gradient_that_is_a_sum():
    x, dy = array(2, 8, 5, 6), array(2, 8, 5, 7)[..., :6]
    t, factor = leaf(x), leaf(1.5)
    y = B.mul(t, factor)
    gradients = [B.numpy(g) for g in B.grad(B.sum(y * B.tensor(dy)), [t, factor])]
    np.testing.assert_array_equal(B.numpy(y), x * np.float32(1.5))
    np.testing.assert_array_equal(gradients[0], dy * np.float32(1.5))
    assert gradients[1] == pytest.approx((dy.astype(np.float64) * x).sum(), rel=1e-6)


WITHOUT_GRADIENT = "blend", "pointwise", "depthwise", "in_tiles"


@pytest.mark.skipif(B.NAME != "jittor", reason="PyTorch needs no kernels of ours")
@pytest.mark.parametrize("module, name", [(module, name) for module, names in kernel_pairs().items() for name in names])
def test_kernels_are_the_plain_formulation(module, name):
    kernel = getattr(importlib.import_module(f"lib.backend.kernels.{module}"), name)
    arrays, call = kernel_pairs()[module][name]
    results = []
    for function in (kernel, kernel.plain):
        leaves = [leaf(a) for a in arrays]
        y = call(function, *leaves) if call else function(*leaves)
        dy = B.tensor(array(*y.shape, 1)[..., 0])
        gradients = () if name in WITHOUT_GRADIENT else B.grad(B.sum(y * dy), leaves)
        results.append([B.numpy(v) for v in (y, *gradients)])
    for ours, plain in zip(*results):
        assert np.abs(ours - plain).max() < 2e-5 * np.abs(plain).max()


@pytest.mark.skipif(B.NAME != "jittor", reason="PyTorch needs no kernels of ours")
def test_header_files_are_read_part_by_part(tmp_path, monkeypatch):
    from lib.backend import kernels

    (tmp_path / "x.h").write_text(
        "/// for readers\n\n//// header base\nint base;\n\n/// more\n//// header wide: base\nint wide;\n"
        "//// opening sizes\n  int n;\n//// kernel one: wide, sizes\n  n = NAME;\n//// kernel two: <a>, <b>\n  two;\n"
    )
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "__init__.py"))
    found = kernels.read("x")
    assert found["one"].having(NAME="1") == kernels.Kernel("\nint base;\n\nint wide;\n", "\n  int n;\n\n  n = 1;\n")
    assert found == {"one": found["one"], "two": kernels.Kernel("#include <a>\n#include <b>", "\n  two;\n")}


def test_the_text_of_kernels_counts_among_jittor_s_sources_alone():
    """Else an old record would stand for a changed kernel."""
    start, found = Path("lib/alignment/kernels.py"), {}
    for side in ("jittor", "torch"):
        names = notebook.sources(start, side, ["nanodet-plus-m_320"])
        found[side] = {name for name in names if name.startswith("lib/backend/kernels/")}
    kernels = Path(B.__file__).parent / "kernels"
    assert found["jittor"] == {f"lib/backend/kernels/{p.name}" for p in kernels.iterdir() if p.suffix in (".py", ".h")}
    assert not found["torch"]


def reference_adamw(p, gradients, lr, decay, beta=(0.9, 0.999), eps=1e-8):
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        p = p * (1 - lr * decay)
        m, v = beta[0] * m + (1 - beta[0]) * g, beta[1] * v + (1 - beta[1]) * g * g
        p = p - lr / (1 - beta[0] ** t) * m / (np.sqrt(v / (1 - beta[1] ** t)) + eps)
    return p


def reference_sgd(p, gradients, lr, decay, momentum=0.9, nesterov=True):
    """lr and momentum are numbers, or one for each step."""
    velocity = None
    rates, momenta = (np.broadcast_to(v, len(gradients)) for v in (lr, momentum))
    for g, rate, keep in zip(gradients, rates, momenta):
        g = g + decay * p
        velocity = g if velocity is None else keep * velocity + g
        p = p - rate * (g + keep * velocity if nesterov else velocity)
    return p


def sgd_data(**changes):
    return {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.05, "nesterov": 1, "first": 0, **changes}


@pytest.mark.skipif(B.NAME != "jittor", reason="PyTorch needs no kernels of ours")
@pytest.mark.parametrize(
    "name, data",
    [
        ("adamw", {"step": 3, "lr": 0.01, "weight_decay": 0.05, "eps": 1e-8, "beta1": 0.9, "beta2": 0.999}),
        ("sgd", sgd_data()),
        ("sgd", sgd_data(first=1)),
        ("sgd", sgd_data(nesterov=0)),
    ],
)
def test_optimiser_kernels_are_the_plain_formulation(name, data):
    from lib.backend.kernels import optim

    moments = {"adamw": 2, "sgd": 1}[name]
    values = [
        B.tensor(array(40, 3)),
        B.tensor(array(40, 4)[:, :3]),
        B.tensor(array(40, 5)[:, :3]),
        B.tensor(np.abs(array(40, 6)[:, :3])),
    ][: 2 + moments]
    step = getattr(optim, name)
    for kernel, plain in zip(step(*values, data), step.plain(*values, data), strict=True):
        assert np.abs(B.numpy(kernel) - B.numpy(plain)).max() < 1e-6


@pytest.mark.parametrize(
    "make, reference",
    [
        (lambda groups: B.AdamW(groups, lr=0.01), reference_adamw),
        (lambda groups: B.SGD(groups, lr=0.01, momentum=0.9, nesterov=True), reference_sgd),
        (lambda groups: B.SGD(groups, lr=0.01, momentum=0.9), lambda *a: reference_sgd(*a, nesterov=False)),
        (lambda groups: B.SGD(groups, lr=0.01), lambda *a: reference_sgd(*a, momentum=0)),
    ],
)
def test_optimisers_in_float64(make, reference):
    start = array(4, 3).astype(np.float64)
    gradients = [array(4, 3, s)[..., 0].astype(np.float64) for s in range(1, 9)]
    held = B.nn.Parameter(B.tensor(start))
    optimiser = make([{"parameters": [("a", held)], "weight_decay": 0.05}])
    for gradient in gradients:
        optimiser.step([B.tensor(gradient)])
        B.sync()
    assert np.abs(B.numpy(held) - reference(start, gradients, 0.01, 0.05)).max() < 1e-14


def test_sgd_warms_up():
    """Rates per group and a momentum that change with every step, weight decay per group."""
    start, steps = [array(4, 3).astype(np.float64), array(5).astype(np.float64)], 6
    gradients = [[array(*a.shape, s)[..., 0].astype(np.float64) for s in range(1, steps + 1)] for a in start]
    rates, momenta = np.linspace([0, 0.1], [0.02, 0.02], steps), np.linspace(0.8, 0.937, steps)
    held = [B.nn.Parameter(B.tensor(a)) for a in start]
    optimiser = B.SGD(
        [{"parameters": [(name, t)], "weight_decay": decay} for name, t, decay in zip("ab", held, (0.05, 0.0))],
        lr=0.3,
        momentum=0.9,
        nesterov=True,
    )
    for step in range(steps):
        optimiser.set_lr([float(rate) for rate in rates[step]])
        optimiser.set_momentum(float(momenta[step]))
        optimiser.step([B.tensor(g[step]) for g in gradients])
        B.sync()
    for t, a, g, lr, decay in zip(held, start, gradients, rates.T, (0.05, 0)):
        assert np.abs(B.numpy(t) - reference_sgd(a, g, lr, decay, momenta)).max() < 1e-14


def test_sgd_without_momentum_keeps_nothing():
    held = leaf(array(3))
    optimiser = B.SGD([{"parameters": [("a", held)]}], lr=0.1)
    optimiser.step([B.tensor(array(3))])
    assert optimiser.state() == {}


@pytest.mark.parametrize(
    "make, reference",
    [
        (lambda groups: B.AdamW(groups, lr=0.01), reference_adamw),
        (lambda groups: B.SGD(groups, lr=0.01, momentum=0.9, nesterov=True), reference_sgd),
    ],
)
def test_optimisers_and_their_resumption(make, reference):
    start = [array(4, 3), array(5)]
    gradients = [[array(4, 3, step)[..., 0], array(5, step)[..., 0]] for step in range(1, 13)]
    tensors = [leaf(a) for a in start]

    def groups():
        return [
            {"parameters": [("a", tensors[0])], "weight_decay": 0.05},
            {"parameters": [("b", tensors[1])], "weight_decay": 0.0},
        ]

    optimiser = make(groups())
    for step, given in enumerate(gradients):
        if step == 5:
            saved, optimiser = optimiser.state(), make(groups())
            optimiser.load_state(saved)
        optimiser.step([B.tensor(g) for g in given])
        B.sync()
    for t, a, k, decay in zip(tensors, start, (0, 1), (0.05, 0)):
        expected = reference(a.astype(np.float64), [g[k].astype(np.float64) for g in gradients], 0.01, decay)
        assert np.abs(B.numpy(t) - expected).max() < 2e-6


def test_float64_reaches_every_floating_entry():
    model = B.float64(B.nn.Sequential(B.nn.Conv2d(2, 2, 1), B.nn.BatchNorm2d(2)))
    kinds = {name: str(B.numpy(t).dtype) for name, t in B.named_state(model)}
    assert kinds.pop("1.num_batches_tracked") == "int64" and set(kinds.values()) == {"float64"}
    x = array(2, 2, 5, 5).astype(np.float64)
    y = B.numpy(model[1](B.tensor(x)))
    expected = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
    assert np.abs(y - expected).max() < 1e-13


@pytest.mark.parametrize(
    "c_in, c_out, kernel, stride, groups", [(16, 8, 1, 1, 1), (3, 8, 3, 2, 1), (8, 8, 5, 1, 8), (8, 4, 3, 2, 2)]
)
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


def test_a_terminals_ctrl_c_ends_the_process():
    """It reaches every process of the group: the import's children may not die holding what their parent waits for."""
    program = "import time\nfrom lib import backend\nprint('on', flush=True)\ntime.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "on\n"
        time.sleep(0.2)  # until the child sleeps
        os.killpg(child.pid, signal.SIGINT)
        _, error = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == -signal.SIGINT and error.endswith("KeyboardInterrupt\n")


def test_every_name_is_there_and_no_function_of_ours_is_left_out():
    assert not [name for name in B.NAMES if not hasattr(B, name)]
    helpers = {"array", "full_like", "scalar"}  # of jittor_functions, for the others
    for module in (source for source in B._sources if source.__name__.startswith("lib.")):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        assert {name for name in own if name[0] != "_"} - helpers <= set(B.NAMES)


def test_what_is_freed_goes_back_to_the_system():
    """Else every training of a lock-step would leave several times its model behind until the process ends."""

    def resident():
        return psutil.Process().memory_info().rss

    blocks = [B.tensor(np.full(2**16, index, np.float32)) for index in range(512)]  # 128 MiB
    B.sync()
    del blocks[:-1]  # the last one keeps them from the heap's end
    held = resident()
    B.give_back()
    assert held - resident() > 64 * 2**20


def test_hooks_whose_handles_nobody_keeps_all_run():
    module, calls = B.nn.ReLU(), []
    for number in range(3):
        module.register_forward_hook(lambda *_, number=number: calls.append(number))
    module(B.tensor(np.zeros(2, np.float32)))
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 3, 64])
def test_small_cross_entropies_survive_in_arrays_of_any_length(count):
    x = np.full(count, 20, np.float32)
    loss = B.numpy(B.binary_cross_entropy_with_logits(B.tensor(x), B.tensor(np.ones_like(x)), reduction="none"))
    np.testing.assert_allclose(loss, math.log1p(math.exp(-20)), rtol=1e-6)


@pytest.mark.skipif(B.NAME != "torch", reason="PyTorch's compiler")
def test_training_and_profiling_do_not_import_the_compiler():
    """2 s of each process, for guards against what nothing here does."""
    code = """
import sys
import numpy as np
from lib import backend as B
leaf = B.nn.Parameter(B.tensor(np.ones(3, np.float32)))
for kind in (B.AdamW, B.SGD):
    B.profile(lambda: kind([{"parameters": [("x", leaf)]}], lr=0.1).step(B.grad(B.sum(leaf * leaf), [leaf])))
assert B.numpy(leaf).max() < 1
print({"torch._dynamo", "torch._inductor"} & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"
