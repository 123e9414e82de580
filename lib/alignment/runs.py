"""What the judge asks of a training beside what it needs for itself: how much of its first losses is rounding."""

from typing import Any

import numpy as np

from lib import backend, losses
from lib.alignment.evidence import is_reference
from lib.alignment.seeded import seeded_input
from lib.alignment.verdict import REPEATS, ROUNDING
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
        noise = (seeded_input(f"repeat_{index}", batch.images.shape) for index in range(REPEATS))
        found["repeats"] = [values((batch.images * (1 + ROUNDING * moved)).astype(np.float32)) for moved in noise]
    model = backend.float64(model)
    return found | {"float64": values(batch.images.astype(np.float64))}
