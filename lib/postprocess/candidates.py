"""What competes to be a detection, and how near each was to the other fate: to suppression, or to the last place."""

from dataclasses import dataclass

import numpy as np

from lib.alignment.margins import ROUNDING, cut, suppression
from lib.data import boxes

SPARE = 20  # places behind the last one from which survivors may move up
AROUND = 0.1  # of IoU: whose noise is measured, on both sides of the limit


@dataclass(frozen=True)
class Candidates:
    """Those of one image, in any order."""

    place: np.ndarray  # (m,) int64 the row of the output that each is from
    boxes: np.ndarray  # (m, 4) x1, y1, x2, y2 in input pixels
    moved: np.ndarray  # (m, 4) as suppression sees them, every class elsewhere
    scores: np.ndarray  # (m,)
    labels: np.ndarray  # (m,) int64

    def detections(self, nms_iou: float, limit: int) -> np.ndarray:
        """(k, 6) x1, y1, x2, y2, score, label of those that survive, best first."""
        return self.rows(boxes.nms(self.moved, self.scores, self.labels, nms_iou, limit))

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """(k, 6) of these."""
        columns = self.boxes[chosen], self.scores[chosen, None], self.labels[chosen, None]
        return np.concatenate(columns, 1, dtype=self.boxes.dtype)

    def only(self, chosen: np.ndarray) -> "Candidates":
        """These alone."""
        return Candidates(
            self.place[chosen], self.boxes[chosen], self.moved[chosen], self.scores[chosen], self.labels[chosen]
        )

    def keys(self) -> list[tuple[int, int]]:
        """What tells one from the others, in any run."""
        return list(zip(self.place.tolist(), self.labels.tolist()))


def near_misses(
    exact: Candidates, rounded: Candidates, nms_iou: float, limit: int, most: float
) -> tuple[np.ndarray, dict[str, float]]:
    """(k, 7) x1, y1, x2, y2, score, label, margin of candidates at most so many floors from their other fate; the floors.

    exact: of a float64 run; rounded: of a float32 run, for the noise of IoUs and scores.
    """
    kept = boxes.nms(exact.moved, exact.scores, exact.labels, nms_iou, limit + SPARE)
    if len(kept) == limit + SPARE:  # what is behind all of them decides nothing
        exact = exact.only(np.flatnonzero(exact.scores >= exact.scores[kept].min()))
    exact = exact.only(np.argsort(-exact.scores, kind="stable"))
    other = {key: index for index, key in enumerate(rounded.keys())}
    pairs = np.array([(index, other[key]) for index, key in enumerate(exact.keys()) if key in other], np.int64).reshape(
        -1, 2
    )
    score = max(float(np.abs(exact.scores[pairs[:, 0]] - rounded.scores[pairs[:, 1]]).max(initial=0.0)), ROUNDING)
    members = [np.flatnonzero(exact.labels == label) for label in np.unique(exact.labels)]
    of_class = (pairs[exact.labels[pairs[:, 0]] == exact.labels[of[0]]] for of in members)
    iou = max((_deviation(exact, rounded, own, nms_iou) for own in of_class), default=0.0)
    iou = max(iou, ROUNDING)
    survival = np.zeros((len(exact.scores), 2))
    for of in members:
        survival[of] = suppression(boxes.iou(exact.moved[of], exact.moved[of]), exact.scores[of], nms_iou, (iou, score))
    margins = cut(survival, exact.scores, score, limit).max(1)  # of its own fate it is 0
    near = np.flatnonzero(margins <= most)
    return np.column_stack([exact.rows(near), margins[near]]), {"IoU": iou, "score": score}


def _deviation(exact: Candidates, rounded: Candidates, pairs: np.ndarray, nms_iou: float) -> float:
    """The largest error of a float32 IoU near the limit, among one class."""
    first, second = exact.moved[pairs[:, 0]], rounded.moved[pairs[:, 1]]
    overlap = boxes.iou(first, first)
    return float(np.abs(overlap - boxes.iou(second, second))[np.abs(overlap - nms_iou) < AROUND].max(initial=0.0))
