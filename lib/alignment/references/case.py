"""A published case: the state from which three sides start, and what a training stage does from there."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.alignment.seeded import seeded_array, seeded_input
from lib.models.step import Step
from lib.record import ROOT

GOLDEN = ROOT / "tests" / "golden"
Arrays = dict[str, np.ndarray]
Found = tuple[dict[str, Any], Arrays] | None  # fields and arrays of a record; None: the file has nothing of this case


def as_seeded(values: Arrays) -> Arrays:
    """No change after seeding."""
    return values


@dataclass(frozen=True)
class Phase:
    """One way to run a training step: what the model and the criterion are told."""

    step: Step = Step()
    criterion: Mapping[str, Any] = field(default_factory=dict)  # attributes of the criterion


@dataclass(frozen=True)
class Update:
    """One optimiser step of the published recipe from a phase's gradients."""

    name: str
    phase: str
    learning_rate: float  # of a group with factor 1
    clip: float | None  # largest global L2 norm of the gradient; None: not clipped


@dataclass(frozen=True)
class Case:
    """Seeded weights, adjusted, and a seeded input; in training also boxes, phases and an update."""

    name: str  # of the case, equal on every side that measured it
    file: str  # its golden record, below GOLDEN; may be absent
    num_classes: int = 80
    size: tuple[int, int] = (320, 320)  # of the input
    images: str = "image"  # name of the seeded input
    batch: int = 1
    adjust: Callable[[Arrays], Arrays] = as_seeded  # what is done to the seeded entries
    targets: tuple[dict[str, np.ndarray], ...] = ()
    phases: Mapping[str, Phase] = field(default_factory=dict)
    update: Update | None = None

    def weights(self, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """The entries of these shapes, but for constants, which have no seed."""
        values = {name: seeded_array(name, shape) for name, shape in shapes.items()}
        return self.adjust({name: value for name, value in values.items() if value is not None})

    def input(self) -> np.ndarray:
        """float32 (batch, 3, h, w)."""
        return seeded_input(self.images, (self.batch, 3, *self.size))

    def digest(self, name: str, shape: tuple[int, ...]) -> str | None:
        """SHA-256 of the entry's bytes; None for constants, which have no seed."""
        values = self.weights({name: tuple(shape)})
        return hashlib.sha256(values[name].tobytes()).hexdigest() if name in values else None

    def has_golden(self) -> bool:
        """Whether the published implementation's numbers of this case are here."""
        return (GOLDEN / self.file).exists()


def content_of(source: Path) -> dict[str, Any]:
    """The JSON part of a golden record."""
    return json.loads(source.read_text())


def arrays_of(source: Path) -> Arrays:
    """The arrays beside a golden record; none where it has no such file."""
    path = source.with_suffix(".npz")
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
