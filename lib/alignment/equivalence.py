"""Whether two detectors are equally good: the difference of their mAP, with what the choice of images leaves open.

Both are scored on the same images, so images are drawn anew with replacement and both are scored again on each draw (a
paired bootstrap). An image drawn twice counts twice: AP is accumulated with a weight per image, from one matching.

Two one-sided tests at MARGIN: EQUIVALENT where the interval of level 1 - 2 ALPHA lies inside ± MARGIN, DIFFERENT where
it does not and the interval of level 1 - ALPHA excludes 0, otherwise UNDERPOWERED: these images can't tell. The
percentiles are widened for few images by Student's t (Hesterberg, The American Statistician 69, 2015, "expanded
percentile").

How far two trainings lie apart is in no interval over images: of trainings that were repeated the means are compared by
Welch's t, with the same outcomes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
import scipy
from scipy.special import nctdtrinc, ndtr, stdtrit

from lib.errors import UserError
from lib.evaluation.curves import at_recalls
from lib.evaluation.table import match, overlaps, table

# What people ask for ("final mAP 1 %"), in points of mAP; fixed here, before anything is measured.
MARGIN = 0.01
ALPHA = 0.05
# Of means: a right port must not fail one report in twenty. And how often the smallest difference is seen that is told.
RARELY, POWER = 0.01, 0.9
RESAMPLES = 2000  # a hundred of them lie beyond each end of the narrower interval
IOU = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALL = np.linspace(0, 1, 101)
BLOCK = 2_000_000  # (draw, detection) pairs looked at together: bounds the memory, not the result


class Outcome(StrEnum):
    EQUIVALENT = "EQUIVALENT"
    DIFFERENT = "DIFFERENT"
    UNDERPOWERED = "UNDERPOWERED"


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The detections of one class, best score first, and the boxes there are to find."""

    image: np.ndarray  # (d,) index of the image
    hit: np.ndarray  # (10, d) bool, by IoU: finds a box
    counts: np.ndarray  # (10, d) bool: False for one on an ignored box
    boxes: np.ndarray  # (images,) that count


@dataclass(frozen=True, eq=False)
class Matches:
    """One detector's matches on a data set."""

    images: int
    classes: tuple[ClassMatches, ...]


@dataclass(frozen=True)
class Equivalence:
    """The verdict on candidate - reference; mAP in 0..1."""

    outcome: Outcome
    reason: str  # in words
    reference: float
    candidate: float
    difference: float
    equivalence_interval: tuple[float, float]  # of level 1 - 2 ALPHA
    difference_interval: tuple[float, float]  # of level 1 - ALPHA
    margin: float
    images: int
    resamples: int
    seed: int


@dataclass(frozen=True)
class Means:
    """The verdict on the difference of two means of mAP over repeated trainings, candidate - reference."""

    outcome: Outcome
    reference: float
    candidate: float
    reference_spread: float  # standard deviation
    candidate_spread: float
    difference: float
    low: float = float("nan")  # of the interval of level 1 - RARELY
    high: float = float("nan")
    smallest: float = float("nan")  # difference that these repeats show with probability POWER; where any varies


