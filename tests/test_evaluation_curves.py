"""Matching and precision against pycocotools; the best threshold by trying all of them."""

import json

import numpy as np
import pytest

from lib import evaluation
from lib.evaluation import curves, table


@pytest.fixture(scope="module")
def sample():
    """Forty images, three classes, crowds, duplicates, confusions, equal scores."""
    rng = np.random.default_rng(5)
    truth = {
        "images": [{"id": i} for i in range(40)],
        "annotations": [],
        "categories": [{"id": c, "name": n} for c, n in ((2, "cup"), (5, "egg"), (9, "pan"), (11, "none"))],
    }
    found = []
    for image in range(40):
        boxes = np.concatenate([rng.uniform(0, 200, (5, 2)), rng.uniform(10, 90, (5, 2))], 1)
        labels = rng.choice([2, 5, 9], 5)
        for box, label in zip(boxes.tolist(), labels.tolist()):
            crowd = int(rng.random() < 0.15)
            truth["annotations"].append({"image_id": image, "category_id": label, "bbox": box, "iscrowd": crowd})
        for _ in range(25):
            pick = rng.integers(5)
            box = boxes[pick] + rng.normal(0, 8, 4) * [1, 1, 0.5, 0.5]
            found.append(
                {
                    "image_id": image,
                    "category_id": int(rng.choice([labels[pick], 2])),
                    "bbox": np.maximum(box, 1).tolist(),
                    "score": round(float(rng.random()), 2),
                }
            )
    return truth, found


@pytest.mark.parametrize("iou", [0.5, 0.75, 0.95])
def test_our_matching_gives_the_average_precision_of_pycocotools(sample, iou):
    held = table.table(*sample)
    matching = table.match(held, table.overlaps(held, 0.1), iou)
    expected = evaluation.evaluate(*sample).curves.at(iou)
    for label in range(3):
        mine = matching.counts & (held.found.label == label)
        total = int((~held.truth.ignored & (held.truth.label == label)).sum())
        ours = curves.average_precision((matching.partner >= 0)[mine], total)
        assert ours == pytest.approx(expected[:, label].mean(), abs=1e-12)
    assert (expected[:, 3] == -1).all() and curves.average_precision(np.zeros(0, bool), 0) == -1


def test_matching_of_real_detections_is_that_of_pycocotools(shared):
    folder = shared / "real" / "eval_coco_val2014_100"
    truth, found = (json.loads((folder / name).read_text()) for name in ("gt.json", "dt.json"))
    result = evaluation.evaluate(truth, found)
    held = table.table(truth, found)
    matching = table.match(held, table.overlaps(held, 0.5))
    values = []
    for label in np.unique(held.truth.label[~held.truth.ignored]):
        mine = matching.counts & (held.found.label == label)
        total = int((~held.truth.ignored & (held.truth.label == label)).sum())
        values.append(curves.average_precision((matching.partner >= 0)[mine], total))
    assert np.mean(values) == pytest.approx(result.numbers["AP50"], abs=1e-12)


def test_the_curves_are_the_arrays_behind_the_numbers(sample):
    result = evaluation.evaluate(*sample)
    assert result.curves.classes == ("cup", "egg", "pan", "none")
    assert result.curves.precision.shape == (10, 101, 4) == result.curves.score.shape
    assert result.curves.mean(0.5).mean() == pytest.approx(result.numbers["AP50"], abs=1e-12)
    assert np.mean([result.curves.mean(iou).mean() for iou in result.curves.iou]) == pytest.approx(result.numbers["AP"])
    with pytest.raises(ValueError, match="0.52 is none of 0.50"):
        result.curves.at(0.52)
    empty = sample[0] | {"annotations": []}
    assert evaluation.evaluate(empty, []).curves.mean(0.5).size == 0


def test_the_best_threshold_beats_every_other(sample):
    held = table.table(*sample)
    matching = table.match(held, table.overlaps(held, 0.5))
    best = curves.best_thresholds(held, matching)
    assert list(best) == ["all", "cup", "egg", "pan", "none"]
    for label, name in ((None, "all"), (0, "cup"), (2, "pan")):
        of = matching.counts & ((held.found.label == label) if label is not None else True)
        total = int((~held.truth.ignored & ((held.truth.label == label) if label is not None else True)).sum())
        tried = {}
        for threshold in np.unique(held.found.score):
            kept = of & (held.found.score >= threshold)
            tried[threshold] = 2 * int((matching.partner[kept] >= 0).sum()) / (int(kept.sum()) + total)
        assert best[name].f1 == pytest.approx(max(tried.values())) == pytest.approx(tried[best[name].threshold])
        assert best[name].correct + best[name].missed == total
        assert best[name].precision == best[name].correct / (best[name].correct + best[name].wrong)
    assert np.isnan(best["none"].threshold) and best["none"].f1 == 0


def test_a_threshold_cannot_cut_between_equal_scores():
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.5} for box in ([0, 0, 10, 10], [50, 50, 10, 10])]
    held = table.table(truth, found)
    best = curves.best_thresholds(held, table.match(held, table.overlaps(held, 0.5)))["cup"]
    assert (best.correct, best.wrong, best.precision, best.recall) == (1, 1, 0.5, 1.0)


def test_only_the_best_hundred_of_a_class_in_an_image_take_part():
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "egg"}],
        "annotations": [],
    }
    found = [{"image_id": 1, "category_id": 1 + i % 2, "bbox": [0, 0, 1, 1], "score": i / 300} for i in range(300)]
    held = table.table(truth, found)
    assert len(held.found.score) == 200 and held.found.score.min() == 100 / 300
    assert len(table.table(truth, found, per_class=None).found.score) == 300


def test_overlaps_are_those_of_every_pair_in_an_image(sample):
    held = table.table(*sample)
    truth, found, pairs = held.truth, held.found, table.overlaps(held, 0.1)
    expected = []
    for i, (x, y, right, bottom) in enumerate(found.box.tolist()):
        for j, (u, v, p, q) in enumerate(truth.box.tolist()):
            width, height = min(right, p) - max(x, u), min(bottom, q) - max(y, v)
            inside = max(width, 0) * max(height, 0) if found.image[i] == truth.image[j] else 0
            own, other = (right - x) * (bottom - y), (p - u) * (q - v)
            iou = inside / (own if truth.crowd[j] else own + other - inside)
            expected += [(i, j, iou)] if iou >= 0.1 else []
    assert len(expected) > 300
    np.testing.assert_array_equal(np.stack([pairs.found, pairs.truth], 1), [row[:2] for row in expected])
    np.testing.assert_allclose(pairs.iou, [row[2] for row in expected], rtol=1e-12)


def test_one_to_one_is_the_greedy_choice():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 12, 60), rng.integers(0, 9, 60)
    greedy, taken_a, taken_b = [], set(), set()
    for index, (a, b) in enumerate(zip(first, second)):
        if a not in taken_a and b not in taken_b:
            greedy.append(index)
            taken_a.add(a)
            taken_b.add(b)
    assert table.one_to_one(first, second).tolist() == greedy
