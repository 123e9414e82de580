"""Each kind of operator that a model uses, alone, with sizes at which nobody runs it and with inputs that nobody wants.

A fault that begins at the ninth image, or in a width that no vector divides, shows at no size that other stages run;
nor does one that hides NaN, where none arises. PyTorch, the reference, runs a training forward and the criterion at two
sizes and notes every call of a layer and of a function of the backend: a length that differs between the two is free.
Each kind of call is then made again with free lengths drawn on both sides of what vectors and blocks hold, on values
drawn from those it had; and the criterion on a batch with many boxes, few and, in its middle, none.

`lib.alignment.divergence` judges the errors as it does those of a network's own layers. The reference's float32 run is
held against its float64 run with inputs and weights moved: a floor that hides a fault is no rounding.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lib import backend
from lib.alignment import by_family, capture, layers, store, tree
from lib.alignment.compare import norm
from lib.alignment.measure import Arrays, arrays, cast, is_tensor
from lib.alignment.references.case import Case
from lib.alignment.trajectory import perturbed
from lib.alignment.verdict import ROUNDING, K
from lib.backend import nn
from lib.data import stream
from lib.families import family
from lib.models.step import Step
from lib.record import sha256
from notebooks.exam.planting import Change, planted

SEEN = ((2, (128, 160)), (5, (160, 192)))  # images, and their height and width, of the two runs that are noted
BATCH = "2 or 5"  # the free length that is the number of images
BATCHES = (1, 3, 9, 17)  # what it is drawn as, each once: no power of two, more than eight
EDGES = (2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 65)  # what other free lengths are drawn from
MOST = 2**15  # elements of an input
LARGE = 8 * MOST  # where fixed lengths make more of them fewer images are rows enough, and the rest would fill the disk
WEIGHTS = 2**18  # elements of a layer's parameters: of a kind with larger ones its smaller layers stand for it
SPREAD = 2.0**-10  # by which a drawn value is moved, relatively: no ties that the model does not have
NUMBER = re.compile(r'(?<="plain": )\d+(?=[,}])')  # a whole number among arguments
NAMED = re.compile(r'"(\d+ or \d+)"')  # a free length among them
BOXES = (3, 17, 1, 33, 0, 8, 65, 9, 2)  # of each image that a criterion sees


@dataclass(frozen=True)
class Operator:
    """A kind of call. path: of the layer in the model, or "module:function"."""

    path: str
    kind: str
    structure: str  # JSON of its arguments' tree; a length that is free has a name in its place, "4 or 5"
    shapes: Mapping[str, tuple[int | str, ...]]  # of its tensors, likewise
    values: Arrays  # some or all that they held
    weights: int  # elements of its own
    alike: str  # equal for layers of one kind


class Function(nn.Module):
    """A function, "module:name", as a layer of positional and named arguments."""

    def __init__(self, path: str):
        super().__init__()
        module, name = path.split(":")
        self.function = getattr(import_module(module), name)

    def forward(self, arguments: Sequence, options: Mapping) -> Any:
        return self.function(*arguments, **options)


class Criterion(nn.Module):
    """A criterion with its targets, as a layer: the losses, and the decisions behind them."""

    def __init__(self, model: str, criterion: Any, targets: Sequence[Mapping], size: tuple[int, int]):
        super().__init__()
        self.decided, self.criterion, self.targets, self.size = model, criterion, targets, size

    def forward(self, outputs: Any) -> dict[str, Any]:
        found = by_family.decisions(self.decided, self.criterion, outputs, self.targets, self.size)
        losses = self.criterion(outputs, self.targets, image_size=self.size)
        whole = {name: value.reshape(1) for name, value in losses.items()}  # Jittor has no shape ()
        return whole | {name: backend.tensor(array) for name, array in found.items()}


# ------------------------------------------------------------------------------------------------- what a model calls
def used(model: str, case: Case) -> list[Operator]:
    """Each kind of layer in the model, its smallest and its largest, and each function with each form of arguments."""
    first, second = (_noted(model, seen(case, images, run)) for run, (images, _) in enumerate(SEEN))
    kinds: dict[str, list[Operator]] = {}
    for form in (form for form, call in first.items() if form in second and call.weights <= WEIGHTS):
        one, other = first[form], second[form]
        structure = _freed(one.structure, other.structure)
        shapes = {name: tuple(map(_named, shape, other.shapes[name])) for name, shape in one.shapes.items()}
        kinds.setdefault(one.alike, []).append(replace(one, structure=structure, shapes=shapes))
    ordered = (sorted(calls, key=lambda call: call.weights) for calls in kinds.values())
    return [call for calls in ordered for call in (calls[0], *calls[1:][-1:])]


def _freed(structure: str, other: str) -> str:
    numbers = iter(NUMBER.findall(other))
    return NUMBER.sub(lambda found: json.dumps(_named(int(found[0]), int(next(numbers)))), structure)


def _named(length: int, other: int) -> int | str:
    return length if length == other else f"{length} or {other}"


def _noted(model: str, case: Case) -> dict[str, Operator]:
    """The first call of each form in a training forward and the criterion of each phase; calls of one form differ in
    lengths alone."""
    found: dict[str, Operator] = {}

    def note(path: str, kind: str, arguments: Any, output: Any, own: Mapping[str, Any]) -> None:
        structure, given = tree.take_apart(arguments, is_tensor)
        results = tree.take_apart(output, is_tensor, "output")[1]
        if not given or not results or tree.opaque(structure):
            return
        text, values = json.dumps(structure), arrays(given)
        shapes = {name: tuple(value.shape) for name, value in given.items()}
        types = [(array.ndim, array.dtype.name) for array in values.values()]
        form = f"{path} {NUMBER.sub('0', text)} {types}"
        sizes = [[min(length, EDGES[4]) for length in value.shape] for value in own.values()]
        out, into = tuple(next(iter(results.values())).shape), next(iter(shapes.values()))
        shrinks = [before / after for before, after in zip(into[2:], out[2:])]
        alike = form.replace(path, kind) if ":" in path else json.dumps([kind, sizes, shrinks])
        values = {name: np.array(array if array.size <= MOST else _sample(array)) for name, array in values.items()}
        weights = sum(math.prod(value.shape) for value in own.values())
        found.setdefault(form, Operator(path, kind, text, shapes, values, weights, alike))

    def layer(path: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        if sum(1 for _ in module.named_modules()) == 1:
            note(path, type(module).__name__, inputs, output, dict(backend.named_state(module)))

    network = capture.seeded_model(model, case).train()
    network.step = Step()
    with layers.hooked(network, layer), planted(_watched(model, note)):
        outputs = network(backend.tensor(case.input()))
        for _, part in _criteria(model, case, 0):
            part(outputs)
    return found


def _sample(array: np.ndarray) -> np.ndarray:
    return array.ravel()[:: -(-array.size // MOST)]


def _watched(model: str, note: Any) -> Iterator[Change]:
    """The family's own names of the backend's functions, each call of which is noted."""
    for owner in (import_module(f"lib.{room}.{family(model)}") for room in ("models", "losses")):
        for name in backend.NAMES:
            function = getattr(backend, name)
            if vars(owner).get(name) is function and callable(function) and not isinstance(function, type):

                def make(original: Any, path: str = f"{owner.__name__}:{name}", name: str = name) -> Any:
                    def watched(*arguments: Any, **options: Any) -> Any:
                        output = original(*arguments, **options)
                        note(path, name, (arguments, options), output, {})
                        return output

                    return watched

                yield Change(owner, name, make)


def seen(case: Case, images: int, run: int = 0) -> Case:
    """The case on so many images of the size of a noted run."""
    return replace(case, batch=images, size=SEEN[run][1])


def targets(case: Case, seed: int, counts: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """So many boxes for each image, anywhere in it."""
    draw, size, found = stream(seed, "operators: boxes"), np.array([*case.size[::-1]] * 2), []
    for count in counts:
        corners = np.sort(draw.random((count, 2, 2)), 1).reshape(count, 4)
        labels = draw.integers(0, case.num_classes, count)
        found.append({"boxes": (corners * size).astype(np.float32), "labels": labels})
    return found


def _criteria(model: str, case: Case, seed: int) -> Iterator[tuple[str, Criterion]]:
    """The criterion of each phase that has one of its own, with targets for the case's images, by name."""
    known = []
    for label, phase in case.phases.items():
        if phase.criterion not in known:
            known.append(phase.criterion)
            criterion = capture.criterion_in(model, case, phase)
            boxes = targets(case, seed, BOXES[: case.batch])
            yield f"criterion, {label}", Criterion(model, criterion, boxes, case.size)


