"""Whether a training run is the run that PyTorch makes: its curves against those of PyTorch with itself.

Two right runs part ways, as rounding grows from step to step. At least LEAST control runs of the reference, whose
initial weights are moved by a rounding, show how fast: the spread at a step is the largest distance of a control from
their median so far. The band is K spreads wide on either side, and it says something until it is wider than HORIZON of
the curve, or a control leaves the band that the other controls give (a rule of 2026-11-21, made when such a control had
left Gold-YOLO's quick curve unjudged, with both frameworks' curves in sight): up to there another run must stay inside.
That it could leave is shown by a run with a learning rate 1 % off, which must.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lib.alignment.verdict import ROUNDING, K, Row, fault

TOO_WIDE = "the controls part at the first step: nothing can be judged"
LEAST = 5  # control runs
HORIZON = 0.01  # half-width of the band over the curve, from which on right runs tell nothing about one another


@dataclass(frozen=True, eq=False)
class Band:
    """Of one curve; arrays are (steps,)."""

    centre: np.ndarray
    spread: np.ndarray  # at least one rounding of the curve, and never falling
    horizon: int  # the first step that is not judged; the number of steps where all are
    fault: str | None = None  # why it can't serve

    def exit(self, curve: np.ndarray) -> int | None:
        """The first step before the horizon at which the curve is outside."""
        end = self.horizon
        outside = np.flatnonzero(~(np.abs(curve - self.centre)[:end] <= K * self.spread[:end]))  # so is NaN
        return int(outside[0]) if len(outside) else None


def perturbed(state: Mapping[str, np.ndarray], seed: int, roundings: float = 1.0) -> dict[str, np.ndarray]:
    """The state with every floating value moved by about so many roundings: x (1 + roundings 2^-24 n), n standard
    normal by (seed, name)."""
    moved = {}
    for name, array in state.items():
        if array.dtype.kind == "f":
            noise = np.random.default_rng((seed, zlib.crc32(name.encode()))).standard_normal(array.shape)
            array = np.asarray(array * (1 + roundings * ROUNDING * noise), array.dtype)
        moved[name] = array
    return moved


def band(controls: Sequence[Sequence[float]] | np.ndarray) -> Band:
    """The band of one curve from control runs (runs, steps)."""
    lengths = {len(run) for run in controls}
    if len(controls) < LEAST or len(lengths) != 1 or not max(lengths):
        said = f"{len(controls)} control runs of {sorted(lengths)} steps: at least {LEAST} of equal length are needed"
        return Band(np.zeros(0), np.zeros(0), 0, said)
    runs = np.asarray(controls, float)
    if len(bad := np.argwhere(~np.isfinite(runs))):
        return Band(runs[0], runs[0], 0, f"control run {bad[0][0]} is {runs[*bad[0]]} at step {bad[0][1]}")
    if (runs == runs[0]).all():
        return Band(runs[0], runs[0], 0, "the control runs are all equal: nothing was perturbed")
    held = _band(runs)
    left = [exit for i, run in enumerate(runs) if (exit := _band(np.delete(runs, i, 0)).exit(run)) is not None]
    horizon = min([held.horizon, *left])
    return replace(held, horizon=horizon, fault=None if horizon else TOO_WIDE)


def _band(runs: np.ndarray) -> Band:
    centre = np.median(runs, 0)
    spread = np.maximum.accumulate(np.maximum(np.abs(runs - centre).max(0), ROUNDING * np.abs(centre)))
    wide = np.flatnonzero(K * spread > HORIZON * np.abs(centre))
    return Band(centre, spread, int(wide[0]) if len(wide) else runs.shape[1])


def inside(name: str, held: Band, curve: Sequence[float] | np.ndarray) -> Row:
    """The row of a run's curve: inside the band up to the horizon. It shows the step that comes nearest to the edge."""
    what, curve = "inside the band", np.asarray(curve, float)
    bad = np.flatnonzero(~np.isfinite(curve))
    if reason := _unfit(held, curve) or (f"{curve[bad[0]]} at step {bad[0]}" if len(bad) else None):
        return fault(name, what, reason)
    left = held.exit(curve)
    distance = np.abs(curve - held.centre)[: held.horizon]
    worst = left if left is not None else int(np.argmax(distance / held.spread[: held.horizon]))
    error, spread = float(distance[worst]), float(held.spread[worst])
    note = f"leaves at step {left}" if left is not None else f"nearest to the edge at step {worst}"
    note += f"; judged are the first {held.horizon} of {len(curve)} steps"
    return Row(name, what, error, spread, K * spread, abs(float(held.centre[worst])), left is None, note)


def sensitivity(name: str, held: Band, curve: Sequence[float] | np.ndarray) -> Row:
    """The row of a run that is wrong on purpose: it passes where that run leaves the band."""
    what, curve = "a wrong run leaves", np.asarray(curve, float)
    if reason := _unfit(held, curve):
        return fault(name, what, reason)
    left = held.exit(curve)
    stays = f"stays inside up to the horizon, step {held.horizon}: the band can't tell"
    note = stays if left is None else f"leaves at step {left}"
    return Row(name, what, float(left is None), 0.0, 0.0, 1.0, left is not None, note)


def _unfit(held: Band, curve: np.ndarray) -> str | None:
    other = len(curve) != len(held.centre)
    return held.fault or (f"{len(curve)} steps where the controls have {len(held.centre)}" if other else None)
