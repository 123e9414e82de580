"""Layers: normalisation, convolution, embedding, dropout, and how weights start."""

import math

import numpy as np

from ..probe import Probe, attempt, normal

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


def jittor_running(jt, x, name):
    """A statistic of a fresh batch norm after one batch."""
    norm = jt.nn.BatchNorm2d(3)
    norm(x).sync()
    return getattr(norm, name)


def torch_running(torch, x, name):
    """The same in PyTorch."""
    norm = torch.nn.BatchNorm2d(3)
    norm(x)
    return getattr(norm, name)


def backend_running(B, x, name):
    """The same through the backend."""
    norm = B.nn.BatchNorm2d(3)
    norm(x)
    return getattr(norm, name)


def backend_conv(B, x, weight):
    """A convolution through the backend, in x's type."""
    layer = B.nn.Conv2d(1, 2, 3, padding=1, bias=False)
    layer = B.float64(layer) if "64" in str(x.dtype) else layer
    B.load_state(layer, {"weight": B.numpy(weight)})
    return layer(x)


def jittor_padding_row(jt):
    """Gradient of the padding row of an embedding."""
    layer = jt.nn.Embedding(3, 2, padding_idx=0)
    return jt.grad(layer(jt.array([0, 1])).sum(), layer.weight)


def torch_padding_row(torch):
    """The same in PyTorch."""
    layer = torch.nn.Embedding(3, 2, padding_idx=0)
    return torch.autograd.grad(layer(torch.tensor([0, 1])).sum(), [layer.weight])[0]


def backend_padding_row(B):
    """The same through the backend."""
    layer = B.nn.Embedding(3, 2, padding_idx=0)
    return B.grad(B.sum(layer(B.tensor(np.array([0, 1])))), [layer.weight])[0]


def kept(dropout, ones):
    """Which values a dropout of 1000 ones gives, and whether some are dropped."""
    return [float(v) for v in np.unique(dropout(ones).numpy())]


def extent(weight) -> list[float]:
    """Largest size and mean square of weights, in multiples of 1/sqrt(fan in) and its square, to two digits."""
    array = weight.detach().numpy().astype(np.float64) * math.sqrt(FAN_IN)
    return [round(float(np.abs(array).max()), 2), round(float((array**2).mean()), 2)]


