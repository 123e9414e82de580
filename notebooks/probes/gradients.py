"""Gradients: kinks, ties, and what stops them."""

from functools import partial

import numpy as np

from notebooks.probes.probe import ask, attempt, f32, given, gradient

TOPIC = "Gradients"
slope = partial(given, gradient=True)
KINK = f32(-2, 0, 3)
LOW, HIGH = f32(1, 2, 3), f32(2, 2, 2)
MASK = np.array([True, False, True])


def after_eval(F, x):
    """Gradient of a linear layer's weight after eval()."""
    layer = F.nn.Linear(2, 1)
    layer.eval()
    return gradient(F, layer(x), layer.weight)


def frozen(F, x):
    """Gradient of a layer that was built under no_grad."""
    with F.no_grad():
        layer = F.nn.Linear(2, 1)
    return gradient(F, layer(x), layer.weight)


def jittor_stop_grad(jt, x):
    """x after its supposed copy was stopped."""
    copy = x.stop_grad()
    return x * x + 0 * copy


def torch_unused(torch, x):
    """Asking for the gradient of what the loss does not use."""
    leaf = x.requires_grad_()
    other = torch.ones(3, requires_grad=True)
    return attempt(lambda: torch.autograd.grad((other * 2).sum(), [leaf])[0])


