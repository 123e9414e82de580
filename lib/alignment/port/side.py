"""One side of a port, measured in the process of its framework: the user's builder in, records out.

The original's side also writes the weights that both use and captures its layers; the port's side, which runs after it,
pairs the names, takes those weights, and measures its layers against the captured ones. Nothing is judged here.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.numpy
from pydantic import TypeAdapter

from lib import backend, record
from lib.alignment import divergence, gate, initial, layers
from lib.alignment import measure as measuring
from lib.alignment import reproduction as scripts
from lib.alignment.measure import Arrays, cast
from lib.alignment.port import MODES, STAGES, Port, names
from lib.alignment.seeded import seeded_input
from lib.alignment.store import digest
from lib.backend import nn
from lib.errors import UserError

# What the records of a port have not: the questions skip it. Entries are paired by name, so their order says nothing.
# Its author's generators draw other first values.
WITHOUT = ("recipe", "order", "start", "detections", "losses", "assignment", "step", "counters")
SPREAD = 0.1  # of seeded values around a constant, relative
SMALL = 0.05  # and around zero


# ----------------------------------------------------------------------------------------------------- the user's code
@contextmanager
def _theirs(said: str) -> Iterator[None]:
    """The user's code runs: whatever it raises is a UserError in one line, "…" in `said` being what it raised."""
    try:
        yield
    except Exception as error:
        raised = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(said.replace("…", raised)) from error


def function(address: str) -> Callable[[], Any]:
    """What `package.module:function` names; UserError in one line for whatever is wrong with it."""
    module, _, name = address.partition(":")
    if not module or not name:
        raise UserError(f"{address}: not of the form package.module:function")
    with _theirs(f"{address}: can't be imported (…); start from the folder that holds it"):
        found = getattr(import_module(module), name, None)
    if not callable(found):
        raise UserError(f"{address}: {module} has no function {name}")
    return found


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
        builder = self.builder
        with _theirs(f"{self.address}: raised …"):
            model = builder()
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
        model, where = self.fresh(precision, mode), f"raised … in {mode}, {precision}"
        before, trained = copied(state(model)), measuring.parameters(model)
        with _theirs(f"{self.address}: its forward {where}"):
            outputs = measuring.run(model, [cast(array, precision) for array in inputs])
        values = copied(measuring.arrays(outputs))
        with _theirs(f"{self.address}: its backward {where}"):
            gradients = copied(measuring.arrays(measuring.seeded_gradients(mode, outputs, values, trained)))
        after = {name: array for name, array in copied(state(model)).items() if name not in trained}
        return Run(values, gradients, before, after)


@dataclass(frozen=True)
class Run:
    """before, after: the state before the forward, and that of it which is not trained after it."""

    outputs: Arrays
    gradients: Arrays
    before: Arrays
    after: Arrays


