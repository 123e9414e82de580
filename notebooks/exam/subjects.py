"""What faults are planted in: a model of each family with small inputs, its cases, and a short recipe.

All weights are seeded. RT-DETR runs with fewer queries than its maps have tokens, so that choosing them means much.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import cv2
import numpy as np

from lib.alignment import datastages, references
from lib.alignment.references.case import Arrays, Case, Phase, Update
from lib.data import transforms
from lib.data.transforms import Picture
from lib.models import rt_detr
from lib.models.step import Step
from lib.training import schedule
from notebooks.exam.planting import Change, becomes

CLASSES = 20  # as the smallest golden records have them
STEPS = 4  # of the lock-step
EPOCH = 2  # steps of it
SIZE = 64  # of a picture's network input
SEEDS = range(4)  # of the augmentations, which mirror some and leave some


class Draws:
    """A source of chance that gives the same numbers for a shape each time: a layer run alone draws what it drew."""

    def __init__(self, seed: int):
        self._seed = seed

    def random(self, shape: Any = None, dtype: type = np.float64) -> np.ndarray:
        return np.random.default_rng(self._seed).random(shape, dtype)

    def integers(self, low: int, high: int | None = None, shape: Any = None) -> np.ndarray:
        return np.random.default_rng(self._seed).integers(low, high, shape)


@dataclass(frozen=True)
class Kept(Case):
    """A case that draws its weights once: sides are built from them many times."""

    drawn: dict[tuple, Arrays] = field(default_factory=dict, init=False, compare=False)

    def weights(self, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """As in the base class; nobody may write into them."""
        key = tuple((name, tuple(shape)) for name, shape in shapes.items())
        if key not in self.drawn:
            self.drawn[key] = super().weights(shapes)
            for array in self.drawn[key].values():
                array.setflags(write=False)
        return dict(self.drawn[key])


@dataclass(frozen=True)
class Subject:
    """A model with what it is looked at with."""

    model: str
    forward: Case
    training: Case
    recipe: schedule.Recipe | None  # of the lock-step; None: not trained here
    seed: int
    settings: tuple[Change, ...] = ()  # of both sides


def targets(size: int) -> tuple[dict[str, np.ndarray], ...]:
    """Boxes, of equal classes and touching ones too, in an input of `size` pixels; two images."""
    several = (0.05, 0.05, 0.45, 0.5), (0.3, 0.25, 0.95, 0.9), (0.5, 0.1, 0.9, 0.45), (0.1, 0.55, 0.4, 0.95)
    parts = ((0.1, 0.15, 0.7, 0.8),), several
    labels = ((7,), (0, 3, 19, 3))
    return tuple(
        {"boxes": np.array(rows, np.float32) * np.float32(size), "labels": np.array(own, np.int64)}
        for rows, own in zip(parts, labels)
    )


def _seeded(adjust: Any, seed: int, values: Arrays) -> Arrays:
    """Other seeds than 0 move every weight by about a hundredth of its size: another model of the same kind."""
    if seed:
        rng = np.random.default_rng(seed)
        moved = {name: 1 + 0.01 * rng.standard_normal(array.shape) for name, array in values.items()}
        values = {name: (array * moved[name]).astype(array.dtype) for name, array in values.items()}
    return adjust(values)


def _cases(model: str, size: int, seed: int, phases: Mapping[str, Phase], update: Update | None) -> tuple[Case, Case]:
    forward, training = (references.case(model, stage).adjust for stage in ("forward", "loss"))
    common = {"name": f"exam_{size}_{seed}", "file": "none", "num_classes": CLASSES, "size": (size, size)}
    return (
        Kept(**common, images=f"exam:{seed}", adjust=partial(_seeded, forward, seed)),
        Kept(
            **common,
            images=f"exam:train:{seed}",
            batch=2,
            adjust=partial(_seeded, training, seed),
            targets=targets(size),
            phases=phases,
            update=update,
        ),
    )


def _nanodet(seed: int) -> Subject:
    model = "nanodet-plus-m_320"
    phases = {"detached": Phase(Step(epoch=10))}  # the first epoch in which the auxiliary branch is cut off
    recipe = replace(
        schedule.recipe(model), epochs=STEPS // EPOCH, batch=2, warmup_steps=2, average_decay=0.9, average_steps=3
    )
    return Subject(model, *_cases(model, 96, seed, phases, Update("adamw", "detached", 1e-3, 35.0)), recipe, seed)


def _gold(model: str, seed: int) -> Subject:
    boxes = targets(96)
    phases = {"drop": Phase(Step(random=Draws(seed + 3), targets=boxes))}
    recipe = replace(
        schedule.recipe(model),
        epochs=STEPS // EPOCH,
        batch=2,
        warmup_epochs=1,
        warmup_steps=3,
        nominal_batch=2,
        average_decay=0.9,
        average_steps=3,
    )
    return Subject(model, *_cases(model, 96, seed, phases, Update("sgd", "drop", 0.02, None)), recipe, seed)


def _rt_detr(seed: int) -> Subject:
    model, boxes = "rtdetr_r18vd", targets(64)
    phases = {"dn": Phase(Step(random=Draws(seed + 5), targets=boxes))}
    fewer = becomes(rt_detr, "QUERIES", 40), becomes(rt_detr, "NOISED_QUERIES", 20)
    forward, training = _cases(model, 64, seed, phases, Update("adamw", "dn", 1e-4, 0.1))
    # Unless its projections are small, seeded attention has one share of 1 and hides what scores are made of.
    return Subject(model, replace(forward, adjust=training.adjust), training, None, seed, fewer)


SUBJECTS = {
    "NanoDet-Plus": _nanodet,
    "Gold-YOLO N": partial(_gold, "gold-yolo-n"),
    "Gold-YOLO S": partial(_gold, "gold-yolo-s"),
    "RT-DETR": _rt_detr,
}


def _picture(height: int, width: int) -> Picture:
    """A smooth pattern with other colours everywhere, and boxes."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([120 + 100 * np.sin(x / 5), 3 * y % 256, 90 + 60 * np.cos((x + 2 * y) / 7)], 2).astype(np.uint8)
    boxes = np.array([[0.1, 0.2, 0.6, 0.9], [0.5, 0.1, 0.95, 0.5]]) * [width, height, width, height]
    return Picture(image, boxes.astype(np.float32), np.array([3, 17], np.int64))


