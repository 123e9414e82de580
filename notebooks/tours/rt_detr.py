"""What the tour of RT-DETR looks at: where deformable attention reads."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lib.models.rt_detr import HEADS, LEVELS, POINTS
from notebooks.tours import Call, softmax


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
