"""Comparing named tensors so that nothing passes by accident.

Names, shapes and types come first, then NaN and Inf, and only then numbers; every metric is elementwise, so that a
permuted or reversed tensor can't pass. Nothing is intersected, broadcast or cast in silence. Whether a deviation is
acceptable is not said here (`lib.alignment.verdict`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lib.alignment.diagnosis import explain

WRONG = 1e-2  # relative L2 beyond rounding: from here on a tensor is looked at for what it is; decides nothing else


@dataclass(frozen=True)
class Comparison:
    """What one tensor's comparison shows; the metrics are NaN where `fault` says why there are none.

    `max_abs`, `l2` and `along` measure candidate - reference, `scale_max` and `scale_l2` the reference.
    """

    name: str
    fault: str | None  # None: comparable; otherwise a failure whatever the gate
    size: int
    max_abs: float
    l2: float
    along: float  # what of l2 lies along the reference: of a relative error all, of noise next to nothing
    differing: int  # elements that are not equal
    worst: tuple[int, ...]  # where max_abs is
    scale_max: float
    scale_l2: float
    diagnosis: str | None = None  # what a wrong tensor looks like, in words; never a reason to pass

    @property
    def relative_l2(self) -> float:
        """L2 of the difference over L2 of the reference; 0 where both are zero."""
        if self.l2 == 0:
            return 0.0
        return self.l2 / self.scale_l2 if self.scale_l2 else float("inf")


def compare_sets(
    reference: Mapping[str, np.ndarray],
    candidate: Mapping[str, np.ndarray],
    dtype: str | None = None,
    diagnosed: bool = True,
) -> list[Comparison]:
    """One Comparison per name on either side, the reference's order first; never an empty list.

    `dtype` is what the candidate's real numbers must have where that is not the reference's own (a float32 run against
    float64). `diagnosed`: whether to look for what a wrong tensor is, which takes as long as ten comparisons.
    """
    if not reference and not candidate:
        return [_faulty("(nothing)", "empty comparison: neither side holds a tensor")]
    results = [
        compare(name, array, candidate[name], dtype, diagnosed) if name in candidate else _faulty(name, "missing")
        for name, array in reference.items()
    ]
    return results + [
        _faulty(name, "left over: the reference has no such entry") for name in candidate if name not in reference
    ]


def compare(
    name: str, reference: np.ndarray, candidate: np.ndarray, dtype: str | None = None, diagnosed: bool = True
) -> Comparison:
    """Compare two tensors: shape, then type, then NaN and Inf, then values in float64; `diagnosed` as for sets."""
    reference, candidate = np.asarray(reference), np.asarray(candidate)
    expected = dtype if dtype and reference.dtype.kind == "f" else reference.dtype.name
    if reason := _incomparable(reference, candidate, expected):
        return _faulty(name, reason, reference.size)
    differing = int(np.count_nonzero(reference != candidate))  # exact also for integers beyond 2**53
    a, b = (array.astype(np.float64, copy=False) for array in (reference, candidate))
    difference = np.subtract(b, a, out=np.empty_like(a))
    np.abs(difference, out=difference)
    worst = np.unravel_index(int(np.argmax(difference)), difference.shape)
    l2, scale_l2 = norm(difference), norm(a)
    fault = "all zero where the reference is not" if scale_l2 > 0 and norm(b) == 0 else None
    wrong = diagnosed and fault is None and l2 > WRONG * scale_l2
    return Comparison(
        name=name,
        fault=fault,
        size=reference.size,
        max_abs=float(difference[worst]),
        l2=l2,
        along=along(a, b - a),
        differing=differing,
        worst=tuple(int(i) for i in worst),
        scale_max=max(abs(float(a.max())), abs(float(a.min()))),
        scale_l2=scale_l2,
        diagnosis=explain(a, b) if wrong else None,
    )


def norm(array: np.ndarray) -> float:
    """L2 norm over all elements in float64, added in pairs: not by BLAS, whose last bits depend on its threads."""
    return math.sqrt(np.square(np.ravel(array), dtype=np.float64).sum())


def along(reference: np.ndarray, deviation: np.ndarray) -> float:
    """|<deviation, reference>| / norm(reference): 0 where the reference is zero."""
    length = norm(reference)
    return abs(float(np.vdot(reference, deviation))) / length if length else 0.0


def _incomparable(reference: np.ndarray, candidate: np.ndarray, dtype: str) -> str | None:
    """Why the two can't be compared, or None."""
    if reference.shape != candidate.shape:
        said = f"shape {candidate.shape} where the reference has {reference.shape}"
        alike = reference.size == candidate.size > 0 and np.isfinite(reference).all() and np.isfinite(candidate).all()
        found = explain(reference, candidate) if alike else None
        return f"{said}; {found}" if found else said
    if candidate.dtype.name != dtype:
        return f"type {candidate.dtype.name} where {dtype} is expected"
    if reference.size == 0:
        return "no elements"
    for who, array in (("", candidate), (" in the reference", reference)):
        if not np.isfinite(array).all():
            bad = ~np.isfinite(array)
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            return f"{array[where]}{who} at {where}, {int(bad.sum())} such values"
    return None


