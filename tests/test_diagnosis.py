"""A wrong tensor is called by its name, a noisy one by none, and no name makes it pass."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.alignment.compare import compare
from lib.alignment.diagnosis import explain
from lib.alignment.verdict import K, Reach, gated

REFERENCE = np.random.default_rng(0).standard_normal((2, 6, 5, 5)).astype(np.float32)
FAULTS = [
    (REFERENCE[:, ::-1], "reversing axis 1"),
    (REFERENCE[..., ::-1], "reversing axis 3"),
    (REFERENCE.transpose(0, 1, 3, 2), "transposing by (0, 1, 3, 2)"),
    (np.roll(REFERENCE, 3, 1), "shifting axis 1 by 3"),  # two halves concatenated in the other order
    (np.roll(REFERENCE, -1, 2), "shifting axis 2 by -1"),
    (REFERENCE[:, [0, 2, 1, 3, 5, 4]], "permutation of axis 1"),
    (np.concatenate([REFERENCE[..., 1:], np.zeros((2, 6, 5, 1), np.float32)], -1), "shifted by -1 along axis 3"),
    (np.concatenate([np.zeros((2, 6, 1, 5), np.float32), REFERENCE[:, :, :-1]], 2), "shifted by 1 along axis 2"),
    (np.broadcast_to(REFERENCE[:, :1], REFERENCE.shape), "constant along axis 1"),
    (REFERENCE * 2, "times 2"),
    (-REFERENCE, "times -1"),
    (REFERENCE + 2, "plus 2"),
    (np.random.default_rng(1).permutation(REFERENCE.ravel()).reshape(REFERENCE.shape), "another order"),
]


@pytest.mark.parametrize("candidate, said", FAULTS, ids=[said for _, said in FAULTS])
def test_the_fault_is_named_under_noise_and_still_fails(candidate, said):
    noise = 1 + 1e-6 * np.random.default_rng(2).standard_normal(candidate.shape)
    found = compare("x", REFERENCE, np.asarray(candidate * noise, np.float32))
    assert said in found.diagnosis
    assert not gated(found, Reach.of(1e-5, 1e-4), K, "x", "every element", "").passed


@pytest.mark.parametrize(
    "candidate, said",
    [
        (
            REFERENCE.transpose(0, 2, 3, 1),
            "shape (2, 5, 5, 6) where the reference has (2, 6, 5, 5); equal after transposing by (0, 3, 1, 2)",
        ),
        (REFERENCE.reshape(2, 6, 25), "equal after reshaping to (2, 6, 5, 5)"),
    ],
)
def test_a_wrong_shape_says_how_it_came_about_and_stays_a_fault(candidate, said):
    assert said in compare("x", REFERENCE, candidate).fault


def test_another_tensor_has_no_name():
    other = np.random.default_rng(5).standard_normal(REFERENCE.shape).astype(np.float32)
    assert compare("x", REFERENCE, other).diagnosis is None
    assert compare("x", REFERENCE, other[:, :3]).fault == "shape (2, 3, 5, 5) where the reference has (2, 6, 5, 5)"


def test_noise_is_not_looked_at():
    assert compare("x", REFERENCE, REFERENCE * np.float32(1 + 1e-3)).diagnosis is None
    assert explain(REFERENCE, REFERENCE) is None


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_whatever_is_said_undoes_the_fault(dimensions, length, seed):
    """Of random reorderings of one axis: what is named is a permutation, a shift or a reversal of that axis."""
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((length,) * dimensions)
    axis, order = int(rng.integers(dimensions)), rng.permutation(length)
    moved = array.take(order, axis)
    said = explain(array, moved)
    if (order == np.arange(length)).all():
        assert said is None
    else:
        assert f"axis {axis}" in said or (length == 2 and "equal after" in said)
