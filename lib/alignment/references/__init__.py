"""The published implementations as one more side: what they measured, and how anyone starts from the same state.

Here belongs what is known of golden records alone: nothing is measured or judged. One module per family says which
seeded weights, inputs, boxes and phases its golden records were computed with (`case`), and brings the golden numbers
into the vocabulary of the other sides' records (`STAGES`). The golden files hold whole tensors for some names and
statistics (norm, mean, first values, size of the float32 error) for the rest; these become `fields["statistics"]`,
keyed by the name that the other sides give the array.
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import yaml

from lib.alignment.references import gold_yolo, nanodet_plus, rt_detr
from lib.alignment.references.case import GOLDEN, Arrays, Case, arrays_of, content_of
from lib.families import FAMILIES, family, size_of
from lib.record import array_entry, measure, plain, read

RECIPES, INITIAL = GOLDEN / "recipes.yml", GOLDEN / "initial.yml"
_MODULES = {"nanodet_plus": nanodet_plus, "gold_yolo": gold_yolo, "rt_detr": rt_detr}


def module(model: str) -> ModuleType | None:
    """The reference of the model's family; None for a model that is nobody's but the user's."""
    return next((_MODULES[family] for family, names in FAMILIES.items() if model in names), None)


def case(model: str, stage: str) -> Case:
    """What `stage` ("convert", "forward", "loss", "speed") measures for `model`, one of lib.models.NAMES."""
    return module(model).case(model, stage)


@cache
def _table(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def recipe(model: str) -> dict[str, Any]:
    """Every published number of a model's recipe, by the name that `lib.alignment.recipe` gives it."""
    held = _table(RECIPES)[family(model)]
    found = {}
    for place, value in [*held["all"].items(), *held[model].items()]:
        found |= {f"{place}/{name}": one for name, one in value.items()} if isinstance(value, dict) else {place: value}
    size = model == size_of(model)  # of a head that is published for training alone no golden file counts tensors
    return {name: value for name, value in found.items() if size or not name.endswith("/tensors")}


def initial(model: str, state: Sequence[Sequence]) -> dict[str, dict[str, Any]]:
    """The published distribution of each parameter's first values, as `lib.alignment.initial.against` takes it, which
    fails a parameter that no rule is about.

    state: rows of name, shape, type, "param" or "buffer".
    """
    rules, shapes = _table(INITIAL)[family(model)], {name: shape for name, shape, *_ in state}
    names = [name for name, _, _, kind, *_ in state if kind == "param"]
    said = {name: next(filter(None, (_first_values(rule, name, shapes) for rule in rules)), None) for name in names}
    return {name: rule for name, rule in said.items() if rule}


def _first_values(rule: dict[str, Any], name: str, shapes: dict[str, list[int]]) -> dict[str, Any] | None:
    """What a rule says of a parameter; None where it is not about it."""
    shape, weight = shapes[name], shapes.get(f"{name.rpartition('.')[0]}.weight", ())
    said = {"axes": len(shape), "beside": len(weight)}
    if not re.fullmatch(rule["entry"], name) or any(rule.get(key, axes) != axes for key, axes in said.items()):
        return None
    [(kind, size)] = ((key, value) for key, value in rule.items() if key not in ("entry", *said))
    if kind == "values":
        points = (
            [distance * x, distance * y]
            for x, y in size["rays"]
            for _ in range(size["levels"])
            for distance in range(1, size["points"] + 1)
        )
        return {kind: [float(value) for point in points for value in point]}
    return {kind: _by_weight(size, shape if len(shape) > 1 else weight) if isinstance(size, str) else size}


def _by_weight(size: str, weight: Sequence[int]) -> float:
    outputs, inputs, *sides = weight
    kernel = math.prod(sides)
    match size:
        case "inputs":
            return 1 / inputs
        case "fan out":
            return math.sqrt(2 / (outputs * kernel))
        case "fan in":
            return 1 / math.sqrt(inputs * kernel)
        case "xavier":
            return math.sqrt(6 / ((inputs + outputs) * kernel))
    raise ValueError(f"{INITIAL}: {size}: no such size")


def published(model: str, golden: Path = GOLDEN) -> Iterator[tuple[str, Path, dict[str, Any], Arrays]]:
    """Of each stage that has a golden file: the stage, the file, fields and arrays of the published side's record."""
    reference = module(model)
    for stage, fill in reference.STAGES.items() if reference else ():
        chosen = case(model, stage)
        source = golden / chosen.file
        if source.exists() and (filled := fill(content_of(source), arrays_of(source), chosen)):
            fields, arrays = filled
            if stage == "convert":
                fields |= {"recipe": recipe(model), "first": initial(model, fields["state"])}
            yield stage, source, {"case": chosen.name, "float64": reference.FLOAT64, **fields}, arrays


def write(folder: str | Path, model: str, golden: Path = GOLDEN) -> list[Path]:
    """Write the published side's records of `model` into `folder`; stages without a golden file are left out."""
    paths = []
    for stage, source, fields, arrays in published(model, golden):
        inputs = [path for path in (source, source.with_suffix(".npz")) if path.exists()]
        side = SimpleNamespace(
            NAME="published", VERSION=module(model).COMMIT, device=lambda: "cpu", cache_path=lambda: None
        )
        with measure(stage, model, folder, inputs=inputs, side=side) as measurement:
            measurement.fields |= fields
            measurement.arrays |= arrays
        paths.append(measurement.path)
    return paths


def forged(folder: str | Path, model: str) -> list[Path]:
    """The published side's records that are not what the golden files hold."""
    found = []
    for stage, _, fields, arrays in published(model):
        path = Path(folder, model, "published", f"{stage}.json")
        if path.exists():
            held, entries = read(path), {name: array_entry(np.asarray(array)) for name, array in arrays.items()}
            if (held.fields, held.arrays) != (plain(fields), entries):
                found.append(path)
    return found
