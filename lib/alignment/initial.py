"""Where trainings start: fresh weights as draws from distributions, parameter by parameter.

Two right implementations draw other numbers. A parameter starts as a constant, which must be that constant, or as a
sample: its mean, its deviation, its bounds and its whole distribution (Kolmogorov and Smirnov) are tested, against the
published rule or against another sample. Every test gives the chance that a right start lies so far off; all tests of
all parameters share FALSE_ALARM (Bonferroni).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from scipy.special import chdtr, chdtrc, ndtr, ndtri

from lib.alignment.verdict import ROUNDING, Row, decisions, fault

SAMPLE = 8192  # values of a parameter that a record keeps: uniform numbers are told from normal ones of their deviation
FALSE_ALARM = 1e-3  # one answer in a thousand about a right start is FAIL
LEAST_CHANCE = 1e-300


@dataclass(frozen=True)
class Tested:
    """A parameter's tests: by what was compared the chance of a right start to lie so far off."""

    name: str
    chances: Mapping[str, float]
    note: str


def samples(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a record keeps of first values: evenly spaced ones; of a constant two of its values, which tell
    it from a single number that was drawn."""
    found = {}
    for name, array in values.items():
        kept = min(array.size, 2 if _is_constant(array) else SAMPLE)
        found[f"first/{name}"] = array.reshape(-1)[np.linspace(0, array.size - 1, kept).astype(int)]
    return found


def against(rules: Mapping[str, Mapping[str, Any]], found: Mapping[str, np.ndarray]) -> list[Row]:
    """Rows of samples against the published rules: {"constant": v}, {"values": […]}, {"normal": deviation} or
    {"uniform": half-width}, both around 0; a parameter without a rule, or a rule without its parameter, fails, and so
    does a constant where numbers are drawn."""
    rows, tested = list(_alone(rules, found)), []
    for name in (name for name in rules if name in found):
        [(kind, size)], sample = rules[name].items(), found[name].astype(float)
        if kind in ("constant", "values"):
            rows.append(_constant(name, np.resize(np.asarray(size, float), len(sample)), sample))
        elif len(sample) > 1 and _is_constant(sample):
            rows.append(fault(name, "start", f"{sample[0]:.4g} everywhere, where the reference draws"))
        else:
            rule = scipy.stats.norm(0, size) if kind == "normal" else scipy.stats.uniform(-size, 2 * size)
            beyond = kind == "uniform" and np.abs(sample).max() > size * (1 + 4 * ROUNDING)
            tested.append(
                Tested(name, _of_rule(rule, sample) | {"bounds": 0.0 if beyond else 1.0}, _said(rule, sample))
            )
    return rows + _judged(tested)


def beside(theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> list[Row]:
    """Rows of samples against another implementation's."""
    rows, tested = list(_alone(theirs, ours)), []
    for name in (name for name in theirs if name in ours):
        a, b = (one[name].astype(float) for one in (theirs, ours))
        if _is_constant(a) or _is_constant(b):
            rows.append(_constant(name, np.resize(a, max(len(a), len(b))), np.resize(b, max(len(a), len(b)))))
            continue
        chances = {
            "mean": scipy.stats.ttest_ind(a, b, equal_var=False).pvalue,
            "deviation": scipy.stats.levene(a, b).pvalue,
            "distribution": scipy.stats.ks_2samp(a, b).pvalue,
        }
        tested.append(Tested(name, chances, _said(a, b)))
    return rows + _judged(tested)


def _alone(theirs: Iterable[str], ours: Iterable[str]) -> list[Row]:
    """A failing row for each parameter of one side alone."""
    said = {"missing": set(theirs) - set(ours), "left over": set(ours) - set(theirs)}
    return [fault(name, "start", note) for note, names in said.items() for name in sorted(names)]


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values.flat[0]).all())


def _constant(name: str, expected: np.ndarray, found: np.ndarray) -> Row:
    """A row for values that are not drawn: equal but for roundings of the largest."""
    differ = np.abs(found - expected) > 4 * ROUNDING * np.abs(expected).max()
    at = int(np.argmax(differ))
    note = f"{found[at]:.4g} where the reference has {expected[at]:.4g}" if differ.any() else ""
    return decisions(name, int(differ.sum()), len(found), note)


def _of_rule(rule: Any, sample: np.ndarray) -> dict[str, float]:
    """Chances of a sample of a distribution with a known mean. Its sum of squares is taken for chi-squared with as many
    degrees of freedom as give its variance: exact for normal numbers, wide for uniform ones."""
    excess = float(rule.stats("k"))
    freedom = 2 * len(sample) / (excess + 2)
    squares = freedom * float(np.mean((sample - rule.mean()) ** 2)) / rule.var()
    return {
        "mean": 2 * float(ndtr(-abs(sample.mean() - rule.mean()) * len(sample) ** 0.5 / rule.std())),
        "deviation": 2 * min(chdtr(freedom, squares), chdtrc(freedom, squares)),
        "distribution": scipy.stats.kstest(sample, rule.cdf).pvalue,
    }


def _said(reference: Any, sample: np.ndarray) -> str:
    mean, deviation = sample.mean(), sample.std()
    theirs = f"mean {reference.mean():.4g}, deviation {reference.std():.4g}"
    return f"mean {mean:.4g}, deviation {deviation:.4g} where the reference has {theirs}"


def _judged(tested: list[Tested]) -> list[Row]:
    """A row for each parameter: its least likely test, in standard deviations of a normal number."""
    limit = _far(FALSE_ALARM / max(1, sum(len(one.chances) for one in tested)))
    rows = []
    for one in tested:
        what = min(one.chances, key=one.chances.__getitem__)
        distance = _far(one.chances[what])
        rows.append(Row(one.name, what, distance, 1.0, limit, 1.0, distance <= limit, one.note))
    return rows


def _far(chance: float) -> float:
    return float(-ndtri(max(chance, LEAST_CHANCE) / 2))
