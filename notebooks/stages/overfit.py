"""The overfit self-check: a model and criterion that can't learn eight images by heart won't learn a data set.

It asks whether losses, gradients and the optimiser work together, in as few steps as it takes. So whatever serves a
long run is left out: augmentation, warm-up and schedule, weight decay, slow rates of a pre-trained backbone, drop path
and denoising queries; and the norms' statistics follow the last few steps, where the published ones average over up to
33.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lib import backend, losses, models
from lib.data import coco, transforms
from lib.data.loader import Loader
from lib.errors import UserError
from lib.evaluation import evaluate, inference, published_form
from lib.training import schedule
from lib.training.loop import Trainer

IMAGES, AP50 = 8, 0.9  # what must be learnt
EVERY = 5  # steps between two looks
RATES = {"nanodet_plus": 5e-3, "gold_yolo": 2e-2, "rt_detr": 5e-4}  # the published optimisers' learning rate here
NORM_MOMENTUM = 0.3  # what a step weighs in the norms' statistics


def overfit(name: str, dataset: coco.Dataset, size: tuple[int, int], limit: int, seed: int = 0) -> dict[str, Any]:
    """Train on IMAGES images, always the same batch, until their AP50 is at least 0.9, for at most `limit` steps.

    The images are those whose smallest box is largest, for a box of few input pixels says nothing about the training.
    Returns what the training record holds: images, limit, steps, AP50, reached, looks [[step, AP50]].
    """
    few = _chosen(dataset, IMAGES)
    batch = next(iter(Loader(few, transforms.recipe(name), size, IMAGES, train=False).iter_epoch(0)))
    model = models.build(name, len(dataset.classes), seed)
    for _, module in model.named_modules():
        if isinstance(module, backend.nn.BatchNorm2d):
            module.momentum = NORM_MOMENTUM
    groups = [replace(group, learning_rate_factor=1.0) for group in models.parameter_groups(name, model)]
    criterion = losses.build(name, len(dataset.classes))
    trainer = Trainer(model, criterion, _constant(name), limit, groups, seed=None)
    looks: list[tuple[int, float]] = []
    with tqdm(total=limit, unit="step", mininterval=1.0, desc="overfit check", leave=False) as bar:
        for step in range(1, limit + 1):
            asked = trainer.issue(batch.images, batch.targets)
            backend.floats(list(asked.values()))  # waits: a graph of many steps would fill the memory
            bar.update()
            if step % EVERY == 0 or step == limit:
                looks.append((step, _ap50(model, name, few, size)))
                if looks[-1][1] >= AP50:
                    break
    step, found = looks[-1]
    return {"images": IMAGES, "limit": limit, "steps": step, "AP50": found, "reached": found >= AP50, "looks": looks}


def _constant(name: str) -> schedule.Recipe:
    """The published optimiser and clipping at one rate, in a run of one epoch."""
    published = schedule.recipe(name)
    kept = ("optimiser", "options", "clip", "average_decay", "average_steps")
    own = {"learning_rate": RATES[models.family(name)], "weight_decay": 0.0, "batch": IMAGES, "epochs": 1}
    return schedule.Recipe(**own, **{option: getattr(published, option) for option in kept})


def _chosen(dataset: coco.Dataset, count: int) -> coco.Dataset:
    """The `count` images whose smallest box is largest, as parts of width and height; UserError if fewer have boxes."""
    able = [image for image in dataset.images if len(image.boxes)]
    if len(able) < count:
        raise UserError(
            f"{dataset.path}: has {len(able)} images with boxes, the overfit check needs {count}; set overfit_steps: 0"
        )

    def smallest(image: coco.ImageEntry) -> float:
        sides = (image.boxes[:, 2:] - image.boxes[:, :2]) / np.array([image.width, image.height])
        return float(sides.min())

    return replace(dataset, images=tuple(sorted(able, key=smallest, reverse=True)[:count]))


def _ap50(model: backend.nn.Module, name: str, dataset: coco.Dataset, size: tuple[int, int]) -> float:
    found = inference.detect(model, name, dataset, size, batch=len(dataset.images))
    rows = published_form([image.id for image in dataset.images], found, dataset.category_ids)
    return evaluate(_truth(dataset), rows).numbers["AP50"]


def _truth(dataset: coco.Dataset) -> Mapping[str, Any]:
    """The images' boxes as the content of a COCO file."""
    images, annotations = [], []
    for image in dataset.images:
        images.append({"id": image.id, "width": image.width, "height": image.height})
        for (x1, y1, x2, y2), label in zip(image.boxes.tolist(), image.labels.tolist()):
            about = {"id": len(annotations) + 1, "image_id": image.id, "category_id": dataset.category_ids[label]}
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotations.append(about | box)
    categories = [{"id": key, "name": name} for key, name in zip(dataset.category_ids, dataset.classes)]
    return {"images": images, "annotations": annotations, "categories": categories}
