"""What a training image goes through in this process, stage by stage, as hashes: for `datastages.compare`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from lib.alignment import tree
from lib.alignment.datastages import Stage, stage
from lib.data import stream, transforms
from lib.data.loader import Batch, Loader, Pictures

HOME = Path(transforms.__file__).parent  # whose functions are the stages of an augmentation


def first_batch(loader: Loader) -> tuple[Batch, list[Stage]]:
    """The loader's first batch and its way there: each image decoded, after each function of its augmentation, the batch, the
    targets. AssertionError where the images followed here are not the batch's."""
    batch = next(iter(loader.iter_epoch(0)))
    place = {entry.id: index for index, entry in enumerate(loader.dataset.images)}
    recipe = loader.recipe if loader.epochs is None else loader.recipe.at(0, loader.epochs)
    pictures, stages, inputs = Pictures(loader.dataset), [], []
    for number, index in enumerate(place[id_] for id_ in batch.ids):
        stages.append(stage(f"image {number}, decoded", {"image": pictures[index].image}, keep=False))
        rng = stream(loader.seed, "augment", 0, index)
        followed, result = augmented(recipe, pictures, index, loader.size, rng, f"image {number}")
        stages += followed
        inputs.append(result[0])
    assert np.array_equal(transforms.stack(inputs), batch.images), "the images followed here are not those of the batch"
    targets = {f"{key} {number}": array for number, target in enumerate(batch.targets) for key, array in target.items()}
    return batch, [*stages, stage("batch", {"images": batch.images}, keep=False), stage("targets", targets, keep=False)]


def augmented(
    recipe: transforms.Recipe,
    pictures: Sequence[transforms.Picture],
    index: int,
    size: transforms.Size,
    rng: np.random.Generator,
    title: str,
) -> tuple[list[Stage], transforms.Augmented]:
    """A stage per return of a function in lib/data/transforms that gives arrays, and what the augmentation gives.

    Python's own hook for profilers sees the returns, so that what runs is the code that trains, unchanged.
    """
    stages: list[Stage] = []

    def watch(frame: Any, event: str, given: Any) -> None:
        code = frame.f_code
        if event == "return" and not code.co_name.startswith("<") and Path(code.co_filename).parent == HOME:
            if arrays := _arrays(given):
                stages.append(stage(f"{title}, {len(stages) + 1}: {code.co_name.strip('_')}", arrays, keep=False))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        result = recipe.augment(pictures, index, size, rng)
    finally:
        sys.setprofile(before)
    return stages, result


def _arrays(given: Any) -> dict[str, np.ndarray]:
    _, found = tree.take_apart(given, lambda value: isinstance(value, np.ndarray | Image), "result")
    return {name: np.asarray(value) for name, value in found.items()}
