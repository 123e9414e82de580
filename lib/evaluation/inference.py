"""A model run over a data set: detections per image, and their COCO numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from tqdm.auto import tqdm

from lib import backend, models, postprocess
from lib.backend import nn
from lib.data import transforms
from lib.data.annotated import read_json
from lib.data.coco import Dataset
from lib.data.loader import Loader
from lib.errors import UserError
from lib.evaluation import Evaluation, evaluate, published_form

MULTIPLE = 32  # the largest stride that every network has


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size, if a network can take it. UserError otherwise.

    Of other sizes NanoDet-Plus as published pads its images, Gold-YOLO takes the next multiple, RT-DETR fails.
    """
    if any(side < 1 or side % MULTIPLE for side in size):
        near = " ".join(str(max(1, -(-side // MULTIPLE)) * MULTIPLE) for side in size)
        raise UserError(f"input of {size[0]}x{size[1]}: height and width must be multiples of {MULTIPLE}; take {near}")
    return size


def detect(
    model: nn.Module,
    name: str,
    dataset: Dataset,
    size: tuple[int, int] | None = None,  # network input, height and width; by default the published one
    batch: int = 8,
    workers: int = 2,
    precision: str = "float32",  # of the model's weights
) -> list[np.ndarray]:
    """Per image of the data set, in its order: (m, 6) x1, y1, x2, y2, score, label in the image's own pixels.

    The model runs in evaluation mode and is left in the mode it was in.
    """
    recipe = transforms.recipe(name)
    loader = Loader(dataset, recipe, size or models.input_size(name), batch, workers=workers, train=False)
    found = []
    with _evaluating(model):
        for part in tqdm(loader.iter_epoch(0), total=len(loader), unit="batch", desc="detecting", leave=False):
            found += _found(model, name, part.images.astype(precision), part.warps, part.original_sizes)
    return found


def detect_image(
    model: nn.Module,
    name: str,
    image: np.ndarray,  # (h, w, 3) uint8 BGR
    size: tuple[int, int] | None = None,
    score_threshold: float | None = None,  # the published one of evaluation by default
) -> np.ndarray:
    """(m, 6) x1, y1, x2, y2, score, label in the image's pixels, best first; as `detect` finds it, one at a time."""
    recipe = transforms.recipe(name)
    prepared, warp = recipe.preprocess(image, size or models.input_size(name))
    with _evaluating(model):
        return _found(model, name, transforms.stack([prepared]), [warp], [image.shape[:2]], score_threshold)[0]


def evaluate_model(
    model: nn.Module, name: str, dataset: Dataset, size: tuple[int, int] | None = None, batch: int = 8, workers: int = 2
) -> tuple[Evaluation, list[np.ndarray]]:
    """The model's COCO numbers on the data set, and what `detect` found."""
    found = detect(model, name, dataset, size, batch, workers)
    rows = published_form([image.id for image in dataset.images], found, dataset.category_ids)
    return evaluate(read_json(dataset.path), rows), found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients, in evaluation mode; the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with backend.no_grad():
            yield
    finally:
        model.train(was_training)


def _found(
    model: nn.Module, name: str, images: np.ndarray, warps: Sequence, sizes: Sequence, threshold: float | None = None
) -> list[np.ndarray]:
    outputs = model(backend.tensor(images))
    return postprocess.detections(
        name, outputs, image_size=images.shape[2:], warps=warps, original_sizes=sizes, score_threshold=threshold
    )
