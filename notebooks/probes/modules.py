"""Modules and their state: what is called, what is trained, what a checkpoint holds and how it is read."""

import copy
from functools import partial

import numpy as np

from notebooks.probes.probe import ask, attempt

TOPIC = "Modules and state"
ONES = np.ones(2, np.float32)


def conv_norm(nn):
    """A convolution without bias and a batch norm."""
    return nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2))


def scalars(tensors) -> int:
    """How many numbers tensors hold."""
    return sum(int(np.prod(tuple(t.shape))) for t in tensors)


def called(framework, method: str) -> str:
    """What a module gives that defines only `method`."""
    module = type("Twice", (framework.nn.Module,), {method: lambda self, x: "called"})()
    return attempt(lambda: module(None))


def with_constant(nn, constant):
    """How many parameters a module has that holds a plain tensor."""
    module = type("Holder", (nn.Module,), {})()
    module.constant = constant
    return len(list(module.parameters()))


def hooked(layer, x) -> list[str]:
    """Which of two forward hooks are called."""
    names: list[str] = []
    layer.register_forward_hook(lambda *_: names.append("first"))
    layer.register_forward_hook(lambda *_: names.append("second"))
    layer(x)
    return names


def loaded(load, values, tensor=np.asarray) -> str:
    """What loading values into a linear layer (2 -> 1) does."""
    return attempt(lambda: [load({name: tensor(value) for name, value in values.items()})] and "goes on")


def trained_copy(nn) -> int:
    """How many tensors of a copied batch norm want gradients."""
    return sum(t.requires_grad for t in copy.deepcopy(nn.BatchNorm2d(2)).state_dict().values())


def wanted(nn) -> int:
    """How many tensors of a batch norm want gradients."""
    return sum(t.requires_grad for t in nn.BatchNorm2d(2).parameters())


WEIGHT, BIAS = np.ones((1, 2), np.float32), np.ones(1, np.float32)
UNKNOWN = {"weight": WEIGHT, "bias": BIAS, "wieght": WEIGHT}
TURNED = {"weight": WEIGHT.T, "bias": BIAS}

PROBES = {
    "the method that is called": ask(
        "Does a module that defines forward run when it is called?",
        "Jittor calls execute: rename the method, or let execute call forward.",
        every=lambda F: called(F, "forward"),
        expected=lambda: "called",
    ),
    "a module with execute": ask(
        "Does a module that defines execute run when it is called?",
        "Only in Jittor.",
        both=lambda F: called(F, "execute"),
        expected=lambda: "raises",
    ),
    "what is trained": ask(
        "How many numbers do a 1 -> 2 convolution and its batch norm train?",
        "Leave running statistics out of the optimiser by name: Jittor's parameters() has them.",
        every=lambda F: scalars(conv_norm(F.nn).parameters()),
        expected=lambda: 6,
    ),
    "a tensor as an attribute": ask(
        "Is a plain tensor attribute of a module a parameter?",
        "stop_grad() it, or begin its name with an underscore: DFL's projection is trained otherwise.",
        every=lambda F: with_constant(F.nn, F.ones((2,))),
        expected=lambda: 0,
    ),
    "names of the state": ask(
        "What are the entries of the state of a convolution and its batch norm?",
        "num_batches_tracked is missing in Jittor: allow for it, and for nothing else, when loading.",
        both=lambda F: list(conv_norm(F.nn).state_dict()),
        backend=lambda B: [name for name, _ in B.named_state(conv_norm(B.nn))],
        expected=lambda: ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"],
    ),
    "loading an unknown name": ask(
        "What does loading do with a name that the model doesn't have?",
        "Compare the sets of names yourself: Jittor logs a warning and goes on.",
        jittor=lambda jt: loaded(jt.nn.Linear(2, 1).load_parameters, UNKNOWN),
        torch=lambda torch: loaded(torch.nn.Linear(2, 1).load_state_dict, UNKNOWN, torch.tensor),
        backend=lambda B: loaded(partial(B.load_state, B.nn.Linear(2, 1)), UNKNOWN),
        expected=lambda: "raises",
    ),
    "loading another shape": ask(
        "What does loading do with a weight of another shape?",
        "Compare the shapes yourself.",
        jittor=lambda jt: loaded(jt.nn.Linear(2, 1).load_parameters, TURNED),
        torch=lambda torch: loaded(torch.nn.Linear(2, 1).load_state_dict, TURNED, torch.tensor),
        backend=lambda B: loaded(partial(B.load_state, B.nn.Linear(2, 1)), TURNED),
        expected=lambda: "raises",
    ),
    "loading too little": ask(
        "What does loading do where an entry is missing?",
        "Ask for full coverage: lib.convert.load(strict=True) does.",
        jittor=lambda jt: loaded(jt.nn.Linear(2, 1).load_parameters, {"weight": WEIGHT}),
        torch=lambda torch: loaded(torch.nn.Linear(2, 1).load_state_dict, {"weight": WEIGHT}, torch.tensor),
        expected=lambda: "raises",
    ),
    "two hooks on one module": ask(
        "Which of two forward hooks are called?",
        "One hook that does everything: Jittor keeps the last.",
        every=lambda F: hooked(F.nn.Linear(2, 1), F.ones((1, 2))),
        expected=lambda: ["first", "second"],
    ),
    "a copied batch norm": ask(
        "How many tensors of a copied batch norm want gradients?",
        "Stop the statistics again after deepcopy: an EMA copy would train them.",
        jittor=lambda jt: trained_copy(jt.nn),
        torch=lambda torch: sum(p.requires_grad for p in copy.deepcopy(torch.nn.BatchNorm2d(2)).parameters()),
        expected=lambda: 2,
    ),
    "a batch norm's tensors that want gradients": ask(
        "How many tensors of a batch norm want gradients?",
        "Equal before a copy is made.",
        both=lambda F: wanted(F.nn),
        expected=lambda: 2,
    ),
    "mode of a fresh module": ask(
        "Is a fresh module in training mode?",
        "Call train() or eval() before the first forward, always.",
        jittor=lambda jt: bool(jt.nn.Linear(2, 1).is_training()),
        torch=lambda torch: bool(torch.nn.Linear(2, 1).training),
        expected=lambda: True,
    ),
    "Parameter that isn't trained": ask(
        "Does Parameter(x, requires_grad=False) leave the gradient out?",
        "Equal.",
        jittor=lambda jt: jt.nn.Parameter(jt.array(ONES), requires_grad=False).requires_grad,
        torch=lambda torch: torch.nn.Parameter(torch.tensor(ONES), requires_grad=False).requires_grad,
        expected=lambda: False,
    ),
    "children by attribute and by number": ask(
        "Which name has a module inside a list inside a module?",
        "Equal, so that published checkpoints load by name.",
        both=lambda F: list(_nested(F.nn).state_dict()),
        backend=lambda B: [name for name, _ in B.named_state(_nested(B.nn))],
        expected=lambda: ["branches.0.weight", "branches.1.weight"],
    ),
}


def _nested(nn):
    module = type("Outer", (nn.Module,), {})()
    module.branches = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])
    return module
