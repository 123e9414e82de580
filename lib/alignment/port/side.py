"""One side of a port, measured in the process of its framework: the user's builder in, records out.

The original's side also writes the weights that both use and captures its layers; the port's side, which runs after it,
pairs the names, takes those weights, and measures its layers against the captured ones. Nothing is judged here.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.numpy

from lib import backend, record
from lib.alignment import divergence, layers, tree
from lib.alignment import reproduction as scripts
from lib.alignment.capture import REPEATS
from lib.alignment.port import MODES, STAGES, Port, names
from lib.alignment.seeded import seeded_input
from lib.alignment.verdict import ROUNDING
from lib.backend import nn
from lib.errors import UserError

Arrays = dict[str, np.ndarray]
# What the records of a port have not: the questions skip it. Entries are paired by name, so their order says nothing.
WITHOUT = ("order", "detections", "losses", "assignment", "step", "counters")
SPREAD = 0.1  # of seeded values around a constant, relative
SMALL = 0.05  # and around zero


# ----------------------------------------------------------------------------------------------------- the user's code
def function(address: str) -> Callable[[], Any]:
    """What `package.module:function` names; UserError in one line for whatever is wrong with it."""
    module, _, name = address.partition(":")
    if not module or not name:
        raise UserError(f"{address}: not of the form package.module:function")
    try:
        found = getattr(import_module(module), name, None)
    except Exception as error:  # the user's module runs when it is imported: anything can be raised
        raise UserError(
            f"{address}: can't be imported ({_said(error)}); start from the folder that holds it"
        ) from error
    if not callable(found):
        raise UserError(f"{address}: {module} has no function {name}")
    return found


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@dataclass(frozen=True)
class Model:
    """A builder with the values that every model from it gets, under its own names; None: what the builder gives."""

    address: str
    values: Mapping[str, np.ndarray] | None = None

    @cached_property
    def builder(self) -> Callable[[], Any]:
        return function(self.address)

    def fresh(self, precision: str = "float32", mode: str = "evaluation") -> nn.Module:
        """Another model. In training only dropout stays off: two frameworks draw other numbers."""
        try:
            model = self.builder()
        except Exception as error:  # the user's code
            raise UserError(f"{self.address}: raised {_said(error)}") from error
        if isinstance(model, type) or not callable(model) or not hasattr(model, "named_modules"):
            raise UserError(f"{self.address}: gave a {type(model).__name__}, not a module of {backend.NAME}")
        if self.values is not None:
            backend.load_state(model, dict(self.values))
        model = backend.set_mode(backend.float64(model) if precision == "float64" else model, mode == "training")
        for module in model.modules():
            if "drop" in type(module).__name__.lower():
                backend.set_mode(module, False)
        return model

    def run(self, inputs: Sequence[np.ndarray], precision: str, mode: str) -> "Run":
        """Forward, and the gradient of the seeded scalar of the outputs in every trained parameter."""
        model = self.fresh(precision, mode)
        before = {name: np.array(array) for name, array in state(model).items()}
        given = [backend.tensor(array.astype(precision) if array.dtype.kind == "f" else array) for array in inputs]
        try:
            _, outputs = tree.take_apart(model(*given), layers.is_tensor, "output")
        except Exception as error:  # the user's code
            raise UserError(f"{self.address}: its forward raised {_said(error)} in {mode}, {precision}") from error
        arrays = {name: np.array(backend.numpy(value)) for name, value in outputs.items()}
        ends = {name: value for name, value in outputs.items() if layers.differentiable(value)}
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        gradients: Arrays = {}
        if ends and trained:
            try:
                found = backend.grad(layers.seeded_scalar(mode, ends, arrays), list(trained.values()))
            except Exception as error:  # the user's code again
                raise UserError(f"{self.address}: its backward raised {_said(error)} in {mode}, {precision}") from error
            gradients = {name: np.array(backend.numpy(value)) for name, value in zip(trained, found, strict=True)}
        after = {name: np.array(array) for name, array in state(model).items() if name not in trained}
        return Run(arrays, gradients, before, after)


@dataclass(frozen=True)
class Run:
    """before, after: the state before the forward, and that of it which is not trained after it."""

    outputs: Arrays
    gradients: Arrays
    before: Arrays
    after: Arrays


def state(model: nn.Module) -> Arrays:
    """Every entry once: what is tied stands under its first name."""
    tied = (
        {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
        if hasattr(model, "named_buffers")
        else None
    )
    return {name: backend.numpy(value) for name, value in backend.named_state(model) if tied is None or name in tied}


def side_of(model: nn.Module) -> names.Side:
    """What the model consists of."""
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    entries = tuple(
        names.Entry(name, array.shape, name in trained, _look(array), hashlib.sha256(array.tobytes()).hexdigest())
        for name, array in state(model).items()
    )
    return names.Side(entries, {path: type(module).__name__ for path, module in model.named_modules()})


def _look(array: np.ndarray) -> str:
    if array.size and array.dtype.kind == "f":
        if (array == 1).all():
            return "ones"
        if (array == 0).all():
            return "zeros"
    return "values"


def varied(values: Arrays) -> tuple[Arrays, list[str]]:
    """Values for both sides, and which entries they replace: a constant, as a fresh norm holds, hides faults.

    Around 1 a running variance and its root, two channels and a transposed vector are all the same.
    """
    found, replaced = dict(values), []
    for name, array in values.items():
        if array.dtype.kind == "f" and (
            _look(array) != "values" or (array.size > 1 and (array == array.flat[0]).all())
        ):
            noise = seeded_input(f"varied:{name}", array.shape)
            around = array * (1 + SPREAD * noise) if array.flat[0] else SMALL * noise
            found[name] = around.astype(array.dtype)
            replaced.append(name)
    return found, replaced


# ------------------------------------------------------------------------------------------------------- the two sides
def original(port: Port, side: ModuleType = backend) -> None:
    """Measure the original: weights, layers, records."""
    inputs, model = port.arrays(), Model(port.torch).fresh()
    held = side_of(model)
    first = {name: np.array(array) for name, array in state(model).items()}
    _finite(port.torch, "its entry", first)
    values, replaced = varied({name: array for name, array in first.items()})
    with record.atomic(port.weights) as temporary:
        temporary.write_bytes(
            safetensors.numpy.save({name: np.array(array, order="C") for name, array in values.items()})
        )
    chosen = Model(port.torch, values)
    for mode, stage in STAGES.items():
        with record.measure(stage, port.name, port.records, inputs=port.files, seed=port.seed, side=side) as out:
            build = partial(chosen.fresh, mode=mode)
            out.fields |= {"case": port.case()} | layers.reference(build, inputs, port.layers(mode))
    runs = _runs(chosen, inputs)
    for mode in MODES:
        _finite(port.torch, f"in {mode} its output", runs["float32", mode].outputs)
    if not runs["float32", "evaluation"].outputs:
        raise UserError(f"{port.torch}: its forward gives no tensor")
    trained = runs["float32", "training"]
    moved = [
        name
        for name, array in trained.after.items()
        if array.dtype.kind == "f" and not np.array_equal(array, trained.before[name])
    ]
    fields = {"modules": names.plain(held), "replaced": replaced, "statistics": moved}
    identity = {entry.name: entry.name for entry in held.entries}
    _write(port, side, fields, runs, identity, held, values, "full", _repeats(chosen, inputs))


def candidate(port: Port, side: ModuleType = backend) -> None:
    """Measure the port with the original's weights against what `original` left."""
    inputs = port.arrays()
    theirs = record.read(port.record("torch", "convert")).fields
    ours, mine = names.Side.of(theirs["modules"]), side_of(Model(port.jittor).fresh())
    if port.names:
        paired = names.read(Path(port.names), ours, mine)
        paired.write(port.map)
    else:
        paired = names.infer(ours, mine)
        paired.write(port.map)
        names.check(paired, mine, port.map)
    weights = safetensors.numpy.load_file(port.weights)
    chosen = Model(port.jittor, {other: weights[name] for name, other in paired.state.items()})
    runs = _runs(chosen, inputs, optional=("float64",))
    expected = record.read(port.record("torch", "forward")).fields["outputs"]
    found = list(runs["float32", "evaluation"].outputs)
    if sorted(found) != sorted(expected):
        raise UserError(
            f"{port.jittor}: its output has the tensors {', '.join(found)}, the original's {', '.join(expected)}"
        )
    precisions = tuple(dict.fromkeys(precision for precision, _ in runs))
    for mode, stage in STAGES.items():
        with record.measure(stage, port.name, port.records, inputs=port.files, seed=port.seed, side=side) as out:
            found = layers.candidate(
                partial(chosen.fresh, mode=mode),
                inputs,
                port.layers(mode),
                paired.modules,
                precisions,
                entries=paired.state,
                float64="partial",
            )
            script = reproduction(port, mode, found, paired.state)
            out.fields |= {"case": port.case()} | found | {"reproduction": str(script) if script else None}
    fields = {
        "names": dict(paired.state),
        "how": dict(paired.how),
        "missing": list(paired.missing),
        "left_over": list(paired.extra),
        "statistics": theirs["statistics"],
    }
    _write(port, side, fields, runs, paired.state, mine, chosen.values, "partial", {})


