"""Boxes as NumPy arrays of x1, y1, x2, y2 in pixels, without the legacy +1."""

from functools import lru_cache

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow, in x's precision."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


@lru_cache(maxsize=8)
def priors(image_size: tuple[int, int], strides: tuple[int, ...]) -> np.ndarray:
    """(p, 3) x, y, stride of every cell's top left corner: levels in order, rows outside, read-only."""
    height, width = image_size
    levels = []
    for stride in strides:
        y, x = np.mgrid[0 : -(-height // stride), 0 : -(-width // stride)] * stride
        levels.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], 1))
    cells = np.concatenate(levels).astype(np.float32)
    cells.setflags(write=False)
    return cells


def decode(bins: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Boxes (m, 4) from the logits (m, 4 * b) of the distributions over 0 … b - 1 strides from `cells` (m, 3)."""
    bins = bins.reshape(len(bins), 4, bins.shape[1] // 4)
    weights = np.exp(bins - bins.max(2, keepdims=True))
    distances = (weights @ np.arange(bins.shape[2], dtype=bins.dtype)) / weights.sum(2) * cells[:, 2:]
    return np.concatenate([cells[:, :2] - distances[:, :2], cells[:, :2] + distances[:, 2:]], 1)


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(m, k) intersection over union; 0 for a pair of empty boxes."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    extent = np.maximum(high - low, 0)
    intersection = extent[..., 0] * extent[..., 1]
    return intersection / np.maximum(area(first)[:, None] + area(second)[None] - intersection, 1e-6)


def area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes moved into an image of size (height, width)."""
    height, width = size
    return np.clip(boxes, 0, np.asarray([width, height, width, height], boxes.dtype))


def warp(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The boxes around the four corners of each box after a 3 x 3 projective map, in float64."""
    boxes = boxes.astype(np.float64)  # NumPy 1 would multiply a float64 scalar and a float32 array in float32
    x, y = boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]
    x, y, scale = (row[0] * x + row[1] * y + row[2] for row in np.asarray(matrix, np.float64))  # (m, 4) each
    x, y = x / scale, y / scale
    return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1)


def nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float, limit: int) -> np.ndarray:
    """Indices of the `limit` best boxes that survive greedy suppression within their class, best first.

    A box falls if its IoU with a better kept one of its label exceeds the threshold. Equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    kept = []
    while order.size and len(kept) < limit:
        best, order = order[0], order[1:]
        kept.append(best)
        rivals = np.flatnonzero(labels[order] == labels[best])
        overlap = iou(boxes[best][None], boxes[order[rivals]])[0]
        order = np.delete(order, rivals[overlap > threshold])
    return np.asarray(kept, np.int64)
