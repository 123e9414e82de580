"""The records of one model, as the questions read them."""

from pathlib import Path
from typing import Any

import numpy as np

from lib import record
from lib.errors import UserError

SIDES = ("published", "torch", "jittor")
REFERENCE = "torch"  # of the two frameworks the one that the other is held against: it captures, and runs the controls
PAIRS = (("published", "torch"), ("published", "jittor"), ("torch", "jittor"))


def is_reference(side: str) -> bool:
    """Whether the other framework is held against this side."""
    return side == REFERENCE


def pointer(run_id: str, *keys: str | int) -> str:
    """Where a number stands: the record's id and the JSON pointer (RFC 6901) into its file."""
    return f"{run_id}#/{'/'.join(str(key).replace('~', '~0').replace('/', '~1') for key in keys)}"


class Evidence:
    """Reads `<folder>/<model>/<side>/<stage>.json` on demand; the arrays of one stage are held at a time."""

    def __init__(self, folder: str | Path, model: str):
        self.folder, self.model = Path(folder), model
        self._records: dict[tuple[str, str], record.Record | None] = {}
        self._stage, self._arrays = "", {}
        self.derived: dict[tuple[str, str], list] = {}  # what `derived.again` found of a side and stage

    def get(self, side: str, stage: str) -> record.Record | None:
        """The record, or None where that stage was not run on that side."""
        key = (side, stage)
        if key not in self._records:
            path = self.path(side, stage)
            found = record.read(path) if path.exists() else None
            if found and found.run_id != self.run_id(side, stage):
                raise UserError(
                    f"{path}: is the record {found.run_id}: put it back in its place, or run the stage again"
                )
            self._records[key] = found
        return self._records[key]

    def field(self, side: str, stage: str, *keys: str) -> Any:
        """A field of a record; UserError that names record and field where either is absent."""
        if (found := self.get(side, stage)) is None:
            raise UserError(f"{self.path(side, stage)}: the record is missing; run the stage again")
        value: Any = found.fields
        for depth, key in enumerate(keys):
            if not isinstance(value, dict) or key not in value:
                raise UserError(
                    f"{self.path(side, stage)}: has no field {'/'.join(keys[: depth + 1])}; run the stage again"
                )
            value = value[key]
        return value

    def arrays(self, side: str, stage: str, prefix: str = "") -> dict[str, np.ndarray]:
        """The arrays whose name starts with `prefix`, without it, sorted."""
        if stage != self._stage:
            self._stage, self._arrays = stage, {}
        if side not in self._arrays:
            # safetensors gives them in an order of its own, another one each time.
            self._arrays[side] = dict(sorted(record.load_arrays(self.path(side, stage)).items()))
        return {name[len(prefix) :]: array for name, array in self._arrays[side].items() if name.startswith(prefix)}

    def run_id(self, side: str, stage: str) -> str:
        return f"{self.model}/{side}/{stage}"

    def path(self, side: str, stage: str) -> Path:
        """Where the record of a side's stage lies."""
        return self.folder / self.model / side / f"{stage}.json"
