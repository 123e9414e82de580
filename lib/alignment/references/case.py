"""A published case: the state from which three sides start, and what a training stage does from there."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.alignment.seeded import seeded_input, seeded_state
from lib.models.step import Step
from lib.record import ROOT

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms, which nobody trains
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
        return self.adjust(seeded_state(shapes.items()))

    def input(self) -> np.ndarray:
        """float32 (batch, 3, h, w)."""
        return seeded_input(self.images, (self.batch, 3, *self.size))

    def digest(self, name: str, shape: tuple[int, ...]) -> str | None:
        """SHA-256 of the entry's bytes; None for constants, which have no seed."""
        values = self.weights({name: tuple(shape)})
        return hashlib.sha256(values[name].tobytes()).hexdigest() if name in values else None


# ------------------------------------------------------------------------------------------------- of golden records
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


def renamed(stored: Arrays, rules: Mapping[str, str]) -> Arrays:
    """The stored arrays under the record's names, by rules: pattern of a whole name -> what it becomes.

    An array that no rule knows is one that no question asks for. Runs are called as the records call them.
    """
    found = {}
    for name, array in stored.items():
        matches = (match.expand(said) for rule, said in rules.items() if (match := re.fullmatch(rule, name)))
        if new := next(matches, None):
            found[new] = array
    return found


def pixels(images: Iterable[Iterable[tuple[float, ...]]], size: int) -> tuple[dict[str, np.ndarray], ...]:
    """Targets of images whose boxes are rows of label, centre x, centre y, width, height as parts of `size` pixels.

    Boxes xyxy, float64 from the float32 fractions that the published code has.
    """
    found = []
    for rows in images:
        fractions = np.array(rows, np.float32)[:, 1:].astype(np.float64)
        centre, half = fractions[:, :2] * size, fractions[:, 2:] * size / 2
        boxes, labels = np.concatenate([centre - half, centre + half], 1), np.array([row[0] for row in rows], np.int64)
        found.append({"boxes": boxes, "labels": labels})
    return tuple(found)


def scaled(values: Arrays, rules: Iterable[tuple[str, float, float]]) -> Arrays:
    """Weights changed by rules (pattern of an entry, factor, summand)."""
    changed = {
        name: array * np.float32(factor) + np.float32(summand)
        for pattern, factor, summand in rules
        for name, array in values.items()
        if re.search(pattern, name)
    }
    return values | changed


def spec(case: Case, state: Iterable[tuple], fixed: Callable[[str], bool], parameters: int, norms: int) -> Found:
    """What a converted model must be: state rows (name, shape, type), what is not trained beside statistics, counts."""
    kinds = {name: "buffer" if fixed(name) or name.endswith(STATISTICS) else "param" for name, _, _ in state}
    rows = [[name, shape, type_, kinds[name], case.digest(name, shape)] for name, shape, type_ in state]
    return {"state": rows, "parameters": parameters, "norm_layers": {"BatchNorm2d": norms, "GroupNorm": 0}}, {}


def features(entries: Iterable[Mapping], left_out: Callable[[str], bool]) -> dict[str, Any]:
    """Statistics of features in the order of execution, which golden records round."""
    return {
        f"features/{entry['name']}": {"shape": entry["shape"], "l2": entry["l2"], "rounded": True}
        for entry in entries
        if not left_out(entry["name"])
    }


def timed(cases: Iterable[tuple]) -> Found:
    """Times of PyTorch on the CPU: work, batch, side of the input, median in matrix products and in seconds; and the
    form of the model, where it is not the one that is trained."""
    found = [
        {
            "operation": work,
            "batch": batch,
            "size": [side, side],
            "units": units,
            "synchronised_ms": {"median": 1e3 * seconds},
            **dict(zip(("form",), form)),
        }
        for work, batch, side, units, seconds, *form in cases
    ]
    return ({"deferred": False, "cases": found}, {}) if found else None
