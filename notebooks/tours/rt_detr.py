"""What the tour of RT-DETR looks at: an image, sampling points of attention, noised boxes, losses by layer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lib.data import boxes, scenes, transforms
from lib.models.rt_detr import HEADS, LEVELS, POINTS, Denoising, Truth, corners, denoising
from notebooks.tours import Call, softmax

INDEX = 3  # of the drawn scene: one with large and small things


def scene(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A drawn scene of the built-in data set as network input (1, 3, size, size), and as a picture of it, RGB."""
    recipe = transforms.RECIPES["rt_detr"]
    prepared, _ = recipe.preprocess(scenes.draw(0, "tour", INDEX, size).image, (size, size))
    return prepared[None], recipe.as_picture(prepared)


def places(offsets: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(q, a, l, p, 2) x and y where each head of each query reads on each level, as parts of the image.

    offsets (q, …) as the module gives them, in eighths of the box's extent; queries (q, 4): centre, width, height.
    """
    steps = offsets.reshape(len(queries), HEADS, LEVELS, POINTS, 2) * (0.5 / POINTS)
    return queries[:, None, None, None, :2] + steps * queries[:, None, None, None, 2:]


@dataclass(frozen=True)
class Sampling:
    """What a decoder layer reads for one query of the first image."""

    box: np.ndarray  # (4,) the box it reads around: centre, width, height as parts of the image
    places: np.ndarray  # (a, l, p, 2) parts of the image
    shares: np.ndarray  # (a, l, p), which add up to 1 for each head


def central(found: Mapping[str, Call]) -> int:
    """The query whose first box is nearest to the middle of the image; `found`: calls of the cross_attn."""
    first = next(call for path, call in found.items() if path.endswith("layers.0.cross_attn"))
    return int(np.abs(first.inputs[1][0, :, :2] - 0.5).max(1).argmin())


def sampling(found: Mapping[str, Call], query: int) -> dict[str, Sampling]:
    """Of every decoder layer what it reads for the query; `found`: calls of its cross_attn with the modules inside."""
    layers = {}
    for path in (path for path in found if path.endswith("cross_attn")):
        queries = found[path].inputs[1][0, query][None]
        offsets, weights = (
            found[f"{path}.{name}"].output[0, query] for name in ("sampling_offsets", "attention_weights")
        )
        shares = softmax(weights.reshape(HEADS, LEVELS * POINTS)).reshape(HEADS, LEVELS, POINTS)
        layers[f"layer {path.split('.')[-2]}"] = Sampling(queries[0], places(offsets[None], queries)[0], shares)
    return layers


def noised_boxes(noised: Denoising, image: int, size: tuple[int, int], groups: int) -> dict[str, np.ndarray]:
    """Boxes xyxy in pixels of an image's first groups of denoising queries: those to mend and those to turn down."""
    slots = noised.labels.shape[1] // (2 * noised.groups)
    height, width = size
    pixels = corners(boxes.sigmoid(noised.boxes[image])) * np.array([width, height, width, height])
    positive, negative = pixels.reshape(noised.groups, 2, slots, 4)[:groups].transpose(1, 0, 2, 3).reshape(2, -1, 4)
    return {"positive": positive, "negative": negative}


def denoising_queries(boxes: int) -> int:
    """How many denoising queries a batch has whose fullest image has so many boxes."""
    truth = Truth(np.zeros(boxes, np.int64), np.full((boxes, 4), 0.5))
    noised = denoising([truth], 1, np.random.default_rng(0))
    return 0 if noised is None else noised.labels.shape[1]


def by_prediction(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The criterion's losses: kind -> prediction ("final", "aux_0", "dn_0", …) -> value."""
    found: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        kind, _, prediction = name.removeprefix("loss_").partition("_")
        found.setdefault(kind, {})[prediction or "final"] = value
    return found
