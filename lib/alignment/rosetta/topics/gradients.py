"""Gradients: kinks, ties, and what stops them."""

import numpy as np

from ..probe import Probe, attempt, f32

TOPIC = "Gradients"
KINK = f32(-2, 0, 3)
LOW, HIGH = f32(1, 2, 3), f32(2, 2, 2)
MASK = np.array([True, False, True])


def jittor_after_eval(jt):
    """Gradient of a linear layer's weight after eval()."""
    layer = jt.nn.Linear(2, 1)
    layer.eval()
    return jt.grad(layer(jt.ones((1, 2))).sum(), layer.weight)


def torch_after_eval(torch):
    """The same in PyTorch."""
    layer = torch.nn.Linear(2, 1)
    layer.eval()
    return torch.autograd.grad(layer(torch.ones(1, 2)).sum(), [layer.weight])[0]


def backend_after_eval(B):
    """The same through the backend."""
    layer = B.nn.Linear(2, 1)
    layer.eval()
    return B.grad(B.sum(layer(B.ones((1, 2)))), [layer.weight])[0]


def jittor_stop_grad(jt, x):
    """x after its supposed copy was stopped."""
    copy = x.stop_grad()
    return x * x + 0 * copy


def jittor_frozen(jt):
    """Gradient of a layer that was built under no_grad."""
    with jt.no_grad():
        layer = jt.nn.Linear(2, 1)
    return jt.grad(layer(jt.ones((1, 2))).sum(), layer.weight)


def torch_frozen(torch):
    """The same in PyTorch."""
    with torch.no_grad():
        layer = torch.nn.Linear(2, 1)
    return torch.autograd.grad(layer(torch.ones(1, 2)).sum(), [layer.weight])[0]


def backend_frozen(B):
    """The same through the backend."""
    with B.no_grad():
        layer = B.nn.Linear(2, 1)
    return B.grad(B.sum(layer(B.ones((1, 2)))), [layer.weight])[0]


def torch_unused(torch, x):
    """Asking for the gradient of what the loss does not use."""
    leaf = x.requires_grad_()
    other = torch.ones(3, requires_grad=True)
    return attempt(lambda: torch.autograd.grad((other * 2).sum(), [leaf])[0])