PROBES = {
    "abs at 0": slope(KINK).ask(
        "What is the slope of |x| at 0?",
        "Write where(x > 0, x, where(x < 0, -x, 0)): an exact hit of an L1 loss pushes in Jittor.",
        every=lambda F, x: F.abs(x),
        expected=np.sign,
    ),
    "clamp at its bounds": slope(KINK).ask(
        "What is the slope of clamp(x, 0, 3) at 0 and 3?",
        "Use where: Jittor stops the gradient at the bounds too.",
        every=lambda F, x: F.clamp(x, 0.0, 3.0),
        expected=lambda x: ((x >= 0) & (x <= 3)).astype(float),
    ),
    "ties of a maximum over values": slope(f32(1, 3, 3)).ask(
        "Who gets the gradient when two values are the largest?",
        "Divide by the number of ties: Jittor pays each in full.",
        jittor=lambda jt, x: jt.max(x, 0),
        torch=lambda torch, x: torch.amax(x, 0),
        backend=lambda B, x: B.amax(x, 0),
        expected=lambda x: (x == x.max()) / (x == x.max()).sum(),
    ),
    "ties of maximum(a, b)": slope(LOW, HIGH).ask(
        "What share of the gradient has a where a equals b?",
        "Halve it at ties by where: Jittor gives all or nothing.",
        every=lambda F, a, b: F.maximum(a, b),
        expected=lambda a, b: (np.sign(a - b) + 1) / 2,
    ),
    "ties of minimum(a, b)": slope(LOW, HIGH).ask(
        "What share of the gradient has a where a equals b?",
        "Halve it at ties by where.",
        every=lambda F, a, b: F.minimum(a, b),
        expected=lambda a, b: (np.sign(b - a) + 1) / 2,
    ),
    "relu at 0": slope(KINK).ask(
        "What is the slope of relu at 0?",
        "0 in both.",
        jittor=lambda jt, x: jt.nn.relu(x),
        torch=lambda torch, x: torch.relu(x),
        backend=lambda B, x: B.nn.ReLU()(x),
        expected=lambda x: (x > 0).astype(float),
    ),
    "relu6 at 6": slope(f32(0, 3, 6, 7)).ask(
        "What is the slope of relu6 at 0 and 6?",
        "0 at both ends in both, unlike PyTorch's clamp.",
        jittor=lambda jt, x: jt.nn.relu6(x),
        torch=lambda torch, x: torch.nn.functional.relu6(x),
        backend=lambda B, x: B.nn.ReLU6()(x),
        expected=lambda x: ((x > 0) & (x < 6)).astype(float),
    ),
    "leaky_relu at 0": slope(KINK).ask(
        "What is the slope of leaky_relu(0.1) at 0?",
        "Equal.",
        jittor=lambda jt, x: jt.nn.leaky_relu(x, 0.1),
        torch=lambda torch, x: torch.nn.functional.leaky_relu(x, 0.1),
        backend=lambda B, x: B.nn.LeakyReLU(0.1)(x),
        expected=lambda x: np.where(x > 0, 1, 0.1),
    ),
    "norm at 0": slope(f32(0, 0)).ask(
        "What is the gradient of a norm at the zero vector?",
        "0 in both.",
        both=lambda F, x: x.norm(),
        expected=np.zeros_like,
    ),
    "saturated sigmoid's gradient": slope(f32(-40), cancels=True).ask(
        "What is the slope of 1e17 sigmoid(x) at -40?",
        "Train on logits: a clipped sigmoid has another slope.",
        every=lambda F, x: F.sigmoid(x) * 1e17,
        expected=lambda x: 1e17 * np.exp(x) / (1 + np.exp(x)) ** 2,
    ),
    "square root at 0": slope(f32(0, 4)).ask(
        "What is the slope of sqrt at 0?",
        "Both are infinite there: add an eps inside the root.",
        every=lambda F, x: F.sqrt(x),
        expected=lambda x: np.array([np.inf, 0.25]),
    ),
    "where around NaN": slope(f32(-1, 4)).ask(
        "Does where(x > 0, sqrt(x), 0) keep the other branch's NaN out of the gradient?",
        "Neither does: clamp before the root.",
        every=lambda F, x: F.where(x > 0, F.sqrt(x), F.zeros_like(x)),
        expected=lambda x: np.array([np.nan, 0.25]),
    ),
    "negative index": slope(KINK).ask(
        "Does x[-1] hand its gradient on?",
        "Equal for a single number; lists and tensors with negative numbers are another matter.",
        both=lambda F, x: x[-1] * 5,
        expected=lambda x: np.array([0.0, 0.0, 5.0]),
    ),
    "index list": slope(KINK, np.array([0, 0, 2])).ask(
        "Does x[[0, 0, 2]] add up the gradients of one element?",
        "Equal with indices from the front.",
        every=lambda F, x, index: x[index],
        expected=lambda x, index: np.bincount(index, minlength=3),
    ),
    "boolean mask": slope(KINK, MASK).ask(
        "Does x[mask] hand its gradient on?",
        "Equal.",
        both=lambda F, x, mask: x[mask] * 2,
        expected=lambda x, mask: 2.0 * mask,
    ),
    "after eval()": given(f32([1, 1])).ask(
        "Do parameters get gradients in evaluation mode?",
        "Set is_train by hand: Jittor's eval() stops every gradient, for frozen-BN training too.",
        every=after_eval,
        expected=lambda x: x,
    ),
    "built under no_grad": given(f32([1, 1])).ask(
        "Do parameters made under no_grad get gradients later?",
        "Build models outside no_grad, or start_grad() each parameter.",
        every=frozen,
        expected=lambda x: x,
    ),
    "detach": slope(KINK).ask(
        "Is x * x.detach() constant in its second factor?",
        "Equal: use detach().",
        every=lambda F, x: x * x.detach(),
        expected=lambda x: x,
    ),
    "stop_grad": slope(KINK).ask(
        "Does a stopped copy leave the original's gradient alone?",
        "Use detach(): stop_grad() works in place and stops the original.",
        jittor=jittor_stop_grad,
        torch=lambda torch, x: x * x + 0 * x.detach(),
        expected=lambda x: 2 * x,
    ),
    "what the loss doesn't use": given(KINK).ask(
        "What is the gradient of a tensor that the loss doesn't use?",
        "Jittor gives zeros, PyTorch refuses: a branch that was forgotten goes unseen.",
        jittor=lambda jt, x: attempt(lambda: jt.grad((jt.ones((3,)) * 2).sum(), x).numpy()),
        torch=torch_unused,
        expected=lambda x: "raises",
    ),
    "gradients by default": ask(
        "Does a plain tensor want a gradient?",
        "Every float tensor does in Jittor: stop_grad() constants and buffers.",
        jittor=lambda jt: jt.array([1.0]).requires_grad,
        torch=lambda torch: torch.tensor([1.0]).requires_grad,
        expected=lambda: False,
    ),
    "item assignment": slope(KINK).ask(
        "Does y[0] = 0 cut the gradient of the element that was replaced?",
        "Equal with indices from the front.",
        both=lambda F, x: _assigned(x * 2),
        expected=lambda x: np.array([0.0, 2.0, 2.0]),
    ),
    "gather's gradient": slope(KINK, np.array([1, 1, 2])).ask(
        "Does gather add up the gradients of an element read twice?",
        "Equal.",
        every=lambda F, x, index: F.gather(x, 0, index),
        expected=lambda x, index: np.bincount(index, minlength=3),
    ),
}


def _assigned(y):
    y[0] = 0
    return y
