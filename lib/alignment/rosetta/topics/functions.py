"""Functions of one value: saturation, and the formulas behind the names."""

import math

import numpy as np

from ..probe import Probe, attempt, f32

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


PROBES = (
    Probe(
        topic=TOPIC,
        name="saturated sigmoid",
        question="What is log10 of sigmoid(-40)?",
        advice="Jittor clips the argument at -30: tanh or a formula of one's own keeps small scores apart.",
        jittor=lambda jt, x: jt.log(jt.sigmoid(x)) / math.log(10),
        torch=lambda torch, x: torch.log(torch.sigmoid(x)) / math.log(10),
        backend=lambda B, x: B.log(B.sigmoid(x)) / math.log(10),
        expected=lambda x: np.log10(logistic(x)),
        inputs=(f32(-40, -20, 0),),
    ),
    Probe(
        topic=TOPIC,
        name="sigmoid",
        question="What is sigmoid near 0?",
        advice="Equal where nothing saturates.",
        jittor=lambda jt, x: jt.sigmoid(x),
        torch=lambda torch, x: torch.sigmoid(x),
        backend=lambda B, x: B.sigmoid(x),
        expected=logistic,
        inputs=(NEAR,),
    ),
    Probe(
        topic=TOPIC,
        name="logarithm of a sigmoid",
        question="What is log_sigmoid(-200)?",
        advice="Write minus softplus(-x), or keep the logits: Jittor ends at -30.",
        jittor=lambda jt, x: jt.nn.log_sigmoid(x),
        torch=lambda torch, x: torch.nn.functional.logsigmoid(x),
        expected=lambda x: -np.logaddexp(0, -x),
        inputs=(f32(-200, -40, 3),),
    ),
    Probe(
        topic=TOPIC,
        name="logsumexp of large values",
        question="What is logsumexp of 100 and 100?",
        advice="Subtract the largest value first: Jittor overflows.",
        jittor=lambda jt, x: jt.nn.logsumexp(x, 0),
        torch=lambda torch, x: torch.logsumexp(x, 0),
        expected=lambda x: np.logaddexp.reduce(x),
        inputs=(f32(100, 100),),
    ),
    Probe(
        topic=TOPIC,
        name="log_softmax of large values",
        question="What is log_softmax of 200 and 0?",
        advice="Both shift by the largest value.",
        jittor=lambda jt, x: jt.nn.log_softmax(x, 0),
        torch=lambda torch, x: torch.log_softmax(x, 0),
        backend=lambda B, x: B.log_softmax(x, 0),
        expected=lambda x: np.array([0.0, -200.0]),
        inputs=(f32(200, 0),),
    ),
    Probe(
        topic=TOPIC,
        name="softmax",
        question="What is softmax along an axis that is named?",
        advice="Always name the axis; then both agree.",
        jittor=lambda jt, x: jt.nn.softmax(x, 1),
        torch=lambda torch, x: torch.softmax(x, 1),
        backend=lambda B, x: B.softmax(x, 1),
        expected=lambda x: shares(x, 1),
        inputs=(f32([1, 2], [3, 5]),),
    ),
    Probe(
        topic=TOPIC,
        name="softmax without an axis",
        question="Along what does nn.Softmax's function run where no axis is named?",
        advice="Name the axis: Jittor normalises over everything.",
        jittor=lambda jt, x: jt.nn.softmax(x),
        torch=lambda torch, x: torch.nn.functional.softmax(x, _stacklevel=0),
        expected=lambda x: shares(x, 1),
        inputs=(f32([1, 2], [3, 5]),),
    ),
    Probe(
        topic=TOPIC,
        name="GELU",
        question="Is gelu the one by the error function?",
        advice="Both use the error function; a checkpoint trained with tanh needs a formula of one's own.",
        jittor=lambda jt, x: jt.nn.gelu(x),
        torch=lambda torch, x: torch.nn.functional.gelu(x),
        backend=lambda B, x: B.nn.GELU()(x),
        expected=lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
        inputs=(NEAR,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="GELU by tanh",
        question="Can gelu be asked for the tanh formula?",
        advice='Jittor\'s gelu takes no approximate="tanh": write the formula.',
        jittor=lambda jt, x: attempt(lambda: jt.nn.gelu(x, approximate="tanh").numpy()),
        torch=lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"),
        expected=lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        inputs=(NEAR,),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="SiLU",
        question="What is silu near 0?",
        advice="Equal where nothing saturates.",
        jittor=lambda jt, x: jt.nn.silu(x),
        torch=lambda torch, x: torch.nn.functional.silu(x),
        backend=lambda B, x: B.nn.SiLU()(x),
        expected=lambda x: x * logistic(x),
        inputs=(NEAR,),
    ),
    Probe(
        topic=TOPIC,
        name="softplus",
        question="What is softplus at both ends?",
        advice="Equal to the eye; the next row looks at the small end.",
        jittor=lambda jt, x: jt.nn.softplus(x),
        torch=lambda torch, x: torch.nn.functional.softplus(x),
        expected=lambda x: np.logaddexp(0, x),
        inputs=(WIDE,),
    ),
    Probe(
        topic=TOPIC,
        name="small end of softplus",
        question="What is log10 of softplus(-20)?",
        advice="log(1 + e) loses a small e in float32: there is no log1p in Jittor.",
        jittor=lambda jt, x: jt.log(jt.nn.softplus(x)) / math.log(10),
        torch=lambda torch, x: torch.log(torch.nn.functional.softplus(x)) / math.log(10),
        expected=lambda x: np.log10(np.logaddexp(0, x)),
        inputs=(f32(-20, -5),),
    ),
    Probe(
        topic=TOPIC,
        name="slope of LeakyReLU by default",
        question="What is leaky_relu(-1) with no slope given?",
        advice="0.01 in both; NanoDet's 0.1 must be passed.",
        jittor=lambda jt, x: jt.nn.leaky_relu(x),
        torch=lambda torch, x: torch.nn.functional.leaky_relu(x),
        backend=lambda B, x: B.nn.LeakyReLU()(x),
        expected=lambda x: np.where(x > 0, x, 0.01 * x),
        inputs=(NEAR,),
    ),
    Probe(
        topic=TOPIC,
        name="ELU",
        question="What is elu with its default alpha?",
        advice="Equal.",
        jittor=lambda jt, x: jt.nn.elu(x),
        torch=lambda torch, x: torch.nn.functional.elu(x),
        expected=lambda x: np.where(x > 0, x, np.expm1(x)),
        inputs=(NEAR,),
    ),
    Probe(
        topic=TOPIC,
        name="hard swish",
        question="Is there a Hardswish?",
        advice="Write x * relu6(x + 3) / 6.",
        jittor=lambda jt, x: attempt(lambda: jt.nn.Hardswish()(x).numpy()),
        torch=lambda torch, x: torch.nn.Hardswish()(x),
        expected=lambda x: x * np.clip(x + 3, 0, 6) / 6,
        inputs=(NEAR,),
    ),
    Probe(
        topic=TOPIC,
        name="relu of NaN",
        question="What is relu(NaN)?",
        advice="Look at what happens to NaN before trusting a finite loss.",
        jittor=lambda jt, x: jt.nn.relu(x),
        torch=lambda torch, x: torch.relu(x),
        backend=lambda B, x: B.nn.ReLU()(x),
        expected=lambda x: np.array([np.nan, 0.0, 2.0]),
        inputs=(f32(np.nan, -1, 2),),
    ),
    Probe(
        topic=TOPIC,
        name="clamp of NaN",
        question="What is clamp(NaN, 0, 1)?",
        advice="A clamp that swallows NaN hides a broken branch: check before it.",
        jittor=lambda jt, x: jt.clamp(x, 0.0, 1.0),
        torch=lambda torch, x: torch.clamp(x, 0.0, 1.0),
        backend=lambda B, x: B.clamp(x, 0.0, 1.0),
        expected=lambda x: np.array([np.nan, 0.0, 1.0]),
        inputs=(f32(np.nan, -1, 2),),
    ),
    Probe(
        topic=TOPIC,
        name="keywords of clamp",
        question="Does clamp take min= and max=?",
        advice="Jittor calls them min_v and max_v: pass both bounds by place.",
        jittor=lambda jt, x: attempt(lambda: jt.clamp(x, min=0.0).numpy()),
        torch=lambda torch, x: torch.clamp(x, min=0.0),
        backend=lambda B, x: B.clamp(x, min=0.0),
        expected=lambda x: np.maximum(x, 0),
        inputs=(NEAR,),
    ),
    Probe(
        topic=TOPIC,
        name="maximum with NaN",
        question="What is maximum(NaN, 1)?",
        advice="PyTorch hands NaN on; the order of arguments must not decide.",
        jittor=lambda jt, x, y: jt.maximum(x, y),
        torch=lambda torch, x, y: torch.maximum(x, y),
        backend=lambda B, x, y: B.maximum(x, y),
        expected=lambda x, y: np.array([np.nan, np.nan, 2.0]),
        inputs=(f32(np.nan, 1, 2), f32(1, np.nan, 1)),
    ),
    Probe(
        topic=TOPIC,
        name="arcsine",
        question="What is asin at its ends?",
        advice="Jittor calls it arcsin.",
        jittor=lambda jt, x: jt.arcsin(x),
        torch=lambda torch, x: torch.asin(x),
        backend=lambda B, x: B.asin(x),
        expected=np.arcsin,
        inputs=(f32(-1, -0.5, 0, 1),),
    ),
)
