"""Initial weights of two implementations as samples of distributions, parameter by parameter.

Weights drawn with other seeds can't be equal; what can be is the distribution. Tests of a parameter: Kolmogorov-Smirnov on
the values and on their magnitudes (which tells symmetric distributions apart with a quarter of the values), the ratio of
the largest magnitudes where both sides look uniform, and equality where a side is constant. Their p-values are corrected
for their number (Holm), so that thousands of right parameters pass together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lib.alignment.verdict import Row, fault

ALPHA = 0.01  # chance that a right implementation fails at all, over all parameters
# Fewer values can't show a wrong distribution after the correction: with 8 against 8 the least p-value is about 1e-3.
LEAST = 8
FLAT = 1.8  # kurtosis of a uniform distribution (3 of a normal one)


@dataclass(frozen=True)
class Moments:
    """What a parameter's values look like."""

    size: int
    mean: float
    std: float
    kurtosis: float  # NaN for a constant
    largest: float  # magnitude

    @property
    def uniform(self) -> bool:
        """Whether the kurtosis is within three of its standard errors of a uniform distribution's, about 0 as its centre."""
        # Of a uniform sample's kurtosis: sqrt(0.366 / n), from the fourth to eighth moments 1/5, 1/7, 1/9.
        flat = abs(self.kurtosis - FLAT) < 3 * math.sqrt(0.366 / self.size)
        return flat and abs(self.mean) < 3 * self.std / math.sqrt(self.size)


def moments(array: np.ndarray) -> Moments:
    """Of all values together."""
    values = np.asarray(array, np.float64).ravel()
    mean, std = float(values.mean()), float(values.std())
    kurtosis = float((((values - mean) / std) ** 4).mean()) if std else float("nan")
    return Moments(values.size, mean, std, kurtosis, float(np.abs(values).max()))


def compare(reference: Mapping[str, np.ndarray], candidate: Mapping[str, np.ndarray]) -> list[Row]:
    """A row per parameter; `error` is the least corrected p-value's complement, gated by 1 - ALPHA."""
    what = "distribution"
    if not reference and not candidate:
        return [fault("(nothing)", what, "empty comparison: neither side holds a parameter")]
    faults, tests = [], {}
    for name in [*reference, *(name for name in candidate if name not in reference)]:
        if reason := _incomparable(reference.get(name), candidate.get(name)):
            faults.append(fault(name, what, reason))
        else:
            tests[name] = _tests(reference[name], candidate[name])
    corrected = _holm({(name, test): p for name, found in tests.items() for test, p in found.items()})
    rows = []
    for name, found in tests.items():
        a, b = moments(reference[name]), moments(candidate[name])
        pairs = (("mean", a.mean, b.mean), ("deviation", a.std, b.std), ("largest", a.largest, b.largest))
        note = ", ".join(f"{word} {first:.3g} and {second:.3g}" for word, first, second in pairs)
        if not found:
            rows.append(Row(name, what, 0.0, 0.0, 0.0, a.std, None, f"too few values to tell; {note}"))
            continue
        test = min(found, key=lambda test: corrected[name, test])
        p = corrected[name, test]
        rows.append(Row(name, what, 1 - p, 1 - ALPHA, 1 - ALPHA, 1.0, bool(p >= ALPHA), f"{test}: p = {p:.3g}; {note}"))
    return faults + rows


def _incomparable(a: np.ndarray | None, b: np.ndarray | None) -> str | None:
    if a is None or b is None:
        return "left over: the reference has no such parameter" if a is None else "missing"
    if a.shape != b.shape:
        return f"shape {b.shape} where the reference has {a.shape}"
    if a.dtype != b.dtype:
        return f"type {b.dtype} where the reference has {a.dtype}"
    if not a.size:
        return "no elements"
    for who, array in (("", b), (" in the reference", a)):
        if not np.isfinite(array).all():
            return f"NaN or infinity{who}"
    return None


def _tests(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """p-value by test; none where there are too few values."""
    x, y = (np.asarray(array, np.float64).ravel() for array in (a, b))
    if x.std() == 0 or y.std() == 0:
        return {"constant": float(x.std() == y.std() and x[0] == y[0])}
    if x.size < LEAST:
        return {}
    found = {"values": kolmogorov_smirnov(x, y), "magnitudes": kolmogorov_smirnov(np.abs(x), np.abs(y))}
    if moments(x).uniform and moments(y).uniform:
        found["bound"] = _bounds(x, y)
    return found


def kolmogorov_smirnov(x: np.ndarray, y: np.ndarray) -> float:
    """p-value of the largest distance of the two samples' distribution functions (Stephens 1970's form of the limit)."""
    x, y = np.sort(x), np.sort(y)
    both = np.concatenate([x, y])
    distance = np.abs(np.searchsorted(x, both, "right") / x.size - np.searchsorted(y, both, "right") / y.size).max()
    root = math.sqrt(x.size * y.size / (x.size + y.size))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # the series converges slowly there, and its sum is 1 to eleven digits
        return 1.0
    terms = [(-1) ** (k - 1) * math.exp(-2 * k * k * scaled * scaled) for k in range(1, 101)]
    return min(1.0, max(0.0, 2 * math.fsum(terms)))


def _bounds(x: np.ndarray, y: np.ndarray) -> float:
    """p-value of the ratio of the largest magnitudes of two uniform samples with one bound.

    For r <= 1: P(max x <= r max y) = r^n m / (n + m), as max x / bound has the distribution t^n.
    """
    a, b = np.abs(x).max(), np.abs(y).max()
    (low, n), (high, m) = sorted([(a, x.size), (b, y.size)])
    return min(1.0, 2 * (low / high) ** n * m / (n + m))


def _holm(values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Corrected p-values: the smallest times their number, the next times one less, never falling."""
    found, least = {}, 0.0
    for rank, key in enumerate(sorted(values, key=lambda key: values[key])):
        least = max(least, min(1.0, values[key] * (len(values) - rank)))
        found[key] = least
    return found