def matches(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> Matches:
    """Of a COCO ground truth and detections in COCO's result form, as `lib.evaluation.evaluate` takes them."""
    for index, found in enumerate(detections):
        if not np.isfinite([*found["bbox"], found["score"]]).all():
            raise UserError(f"detection {index} of image {found['image_id']}: NaN or infinity; check the weights")
    held, images = table(truth, detections), len(truth["images"])
    pairs = overlaps(held, min(IOU))
    found = [match(held, pairs, iou) for iou in IOU]
    hit, counts = np.stack([m.partner >= 0 for m in found]), np.stack([m.counts for m in found])
    classes = []
    for label in range(len(held.classes)):
        own, boxes = held.found.label == label, (held.truth.label == label) & ~held.truth.ignored
        classes.append(
            ClassMatches(
                held.found.image[own],
                hit[:, own],
                counts[:, own],
                np.bincount(held.truth.image[boxes], minlength=images),
            )
        )
    return Matches(images, tuple(classes))


def arrays(held: Matches) -> dict[str, np.ndarray]:
    """The matches as arrays for a record: "<class>/image", "<class>/hit", …"""
    return {
        f"{label}/{name}": np.asarray(value)
        for label, entry in enumerate(held.classes)
        for name, value in vars(entry).items()
    }


def restored(kept: Mapping[str, np.ndarray], images: int) -> Matches:
    """The inverse of `arrays`."""
    labels = sorted({int(name.split("/")[0]) for name in kept})
    names = [field.name for field in fields(ClassMatches)]
    return Matches(images, tuple(ClassMatches(**{name: kept[f"{label}/{name}"] for name in names}) for label in labels))


def precision(held: Matches) -> np.ndarray:
    """(10, 101, classes) at that IoU and recall or beyond, as pycocotools has it; −1 where a class has nothing to
    find."""
    totals = [int(one.boxes.sum()) for one in held.classes]
    found = [
        [at_recalls(hit[counts], total) for hit, counts in zip(one.hit, one.counts)]
        for one, total in zip(held.classes, totals)
    ]
    return np.stack([np.stack(one) for one in found], axis=2)


# --------------------------------------------------------------------------------------------------- accumulation
def mean_average_precision(held: Matches, weights: np.ndarray) -> np.ndarray:
    """(draws,) COCO's mAP where image i counts weights[:, i] times; NaN where a draw has nothing to find."""
    step = max(1, BLOCK // max([1, *(len(entry.image) for entry in held.classes)]))
    return np.concatenate([_block(held, weights[i : i + step]) for i in range(0, len(weights), step)])


def _block(held: Matches, weights: np.ndarray) -> np.ndarray:
    total, present = np.zeros(len(weights)), np.zeros(len(weights), int)
    for entry in held.classes:
        boxes = weights @ entry.boxes  # (draws,)
        total += np.where(boxes > 0, _average_precision(entry, weights, np.maximum(boxes, 1)), 0.0)
        present += boxes > 0
    return np.where(present > 0, total / np.maximum(present, 1), np.nan)


def _average_precision(entry: ClassMatches, weights: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(draws,) of one class: the highest precision at that recall or beyond, averaged over RECALL and IOU."""
    total, before, seen = np.zeros(len(weights)), None, None
    drawn = weights[:, entry.image]  # (draws, d): how often each detection is there
    for hit, counts in zip(entry.hit, entry.counts):
        if before is None or (counts != before).any():
            before, seen = counts, np.cumsum(drawn * counts, 1)
        places = np.flatnonzero(hit)  # precision only matters where recall rises
        found = np.cumsum(drawn[:, places], 1)
        precision = found / np.maximum(seen[:, places], 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        reached = np.searchsorted(RECALL, found / boxes[:, None], "right")  # points of RECALL up to here
        total += (envelope * np.diff(reached, axis=1, prepend=0)).sum(1)
    return total / (len(entry.hit) * len(RECALL))


# -------------------------------------------------------------------------------------------------------- verdict
def difference(
    reference: Matches, candidate: Matches, *, margin: float = MARGIN, resamples: int = RESAMPLES, seed: int = 0
) -> Equivalence:
    """The verdict on candidate - reference over the same images. ValueError where the ground truths differ."""
    if not _same_truth(reference, candidate):
        raise ValueError("the two sides were not matched against the same ground truth")
    count = reference.images
    once = np.ones((1, count), int)
    values = [float(mean_average_precision(side, once)[0]) for side in (reference, candidate)]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    spread = mean_average_precision(candidate, draws) - mean_average_precision(reference, draws)
    spread = spread[np.isfinite(spread)]
    intervals = [_interval(spread, count, level) for level in (ALPHA, ALPHA / 2)]
    outcome, reason = _decide(values, *intervals, margin)
    return Equivalence(outcome, reason, *values, values[1] - values[0], *intervals, margin, count, resamples, seed)


def means(reference: Sequence[float], candidate: Sequence[float], margin: float = MARGIN) -> Means:
    """Of at least two trainings a side, as independent samples.

    Where both sides repeat the same seeds, what a seed does to both cancels in the difference and stays in the spreads:
    the intervals are then too wide, never too narrow.
    """
    sides = [np.asarray(side, float) for side in (reference, candidate)]
    centres, spreads = [float(side.mean()) for side in sides], [float(side.std(ddof=1)) for side in sides]
    told = *centres, *spreads, centres[1] - centres[0]
    error = float(np.sqrt(sum(side.var(ddof=1) / len(side) for side in sides)))
    if not error:  # what does not vary was not repeated, or finds nothing
        return Means(Outcome.UNDERPOWERED, *told)
    found = scipy.stats.ttest_ind(*sides[::-1], equal_var=False)
    inner, outer = (found.confidence_interval(1 - level) for level in (2 * ALPHA, RARELY))
    smallest = error * nctdtrinc(found.df, 1 - POWER, stdtrit(found.df, 1 - RARELY / 2))
    return Means(_decide(centres, inner, outer, margin)[0], *told, *map(float, (*outer, smallest)))


def _decide(
    values: Sequence[float], inner: tuple[float, float], outer: tuple[float, float], margin: float
) -> tuple[Outcome, str]:
    if not np.isfinite([*values, *inner, *outer]).all():
        return Outcome.UNDERPOWERED, "too few images for an interval"
    if not any(values):
        return Outcome.UNDERPOWERED, "neither side finds anything"
    if -margin < inner[0] and inner[1] < margin:
        return Outcome.EQUIVALENT, "the interval lies inside the margin"
    if outer[0] > 0 or outer[1] < 0:
        beyond = outer[0] > margin or outer[1] < -margin
        return Outcome.DIFFERENT, f"the interval {'lies' if beyond else 'excludes 0 and reaches'} beyond the margin"
    return Outcome.UNDERPOWERED, "the interval holds 0 and reaches beyond the margin: these images can't tell"


def _interval(spread: np.ndarray, images: int, tail: float) -> tuple[float, float]:
    """The expanded percentiles; NaN where they lie beyond the outermost draw."""
    beyond = ndtr(-np.sqrt(images / (images - 1)) * stdtrit(images - 1, 1 - tail)) if images > 1 else 0.0
    if beyond * len(spread) < 1:
        return float("nan"), float("nan")
    low, high = np.quantile(spread, [beyond, 1 - beyond])
    return float(low), float(high)


def _same_truth(a: Matches, b: Matches) -> bool:
    return (
        a.images == b.images
        and len(a.classes) == len(b.classes)
        and all(np.array_equal(x.boxes, y.boxes) for x, y in zip(a.classes, b.classes))
    )
