"""Functions of one value: saturation, and the formulas behind the names."""

import math

import numpy as np

from notebooks.probes.probe import attempt, f32, given

TOPIC = "Functions"
WIDE = f32(-200, -40, -20, 0, 3, 40)
NEAR = f32(-3, -0.5, 0, 0.5, 3)


def logistic(x):
    """1 / (1 + exp(-x)) in float64."""
    return np.exp(-np.logaddexp(0, -x))


def erf(x):
    """The error function of each value."""
    return np.vectorize(math.erf)(x)


def shares(x, axis):
    """Softmax in float64."""
    found = np.exp(x - x.max(axis, keepdims=True))
    return found / found.sum(axis, keepdims=True)


PROBES = {
    "saturated sigmoid": given(f32(-40, -20, 0)).ask(
        "What is log10 of sigmoid(-40)?",
        "Jittor clips the argument at -30: tanh or a formula of one's own keeps small scores apart.",
        every=lambda F, x: F.log(F.sigmoid(x)) / math.log(10),
        expected=lambda x: np.log10(logistic(x)),
    ),
    "sigmoid": given(NEAR).ask(
        "What is sigmoid near 0?",
        "Equal where nothing saturates.",
        every=lambda F, x: F.sigmoid(x),
        expected=logistic,
    ),
    "logarithm of a sigmoid": given(f32(-200, -40, 3)).ask(
        "What is log_sigmoid(-200)?",
        "Write minus softplus(-x), or keep the logits: Jittor ends at -30.",
        jittor=lambda jt, x: jt.nn.log_sigmoid(x),
        torch=lambda torch, x: torch.nn.functional.logsigmoid(x),
        expected=lambda x: -np.logaddexp(0, -x),
    ),
    "logsumexp of large values": given(f32(100, 100)).ask(
        "What is logsumexp of 100 and 100?",
        "Subtract the largest value first: Jittor overflows.",
        jittor=lambda jt, x: jt.nn.logsumexp(x, 0),
        torch=lambda torch, x: torch.logsumexp(x, 0),
        expected=lambda x: np.logaddexp.reduce(x),
    ),
    "log_softmax of large values": given(f32(200, 0)).ask(
        "What is log_softmax of 200 and 0?",
        "Both shift by the largest value.",
        jittor=lambda jt, x: jt.nn.log_softmax(x, 0),
        torch=lambda torch, x: torch.log_softmax(x, 0),
        backend=lambda B, x: B.log_softmax(x, 0),
        expected=lambda x: np.array([0.0, -200.0]),
    ),
    "softmax": given(f32([1, 2], [3, 5])).ask(
        "What is softmax along an axis that is named?",
        "Always name the axis; then both agree.",
        jittor=lambda jt, x: jt.nn.softmax(x, 1),
        torch=lambda torch, x: torch.softmax(x, 1),
        backend=lambda B, x: B.softmax(x, 1),
        expected=lambda x: shares(x, 1),
    ),
    "softmax without an axis": given(f32([1, 2], [3, 5])).ask(
        "Along what does nn.Softmax's function run where no axis is named?",
        "Name the axis: Jittor normalises over everything.",
        jittor=lambda jt, x: jt.nn.softmax(x),
        torch=lambda torch, x: torch.nn.functional.softmax(x, _stacklevel=0),
        expected=lambda x: shares(x, 1),
    ),
    "GELU": given(NEAR, cancels=True).ask(
        "Is gelu the one by the error function?",
        "Both use the error function; a checkpoint trained with tanh needs a formula of one's own.",
        jittor=lambda jt, x: jt.nn.gelu(x),
        torch=lambda torch, x: torch.nn.functional.gelu(x),
        backend=lambda B, x: B.nn.GELU()(x),
        expected=lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    ),
    "GELU by tanh": given(NEAR, cancels=True).ask(
        "Can gelu be asked for the tanh formula?",
        'Jittor\'s gelu takes no approximate="tanh": write the formula.',
        jittor=lambda jt, x: attempt(lambda: jt.nn.gelu(x, approximate="tanh").numpy()),
        torch=lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"),
        expected=lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    ),
    "SiLU": given(NEAR).ask(
        "What is silu near 0?",
        "Equal where nothing saturates.",
        jittor=lambda jt, x: jt.nn.silu(x),
        torch=lambda torch, x: torch.nn.functional.silu(x),
        backend=lambda B, x: B.nn.SiLU()(x),
        expected=lambda x: x * logistic(x),
    ),
    "softplus": given(WIDE).ask(
        "What is softplus at both ends?",
        "Equal to the eye; the next row looks at the small end.",
        jittor=lambda jt, x: jt.nn.softplus(x),
        torch=lambda torch, x: torch.nn.functional.softplus(x),
        expected=lambda x: np.logaddexp(0, x),
    ),
    "small end of softplus": given(f32(-20, -5)).ask(
        "What is log10 of softplus(-20)?",
        "log(1 + e) loses a small e in float32: there is no log1p in Jittor.",
        jittor=lambda jt, x: jt.log(jt.nn.softplus(x)) / math.log(10),
        torch=lambda torch, x: torch.log(torch.nn.functional.softplus(x)) / math.log(10),
        expected=lambda x: np.log10(np.logaddexp(0, x)),
    ),
    "slope of LeakyReLU by default": given(NEAR).ask(
        "What is leaky_relu(-1) with no slope given?",
        "0.01 in both; NanoDet's 0.1 must be passed.",
        jittor=lambda jt, x: jt.nn.leaky_relu(x),
        torch=lambda torch, x: torch.nn.functional.leaky_relu(x),
        backend=lambda B, x: B.nn.LeakyReLU()(x),
        expected=lambda x: np.where(x > 0, x, 0.01 * x),
    ),
    "ELU": given(NEAR).ask(
        "What is elu with its default alpha?",
        "Equal.",
        jittor=lambda jt, x: jt.nn.elu(x),
        torch=lambda torch, x: torch.nn.functional.elu(x),
        expected=lambda x: np.where(x > 0, x, np.expm1(x)),
    ),
    "hard swish": given(NEAR).ask(
        "Is there a Hardswish?",
        "Write x * relu6(x + 3) / 6.",
        both=lambda F, x: attempt(lambda: F.nn.Hardswish()(x).numpy()),
        expected=lambda x: x * np.clip(x + 3, 0, 6) / 6,
    ),
    "relu of NaN": given(f32(np.nan, -1, 2)).ask(
        "What is relu(NaN)?",
        "Look at what happens to NaN before trusting a finite loss.",
        jittor=lambda jt, x: jt.nn.relu(x),
        torch=lambda torch, x: torch.relu(x),
        backend=lambda B, x: B.nn.ReLU()(x),
        expected=lambda x: np.array([np.nan, 0.0, 2.0]),
    ),
    "clamp of NaN": given(f32(np.nan, -1, 2)).ask(
        "What is clamp(NaN, 0, 1)?",
        "A clamp that swallows NaN hides a broken branch: check before it.",
        every=lambda F, x: F.clamp(x, 0.0, 1.0),
        expected=lambda x: np.array([np.nan, 0.0, 1.0]),
    ),
    "keywords of clamp": given(NEAR).ask(
        "Does clamp take min= and max=?",
        "Jittor calls them min_v and max_v: pass both bounds by place.",
        both=lambda F, x: attempt(lambda: F.clamp(x, min=0.0).numpy()),
        backend=lambda B, x: B.clamp(x, min=0.0),
        expected=lambda x: np.maximum(x, 0),
    ),
    "maximum with NaN": given(f32(np.nan, 1, 2), f32(1, np.nan, 1)).ask(
        "What is maximum(NaN, 1)?",
        "PyTorch hands NaN on; the order of arguments must not decide.",
        every=lambda F, x, y: F.maximum(x, y),
        expected=lambda x, y: np.array([np.nan, np.nan, 2.0]),
    ),
    "arcsine": given(f32(-1, -0.5, 0, 1)).ask(
        "What is asin at its ends?",
        "Jittor calls it arcsin.",
        jittor=lambda jt, x: jt.arcsin(x),
        torch=lambda torch, x: torch.asin(x),
        backend=lambda B, x: B.asin(x),
        expected=np.arcsin,
    ),
}
