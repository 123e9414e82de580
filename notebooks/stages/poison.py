"""What comes out where NaN, infinity, huge or subnormal numbers, or nothing at all, go in: of operators and of a step.

A port that hides them learns from what the reference would have refused. Compared is, element by element, whether a
result is NaN, infinite or a number, and what is said instead of a result. The calls are those of `operators`, each kind
once with a poisoned input, with a poisoned gradient and without images; then whole training steps on a poisoned image,
clipping and update included. The reference leads.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib import models
from lib.alignment import capture, layers, store
from lib.alignment.measure import Arrays, arrays
from lib.alignment.references.case import Case
from lib.data import stream
from lib.record import sha256
from lib.training import loop
from lib.training.schedule import recipe
from notebooks.stages import operators
from notebooks.stages.operators import BATCH, Operator

ZERO, SUBNORMAL, GRADIENT, EMPTY = "zero", "subnormal", "NaN in the gradient", "no images"
INPUTS = {"NaN": np.nan, "infinity": np.inf, "huge": 1e30, SUBNORMAL: 1e-40}  # what is put into an input
SEVERAL = 8  # elements that are poisoned, where there are as many
# What does not fill PyTorch's vectors is computed one by one, and its ReLU6 then hands a gradient on at NaN.
TAIL = 32
TINY = np.finfo(np.float32).tiny  # the smallest normal number
KINDS = (ZERO, SUBNORMAL, "number", "NaN", "infinity", "-infinity")  # what an element is
FINITE = 3  # so many of them are
STEP, STEPS = "training step", (*INPUTS, EMPTY)  # what whole steps are poisoned with

Result = tuple[Arrays, str]


def kinds(held: Arrays) -> Arrays:
    """Of each element of real arrays its place in KINDS."""
    found = {}
    for name, array in held.items():
        if array.dtype.kind == "f":
            tests = array == 0, np.abs(array) < TINY, np.isfinite(array), np.isnan(array), array > 0
            found[name] = np.select(tests, range(len(tests)), len(tests)).astype(np.int8)
    return found


def poisoned(given: Arrays, poison: str, draw: np.random.Generator) -> Arrays:
    """The inputs with a few elements of the first real one poisoned."""
    name = next((name for name, array in given.items() if array.dtype.kind == "f"), None)
    if name is None or poison not in INPUTS:
        return given
    array = given[name].copy()
    places = max(array.size - TAIL, 1)
    array.flat[draw.choice(places, min(SEVERAL, places), replace=False)] = INPUTS[poison]
    return {**given, name: array}


def _asked(used: Sequence[Operator], criteria: Sequence[tuple[dict, Arrays]], seed: int) -> Iterator[tuple]:
    """Each call with its inputs."""
    for place, operator in enumerate(used):
        several, none = (operators.drawn(operator, images, stream(seed, "poison", place)) for images in (2, 0))
        free = any(BATCH in shape for shape in operator.shapes.values())
        for poison in (*INPUTS, GRADIENT, *[EMPTY] * free):
            structure, given = none if poison == EMPTY else several
            call = operators.told(operator, structure, given) | {"poison": poison}
            yield call, poisoned(given, poison, stream(seed, f"poison: {poison}", place))
    for call, given in criteria:
        for poison in (*INPUTS, GRADIENT):
            yield call | {"poison": poison}, poisoned(given, poison, stream(seed, f"poison: {poison}"))
    for poison in STEPS:
        yield {"path": STEP, "name": STEP, "leaf": False, "poison": poison}, {}


def _result(
    model: str, case: Case, seed: int, held: Mapping, call: Mapping[str, Any], given: Arrays, precision: str = "float32"
) -> Result:
    """The kinds of what a call gives, gradients included, or what is said instead."""
    poison = call["poison"]
    try:
        with np.errstate(all="ignore"):  # NumPy would warn of what is asked for
            if call["path"] == STEP:
                return kinds(_step(model, operators.seen(case, 2), seed, poison)), ""
            change = _spoilt if poison == GRADIENT else np.asarray
            module = operators.part(held[precision], call["path"])
            found = operators.alone(module, call, given, precision, change=change)
        return kinds({f"{way} {name}": array for way in layers.DIRECTIONS for name, array in found[way].items()}), ""
    except Exception as error:  # whatever anybody raises is what is said
        return {}, f"{type(error).__name__}: {error}"


def _spoilt(cotangent: np.ndarray) -> np.ndarray:
    cotangent.flat[:1] = np.nan
    return cotangent


def _step(model: str, case: Case, seed: int, poison: str) -> Arrays:
    """What a training step on a poisoned image leaves: losses, the gradient's norm, weights and statistics."""
    network = capture.seeded_model(model, case)
    criterion = capture.criterion_in(model, case, next(iter(case.phases.values())))
    trainer = loop.Trainer(network, criterion, recipe(model), 1, models.parameter_groups(model, network), seed=None)
    images = poisoned({"images": case.input()}, poison, stream(seed, f"poison: {poison}"))["images"]
    asked = trainer.issue(images, operators.targets(case, seed, (0, 0) if poison == EMPTY else (3, 2)))
    left = arrays(asked) | {name: array for name, array in trainer.state().items() if name.startswith("model/")}
    return {name: array.reshape(-1) for name, array in left.items()}  # Jittor has no shape ()


