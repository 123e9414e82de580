"""Steps of a training as the engine records them, in as many processes as start this: MODEL DATA SIZE BATCH STEPS OUT."""

import json
import sys
from pathlib import Path

import numpy as np

from lib import backend
from lib.alignment import watch
from lib.record import plain
from lib.training import parallel, runs


def record(model: str, data: str, size: int, batch: int, steps: int, out: Path) -> None:
    """Files of the fields and arrays, written by the first process."""
    plan = runs.Training(model, data, str(out.parent), (size, size), batch, epochs=50)
    fields, arrays = watch.first_steps(plan, steps, seeded=not model.startswith("gold"))
    if backend.rank() == 0:
        out.write_text(json.dumps(plain(fields)))
        np.savez(out.with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    model, data, out, *numbers = sys.argv[1:]
    if not parallel.launched():
        record(model, data, *map(int, numbers), Path(out))
    else:
        with parallel.member(2):
            record(model, data, *map(int, numbers), Path(out))
