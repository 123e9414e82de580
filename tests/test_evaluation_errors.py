"""The confusion matrix and each kind of mistake, planted one by one."""

import numpy as np
import pytest

from lib import evaluation
from lib.evaluation import errors, table

CUP, EGG = [0, 0, 40, 40], [100, 0, 40, 40]
TRUTH = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "egg"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": CUP}, {"image_id": 1, "category_id": 2, "bbox": EGG}],
}
RIGHT = [(1, CUP, 0.9), (2, EGG, 0.9)]


def judged(rows, truth=TRUTH, threshold=0.0):
    """(confusion, errors) of rows (category, bbox, score) in image 1."""
    detections = [{"image_id": 1, "category_id": c, "bbox": list(box), "score": score} for c, box, score in rows]
    held = table.table(truth, detections)
    pairs = table.overlaps(held, errors.BACKGROUND)
    found = errors.errors(held, pairs, table.match(held, pairs), threshold)
    assert found.ap == pytest.approx(evaluation.evaluate(truth, detections).numbers["AP50"], abs=1e-12)
    return errors.confusion(held, pairs, threshold), found


def kinds(found):
    return {kind: number for kind, sizes in found.counts.items() if (number := sum(sizes.values()))}


def test_all_right():
    matrix, found = judged(RIGHT)
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]] and matrix.largest(5) == []
    assert not kinds(found) and found.ap == pytest.approx(1) and set(found.cost.values()) == {0.0}


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([(1, [15, 0, 40, 40], 0.9), RIGHT[1]], {"localisation": 1}),  # IoU 0.45 with the cup
        ([(2, CUP, 0.9), RIGHT[1]], {"class": 1}),  # the cup as an egg
        ([*RIGHT, (1, [1, 0, 40, 40], 0.8)], {"duplicate": 1}),
        ([*RIGHT, (1, [300, 300, 40, 40], 0.8)], {"background": 1}),
        ([*RIGHT, (1, [115, 0, 40, 40], 0.8)], {"both": 1}),  # a cup, beside the egg
        ([RIGHT[0]], {"missed": 1}),
        ([(1, [15, 0, 40, 40], 0.9), (2, CUP, 0.5), RIGHT[1]], {"localisation": 1, "class": 1}),
    ],
)
def test_kinds_one_by_one(rows, expected):
    _, found = judged(rows)
    assert kinds(found) == expected
    assert all(found.cost[kind] == 0 for kind in set(errors.KINDS) - set(expected))


@pytest.mark.parametrize(
    "kind, rows",
    [
        ("localisation", [(1, [15, 0, 40, 40], 0.9), RIGHT[1]]),
        ("class", [(2, CUP, 0.8), RIGHT[1]]),
        ("background", [(1, [300, 300, 40, 40], 0.95), *RIGHT]),
        ("both", [(1, [115, 0, 40, 40], 0.95), *RIGHT]),
    ],
)
def test_mending_the_only_kind_of_mistake_gives_all_that_is_lost(kind, rows):
    _, found = judged(rows)
    assert found.ap + found.cost[kind] == pytest.approx(1) and found.cost[kind] >= 0.25


def test_a_duplicate_before_a_right_one_costs():
    truth = TRUTH | {
        "annotations": [*TRUTH["annotations"], {"image_id": 1, "category_id": 1, "bbox": [200, 0, 40, 40]}]
    }
    _, found = judged([(1, CUP, 0.9), (1, CUP, 0.8), (1, [200, 0, 40, 40], 0.7), RIGHT[1]], truth)
    assert found.ap + found.cost["duplicate"] == pytest.approx(1)
    assert found.cost["duplicate"] == pytest.approx(50 / 101 / 3 / 2)  # half the cups' recalls at 2/3, of two classes


def test_missed_boxes_of_a_class_that_is_found_elsewhere_cost():
    truth = TRUTH | {"annotations": [*TRUTH["annotations"], {"image_id": 2, "category_id": 1, "bbox": CUP}]}
    _, found = judged(RIGHT, truth)
    assert kinds(found) == {"missed": 1} and found.ap + found.cost["missed"] == pytest.approx(1)