def reproduction(port: Port, mode: str, fields: Mapping[str, Any], state: Mapping[str, str]) -> Path | None:
    """Write the script that runs the first diverging layer alone; None where none diverges, or it can't be run alone."""
    found = divergence.localise(fields)
    layer = found.first("forward") or found.first("backward")
    call = next((c for c in fields["layers"] if layer and (c["path"], c["call"]) == (layer.path, layer.call)), None)
    if layer is None or call["unable"]:
        return None
    inside = {
        _local(name, layer.path): _local(other, call["as"])
        for name, other in state.items()
        if name.startswith(f"{layer.path}." if layer.path else "")
    }
    builders = {"torch": (port.torch, layer.path), "jittor": (port.jittor, call["as"])}
    return scripts.write(
        port.layers(mode),
        layer.path,
        port.root / "reproduce" / mode,
        builders,
        layer.call,
        "eval" if mode == "evaluation" else "train",
        {"jittor": inside},
    )


def _local(name: str, path: str) -> str:
    return name.removeprefix(f"{path}.") if path else name


def _runs(model: Model, inputs: Sequence[np.ndarray], optional: Sequence[str] = ()) -> dict[tuple[str, str], Run]:
    """By precision and mode; a precision in `optional` that the framework's own modules do not have is left out."""
    found = {("float32", mode): model.run(inputs, "float32", mode) for mode in MODES}
    try:
        return found | {("float64", mode): model.run(inputs, "float64", mode) for mode in MODES}
    except UserError:
        if "float64" not in optional:
            raise
        return found


