"""Flipped decisions are listed with their margin, and only rounding excuses them. Framework-free; both environments."""
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lib.alignment import verdict
from lib.alignment.decisions import argmax, choices, listing, matching, suppression, threshold, topk
from lib.boxes import iou

FLOOR = 1e-6
SCORES = np.array([[0.9, 0.5, 0.1, 0.5 - 1e-7], [0.2, 0.8, 0.3, 0.1]])


def test_equal_decisions_pass_and_none_is_a_fault():
    ids = SCORES.argmax(1)
    assert argmax("class", SCORES, ids, ids, FLOOR).row().passed
    assert argmax("class", SCORES[:0], ids[:0], ids[:0], FLOOR).row().passed is False


@pytest.mark.parametrize("candidate, legal, margin", [([0, 3], True, 5e-8), ([0, 2], False, 0.2)])
def test_topk_flips_are_legal_only_below_the_floor(candidate, legal, margin):
    found = topk("queries", SCORES[:1], np.array([[0, 1]]), np.array([candidate]), FLOOR)
    [flip] = found.flips
    assert flip.legal is legal and flip.margin == pytest.approx(margin) and flip.reference == "1"
    assert found.row().passed is legal


def test_topk_in_another_order_is_the_same_set_and_a_repeated_id_is_a_fault():
    assert not topk("queries", SCORES[:1], np.array([[0, 1]]), np.array([[1, 0]]), FLOOR).flips
    assert "twice" in topk("queries", SCORES[:1], np.array([[0, 1]]), np.array([[0, 0]]), FLOOR).row().note


def test_argmax_gives_half_the_gap():
    found = argmax("class", SCORES, np.array([0, 1]), np.array([0, 2]), FLOOR)
    assert found.flips[0].where == (1,) and found.flips[0].margin == pytest.approx(0.25) and not found.row().passed
    assert "1 became 2, margin 0.25" in found.row().note


def test_threshold_gives_the_distance():
    values = np.array([0.05 + 1e-8, 0.07])
    found = threshold("score", values, 0.05, values > 0.05, np.array([False, False]), FLOOR)
    assert [flip.legal for flip in found.flips] == [True, False]


@given(hnp.arrays(float, (5, 12), elements=st.floats(-1, 1, width=32, allow_subnormal=False)), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_what_noise_below_the_floor_flips_is_legal(scores, seed):
    """Both decisions are taken from the same scores; the candidate's carry noise of at most the floor."""
    noisy = scores + np.random.default_rng(seed).uniform(-0.999 * FLOOR, 0.999 * FLOOR, scores.shape)
    best = [np.argsort(-s, 1, kind="stable")[:, :4] for s in (scores, noisy)]
    held = [topk("k", scores, *best, FLOOR), argmax("a", scores, *(b[:, 0] for b in best), FLOOR),
            threshold("t", scores, 0.1, scores > 0.1, noisy > 0.1, FLOOR)]
    assert all(kind.row().passed for kind in held)


@given(hnp.arrays(float, (4, 5), elements=st.floats(0, 1, width=16, allow_subnormal=False)), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_matching_that_noise_flips_is_legal(cost, seed):
    noisy = cost + np.random.default_rng(seed).uniform(-0.999 * FLOOR, 0.999 * FLOOR, cost.shape)
    ours, theirs = cheapest(cost), cheapest(noisy)
    assert matching("hungarian", cost, ours, theirs, FLOOR).row().passed


def cheapest(cost):
    """The column of each row in the cheapest matching, by trying all."""
    return np.array(min(permutations(range(cost.shape[1]), cost.shape[0]), key=lambda p: cost[range(len(p)), p].sum()))


def test_a_dearer_matching_is_illegal_and_one_that_is_none_is_a_fault():
    cost = np.array([[0.0, 0.3], [0.3, 0.0]])
    found = matching("hungarian", cost, np.array([0, 1]), np.array([1, 0]), FLOOR)
    assert len(found.flips) == 2 and found.flips[0].margin == pytest.approx(0.15) and not found.row().passed
    assert "one to one" in matching("hungarian", cost, np.array([0, 1]), np.array([0, 0]), FLOOR).row().note


# ---------------------------------------------------------------------------------------------------------------- NMS
BOXES = np.array([[0, 0, 10, 10], [0, 0, 10, 6.0001], [50, 50, 60, 60], [0, 6, 10, 10]], float)
FLOORS = {"iou": 1e-4, "score": 1e-6}


def kept(overlap_limit, boxes, scores):
    result, order = np.ones(len(boxes), bool), np.argsort(-scores, kind="stable")
    overlap = iou(boxes, boxes)
    for position, box in enumerate(order):
        if result[box]:
            result[[other for other in order[position + 1 :] if overlap[box, other] > overlap_limit]] = False
    return result


def test_an_overlap_at_the_limit_may_flip_and_no_other():
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6]), np.zeros(4, int)
    ours, theirs = kept(0.6, BOXES, scores), kept(0.6001, BOXES, scores)
    found = suppression("nms", BOXES, scores, labels, 0.6, ours, theirs, FLOORS)
    assert [flip.where for flip in found.flips] == [(1,)] and found.row().passed
    wrong = ours.copy()
    wrong[2] = False
    assert not suppression("nms", BOXES, scores, labels, 0.6, ours, wrong, FLOORS).row().passed
    other_class = suppression("nms", BOXES, scores, np.arange(4), 0.6, ours, theirs, FLOORS)
    assert not other_class.row().passed, "boxes of other classes excuse nothing"


