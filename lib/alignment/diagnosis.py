"""What a wrong tensor is, in words: transposed, reversed, permuted, shifted, scaled, constant. It never makes it right.

An explanation holds where what it leaves of the deviation is at most a LEFT-th: noise stays, and chance does not do it.
"""

from collections.abc import Iterator
from itertools import permutations

import numpy as np

LEFT = 1e-3
PAIRS = 4_000_000  # pairs of slices looked at to find a permutation
ORDERS = 4  # axes up to which every order of them is tried
ELEMENTS = 4_000_000  # of larger tensors only the plain explanations are tried: others would cost seconds


def explain(reference: np.ndarray, candidate: np.ndarray) -> str | None:
    """The first explanation of candidate != reference, both finite and not empty; None where there is none."""
    a, b = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    deviation = _size(a - b) if a.shape == b.shape else _size(a - a.mean())
    if not deviation:
        return None
    for said, undone in _transformed(a, b):
        if undone.shape == a.shape and _size(undone - a) <= LEFT * deviation:
            return said
    if a.shape != b.shape:
        return None
    for axis in range(a.ndim):
        varied, expected = (_size(array - array.mean(axis, keepdims=True)) for array in (b, a))
        if a.shape[axis] > 1 and varied <= LEFT * deviation < expected:
            return f"constant along axis {axis}, as if broadcast"
    if a.size <= ELEMENTS and _size(np.sort(a, None) - np.sort(b, None)) <= LEFT * deviation:
        return "the same values in another order"
    return None


def _size(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.ravel()))


def _transformed(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each explanation with the candidate as it would be without it; the plain ones first."""
    if a.shape == b.shape:
        yield from _affine(a, b)
        for axis in range(a.ndim):
            yield f"equal after reversing axis {axis}", np.flip(b, axis)
    if a.ndim == b.ndim <= ORDERS:
        for order in permutations(range(a.ndim)):
            if order != tuple(range(a.ndim)) and b.transpose(order).shape == a.shape:
                yield f"equal after transposing by {order}", b.transpose(order)
    if a.size == b.size and a.shape != b.shape:
        yield f"equal after reshaping to {a.shape}", b.reshape(a.shape)
    if a.shape == b.shape and a.size <= ELEMENTS:
        for axis in range(a.ndim):
            yield from _moved(a, b, axis)


def _affine(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    factor = float(np.vdot(a, b) / np.vdot(a, a)) if a.any() else 0.0
    if factor:
        yield f"the reference times {factor:.6g}", b / factor
    offset = float((b - a).mean())
    yield f"the reference plus {offset:.6g}", b - offset


def _moved(a: np.ndarray, b: np.ndarray, axis: int) -> Iterator[tuple[str, np.ndarray]]:
    """Slices along the axis in another order: all shifted by as many places, permuted, or shifted with a new end."""
    length = a.shape[axis]
    if length < 2 or length * length > PAIRS:
        return
    x, y = (np.moveaxis(array, axis, 0).reshape(length, -1) for array in (a, b))
    # Squared distances by one product: (length, length).
    distance = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    place = distance.argmin(1)
    if len(set(place.tolist())) == length:
        shift = int(place[0])
        if (place == (np.arange(length) + shift) % length).all():
            said = f"equal after shifting axis {axis} by {shift - length if shift > length // 2 else shift}"
        else:
            said = f"equal up to a permutation of axis {axis}"
        yield said, b.take(place, axis)
    for shift in (1, -1):  # off by one: what would come from outside is taken from the reference, as it can't be known
        known = np.arange(length - 1) + (shift < 0)
        undone = a.copy()
        index = tuple(known if i == axis else slice(None) for i in range(a.ndim))
        undone[index] = b.take(known + shift, axis)
        yield f"shifted by {shift} along axis {axis}, its end filled anew", undone
