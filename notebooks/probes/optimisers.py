"""Optimisers and schedules: one parameter, gradients given, what it becomes."""

import math

import numpy as np

from notebooks.probes.probe import ask, attempt, f32, given

TOPIC = "Optimisers"
START = f32(1.0, -2.0, 0.5)
GRADIENTS = f32([0.3, -0.1, 2.0], [0.2, 0.4, -1.0], [-0.5, 0.1, 0.7], [0.1, 0.1, 0.1])
TINY = GRADIENTS * np.float32(1e-7)
RATE = 0.1

# --- the same steps in the three vocabularies ----------------------------------------------------------------------


def jittor_steps(jt, gradients, build, prepare=lambda optimiser: None, passes=1):
    """The parameter after one step per row of gradients; the optimiser runs the backward passes itself."""
    parameter = jt.array(START)
    optimiser = build(jt.optim, [parameter])
    for row in gradients:
        for _ in range(passes):
            optimiser.backward((parameter * jt.array(row / passes)).sum())
        prepare(optimiser)
        optimiser.step()
    return parameter


def torch_steps(torch, gradients, build, prepare=lambda parameter: None, passes=1):
    """The same in PyTorch."""
    parameter = torch.nn.Parameter(torch.tensor(START))
    optimiser = build(torch.optim, [parameter])
    for row in gradients:
        optimiser.zero_grad()
        for _ in range(passes):
            (parameter * torch.tensor(row / passes)).sum().backward()
        prepare(parameter)
        optimiser.step()
    return parameter


def backend_steps(B, gradients, build):
    """The same through the backend, which is given gradients."""
    parameter = B.nn.Parameter(B.tensor(START))
    optimiser = build(B, [{"parameters": [("w", parameter)]}])
    for row in gradients:
        optimiser.step([B.tensor(row)])
    return parameter


def jittor_unused(jt):
    """A parameter that the loss leaves out, under weight decay."""
    used, unused = jt.array(START), jt.array(START)
    jt.optim.SGD([used, unused], lr=RATE, weight_decay=0.5).step((used * 2).sum())
    return unused


def torch_unused(torch):
    """The same in PyTorch."""
    used, unused = (torch.nn.Parameter(torch.tensor(START)) for _ in range(2))
    optimiser = torch.optim.SGD([used, unused], lr=RATE, weight_decay=0.5)
    (used * 2).sum().backward()
    optimiser.step()
    return unused


def rates(F, build):
    """Learning rates of eight epochs, each stepped at its end."""
    optimiser = F.optim.SGD([F.nn.Parameter(F.ones((1,)))], lr=RATE)
    schedule = build(F.optim.lr_scheduler if hasattr(F.optim, "lr_scheduler") else F.lr_scheduler, optimiser)
    found = []
    for _ in range(8):
        found.append(float(optimiser.lr if hasattr(optimiser, "lr") else optimiser.param_groups[0]["lr"]))
        schedule.step()
    return found


# --- formulas in float64 -------------------------------------------------------------------------------------------


def sgd(gradients, momentum=0.0, decay=0.0, nesterov=False, dampening=0.0):
    """SGD whose first velocity is the gradient."""
    w, velocity = START.astype(np.float64), None
    for g in gradients.astype(np.float64):
        g = g + decay * w
        velocity = g if velocity is None else momentum * velocity + (1 - dampening) * g
        w = w - RATE * (g + momentum * velocity if nesterov else velocity)
    return w


def adam(gradients, decay=0.0, decoupled=True, eps=1e-8):
    """Adam as published, eps beside the corrected root; decay decoupled or added to the gradient."""
    w, m, v = START.astype(np.float64), 0.0, 0.0
    for t, g in enumerate(gradients.astype(np.float64), 1):
        w = w * (1 - RATE * decay) if decoupled else w
        g = g if decoupled else g + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)
    return w


def clipped(gradients):
    """Rows cut to norm 1 at most."""
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients / np.maximum(norms + 1e-6, 1)


