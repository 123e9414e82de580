"""One gate: a port is right where its result could be the exact result for weights, inputs and intermediate results
moved by a few roundings.

The reference runs once in float64, which is the exact result, and R times in float32 with the result of every
operation, forward and backward, moved by about K roundings more. How far these runs lie from the exact one is a
tensor's reach: cancellation, true zeros, long sums, few elements and activations that flip are in it and have no rule
of their own. A float32 result passes within C reaches of the exact one, a float64 result within C * SHARP reaches, and
one rounding more where it is stored. Of each tensor three distances are gated: the largest deviation, its L2, and its
signed error, the part of it along the exact tensor, which is left of a relative error where noise has averaged out.

Where the published side kept other numbers than exact tensors, the gate follows from the reach:
* norm and mean: |norm(a) - norm(b)| <= norm(a - b), |mean(a) - mean(b)| <= norm(a - b) / sqrt(n);
* float32 results alone: they too may lie C reaches away, so that two of them may lie 2 C reaches apart.
A loss is a tensor of one element. An optimiser's step is not judged here: AdamW makes whole steps of a gradient's
noise, so that a step is no continuous function of what is moved. It follows its rule or does not.

Weights and inputs alone are not enough to move: a bias before a norm has the gradient zero whatever they are, and right
float32 runs show noise there that only the operations' own rounding explains. Results are moved one by one, by K
roundings, and all of an operation together, by K: an approximated exp, or a sum in blocks, rounds to one side, and what
averages out in a moved run does not in a right one. Moved runs compute in float32, a third of the time: what PyTorch's
own float32 does wrong everywhere is within reach too, and float64 rows alone see it.

Behind activations with a kink float32 gradients reach far: NanoDet-Plus's in the exam by .028 (L2) and .0027 (along) of
their size in the median, with SiLU in LeakyReLU's place by .00013 and .00002. An operator whose float32 gradient is a
thousandth off can hide there (max pooling's, a resize's); 53_operators, which runs each operator alone, sees it.

R, K, C and SHARP were fixed before anything was run through them:

K = 4: an operation on an element rounds by at most one rounding (2**-24 of its size), a sum of n products added one by
one by sqrt(n) / 2.4 of them, the random walk of its partial sums: with vectors of 16 lanes, and 512 channels of 3 x 3,
n = 288, and it is 7. With C = 2 and the largest of R draws, about two standard deviations, K * C * 2 = 16 passes: a
right run is at most half way there.

R = 16: in pairs, the second moved against the first, so that what lies within reach of an activation's kink takes its
other slope in one of the two; eight independent draws. A right run of one element, half as noisy as they, lies beyond C
times their largest with a chance of 1e-4; four pairs would leave 4e-3, and a model has a dozen such numbers.

C = 2: the least whole factor that leaves a right run, itself one draw of the same kind, room for another order of sums.

SHARP = 2**-25: float64 has 29 bits more. Four of them go to sums that are added one by one: PyTorch's float64 batch
norm adds 51,200 values of a channel, sqrt(51200) / 2.4 = 94 roundings where the bound above has 16: within 2**4.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import astuple

import numpy as np

from lib.alignment.compare import Comparison, along, compare_sets, norm
from lib.alignment.verdict import ROUNDING, Reach, Row, fault, gated

R, K, C = 16, 4, 2
SHARP = 2.0**-25
STORED = {"float32": ROUNDING, "float64": 2.0**-53}  # relative: what storing a result rounds
Arrays = Mapping[str, np.ndarray]
Reaches = Mapping[str, Reach]


def runs(*parts: Callable[[AbstractContextManager], Arrays]) -> Iterator[Arrays]:
    """What the parts of a run, in float32, give together when they are moved, R times. PyTorch's side alone.

    Each part is given the context in which operations are moved, to compute in: what it only copies takes longer there.
    It is moved as the first: what begins alike in them, as a training's phases do, is computed once.
    """
    from lib.backend.torch_moved import moved

    for draw in range(R):
        found, products = {}, {} if len(parts) > 1 else None
        for part in parts:
            found |= part(moved(K if draw % 2 == 0 else -K, draw // 2, products))
        yield found


def measured(exact: Arrays, moved: Iterable[Arrays]) -> dict[str, list[float]]:
    """The reach of each exact tensor, for a record: how far moved runs lie from it."""
    found: dict[str, Reach] = {}
    for arrays in moved:
        for name, array in arrays.items():
            if name in exact:
                apart = array - exact[name]
                own = Reach(float(np.abs(apart).max(initial=0.0)), norm(apart), along(exact[name], apart))
                found[name] = own.at_least(found.get(name, own))
    return {name: list(astuple(reach)) for name, reach in found.items()}


def real(arrays: Arrays) -> dict[str, np.ndarray]:
    """Those of real numbers; others are decisions."""
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


def restored(fields: Mapping[str, list], prefix: str = "") -> dict[str, Reach]:
    """The reaches that a record holds under names that start with prefix, without it."""
    return {
        name.removeprefix(prefix): Reach(*map(float, values))
        for name, values in fields.items()
        if name.startswith(prefix)
    }


def judge(
    exact: Arrays,
    candidate: Arrays,
    reaches: Reaches,
    precision: str,
    metric: str = "l2",
    reaching: float = C,
    what: str = "every element",
) -> list[Row]:
    """A row per tensor of a candidate's run in "float32" or "float64", which all three distances must pass.

    reaching: how many reaches away it may lie. Shown is `metric`, or another distance that alone fails.
    """
    what = what if precision == "float32" else f"{what}, {precision}"
    return [
        _row(found, reaches.get(found.name), exact, precision, metric, reaching, what)
        for found in compare_sets(exact, candidate, precision)
    ]


def _row(
    found: Comparison, reach: Reach | None, exact: Arrays, precision: str, metric: str, reaching: float, what: str
) -> Row:
    # All zero where the reference is not: a right float32 run of a true zero, or a fault. The moved runs say which.
    if found.fault and np.isnan(found.max_abs):
        return fault(found.name, what, found.fault)
    if reach is None:
        return fault(found.name, what, "no reach: the reference has no moved runs of it")
    least = max(STORED[precision], STORED.get(exact[found.name].dtype.name, 0.0))
    return gated(found, reach, reaching, found.name, what, f"worst at {found.worst}", metric, least)


def judge_scalars(
    theirs: Mapping[str, Mapping], ours: Mapping[str, Mapping], reaches: Reaches, sharp: float
) -> list[Row]:
    """Rows for numbers by precision and name, each as a tensor of one element; sharp: `reaching` in float64."""
    exact = scalars(theirs["float64"])
    rows = judge(exact, scalars(ours["float32"], "float32"), reaches, "float32", "max_abs", what="scalar")
    if ours.get("float64"):
        rows += judge(exact, scalars(ours["float64"]), reaches, "float64", "max_abs", sharp, "scalar")
    return rows


def scalars(values: Mapping[str, float], precision: str = "float64") -> dict[str, np.ndarray]:
    """Numbers as tensors of one element; records write NaN as a string."""
    return {name: np.array([float(value)], precision) for name, value in values.items()}
