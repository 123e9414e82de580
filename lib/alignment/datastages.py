"""What data goes through, stage by stage, as hashes: the first stage at which two sides differ is named.

A stage is a name and the hashes of its arrays: the decoded image, each augmentation, the batch, the targets.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from lib.alignment import tree
from lib.alignment.store import digest
from lib.alignment.verdict import Row, fault
from lib.data import stream, transforms
from lib.data.loader import Batch, Loader, Pictures

HOME = Path(transforms.__file__).parent  # whose functions are the stages of an augmentation
Stage = tuple[str, Mapping[str, str]]  # name; array -> SHA-256 of type, shape and bytes


def stage(name: str, arrays: Mapping[str, np.ndarray]) -> Stage:
    return name, {key: digest(np.asarray(array)) for key, array in arrays.items()}


def differences(reference: Sequence[Stage], candidate: Sequence[Stage]) -> list[Row]:
    """A row per array up to the first stage that differs, whose rows fail; later ones, which inherit it, are shown."""
    if not reference:
        return [fault("(nothing)", "data", "empty comparison: the reference has no stage")]
    rows: list[Row] = []
    names = [name for name, _ in reference], [name for name, _ in candidate]
    if names[0] != names[1]:
        at = next((i for i, pair in enumerate(zip(*names)) if pair[0] != pair[1]), min(map(len, names)))
        there, here = (side[at] if at < len(side) else "the end" for side in names)
        place = there if at < len(names[0]) else here
        rows.append(fault(place, "data", f"stage {at} is {here} where the reference has {there}"))
    first = None
    for (name, ours), (other, theirs) in zip(reference, candidate):
        if name != other:
            break
        found = _stage(name, ours, theirs)
        behind = (replace(row, passed=None, note=f"behind {first}; {row.note}") for row in found)
        rows += [row if first is None or row.passed else after for row, after in zip(found, behind)]
        if first is None and any(row.passed is False for row in found):
            first = name
    return rows


def first_difference(rows: Sequence[Row]) -> str | None:
    """ "stage: array" of the first failing row."""
    return next((row.name for row in rows if row.passed is False), None)


def _stage(name: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[Row]:
    if not ours and not theirs:
        return [fault(name, "data", "no elements")]
    rows = []
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        if ours.get(key) == theirs.get(key):
            rows.append(Row(f"{name}: {key}", "bytes", 0.0, 0.0, 0.0, 1.0, True, "equal"))
        else:
            alone = "" if key in ours and key in theirs else ": only one side has it"
            rows.append(fault(f"{name}: {key}", "bytes", f"other bytes{alone}"))
    return rows


# ------------------------------------------------------------------------------------------- this process's own stages
def first_batch(loader: Loader) -> tuple[Batch, list[Stage]]:
    """The loader's first batch and its way there: each image decoded, after each function of its augmentation, the
    batch, the targets. AssertionError where the images followed here are not the batch's."""
    batch = next(iter(loader.iter_epoch(0)))
    place = {entry.id: index for index, entry in enumerate(loader.dataset.images)}
    recipe = loader.recipe if loader.epochs is None else loader.recipe.at(0, loader.epochs)
    pictures, stages, inputs = Pictures(loader.dataset), [], []
    for number, index in enumerate(place[id_] for id_ in batch.ids):
        stages.append(stage(f"image {number}, decoded", {"image": pictures[index].image}))
        rng = stream(loader.seed, "augment", 0, index)
        followed, result = augmented(recipe, pictures, index, loader.size, rng, f"image {number}")
        stages += followed
        inputs.append(result[0])
    assert np.array_equal(transforms.stack(inputs), batch.images), "the images followed here are not those of the batch"
    targets = {f"{key} {number}": array for number, target in enumerate(batch.targets) for key, array in target.items()}
    return batch, [*stages, stage("batch", {"images": batch.images}), stage("targets", targets)]


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
        if event != "return" or code.co_name.startswith("<") or Path(code.co_filename).parent != HOME:
            return
        if arrays := tree.take_apart(given, lambda value: isinstance(value, np.ndarray | Image), "result")[1]:
            stages.append(stage(f"{title}, {len(stages) + 1}: {code.co_name.strip('_')}", arrays))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        result = recipe.augment(pictures, index, size, rng)
    finally:
        sys.setprofile(before)
    return stages, result
