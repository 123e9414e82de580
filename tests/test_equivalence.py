"""The mAP difference: weighted accumulation against pycocotools, intervals, verdicts; means of repeated trainings."""

import numpy as np
import pytest

from lib import evaluation
from lib.alignment import equivalence
from lib.alignment.equivalence import ClassMatches, Matches, Outcome, mean_average_precision
from lib.errors import UserError


# ------------------------------------------------------------------------------------------------------- a data set
def data_set(images=24, classes=3, seed=0):
    """(truth, detections): boxes found with some error, missed, invented; a crowd and a class without a box."""
    rng = np.random.default_rng(seed)
    annotations, found = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 5)):
            x, y, w, h = *rng.uniform(0, 60, 2), *rng.uniform(10, 30, 2)
            category = int(rng.integers(1, classes + 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            if rng.random() < 0.8:
                moved = np.array([x, y, w, h]) + rng.normal(0, 1.5, 4)
                found.append(
                    {"image_id": image, "category_id": category, "bbox": moved.tolist(), "score": float(rng.random())}
                )
        for _ in range(rng.integers(0, 3)):
            found.append(
                {
                    "image_id": image,
                    "category_id": int(rng.integers(1, classes + 1)),
                    "score": float(rng.random()),
                    "bbox": [*rng.uniform(0, 60, 2), *rng.uniform(5, 30, 2)],
                }
            )
    truth = {
        "images": [{"id": i} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": c, "name": f"c{c}"} for c in range(1, classes + 2)],
    }
    return truth, found


def repeated(truth, found, weights):
    """The data set in which image i stands weights[i] times, under ids of its own."""
    images, annotations, detections = [], [], []
    for image, count in zip(truth["images"], weights):
        for _ in range(count):
            id_ = len(images) + 1
            images.append({"id": id_})
            annotations += [
                {**a, "id": len(annotations) + i, "image_id": id_}
                for i, a in enumerate((a for a in truth["annotations"] if a["image_id"] == image["id"]), 1)
            ]
            detections += [{**d, "image_id": id_} for d in found if d["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, detections


@pytest.mark.parametrize("seed", range(3))
def test_precision_over_recall_is_that_of_pycocotools(seed):
    truth, found = data_set(seed=seed)
    theirs = evaluation.evaluate(truth, found)
    ours = equivalence.precision(equivalence.matches(truth, found))
    np.testing.assert_allclose(ours, theirs.curves.precision, rtol=0, atol=1e-15)
    np.testing.assert_allclose(ours.mean((0, 1)), list(theirs.per_class.values()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_a_weighted_accumulation_is_pycocotools_over_repeated_images(seed):
    truth, found = data_set(seed=seed)
    draws = np.random.default_rng(seed).multinomial(24, np.full(24, 1 / 24), 4)
    ours = mean_average_precision(equivalence.matches(truth, found), np.concatenate([np.ones((1, 24), int), draws]))
    theirs = [evaluation.evaluate(truth, found).numbers["AP"]]
    theirs += [evaluation.evaluate(*repeated(truth, found, weights)).numbers["AP"] for weights in draws]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_blocks_do_not_change_the_result(monkeypatch):
    held = equivalence.matches(*data_set())
    draws = np.random.default_rng(0).multinomial(24, np.full(24, 1 / 24), 50)
    whole = mean_average_precision(held, draws)
    monkeypatch.setattr(equivalence, "BLOCK", 1)
    np.testing.assert_array_equal(mean_average_precision(held, draws), whole)


def test_nothing_to_find_is_no_number():
    truth, found = data_set()
    held = equivalence.matches({**truth, "annotations": []}, found)
    assert np.isnan(mean_average_precision(held, np.ones((1, 24), int))).all()


# --------------------------------------------------------------------------------------------------------- verdicts
def moved(found, pixels, seed=1):
    rng = np.random.default_rng(seed)
    return [{**d, "bbox": (np.array(d["bbox"]) + rng.normal(0, pixels, 4)).tolist()} for d in found]


def verdict(images, change, **options):
    truth, found = data_set(images=images)
    return equivalence.difference(
        equivalence.matches(truth, found), equivalence.matches(truth, change(found)), **options
    )


def test_identical_detections_are_equivalent():
    result = verdict(60, lambda found: found)
    assert result.outcome is Outcome.EQUIVALENT and result.difference == 0 and result.equivalence_interval == (0, 0)
    assert result.reference > 0.1, "there is something to compare"


def test_rounding_noise_is_equivalent():
    result = verdict(60, lambda found: moved(found, 1e-4))
    assert result.outcome is Outcome.EQUIVALENT and abs(result.difference) < 0.005


def test_a_planted_drop_is_different():
    result = verdict(200, lambda found: moved(found, 3))
    assert result.outcome is Outcome.DIFFERENT and result.difference < -0.05 and result.difference_interval[1] < 0


def test_few_images_are_underpowered():
    assert verdict(12, lambda found: moved(found, 0.7)).outcome is Outcome.UNDERPOWERED
    assert "too few" in verdict(2, lambda found: found).reason, (
        "not even equal detections: two images show nothing of others"
    )


def test_a_wider_margin_than_the_difference_makes_it_equivalent():
    result = verdict(200, lambda found: moved(found, 3))
    assert (
        verdict(200, lambda found: moved(found, 3), margin=1.1 * max(map(abs, result.difference_interval))).outcome
        is Outcome.EQUIVALENT
    )


def test_sides_that_find_nothing_are_not_equivalent():
    truth, found = data_set()
    nothing = equivalence.matches(truth, [])
    result = equivalence.difference(nothing, nothing)
    assert result.outcome is Outcome.UNDERPOWERED and "anything" in result.reason


def test_the_seed_gives_the_same_numbers_again():
    first, again, other = (verdict(30, lambda found: moved(found, 1), seed=seed) for seed in (0, 0, 1))
    assert first == again and first != other


def test_other_ground_truths_and_nan_are_refused():
    truth, found = data_set()
    with pytest.raises(ValueError, match="same ground truth"):
        equivalence.difference(equivalence.matches(truth, found), equivalence.matches(*data_set(seed=5)))
    with pytest.raises(UserError, match="detection 0 .*NaN"):
        equivalence.matches(truth, [{**found[0], "score": float("nan")}])


# -------------------------------------------------------------------------------------------------------- calibration
def world(images, rng, skill):
    """Synthetic matches of two sides over the same images: each of its own skill, the luck partly shared."""
    boxes = rng.integers(1, 5, images)
    image = np.repeat(np.arange(images), boxes)
    shared, sides = rng.random(len(image)), []
    for chance in skill:
        luck = np.where(rng.random(len(image)) < 0.7, shared, rng.random(len(image)))
        hit = luck < chance
        order = rng.permutation(len(image))
        found = hit[order][None]  # at one IoU
        sides.append(Matches(images, (ClassMatches(image[order], found, np.ones_like(found), boxes),)))
    return sides


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    """Level 0.90: of 300 intervals 270 are expected to cover; fewer than 250 or more than 290 has a chance below
    1e-3."""
    skill, rng = (0.7, 0.6), np.random.default_rng(0)
    one = np.ones((1, 4000), int)
    population = [
        np.mean([mean_average_precision(side, one)[0] for side in sides])
        for sides in zip(*(world(4000, rng, skill) for _ in range(10)))
    ]
    true = population[1] - population[0]
    covered = 0
    for repeat in range(300):
        result = equivalence.difference(*world(60, rng, skill), resamples=400, seed=repeat)
        covered += result.equivalence_interval[0] <= true <= result.equivalence_interval[1]
    assert 250 <= covered <= 290


def test_sides_of_equal_skill_are_seldom_called_different():
    """At most 5 % by construction: of 200 pairs 10 are expected, more than 22 has a chance below 1e-3."""
    rng = np.random.default_rng(1)
    outcomes = [equivalence.difference(*world(60, rng, (0.7, 0.7)), resamples=400, seed=i).outcome for i in range(200)]
    assert outcomes.count(Outcome.DIFFERENT) <= 22
    assert outcomes.count(Outcome.EQUIVALENT) <= 22, "sixty such images can't show one point"


# -------------------------------------------------------------------------------------------------- repeated trainings
def test_means_of_repeated_trainings_keep_their_level_and_power():
    """Of 120 right ports few are called different; the smallest difference is seen as often as it says."""
    rng = np.random.default_rng(0)
    draws = rng.normal(0.2, 0.03, (120, 2, 5))
    found = [equivalence.means(*draw) for draw in draws]
    assert sum(one.outcome is Outcome.DIFFERENT for one in found) <= 4
    assert all(one.outcome is not Outcome.EQUIVALENT or abs(one.difference) < equivalence.MARGIN for one in found)
    smallest = np.median([one.smallest for one in found])
    moved = [equivalence.means(reference, candidate + smallest) for reference, candidate in draws]
    assert 0.8 < np.mean([one.outcome is Outcome.DIFFERENT for one in moved]) < 0.98
    assert equivalence.means((0.2, 0.2), (0.2, 0.2)).outcome is Outcome.UNDERPOWERED, "nothing varied"
    assert equivalence.means((0.0, 0.0), (0.0, 0.0)).outcome is Outcome.UNDERPOWERED, "nothing was found"
