"""Find the planted fault: a model with one wrong layer, to be found by looking at errors, from the outside in.

Whoever wants to find it should stop reading here. A fault is in the weights or in one attribute, as a port has them: a
kernel stored the other way round, a deviation where a variance belongs, a constant of another framework.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lib import backend, models
from lib.alignment.seeded import seeded_input, seeded_state
from lib.backend import nn
from lib.errors import UserError

MODEL, CLASSES, SIZE = "nanodet-plus-m_320", 10, 64
BEYOND = 50  # times the noise: no rounding is that large, and a fault is larger


@dataclass(frozen=True)
class Fault:
    layer: str
    weights: Callable[[dict[str, np.ndarray]], None] = lambda state: None  # changes what is loaded
    change: Callable[[nn.Module], None] = lambda layer: None  # changes the built layer
    lesson: str = ""


def _turned(state: dict[str, np.ndarray]) -> None:
    name = "fpn.top_down_blocks.1.blocks.0.ghost1.cheap_operation.0.weight"
    state[name] = np.ascontiguousarray(state[name].swapaxes(2, 3))


def _deviation(state: dict[str, np.ndarray]) -> None:
    name = "backbone.stage3.2.branch2.4.running_var"
    state[name] = np.sqrt(state[name])


def _constant(layer: nn.Module) -> None:
    layer.eps = 1e-3


FAULTS = {
    1: Fault(
        "backbone.stage3.2.branch2.4",
        weights=_deviation,
        lesson="the running variance was stored as a deviation: means are right, sizes are not",
    ),
    2: Fault(
        "fpn.top_down_blocks.1.blocks.0.ghost1.cheap_operation.0",
        weights=_turned,
        lesson="the kernel's height and width were swapped: no shape changes, no sum changes",
    ),
    3: Fault(
        "head.cls_convs.1.0.dwnorm",
        change=_constant,
        lesson="eps is another framework's default: small everywhere, and never zero",
    ),
}


def _fault(number: int) -> Fault:
    if number not in FAULTS:
        raise UserError(f"number: there is no fault {number}; choose from {', '.join(map(str, FAULTS))}")
    return FAULTS[number]


def _model(number: int | None, precision: str = "float32") -> nn.Module:
    """The seeded model in evaluation mode; None: without a fault."""
    model = models.build(MODEL, CLASSES, 0)
    state = seeded_state([(name, backend.numpy(value).shape) for name, value in backend.named_state(model)])
    if number is not None:
        _fault(number).weights(state)
    backend.load_state(model, state)
    if number is not None:
        _fault(number).change(dict(model.named_modules())[_fault(number).layer])
    return (backend.float64(model) if precision == "float64" else model).eval()


def _outputs(model: nn.Module, names: Sequence[str], precision: str) -> dict[str, np.ndarray]:
    """What each of the modules gives, all its tensors in one row, in order of execution."""
    found: dict[str, np.ndarray] = {}
    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(_keeper(found, name)) for name in names]
    with backend.no_grad():
        model(backend.tensor(seeded_input("image", (1, 3, SIZE, SIZE)).astype(precision)))
    for hook in hooks:
        hook.remove()
    return found


def _keeper(found: dict[str, np.ndarray], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.pop(name, None)  # an activation shared by two layers stands where it ran last
        found[name] = _flat(output)

    return keep


def _flat(output: Any) -> np.ndarray:
    if isinstance(output, list | tuple):
        return np.concatenate([_flat(part) for part in output])
    return backend.numpy(output).astype(np.float64).ravel()


def errors(number: int, inside: str = "") -> pd.DataFrame:
    """How far each part of a module lies from the sound model's, in order of execution, beside what rounding alone does.

    inside: the path of a module; empty: the whole model. A part without parts of its own is a layer.
    """
    modules = dict(_model(None).named_modules())
    if inside not in modules:
        raise UserError(f"inside: the model has no module '{inside}'")
    prefix = f"{inside}." if inside else ""
    parts = [name for name in modules if name.startswith(prefix) and name != inside and "." not in name[len(prefix) :]]
    # A list of modules is never called itself: its members stand for it.
    parts = [
        name
        for part in parts
        for name in (_members(modules, part) if type(modules[part]).__name__ == "ModuleList" else [part])
    ]
    sound, planted, exact = (
        _outputs(_model(which, precision), parts, precision)
        for which, precision in ((None, "float32"), (number, "float32"), (None, "float64"))
    )
    rows = {
        name: {
            "error": _relative(planted[name], sound[name]),
            "rounding": _relative(sound[name], exact[name]),
            "parts": sum(other.startswith(f"{name}.") for other in modules),
        }
        for name in sound
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["error", "rounding", "parts"])


def _members(modules: dict[str, nn.Module], part: str) -> list[str]:
    """The modules of a list, and of lists in it."""
    own = [name for name in modules if name.startswith(f"{part}.") and "." not in name[len(part) + 1 :]]
    return [
        name
        for one in own
        for name in (_members(modules, one) if type(modules[one]).__name__ == "ModuleList" else [one])
    ]


def _relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def wrong(table: pd.DataFrame) -> list[str]:
    """The parts of an `errors` table that are beyond rounding, the first one first."""
    return list(table.index[table["error"] > BEYOND * table["rounding"].clip(lower=1e-8)])


def check(number: int, answer: str) -> str:
    """Whether `answer` is the path of the wrong layer, and if not, where to look."""
    layer, modules = _fault(number).layer, [name for name, _ in _model(None).named_modules()]
    if not answer:
        return "NOT YET: no answer; write the layer's path into the cell of parameters"
    if answer == layer:
        return f"RIGHT: {layer}; {_fault(number).lesson}"
    if answer not in modules:
        return f"NOT YET: the model has no module '{answer}'"
    if layer.startswith(f"{answer}."):
        return "NOT YET: it lies inside this one; go deeper"
    return "NOT YET: this one only passes on what reaches it, or is sound"
