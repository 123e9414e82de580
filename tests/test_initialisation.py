"""Initial weights as distributions, data by stages: right ones pass over many seeds, planted faults are named. Framework-free."""

import numpy as np
import pytest

from lib.alignment import initialisation
from lib.alignment.verdict import Verdict, conclude

SHAPES = (
    {f"layer{i}.weight": (16, 8, 3, 3) for i in range(40)}
    | {f"layer{i}.bias": (16,) for i in range(40)}
    | {"norm.weight": (64,)}
)


def weights(seed, **changes):
    """Kaiming-uniform kernels and biases, norms of one; changes: draw(rng, shape) by name."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in SHAPES.items():
        bound = 1 / np.sqrt(72)
        draw = changes.get(
            name,
            (lambda rng, shape: np.ones(shape))
            if "norm" in name
            else lambda rng, shape: rng.uniform(-bound, bound, shape),
        )
        found[name] = np.asarray(draw(rng, shape), np.float32)
    return found


def failing(reference, candidate):
    return {row.name: row.note for row in initialisation.compare(reference, candidate) if row.passed is False}


def test_other_seeds_of_the_same_distributions_pass():
    """At most 1 % of right implementations may fail by construction; of 30 none did, and three would have a chance of 3e-3."""
    alarms = [bool(failing(weights(seed), weights(seed + 1000))) for seed in range(30)]
    assert sum(alarms) < 3
    rows = initialisation.compare(weights(0), weights(1))
    assert conclude("initialisation", "torch-jittor", rows, []).verdict is Verdict.PASS and len(rows) == len(SHAPES)


@pytest.mark.parametrize(
    "draw, said",
    [
        (
            lambda rng, shape: rng.normal(0, 1 / np.sqrt(72 * 3), shape),
            "magnitudes",
        ),  # the same deviation, another shape
        (lambda rng, shape: rng.uniform(-1, 1, shape) * np.sqrt(6 / 72), "p = "),  # gain sqrt(2) in place of sqrt(1/3)
        (lambda rng, shape: rng.uniform(-1, 1, shape) * 1.03 / np.sqrt(72), "bound"),  # three percent wider
        (lambda rng, shape: np.zeros(shape), "constant"),
        (lambda rng, shape: rng.uniform(0, 1, shape) / np.sqrt(72), "values"),
    ],
)
def test_another_distribution_is_named(draw, said):
    found = failing(weights(0), weights(1, **{"layer7.weight": draw}))
    assert set(found) == {"layer7.weight"} and said in found["layer7.weight"]


def test_constants_are_compared_exactly():
    assert set(failing(weights(0), weights(1, **{"norm.weight": lambda rng, shape: np.full(shape, 1.001)}))) == {
        "norm.weight"
    }


def test_missing_misshapen_and_nan_parameters_are_faults():
    candidate = weights(1)
    del candidate["layer0.bias"]
    candidate["layer1.bias"] = candidate["layer1.bias"].reshape(4, 4)
    candidate["layer2.bias"][3] = np.nan
    candidate["layer3.bias"] = candidate["layer3.bias"].astype(np.float64)
    candidate["extra"] = np.zeros(1)
    found = failing(weights(0), candidate)
    assert found["layer0.bias"] == "missing" and "shape" in found["layer1.bias"] and "NaN" in found["layer2.bias"]
    assert "float64" in found["layer3.bias"] and "left over" in found["extra"]
    assert initialisation.compare({}, {})[0].passed is False


def test_too_few_values_are_shown_not_judged():
    row = initialisation.compare({"scale": np.array([0.1, 0.2])}, {"scale": np.array([5.0, 6.0])})[0]
    assert row.passed is None and "too few" in row.note


def test_p_values_are_uniform_where_both_sides_are_right():
    rng = np.random.default_rng(0)
    values = np.array(
        [initialisation.kolmogorov_smirnov(rng.standard_normal(400), rng.standard_normal(400)) for _ in range(400)]
    )
    for level in (0.05, 0.2, 0.5):
        assert abs(np.mean(values < level) - level) < 4 * np.sqrt(level * (1 - level) / 400)
    bounds = np.array([initialisation._bounds(rng.uniform(-1, 1, 300), rng.uniform(-1, 1, 300)) for _ in range(400)])
    assert abs(np.mean(bounds < 0.2) - 0.2) < 0.08