# ------------------------------------------------------------------------------------------------------- what is drawn
def drawn(operator: Operator, images: int, draw: np.random.Generator) -> tuple[tree.Structure, Arrays]:
    """Arguments for a call: their structure, and tensors of at most MOST elements on values like those it had."""
    free = [length for shape in operator.shapes.values() for length in shape if isinstance(length, str)]
    names = sorted({*free, *NAMED.findall(operator.structure)} - {BATCH})
    picked = {name: int(draw.integers(len(EDGES))) for name in names}
    count = max(map(int, NUMBER.findall(operator.structure)), default=0)
    least = count if count > EDGES[-1] else 0  # where so many are to be chosen there are more
    while True:
        sizes = {BATCH: images, **{name: least + EDGES[place] for name, place in picked.items()}}
        shapes = {name: tuple(sizes.get(one, one) for one in shape) for name, shape in operator.shapes.items()}
        if max(map(math.prod, shapes.values())) <= MOST or not any(picked.values()):
            break
        picked[max(picked, key=picked.__getitem__)] -= 1
    structure = NAMED.sub(lambda found: str(sizes[found[1]]), operator.structure)
    return json.loads(structure), {name: _values(operator.values[name], shape, draw) for name, shape in shapes.items()}


def _values(held: np.ndarray, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """What was held, where it has this shape; else as many of its finite values, each moved a little."""
    if held.shape == shape:
        return held
    if held.dtype.kind != "f":
        return draw.choice(held.ravel(), shape)
    moved = draw.choice(held[np.isfinite(held)], shape) * (1 + SPREAD * draw.standard_normal(shape))
    return moved.astype(held.dtype)


def parts(model: str, case: Case, seed: int, precision: str) -> dict[str, nn.Module]:
    """All that is called, by path: the model's layers, and its criteria."""
    network = capture.seeded_model(model, case, precision).train()
    network.step = Step()
    criteria = _criteria(model, seen(case, len(BOXES)), seed)
    return {path or "model": module for path, module in network.named_modules()} | dict(criteria)


def part(held: Mapping[str, nn.Module], path: str) -> nn.Module:
    """What a path names."""
    return Function(path) if ":" in path else held[path]


def alone(
    module: nn.Module,
    call: Mapping[str, Any],
    given: Arrays,
    precision: str,
    roundings: int = 0,
    change: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> layers.Both:
    """As `layers.alone`, with the module's buffers afterwards; its state stays as it was.

    roundings: by so many are weights, inputs and cotangents moved.
    """
    backend.set_mode(module, call["training"])
    before = {name: np.array(backend.numpy(value)) for name, value in backend.named_state(module)}

    def moved(held: Arrays) -> Arrays:
        return perturbed({name: cast(array, precision) for name, array in held.items()}, 0, roundings)

    try:
        if roundings:
            backend.load_state(module, moved(before))
            given, change = moved(given), lambda cotangent: moved({"cotangent": cotangent})["cotangent"]
        found = layers.alone(module, call["structure"], given, call["name"], precision, change)
        held = {name: np.array(backend.numpy(value)) for name, value in module.named_buffers()}
        found["forward"] |= {f"buffer {name}": array for name, array in held.items() if array.dtype.kind == "f"}
        return found
    finally:
        backend.load_state(module, before)


def told(operator: Operator, structure: tree.Structure, given: Arrays, training: bool = True) -> dict[str, Any]:
    """What a call is; its name is its path with the shape of its largest tensor."""
    largest = max(given.values(), key=lambda array: array.size)
    name = (
        f"{operator.path.rpartition(':')[2]} {' × '.join(map(str, largest.shape))}{'' if training else ', evaluation'}"
    )
    held = {"path": operator.path, "kind": operator.kind, "name": name, "leaf": True}
    return held | {"training": training, "structure": structure}


def of_criteria(model: str, case: Case, seed: int) -> list[tuple[dict[str, Any], Arrays]]:
    """The criteria's calls on what the model gives, with their inputs."""
    case = replace(seen(case, len(BOXES)), images=f"operators: {seed}")
    network = capture.seeded_model(model, case).train()
    network.step = Step()
    structure, outputs = tree.take_apart((network(backend.tensor(case.input())),), is_tensor)
    given = {name: np.array(array) for name, array in arrays(outputs).items()}
    common = {"kind": "Criterion", "leaf": False, "training": True, "structure": structure}
    return [({"path": path, "name": path, **common}, given) for path, _ in _criteria(model, case, seed)]


def _entry(call: Mapping[str, Any], **found: Any) -> dict[str, Any]:
    """A call as `divergence.localise` reads it."""
    held = {"path": call["name"], "call": 0, "kind": call["kind"], "leaf": call["leaf"], "unable": call["unable"]}
    return held | {"repeat": 0.0, "replay": 0.0, "noise": {}, "inherited": {}, "errors": {}, "fault": None, **found}


def _fields(folder: Path, entries: Sequence[Mapping]) -> dict[str, Any]:
    nothing = {"reference": [], "candidate": []}
    swept = {"layers": list(entries), "apart": nothing, "mapped": True, "float64": backend.FLOAT64}
    return {"captured": sha256(folder / store.INDEX), "swept": swept}


def reference(model: str, case: Case, used: Sequence[Operator], folder: str | Path, seed: int) -> dict[str, Any]:
    """Draw the calls, keep their inputs and exact results in `folder`; fields for a record, which name the calls that
    were too large."""
    folder, entries, calls, large = Path(folder), [], [], []
    held = {precision: parts(model, case, seed, precision) for precision in ("float32", "float64")}
    with store.writing(folder) as writer:
        for call, given in [*_drawn(used, held["float32"], seed), *of_criteria(model, case, seed)]:
            if not given:
                large.append(call["name"])
                continue
            call |= {"input": kept(writer, given), "exact": {}, "floor": {}, "unable": None}
            runs, errors = [], {}
            try:
                for precision, moved in (("float64", 0), ("float32", 0), ("float64", K)):
                    runs.append(alone(part(held[precision], call["path"]), call, given, precision, moved))
            except (RuntimeError, ValueError) as error:  # what the reference refuses nobody has to give
                call["unable"] = f"{type(error).__name__}: {error}"
            for way in layers.DIRECTIONS if len(runs) == 3 else ():
                exact, rounded, moved = (run[way] for run in runs)
                summands = max(array.size for array in (*given.values(), *runs[0]["forward"].values()))
                call["exact"][way] = kept(writer, exact)
                call["floor"][way] = layers.deviations(exact, rounded, "float32")
                errors[way] = layers.worst_of(exact, rounded, _reach(exact, moved, summands), "float32")
            calls.append(call)
            entries.append(_entry(call, errors={"float32": errors} if errors else {}))
        writer.content |= {"calls": calls}
    return _fields(folder, entries) | {"too_large": large}


def _reach(exact: Arrays, moved: Arrays, summands: int) -> dict[str, list[float]]:
    """How far a float32 run of the reference may lie from the exact one: as far as everything moved by K roundings, and
    what adding so many numbers one by one rounds (see `layers._cancelling`)."""
    added = ROUNDING * math.sqrt(summands / 2)
    return {
        name: [largest + added * np.abs(exact[name]).max(initial=0.0), l2 + added * norm(exact[name])]
        for name, (largest, l2) in layers.deviations(exact, moved, "float64").items()
    }


def kept(writer: store.Writer, held: Arrays) -> dict[str, str]:
    """The arrays' digests, after they were put into the store."""
    return {name: writer.put(array) for name, array in held.items()}


def _drawn(
    used: Sequence[Operator], held: Mapping[str, nn.Module], seed: int
) -> Iterator[tuple[dict[str, Any], Arrays]]:
    """Each operator's calls with their inputs: one for each number of images, one more where training differs; no
    inputs where they are too large."""
    for place, operator in enumerate(used):
        buffers = bool(list(part(held, operator.path).named_buffers()))
        for number, batch in enumerate((*BATCHES, *BATCHES[1:2] * buffers)):
            structure, given = drawn(operator, batch, stream(seed, "operators", number, place))
            call = told(operator, structure, given, training=number < len(BATCHES))
            yield call, given if max(array.size for array in given.values()) <= LARGE else {}


def candidate(model: str, case: Case, folder: str | Path, seed: int) -> dict[str, Any]:
    """Errors of this side's operators in the calls that the reference kept in `folder`: fields for a record."""
    folder, entries = Path(folder), []
    held = {precision: parts(model, case, seed, precision) for precision in ("float32", "float64")}
    with store.reading(folder) as reader:
        for call in reader.content["calls"]:
            found: dict[str, Any] = {"errors": {}}
            given = layers.get(reader, call["input"])
            for precision in () if call["unable"] else held:
                try:
                    got = alone(part(held[precision], call["path"]), call, given, precision)
                except Exception as error:  # whatever a port raises where the reference does not is its fault
                    found["fault"] = f"{type(error).__name__}: {error}"
                    break
                found["errors"][precision] = {
                    way: layers.worst_of(
                        layers.get(reader, call["exact"][way]), got[way], call["floor"][way], precision
                    )
                    for way in layers.DIRECTIONS
                }
            entries.append(_entry(call, **found))
    return _fields(folder, entries)
