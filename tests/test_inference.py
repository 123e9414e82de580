"""The published COCO weights on real images give the published detections and the published twelve numbers."""

import json
from collections import defaultdict

import numpy as np
import pytest

from lib import convert, evaluation, models
from lib.data import coco
from lib.evaluation import inference

NAME = "nanodet-plus-m_320"
PIXELS, SCORE = 0.05, 1e-4  # issue 2
THRESHOLD = 0.05


def differences(found, expected):
    """Detections of one list without a partner in the other, but for those at the threshold."""
    by_class = defaultdict(list)
    for row in found:
        by_class[row["image_id"], row["category_id"]].append(row)
    alone = []
    for row in expected:
        rivals = by_class[row["image_id"], row["category_id"]]
        partner = next((rival for rival in rivals if close(row, rival)), None)
        if partner:
            rivals.remove(partner)
        else:
            alone.append(row)
    alone += [row for rivals in by_class.values() for row in rivals]
    return [row for row in alone if row["score"] > THRESHOLD + SCORE]


def close(a, b):
    """Corners within PIXELS, scores within SCORE."""
    corners = [np.add(row["bbox"], [0, 0, *row["bbox"][:2]]) for row in (a, b)]
    return abs(a["score"] - b["score"]) <= SCORE and np.abs(corners[0] - corners[1]).max() <= PIXELS


@pytest.fixture
def published(shared):
    files = {kind: shared / "real" / "weights" / f"{NAME}.expected_{kind}.json" for kind in ("detections", "stats")}
    return {kind: json.loads(file.read_text()) for kind, file in files.items()}


def test_real_images_give_the_published_detections(shared, published):
    model = models.build(NAME)
    convert.load(model, shared / "real" / "weights" / f"{NAME}.npz", absent=("aux_fpn.", "aux_head."))
    model.train()
    dataset = coco.load(shared / "real" / "coco_val_64" / "instances.json")
    result, found = inference.evaluate_model(model, NAME, dataset)
    assert model.training and len(found) == len(dataset.images) == 64
    rows = evaluation.published_form([image.id for image in dataset.images], found, dataset.category_ids)
    alone = differences(rows, published["detections"])
    assert not alone, f"{len(alone)} of {len(published['detections'])} without a partner, first {alone[0]}"
    for name, value in published["stats"].items():
        assert result.numbers[name] == pytest.approx(value, abs=5e-4), name


def test_the_comparison_sees_a_wrong_detection(published):
    expected = published["detections"]
    assert not differences(expected, expected)
    first = max(expected, key=lambda row: row["score"])
    others = [row for row in expected if row is not first]
    x, y, w, h = first["bbox"]
    for wrong in (
        [],
        [first, first],
        [first | {"bbox": [x, y, w + 0.06, h]}],
        [first | {"bbox": [x - 0.06, y, w, h]}],
        [first | {"score": first["score"] - 2e-4}],
        [first | {"category_id": first["category_id"] + 1}],
    ):
        assert differences(others + wrong, expected), wrong
    at_threshold = first | {"score": THRESHOLD + 0.5 * SCORE}
    assert not differences([*expected, at_threshold], expected)
