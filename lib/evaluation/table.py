"""Ground truth and detections as arrays, their overlaps, and who finds whom: no loop over boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.data import boxes as geometry

PER_CLASS = 100  # detections of a class that count in an image, as in COCO's evaluation


@dataclass(frozen=True, eq=False)
class Truth:
    """The annotated boxes, image by image."""

    image: np.ndarray  # (n,) rank of the image's id
    label: np.ndarray  # (n,) rank of the category's id
    box: np.ndarray  # (n, 4) float64 x1, y1, x2, y2
    area: np.ndarray  # (n,) as annotated, which for COCO is the mask's
    crowd: np.ndarray  # (n,) bool: overlap is the share of the detection that lies inside
    ignored: np.ndarray  # (n,) bool: crowd, `ignore` or `difficult`; neither finding nor missing it counts


@dataclass(frozen=True, eq=False)
class Found:
    """The detections, best score first; equal scores in the order of image ids, then as given."""

    image: np.ndarray  # (m,) rank of the image's id
    label: np.ndarray  # (m,)
    box: np.ndarray  # (m, 4) float64 x1, y1, x2, y2
    score: np.ndarray  # (m,)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Detections and annotated boxes of the same image that overlap, by detection, then by box."""

    found: np.ndarray  # (p,) index into Found
    truth: np.ndarray  # (p,) index into Truth
    iou: np.ndarray  # (p,)
    same: np.ndarray  # (p,) whether they are of one class


@dataclass(frozen=True, eq=False)
class Matching:
    """Who finds whom at one IoU: best score first, each takes the box of its class that it overlaps most."""

    partner: np.ndarray  # (m,) index into Truth, −1 for none
    counts: np.ndarray  # (m,) bool: False for a detection that lies on an ignored box and found no other


@dataclass(frozen=True, eq=False)
class Table:
    """A ground truth and detections of it."""

    classes: tuple[str, ...]  # by label
    truth: Truth
    found: Found


def table(truth: Mapping, detections: Sequence[Mapping], per_class: int | None = PER_CLASS) -> Table:
    """From a COCO ground truth and detections in COCO's result form, which `evaluate` has accepted.

    Of the detections of one class in one image the best `per_class` are kept, all if that is None.
    """
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: rank for rank, category in enumerate(categories)}
    rank_of = {id_: rank for rank, id_ in enumerate(sorted(image["id"] for image in truth["images"]))}
    classes = tuple(category["name"] for category in categories)
    annotated = _truth(truth["annotations"], rank_of, label_of)
    return Table(classes, annotated, _found(detections, rank_of, label_of, per_class))


def overlaps(held: Table, least: float) -> Pairs:
    """All pairs, of any classes, whose IoU is at least `least` (above 0)."""
    truth, found = held.truth, held.found
    pairs = [np.zeros((0, 3))]
    boxes, detections = _groups(truth.image), _groups(found.image)
    for image in boxes.keys() & detections.keys():
        of, among = detections[image], boxes[image]
        iou = _iou(found.box[of], truth.box[among], truth.crowd[among])
        rows, columns = np.nonzero(iou >= least)
        pairs.append(np.stack([of[rows], among[columns], iou[rows, columns]], 1))
    rows = np.concatenate(pairs)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    first, second = rows[:, :2].T.astype(np.int64)
    return Pairs(first, second, rows[:, 2], found.label[first] == truth.label[second])


def match(held: Table, pairs: Pairs, iou: float = 0.5) -> Matching:
    """COCO's matching at `iou`."""
    truth, found = held.truth, held.found
    same = pairs.same & (pairs.iou >= min(iou, 1 - 1e-10))
    regular = np.flatnonzero(same & ~truth.ignored[pairs.truth])
    order = regular[np.lexsort((-pairs.truth[regular], -pairs.iou[regular], pairs.found[regular]))]
    chosen = order[one_to_one(pairs.found[order], pairs.truth[order])]
    partner = np.full(len(found.score), -1)
    partner[pairs.found[chosen]] = pairs.truth[chosen]
    counts = np.ones(len(found.score), bool)
    counts[pairs.found[same & truth.ignored[pairs.truth]]] = False
    return Matching(partner, counts | (partner >= 0))


def closest(pairs: Pairs, chosen: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `number` detections the box it overlaps most among the chosen pairs, and that IoU; −1, 0 for none."""
    of = np.flatnonzero(chosen)
    of = of[np.lexsort((pairs.truth[of], -pairs.iou[of], pairs.found[of]))]
    found, first = np.unique(pairs.found[of], return_index=True)
    box, iou = np.full(number, -1), np.zeros(number)
    box[found], iou[found] = pairs.truth[of[first]], pairs.iou[of[first]]
    return box, iou


def one_to_one(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Positions of the pairs that stay when each, in the given order, stays unless one of its two is taken.

    Pairs that come first for both of theirs are taken together: a few rounds instead of one step per pair.
    """
    left, kept = np.arange(len(first)), [np.zeros(0, np.int64)]
    while left.size:
        firsts, seconds = (np.unique(side[left], return_index=True)[1] for side in (first, second))
        chosen = left[np.intersect1d(firsts, seconds)]
        kept.append(chosen)
        left = left[~np.isin(first[left], first[chosen]) & ~np.isin(second[left], second[chosen])]
    return np.sort(np.concatenate(kept))


def _truth(annotations: Sequence[Mapping], rank_of: Mapping, label_of: Mapping) -> Truth:
    box = _corners(annotations)
    crowd = np.array([bool(annotation.get("iscrowd")) for annotation in annotations], bool)
    aside = [bool(annotation.get("ignore") or annotation.get("difficult")) for annotation in annotations]
    area = [annotation.get("area", own) for annotation, own in zip(annotations, geometry.area(box).tolist())]
    image, label = _ranks(annotations, "image_id", rank_of), _ranks(annotations, "category_id", label_of)
    return Truth(image, label, box, np.array(area, np.float64), crowd, crowd | np.array(aside, bool))


def _found(detections: Sequence[Mapping], rank_of: Mapping, label_of: Mapping, per_class: int | None) -> Found:
    image, label = _ranks(detections, "image_id", rank_of), _ranks(detections, "category_id", label_of)
    score = np.array([detection["score"] for detection in detections], np.float64)
    order = np.lexsort((image, -score))
    if len(order):
        groups = _groups(image[order] * (len(label_of) + 1) + label[order])
        order = order[np.sort(np.concatenate([of[:per_class] for of in groups.values()]))]
    return Found(image[order], label[order], _corners(detections)[order], score[order])


def _iou(first: np.ndarray, second: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(m, k) intersection over union; over the detection's area where the annotated box is a crowd."""
    extent = np.minimum(first[:, None, 2:], second[:, 2:]) - np.maximum(first[:, None, :2], second[:, :2])
    inside, own = np.maximum(extent, 0).prod(2), geometry.area(first)[:, None]
    return inside / np.maximum(np.where(crowd, own, own + geometry.area(second) - inside), 1e-12)


def _groups(key: np.ndarray) -> dict[int, np.ndarray]:
    """Where each key is, ascending."""
    order = np.argsort(key, kind="stable")
    keys, starts = np.unique(key[order], return_index=True)
    return dict(zip(keys.tolist(), np.split(order, starts[1:])))


def _ranks(entries: Sequence[Mapping], key: str, rank_of: Mapping) -> np.ndarray:
    return np.array([rank_of[entry[key]] for entry in entries], np.int64)


def _corners(entries: Sequence[Mapping]) -> np.ndarray:
    """(k, 4) x1, y1, x2, y2 of x, y, width, height."""
    rows = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], 1)
