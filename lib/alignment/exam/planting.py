"""Planting a fault: names of modules and classes are given another meaning for a while, as a wrong port has them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib import convert, models
from lib.backend import nn
from lib.training import checkpoints

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Change:
    """`owner.name` becomes make(what it was)."""

    owner: Any  # a module or a class
    name: str
    make: Callable[[Any], Any]


@dataclass(frozen=True)
class Fault:
    """One thing that people get wrong."""

    name: str
    people: str  # what they really do
    kind: str  # the class of faults it belongs to
    subject: str  # what it is planted in, a name of `subjects.SUBJECTS`
    place: str  # regular expression of the names that point at it: modules, entries, losses, quantities, stages
    changes: tuple[Change, ...]


@contextmanager
def planted(changes: Iterable[Change]) -> Iterator[None]:
    """Make the changes; afterwards everything is as it was, whatever happened."""
    undone: list[Callable[[], None]] = []
    try:
        for change in changes:
            undone.append(_plant(change))
        yield
    finally:
        for undo in reversed(undone):
            undo()


def _plant(change: Change) -> Callable[[], None]:
    """Make the change; how to take it back."""
    held = vars(change.owner).get(change.name)  # None: inherited
    new = change.make(getattr(change.owner, change.name))
    setattr(change.owner, change.name, staticmethod(new) if isinstance(held, staticmethod) else new)
    if held is None:
        return lambda: delattr(change.owner, change.name)
    return lambda: setattr(change.owner, change.name, held)


def becomes(owner: Any, name: str, value: Any) -> Change:
    """Another constant, function or method under this name."""
    return Change(owner, name, lambda original: value)


def built(edit: Callable[[nn.Module], None]) -> Change:
    """Every model that is built is edited before weights are loaded."""

    def make(original: Callable) -> Callable:
        def build(*arguments: Any, **options: Any) -> nn.Module:
            model = original(*arguments, **options)
            edit(model)
            return model

        return build

    return Change(models, "build", make)


def attribute(path: str, name: str, value: Any) -> Change:
    """An attribute of one module."""
    return built(lambda model: setattr(dict(model.named_modules())[path], name, value))


def loaded(edit: Callable[[State], None]) -> Change:
    """Weights are edited on their way into a model, and what doesn't fit is left out without a word."""

    def make(original: Callable) -> Callable:
        def load(
            model: nn.Module, source: Mapping[str, np.ndarray] | Path, strict: bool = True, absent: tuple[str, ...] = ()
        ) -> convert.Coverage:
            values = dict(source) if isinstance(source, Mapping) else checkpoints.read(source)
            edit(values)
            return original(model, values, strict=False, absent=absent)

        return load

    return Change(convert, "load", make)


def entry(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """One entry of the weights, where they hold it, is loaded as change(entry)."""

    def edit(values: State) -> None:
        if name in values:
            values[name] = np.ascontiguousarray(change(values[name]))

    return loaded(edit)
