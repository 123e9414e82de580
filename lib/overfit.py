"""The overfit self-check: a model and criterion that can't learn eight images by heart won't learn a data set."""
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from lib import backend, inference, losses, models, schedule
from lib.data import coco, transforms
from lib.data.loader import Loader
from lib.errors import UserError
from lib.evaluation import evaluate, published_form
from lib.training import Trainer

IMAGES, AP50 = 8, 0.9  # what must be learnt
EVERY = 10  # steps between two looks


def overfit(name: str, dataset: coco.Dataset, size: tuple[int, int], limit: int, rate: float = 1.0, seed: int = 0,
            images: int = IMAGES) -> dict[str, Any]:  # fmt: skip
    """Train on the first `images` images with boxes, without augmentation, until their AP50 is at least 0.9.

    At most `limit` steps of the published recipe scaled to them, `rate` times its learning rate; the weights are the
    model's own, not averaged. Returns what the training record holds: steps, AP50, reached, looks [[step, AP50]].
    """
    chosen = tuple(image for image in dataset.images if len(image.boxes))[:images]
    if len(chosen) < images:
        raise UserError(f"{dataset.path}: has {len(chosen)} images with boxes, the overfit check needs {images}; set overfit_steps: 0")
    few = replace(dataset, images=chosen)
    published = schedule.recipe(name)
    batch = next(iter(Loader(few, transforms.recipe(name, models.family(name)), size, images, train=False).iter_epoch(0)))
    model = models.build(name, len(dataset.classes), seed)
    recipe = schedule.scaled(published, images, batch=images, epochs=limit, rate=rate)
    trainer = Trainer(model, losses.build(name, len(dataset.classes)), recipe, 1, models.parameter_groups(name, model), seed)
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
    return {"images": images, "limit": limit, "steps": step, "AP50": found, "reached": found >= AP50, "looks": looks}


def _ap50(model: backend.nn.Module, name: str, dataset: coco.Dataset, size: tuple[int, int]) -> float:
    found = inference.detect(model, name, dataset, size, batch=len(dataset.images))
    rows = published_form([image.id for image in dataset.images], found, dataset.category_ids)
    return evaluate(_truth(dataset), rows).numbers["AP50"]


def _truth(dataset: coco.Dataset) -> Mapping[str, Any]:
    """The images' boxes as the content of a COCO file."""
    boxes = [(image, box, label) for image in dataset.images for box, label in zip(image.boxes.tolist(), image.labels.tolist())]
    return {
        "images": [{"id": image.id, "width": image.width, "height": image.height} for image in dataset.images],
        "categories": [{"id": key, "name": name} for key, name in zip(dataset.category_ids, dataset.classes)],
        "annotations": [
            {"id": number, "image_id": image.id, "category_id": dataset.category_ids[label], "iscrowd": 0,
             "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            for number, (image, (x1, y1, x2, y2), label) in enumerate(boxes, 1)
        ],
    }  # fmt: skip
