"""Find the planted fault: a model with one wrong layer, to be found by looking at errors, from the outside in.

Whoever wants to find it should stop reading here. A fault is in the weights or in one attribute, as a port has them: a
kernel stored the other way round, a deviation where a variance belongs, a constant of another framework.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from lib import backend, convert, models
from lib.alignment.seeded import seeded_input, seeded_state
from lib.backend import nn
from lib.errors import UserError
from lib.show.messages import words
from lib.show.tables import Frame
from notebooks.exam.planting import Change, attribute, entry, planted

MODEL, CLASSES, SIZE = "nanodet-plus-m_320", 10, 64
BEYOND = 50  # times the noise: no rounding is that large, and a fault is larger


class Fault(NamedTuple):
    layer: str
    changes: tuple[Change, ...] = ()
    lesson: str = ""


NORM, KERNEL = "backbone.stage3.2.branch2.4", "fpn.top_down_blocks.1.blocks.0.ghost1.cheap_operation.0"
DEPTHWISE_NORM = "head.cls_convs.1.0.dwnorm"
FAULTS = {
    1: Fault(
        NORM,
        (entry(f"{NORM}.running_var", np.sqrt),),
        "the running variance was stored as a deviation: means are right, sizes are not",
    ),
    2: Fault(
        KERNEL,
        (entry(f"{KERNEL}.weight", lambda kernel: kernel.swapaxes(2, 3)),),
        "the kernel's height and width were swapped: no shape changes, no sum changes",
    ),
    3: Fault(
        DEPTHWISE_NORM,
        (attribute(DEPTHWISE_NORM, "eps", 1e-3),),
        "eps is another framework's default: small everywhere, and never zero",
    ),
}


def _fault(number: int) -> Fault:
    if number not in FAULTS:
        raise UserError(f"number: there is no fault {number}; choose from {', '.join(map(str, FAULTS))}")
    return FAULTS[number]


def _model(changes: Sequence[Change], precision: str = "float32") -> nn.Module:
    """The seeded model in evaluation mode, with these changes."""
    with planted(changes):
        model = models.build(MODEL, CLASSES, 0)
        state = seeded_state([(name, backend.numpy(value).shape) for name, value in backend.named_state(model)])
        convert.load(model, state, strict=False)  # constants have no seed
    return (backend.float64(model) if precision == "float64" else model).eval()


@cache
def _sound() -> dict[str, nn.Module]:
    """The modules of the model without a fault."""
    return dict(_model(()).named_modules())


@cache  # who looks for a fault asks many times, level by level
def _outputs(changes: tuple[Change, ...], precision: str) -> dict[str, np.ndarray]:
    """What each module gives, all its tensors in one row, in order of execution."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        found.pop(name, None)  # an activation shared by two layers stands where it ran last
        found[name] = _flat(output)

    model = _model(changes, precision)
    for name, module in model.named_modules():
        module.register_forward_hook(partial(keep, name))
    with backend.no_grad():
        model(backend.tensor(seeded_input("image", (1, 3, SIZE, SIZE)).astype(precision)))
    return found


def outputs(number: int | None, inside: str = "", precision: str = "float32") -> dict[str, np.ndarray]:
    """What each part of a module gives, all its tensors in one row, in order of execution.

    number: of the fault; None: the sound model. inside: the path of a module; empty: the whole model.
    """
    parts, changes = _parts(_sound(), inside), () if number is None else _fault(number).changes
    return {name: values for name, values in _outputs(changes, precision).items() if name in parts}


def _flat(output: Any) -> np.ndarray:
    if isinstance(output, list | tuple):
        return np.concatenate([_flat(part) for part in output])
    return backend.numpy(output).astype(np.float64).ravel()


def errors(number: int, inside: str = "") -> Frame:
    """How far each part of a module lies from the sound model's, in order of execution, beside what rounding does.

    inside: the path of a module; empty: the whole model. A part without parts of its own is a layer.
    """
    modules = _sound()
    sound, exact, faulty = outputs(None, inside), outputs(None, inside, "float64"), outputs(number, inside)
    rows = {
        name: {
            "error": _relative(faulty[name], values),
            "rounding": _relative(values, exact[name]),
            "parts": sum(other.startswith(f"{name}.") for other in modules),
        }
        for name, values in sound.items()
    }
    return Frame.from_dict(rows, orient="index", columns=["error", "rounding", "parts"])


def _parts(modules: Mapping[str, nn.Module], inside: str) -> list[str]:
    """The modules right inside one; for a list of modules, which is never called itself, those in it."""
    if inside not in modules:
        raise UserError(f"inside: the model has no module '{inside}'")
    prefix, found = f"{inside}." if inside else "", []
    for name in modules:
        if name.startswith(prefix) and name != inside and "." not in name[len(prefix) :]:
            found += _parts(modules, name) if type(modules[name]).__name__ == "ModuleList" else [name]
    return found


def _relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def wrong(table: Frame) -> list[str]:
    """The parts of an `errors` table that are beyond rounding, the first one first."""
    return list(table.index[table["error"] > BEYOND * table["rounding"].clip(lower=1e-8)])


def check(number: int, answer: str) -> str:
    """Whether `answer` is the path of the wrong layer, and if not, where to look."""
    layer, modules = _fault(number).layer, _sound()
    if not answer:
        return words()("exercise.empty")
    if answer == layer:
        return words()("exercise.right").format(layer=layer, lesson=words().term(_fault(number).lesson))
    if answer not in modules:
        return words()("exercise.absent").format(answer=answer)
    if layer.startswith(f"{answer}."):
        return words()("exercise.deeper")
    return words()("exercise.passes")
