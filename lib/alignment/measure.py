"""The one measuring code: what a model of this framework gives, forward and backward, for the suite, a user's port, the
exam.

A model comes from a builder, by precision; its weights, inputs and names are its case's. `capture` gives the suite's
builders, `port.side` a user's, and the exam those of `capture` with a fault planted. Layer by layer it is `layers`,
step by step `steps`. Nothing is compared here.
"""

import hashlib
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

import numpy as np

from lib import backend
from lib.alignment import tree
from lib.alignment.seeded import seeded_input
from lib.backend import nn

Arrays = dict[str, np.ndarray]


def precisions() -> tuple[str, ...]:
    """The precisions this side computes in."""
    return ("float32",) if backend.FLOAT64 == "none" else ("float32", "float64")


def cast(array: np.ndarray, precision: str) -> np.ndarray:
    """Real numbers in a run's precision, others as they are."""
    return array.astype(precision) if array.dtype.kind == "f" else array


def arrays(tensors: Mapping[str, Any]) -> Arrays:
    """The tensors' values."""
    return {name: backend.numpy(value) for name, value in tensors.items()}


def entries(state: Mapping[str, np.ndarray], trained: Collection[str]) -> list[list[Any]]:
    """Of each entry of a state: name, shape, type, "param" or "buffer", SHA-256 of its bytes.

    Integers count as int64, which Jittor does not have by default: equal values have equal digests.
    """
    return [
        [
            name,
            list(array.shape),
            str(array.dtype),
            "param" if name in trained else "buffer",
            hashlib.sha256(
                np.ascontiguousarray(array.astype(np.int64) if array.dtype.kind == "i" else array)
            ).hexdigest(),
        ]
        for name, array in state.items()
    ]


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of this framework."""
    return isinstance(value, type(backend.tensor(np.zeros(1, np.float32))))


def differentiable(value: Any) -> bool:
    """Whether a gradient can start or end in this tensor."""
    return "float" in str(value.dtype) and value.requires_grad


@contextmanager
def features(model: nn.Module, wanted: Mapping[str, tuple[str, int | None]]) -> Iterator[Arrays]:
    """Collect outputs of modules while the model runs. wanted: name -> (module path, element of its output or None)."""
    found: Arrays = {}
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name, (path, element) in wanted.items():

            def keep(module, inputs, output, name=name, element=element):
                # A copy: the next layer may work in place.
                found[name] = np.array(backend.numpy(output if element is None else output[element]))

            stack.callback(modules[path].register_forward_hook(keep).remove)
        yield found


def run(model: nn.Module, inputs: Sequence[np.ndarray]) -> dict[str, Any]:
    """The output's tensors for positional inputs, by where they stand in it; one alone is called "output"."""
    return tree.take_apart(model(*map(backend.tensor, inputs)), is_tensor, "output")[1]


def parameters(model: nn.Module) -> dict[str, Any]:
    """What is trained, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def gradients(scalar: Any, starts: Mapping[str, Any]) -> dict[str, Any]:
    """The scalar's gradient in each of the tensors."""
    return dict(zip(starts, backend.grad(scalar, list(starts.values()), retain_graph=False), strict=True))


def seeded_gradients(
    key: str,
    outputs: Mapping[str, Any],
    values: Arrays,
    starts: Mapping[str, Any],
    change: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> dict[str, Any]:
    """Gradients of the outputs' sum, weighted by standard normal numbers that `key` and an output's name seed.

    values: the outputs'. change: what is done to each output's weights. Nothing where no output, or no start, has a
    gradient.
    """
    parts = []
    for name, value in outputs.items():
        if differentiable(value):
            cotangent = seeded_input(f"cotangent:{key}:{name}", values[name].shape).astype(values[name].dtype)
            parts.append(backend.sum(value * backend.tensor(change(cotangent))))
    # sum() starts at 0, which Jittor takes for a float32
    return gradients(reduce(operator.add, parts), starts) if parts and starts else {}
