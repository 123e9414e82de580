"""Layers: normalisation, convolution, embedding, dropout, and how weights start."""

import math

import numpy as np

from notebooks.probes.probe import ask, attempt, given, gradient, normal

TOPIC = "Layers"
BATCH = normal(4, 3, 2, 2)
FAR = normal(2, 4, 6, 6, mean=30.0, std=0.1)  # mean / deviation = 300
OFFSET = normal(2, 4, 16, mean=1000.0, std=0.1)
MAP = normal(1, 1, 5, 5)
SMALL = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
KERNEL = normal(2, 1, 3, 3)
FAN_IN, FAN_OUT = 64, 4096  # enough weights for their extent to be within a thousandth of the bound

# --- formulas in float64 -------------------------------------------------------------------------------------------


def normalised(x, axes):
    """x with mean 0 and variance 1 along axes, at eps 1e-5."""
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def convolved(x, weight, padding):
    """x (1, 1, h, w) by weight (o, 1, k, k)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    view = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))
    return np.einsum("nchwrs,ocrs->nohw", view, weight)


# --- modules that need more than a line ----------------------------------------------------------------------------


def normed(F, x):
    """A fresh batch norm after one batch."""
    norm = F.nn.BatchNorm2d(3)
    norm(x)
    return norm


def backend_conv(B, x, weight):
    """A convolution through the backend, in x's type."""
    layer = B.nn.Conv2d(1, 2, 3, padding=1, bias=False)
    layer = B.float64(layer) if "64" in str(x.dtype) else layer
    B.load_state(layer, {"weight": B.numpy(weight)})
    return layer(x)


def padding_row(F, indices):
    """Gradient of an embedding whose first row is padding."""
    layer = F.nn.Embedding(3, 2, padding_idx=0)
    return gradient(F, layer(indices), layer.weight)


def kept(dropout, ones):
    """Which values a dropout of 1000 ones gives, and whether some are dropped."""
    return [float(v) for v in np.unique(dropout(ones).numpy())]


def extent(weight) -> list[float]:
    """Largest size and mean square of weights, in multiples of 1/sqrt(fan in) and its square, to two digits."""
    array = weight.detach().numpy().astype(np.float64) * math.sqrt(FAN_IN)
    return [round(float(np.abs(array).max()), 2), round(float((array**2).mean()), 2)]


