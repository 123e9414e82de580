"""Modules and their state: what is called, what is trained, what a checkpoint holds and how it is read."""

import copy

import numpy as np

from ..probe import Probe, attempt

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
    """Names of the parameters of a module that holds a plain tensor."""
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


def jittor_loaded(jt, values) -> str:
    """What loading into a linear layer (2 -> 1) does with values."""
    return attempt(lambda: jt.nn.Linear(2, 1).load_parameters(values) or "goes on")


def torch_loaded(torch, values) -> str:
    """The same in PyTorch."""
    return attempt(
        lambda: torch.nn.Linear(2, 1).load_state_dict({k: torch.tensor(v) for k, v in values.items()}) and "goes on"
    )


def backend_loaded(B, values) -> str:
    """The same through the backend."""
    return attempt(lambda: B.load_state(B.nn.Linear(2, 1), values) or "goes on")


def trained_copy(nn) -> int:
    """How many tensors of a copied batch norm want gradients."""
    return sum(t.requires_grad for t in copy.deepcopy(nn.BatchNorm2d(2)).state_dict().values())


def wanted(nn) -> int:
    """How many tensors of a batch norm want gradients."""
    return sum(t.requires_grad for t in nn.BatchNorm2d(2).parameters())


WEIGHT, BIAS = np.ones((1, 2), np.float32), np.ones(1, np.float32)

