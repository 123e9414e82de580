"""A model run over a data set: detections per image, and their COCO numbers."""

import numpy as np
from tqdm.auto import tqdm

from lib import backend, models, postprocess
from lib.backend import nn
from lib.data import transforms
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
    was_training = model.training
    model.eval()
    found = []
    try:
        with backend.no_grad():
            for part in tqdm(loader.iter_epoch(0), total=len(loader), unit="batch", desc="detecting", leave=False):
                outputs = model(backend.tensor(part.images.astype(precision)))
                found += postprocess.detections(
                    name,
                    outputs,
                    image_size=part.images.shape[2:],
                    warps=part.warps,
                    original_sizes=part.original_sizes,
                )
    finally:
        model.train(was_training)
    return found


def detect_image(
    model: nn.Module,
    name: str,
    image: np.ndarray,  # (h, w, 3) uint8 BGR
    size: tuple[int, int] | None = None,
    score_threshold: float | None = None,  # the published one of evaluation by default
) -> np.ndarray:
    """(m, 6) x1, y1, x2, y2, score, label in the image's pixels, best first; as `detect` finds it, one image at a time."""
    size = size or models.input_size(name)
    prepared, warp = transforms.recipe(name).preprocess(image, size)
    batch = transforms.stack([prepared])
    was_training = model.training
    model.eval()
    try:
        with backend.no_grad():
            outputs = model(backend.tensor(batch))
            return postprocess.detections(
                name,
                outputs,
                image_size=batch.shape[2:],
                warps=[warp],
                original_sizes=[image.shape[:2]],
                score_threshold=score_threshold,
            )[0]
    finally:
        model.train(was_training)


def evaluate_model(
    model: nn.Module,
    name: str,
    dataset: Dataset,
    size: tuple[int, int] | None = None,
    batch: int = 8,
    workers: int = 2,
) -> tuple[Evaluation, list[np.ndarray]]:
    """The model's COCO numbers on the data set, and what `detect` found."""
    found = detect(model, name, dataset, size, batch, workers)
    rows = published_form([image.id for image in dataset.images], found, dataset.category_ids)
    return evaluate(dataset.path, rows), found
