"""A data set made ready and described: what 10_data shows and records."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.data import coco, scenes, subset, transforms
from lib.data.loader import Loader
from lib.families import family
from lib.record import sha256

Fields, Arrays = dict[str, Any], dict[str, np.ndarray]


def prepare(
    data: str, seed: int, train_images: int, val_images: int, source: str = "", classes: int = 0
) -> tuple[coco.Dataset, coco.Dataset]:
    """The training and validation split of `data`, made first where it is not the user's own.

    source: a COCO folder or file, out of which so many images and classes (0: all) are chosen by seed; without it the
    built-in scenes are drawn where the folder is theirs.
    """
    if source:
        subset.write(
            subset.source_file(source), data, train=train_images, val=val_images, classes=classes or None, seed=seed
        )
    elif scenes.is_theirs(data):
        scenes.generate(data, seed, train_images, val_images)
    train, val = coco.splits(data)
    return coco.load(train), coco.load(val)


def describe(train: coco.Dataset, val: coco.Dataset) -> tuple[Fields, Arrays]:
    """Counts, hashes and distributions of both splits."""
    fields: Fields = {
        "name": train.path.parent.name,
        "classes": list(train.classes),
        "splits": {},
        "class_histogram": {},
    }
    arrays: Arrays = {}
    for split, dataset in (("train", train), ("val", val)):
        boxes = np.concatenate([image.boxes for image in dataset.images])
        labels = np.concatenate([image.labels for image in dataset.images])
        fields["splits"][split] = {
            "images": len(dataset.images),
            "boxes": len(boxes),
            "crowd": sum(len(image.crowd) for image in dataset.images),
            "empty": sum(not len(image.boxes) for image in dataset.images),
            "json_sha256": sha256(dataset.path),
            "images_sha256": hashlib.sha256(
                "".join(sha256(image.file) for image in dataset.images).encode()
            ).hexdigest(),
        }
        fields["class_histogram"][split] = np.bincount(labels, minlength=len(dataset.classes)).tolist()
        arrays[f"box_sizes/{split}"] = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).astype(np.float32)
    return fields, arrays


def samples(dataset: coco.Dataset, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The first `count` images, (h, w, 3) uint8 RGB, and their boxes."""
    chosen = dataset.images[:count]
    return [coco.read_image(image)[:, :, ::-1] for image in chosen], [image.boxes for image in chosen]


def loaders(dataset: coco.Dataset, models: Sequence[str], size: int, seed: int) -> dict[str, Loader]:
    """By the family's name: training batches of at most eight images as the first of its models gets them."""
    batch = min(8, len(dataset.images))
    chosen = {family(model): model for model in reversed(models)}
    return {
        name: Loader(dataset, transforms.recipe(model), (size, size), batch, seed) for name, model in chosen.items()
    }


def first_inputs(batches: Mapping[str, Loader]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The first batch of each loader as the pictures (h, w, 3) uint8 RGB that a person sees, and their boxes."""
    pictures, boxes = [], []
    for loader in batches.values():
        batch = next(iter(loader.iter_epoch(0)))
        pictures += [loader.recipe.as_picture(image) for image in batch.images]
        boxes += [target["boxes"] for target in batch.targets]
    return pictures, boxes
