"""How far scores are from another choice: rules against noise, the families at real near ties; both environments."""

import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import backend, losses
from lib.alignment import by_family, references
from lib.alignment.decisions import judge
from lib.alignment.margins import among, cheapest, cut, largest, noise, settled_by, suppression, whole
from lib.data.boxes import iou, priors
from lib.losses import gold_yolo, nanodet_plus
from lib.models.nanodet_plus import STRIDES
from lib.postprocess import Candidates

SEEDS = st.integers(0, 2**32 - 1)


def coarse(rng, *shape):
    """Scores with ties and gaps of the size of the noise below."""
    return rng.integers(0, 7, shape) / 4


def moved(rng, scores, floor, times):
    """Each score off by at most so many of its floors."""
    return scores + rng.uniform(-times, times, scores.shape) * floor


def at(margins, chosen):
    return np.take_along_axis(margins, chosen[..., None], -1)[..., 0]


# --------------------------------------------------------------------------------------------------------------- rules
@settings(max_examples=80)
@given(SEEDS, st.integers(1, 8), st.floats(0.01, 3))
def test_noise_flips_nothing_beyond_its_size(seed, count, times):
    rng = np.random.default_rng(seed)
    scores, floor = coarse(rng, 5, 9), rng.uniform(0.05, 0.4, (5, 1))
    noisy = moved(rng, scores, floor, times)
    member = np.zeros(scores.shape, int)
    np.put_along_axis(member, np.argsort(-noisy, 1)[:, :count], 1, 1)
    assert (at(among(scores, floor, count), member) <= times * (1 + 1e-9)).all()
    assert (at(largest(scores, floor), noisy.argmax(1)) <= times * (1 + 1e-9)).all()
    values = noisy.sum(1)
    counted = np.clip(values.astype(int), 1, 20)
    assert (at(whole(scores.sum(1), 9 * floor.max(), 20), counted - 1) <= times * (1 + 1e-9)).all()


@settings(max_examples=40)
@given(SEEDS)
def test_the_cheapest_matching_against_all_there_are(seed):
    """The least error that makes a matching with this pair as cheap as the best one, tried out on every matching."""
    rng = np.random.default_rng(seed)
    cost, floor = rng.random((3, 4)), rng.uniform(0.5, 2, (3, 4))
    rows = np.arange(3)
    every = [np.array(columns) for columns in permutations(range(4), 3)]
    best = min(every, key=lambda columns: cost[rows, columns].sum())
    expected = np.full(cost.shape, np.inf)
    for columns in every:
        differs = columns != best
        allowed = floor[rows, columns][differs].sum() + floor[rows, best][differs].sum()
        margin = (cost[rows, columns].sum() - cost[rows, best].sum()) / allowed if differs.any() else 0.0
        expected[rows, columns] = np.minimum(expected[rows, columns], margin)
    np.testing.assert_allclose(cheapest(cost, floor), expected, rtol=1e-9, atol=1e-12)


def test_margins_by_hand():
    scores, floor = np.array([[0.9, 0.5, 0.1, 0.5 - 1e-7]]), np.array([[1e-6]])
    np.testing.assert_allclose(among(scores, floor, 2)[0, :, 1], [0, 0, 2e5, 0.05], rtol=1e-6)
    np.testing.assert_allclose(among(scores, floor, 2)[0, :, 0], [2e5, 0.05, 0, 0], rtol=1e-6)
    assert (among(scores, floor, 4) == [np.inf, 0]).all(), "nothing is left out"
    np.testing.assert_allclose(largest(scores, floor), [[0, 2e5, 4e5, 2e5]], rtol=1e-6)
    np.testing.assert_allclose(whole(np.array([0.4, 2.5]), 0.1, 3), [[0, 16, 26], [5, 0, 5]])


def test_noise_is_that_of_scores_near_the_cut_and_never_below_a_rounding():
    exact = np.array([[8.0, 4.0, 2.0, 1.0, 0.5, 0.25]])
    off = exact + [[1.0, 0.03, 0.02, 0.01, 0.5, 0.5]]
    assert noise(exact, off, 2) == pytest.approx(0.03), "neither the largest, nor those that are far behind"
    assert noise(exact, exact, 2) == 4 * 2.0**-24
    assert np.isnan(noise(exact, off + np.nan, 2)).all(), "what is no number excuses nothing"


