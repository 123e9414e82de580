"""Mend a native Jittor block: a port that runs, has the right shapes, and answers otherwise than the original.

The original's rule is computed here in NumPy in float64, from the definitions; nothing is taken from either framework.
"""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from lib import backend
from lib.alignment.seeded import seeded_input
from lib.errors import UserError
from lib.show.messages import words
from lib.show.tables import Frame

CHANNELS, BINS, EPS, MOMENTUM = 4, 5, 1e-5, 0.1
INPUT = (2, CHANNELS, 3, 3)
GATE = 1e-5  # relative; float32 noise of these few layers is a hundredth of it, and every planted fault a hundred times


def _weights() -> dict[str, np.ndarray]:
    """Seeded values of the convolutions; the batch norm keeps its ones and zeros."""
    shapes = {"conv.weight": (CHANNELS, CHANNELS, 3, 3), "bins.weight": (BINS, CHANNELS, 1, 1), "bins.bias": (BINS,)}
    return {name: 0.3 * seeded_input(name, shape) for name, shape in shapes.items()}


def expected() -> dict[str, Any]:
    """What PyTorch's block does in training mode: output, running statistics after it, how many scalars it trains."""
    weights = {name: value.astype(np.float64) for name, value in _weights().items()}
    x = seeded_input("block", INPUT).astype(np.float64)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))  # (n, c, h, w, 3, 3)
    y = np.einsum("nchwij,ocij->nohw", windows, weights["conv.weight"])
    mean, variance = y.mean(axis=(0, 2, 3)), y.var(axis=(0, 2, 3))
    y = (y - mean[:, None, None]) / np.sqrt(variance + EPS)[:, None, None]
    y = (y * expit(y)).repeat(2, axis=2).repeat(2, axis=3)  # SiLU, nearest neighbours
    logits = np.einsum("nchw,oc->nohw", y, weights["bins.weight"][:, :, 0, 0]) + weights["bins.bias"][:, None, None]
    count = x.size // CHANNELS
    return {
        "output": np.einsum("nohw,o->nhw", softmax(logits, axis=1), np.arange(BINS)),
        "running_mean": MOMENTUM * mean,
        "running_var": 1 - MOMENTUM + MOMENTUM * variance * count / (count - 1),
        "trained scalars": sum(value.size for value in weights.values()) + 2 * CHANNELS,
    }


def found(path: Path) -> dict[str, Any]:
    """The same of the class Block in a file, run in this environment's framework."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    block = runpy.run_path(str(path))["Block"](CHANNELS, BINS)
    block.train()
    for name, value in _weights().items():
        layer, own = name.split(".")
        getattr(getattr(block, layer), own).assign(backend.tensor(value))
    output = backend.numpy(block(backend.tensor(seeded_input("block", INPUT))))
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return {
        "output": output,
        "running_mean": backend.numpy(block.norm.running_mean),
        "running_var": backend.numpy(block.norm.running_var),
        "trained scalars": sum(backend.numpy(parameter).size for parameter in trained),
    }


def check(path: str | Path) -> Frame:
    """A row per property: what was found, what is expected, and RIGHT or NOT YET."""
    rows, mine = {}, found(Path(path))
    for name, value in expected().items():
        shapes = {"found": np.shape(mine[name]), "expected": np.shape(value)}
        error, verdict = float("nan"), words()("exercise.shape").format(**shapes)
        if np.shape(mine[name]) == np.shape(value):
            error = float(np.linalg.norm(np.asarray(mine[name], np.float64) - value) / np.linalg.norm(value))
            verdict = "RIGHT" if error <= GATE else "NOT YET"
        rows[name] = {"error": error, "verdict": verdict}
    return Frame.from_dict(rows, orient="index")