def data_stages(model: str) -> list[datastages.Stage]:
    """Two small pictures on their way into the model, through the family's own transforms, stage by stage."""
    recipe = transforms.recipe(model)
    drawn = [_picture(72, 96), _picture(90, 60)]
    decoded = [cv2.imdecode(cv2.imencode(".png", picture.image)[1], cv2.IMREAD_COLOR) for picture in drawn]
    prepared = [recipe.preprocess(image, (SIZE, SIZE)) for image in decoded]
    augmented = [recipe.augment(drawn, seed % len(drawn), (SIZE, SIZE), np.random.default_rng(seed)) for seed in SEEDS]
    return [
        datastages.stage("decoded", {str(i): image for i, image in enumerate(decoded)}),
        datastages.stage("evaluation input", {str(i): image for i, (image, _) in enumerate(prepared)}),
        datastages.stage("evaluation matrix", {str(i): matrix for i, (_, matrix) in enumerate(prepared)}),
        datastages.stage("augmented image", {str(i): sample[0] for i, sample in enumerate(augmented)}),
        datastages.stage("augmented boxes", {str(i): sample[2] for i, sample in enumerate(augmented)}),
        datastages.stage("augmented labels", {str(i): sample[3] for i, sample in enumerate(augmented)}),
        datastages.stage("batch", {"images": transforms.stack([sample[0] for sample in augmented])}),
    ]