PROBES = (
    Probe(
        topic=TOPIC,
        name="batch norm's running variance",
        question="What is running_var after one batch?",
        advice="Jittor averages the biased variance: multiply by n / (n - 1), or evaluation drifts after training.",
        jittor=lambda jt, x: jittor_running(jt, x, "running_var"),
        torch=lambda torch, x: torch_running(torch, x, "running_var"),
        backend=lambda B, x: backend_running(B, x, "running_var"),
        expected=lambda x: 0.9 + 0.1 * x.var((0, 2, 3), ddof=1),
        inputs=(BATCH,),
    ),
    Probe(
        topic=TOPIC,
        name="batch norm's running mean",
        question="What is running_mean after one batch?",
        advice="Equal: momentum 0.1 means the same.",
        jittor=lambda jt, x: jittor_running(jt, x, "running_mean"),
        torch=lambda torch, x: torch_running(torch, x, "running_mean"),
        backend=lambda B, x: backend_running(B, x, "running_mean"),
        expected=lambda x: 0.1 * x.mean((0, 2, 3)),
        inputs=(BATCH,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="batch norm near zero",
        question="What is batch norm of values around 0?",
        advice="Equal, eps included.",
        jittor=lambda jt, x: jt.nn.BatchNorm2d(3)(x),
        torch=lambda torch, x: torch.nn.BatchNorm2d(3)(x),
        backend=lambda B, x: B.nn.BatchNorm2d(3)(x),
        expected=lambda x: normalised(x, (0, 2, 3)),
        inputs=(BATCH,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="batch norm far from zero",
        question="What is batch norm where the mean is 300 deviations?",
        advice="Jittor computes E[x²] - E[x]², which cancels: compute the variance in a second pass.",
        jittor=lambda jt, x: jt.nn.BatchNorm2d(4)(x),
        torch=lambda torch, x: torch.nn.BatchNorm2d(4)(x),
        backend=lambda B, x: B.nn.BatchNorm2d(4)(x),
        expected=lambda x: normalised(x, (0, 2, 3)),
        inputs=(FAR,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="group norm far from zero",
        question="What is group norm at offset 1000 and deviation 0.1?",
        advice="Two passes again.",
        jittor=lambda jt, x: jt.nn.GroupNorm(2, 4)(x.reshape(2, 4, 4, 4)).reshape(2, 4, 16),
        torch=lambda torch, x: torch.nn.GroupNorm(2, 4)(x),
        backend=lambda B, x: B.nn.GroupNorm(2, 4)(x.reshape(2, 4, 4, 4)).reshape(2, 4, 16),
        expected=lambda x: normalised(x.reshape(2, 2, -1), 2).reshape(x.shape),
        inputs=(OFFSET,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="layer norm far from zero",
        question="What is layer norm at offset 1000 and deviation 0.1?",
        advice="Two passes again.",
        jittor=lambda jt, x: jt.nn.LayerNorm(16)(x),
        torch=lambda torch, x: torch.nn.LayerNorm(16)(x),
        backend=lambda B, x: B.nn.LayerNorm(16)(x),
        expected=lambda x: normalised(x, 2),
        inputs=(OFFSET,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="eps of the norms",
        question="What is the eps of batch, group and layer norm?",
        advice="1e-5 in all; Gold-YOLO and RT-DETR set their own.",
        jittor=lambda jt: [jt.nn.BatchNorm2d(2).eps, jt.nn.GroupNorm(1, 2).eps, jt.nn.LayerNorm(2).eps],
        torch=lambda torch: [torch.nn.BatchNorm2d(2).eps, torch.nn.GroupNorm(1, 2).eps, torch.nn.LayerNorm(2).eps],
        backend=lambda B: [B.nn.BatchNorm2d(2).eps, B.nn.GroupNorm(1, 2).eps, B.nn.LayerNorm(2).eps],
        expected=lambda: [1e-5] * 3,
        precision=np.float64,
    ),
    Probe(
        topic=TOPIC,
        name="one value per channel",
        question="Does batch norm train on a single value per channel?",
        advice="Refuse it: Jittor gives numbers near 0.",
        jittor=lambda jt, x: attempt(lambda: jt.nn.BatchNorm2d(3)(x).numpy()),
        torch=lambda torch, x: attempt(lambda: torch.nn.BatchNorm2d(3)(x)),
        backend=lambda B, x: attempt(lambda: B.numpy(B.nn.BatchNorm2d(3)(x))),
        expected=lambda x: "raises",
        inputs=(BATCH[:1, :, :1, :1],),
    ),
    Probe(
        topic=TOPIC,
        name="convolution",
        question="What is a padded 3 x 3 convolution?",
        advice="Equal up to the order of summation; no kernel is turned.",
        jittor=lambda jt, x, weight: jt.nn.conv2d(x, weight, padding=1),
        torch=lambda torch, x, weight: torch.nn.functional.conv2d(x, weight, padding=1),
        backend=backend_conv,
        expected=lambda x, weight: convolved(x, weight, 1),
        inputs=(MAP, KERNEL),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="convolution in float64",
        question="How exact is a convolution of float64 tensors?",
        advice="It works but is slow: for whole models write an own kernel.",
        jittor=lambda jt, x, weight: jt.nn.conv2d(x, weight, padding=1),
        torch=lambda torch, x, weight: torch.nn.functional.conv2d(x, weight, padding=1),
        backend=backend_conv,
        expected=lambda x, weight: convolved(x, weight, 1),
        inputs=(MAP.astype(np.float64), KERNEL.astype(np.float64)),
        cancels=True,
        precision=np.float64,
    ),
    Probe(
        topic=TOPIC,
        name='convolution with padding="same"',
        question='Does conv2d know padding="same"?',
        advice="Pass the number.",
        jittor=lambda jt, x, weight: attempt(lambda: jt.nn.conv2d(x, weight, padding="same").numpy()),
        torch=lambda torch, x, weight: torch.nn.functional.conv2d(x, weight, padding="same"),
        expected=lambda x, weight: convolved(x, weight, 1),
        inputs=(MAP, KERNEL),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="unfold",
        question="Which order have the columns of unfold?",
        advice="Equal: channel, row, column.",
        jittor=lambda jt, x: jt.nn.unfold(x, 2),
        torch=lambda torch, x: torch.nn.functional.unfold(x, 2),
        expected=lambda x: np.lib.stride_tricks.sliding_window_view(x[0, 0], (2, 2)).reshape(1, -1, 4).swapaxes(1, 2),
        inputs=(SMALL,),
    ),
    Probe(
        topic=TOPIC,
        name="padding by reflection",
        question="Is the edge pixel repeated when a map is padded by reflection?",
        advice="Equal: it isn't.",
        jittor=lambda jt, x: jt.nn.pad(x, [2, 0, 1, 0], mode="reflect"),
        torch=lambda torch, x: torch.nn.functional.pad(x, [2, 0, 1, 0], mode="reflect"),
        expected=lambda x: np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 0)), mode="reflect"),
        inputs=(SMALL,),
    ),
    Probe(
        topic=TOPIC,
        name="linear layer",
        question="Is the weight of linear (out, in)?",
        advice="Equal.",
        jittor=lambda jt, x, weight: jt.nn.linear(x, weight),
        torch=lambda torch, x, weight: torch.nn.functional.linear(x, weight),
        backend=lambda B, x, weight: B.linear(x, weight),
        expected=lambda x, weight: x @ weight.T,
        inputs=(normal(2, 3), normal(4, 3)),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="padding row of an embedding",
        question="Does the row padding_idx get a gradient?",
        advice="Mask it: Jittor only starts the row at zero, and then trains it.",
        jittor=jittor_padding_row,
        torch=torch_padding_row,
        backend=backend_padding_row,
        expected=lambda: np.array([[0, 0], [1, 1], [0, 0]]),
    ),
    Probe(
        topic=TOPIC,
        name="dropout when built",
        question="Which values does a fresh Dropout(0.5) give for ones?",
        advice="Call train() on the model: Jittor's dropout is built switched off.",
        jittor=lambda jt: kept(jt.nn.Dropout(0.5), jt.ones((1000,))),
        torch=lambda torch: kept(torch.nn.Dropout(0.5), torch.ones(1000)),
        expected=lambda: [0.0, 2.0],
    ),
    Probe(
        topic=TOPIC,
        name="dropout in training",
        question="Are the values that Dropout(0.5) keeps doubled?",
        advice="Equal: kept values are divided by 1 - p.",
        jittor=lambda jt: kept(_trained(jt.nn.Dropout(0.5)), jt.ones((1000,))),
        torch=lambda torch: kept(_trained(torch.nn.Dropout(0.5)), torch.ones(1000)),
        expected=lambda: [0.0, 2.0],
    ),
    Probe(
        topic=TOPIC,
        name="first weights of a linear layer",
        question="How far do fresh weights reach, times sqrt(fan in)?",
        advice="Equal: uniform within 1 / sqrt(fan in).",
        jittor=lambda jt: extent(jt.nn.Linear(FAN_IN, FAN_OUT).weight),
        torch=lambda torch: extent(torch.nn.Linear(FAN_IN, FAN_OUT).weight),
        expected=lambda: [1.0, 0.33],
    ),
    Probe(
        topic=TOPIC,
        name="first weights of a convolution",
        question="How far do fresh weights reach, times sqrt(fan in)?",
        advice="Equal: uniform within 1 / sqrt(fan in).",
        jittor=lambda jt: extent(jt.nn.Conv2d(FAN_IN // 4, FAN_OUT, 2).weight),
        torch=lambda torch: extent(torch.nn.Conv2d(FAN_IN // 4, FAN_OUT, 2).weight),
        expected=lambda: [1.0, 0.33],
    ),
    Probe(
        topic=TOPIC,
        name="first weights of an embedding",
        question="Is the deviation of fresh rows 1?",
        advice="Equal: a standard normal.",
        jittor=lambda jt: round(float(jt.nn.Embedding(FAN_OUT, FAN_IN).weight.numpy().std()), 1),
        torch=lambda torch: round(float(torch.nn.Embedding(FAN_OUT, FAN_IN).weight.detach().numpy().std()), 1),
        expected=lambda: 1.0,
    ),
)


def _trained(module):
    module.train()
    return module