def test_only_one_mistake_on_a_box_can_become_its_find():
    twice = [(1, [15, 0, 40, 40], 0.9), (1, [16, 0, 40, 40], 0.8), RIGHT[1]]
    _, found = judged(twice)
    assert kinds(found) == {"localisation": 2} and found.ap + found.cost["localisation"] == pytest.approx(1)


def test_sizes_are_those_of_the_box():
    truth = TRUTH | {
        "annotations": [
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40], "area": 500},  # the mask's area decides
            {"image_id": 1, "category_id": 2, "bbox": [100, 0, 100, 100]},
        ]
    }
    _, found = judged([(1, [300, 300, 32, 32], 0.9)], truth)
    assert found.counts["missed"] == {"small": 1, "medium": 0, "large": 1}
    assert found.counts["background"] == {"small": 0, "medium": 1, "large": 0}
    assert errors.rows(found)[-1] == {
        "kind": "missed",
        "number": 2,
        "small": 1,
        "medium": 0,
        "large": 1,
        "AP lost": found.cost["missed"],
    }


def test_the_threshold_hides_detections_but_not_their_cost():
    rows = [RIGHT[0], (2, EGG, 0.3), (1, [300, 300, 40, 40], 0.2)]
    matrix, found = judged(rows, threshold=0.5)
    assert kinds(found) == {"missed": 1} and matrix.counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert found.ap == pytest.approx(1)


def test_confusion_pairs_one_to_one_by_overlap():
    """An egg right on the cup beats a cup a little beside it, which is then left over."""
    matrix, _ = judged([(2, CUP, 0.5), (1, [4, 0, 40, 40], 0.9), RIGHT[1]])
    assert matrix.counts.tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]] and matrix.largest(5) == [("cup", "egg", 1)]


def test_what_lies_on_ignored_boxes_is_not_counted():
    crowd = {"image_id": 1, "category_id": 1, "bbox": [200, 200, 200, 200], "iscrowd": 1}
    inside = [(1, [210, 210, 30, 30], 0.9), (1, [300, 300, 30, 30], 0.8), (2, [300, 300, 30, 30], 0.7)]
    matrix, found = judged([*RIGHT, *inside], TRUTH | {"annotations": [*TRUTH["annotations"], crowd]})
    assert kinds(found) == {"background": 1}  # only the egg, for the crowd is one of cups
    assert matrix.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_confusion_sums():
    rng = np.random.default_rng(1)
    boxes = rng.uniform(0, 60, (30, 2)).tolist()
    annotations = [{"image_id": 1, "category_id": 1 + i % 2, "bbox": [*xy, 20, 20]} for i, xy in enumerate(boxes)]
    truth = TRUTH | {"annotations": annotations}
    rows = [(int(rng.integers(1, 3)), [x + 2, y, 20, 20], float(rng.random())) for x, y in boxes * 2]
    matrix, _ = judged(rows, truth, threshold=0.3)
    shown = [c for c, _, score in rows if score >= 0.3]
    assert matrix.counts[:2].sum(1).tolist() == [15, 15] and matrix.counts[2, 2] == 0
    assert matrix.counts[:, :2].sum(0).tolist() == [shown.count(1), shown.count(2)]
    assert matrix.counts[:2, :2].sum() > 15 and matrix.counts[2].sum() > 0


@pytest.mark.parametrize(
    "truth, rows", [(TRUTH | {"annotations": []}, [(1, CUP, 0.9)]), (TRUTH, []), (TRUTH | {"annotations": []}, [])]
)
def test_nothing_found_or_nothing_to_find(truth, rows):
    matrix, found = judged(rows, truth)
    assert matrix.counts.sum() == len(truth["annotations"]) + len(rows)
    assert all(cost == 0 for cost in found.cost.values())
