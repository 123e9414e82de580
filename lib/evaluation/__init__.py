"""What detections are worth: the twelve COCO numbers and the average precision of each class, computed by pycocotools.

Here is what looks at detections and a ground truth, and what gets detections out of a model (`inference`) or a file
(`found`, `detection`); not what draws them or says whether two sides agree. Beside this module, from the same two
inputs: `curves` (precision over recall, the best threshold, VOC's average precision), `errors` (confusion matrix, kinds
of mistakes), both on the arrays of `table`; they take a fraction of the time that pycocotools takes.
"""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lib.errors import UserError
from lib.evaluation.curves import Curves

# Averages over IoU .50:.05:.95 unless the name says otherwise; s, m, l: areas below 32², up to 96², above.
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Evaluation:
    """COCO's numbers in 0..1; −1 where there is nothing to find (no box of that size, no box of that class)."""

    numbers: dict[str, float]  # keyed by NUMBERS
    per_class: dict[str, float]  # AP by class name, ordered by category id
    curves: Curves = field(repr=False, compare=False)


def published_form(
    image_ids: Sequence[int], detections: Sequence[np.ndarray], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Per image (m, 6) x1, y1, x2, y2, score, label -> COCO's result list (x, y, w, h and category ids)."""
    rows = []
    for image, found in zip(image_ids, detections, strict=True):
        for x1, y1, x2, y2, score, label in np.asarray(found, np.float64).tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append(dict(image_id=image, category_id=category_ids[int(label)], bbox=box, score=score))
    return rows


def evaluate(truth: Mapping, detections: Sequence[Mapping]) -> Evaluation:
    """Compare detections in COCO's result form with a ground truth, the content of a sound COCO file (`coco.truth`).

    Annotations without `area` count with their box's, without `iscrowd` as no crowd. UserError for a detection of an
    image or category that the ground truth does not have, or with numbers that are not finite.
    """
    _check(truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports every phase
        run = COCOeval(_indexed(truth, truth["annotations"]), _indexed(truth, detections), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    classes = tuple(names[id_] for id_ in run.params.catIds)
    precision, scores = (run.eval[key][:, :, :, 0, -1] for key in ("precision", "scores"))  # all areas, 100 detections
    curves = Curves(classes, run.params.iouThrs, run.params.recThrs, precision, scores)
    counted = [precision[:, :, index][precision[:, :, index] > -1] for index in range(len(classes))]
    per_class = {name: float(of.mean()) if of.size else -1.0 for name, of in zip(classes, counted)}
    return Evaluation(dict(zip(NUMBERS, run.stats.tolist(), strict=True)), per_class, curves)


def _check(truth: Mapping, detections: Sequence[Mapping]) -> None:
    known = {
        "image_id": {image["id"] for image in truth["images"]},
        "category_id": {category["id"] for category in truth["categories"]},
    }
    for index, found in enumerate(detections):
        for key, ids in known.items():
            if found[key] not in ids:
                raise UserError(f"detection {index}: {key} {found[key]} is none of the ground truth's; use its ids")
        if not all(map(math.isfinite, (*found["bbox"], found["score"]))):
            raise UserError(f"detection {index} of image {found['image_id']}: NaN or infinity; check the weights")


def _indexed(truth: Mapping, boxes: Sequence[Mapping]) -> COCO:
    """`boxes` as pycocotools wants them.

    Ids are given anew from 1: pycocotools takes a match with annotation 0 for none. `loadRes` is not used: it fails on
    an empty list.
    """
    annotations = [
        {"area": box["bbox"][2] * box["bbox"][3], "iscrowd": 0, **box, "id": index}
        for index, box in enumerate(boxes, start=1)
    ]
    indexed = COCO()
    indexed.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
    indexed.createIndex()
    return indexed