PROBES = (
    Probe(
        topic=TOPIC,
        name="abs at 0",
        gradient=True,
        question="What is the slope of |x| at 0?",
        advice="Write where(x > 0, x, where(x < 0, -x, 0)): an exact hit of an L1 loss pushes in Jittor.",
        jittor=lambda jt, x: jt.abs(x),
        torch=lambda torch, x: torch.abs(x),
        backend=lambda B, x: B.abs(x),
        expected=np.sign,
        inputs=(KINK,),
    ),
    Probe(
        topic=TOPIC,
        name="clamp at its bounds",
        gradient=True,
        question="What is the slope of clamp(x, 0, 3) at 0 and 3?",
        advice="Use where: Jittor stops the gradient at the bounds too.",
        jittor=lambda jt, x: jt.clamp(x, 0.0, 3.0),
        torch=lambda torch, x: torch.clamp(x, 0.0, 3.0),
        backend=lambda B, x: B.clamp(x, 0.0, 3.0),
        expected=lambda x: ((x >= 0) & (x <= 3)).astype(float),
        inputs=(KINK,),
    ),
    Probe(
        topic=TOPIC,
        name="ties of a maximum over values",
        gradient=True,
        question="Who gets the gradient when two values are the largest?",
        advice="Divide by the number of ties: Jittor pays each in full.",
        jittor=lambda jt, x: jt.max(x, 0),
        torch=lambda torch, x: torch.amax(x, 0),
        backend=lambda B, x: B.amax(x, 0),
        expected=lambda x: (x == x.max()) / (x == x.max()).sum(),
        inputs=(f32(1, 3, 3),),
    ),
    Probe(
        topic=TOPIC,
        name="ties of maximum(a, b)",
        gradient=True,
        question="What share of the gradient has a where a equals b?",
        advice="Halve it at ties by where: Jittor gives all or nothing.",
        jittor=lambda jt, a, b: jt.maximum(a, b),
        torch=lambda torch, a, b: torch.maximum(a, b),
        backend=lambda B, a, b: B.maximum(a, b),
        expected=lambda a, b: (np.sign(a - b) + 1) / 2,
        inputs=(LOW, HIGH),
    ),
    Probe(
        topic=TOPIC,
        name="ties of minimum(a, b)",
        gradient=True,
        question="What share of the gradient has a where a equals b?",
        advice="Halve it at ties by where.",
        jittor=lambda jt, a, b: jt.minimum(a, b),
        torch=lambda torch, a, b: torch.minimum(a, b),
        backend=lambda B, a, b: B.minimum(a, b),
        expected=lambda a, b: (np.sign(b - a) + 1) / 2,
        inputs=(LOW, HIGH),
    ),
    Probe(
        topic=TOPIC,
        name="relu at 0",
        gradient=True,
        question="What is the slope of relu at 0?",
        advice="0 in both.",
        jittor=lambda jt, x: jt.nn.relu(x),
        torch=lambda torch, x: torch.relu(x),
        backend=lambda B, x: B.nn.ReLU()(x),
        expected=lambda x: (x > 0).astype(float),
        inputs=(KINK,),
    ),
    Probe(
        topic=TOPIC,
        name="relu6 at 6",
        gradient=True,
        question="What is the slope of relu6 at 0 and 6?",
        advice="0 at both ends in both, unlike PyTorch's clamp.",
        jittor=lambda jt, x: jt.nn.relu6(x),
        torch=lambda torch, x: torch.nn.functional.relu6(x),
        backend=lambda B, x: B.nn.ReLU6()(x),
        expected=lambda x: ((x > 0) & (x < 6)).astype(float),
        inputs=(f32(0, 3, 6, 7),),
    ),
    Probe(
        topic=TOPIC,
        name="leaky_relu at 0",
        gradient=True,
        question="What is the slope of leaky_relu(0.1) at 0?",
        advice="Equal.",
        jittor=lambda jt, x: jt.nn.leaky_relu(x, 0.1),
        torch=lambda torch, x: torch.nn.functional.leaky_relu(x, 0.1),
        backend=lambda B, x: B.nn.LeakyReLU(0.1)(x),
        expected=lambda x: np.where(x > 0, 1, 0.1),
        inputs=(KINK,),
    ),
    Probe(
        topic=TOPIC,
        name="norm at 0",
        gradient=True,
        question="What is the gradient of a norm at the zero vector?",
        advice="0 in both.",
        jittor=lambda jt, x: x.norm(),
        torch=lambda torch, x: x.norm(),
        expected=np.zeros_like,
        inputs=(f32(0, 0),),
    ),
    Probe(
        topic=TOPIC,
        name="saturated sigmoid's gradient",
        gradient=True,
        question="What is the slope of 1e17 sigmoid(x) at -40?",
        advice="Train on logits: a clipped sigmoid has another slope.",
        jittor=lambda jt, x: jt.sigmoid(x) * 1e17,
        torch=lambda torch, x: torch.sigmoid(x) * 1e17,
        backend=lambda B, x: B.sigmoid(x) * 1e17,
        expected=lambda x: 1e17 * np.exp(x) / (1 + np.exp(x)) ** 2,
        inputs=(f32(-40),),
        cancels=True,
    ),
    Probe(
        topic=TOPIC,
        name="square root at 0",
        gradient=True,
        question="What is the slope of sqrt at 0?",
        advice="Both are infinite there: add an eps inside the root.",
        jittor=lambda jt, x: jt.sqrt(x),
        torch=lambda torch, x: torch.sqrt(x),
        backend=lambda B, x: B.sqrt(x),
        expected=lambda x: np.array([np.inf, 0.25]),
        inputs=(f32(0, 4),),
    ),
    Probe(
        topic=TOPIC,
        name="where around NaN",
        gradient=True,
        question="Does where(x > 0, sqrt(x), 0) keep the other branch's NaN out of the gradient?",
        advice="Neither does: clamp before the root.",
        jittor=lambda jt, x: jt.where(x > 0, jt.sqrt(x), jt.zeros_like(x)),
        torch=lambda torch, x: torch.where(x > 0, torch.sqrt(x), torch.zeros_like(x)),
        backend=lambda B, x: B.where(x > 0, B.sqrt(x), B.zeros_like(x)),
        expected=lambda x: np.array([np.nan, 0.25]),
        inputs=(f32(-1, 4),),
    ),
    Probe(
        topic=TOPIC,
        name="negative index",
        gradient=True,
        question="Does x[-1] hand its gradient on?",
        advice="Equal for a single number; lists and tensors with negative numbers are another matter.",
        jittor=lambda jt, x: x[-1] * 5,
        torch=lambda torch, x: x[-1] * 5,
        expected=lambda x: np.array([0.0, 0.0, 5.0]),
        inputs=(KINK,),
    ),
    Probe(
        topic=TOPIC,
        name="index list",
        gradient=True,
        question="Does x[[0, 0, 2]] add up the gradients of one element?",
        advice="Equal with indices from the front.",
        jittor=lambda jt, x, index: x[index],
        torch=lambda torch, x, index: x[index],
        backend=lambda B, x, index: x[index],
        expected=lambda x, index: np.bincount(index, minlength=3),
        inputs=(KINK, np.array([0, 0, 2])),
    ),
    Probe(
        topic=TOPIC,
        name="boolean mask",
        gradient=True,
        question="Does x[mask] hand its gradient on?",
        advice="Equal.",
        jittor=lambda jt, x, mask: x[mask] * 2,
        torch=lambda torch, x, mask: x[mask] * 2,
        expected=lambda x, mask: 2.0 * mask,
        inputs=(KINK, MASK),
    ),
    Probe(
        topic=TOPIC,
        name="after eval()",
        question="Do parameters get gradients in evaluation mode?",
        advice="Set is_train by hand: Jittor's eval() stops every gradient, for frozen-BN training too.",
        jittor=jittor_after_eval,
        torch=torch_after_eval,
        backend=backend_after_eval,
        expected=lambda: np.ones((1, 2)),
    ),
    Probe(
        topic=TOPIC,
        name="built under no_grad",
        question="Do parameters made under no_grad get gradients later?",
        advice="Build models outside no_grad, or start_grad() each parameter.",
        jittor=jittor_frozen,
        torch=torch_frozen,
        backend=backend_frozen,
        expected=lambda: np.ones((1, 2)),
    ),
    Probe(
        topic=TOPIC,
        name="detach",
        gradient=True,
        question="Is x * x.detach() constant in its second factor?",
        advice="Equal: use detach().",
        jittor=lambda jt, x: x * x.detach(),
        torch=lambda torch, x: x * x.detach(),
        backend=lambda B, x: x * x.detach(),
        expected=lambda x: x,
        inputs=(KINK,),
    ),
    Probe(
        topic=TOPIC,
        name="stop_grad",
        gradient=True,
        question="Does a stopped copy leave the original's gradient alone?",
        advice="Use detach(): stop_grad() works in place and stops the original.",
        jittor=jittor_stop_grad,
        torch=lambda torch, x: x * x + 0 * x.detach(),
        expected=lambda x: 2 * x,
        inputs=(KINK,),
    ),
    Probe(
        topic=TOPIC,
        name="what the loss doesn't use",
        question="What is the gradient of a tensor that the loss doesn't use?",
        advice="Jittor gives zeros, PyTorch refuses: a branch that was forgotten goes unseen.",
        jittor=lambda jt, x: attempt(lambda: jt.grad((jt.ones((3,)) * 2).sum(), x).numpy()),
        torch=torch_unused,
        expected=lambda x: "raises",
        inputs=(KINK,),
    ),
    Probe(
        topic=TOPIC,
        name="gradients by default",
        question="Does a plain tensor want a gradient?",
        advice="Every float tensor does in Jittor: stop_grad() constants and buffers.",
        jittor=lambda jt: jt.array([1.0]).requires_grad,
        torch=lambda torch: torch.tensor([1.0]).requires_grad,
        expected=lambda: False,
    ),
    Probe(
        topic=TOPIC,
        name="item assignment",
        gradient=True,
        question="Does y[0] = 0 cut the gradient of the element that was replaced?",
        advice="Equal with indices from the front.",
        jittor=lambda jt, x: _assigned(x * 2),
        torch=lambda torch, x: _assigned(x * 2),
        expected=lambda x: np.array([0.0, 2.0, 2.0]),
        inputs=(KINK,),
    ),
    Probe(
        topic=TOPIC,
        name="gather's gradient",
        gradient=True,
        question="Does gather add up the gradients of an element read twice?",
        advice="Equal.",
        jittor=lambda jt, x, index: jt.gather(x, 0, index),
        torch=lambda torch, x, index: torch.gather(x, 0, index),
        backend=lambda B, x, index: B.gather(x, 0, index),
        expected=lambda x, index: np.bincount(index, minlength=3),
        inputs=(KINK, np.array([1, 1, 2])),
    ),
)


def _assigned(y):
    y[0] = 0
    return y
