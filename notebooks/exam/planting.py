"""Planting a fault: names of modules and classes are given another meaning for a while, as a wrong port has them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
    name: str
    people: str  # what they really do
    kind: str  # the class of faults it belongs to
    subject: str  # what it is planted in, a name of `subjects.SUBJECTS`
    place: str  # regular expression of the names that point at it: modules, entries, losses, quantities, stages
    changes: tuple[Change, ...]


class Faults(list[Fault]):
    """Faults in the order in which they are written."""

    def of(self, kind: str, subject: str) -> "Section":
        """What faults of a class in a subject are written with."""
        return Section(self, kind, subject)


@dataclass(frozen=True)
class Section:
    """Faults of one class in one subject; each way to write one adds it to the file's faults."""

    faults: Faults
    kind: str
    subject: str

    def add(self, name: str, people: str, place: str, *changes: Change) -> None:
        self.faults.append(Fault(name, people, self.kind, self.subject, place, changes))

    def code(self, name: str, place: str, owner: Any, attribute: str, *changes: Change) -> Callable[[Callable], None]:
        """A fault as code: `wrong(original, *arguments)` for `owner.attribute`; its docstring says what people do."""

        def written(wrong: Callable) -> None:
            def make(original: Callable) -> Callable:
                # A function, as a method must be.
                return lambda *arguments, **options: wrong(original, *arguments, **options)

            self.add(name, wrong.__doc__, place, *changes, Change(owner, attribute, make))

        return written

    def weights(self, name: str, place: str, *changes: Change) -> Callable[[Callable[[State], None]], None]:
        """A fault as an edit of the weights on their way into a model; its docstring says what people do."""
        return lambda edit: self.add(name, edit.__doc__, place, *changes, loaded(edit))


@contextmanager
def planted(changes: Iterable[Change]) -> Iterator[None]:
    """Make the changes; afterwards everything is as it was, whatever happened."""
    with ExitStack() as stack:
        for change in changes:
            new = change.make(getattr(change.owner, change.name))
            if isinstance(vars(change.owner).get(change.name), staticmethod):
                new = staticmethod(new)
            stack.enter_context(patch.object(change.owner, change.name, new))
        yield


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
    return built(lambda model: setattr(dict(model.named_modules())[path], name, value))


def loaded(edit: Callable[[State], None]) -> Change:
    """Weights are edited on their way into a model, and what doesn't fit is left out without a word."""

    def make(original: Callable) -> Callable:
        def load(
            model: nn.Module, source: Mapping[str, np.ndarray] | Path, strict: bool = True, absent: tuple[str, ...] = ()
        ) -> convert.Coverage:
            values = dict(source) if isinstance(source, Mapping) else checkpoints.read(source).arrays
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
