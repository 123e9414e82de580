"""What the tours look at inside a model: what its modules were given and gave, which feeds which, what they react to.

Arrays and plain data come out; `notebooks.tours.figures` draws them. Everything is measured on the modules as they run:
nothing repeats their code, but for the softmax of attention scores and the places of deformable attention, which no
module gives.
One module per family has what only its tour asks for.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib import backend
from lib.backend import nn
from lib.data import scenes, transforms

INDEX = 3  # of the drawn scene: one with large and small things


@dataclass(frozen=True)
class View:
    """A drawn scene of the built-in data set as a model sees it."""

    input: np.ndarray  # (1, 3, h, w) float32
    picture: np.ndarray  # (h, w, 3) uint8 RGB: the input as a person sees it
    boxes: np.ndarray  # (k, 4) float32 xyxy, in pixels of the input
    labels: np.ndarray  # (k,) int64


def scene(model: str, size: tuple[int, int], index: int = INDEX) -> View:
    """Scene number `index` as `model`, one of lib.models.NAMES, takes it at `size` (height, width)."""
    drawn, recipe = scenes.draw(0, "tour", index, max(size)), transforms.recipe(model)
    prepared, matrix = recipe.preprocess(drawn.image, size)
    corners = np.concatenate([drawn.boxes[:, :2], drawn.boxes[:, :2] + drawn.boxes[:, 2:]], 1)
    image = transforms.stack([prepared])
    return View(image, recipe.as_picture(image[0]), transforms.warp_boxes(corners, matrix, size), drawn.labels)


@dataclass(frozen=True)
class Call:
    """What a module was given and gave: tensors as arrays, everything else as it was."""

    inputs: tuple[Any, ...]
    output: Any


@contextmanager
def calls(model: nn.Module, pattern: str) -> Iterator[dict[str, Call]]:
    """Collect the last call of each module whose whole path matches; in order of their ends, filled when it is left."""
    found: dict[str, Call] = {}
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if re.fullmatch(pattern, path):

                def keep(module, inputs, output, path=path):
                    found[path] = Call(inputs, output)

                stack.callback(module.register_forward_hook(keep).remove)
        yield found
    for path, call in found.items():
        found[path] = Call(_arrays(tuple(call.inputs)), _arrays(call.output))


def _arrays(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_arrays(one) for one in value)
    return backend.numpy(value) if hasattr(value, "detach") else value


@dataclass(frozen=True)
class Node:
    """A module in the wiring of a model."""

    name: str
    stride: int  # of its output, in pixels of the image, to the nearest power of two
    channels: int  # of its output
    reads: tuple[str, ...]  # the nodes whose output it was given, whole, in part, or doubled in size


def wiring(model: nn.Module, images: np.ndarray, pattern: str) -> list[Node]:
    """Who feeds whom among the modules that match, in order of execution, found by comparing values: none is declared.

    images (n, 3, h, w). A resize between two modules hides the link, but for a doubling by repetition.
    """
    with backend.no_grad(), calls(model, pattern) as found:
        model(backend.tensor(images))
    outputs = {path: _planes(call.output) for path, call in found.items()}
    pixels, nodes = images.shape[2] * images.shape[3], []
    for path, output in outputs.items():
        earlier = {node.name: outputs[node.name] for node in nodes}
        given = [_planes(x) for x in found[path].inputs if isinstance(x, np.ndarray)]
        reads = dict.fromkeys(name for x in given for name in _sources(x, earlier))
        nodes.append(Node(path, 2 ** round(math.log2(pixels / output[0].size) / 2), len(output), tuple(reads)))
    return nodes


def _planes(x: np.ndarray) -> np.ndarray:
    """The first image's maps (c, h, w); a square of tokens (n, t, c) becomes a map again."""
    if x.ndim == 4:
        return x[0]
    side = round(x.shape[1] ** 0.5)
    return x[0].T.reshape(x.shape[2], side, -1)


def _sources(x: np.ndarray, earlier: Mapping[str, np.ndarray]) -> list[str]:
    """The outputs that x (c, h, w) consists of: equal to it, parts of it, or what it is a part of; later ones first."""
    latest = list(earlier.items())[::-1]
    for name, output in latest:
        if np.array_equal(x, output):
            return [name]
    found, free = [], np.ones(len(x), bool)
    for name, output in latest:
        halved = x[:, ::2, ::2] if x.shape[1] == 2 * output.shape[1] else x
        at = _position(output, halved)
        if at is not None and free[at : at + len(output)].all():
            found.append(name)
            free[at : at + len(output)] = False
    return found or [name for name, output in latest if _position(x, output) is not None]


def _position(part: np.ndarray, whole: np.ndarray) -> int | None:
    """Where among the channels of `whole` the channels of `part` stand, one after the other; None if they don't."""
    if part.shape[1:] != whole.shape[1:] or len(part) > len(whole):
        return None
    starts = np.flatnonzero((whole[: len(whole) - len(part) + 1] == part[0]).all((1, 2)))
    return next((int(at) for at in starts if np.array_equal(whole[at : at + len(part)], part)), None)


def reach(module: nn.Module, channels: int, size: int, at: tuple[int, int] | None = None) -> np.ndarray:
    """(size, size) bool: which pixels of the input change the output in eval(), or its pixel `at` (row, column)."""
    lit = np.zeros((size * size + 1, channels, size * size), np.float32)  # the last image stays dark
    lit[np.arange(size * size), :, np.arange(size * size)] = 1
    with backend.no_grad():
        answers = backend.numpy(module.eval()(backend.tensor(lit.reshape(-1, channels, size, size))))
    change = np.abs(answers[:-1] - answers[-1:])
    change = change if at is None else change[:, :, at[0], at[1]]
    return change.reshape(size, size, -1).max(2) > 0


def convolution(channels: int, kernel: int, stride: int) -> nn.Module:
    """A convolution to one channel with all weights 1, as a thing to compare with."""
    module = nn.Conv2d(channels, 1, kernel, stride, kernel // 2, bias=False)
    backend.load_state(module, {"weight": np.ones((1, channels, kernel, kernel), np.float32)})
    return module


def softmax(scores: np.ndarray) -> np.ndarray:
    """Shares that add up to 1 along the last axis."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
