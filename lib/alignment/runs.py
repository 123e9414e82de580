"""What the judge asks of a training beside what it needs for itself: how much of its first losses is rounding."""

from typing import Any

import numpy as np

from lib import backend, losses
from lib.alignment.evidence import is_reference
from lib.alignment.trajectory import perturbed
from lib.alignment.verdict import REPEATS
from lib.data import coco, stream
from lib.models.step import Step
from lib.training import runs


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
