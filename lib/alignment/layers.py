"""What each layer of a model does, for finding the first one that diverges: the side of it that runs a framework.

`reference` runs a model once and keeps the inputs and outputs of every call of every module, forward and backward, and
what each module gives alone, in float64, on those inputs. `candidate` runs another model of the same modules, in any
framework: once as a whole, and each module alone on the reference's inputs, so that no error is inherited. It records
errors and the reference's own float32 error beside them; `lib.alignment.divergence` judges them.

Backward means the vector-Jacobian product of one call with a seeded cotangent: the gradient of sum(output * cotangent)
with respect to the inputs and to the module's own parameters.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib import backend
from lib.alignment import store, tree
from lib.alignment.compare import Comparison, compare_sets
from lib.alignment.measure import Arrays, arrays, cast, differentiable, is_tensor, seeded_gradients
from lib.alignment.verdict import FEW, ROUNDING
from lib.backend import nn
from lib.record import sha256

Both = dict[str, Arrays]  # "forward": outputs; "backward": gradients of "input <name>" and "parameter <name>"
Build = Callable[[str], nn.Module]  # the model in a precision, in the mode (training or evaluation) to be looked at
DIRECTIONS = ("forward", "backward")
COTANGENTS = 4  # under which gradients of a few elements are measured, where one is a poor sample of their noise
SIDES = ("input", "output", "input_gradient", "output_gradient")  # of a call inside the whole network


@dataclass
class Cost:
    """What looking at all layers takes, beside the plain runs it is made of: modules alone, forward and backward."""

    plain: float = 0.0  # seconds in those
    bytes: int = 0  # of the tensors compared
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def running(self) -> Iterator[None]:
        clock = time.perf_counter()
        yield
        self.plain += time.perf_counter() - clock

    def fields(self) -> dict[str, float]:
        """For a record; GB are 10^9 bytes."""
        seconds = time.perf_counter() - self.started
        return {
            "seconds": seconds,
            "plain_seconds": self.plain,
            "times_plain": seconds / self.plain if self.plain else float("nan"),
            "bytes": self.bytes,
            "gb_per_second": self.bytes / 1e9 / seconds,
        }


# ------------------------------------------------------------------------------------------------------ one module
def alone(
    module: nn.Module,
    structure: tree.Structure,
    inputs: Arrays,
    key: str,
    precision: str,
    change: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Both:
    """What the module gives for these positional inputs, and its vector-Jacobian product; `key` seeds the cotangents,
    to which `change` is done."""
    outputs, starts = _run(module, structure, inputs, precision)
    own = {f"parameter {name}": value for name, value in module.named_parameters() if "." not in name}
    starts |= {name: value for name, value in own.items() if value.requires_grad}
    values = arrays(outputs)
    return {"forward": values, "backward": arrays(seeded_gradients(key, outputs, values, starts, change))}


def _run(
    module: nn.Module, structure: tree.Structure, given: Arrays, precision: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of the module for these inputs, and those inputs that have a gradient as "input <name>"."""
    tensors, starts = {}, {}
    for name, array in given.items():
        if array.dtype.kind == "f":
            starts[f"input {name}"] = nn.Parameter(backend.tensor(array.astype(precision)))
            tensors[name] = starts[f"input {name}"].clone()  # a module may write into its input
        else:
            tensors[name] = backend.tensor(array)
    backend.sync()  # a deferring framework would fuse the copy with the module's own operators
    _, outputs = tree.take_apart(module(*tree.put_together(structure, tensors)), is_tensor, "output")
    return outputs, starts


def _key(call: Mapping[str, Any]) -> str:
    return f"{call['path']}#{call['call']}"


# --------------------------------------------------------------------------------------------------- a whole model
@contextmanager
def hooked(model: nn.Module, hook: Callable) -> Iterator[None]:
    """hook(path, module, inputs, output) after every call of a module; one that stands twice counts under its first
    path."""
    first = {id(module): (path, module) for path, module in reversed(list(model.named_modules()))}
    with ExitStack() as stack:
        for path, module in first.values():

            def call(module, inputs, output, *named, path=path):  # Jittor's own modules pass named arguments on
                hook(path, module, inputs, output)

            handle = module.register_forward_hook(call)
            # Jittor's own modules give no handle.
            stack.callback(handle.remove if handle is not None else module.remove_forward_hook)
        yield


