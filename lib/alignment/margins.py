"""How far scores would have to move for a discrete choice to be another one: its margin.

A margin is counted in floors: how many times its own noise each score involved would have to move. The option that
exact scores choose has margin 0; one that no error of a score can bring about has infinity. Where two things must both
happen the larger margin counts (np.maximum), where one suffices the smaller (np.minimum). Nothing here is judged.

Letters: r rows of scores, n scores of a row, o options of a choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy  # its parts come when they are asked for: optimize takes 0.3 s, which only RT-DETR's matcher needs

from lib.alignment.verdict import ROUNDING

TINY = 1e-200  # the size of scores that are all 0


@dataclass(frozen=True)
class Margins:
    """Of every choice of one kind, how far each option is."""

    options: np.ndarray  # (o,) int64: what may be chosen
    floors: np.ndarray  # (…, o): the choices' shape, and the options
    noise: Mapping[str, float] = field(default_factory=dict)  # the largest floor of each kind of score, in its own unit
    follows: str = ""  # the choice that decides what is chosen from here, image by image; "": none


def of_images(images: Sequence[tuple[np.ndarray, Mapping[str, float]]]) -> Margins:
    """For choices of a batch among no box and its images' boxes: per image margins (p, 1 + g), and the noise."""
    most = max(floors.shape[1] for floors, _ in images)
    floors = [np.pad(one, ((0, 0), (0, most - one.shape[1])), constant_values=np.inf) for one, _ in images]
    return Margins(np.arange(most), np.stack(floors), largest_noise([found for _, found in images]))


