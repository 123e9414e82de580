"""The COCO numbers against published ones, and where there is little or nothing to count."""

import json

import numpy as np
import pytest

from lib import evaluation
from lib.errors import UserError

TRUTH = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "egg"}],
    "annotations": [
        {"id": 0, "image_id": 1, "category_id": 3, "bbox": [10, 10, 50, 50]},
        {"id": 0, "image_id": 2, "category_id": 3, "bbox": [0, 0, 20, 20]},
    ],
}


def found(image_id=1, category_id=3, bbox=(10, 10, 50, 50), score=0.9):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


def test_published_numbers_are_reproduced(shared):
    folder = shared / "real" / "eval_coco_val2014_100"
    result = evaluation.evaluate(*(json.loads((folder / name).read_text()) for name in ("gt.json", "dt.json")))
    expected = json.loads((folder / "expected.json").read_text())
    assert list(result.numbers) == expected["keys"]
    np.testing.assert_allclose(list(result.numbers.values()), expected["published_full"], rtol=0, atol=1e-6)
    counted = [ap for ap in result.per_class.values() if ap >= 0]
    np.testing.assert_allclose(np.mean(counted), result.numbers["AP"], atol=1e-12)


def test_perfect_detections_score_one_whatever_the_annotation_ids():
    """pycocotools takes a match with annotation id 0 for no match; ours are numbered anew."""
    result = evaluation.evaluate(TRUTH, [found(), found(2, bbox=(0, 0, 20, 20), score=0.8)])
    assert (result.numbers["AP"], result.numbers["APs"], result.numbers["APm"]) == pytest.approx((1, 1, 1))
    assert result.per_class == {"cup": pytest.approx(1), "egg": -1}


def test_one_of_two_boxes_found():
    """Precision 1 up to recall 1/2: 51 of COCO's 101 recall points."""
    result = evaluation.evaluate(TRUTH, [found()])
    assert result.numbers["AP"] == pytest.approx(51 / 101) and result.numbers["AR100"] == pytest.approx(0.5)


def test_nothing_found_is_zero_and_nothing_to_find_is_minus_one():
    result = evaluation.evaluate(TRUTH, [])
    assert (result.numbers["AP"], result.numbers["AR100"], result.numbers["APl"]) == (0, 0, -1)
    assert result.per_class == {"cup": 0, "egg": -1}
    assert set(evaluation.evaluate(TRUTH | {"annotations": []}, [found()]).numbers.values()) == {-1}


def test_a_crowd_forgives_detections_inside_it():
    crowd = {"image_id": 2, "category_id": 3, "bbox": [100, 100, 80, 80], "iscrowd": 1}
    with_false = [found(), found(2, bbox=(0, 0, 20, 20), score=0.8), found(2, bbox=(110, 110, 30, 30), score=0.95)]
    assert evaluation.evaluate(TRUTH, with_false).numbers["AP"] < 0.9
    truth = TRUTH | {"annotations": [*TRUTH["annotations"], crowd]}
    assert evaluation.evaluate(truth, with_false).numbers["AP"] == pytest.approx(1)


def test_published_form():
    rows = evaluation.published_form([5, 6], [np.array([[1, 2, 4, 8, 0.5, 1]], np.float32), np.zeros((0, 6))], [3, 7])
    assert rows == [{"image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 6], "score": 0.5}]


@pytest.mark.parametrize(
    "detection, message",
    [(found(image_id=9), "image_id 9"), (found(category_id=1), "category_id 1"), (found(score=float("nan")), "NaN")],
)
def test_detections_of_something_else_are_one_line(detection, message):
    with pytest.raises(UserError, match=message):
        evaluation.evaluate(TRUTH, [found(), detection])