def test_equal_boxes_of_close_scores_may_change_places():
    boxes, labels = np.array([[0, 0, 10, 10], [0, 0, 10, 10.5]], float), np.zeros(2, int)
    scores = np.array([0.5, 0.5 - 1e-7])
    assert suppression("nms", boxes, scores, labels, 0.6, np.array([True, False]), np.array([False, True]), FLOORS).row().passed
    scores = np.array([0.5, 0.4])
    assert not suppression("nms", boxes, scores, labels, 0.6, np.array([True, False]), np.array([False, True]), FLOORS).row().passed


def test_a_box_follows_the_flip_of_what_suppressed_it():
    """a suppresses b at the very limit; b, once kept, suppresses c."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6.0001], [0, 0, 10, 4.5]], float)
    scores, labels = np.array([0.9, 0.8, 0.7]), np.zeros(3, int)
    ours, theirs = kept(0.6, boxes, scores), kept(0.6001, boxes, scores)
    assert ours.tolist() == [True, False, True] and theirs.tolist() == [True, True, False]
    assert suppression("nms", boxes, scores, labels, 0.6, ours, theirs, FLOORS).row().passed


# -------------------------------------------------------------------------------------------------------------- faults
def test_faults_are_named():
    ids = np.array([0, 1])
    assert "shape" in choices("x", ids, np.array([0]), np.zeros(2), FLOOR).row().note
    assert "shape" in choices("x", ids, ids[::-1], np.zeros(3), FLOOR).row().note
    assert "id 4 of 4" in argmax("x", SCORES, ids, np.array([0, 4]), FLOOR).row().note
    spoiled = SCORES.copy()
    spoiled[1, 2] = np.nan
    assert "nan in the reference's scores at (1, 2)" in argmax("x", spoiled, ids, ids, FLOOR).row().note
    nan = choices("x", ids, ids[::-1], np.full(2, np.nan), FLOOR)
    assert not nan.row().passed and not nan.flips[0].legal


def test_the_list_names_every_flip_illegal_ones_first():
    held = [topk("queries", SCORES[:1], np.array([[0, 1]]), np.array([[0, 3]]), FLOOR),
            argmax("class", SCORES, np.array([0, 1]), np.array([2, 2]), FLOOR)]
    assert [(row["decision"], row["legal"]) for row in listing(held)] == [("class", False), ("class", False), ("queries", True)]
    assert verdict.conclude("decisions", "torch-jittor", [kind.row() for kind in held], []).verdict is verdict.Verdict.FAIL