def _whole(model: nn.Module, images: Sequence[np.ndarray], writer: store.Writer) -> list[dict[str, Any]]:
    """Run the model forward and backward; an entry per call of a module, inner ones first, tensors in the store."""
    calls: list[dict[str, Any]] = []
    live: list[dict[str, dict[str, Any]]] = []
    counts: dict[str, int] = {}

    def keep(path: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        structure, given = tree.take_apart(inputs, is_tensor)
        _, found = tree.take_apart(output, is_tensor, "output")
        counts[path] = counts.get(path, -1) + 1
        calls.append(
            {
                "path": path,
                "call": counts[path],
                "kind": type(module).__name__,
                "structure": structure,
                "leaf": sum(1 for _ in module.named_modules()) == 1,
                "input": put(writer, given),
                "output": put(writer, found),
            }
        )
        live.append({"input": given, "output": found})

    given = [backend.tensor(array) for array in images]
    with hooked(model, keep):
        output = model(
            *[nn.Parameter(value) * 1.0 if array.dtype.kind == "f" else value for value, array in zip(given, images)]
        )
    _, outputs = tree.take_apart(output, is_tensor, "output")
    inner = {
        id(value): value
        for sides in live
        for held in sides.values()
        for value in held.values()
        if differentiable(value)
    }
    gradients = seeded_gradients("#0", outputs, arrays(outputs), inner)  # the cotangent of the whole model alone
    kept = {key: writer.put(backend.numpy(value)) for key, value in gradients.items()}
    for call, sides in zip(calls, live, strict=True):
        for side, held in sides.items():
            call[f"{side}_gradient"] = {name: kept[id(value)] for name, value in held.items() if id(value) in kept}
    return calls


def put(writer: store.Writer, tensors: Mapping[str, Any]) -> dict[str, str]:
    return {name: writer.put(backend.numpy(value)) for name, value in tensors.items()}


def get(reader: store.Reader, digests: Mapping[str, str]) -> Arrays:
    return {name: reader.get(digest) for name, digest in digests.items()}


# ------------------------------------------------------------------------------------------------------- reference
def reference(build: Build, images: Sequence[np.ndarray], folder: str | Path) -> dict[str, Any]:
    """Capture the layers of build("float32") on these positional inputs (float32, or integers) into `folder`; what was
    captured.

    build("float64") gives the exact values of each module alone, and of the whole network for the noise that is
    inherited.
    """
    folder, cost = Path(folder), Cost()
    with tempfile.TemporaryDirectory() as temporary:
        with store.writing(temporary) as writer:
            exact = _whole(build("float64"), [cast(array, "float64") for array in images], writer)
        with store.writing(folder / "run") as writer:
            calls = _whole(build("float32"), images, writer)
        with store.reading(folder / "run") as run, store.reading(temporary) as double, store.writing(folder) as writer:
            models = {precision: dict(build(precision).named_modules()) for precision in ("float32", "float64")}
            for call, other in zip(calls, exact, strict=True):
                call["noise"] = _inherited(_sides(double, other), _sides(run, call), cost)
                _exact(call, run, models, writer, cost)
            writer.content |= {"calls": calls, "state": put(writer, dict(backend.named_state(build("float32"))))}
    return {"captured": sha256(folder / store.INDEX), "calls": len(calls), "bytes": writer.bytes, "cost": cost.fields()}


def _exact(
    call: dict[str, Any],
    run: store.Reader,
    models: Mapping[str, Mapping[str, nn.Module]],
    writer: store.Writer,
    cost: Cost,
) -> None:
    """Add what the module gives alone in float64, its float32 error, and whether it gives the same alone each time
    ("repeat", in roundings) and as inside the model ("replay", in floors)."""
    call |= {"exact": {}, "floor": {}, "repeat": None, "replay": None, "unable": None}
    if kind := tree.opaque(call["structure"]):
        call["unable"] = f"an input is a {kind}"
        return
    given, key = get(run, call["input"]), _key(call)
    single, double = (models[precision][call["path"]] for precision in ("float32", "float64"))
    try:
        with cost.running():
            rounded, exact = (
                alone(module, call["structure"], given, key, precision)
                for module, precision in ((single, "float32"), (double, "float64"))
            )
            again = arrays(_run(single, call["structure"], given, "float32")[0])
    except Exception as error:  # whatever a foreign module raises when it is called alone belongs into the record
        call["unable"] = f"{type(error).__name__}: {error}"
        return
    for direction in DIRECTIONS:
        call["exact"][direction] = {n: writer.put(array) for n, array in exact[direction].items()}
        cost.bytes += sum(array.nbytes for array in exact[direction].values())
        call["floor"][direction] = deviations(exact[direction], rounded[direction], "float32")
    if any(array.size < FEW for array in exact["backward"].values()):
        with cost.running():
            draws = [
                alone(double, call["structure"], given, f"{key}:{draw}", "float64")["backward"]
                for draw in range(COTANGENTS)
            ]
        _cancelling(call["floor"]["backward"], draws, sum(array.size for array in exact["forward"].values()))
    if not again:
        call["unable"] = "it gives no tensor"
        return
    call["repeat"] = max((_ratio(c, (0.0, 0.0)) for c in _compared(rounded["forward"], again)), default=0.0)
    # Inside the model inputs may lie otherwise in memory and be summed in another order: noise as large as the layer's
    # own.
    inside, floors = _compared(get(run, call["output"]), rounded["forward"]), call["floor"]["forward"]
    call["replay"] = max((_ratio(c, floors.get(c.name, (0.0, 0.0))) for c in inside), default=0.0)


def deviations(exact: Arrays, other: Arrays, precision: str) -> dict[str, list[float]]:
    """By how much each tensor of a run in this precision lies from the exact one: largest, L2."""
    return {c.name: [c.max_abs, c.l2] for c in _compared(exact, other, precision) if c.fault is None}


def _cancelling(floors: dict[str, list[float]], draws: Sequence[Arrays], summands: int) -> None:
    """Raise the floors of gradients of a few elements to the noise of their sums.

    Such an element is a sum of numbers that cancel, one for each element of the output, and what one run deviates says
    little. Its size under other cotangents is that of sqrt(n) numbers. Added one by one in float32, partial sums grow
    like the square root too, and their roundings together are ROUNDING sqrt(n / 2) times that size.
    """
    for name, array in draws[0].items():
        if array.size < FEW and name in floors:
            typical = np.sqrt(np.mean([draw[name] ** 2 for draw in draws], 0)) * ROUNDING * np.sqrt(summands / 2)
            floors[name] = [
                max(floors[name][0], float(typical.max(initial=0.0))),
                max(floors[name][1], float(np.linalg.norm(typical))),
            ]


# ------------------------------------------------------------------------------------------------------- candidate
def candidate(
    build: Build,
    images: Sequence[np.ndarray],
    folder: str | Path,
    names: Mapping[str, str] | None = None,
    precisions: Sequence[str] = ("float32", "float64"),
    entries: Mapping[str, str] | None = None,
    float64: str = "full",
) -> dict[str, Any]:
    """Errors of this side's layers against the reference captured in `folder`: fields for a record.

    names: path of the reference's module -> path of this side's, for the modules to look at; None: all, under equal
    paths. precisions: those in which this side computes; float32 is always among them. entries: the reference's state
    entries -> this side's, where they have other names. float64: "partial" where some of it may be computed, or fail,
    in float32.
    """
    folder, cost = Path(folder), Cost()
    with tempfile.TemporaryDirectory() as temporary:
        with store.writing(temporary) as writer:
            own = {(call["path"], call["call"]): call for call in _whole(build("float32"), images, writer)}
        with store.reading(folder) as exact, store.reading(folder / "run") as run, store.reading(temporary) as mine:
            calls = exact.content["calls"]
            known = {call["path"] for call in calls}
            mapped = {path: path for path in known} if names is None else names
            models = {precision: dict(build(precision).named_modules()) for precision in precisions}
            renamed = {theirs: reference for reference, theirs in (entries or {}).items()}
            layers = [
                _layer(call, mapped[call["path"]], models, own, (exact, run, mine), renamed, float64 == "partial", cost)
                for call in calls
                if call["path"] in mapped
            ]
    # Outside a map a port may be built as it likes; both lists are for the reader of the report.
    apart = {
        "reference": sorted(known - set(mapped)),
        "candidate": sorted({path for path, _ in own} - set(mapped.values())),
    }
    return {
        "captured": sha256(folder / store.INDEX),
        "layers": layers,
        "apart": apart,
        "mapped": names is not None,
        "precisions": list(precisions),
        "float64": float64,
        "cost": cost.fields(),
    }


def _layer(
    call: Mapping[str, Any],
    path: str,
    models: Mapping[str, Mapping[str, nn.Module]],
    own: Mapping[tuple[str, int], Mapping[str, Any]],
    readers: tuple[store.Reader, store.Reader, store.Reader],
    renamed: Mapping[str, str],
    partial: bool,
    cost: Cost,
) -> dict[str, Any]:
    """Own and inherited errors of one call of this side's module `path`. readers: of what is exact, of the reference's
    run, of this side's; renamed: this side's state entries -> the reference's."""
    exact, run, mine = readers
    found = {name: call[name] for name in ("path", "call", "kind", "leaf", "repeat", "replay", "unable", "noise")}
    found |= {"as": path, "errors": {}, "inherited": None, "fault": None}
    if path not in models["float32"]:
        return found | {"fault": f"missing: there is no module {path}"}
    if (path, call["call"]) not in own:
        return found | {"fault": "missing: the module is not called as often as the reference's"}
    found["inherited"] = _inherited(_sides(run, call), _sides(mine, own[path, call["call"]]), cost)
    if call["unable"]:
        return found
    truth = {direction: get(exact, call["exact"][direction]) for direction in DIRECTIONS}
    given = get(run, call["input"])
    for precision, modules in models.items():
        fallible = partial and precision == "float64"
        try:
            with cost.running():
                got = alone(modules[path], call["structure"], given, _key(call), precision)
        except Exception as error:  # a port that fails alone on the reference's inputs: said by name, judged as a fault
            said = f"{type(error).__name__}: {error}"
            if not fallible:
                return found | {"fault": said}
            found["no_float64"] = said
            continue
        got["backward"] = {
            _as_the_reference(name, call["path"], path, renamed): array for name, array in got["backward"].items()
        }
        if fallible:
            got = {way: {n: cast(array, precision) for n, array in held.items()} for way, held in got.items()}
        cost.bytes += sum(array.nbytes for held in truth.values() for array in held.values())
        found["errors"][precision] = {
            direction: worst_of(truth[direction], got[direction], call["floor"][direction], precision)
            for direction in DIRECTIONS
        }
    return found


def _as_the_reference(name: str, reference: str, own: str, renamed: Mapping[str, str]) -> str:
    """The gradient "parameter <name>" of module `own` under the name that `reference` has for it; others as they
    are."""
    kind, _, entry = name.partition(" ")
    known = renamed.get(f"{own}.{entry}" if own else entry) if kind == "parameter" else None
    return f"parameter {known.removeprefix(f'{reference}.')}" if known else name


def worst_of(
    truth: Arrays, got: Arrays, floors: Mapping[str, Sequence[float]], precision: str
) -> dict[str, Any] | None:
    """The tensor farthest from the truth in units of its floor; None where there is none on either side."""
    if not truth and not got:
        return None
    worst = max(_compared(truth, got, precision), key=lambda c: _ratio(c, floors.get(c.name)))
    floor = floors.get(worst.name, (float("nan"), float("nan")))
    kept = ("fault", "size", "max_abs", "l2", "scale_max", "scale_l2")
    return {
        "tensor": worst.name,
        **{name: getattr(worst, name) for name in kept},
        "floor_max": floor[0],
        "floor_l2": floor[1],
        "worst": list(worst.worst),
        "discrete": worst.name in truth and truth[worst.name].dtype.kind != "f",
    }


def _compared(truth: Arrays, got: Arrays, precision: str | None = None) -> list[Comparison]:
    return compare_sets(truth, got, precision, diagnosed=False) if truth or got else []


def _ratio(found: Comparison, floor: Sequence[float] | None) -> float:
    """The error in floors, the larger of its two metrics; infinite for a fault."""
    if found.fault or floor is None:
        return float("inf")
    pairs = (
        (found.max_abs, max(floor[0], ROUNDING * found.scale_max)),
        (found.l2, max(floor[1], ROUNDING * found.scale_l2)),
    )
    return max(error / least if least else float("inf") if error else 0.0 for error, least in pairs)


def _sides(reader: store.Reader, call: Mapping[str, Any]) -> Both:
    return {side: get(reader, call[side]) for side in SIDES}


def _inherited(truth: Both, got: Both, cost: Cost) -> dict[str, float | None]:
    """Relative L2 error of the inputs and outputs of a call, and of the loss's gradients there, inside the whole
    network.

    The worst tensor's; infinite where one can't be compared, None where there is none.
    """
    found: dict[str, float | None] = {}
    for side in SIDES:
        floats, kept = ({n: a for n, a in both[side].items() if a.dtype.kind == "f"} for both in (truth, got))
        errors = [c.relative_l2 if c.fault is None else float("inf") for c in _compared(floats, kept, "float32")]
        cost.bytes += sum(array.nbytes for array in floats.values())
        found[side] = max(errors, default=None)
    return found
