"""Lock-step where a recipe's schedule does something: short windows around its events, each with a resume inside.

Between the windows nothing runs: each but the first begins in a checkpoint of the first step, whose counts of steps and
updates are set to that place. Within one the run is saved and goes on in a new trainer, as after an interruption. What
crosses every event is the training of a few small tensors by the whole recipe, on gradients that are the same
everywhere. The model's own steps are not: from such a checkpoint two right runs part within a step or two (measured,
NanoDet-Plus), so that the step of the event could not be judged. `lockstep` judges.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from lib import backend
from lib.alignment import steps
from lib.alignment.measure import Arrays, cast, precisions
from lib.alignment.seeded import seeded_state
from lib.backend import nn
from lib.data import transforms
from lib.families import family
from lib.models import nanodet_plus
from lib.models.step import ParameterGroup
from lib.training import schedule
from lib.training.schedule import Recipe

IMAGES = 118287  # of COCO's training split, on which the recipes are published
START = 6  # steps of the first window: AdamW's bias corrections differ most here


@dataclass(frozen=True)
class Window:
    """Steps from `first`, which begins right after an update, to before `end`; saved and resumed before `resumed`."""

    events: tuple[str, ...]
    first: int
    resumed: int
    end: int
    updates: int  # before the first step


def events(
    model: str, recipe: Recipe, length: int, groups: Sequence[ParameterGroup], augmentation: Callable[[int], Any]
) -> dict[str, int]:
    """The first step after each change that a run of the recipe, of `length` steps an epoch, contains.

    augmentation: what pictures go through in an epoch.
    """
    rates, due = recipe.learning_rates(length, tuple(groups))[:, 0], recipe.accumulations(length)
    epochs, warmup = range(recipe.epochs), recipe.warmup(length)
    detached = nanodet_plus.DETACH_EPOCH if family(model) == "nanodet_plus" else 0
    found = {
        "end of warm-up": warmup,
        "first decay": next((i for i in range(warmup + 1, len(rates)) if rates[i] < rates[i - 1]), 0),
        "accumulation": next((i for i in range(1, len(due)) if due[i] != due[i - 1]), 0),
        "detached": detached * length,
        "average's ramp": next((i for i, done in enumerate(_updates(due)) if done >= recipe.average_steps), 0),
        "other augmentation": next((e for e in epochs[1:] if augmentation(e) != augmentation(e - 1)), 0) * length,
        "last step": len(rates) - 1,
    }
    return {event: step for event, step in found.items() if 0 < step < len(rates)}


def of_recipe(model: str, groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    """Each event of the model's published recipe, crossed by small tensors in as many groups as the model has."""
    recipe, augmentation = schedule.recipe(model), transforms.recipe(model)
    length = IMAGES // recipe.batch
    placed = events(model, recipe, length, groups, lambda epoch: augmentation.at(epoch, recipe.epochs))
    return crossed(around(recipe, length, placed), partial(_miniature, recipe, length, groups))


def around(recipe: Recipe, length: int, placed: Mapping[str, int]) -> list[Window]:
    """The run's beginning, then a window around each step at which something happens."""
    due = recipe.accumulations(length)
    total, done = len(due), _updates(due)
    begins = np.flatnonzero(np.diff(done, prepend=-1)).tolist()
    found = []
    for step in sorted({0, *placed.values()}):
        first = max(begin for begin in begins if begin < max(step, 1))
        last = max(step + 1, START - 1 if step == 0 else 0)
        end = next((begin for begin in begins if begin > last), total)
        named = tuple(event for event, at in placed.items() if at == step) or ("start",)
        resumed = step or min(START, end) - 1
        # Where gradients of several batches are summed, the run is saved with a sum that waits.
        resumed += resumed + 1 not in begins and resumed + 1 < end
        found.append(Window(named, first, resumed, end, int(done[first])))
    return found


def _updates(due: np.ndarray) -> np.ndarray:
    """How many updates lie before each step."""
    done, waiting, found = 0, 0, []
    for least in due.tolist():
        found.append(done)
        waiting += 1
        if waiting >= least:
            done, waiting = done + 1, 0
    return np.array(found)


def crossed(found: Sequence[Window], build: Callable[[str], steps.Watched]) -> list[dict[str, Any]]:
    """A `steps.lockstep` of each window, without arrays. build: a trainer at the first step, in a precision."""
    # One step, exactly: where two runs part already, a window could judge nothing.
    begun = build(precisions()[-1])
    _fed(begun)
    logs, kept = [], begun.state()
    for window in found:
        trainers = {precision: build(precision) for precision in precisions()}
        for precision, trainer in trainers.items() if window.first else ():
            trainer.load_state({name: cast(value, precision) for name, value in _moved(kept, window).items()})
        before = _advanced(trainers, window.resumed - window.first)
        for precision, interrupted in trainers.items():
            trainers[precision] = build(precision)
            trainers[precision].load_state(interrupted.state())
        after = _advanced(trainers, window.end - window.resumed)
        logs.append({**asdict(window), **after, "steps": before["steps"] + after["steps"]})
    return logs


def _advanced(trainers: Mapping[str, steps.Watched], count: int) -> dict[str, Any]:
    return steps.lockstep(trainers, lambda trainer, _: _fed(trainer), count, ())[0]


def _moved(state: Arrays, window: Window) -> Arrays:
    """A checkpoint with another place in the schedule."""
    counts = {"count/step": window.first, "count/updates": window.updates, "count/_summed": 0}

    def of(name: str, value: np.ndarray) -> np.ndarray:
        counted = name.startswith("optimiser/") and name.endswith("/step")
        return np.full_like(value, window.updates if counted else counts[name]) if counted or name in counts else value

    return {name: of(name, np.copy(value)) for name, value in state.items() if not name.startswith("sum/")}


def _miniature(recipe: Recipe, length: int, groups: Sequence[ParameterGroup], precision: str) -> steps.Watched:
    """A trainer of six small tensors, dealt out to the groups, by the whole recipe; to be fed."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    backend.load_state(
        model, seeded_state([(name, backend.numpy(value).shape) for name, value in backend.named_state(model)])
    )
    names = [name for name, _ in model.named_parameters()]
    dealt = [
        ParameterGroup(tuple(names[i :: len(groups)]), one.learning_rate_factor, one.decays, one.warmup_from)
        for i, one in enumerate(groups)
    ]
    model = backend.float64(model) if precision == "float64" else model
    return steps.Watched(model, _Unasked(), recipe, length, dealt)


class _Unasked:
    """The criterion of a trainer that is fed gradients."""

    epoch = 0


def _fed(trainer: steps.Watched) -> Mapping[str, float]:
    """A step on seeded gradients."""
    return steps.fed(trainer, trainer.step)