def _finite(address: str, what: str, arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{address}: {what} {name} holds NaN or infinity; there is nothing to compare with")


def _repeats(model: Model, inputs: Sequence[np.ndarray]) -> Arrays:
    """Gradients under inputs moved by one rounding: how far the original lies from itself, as `capture` has it."""
    found: Arrays = {}
    for index in range(REPEATS):
        moved = [
            array * (1 + np.float32(ROUNDING) * seeded_input(f"repeat_{index}", array.shape))
            if array.dtype.kind == "f"
            else array
            for array in inputs
        ]
        gradients = model.run(moved, "float32", "training").gradients
        found |= {f"repeat/{index}/gradient/training/{name}": array for name, array in gradients.items()}
    return found


def _write(
    port: Port,
    side: ModuleType,
    fields: Mapping[str, Any],
    runs: Mapping[tuple[str, str], Run],
    paired: Mapping[str, str],
    held: names.Side,
    values: Mapping[str, np.ndarray],
    float64: str,
    more: Arrays,
) -> None:
    """The records; entries under the original's names, those of the port alone under "port: <name>"."""
    named = {other: name for name, other in paired.items()}
    loaded, trained = runs["float32", "evaluation"].before, {entry.name for entry in held.entries if entry.trained}
    extra = [entry.name for entry in held.entries if entry.name not in named and entry.trained]
    named |= {name: f"port: {name}" for name in extra}
    rows = [
        [
            named[other],
            list(loaded[other].shape),
            str(loaded[other].dtype),
            "param" if other in trained else "buffer",
            hashlib.sha256(loaded[other].tobytes()).hexdigest(),
        ]
        for other in [*paired.values(), *extra]
        if not other.endswith(names.COUNTER)
    ]
    common = {"case": port.case(), "float64": float64, "without": list(WITHOUT)}
    with record.measure("convert", port.name, port.records, inputs=port.files, seed=port.seed, side=side) as out:
        out.fields |= (
            common
            | {"missing": [], "left_over": [], "misshapen": [], "not_finite": [], "round_trip": {}}
            | dict(fields)
        )
        out.fields |= {
            "left_over": extra,
            "state": rows,
            "parameters": sum(int(loaded[name].size) for name in trained),
            "norm_layers": len({name.rpartition(".")[0] for name in fields["statistics"]}),
            "coverage": {"loaded": len(values), "total": len(values) + len(out.fields["missing"])},
        }
    with record.measure("forward", port.name, port.records, inputs=port.files, seed=port.seed, side=side) as out:
        out.fields |= common | {"outputs": list(runs["float32", "evaluation"].outputs), "depth": []}
        out.arrays |= {
            f"{precision}/{mode}/{name}": _stored(array, precision)
            for (precision, mode), run in runs.items()
            for name, array in run.outputs.items()
        }
    with record.measure("loss", port.name, port.records, inputs=port.files, seed=port.seed, side=side) as out:
        out.fields |= common
        if not fields["statistics"]:
            out.fields["without"].append("batch_norm")
        out.arrays |= more
        for (precision, mode), run in runs.items():
            out.arrays |= {
                f"{precision}/gradient/{mode}/{named[name]}": _stored(array, precision)
                for name, array in run.gradients.items()
            }
            if mode == "training":
                out.arrays |= {
                    f"{precision}/bn/{named[name]}": _stored(array, precision)
                    for name, array in run.after.items()
                    if named.get(name) in fields["statistics"]
                }


def _stored(array: np.ndarray, precision: str) -> np.ndarray:
    """Real numbers in the run's precision: a framework's own module may fall to float32 in places."""
    return array.astype(precision) if array.dtype.kind == "f" else array


def main() -> int:
    """python -m lib.alignment.port.side original|candidate PORT.json"""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("role", choices=("original", "candidate"))
    parser.add_argument("port", type=Path)
    chosen = parser.parse_args()
    try:
        {"original": original, "candidate": candidate}[chosen.role](
            Port(**json.loads(chosen.port.read_text(encoding="utf-8")))
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
