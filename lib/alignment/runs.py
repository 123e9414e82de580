"""What the judge asks of a training beside what it needs for itself: how much of its first losses is rounding, and how
far its last ones lie apart when it is repeated."""

from dataclasses import replace
from typing import Any

import numpy as np

from lib import backend, convert, losses
from lib.alignment.evidence import is_reference
from lib.alignment.trajectory import perturbed
from lib.alignment.verdict import REPEATS
from lib.data import coco, stream
from lib.models.step import Step
from lib.record import sha256
from lib.training import loop, runs
from lib.training.log import curves, read_log


def first_step(plan: runs.Training, batch: Any, model: backend.nn.Module) -> dict[str, Any]:
    """The first step's losses in float64: the others' rounding noise; on the reference's side also in float32 under
    images moved by one rounding: of a scalar, one run is a poor sample of that noise. A distilled model's are not asked
    for.

    `model` is the plan's as it starts; it is of no use afterwards.
    """
    if plan.teacher:
        return {}
    criterion = losses.build(plan.model, len(coco.load(coco.splits(plan.data)[0]).classes))

    def values(images: np.ndarray) -> dict[str, float]:
        model.train().step = Step(0, stream(plan.seed, "model", 0), batch.targets)
        parts = criterion(model(backend.tensor(images)), batch.targets, image_size=images.shape[2:])
        return dict(zip(parts, backend.floats(list(parts.values())), strict=True))

    found = {}
    if is_reference(backend.NAME):
        moved = (perturbed({"images": batch.images}, draw)["images"] for draw in range(REPEATS))
        found["repeats"] = [values(images) for images in moved]
    model = backend.float64(model)
    return found | {"float64": values(batch.images.astype(np.float64))}


def repeated(plan: runs.Training, own: loop.Outcome, count: int) -> list[dict[str, Any]]:
    """The training of a plan `count` times: its own, then in turn one whose first weights are moved by a rounding and
    one of another seed (other first weights, batches and augmentation). Both frameworks repeat the same ones.

    Each as the record holds it: seed, roundings (the draw that moved its weights; 0: none did), losses (of each step),
    AP (of the best epoch), weights_sha256.
    """
    found = [_kept(plan, 0, own)]
    for place in range(1, count):
        seed, draw = (plan.seed, (place + 1) // 2) if place % 2 else (plan.seed + place // 2, 0)
        other = replace(plan, seed=seed, folder=f"{plan.folder}/{runs.REPEATS}/{place}")
        first = convert.state(runs.network(other, runs.loader(other))[0]) if draw else None
        found.append(_kept(other, draw, runs.train(other, moved=first and perturbed(first, draw))))
    return found


def _kept(plan: runs.Training, draw: int, outcome: loop.Outcome) -> dict[str, Any]:
    losses_of_steps = curves(read_log(outcome.log))[0]["loss"]
    told = {
        "losses": losses_of_steps,
        "AP": outcome.best["evaluation"]["AP"],
        "weights_sha256": sha256(outcome.weights),
    }
    return {"seed": plan.seed, "roundings": draw, **told}