def _faulty(name: str, fault: str, size: int = 0) -> Comparison:
    nan = float("nan")
    return Comparison(name, fault, size, nan, nan, nan, 0, (), nan, nan)


@dataclass(frozen=True)
class Pairing:
    """Detections of two sides, paired one to one; `pairs` holds (row in reference, row in candidate)."""

    pairs: tuple[tuple[int, int], ...]
    only_reference: tuple[int, ...]
    only_candidate: tuple[int, ...]
    box: float  # largest difference of a coordinate over the pairs, pixels; 0 without pairs
    score: float  # largest difference of a score over the pairs


def match_detections(reference: np.ndarray, candidate: np.ndarray, radius: float = 1.0) -> Pairing:
    """Pair detections (m, 7: image id, x1, y1, x2, y2, score, label), (k, 7) of equal image and label.

    Nearest boxes pair first; boxes farther apart than `radius` pixels in any coordinate are different detections.
    """
    groups: dict[tuple[float, float], tuple[list[int], list[int]]] = {}
    for side, rows in enumerate((reference, candidate)):
        for index, row in enumerate(rows):
            groups.setdefault((row[0], row[6]), ([], []))[side].append(index)
    pairs = sorted(pair for a, b in groups.values() for pair in _nearest(reference, candidate, a, b, radius))
    taken = [{pair[side] for pair in pairs} for side in (0, 1)]
    gaps = np.array([np.abs(reference[a] - candidate[b]) for a, b in pairs]).reshape(-1, 7)
    return Pairing(
        pairs=tuple(pairs),
        only_reference=tuple(i for i in range(len(reference)) if i not in taken[0]),
        only_candidate=tuple(i for i in range(len(candidate)) if i not in taken[1]),
        box=float(gaps[:, 1:5].max(initial=0.0)),
        score=float(gaps[:, 5].max(initial=0.0)),
    )


def _nearest(
    reference: np.ndarray, candidate: np.ndarray, a: list[int], b: list[int], radius: float
) -> list[tuple[int, int]]:
    distance = np.abs(reference[a][:, None, 1:5] - candidate[b][None, :, 1:5]).max(axis=2)  # (len(a), len(b))
    # Boxes can coincide (clipped to the whole image): the nearer score decides between equal boxes.
    gap = np.abs(reference[a][:, None, 5] - candidate[b][None, :, 5])
    near = np.argwhere(distance <= radius)
    pairs: dict[int, int] = {}
    for i, j in near[np.lexsort((gap[*near.T], distance[*near.T]))].tolist():
        if a[i] not in pairs and b[j] not in pairs.values():
            pairs[a[i]] = b[j]
    return list(pairs.items())