PROBES = {
    "batch norm's running variance": given(BATCH).ask(
        "What is running_var after one batch?",
        "Jittor averages the biased variance: multiply by n / (n - 1), or evaluation drifts after training.",
        every=lambda F, x: normed(F, x).running_var,
        expected=lambda x: 0.9 + 0.1 * x.var((0, 2, 3), ddof=1),
    ),
    "batch norm's running mean": given(BATCH, cancels=True).ask(
        "What is running_mean after one batch?",
        "Equal: momentum 0.1 means the same.",
        every=lambda F, x: normed(F, x).running_mean,
        expected=lambda x: 0.1 * x.mean((0, 2, 3)),
    ),
    "batch norm near zero": given(BATCH, cancels=True).ask(
        "What is batch norm of values around 0?",
        "Equal, eps included.",
        every=lambda F, x: F.nn.BatchNorm2d(3)(x),
        expected=lambda x: normalised(x, (0, 2, 3)),
    ),
    "batch norm far from zero": given(FAR, cancels=True).ask(
        "What is batch norm where the mean is 300 deviations?",
        "Jittor computes E[x²] - E[x]², which cancels: compute the variance in a second pass.",
        every=lambda F, x: F.nn.BatchNorm2d(4)(x),
        expected=lambda x: normalised(x, (0, 2, 3)),
    ),
    "group norm far from zero": given(OFFSET, cancels=True).ask(
        "What is group norm at offset 1000 and deviation 0.1?",
        "Two passes again.",
        jittor=lambda jt, x: jt.nn.GroupNorm(2, 4)(x.reshape(2, 4, 4, 4)).reshape(2, 4, 16),
        torch=lambda torch, x: torch.nn.GroupNorm(2, 4)(x),
        backend=lambda B, x: B.nn.GroupNorm(2, 4)(x.reshape(2, 4, 4, 4)).reshape(2, 4, 16),
        expected=lambda x: normalised(x.reshape(2, 2, -1), 2).reshape(x.shape),
    ),
    "layer norm far from zero": given(OFFSET, cancels=True).ask(
        "What is layer norm at offset 1000 and deviation 0.1?",
        "Two passes again.",
        every=lambda F, x: F.nn.LayerNorm(16)(x),
        expected=lambda x: normalised(x, 2),
    ),
    "eps of the norms": given(precision=np.float64).ask(
        "What is the eps of batch, group and layer norm?",
        "1e-5 in all; Gold-YOLO and RT-DETR set their own.",
        every=lambda F: [F.nn.BatchNorm2d(2).eps, F.nn.GroupNorm(1, 2).eps, F.nn.LayerNorm(2).eps],
        expected=lambda: [1e-5] * 3,
    ),
    "one value per channel": given(BATCH[:1, :, :1, :1]).ask(
        "Does batch norm train on a single value per channel?",
        "Refuse it: Jittor gives numbers near 0.",
        both=lambda F, x: attempt(lambda: F.nn.BatchNorm2d(3)(x).numpy()),
        backend=lambda B, x: attempt(lambda: B.numpy(B.nn.BatchNorm2d(3)(x))),
        expected=lambda x: "raises",
    ),
    "convolution": given(MAP, KERNEL, cancels=True).ask(
        "What is a padded 3 x 3 convolution?",
        "Equal up to the order of summation; no kernel is turned.",
        jittor=lambda jt, x, weight: jt.nn.conv2d(x, weight, padding=1),
        torch=lambda torch, x, weight: torch.nn.functional.conv2d(x, weight, padding=1),
        backend=backend_conv,
        expected=lambda x, weight: convolved(x, weight, 1),
    ),
    "convolution in float64": given(
        MAP.astype(np.float64), KERNEL.astype(np.float64), cancels=True, precision=np.float64
    ).ask(
        "How exact is a convolution of float64 tensors?",
        "It works but is slow: for whole models write an own kernel.",
        jittor=lambda jt, x, weight: jt.nn.conv2d(x, weight, padding=1),
        torch=lambda torch, x, weight: torch.nn.functional.conv2d(x, weight, padding=1),
        backend=backend_conv,
        expected=lambda x, weight: convolved(x, weight, 1),
    ),
    'convolution with padding="same"': given(MAP, KERNEL, cancels=True).ask(
        'Does conv2d know padding="same"?',
        "Pass the number.",
        jittor=lambda jt, x, weight: attempt(lambda: jt.nn.conv2d(x, weight, padding="same").numpy()),
        torch=lambda torch, x, weight: torch.nn.functional.conv2d(x, weight, padding="same"),
        expected=lambda x, weight: convolved(x, weight, 1),
    ),
    "unfold": given(SMALL).ask(
        "Which order have the columns of unfold?",
        "Equal: channel, row, column.",
        jittor=lambda jt, x: jt.nn.unfold(x, 2),
        torch=lambda torch, x: torch.nn.functional.unfold(x, 2),
        expected=lambda x: np.lib.stride_tricks.sliding_window_view(x[0, 0], (2, 2)).reshape(1, -1, 4).swapaxes(1, 2),
    ),
    "padding by reflection": given(SMALL).ask(
        "Is the edge pixel repeated when a map is padded by reflection?",
        "Equal: it isn't.",
        jittor=lambda jt, x: jt.nn.pad(x, [2, 0, 1, 0], mode="reflect"),
        torch=lambda torch, x: torch.nn.functional.pad(x, [2, 0, 1, 0], mode="reflect"),
        expected=lambda x: np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 0)), mode="reflect"),
    ),
    "linear layer": given(normal(2, 3), normal(4, 3), cancels=True).ask(
        "Is the weight of linear (out, in)?",
        "Equal.",
        jittor=lambda jt, x, weight: jt.nn.linear(x, weight),
        torch=lambda torch, x, weight: torch.nn.functional.linear(x, weight),
        backend=lambda B, x, weight: B.linear(x, weight),
        expected=lambda x, weight: x @ weight.T,
    ),
    "padding row of an embedding": given(np.array([0, 1])).ask(
        "Does the row padding_idx get a gradient?",
        "Mask it: Jittor only starts the row at zero, and then trains it.",
        every=padding_row,
        expected=lambda indices: np.array([[0, 0], [1, 1], [0, 0]]),
    ),
    "dropout when built": ask(
        "Which values does a fresh Dropout(0.5) give for ones?",
        "Call train() on the model: Jittor's dropout is built switched off.",
        both=lambda F: kept(F.nn.Dropout(0.5), F.ones((1000,))),
        expected=lambda: [0.0, 2.0],
    ),
    "dropout in training": ask(
        "Are the values that Dropout(0.5) keeps doubled?",
        "Equal: kept values are divided by 1 - p.",
        both=lambda F: kept(_trained(F.nn.Dropout(0.5)), F.ones((1000,))),
        expected=lambda: [0.0, 2.0],
    ),
    "first weights of a linear layer": ask(
        "How far do fresh weights reach, times sqrt(fan in)?",
        "Equal: uniform within 1 / sqrt(fan in).",
        both=lambda F: extent(F.nn.Linear(FAN_IN, FAN_OUT).weight),
        expected=lambda: [1.0, 0.33],
    ),
    "first weights of a convolution": ask(
        "How far do fresh weights reach, times sqrt(fan in)?",
        "Equal: uniform within 1 / sqrt(fan in).",
        both=lambda F: extent(F.nn.Conv2d(FAN_IN // 4, FAN_OUT, 2).weight),
        expected=lambda: [1.0, 0.33],
    ),
    "first weights of an embedding": ask(
        "Is the deviation of fresh rows 1?",
        "Equal: a standard normal.",
        jittor=lambda jt: round(float(jt.nn.Embedding(FAN_OUT, FAN_IN).weight.numpy().std()), 1),
        torch=lambda torch: round(float(torch.nn.Embedding(FAN_OUT, FAN_IN).weight.detach().numpy().std()), 1),
        expected=lambda: 1.0,
    ),
}


def _trained(module):
    module.train()
    return module