# ----------------------------------------------------------------------------------------------------- suppression
def crowd(rng, count):
    """Boxes of one class that overlap a lot, best first, and their scores."""
    low = rng.integers(0, 4, (count, 2)).astype(float)
    found = np.concatenate([low, low + rng.integers(2, 6, (count, 2))], 1) + rng.normal(0, 0.01, (count, 4))
    return found, np.sort(np.round(rng.random(count), 2) + 1e-6 * rng.random(count))[::-1]


def survivors(overlap, scores, limit, places):
    order, kept = np.argsort(-scores, kind="stable"), np.zeros(len(scores), int)
    while order.size and kept.sum() < places:
        best, order = order[0], order[1:]
        kept[best], order = 1, order[overlap[best, order] <= limit]
    return kept


@settings(max_examples=150)
@given(SEEDS, st.integers(2, 13), st.integers(1, 6), st.sampled_from((0.05, 0.3, 1, 3)))
def test_suppression_and_the_last_place(seed, count, places, times):
    rng = np.random.default_rng(seed)
    rows, scores = crowd(rng, count)
    overlap, floors = iou(rows, rows), (0.05, 0.02)
    margins = cut(suppression(overlap, scores, 0.45, floors), scores, floors[1], places)
    assert (at(margins, survivors(overlap, scores, 0.45, places)) <= 1e-9).all()
    off = np.triu(rng.uniform(-times, times, overlap.shape) * floors[0], 1)
    noisy = survivors(overlap + off + off.T, moved(rng, scores, floors[1], times), 0.45, places)
    assert (at(margins, noisy) <= times * (1 + 1e-9)).all()


def test_a_near_miss_is_listed_and_what_is_far_from_it_is_not():
    """The second box overlaps the first at the very limit, 0.6; the third far from it, the fourth is alone."""
    rows = np.array([[0, 0, 10, 10], [0, 0, 10, 6 + 1e-7], [0, 0, 10, 9], [50, 50, 60, 60]])
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    exact = Candidates(np.arange(4), rows, rows, scores, np.zeros(4, int))
    single = Candidates(np.arange(4), *(x.astype(np.float32) for x in (rows, rows, scores)), np.zeros(4, int))
    found, floors = by_family.other_fates(exact, single, 0.6, 100, 5)
    np.testing.assert_allclose(found[:, :6], [[*rows[1], 0.8, 0]], atol=1e-6)
    assert 0 < found[0, 6] < 5 and floors["IoU"] >= 2.0**-24
    assert len(by_family.other_fates(exact, single, 0.5, 100, 5)[0]) == 0
    other = Candidates(np.arange(4), rows, rows, scores, np.arange(4))
    assert len(by_family.other_fates(other, other, 0.6, 100, 5)[0]) == 0, "boxes of other classes suppress nothing"


# ----------------------------------------------------------------------------------------------- the assigners' algebra
@settings(max_examples=60)
@given(SEEDS, st.floats(0.01, 1.5))
def test_dynamic_soft_label_assignment(seed, times):
    rng = np.random.default_rng(seed)
    places, boxes = rng.integers(3, 25), rng.integers(1, 5)
    iou, cost = rng.integers(0, 6, (places, boxes)) / 6, coarse(rng, places, boxes)
    floor, total = rng.uniform(0.05, 0.3, (boxes, 1)), 0.3
    margins = by_family.dynamic_k(iou, cost, floor, total)
    assert (at(margins, numbers(nanodet_plus.settled(iou, cost))) <= 1e-9).all()
    noisy = nanodet_plus.settled(moved(rng, iou, total / min(13, places), times), moved(rng, cost, floor.T, times))
    assert (at(margins, numbers(noisy)) <= times * (1 + 1e-9)).all()


def numbers(matched):
    """(v,) 0, or the number, from 1, of the one column that is set."""
    return np.where(matched.any(1), matched.argmax(1) + 1, 0)


@settings(max_examples=60)
@given(SEEDS, st.floats(0.01, 1.5), st.integers(1, 5))
def test_task_aligned_assignment(seed, times, count):
    """Its two stages, on scores that are moved themselves."""
    rng = np.random.default_rng(seed)
    metric, overlap, inside = coarse(rng, 3, 12) + 0.1, coarse(rng, 3, 12), rng.random((3, 12)) < 0.7
    floor = rng.uniform(0.02, 0.1, (3, 1))
    claims = np.where(inside[:, :, None], among(metric * inside, floor, count), [0.0, np.inf])
    margins = settled_by(claims.transpose(1, 0, 2), overlap.T, floor.T)
    noisy = moved(rng, metric, floor, times)
    taken = gold_yolo.largest(noisy * inside, count) & inside
    settled = gold_yolo.settle(taken, moved(rng, overlap, floor, times))
    assert (at(margins, numbers(settled.T)) <= times * (1 + 1e-9)).all()


