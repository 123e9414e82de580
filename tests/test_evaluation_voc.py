"""VOC's average precision against examples worked by hand."""

import numpy as np
import pytest

from lib import evaluation
from lib.evaluation import curves

BOXES = [[0, 0, 10, 10], [50, 0, 10, 10], [100, 0, 10, 10], [150, 0, 10, 10]]
TRUTH = {
    "images": [{"id": 1}],
    "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "egg"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": box} for box in BOXES]
    + [{"image_id": 1, "category_id": 1, "bbox": [200, 0, 10, 10], "difficult": 1}],
}


def found(bbox, score, category=1):
    return {"image_id": 1, "category_id": category, "bbox": bbox, "score": score}


def test_five_detections_of_four_boxes_by_hand():
    """Right, wrong, right, twice the same, right: precision 1, 1/2, 2/3, 2/4, 3/5 at recall 1/4, 1/4, 2/4, 2/4, 3/4."""
    detections = [
        found(BOXES[0], 0.9),
        found([300, 0, 10, 10], 0.8),
        found(BOXES[1], 0.7),
        found(BOXES[1], 0.6),
        found(BOXES[2], 0.5),
    ]
    result = curves.voc(TRUTH, detections)
    assert result.voc2007["cup"] == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)
    assert result.voc2012["cup"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    assert result.voc2007["egg"] == -1 == result.voc2012["egg"]  # nothing to find takes no part in the mean
    assert result.mean_2012 == result.voc2012["cup"] and result.mean_2007 == result.voc2007["cup"]


def test_a_difficult_box_counts_neither_way():
    """Found twice it is no mistake, missed it is none either; without the flag it is both."""
    right = [found(box, 0.5) for box in BOXES]
    twice = [found([200, 0, 10, 10], 0.9), found([201, 0, 10, 10], 0.8)]
    assert curves.voc(TRUTH, right).mean_2012 == 1 == curves.voc(TRUTH, right + twice).mean_2007
    plain = TRUTH | {"annotations": [annotation | {"difficult": 0} for annotation in TRUTH["annotations"]]}
    assert curves.voc(plain, right).mean_2012 == pytest.approx(4 / 5)
    assert curves.voc(plain, right + twice).mean_2012 < 1


def test_a_second_detection_is_wrong_even_where_it_would_fit_another_box():
    """COCO gives it the second-best box instead."""
    truth = TRUTH | {
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box} for box in ([0, 0, 10, 10], [2, 0, 10, 10])]
    }
    both_on_the_first = [found([0, 0, 10, 10], 0.9), found([0.5, 0, 10, 10], 0.8)]
    assert curves.voc(truth, both_on_the_first).mean_2012 == pytest.approx(0.5)
    assert evaluation.evaluate(truth, both_on_the_first).numbers["AP50"] == pytest.approx(1)


def test_more_than_a_hundred_detections_take_part():
    truth = {
        "images": [{"id": 1}],
        "categories": TRUTH["categories"],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [20 * i, 0, 10, 10]} for i in range(120)],
    }
    everything = [found([20 * i, 0, 10, 10], 1 - i / 1000) for i in range(120)]
    assert curves.voc(truth, everything).mean_2012 == 1


@pytest.mark.parametrize(
    "correct, total, eleven, area",
    [
        ([], 3, 0, 0),
        ([False, False], 3, 0, 0),
        ([True], 1, 1, 1),
        ([], 0, -1, -1),
        ([False, True], 1, 0.5, 0.5),
        ([True] * 3, 10, 4 / 11, 0.3),  # 3 of 10 reach recall 0.3, whatever 3 * 0.1 is to a computer
    ],
)
def test_averages_of_few(correct, total, eleven, area):
    assert curves.eleven_points(np.array(correct, bool), total) == pytest.approx(eleven)
    assert curves.area(np.array(correct, bool), total) == pytest.approx(area)
