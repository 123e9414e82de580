"""Flipped decisions are listed with their margin, and only rounding excuses them. Framework-free."""

import numpy as np
import pytest

from lib.alignment import verdict
from lib.alignment.decisions import FLIP, excuse, judge, legal_flip, nearness
from lib.alignment.margins import Margins
from lib.alignment.verdict import K, Row

CHOSEN = np.array([[0, 1, 2], [2, 1, 0]])
NEAR, FAR = 0.5 * K, 40.0


def margins(near=NEAR, options=(0, 1, 2)):
    """Everything is FAR but that (1, 2) might be 1."""
    floors = np.where(CHOSEN[..., None] == np.arange(3), 0.0, FAR)
    floors[1, 2, 1] = near
    return Margins(np.array(options), floors)


def flipped(*places):
    """Those come out as 1."""
    found = CHOSEN.copy()
    for at in places:
        found[at] = 1
    return found


def test_equal_decisions_pass_and_none_is_a_fault():
    [row] = judge("box", CHOSEN, CHOSEN, margins()).rows()
    assert row.passed and row.error == 0 and row.scale == 6
    assert judge("box", CHOSEN[:0], CHOSEN[:0], margins()).rows()[0].passed is False


@pytest.mark.parametrize("near, legal", [(NEAR, True), (float(K), True), (K * (1 + 1e-6), False), (np.inf, False)])
def test_a_flip_is_legal_only_below_the_gate(near, legal):
    whole, flip = judge("box", CHOSEN, flipped((1, 2)), margins(near)).rows()
    assert whole.passed is flip.passed is legal
    assert (flip.name, flip.what, flip.note) == ("box at (1, 2)", FLIP, "0 → 1")
    assert (flip.error, flip.reach, flip.gate) == (near, 1.0, K)
    assert legal or f"flipped at (1, 2): 0 → 1, margin {near:.4g} floors" == whole.note


def test_another_wrong_choice_at_a_toss_up_is_illegal():
    wrong = CHOSEN.copy()
    wrong[1, 2] = 2
    assert not judge("box", CHOSEN, wrong, margins()).rows()[0].passed
    wrong[1, 2] = 7
    assert not judge("box", CHOSEN, wrong, margins()).rows()[0].passed, "7 was no option"


def test_the_side_that_left_the_exact_choice_may_be_the_reference():
    assert judge("box", flipped((1, 2)), CHOSEN, margins()).rows()[0].passed
    assert not judge("box", flipped((0, 0)), CHOSEN, margins()).rows()[0].passed


def test_an_illegal_flip_is_worse_than_many_legal_ones_and_all_are_listed():
    found = judge("box", CHOSEN, flipped((0, 0), (1, 2)), margins())
    assert [row.passed for row in found.rows()] == [False, False, True] and "(0, 0)" in found.rows()[0].note
    assert verdict.conclude("decisions", "torch-jittor", found.rows(), []).verdict is verdict.Verdict.FAIL


def test_what_follows_a_flip_shares_its_margin_in_its_image():
    before = judge("selected", CHOSEN, flipped((1, 2)), margins())
    follow = judge("matched", CHOSEN, flipped((1, 0)), margins(FAR), before)
    assert (
        follow.rows()[1].passed and follow.flips[0].margin == NEAR and "after an earlier flip" in follow.rows()[1].note
    )
    assert not judge("matched", CHOSEN, flipped((0, 0)), margins(FAR), before).rows()[0].passed
    both = judge("selected", CHOSEN, flipped((1, 2), (1, 0)), margins())
    assert not judge("matched", CHOSEN, flipped((1, 0)), margins(FAR), both).rows()[0].passed, "one of them is illegal"


def test_what_both_sides_chose_otherwise_than_the_exact_scores_is_followed_too():
    both = flipped((1, 2))
    before = judge("selected", both, both, margins())
    assert not before.flips and before.astray == (0.0, NEAR)
    assert judge("matched", CHOSEN, flipped((1, 0)), margins(FAR), before).rows()[1].passed
    assert not judge("matched", CHOSEN, flipped((0, 0)), margins(FAR), before).rows()[0].passed


def test_nearness_counts_what_rounding_might_flip():
    found = nearness([judge("box", CHOSEN, CHOSEN, margins()), judge("bare", CHOSEN, CHOSEN)])
    assert found == {"decisions": 6, "flipped": 0, "within": 1, "nearest": NEAR, "nearest_name": "box"}
    assert nearness([judge("bare", CHOSEN, CHOSEN)]) == {}


# -------------------------------------------------------------------------------------------------------------- faults
def test_faults_are_named():
    def note(*arguments):
        return judge("box", *arguments).rows()[0].note

    assert "shape (3,)" in note(CHOSEN, CHOSEN[0], margins())
    assert "int32" in note(CHOSEN, CHOSEN.astype(np.int32), margins())
    assert "margins of shape (2, 3, 3)" in note(CHOSEN, CHOSEN, margins(options=(0, 1)))
    assert "NaN" in note(CHOSEN, CHOSEN, margins(np.nan))
    assert "no exact scores" in note(CHOSEN, flipped((1, 2)))


# --------------------------------------------------------------------------------------------------- what follows them
def row(name, passed, what="scalar"):
    return Row(name, what, 1.0, 0.1, 0.5, 1.0, passed)


@pytest.mark.parametrize(
    "ours, theirs, exact, excused",
    [
        ([], [(1, 2)], True, True),
        ([], [(1, 2)], False, False),
        ([], [(0, 0)], True, False),
        ([], [(1, 2), (0, 0)], True, False),
        ([], [], True, False),
        ([(1, 2)], [(1, 2)], True, True),  # both otherwise than the exact scores, with which results are compared
        ([(0, 0)], [(0, 0)], True, False),
    ],
)
def test_only_a_legal_flip_excuses_a_float32_row_whose_float64_run_passes(ours, theirs, exact, excused):
    held = [judge("dn/box", flipped(*ours), flipped(*theirs), margins())]
    rows = [
        row("dn/loss", False),
        row("dn/loss", exact, "scalar, float64"),
        row("dn/other", False),
        row("nodn/loss", False),
    ]
    found = excuse(rows, lambda one: legal_flip(held, f"{one.name.split('/')[0]}/"))
    assert [one.passed for one in found] == [None if excused else False, exact, False, False]
    assert not excused or found[0].note == "behind a legal flip of dn/box"