def copied(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """PyTorch's arrays are views of what goes on changing."""
    return {name: np.array(array, order="C") for name, array in arrays.items()}


def state(model: nn.Module) -> Arrays:
    """Every entry once: what is tied stands under its first name."""
    found = measuring.arrays(dict(backend.named_state(model)))
    if not hasattr(model, "named_buffers"):
        return found
    first = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    return {name: array for name, array in found.items() if name in first}


def side_of(model: nn.Module) -> names.Side:
    trained = measuring.parameters(model)
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
    held, first = side_of(model), copied(state(model))
    _finite(port.torch, "its entry", first)
    values, replaced = varied(first)
    with record.atomic(port.weights) as temporary:
        temporary.write_bytes(safetensors.numpy.save(copied(values)))
    chosen = Model(port.torch, values)
    for mode, stage in STAGES.items():
        with _measured(port, side, stage) as out:
            out.fields |= layers.reference(partial(chosen.fresh, mode=mode), inputs, port.layers(mode))
    runs = _runs(chosen, inputs)
    for mode in MODES:
        _finite(port.torch, f"in {mode} its output", runs["float32", mode].outputs)
    if not runs["float32", "evaluation"].outputs:
        raise UserError(f"{port.torch}: its forward gives no tensor")
    trained = runs["float32", "training"]
    floats = {name: array for name, array in trained.after.items() if array.dtype.kind == "f"}
    moved = [name for name, array in floats.items() if not np.array_equal(array, trained.before[name])]
    fields = {"modules": asdict(held), "replaced": replaced, "statistics": moved}
    identity = {entry.name: entry.name for entry in held.entries}
    _write(port, side, fields, runs, identity, held, "full", first, _reach(chosen, inputs, runs))


def candidate(port: Port, side: ModuleType = backend) -> None:
    """Measure the port with the original's weights against what `original` left."""
    inputs = port.arrays()
    theirs = record.read(port.record("torch", "convert")).fields
    model = Model(port.jittor).fresh()
    ours, mine, first = TypeAdapter(names.Side).validate_python(theirs["modules"]), side_of(model), copied(state(model))
    paired = names.read(Path(port.names), ours, mine) if port.names else names.infer(ours, mine)
    paired.write(port.map)
    if not port.names:
        names.check(paired, mine, port.map)
    weights = safetensors.numpy.load_file(port.weights)
    chosen = Model(port.jittor, {other: weights[name] for name, other in paired.state.items()})
    runs = _runs(chosen, inputs, optional=("float64",))
    expected = record.read(port.record("torch", "forward")).fields["outputs"]
    found = list(runs["float32", "evaluation"].outputs)
    if sorted(found) != sorted(expected):
        said = f"its output has the tensors {', '.join(found)}, the original's {', '.join(expected)}"
        raise UserError(f"{port.jittor}: {said}")
    precisions = tuple(dict.fromkeys(precision for precision, _ in runs))
    for mode, stage in STAGES.items():
        with _measured(port, side, stage) as out:
            build, captured = partial(chosen.fresh, mode=mode), port.layers(mode)
            out.fields |= layers.candidate(
                build, inputs, captured, paired.modules, precisions, entries=paired.state, float64="partial"
            )
            script = reproduction(port, mode, out.fields, paired.state)
            out.fields["reproduction"] = str(script) if script else None
    fields = {
        "names": dict(paired.state),
        "how": dict(paired.how),
        "missing": list(paired.missing),
        "left_over": list(paired.extra),
        "statistics": theirs["statistics"],
    }
    _write(port, side, fields, runs, paired.state, mine, "partial", first, {})


def reproduction(port: Port, mode: str, fields: Mapping[str, Any], state: Mapping[str, str]) -> Path | None:
    """Write the script that runs the first diverging layer alone; None where there is none, or it can't be."""
    call = divergence.first_alone(fields)
    if call is None:
        return None
    start = f"{call['path']}." if call["path"] else ""
    other = f"{call['as']}." if call["as"] else ""
    inside = {
        name.removeprefix(start): theirs.removeprefix(other) for name, theirs in state.items() if name.startswith(start)
    }
    return scripts.write(
        port.layers(mode),
        call["path"],
        port.root / "reproduce" / mode,
        {"torch": (port.torch, call["path"]), "jittor": (port.jittor, call["as"])},
        call["call"],
        "eval" if mode == "evaluation" else "train",
        {"jittor": inside},
    )


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


def _reach(model: Model, inputs: Sequence[np.ndarray], runs: Mapping[tuple[str, str], Run]) -> dict[str, list[float]]:
    """How far rounding carries the original's outputs, gradients and statistics."""
    found: dict[str, list[float]] = {}
    for mode in MODES:

        def again(moving: AbstractContextManager, mode: str = mode) -> Arrays:
            with moving:
                return _real(mode, model.run(inputs, "float32", mode))

        found |= gate.measured(_real(mode, runs["float64", mode]), gate.runs(again))
    return found


def _real(mode: str, run: Run) -> Arrays:
    """The real tensors of a run under the records' names."""
    after = run.after if mode == "training" else {}
    found = {f"{mode}/{name}": array for name, array in run.outputs.items()}
    found |= {f"gradient/{mode}/{name}": array for name, array in run.gradients.items()}
    found |= {f"bn/{name}": array for name, array in after.items()}
    return gate.real(found)


@contextmanager
def _measured(port: Port, side: ModuleType, stage: str) -> Iterator[record.Measurement]:
    with record.measure(stage, port.name, port.records, inputs=port.files, seed=port.seed, side=side) as out:
        out.fields["case"] = port.case()
        yield out


def _write(
    port: Port,
    side: ModuleType,
    fields: Mapping[str, Any],
    runs: Mapping[tuple[str, str], Run],
    paired: Mapping[str, str],
    held: names.Side,
    float64: str,
    first: Arrays,
    reach: Mapping[str, list[float]],
) -> None:
    """The records; entries under the original's names, those of the port alone under "port: <name>".

    A framework's own module may fall to float32 in places of a float64 run: its arrays are stored in the run's
    precision. first: the state that the builder gave.
    """
    named = {other: name for name, other in paired.items()}
    loaded, trained = runs["float32", "evaluation"].before, {entry.name for entry in held.entries if entry.trained}
    extra = [entry.name for entry in held.entries if entry.name not in named and entry.trained]
    named |= {name: f"port: {name}" for name in extra}
    entries = [other for other in [*paired.values(), *extra] if not other.endswith(names.COUNTER)]
    common = {"float64": float64, "without": [*WITHOUT, *([] if fields["statistics"] else ["batch_norm"])]}
    with _measured(port, side, "convert") as out:
        out.fields |= common | dict.fromkeys(("missing", "misshapen", "not_finite"), []) | {"round_trip": {}} | fields
        out.fields |= {
            "left_over": extra,
            "state": measuring.entries(
                {named[name]: loaded[name] for name in entries}, {named.get(name) for name in trained}
            ),
            "parameters": sum(int(loaded[name].size) for name in trained),
            "norm_layers": len({name.rpartition(".")[0] for name in fields["statistics"]}),
            "coverage": {"loaded": len(paired), "total": len(paired) + len(out.fields["missing"])},
        }
        fresh = {name: first[other] for name, other in paired.items() if other in trained}
        out.fields["first"] = {name: digest(array) for name, array in fresh.items()}
        out.arrays |= initial.samples(fresh)
    with _measured(port, side, "forward") as out:
        out.fields |= common | {"reach": reach} | {"outputs": list(runs["float32", "evaluation"].outputs), "depth": []}
        out.arrays |= {
            f"{precision}/{mode}/{name}": cast(array, precision)
            for (precision, mode), run in runs.items()
            for name, array in run.outputs.items()
        }
    with _measured(port, side, "loss") as out:
        out.fields |= common | {"reach": reach}
        for (precision, mode), run in runs.items():
            found = {f"gradient/{mode}/{named[name]}": array for name, array in run.gradients.items()}
            if mode == "training":
                known = {named.get(name): array for name, array in run.after.items()}
                found |= {f"bn/{name}": known[name] for name in fields["statistics"] if name in known}
            out.arrays |= {f"{precision}/{name}": cast(array, precision) for name, array in found.items()}


if __name__ == "__main__":  # python -m lib.alignment.port.side original|candidate PORT.json
    try:
        {"original": original, "candidate": candidate}[sys.argv[1]](Port(**json.loads(Path(sys.argv[2]).read_text())))
    except UserError as wrong:
        sys.exit(f"error: {wrong}")