# ------------------------------------------------------------------------------------------------- the three families
SIZE = (64, 64)
TARGETS = [
    {"boxes": np.array([[4.0, 6, 40, 44], [20, 16, 60, 60], [30, 2, 62, 30]]), "labels": np.array([1, 0, 2])},
    {"boxes": np.array([[10.0, 10, 50, 50]]), "labels": np.array([2])},
]
CELLS = sum((64 // stride) ** 2 for stride in (8, 16, 32, 64))


def nanodet(rng):
    head = rng.standard_normal((2, CELLS, 3 + 32))
    return lambda kind: (None, backend.tensor(head.astype(kind))), [head]


def gold(rng):
    logits, sides = rng.standard_normal((2, CELLS - 1, 3)), rng.uniform(0.5, 3, (2, CELLS - 1, 4))
    return lambda kind: [backend.tensor(one.astype(kind)) for one in (logits, sides)], [logits, sides]


def rt_detr(rng):
    """One prediction of 20 queries, chosen from 84 tokens."""
    scores, logits, boxes = (
        rng.standard_normal((2, 84)),
        rng.standard_normal((2, 84, 3)),
        rng.uniform(0.2, 0.6, (2, 84, 4)),
    )

    def outputs(kind):
        held = [one.astype(kind) for one in (scores, logits, boxes)]
        tokens = np.argsort(-held[0], 1, kind="stable")[:, :20]
        rows = [np.take_along_axis(one, tokens[..., None], 1) for one in held[1:]]
        return {
            "pred_logits": backend.tensor(rows[0]),
            "pred_boxes": backend.tensor(rows[1]),
            "selected_tokens": backend.tensor(tokens),
            "token_scores": backend.tensor(held[0]),
        }

    return outputs, [scores, logits, boxes]


FAMILIES = {"nanodet-plus-m_320": nanodet, "gold-yolo-n": gold, "rtdetr_r18vd": rt_detr}


class Scene:
    """A family's criterion on outputs on the way from one random set, at 0, to another, at 1."""

    def __init__(self, name, seed):
        self.name, self.criterion = name, losses.build(name, 3)
        self.outputs, self.held = FAMILIES[name](np.random.default_rng(seed))
        self.ends = [array.copy() for array in self.held], FAMILIES[name](np.random.default_rng(seed + 1))[1]

    def move(self, share):
        for array, first, last in zip(self.held, *self.ends):
            array[...] = (1 - share) * first + share * last

    def decisions(self, share, kind=np.float64):
        self.move(share)
        return by_family.decisions(self.name, self.criterion, self.outputs(kind), TARGETS, SIZE)

    def margins(self, share):
        self.move(share)
        return by_family.margins(
            self.name, self.criterion, self.outputs(np.float64), self.outputs(np.float32), TARGETS, SIZE
        )

    def tie(self, kind):
        """Two points a hair apart between which a decision of this kind flips."""
        low, high = 0.0, 1.0
        first = self.decisions(low)[kind]
        assert (self.decisions(high)[kind] != first).any()
        while high - low > 1e-12:
            middle = (low + high) / 2
            low, high = (middle, high) if (self.decisions(middle)[kind] == first).all() else (low, middle)
        return low, high


KINDS = [
    ("nanodet-plus-m_320", "gt_inds"),
    ("gold-yolo-n", "gt_inds"),
    ("gold-yolo-n", "target_labels"),
    ("rtdetr_r18vd", "selected_tokens"),
    ("rtdetr_r18vd", "matched_tokens/final"),
]


@pytest.mark.parametrize("name, kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_a_real_near_tie_is_legal_and_a_moved_cost_is_not(name, kind, seed):
    scene = Scene(name, seed)
    low, high = scene.tie(kind)
    ours, theirs, margins = scene.decisions(low), scene.decisions(high), scene.margins(low)
    for label, held in margins.items():
        assert (at(held.floors, np.searchsorted(held.options, ours[label])) <= 1e-6).all(), "the exact choice is at 0"
    first = margins[kind].follows
    before = judge(first, ours[first], theirs[first], margins[first]) if first else None
    found = judge(kind, ours[kind], theirs[kind], margins[kind], before)
    assert found.flips and all(flip.legal for flip in found.flips) and found.within > 0
    far = judge(kind, ours[kind], scene.decisions(1)[kind], margins[kind])
    assert far.illegal and len(far.flips) > len(found.flips)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_float32_run_flips_nothing_illegally(name):
    for seed in range(4):
        scene = Scene(name, 10 + seed)
        for label, margins in scene.margins(0.0).items():
            found = judge(label, scene.decisions(0.0)[label], scene.decisions(0.0, np.float32)[label], margins)
            assert not found.illegal and not found.fault


@pytest.mark.parametrize("name", FAMILIES)
def test_images_without_boxes_have_margins_too(name):
    scene = Scene(name, 0)
    nothing = [{"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}] * 2
    outputs = scene.outputs(np.float64)
    decided = by_family.decisions(name, scene.criterion, outputs, nothing, SIZE)
    margins = by_family.margins(name, scene.criterion, outputs, scene.outputs(np.float32), nothing, SIZE)
    assert set(margins) == set(decided)
    for label, held in margins.items():
        assert held.floors.shape == (*decided[label].shape, len(held.options))


def test_geometry_alone_decides_atss():
    """No score of the model enters: no error of one flips a choice."""
    scene = Scene("gold-yolo-n", 0)
    scene.criterion.atss_epochs = 1
    held = scene.margins(0.0)["gt_inds"]
    assert set(np.unique(held.floors)) == {0.0, np.inf} and held.noise == {}
    assert (held.options[held.floors.argmin(-1)] == scene.decisions(0.0)["gt_inds"]).all()


# --------------------------------------------------------------------------------------------- the published margins
def gap_at(scores, count):
    """The gap between the last chosen score and the next: where each moves half of it they meet."""
    margins = among(scores, np.ones((len(scores), 1)), count)
    chosen = margins[:, :, 1] == 0
    return 2 * np.where(chosen, margins[:, :, 0], np.inf).min(1)


def test_margins_of_dynamic_soft_label_assignment_as_published(golden):
    content = json.loads((golden / "nanodet_plus" / "train_m_320_20cls.json").read_text())["assignment"]
    with np.load(golden / "nanodet_plus" / "train_m_320_20cls.npz") as stored:
        output = stored["aux_head_out"]
    case = references.case("nanodet-plus-m_320", "loss")
    cells, largest = priors(case.size, STRIDES), 0.0
    for image, target, single, double in zip(
        output, case.targets, content["margins_f32"], content["margins_f64"], strict=True
    ):
        valid = nanodet_plus.inside(cells, target["boxes"]).any(1)
        iou, cost = nanodet_plus.scored(image[valid], cells[valid], target["boxes"], target["labels"])
        assert nanodet_plus.best_ious(iou) == pytest.approx(single["topk_iou_sum_per_gt"], rel=1e-6)
        key = "cost_gap_between_last_chosen_and_first_not_chosen"
        largest = max(largest, np.abs(np.subtract(single[key], double[key])).max())
        for box, (count, gap) in enumerate(zip(single["dynamic_k_per_gt"], single[key], strict=True)):
            assert gap_at(-cost[:, box][None], count) == pytest.approx(gap, abs=1e-5)
    assert 1e-5 < largest < 1e-3, "what float32 does to a gap: the floor of a cost is of this size"


def test_margins_of_the_selection_as_published(golden):
    content = json.loads((golden / "rt_detr" / "forward_r18vd_320.json").read_text())["selection"]
    with np.load(golden / "rt_detr" / "forward_r18vd_320.npz") as stored:
        scores, tokens = stored["enc_max_scores"][None], stored["topk_ind"]
    assert gap_at(scores, 300) == pytest.approx(content["f32"]["boundary_gap"], abs=1e-6)
    exact = scores + np.random.default_rng(0).uniform(-1, 1, scores.shape) * content["score_noise_max_abs_f32_f64"]
    held = by_family.selected(exact, scores, 300)
    assert np.flatnonzero(held.floors[0, :, 1] == 0).tolist() == sorted(tokens) and held.floors.max(-1).min() > 100
