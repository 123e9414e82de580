"""Weights and inputs that anyone can regenerate from a name and a shape: no file, no framework, the same bytes.

They are the weights with which the golden records were computed. PCG64 seeded by the CRC-32 of the name.
"""

import zlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

# Constants of the published models, which keep their own value; matched as the end of a state name.
CONSTANTS = ("distribution_project.project", "detect.proj", "detect.proj_conv.weight", "num_batches_tracked")


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def seeded_array(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """float32 values for a state entry, of a size that keeps activations finite; None for a CONSTANTS entry."""
    return None if name.endswith(CONSTANTS) else _drawn(name, tuple(map(int, shape))).copy()


@lru_cache(maxsize=1500)  # Gold-YOLO-M has 1373 entries: a stage builds its model a dozen times, draws take longest
def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    kind, draw = name.rsplit(".", 1)[-1], _generator(name)
    if kind == "running_var":
        values = 0.5 + draw.random(shape)
    elif kind == "running_mean":
        values = 0.1 * draw.standard_normal(shape)
    elif len(shape) > 1:
        values = draw.standard_normal(shape) * np.sqrt(2.0 / int(np.prod(shape[1:])))  # He, by fan-in
    elif kind == "bias" or kind.endswith("_bias"):
        values = 0.05 * draw.standard_normal(shape)
    else:
        values = 1.0 + 0.1 * draw.standard_normal(shape)
    return np.asarray(values, np.float32)


def seeded_state(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """seeded_array for each (name, shape) but the CONSTANTS."""
    values = {name: seeded_array(name, shape) for name, shape in shapes}
    return {name: value for name, value in values.items() if value is not None}


def seeded_input(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 standard normal values: an image batch, already preprocessed."""
    return _generator(f"input:{name}").standard_normal(tuple(shape)).astype(np.float32)
