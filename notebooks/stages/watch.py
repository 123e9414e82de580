"""A model's training watched step by step in this framework: what 61_lockstep records.

The training's batches, the same bytes in both frameworks. The first steps run by the plan's own recipe, in float32 and
in float64: native ones, and ones in which the same gradients are fed to both sides. The curves run in float32 alone, at
one rate; the reference's side adds the control runs that say what such a curve can tell.

They must tell something: right runs part within two steps where near-ties decide the assignment, where AdamW makes
whole steps of a gradient's noise, or where a norm sees four values. Seeded weights, a small rate and a large enough
input keep NanoDet-Plus and RT-DETR together for longer; Gold-YOLO, whose seeded weights make its gradients explode,
starts afresh. A fresh RT-DETR even ties exactly: its box heads begin at zero, so a denoising box is its noised one, and
where that and the true box are both cut at the image's edge the sign of a rounding, in float64 too, decides the
gradient of the GIoU.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lib import backend, convert, losses, models
from lib.alignment import datastages, references, steps, trajectory, windows
from lib.alignment.evidence import is_reference
from lib.alignment.measure import precisions
from lib.data.loader import Batch, Loader
from lib.training import runs
from lib.training.loop import Trainer
from lib.training.schedule import Recipe

WATCHED = 4  # tensors whose every element is kept
OFF = 1.01  # learning rate of the run that is wrong on purpose
MODES = ("fed", "native")


def first_steps(plan: runs.Training, count: int, seeded: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and arrays of the first `count` steps: the data's way into them, and the state after each, by mode; and
    the windows around what the published recipe does later.

    seeded: from seeded weights, not fresh ones.
    """
    loader = runs.loader(plan)
    _, stages = datastages.first_batch(loader)
    batches = list(itertools.islice(_batches(loader), count))
    recipe = runs.recipe(plan, loader)
    found: dict[str, Any] = {
        "data": [[name, dict(digests)] for name, digests in stages],
        "batches": _digests(batches),
    }
    arrays: dict[str, np.ndarray] = {}

    def build(precision: str) -> steps.Watched:
        model = _network(plan, loader, seeded)
        model = backend.float64(model) if precision == "float64" else model
        return _trainer(plan, loader, model, recipe, steps.Watched)

    for mode, advance in zip(MODES, (steps.fed, steps.native(batches)), strict=True):
        trainers = {precision: build(precision) for precision in precisions()}
        selected = _selected(list(trainers["float32"].trained()))
        found[mode], kept = steps.lockstep(trainers, advance, count, selected)
        arrays |= {f"{mode}/{name}": array for name, array in kept.items()}
        del trainers
        backend.give_back()
    groups = models.parameter_groups(plan.model, _network(plan, loader, seeded))
    found["windows"] = windows.of_recipe(plan.model, groups)
    return found, arrays


def _selected(names: list[str]) -> list[str]:
    """About WATCHED of them, evenly."""
    return names[:: -(-len(names) // WATCHED)]


def curves(plan: runs.Training, count: int, side: str, seeded: bool) -> dict[str, Any]:
    """`count` steps' losses at the plan's rate, without warm-up: "own"; on the reference's side "controls", from
    weights moved by a rounding, and "off", with a learning rate that is wrong on purpose. seeded: from seeded weights,
    not fresh ones."""
    loader = runs.loader(plan)
    batches = list(itertools.islice(_batches(loader), count))
    recipe = _constant(runs.recipe(plan, loader))

    def run(seed: int | None = None, rate: float = 1.0) -> dict[str, list[float]]:
        model = _network(plan, loader, seeded)
        if seed is not None:
            convert.load(model, trajectory.perturbed(convert.state(model), seed))
        used = replace(recipe, learning_rate=rate * recipe.learning_rate)
        return steps.curves(_trainer(plan, loader, model, used), batches)

    found: dict[str, Any] = {"batches": _digests(batches), "rate": recipe.learning_rate, "seeded": seeded, "own": run()}
    if is_reference(side):
        found["controls"] = [run(seed) for seed in tqdm(range(trajectory.LEAST), unit="run", desc="controls")]
        found["off"] = run(rate=OFF)
    return found


def _constant(recipe: Recipe) -> Recipe:
    return Recipe(**{field.name: getattr(recipe, field.name) for field in fields(Recipe)})


def _network(plan: runs.Training, loader: Loader, seeded: bool) -> backend.nn.Module:
    model, _ = runs.network(plan, loader, drawn=not seeded)
    if seeded:
        state = convert.state(model)
        case = references.case(plan.model, "loss")
        convert.load(model, state | case.weights({name: array.shape for name, array in state.items()}))
    return model


def _trainer(
    plan: runs.Training, loader: Loader, model: backend.nn.Module, recipe: Recipe, kind: type[Trainer] = Trainer
) -> Any:
    criterion = losses.build(plan.model, len(loader.dataset.classes))
    return kind(model, criterion, recipe, len(loader), models.parameter_groups(plan.model, model), plan.seed)


def _batches(loader: Loader) -> Iterator[Batch]:
    return itertools.chain.from_iterable(map(loader.iter_epoch, itertools.count()))


def _digests(batches: Sequence[Batch]) -> list[str]:
    return [hashlib.sha256(batch.images.tobytes()).hexdigest() for batch in batches]
