"""Training steps watched from inside, for lock-step and trajectories: the side of it that runs a framework.

A watched trainer is the project's own, but for one seam: what `Trainer` clips before each update is clipped here, by
the same function, so that gradients are seen before and after. Nothing is compared here.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lib import backend
from lib.alignment.compare import norm
from lib.alignment.measure import Arrays
from lib.alignment.references.case import STATISTICS
from lib.alignment.seeded import seeded_input
from lib.models.step import ParameterGroup
from lib.training import loop as training
from lib.training.schedule import Recipe

Kinds = dict[str, Arrays]  # kind -> name -> values


class Watched(training.Trainer):
    """A trainer that keeps the gradients of its last update until they are asked for."""

    def __init__(
        self,
        model: backend.nn.Module,
        criterion: Any,
        recipe: Recipe,
        steps_per_epoch: int,
        groups: Sequence[ParameterGroup],
        seed: int = 0,
    ):
        super().__init__(model, criterion, replace(recipe, clip=math.inf), steps_per_epoch, groups, seed)
        self._limit, self.groups = recipe.clip, tuple(groups)
        self._seen: Kinds = {"gradient": {}, "clipped": {}}  # until the first update

    def _update(self, gradients: list) -> None:
        clipped, _ = training.clip(gradients, self._limit)
        self._seen = {"gradient": self._named(gradients), "clipped": self._named(clipped)}
        super()._update(clipped)

    def feed(self, gradients: Mapping[str, np.ndarray]) -> None:
        """One step on these gradients, by the name of the parameter."""
        self.criterion.epoch = self.epoch
        self._take([backend.tensor(gradients[name]) for name in self._names])

    def trained(self) -> Arrays:
        """The parameters in the order of the groups."""
        return self._named(self._parameters)

    def _named(self, tensors: list) -> Arrays:
        return {name: backend.numpy(value) for name, value in zip(self._names, tensors, strict=True)}

    def kinds(self) -> Iterator[tuple[str, Arrays]]:
        """What the last update left, a kind at a time, for all are six times the model: gradients, rates, moments,
        parameters, statistics, average, in causal order.

        To be asked for once a step: the gradients are handed over and not held through the next one.
        """
        seen, self._seen = self._seen, {"gradient": {}, "clipped": {}}
        for kind in list(seen):
            yield kind, seen.pop(kind)
        told = {name: np.float64(value) for name, value in self.schedule().items()}
        rates = [name for name in told if name.startswith("learning_rate/")]
        yield "learning_rate", {f"group_{i}": told.pop(name) for i, name in enumerate(rates)}
        yield from _moments(self._optimiser.state()).items()
        state = {name: backend.numpy(value) for name, value in backend.named_state(self.model)}
        trained = set(self._names)
        yield "parameter", {name: value for name, value in state.items() if name in trained}
        yield "statistics", {name: value for name, value in state.items() if name.endswith(STATISTICS)}
        yield "average", self.average.state()
        yield "schedule", told


def _moments(state: Mapping[str, np.ndarray]) -> Kinds:
    """The optimiser's state by moment: "exp_avg" -> parameter -> values."""
    found: Kinds = {}
    for key, value in state.items():
        name, moment = key.rsplit("/", 1)
        found.setdefault(moment, {})[name] = value
    return found


Advance = Callable[[Watched, int], Mapping[str, float]]  # takes one step and gives its losses


def native(batches: Sequence[Any]) -> Advance:
    """Steps on the batches (with `images` and `targets`), as training takes them."""

    def advance(trainer: Watched, step: int) -> Mapping[str, float]:
        dtype = backend.numpy(next(iter(trainer.model.parameters()))).dtype
        asked = trainer.issue(batches[step].images.astype(dtype), batches[step].targets)
        return dict(zip(asked, backend.floats(list(asked.values())), strict=True))

    return advance


def fed(trainer: Watched, step: int) -> Mapping[str, float]:
    """A step on seeded gradients, the same on every side: the optimiser, clipping, schedule and average alone."""
    size = 10.0 ** (step % 3 - 2)  # some steps are clipped and some are not
    trainer.feed(
        {
            name: (size * seeded_input(f"gradient:{step}:{name}", array.shape)).astype(array.dtype)
            for name, array in trainer.trained().items()
        }
    )
    return {}


def lockstep(
    trainers: Mapping[str, Watched], advance: Advance, steps: int, selected: Sequence[str]
) -> tuple[dict[str, Any], Arrays]:
    """Advance the trainers, by precision, side by side; fields and arrays for a record.

    Of every tensor of every step its L2 norm in each precision, and the L2 of what float32 deviates from float64; of
    the entries in `selected` the values, as "<precision>/<step>/<kind>/<name>".
    """
    log: list[dict[str, Any]] = []
    arrays: Arrays = {}
    for step in range(steps):
        line, sizes, kept = _watched(trainers, advance, step, selected)
        log.append(line)
        arrays |= kept
    groups = {
        name: [group.learning_rate_factor, group.decays, group.warmup_from]
        for group in trainers["float32"].groups
        for name in group.names
    }
    return {"groups": groups, "sizes": sizes if log else {}, "steps": log, "precisions": list(trainers)}, arrays


def _watched(
    trainers: Mapping[str, Watched], advance: Advance, step: int, selected: Sequence[str]
) -> tuple[dict, dict, Arrays]:
    """A step's line of the log, its tensors' sizes, the values of selected ones; no other tensor outlives the call."""
    norms: dict[str, dict] = {precision: {} for precision in trainers}
    noise, sizes, kept, exact = {}, {}, {}, {}
    for precision in reversed(list(trainers)):  # float64 first: the graph of its step takes most
        for kind, values in _advanced(trainers[precision], advance, step):
            norms[precision][kind] = {name: _size(value) for name, value in values.items()}
            several = (name for name in selected if np.size(values.get(name, 0)) > 1)  # one number is its own norm
            kept |= {f"{precision}/{step}/{kind}/{name}": values[name].copy() for name in several}
            if precision == "float64":
                exact[kind] = values
                continue
            sizes[kind] = {name: np.size(value) for name, value in values.items()}
            if kind in exact:
                noise[kind] = {
                    name: norm(np.subtract(values[name], value, dtype=np.float64))
                    for name, value in exact.pop(kind).items()
                }
    return {"norms": norms, **({"noise": noise} if noise else {})}, sizes, kept


def _advanced(trainer: Watched, advance: Advance, step: int) -> Iterator[tuple[str, Arrays]]:
    losses = advance(trainer, step)
    backend.give_back()  # the step's graph, and what it was fed
    yield "loss", {name: np.float64(value) for name, value in losses.items()}
    yield from trainer.kinds()


def _size(value: np.ndarray) -> float:
    """L2 norm; a single number keeps its sign."""
    return float(np.reshape(value, ())) if np.size(value) == 1 else norm(value)


def curves(trainer: training.Trainer, batches: Iterable[Any]) -> dict[str, list[float]]:
    """Train on the batches; each loss component, their sum "loss" and the gradient's norm, step by step."""
    found: dict[str, list[float]] = {}
    for batch in batches:
        asked = trainer.issue(batch.images, batch.targets)
        values = dict(zip(asked, backend.floats(list(asked.values())), strict=True))
        values["loss"] = math.fsum(value for name, value in values.items() if name != training.NORM)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return found
