"""Training steps as the engine records them, in as many processes as start this: DATA SIZE BATCH FOLDER.

The first process writes `sound.json`; several also write, for each way to train wrongly, a file of its name.
"""

import json
import sys
from pathlib import Path
from unittest import mock

from lib import backend, convert, losses, models
from lib.alignment import references, steps
from lib.record import plain
from lib.training import parallel, runs

MODEL, STEPS = "nanodet-plus-m_320", 1


def halved(tensors):
    return [t * 0.5 for t in whole(tensors)]


whole = backend.all_reduce_each
WRONG = {  # name -> what is replaced by what
    "statistics of its own images": ("synchronise", lambda model: None),
    "the mean of the gradients": ("all_reduce_each", halved),
}


def record(data: str, size: int, batch: int) -> dict:
    """The fields of a lock-step in both precisions."""
    plan = runs.Training(MODEL, data, "", (size, size), batch, epochs=50)
    loader = runs.loader(plan)

    def trainer(precision: str) -> steps.Watched:
        model = runs.network(plan, loader, drawn=False)[0]
        state = convert.state(model)
        seeded = references.case(MODEL, "loss").weights({name: array.shape for name, array in state.items()})
        convert.load(model, state | seeded)
        model = backend.float64(model) if precision == "float64" else model
        criterion, groups = losses.build(MODEL, len(loader.dataset.classes)), models.parameter_groups(MODEL, model)
        return steps.Watched(model, criterion, runs.recipe(plan, loader), len(loader), groups)

    trainers = {precision: trainer(precision) for precision in ("float32", "float64")}
    return plain(steps.lockstep(trainers, steps.native(list(loader.iter_epoch(0))), STEPS, ())[0])


def main(data: str, size: str, batch: str, folder: str) -> None:
    def write(name: str) -> None:
        fields = record(data, int(size), int(batch))
        if backend.rank() == 0:
            Path(folder, f"{name}.json").write_text(json.dumps(fields))

    write("sound")
    for name, (replaced, by) in WRONG.items() if backend.world() > 1 else ():
        with mock.patch.object(backend, replaced, by):
            write(name)


if __name__ == "__main__":
    with parallel.member(2):
        main(*sys.argv[1:])