PROBES = {
    "SGD with Nesterov momentum and decay": given(GRADIENTS, cancels=True).ask(
        "Where is the parameter after four steps?",
        "Equal.",
        jittor=lambda jt, g: jittor_steps(jt, GRADIENTS, lambda o, p: o.SGD(p, RATE, 0.9, 0.05, nesterov=True)),
        torch=lambda torch, g: torch_steps(
            torch, GRADIENTS, lambda o, p: o.SGD(p, RATE, 0.9, weight_decay=0.05, nesterov=True)
        ),
        backend=lambda B, g: backend_steps(B, GRADIENTS, lambda o, p: o.SGD(p, RATE, 0.9, True, 0.05)),
        expected=lambda g: sgd(g, 0.9, 0.05, True),
    ),
    "SGD with dampening": given(GRADIENTS, cancels=True).ask(
        "Is the first step dampened too?",
        "PyTorch's first velocity is the whole gradient: leave dampening alone.",
        jittor=lambda jt, g: jittor_steps(jt, GRADIENTS, lambda o, p: o.SGD(p, RATE, 0.9, dampening=0.5)),
        torch=lambda torch, g: torch_steps(torch, GRADIENTS, lambda o, p: o.SGD(p, RATE, 0.9, dampening=0.5)),
        expected=lambda g: sgd(g, 0.9, dampening=0.5),
    ),
    "AdamW": given(GRADIENTS, cancels=True).ask(
        "Where is the parameter after four steps with decay 0.05?",
        "Equal where betas, eps and decay are passed.",
        jittor=lambda jt, g: jittor_steps(jt, GRADIENTS, lambda o, p: o.AdamW(p, RATE, weight_decay=0.05)),
        torch=lambda torch, g: torch_steps(torch, GRADIENTS, lambda o, p: o.AdamW(p, RATE, weight_decay=0.05)),
        backend=lambda B, g: backend_steps(B, GRADIENTS, lambda o, p: o.AdamW(p, RATE, weight_decay=0.05)),
        expected=lambda g: adam(g, 0.05),
    ),
    "AdamW's decay by default": ask(
        "How strong is the decay where none is passed?",
        "Pass weight_decay: 0 in Jittor, 0.01 in PyTorch.",
        jittor=lambda jt: jt.optim.AdamW([jt.array(START)], lr=RATE).weight_decay,
        torch=lambda torch: torch.optim.AdamW([torch.nn.Parameter(torch.tensor(START))], lr=RATE).defaults[
            "weight_decay"
        ],
        expected=lambda: 0.01,
    ),
    "AdamW with tiny gradients": given(TINY, cancels=True).ask(
        "Where is eps added when gradients are about 1e-7?",
        "Beside the corrected root in both.",
        jittor=lambda jt, g: jittor_steps(jt, TINY, lambda o, p: o.AdamW(p, RATE, weight_decay=0.0)),
        torch=lambda torch, g: torch_steps(torch, TINY, lambda o, p: o.AdamW(p, RATE, weight_decay=0.0)),
        backend=lambda B, g: backend_steps(B, TINY, lambda o, p: o.AdamW(p, RATE, weight_decay=0.0)),
        expected=adam,
    ),
    "Adam": given(GRADIENTS, cancels=True).ask(
        "Where is the parameter after four steps?",
        "Equal for gradients of ordinary size.",
        jittor=lambda jt, g: jittor_steps(jt, GRADIENTS, lambda o, p: o.Adam(p, RATE)),
        torch=lambda torch, g: torch_steps(torch, GRADIENTS, lambda o, p: o.Adam(p, RATE)),
        expected=adam,
    ),
    "Adam with tiny gradients": given(TINY, cancels=True).ask(
        "Where is eps added when gradients are about 1e-7?",
        "Jittor's Adam adds it to the uncorrected root: use AdamW with decay 0.",
        jittor=lambda jt, g: jittor_steps(jt, TINY, lambda o, p: o.Adam(p, RATE)),
        torch=lambda torch, g: torch_steps(torch, TINY, lambda o, p: o.Adam(p, RATE)),
        expected=adam,
    ),
    "Adam's decay": given(GRADIENTS, cancels=True).ask(
        "Is Adam's weight decay added to the gradient?",
        "It is in both: AdamW decouples it.",
        jittor=lambda jt, g: jittor_steps(jt, GRADIENTS, lambda o, p: o.Adam(p, RATE, weight_decay=0.05)),
        torch=lambda torch, g: torch_steps(torch, GRADIENTS, lambda o, p: o.Adam(p, RATE, weight_decay=0.05)),
        expected=lambda g: adam(g, 0.05, decoupled=False),
    ),
    "accumulated gradients": given(GRADIENTS, cancels=True).ask(
        "Does the bias correction count steps or backward passes?",
        "Jittor counts backward passes: add up the loss, or feed gradients to an optimiser of one's own.",
        jittor=lambda jt, g: jittor_steps(jt, GRADIENTS, lambda o, p: o.AdamW(p, RATE), passes=2),
        torch=lambda torch, g: torch_steps(torch, GRADIENTS, lambda o, p: o.AdamW(p, RATE, weight_decay=0), passes=2),
        backend=lambda B, g: backend_steps(B, GRADIENTS, lambda o, p: o.AdamW(p, RATE, weight_decay=0.0)),
        expected=adam,
    ),
    "decay of an unused parameter": ask(
        "Does a parameter decay that the loss leaves out?",
        "It does in Jittor: leave it out of the optimiser.",
        jittor=jittor_unused,
        torch=torch_unused,
        expected=lambda: START,
    ),
    "clipping by norm": given(GRADIENTS, cancels=True).ask(
        "Where is the parameter after four clipped steps?",
        "Equal.",
        jittor=lambda jt, g: jittor_steps(jt, GRADIENTS, lambda o, p: o.SGD(p, RATE), lambda o: o.clip_grad_norm(1.0)),
        torch=lambda torch, g: torch_steps(
            torch, GRADIENTS, lambda o, p: o.SGD(p, RATE), lambda p: torch.nn.utils.clip_grad_norm_([p], 1.0)
        ),
        expected=lambda g: sgd(clipped(g)),
    ),
    "loss.backward()": ask(
        "What is parameter.grad after loss.backward()?",
        "optimizer.backward(loss), or jt.grad(loss, parameters): Jittor's backward() does nothing, there is no .grad.",
        jittor=lambda jt: attempt(lambda: _after_backward(jt.array(START)).numpy()),
        torch=lambda torch: _after_backward(torch.tensor(START, requires_grad=True)),
        expected=lambda: 2 * START,
    ),
    "state of an optimiser": ask(
        "What are the entries of an optimiser's state dict?",
        "Keep moments under parameter names of one's own: the layouts have nothing in common.",
        jittor=lambda jt: sorted(jt.optim.AdamW([jt.array(START)], lr=RATE).state_dict()),
        torch=lambda torch: sorted(torch.optim.AdamW([torch.nn.Parameter(torch.tensor(START))], lr=RATE).state_dict()),
        expected=lambda: ["param_groups", "state"],
    ),
    "cosine schedule": ask(
        "What are the rates of the first eight of eight epochs?",
        "Jittor's lags by one step: set the rate from a formula of one's own.",
        both=lambda F: rates(F, lambda s, o: s.CosineAnnealingLR(o, 8)),
        expected=lambda: [RATE * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)],
    ),
    "multi-step schedule": ask(
        "In which epochs does the rate fall for milestones 2 and 5?",
        "Look where it falls: one epoch late in Jittor.",
        both=lambda F: rates(F, lambda s, o: s.MultiStepLR(o, [2, 5], 0.5)),
        expected=lambda: [RATE * 0.5 ** ((t >= 2) + (t >= 5)) for t in range(8)],
    ),
    "step schedule": ask(
        "In which epochs does the rate fall for step size 3?",
        "Equal, unlike the other schedules.",
        both=lambda F: rates(F, lambda s, o: s.StepLR(o, 3, 0.5)),
        expected=lambda: [RATE * 0.5 ** (t // 3) for t in range(8)],
    ),
    "exponential schedule": ask(
        "What are the rates at gamma 0.9?",
        "Jittor's lags by one step.",
        both=lambda F: rates(F, lambda s, o: s.ExponentialLR(o, 0.9)),
        expected=lambda: [RATE * 0.9**t for t in range(8)],
    ),
}


def _after_backward(parameter):
    (parameter**2).sum().backward()
    return parameter.grad
