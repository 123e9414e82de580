"""Every number of a recipe as the code holds it now, to be held against the published ones (tests/golden/recipes.yml).

Weights of losses, thresholds, candidates, margins; rates, momenta, groups; ranges of augmentation in their order; what
evaluation keeps. Collected, not listed: a number that somebody adds is asked for its published value.
"""

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lib import backend, losses, models, postprocess
from lib.data import transforms
from lib.families import family
from lib.training import schedule

# What belongs to this implementation and changes nothing that is published: each says so where it stands.
OURS = {"losses/TINY", "model/BLOCKED", "augmentation/exact"}
CHOSEN = ("input_size", "reg_max", "iou", "layers", "last")  # of a variant: what its training and evaluation are told


def numbers(name: str, network: backend.nn.Module) -> dict[str, Any]:
    """By place and name; tuples where several belong together. network: the model, whose parameters are grouped."""
    places = {"losses": "lib.losses", "model": "lib.models", "transforms": "lib.data.transforms"}
    found = {
        f"{place}/{key}": value
        for place, package in places.items()
        for key, value in vars(importlib.import_module(f"{package}.{family(name)}")).items()
        if key.isupper() and _is_plain(value)
    }
    held = {
        "variant": _variant(name),
        "criterion": _criterion(losses.build(name)),
        "training": asdict(schedule.recipe(name)),
        "augmentation": asdict(transforms.recipe(name)),
        "evaluation": asdict(postprocess.settings(name)),
    }
    found |= {f"{place}/{key}": value for place, values in held.items() for key, value in values.items()}
    if family(name) == "gold_yolo":
        found |= {f"evaluation/{key}": getattr(postprocess, key) for key in ("MOST", "CLASS_OFFSET")}
    for i, group in enumerate(models.parameter_groups(name, network)):
        found[f"group {i}"] = (group.learning_rate_factor, group.decays, group.warmup_from)
        found[f"group {i}/tensors"] = len(group.names)
    return {key: value for key, value in found.items() if key not in OURS}


def _variant(name: str) -> dict[str, Any]:
    held = vars(importlib.import_module(f"lib.models.{family(name)}").VARIANTS[name])
    return {key: held[key] for key in CHOSEN if key in held}


def _criterion(criterion: Any, prefix: str = "") -> dict[str, Any]:
    """What a criterion was built with; a second branch's too."""
    found = {}
    for key, value in vars(criterion).items():
        if isinstance(value, losses.gold_yolo.Criterion):
            found |= _criterion(value, f"{key}/")
        elif key not in ("num_classes", "epoch"):
            found[prefix + key] = value.__name__ if callable(value) else value
    return found


def _is_plain(value: Any) -> bool:
    """A number, or numbers in tuples, or by name."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, int | float)