PROBES = (
    Probe(
        topic=TOPIC,
        name="the method that is called",
        question="Does a module that defines forward run when it is called?",
        advice="Jittor calls execute: rename the method, or let execute call forward.",
        jittor=lambda jt: called(jt, "forward"),
        torch=lambda torch: called(torch, "forward"),
        backend=lambda B: called(B, "forward"),
        expected=lambda: "called",
    ),
    Probe(
        topic=TOPIC,
        name="a module with execute",
        question="Does a module that defines execute run when it is called?",
        advice="Only in Jittor.",
        jittor=lambda jt: called(jt, "execute"),
        torch=lambda torch: called(torch, "execute"),
        expected=lambda: "raises",
    ),
    Probe(
        topic=TOPIC,
        name="what is trained",
        question="How many numbers do a 1 -> 2 convolution and its batch norm train?",
        advice="Leave running statistics out of the optimiser by name: Jittor's parameters() has them.",
        jittor=lambda jt: scalars(conv_norm(jt.nn).parameters()),
        torch=lambda torch: scalars(conv_norm(torch.nn).parameters()),
        backend=lambda B: scalars(conv_norm(B.nn).parameters()),
        expected=lambda: 6,
    ),
    Probe(
        topic=TOPIC,
        name="a tensor as an attribute",
        question="Is a plain tensor attribute of a module a parameter?",
        advice="stop_grad() it, or begin its name with an underscore: DFL's projection is trained otherwise.",
        jittor=lambda jt: with_constant(jt.nn, jt.ones((2,))),
        torch=lambda torch: with_constant(torch.nn, torch.ones(2)),
        backend=lambda B: with_constant(B.nn, B.ones((2,))),
        expected=lambda: 0,
    ),
    Probe(
        topic=TOPIC,
        name="names of the state",
        question="What are the entries of the state of a convolution and its batch norm?",
        advice="num_batches_tracked is missing in Jittor: allow for it, and for nothing else, when loading.",
        jittor=lambda jt: list(conv_norm(jt.nn).state_dict()),
        torch=lambda torch: list(conv_norm(torch.nn).state_dict()),
        backend=lambda B: [name for name, _ in B.named_state(conv_norm(B.nn))],
        expected=lambda: ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"],
    ),
    Probe(
        topic=TOPIC,
        name="loading an unknown name",
        question="What does loading do with a name that the model doesn't have?",
        advice="Compare the sets of names yourself: Jittor logs a warning and goes on.",
        jittor=lambda jt: jittor_loaded(jt, {"weight": WEIGHT, "bias": BIAS, "wieght": WEIGHT}),
        torch=lambda torch: torch_loaded(torch, {"weight": WEIGHT, "bias": BIAS, "wieght": WEIGHT}),
        backend=lambda B: backend_loaded(B, {"weight": WEIGHT, "bias": BIAS, "wieght": WEIGHT}),
        expected=lambda: "raises",
    ),
    Probe(
        topic=TOPIC,
        name="loading another shape",
        question="What does loading do with a weight of another shape?",
        advice="Compare the shapes yourself.",
        jittor=lambda jt: jittor_loaded(jt, {"weight": WEIGHT.T, "bias": BIAS}),
        torch=lambda torch: torch_loaded(torch, {"weight": WEIGHT.T, "bias": BIAS}),
        backend=lambda B: backend_loaded(B, {"weight": WEIGHT.T, "bias": BIAS}),
        expected=lambda: "raises",
    ),
    Probe(
        topic=TOPIC,
        name="loading too little",
        question="What does loading do where an entry is missing?",
        advice="Ask for full coverage: lib.convert.load(strict=True) does.",
        jittor=lambda jt: jittor_loaded(jt, {"weight": WEIGHT}),
        torch=lambda torch: torch_loaded(torch, {"weight": WEIGHT}),
        expected=lambda: "raises",
    ),
    Probe(
        topic=TOPIC,
        name="two hooks on one module",
        question="Which of two forward hooks are called?",
        advice="One hook that does everything: Jittor keeps the last.",
        jittor=lambda jt: hooked(jt.nn.Linear(2, 1), jt.ones((1, 2))),
        torch=lambda torch: hooked(torch.nn.Linear(2, 1), torch.ones(1, 2)),
        backend=lambda B: hooked(B.nn.Linear(2, 1), B.ones((1, 2))),
        expected=lambda: ["first", "second"],
    ),
    Probe(
        topic=TOPIC,
        name="a copied batch norm",
        question="How many tensors of a copied batch norm want gradients?",
        advice="Stop the statistics again after deepcopy: an EMA copy would train them.",
        jittor=lambda jt: trained_copy(jt.nn),
        torch=lambda torch: sum(p.requires_grad for p in copy.deepcopy(torch.nn.BatchNorm2d(2)).parameters()),
        expected=lambda: 2,
    ),
    Probe(
        topic=TOPIC,
        name="a batch norm's tensors that want gradients",
        question="How many tensors of a batch norm want gradients?",
        advice="Equal before a copy is made.",
        jittor=lambda jt: wanted(jt.nn),
        torch=lambda torch: wanted(torch.nn),
        expected=lambda: 2,
    ),
    Probe(
        topic=TOPIC,
        name="mode of a fresh module",
        question="Is a fresh module in training mode?",
        advice="Call train() or eval() before the first forward, always.",
        jittor=lambda jt: bool(jt.nn.Linear(2, 1).is_training()),
        torch=lambda torch: bool(torch.nn.Linear(2, 1).training),
        expected=lambda: True,
    ),
    Probe(
        topic=TOPIC,
        name="Parameter that isn't trained",
        question="Does Parameter(x, requires_grad=False) leave the gradient out?",
        advice="Equal.",
        jittor=lambda jt: jt.nn.Parameter(jt.array(ONES), requires_grad=False).requires_grad,
        torch=lambda torch: torch.nn.Parameter(torch.tensor(ONES), requires_grad=False).requires_grad,
        expected=lambda: False,
    ),
    Probe(
        topic=TOPIC,
        name="children by attribute and by number",
        question="Which name has a module inside a list inside a module?",
        advice="Equal, so that published checkpoints load by name.",
        jittor=lambda jt: list(_nested(jt.nn).state_dict()),
        torch=lambda torch: list(_nested(torch.nn).state_dict()),
        backend=lambda B: [name for name, _ in B.named_state(_nested(B.nn))],
        expected=lambda: ["branches.0.weight", "branches.1.weight"],
    ),
)


def _nested(nn):
    module = type("Outer", (nn.Module,), {})()
    module.branches = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])
    return module