def largest_noise(images: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each kind of score's largest among the images."""
    kinds = dict.fromkeys(kind for found in images for kind in found)
    return {kind: max(found[kind] for found in images if kind in found) for kind in kinds}


def noise(exact: np.ndarray, rounded: np.ndarray, places: int) -> np.ndarray:
    """(r, 1) the floor of each row of scores (r, n) that compete for so many places.

    The largest deviation of those around the cut, from half as many places to twice as many; at least one rounding of
    their size. Far from the cut scores may be of another size and noise, but the gap is too.
    """
    near = np.argsort(-exact, 1, kind="stable")[:, places // 2 : 2 * places]
    first, second = (np.take_along_axis(scores.astype(np.float64), near, 1) for scores in (exact, rounded))
    size = np.abs(first).max(1, keepdims=True, initial=TINY)
    return np.maximum(np.abs(first - second).max(1, keepdims=True, initial=0.0), ROUNDING * size)


def among(scores: np.ndarray, floor: np.ndarray, count: int) -> np.ndarray:
    """(r, n, 2) margins of not being, and of being, among the `count` largest of scores (r, n); floor (r, 1).

    Two scores meet where each moves half the way: one falls out where it meets the best that was left out.
    """
    if count >= scores.shape[1]:
        return np.broadcast_to(np.array([np.inf, 0.0]), (*scores.shape, 2))
    falling = -np.sort(-scores, 1)
    last, following = falling[:, [count - 1]], falling[:, [count]]
    return np.maximum(np.stack([scores - following, last - scores], 2), 0) / (2 * floor[:, :, None])


def largest(scores: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """(r, n) margins of each score (r, n) to be its row's largest; floor: of the row's scores, (r or 1, n or 1)."""
    floor = np.broadcast_to(floor, scores.shape)
    reach = (scores[:, None, :] - scores[:, :, None]) / (floor[:, None, :] + floor[:, :, None])
    return np.maximum(reach.max(2), 0)


def whole(values: np.ndarray, floor: float, most: int) -> np.ndarray:
    """(r, most) margins of values (r,) to have 1, 2, … most as their whole part; what lies below 1 counts as 1."""
    counts = np.arange(1, most + 1)
    rise = np.where(counts > 1, counts - values[:, None], -np.inf)
    return np.maximum(np.maximum(rise, values[:, None] - counts - 1), 0) / floor


def settled_by(claims: np.ndarray, scores: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """(r, 1 + n) margins of a place to go to nobody and to each of n claimants.

    claims (r, n, 2): margins of not claiming it, and of claiming it. One who claims it alone has it; where more do, it
    goes to the one of largest score (r, n), whether that one claimed it or not; floor (r or 1, n).
    """
    unclaimed, claimed = claims[:, :, 0], claims[:, :, 1]
    others = np.stack([np.delete(unclaimed, one, 1).max(1, initial=0.0) for one in range(scores.shape[1])], 1)
    contested = np.sort(np.pad(claimed, ((0, 0), (0, 1)), constant_values=np.inf), 1)[:, [1]]  # at least two claim it
    to_each = np.minimum(np.maximum(claimed, others), np.maximum(contested, largest(scores, floor)))
    return np.concatenate([unclaimed.max(1, keepdims=True), to_each], 1)


def cheapest(cost: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """(r, n) margins of each row of cost (r, n), r <= n, to be given each column in the matching of least total cost.

    floor (r, n). A matching is explained by errors of every entry in which it differs from the cheapest: the least such
    error is found by Dinkelbach's iteration on "by how much is it dearer, per floor of these entries".
    """
    rows, best = scipy.optimize.linear_sum_assignment(cost)
    own = np.zeros(cost.shape, bool)
    own[rows, best] = True
    found = np.zeros(cost.shape)
    for row, column in zip(*np.nonzero(~own)):
        found[row, column] = _forced(cost, floor, own, row, column)
    return found


def _forced(cost: np.ndarray, floor: np.ndarray, own: np.ndarray, row: int, column: int) -> float:
    """The least margin of the matchings that give `row` this column."""
    away, margin, moved = np.arange(cost.shape[1]) != column, np.inf, cost.copy()
    while True:  # each matching found is nearer than the last, and there are finitely many
        moved[row, away] = np.inf
        other = np.zeros(cost.shape, bool)
        other[scipy.optimize.linear_sum_assignment(moved)] = True
        nearer = max(float(cost[other].sum() - cost[own].sum()), 0.0) / float(floor[other != own].sum())
        if not nearer < margin * (1 - 1e-9):
            return margin
        margin, moved = nearer, cost + nearer * np.where(own, floor, -floor)


def second_best_gap(cost: np.ndarray) -> float:
    """How much more the second cheapest assignment of cost (q, g) costs; infinite if there is no other."""
    pairs = list(zip(*scipy.optimize.linear_sum_assignment(cost)))
    best, others = sum(cost[pair] for pair in pairs), [np.inf]
    for pair in pairs if cost.size > 1 else ():  # every other assignment leaves out at least one of the pairs
        without = cost.astype(np.float64)
        without[pair] = np.inf
        others.append(without[scipy.optimize.linear_sum_assignment(without)].sum())
    return float(min(others) - best)


def suppression(overlap: np.ndarray, scores: np.ndarray, limit: float, floors: tuple[float, float]) -> np.ndarray:
    """(m, 2) margins of being suppressed, and of surviving, for boxes of a class, best first; floors: of IoU and score.

    A box falls where a better one that survives overlaps it by more than the limit. A worse one could be the better
    one: of that, whether it survives is not asked, so that a margin may be too small, never too large.
    """
    above, below = np.maximum(limit - overlap, 0) / floors[0], np.maximum(overlap - limit, 0) / floors[0]
    passing = np.abs(scores[:, None] - scores[None]) / (2 * floors[1])
    found = np.zeros((len(scores), 2))
    for box in range(len(scores)):
        better, worse = found[:box], np.maximum(above[box, box + 1 :], passing[box, box + 1 :])
        falls = np.maximum(better[:, 1], above[box, :box]).min(initial=np.inf)
        avoids = np.minimum(np.minimum(better[:, 0], below[box, :box]), passing[box, :box])
        found[box] = min(falls, worse.min(initial=np.inf)), avoids.max(initial=0.0)
    return found


def cut(survival: np.ndarray, scores: np.ndarray, floor: float, limit: int) -> np.ndarray:
    """(m, 2) margins of not being, and of being, one of the `limit` best survivors; survival (m, 2): of `suppression`.

    To enter takes that as many survivors before a box as are too many fall or are passed; to leave, that as many others
    as there are places behind it survive and stand before it.
    """
    alive, found = survival[:, 1] == 0, survival.copy()
    for box, score in enumerate(scores):
        passed = np.maximum(score - scores, 0) / (2 * floor), np.maximum(scores - score, 0) / (2 * floor)
        before = alive & (scores > score)
        gone = np.minimum(survival[before, 0], passed[1][before])
        come = np.maximum(survival[:, 1], passed[0])[~before & (np.arange(len(scores)) != box)]
        found[box, 0] = min(found[box, 0], _smallest(come, limit - len(gone)))
        found[box, 1] = max(found[box, 1], _smallest(gone, len(gone) + 1 - limit))
    return found


def _smallest(values: np.ndarray, count: int) -> float:
    """The least margin of `count` of these things together: 0 for none, infinite for more than there are."""
    if count <= 0:
        return 0.0
    return float(np.partition(values, count - 1)[count - 1]) if count <= len(values) else np.inf
