"""Where a training starts if not from fresh weights: a checkpoint, perhaps of other classes, or a backbone."""

from dataclasses import dataclass
from pathlib import Path

from lib import convert, models
from lib.backend import nn
from lib.errors import UserError, some
from lib.record import sha256
from lib.training import checkpoints

BACKBONE = "backbone."
COUNTER = ".num_batches_tracked"  # of a norm; only some formats keep it, and nothing here depends on its value


@dataclass(frozen=True)
class Origin:
    """What was loaded; the names are the model's, `left_over` the file's."""

    kind: str  # "weights" or "backbone"
    path: str
    sha256: str
    loaded: int  # entries
    first_values: tuple[str, ...]  # what keeps its first values: entries that depend on the classes, or parts
    left_over: tuple[str, ...]  # entries of the file that are no part of the backbone
    weights: checkpoints.Weights  # what the file holds

    def __str__(self) -> str:
        taken = f", {self.weights}" if str(self.weights) else ""
        kept = f"; first values stay in {some(self.first_values)}" if self.first_values else ""
        left = f"; not used: {some(self.left_over)}" if self.left_over else ""
        return f"{self.path}: {self.loaded} entries loaded{taken}{kept}{left}"


def load_weights(model: nn.Module, name: str, classes: int, path: str | Path, absent: tuple[str, ...] = ()) -> Origin:
    """Load a checkpoint of the model `name`, built for `classes`, strictly.

    A checkpoint of another number of classes is recognised by the shape of an entry that depends on that number: all
    these entries keep the model's first values, as do the `absent` parts (see convert.load); nothing else may be
    missing, left over or misshapen.
    """
    read = checkpoints.read(path)
    values, own = read.arrays, convert.state(model)
    others = class_entries(name, classes)
    fresh = others if any(entry in values and values[entry].shape != own[entry].shape for entry in others) else ()
    found = {entry: value for entry, value in values.items() if entry not in fresh}
    coverage = convert.load(model, found, absent=(*fresh, *absent), source=path)
    lacking = [entry for entry in coverage.absent if entry not in fresh]
    parts = tuple(part for part in absent if any(entry.startswith(part) or entry.endswith(part) for entry in lacking))
    first = (*(entry for entry in fresh if not entry.startswith(parts)), *parts)
    return Origin("weights", str(path), sha256(path), len(coverage.loaded), first, (), read)


def class_entries(name: str, classes: int) -> tuple[str, ...]:
    """The model's entries whose shape depends on the number of classes, in its order."""
    mine, more = (convert.state(models.build(name, count, seed=None)) for count in (classes, classes + 1))
    return tuple(entry for entry, value in mine.items() if value.shape != more[entry].shape)


def load_backbone(model: nn.Module, path: str | Path) -> Origin:
    """Load the backbone from its own checkpoint (ImageNet's, with or without "backbone." before the names), strictly.

    Every entry of the backbone must be there. What the file has beside it may only be other parts, as a classifier, or
    counters of norms; one more block of a stage means another backbone.
    """
    read = checkpoints.read(path)
    values = read.arrays
    if not any(name.startswith(BACKBONE) for name in values):
        values = {BACKBONE + name: value for name, value in values.items()}
    own = convert.state(model)
    stages = {name.split(".")[1] for name in own if name.startswith(BACKBONE)}
    outside = tuple(name for name in values if not (name.startswith(BACKBONE) and name.split(".")[1] in stages))
    counters = {name for name in values if name.endswith(COUNTER) and name not in own}
    found = {name: value for name, value in values.items() if name not in counters.union(outside)}
    rest = tuple(dict.fromkeys(name.split(".")[0] + "." for name in own if not name.startswith(BACKBONE)))
    uncounted = (name for name in own if name.startswith(BACKBONE) and name.endswith(COUNTER) and name not in values)
    if not found:
        raise UserError(
            f"{path}: has none of the backbone's entries, such as {next(iter(own))}; give weights of this backbone"
        )
    coverage = convert.load(model, found, absent=(*rest, *uncounted), source=path)
    left = tuple(name.removeprefix(BACKBONE) for name in outside)
    return Origin("backbone", str(path), sha256(path), len(coverage.loaded), rest, left, read)