def reference(model: str, case: Case, used: Sequence[Operator], folder: str | Path, seed: int) -> dict[str, Any]:
    """Keep the poisoned inputs and the kinds of what comes out in `folder`; fields for a record."""
    held = {precision: operators.parts(model, case, seed, precision) for precision in ("float32", "float64")}
    calls = []
    with store.writing(folder) as writer:
        for call, given in _asked(used, operators.of_criteria(model, case, seed), seed):
            found, said = _result(model, case, seed, held, call, given)
            other = _otherwise(model, case, seed, held, call, given)
            results = {name: operators.kept(writer, one) for name, one in (("kinds", found), ("otherwise", other))}
            calls.append({**call, **results, "input": operators.kept(writer, given), "said": said})
        writer.content |= {"calls": calls}
    return {"poison_captured": sha256(Path(folder, store.INDEX)), "poisoned": len(calls)}


def _otherwise(model: str, case: Case, seed: int, held: Mapping, call: Mapping[str, Any], given: Arrays) -> Arrays:
    """Kinds that are right as well: those of the float64 run, in which less overflows, on zeros where subnormal numbers
    stand, for which Jittor's kernels, linked with -Ofast, take them."""
    if call["path"] == STEP:
        return {}
    if call["poison"] == SUBNORMAL:
        given = {name: np.where(np.abs(array) < TINY, 0, array).astype(array.dtype) for name, array in given.items()}
    return _result(model, case, seed, held, call, given, "float64")[0]


def candidate(model: str, case: Case, folder: str | Path, seed: int) -> dict[str, Any]:
    """Where this side's results are of other kinds than what the reference kept in `folder`: fields for a record."""
    held, found = {"float32": operators.parts(model, case, seed, "float32")}, []
    with store.reading(Path(folder)) as reader:
        for call in reader.content["calls"]:
            ours, said = _result(model, case, seed, held, call, layers.get(reader, call["input"]))
            theirs, other = (layers.get(reader, call[key]) for key in ("kinds", "otherwise"))
            common = {"name": call["name"], "poison": call["poison"], "said": [call["said"], said]}
            found.append(common | _differences(theirs, other, ours, call["leaf"]))
    return {"poison_captured": sha256(Path(folder, store.INDEX)), "poisoned": found}


def _differences(theirs: Arrays, otherwise: Arrays, ours: Arrays, strictly: bool) -> dict[str, Any]:
    """Of the elements of the results, how many there are, are no number in the reference, are of another kind here, are
    of the kind that is right as well, are subnormal there and zero here; and the first of another kind. Unless
    `strictly`, any two numbers are of one kind: in a whole network rounding makes some zero."""
    told = dict.fromkeys(("elements", "special", "differing", "otherwise", "flushed"), 0) | {"first": ""}
    for name in dict.fromkeys([*theirs, *ours]):
        one, other = theirs.get(name), ours.get(name)
        if one is None or other is None or one.shape != other.shape:
            shapes = " and ".join("none" if array is None else str(array.shape) for array in (one, other))
            told |= {"differing": told["differing"] + 1, "first": told["first"] or f"{name}: {shapes}"}
            continue
        flushed = (one == KINDS.index(SUBNORMAL)) & (other == KINDS.index(ZERO))
        unlike = (one != other) & ~flushed & (strictly | (one >= FINITE) | (other >= FINITE))
        right = unlike & (otherwise.get(name, one) == other)
        apart = unlike & ~right
        where = {"special": one >= FINITE, "differing": apart, "otherwise": right, "flushed": flushed}
        told["elements"] += one.size
        for key, held in where.items():
            told[key] += int(np.count_nonzero(held))
        if apart.any() and not told["first"]:
            at = tuple(map(int, np.argwhere(apart)[0]))
            told["first"] = f"{name} at {at}: {KINDS[one[at]]}, here {KINDS[other[at]]}"
    return told
