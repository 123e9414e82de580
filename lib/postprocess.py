"""From a model's inference output to detections, in NumPy, with each family's published settings.

NanoDet-Plus (RangiLyu/nanodet be9b4a9) and Gold-YOLO (Efficient-Computing, Detection/Gold-YOLO 225ddd2e, tools/eval.py)
let every (cell, class) pair above the threshold compete and suppress; RT-DETR (lyuwenyu/RT-DETR 068dfde) takes the best
(query, class) pairs and suppresses nothing.
"""

from dataclasses import dataclass

import numpy as np

from lib.backend import numpy
from lib.data import boxes
from lib.families import family
from lib.models.nanodet_plus import BINS, STRIDES
from lib.models.rt_detr import corners

MOST = 30_000  # candidates of Gold-YOLO: the best, where there are more
CLASS_OFFSET = 4096  # pixels by which Gold-YOLO's suppression moves each class away from the one before


@dataclass(frozen=True)
class Settings:
    """Of the published evaluation."""

    score_threshold: float
    nms_iou: float  # 1: nothing is suppressed
    max_detections: int


SETTINGS = {
    "nanodet_plus": Settings(0.05, 0.6, 100),
    "gold_yolo": Settings(0.03, 0.65, 300),
    "rt_detr": Settings(0.0, 1.0, 300),
}


@dataclass(frozen=True)
class Candidates:
    """What competes to be a detection of one image, in any order."""

    place: np.ndarray  # (m,) int64 the row of the output that each is from
    boxes: np.ndarray  # (m, 4) x1, y1, x2, y2 in input pixels
    moved: np.ndarray  # (m, 4) as suppression sees them, every class elsewhere; float32 rounds them, as published: an
    # IoU within that rounding of the threshold is decided by it
    scores: np.ndarray  # (m,)
    labels: np.ndarray  # (m,) int64

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """(k, 6) x1, y1, x2, y2, score, label of these."""
        columns = self.boxes[chosen], self.scores[chosen, None], self.labels[chosen, None]
        return np.concatenate(columns, 1, dtype=self.boxes.dtype)


def settings(name: str) -> Settings:
    """The published settings of a model."""
    return SETTINGS[family(name)]


def detections(
    name: str,
    outputs,
    *,
    image_size: tuple[int, int],
    warps=None,
    original_sizes=None,
    score_threshold: float | None = None,
    nms_iou: float | None = None,
    max_detections: int | None = None,
) -> list[np.ndarray]:
    """Per image (m, 6): x1, y1, x2, y2, score, label, best score first, in the outputs' precision.

    outputs: what the model gives in eval(), tensors or arrays. image_size: (height, width) of the network input.
    warps: per image the 3 x 3 map from original to input pixels; the boxes are mapped back through it and clipped
    to that image's (height, width) in original_sizes. Without warps they stay in input pixels, NanoDet-Plus's clipped.
    Settings left out are the published ones; RT-DETR's threshold is a last filter, its nms_iou has no meaning.
    """
    published, compete = settings(name), CANDIDATES.get(family(name))
    score_threshold = published.score_threshold if score_threshold is None else score_threshold
    nms_iou = published.nms_iou if nms_iou is None else nms_iou
    limit = published.max_detections if max_detections is None else max_detections
    found = []
    for output in images(outputs):
        if compete:
            one = compete(output, image_size, score_threshold)
            found.append(one.rows(boxes.nms(one.moved, one.scores, one.labels, nms_iou, limit)))
        else:
            rows = _best(output, image_size, limit)
            found.append(rows[rows[:, 4] >= score_threshold])
    if warps is not None:
        for rows, matrix, size in zip(found, warps, original_sizes, strict=True):
            rows[:, :4] = boxes.clip(boxes.warp(rows[:, :4], np.linalg.inv(matrix)), size)
    return found


def images(outputs) -> list:
    """The outputs of each image: an array, or a dict of arrays where the model gives several."""
    if isinstance(outputs, dict):
        arrays = {key: _array(value) for key, value in outputs.items()}
        return [dict(zip(arrays, rows, strict=True)) for rows in zip(*arrays.values(), strict=True)]
    return list(_array(outputs))


def _array(value) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else numpy(value)


def _nanodet_plus(output: np.ndarray, image_size: tuple[int, int], score_threshold: float) -> Candidates:
    """From logits (priors, classes + 32)."""
    cells, num_classes = boxes.priors(tuple(image_size), STRIDES), output.shape[1] - BINS
    scores = boxes.sigmoid(output[:, :num_classes])
    prior, label = np.nonzero(scores > score_threshold)
    found = boxes.clip(boxes.decode(output[prior, num_classes:], cells[prior]), image_size)
    moved = found + (label[:, None] * (found.max(initial=0) + 1)).astype(found.dtype)
    return Candidates(prior, found, moved, scores[prior, label], label)


def _gold_yolo(output: np.ndarray, image_size: tuple[int, int], score_threshold: float) -> Candidates:
    """From rows (cells, 5 + classes) of centre, size, objectness, scores."""
    scores = output[:, 5:] * output[:, 4:5]
    cell, label = np.nonzero(scores > score_threshold)
    best = np.argsort(-scores[cell, label], kind="stable")[:MOST]
    cell, label = cell[best], label[best]
    found = corners(output[cell, :4])
    moved = found + (label[:, None] * CLASS_OFFSET).astype(found.dtype)
    return Candidates(cell, found, moved, scores[cell, label], label)


CANDIDATES = {"nanodet_plus": _nanodet_plus, "gold_yolo": _gold_yolo}  # RT-DETR's pairs don't compete


def _best(output: dict[str, np.ndarray], image_size: tuple[int, int], limit: int) -> np.ndarray:
    """(m, 6) of RT-DETR's best pairs from pred_logits (q, k), pred_boxes (q, 4)."""
    scores = boxes.sigmoid(output["pred_logits"])
    query, label = np.divmod(np.argsort(-scores, axis=None, kind="stable")[:limit], scores.shape[1])
    extent = np.asarray([*image_size[::-1]] * 2, scores.dtype)
    found = corners(output["pred_boxes"][query]) * extent
    return np.concatenate([found, scores[query, label][:, None], label[:, None]], 1, dtype=scores.dtype)
