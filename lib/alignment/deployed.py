"""Whether an exported file is the model that it was made from, on pictures, by the gate that judges everything.

Noise is PyTorch's: its float32 run against its float64 run of the model in eval(), as it is trained. The file is held
against that float64 run and against Jittor's float32 run, which is a process of its own: this module with a folder that
says what to run. RT-DETR's queries are nobody's order: each is set beside the one of the other run that is nearest.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from scipy.optimize import linear_sum_assignment

from lib import backend, convert, models
from lib.alignment import by_family
from lib.alignment.compare import compare_sets
from lib.alignment.measure import Arrays, cast, features
from lib.alignment.verdict import K, Row, judge, noise_floors
from lib.backend import nn
from lib.data import coco, images, scenes, transforms
from lib.errors import UserError, exit_code
from lib.evaluation.exported import Exported
from lib.machine import environment

PICTURES = 4  # three in a batch and one alone: the file must take any number
SIDES = {"torch": "PyTorch", "jittor": "Jittor"}


@dataclass(frozen=True)
class Judged:
    """What the gate says of a file; pictures: how many say it, apart: how many can't, as one rounding may decide there
    which queries RT-DETR takes. rows: by the side that the file is held against; none where that is not installed."""

    rows: dict[str, list[Row]]
    pictures: int
    apart: int

    @property
    def failing(self) -> list[str]:
        return [f"{row.name} ({SIDES[side]})" for side, rows in self.rows.items() for row in rows if not row.passed]


def judged(path: Path, model: nn.Module, data: Path | None = None, shown: Path | None = None) -> Judged:
    """The file held against the model, which has its weights, in every framework that is installed.

    data: pictures to look at, a COCO file or its folder; the built-in scenes by default. shown: what errors call the
        file, where it does not yet lie in its place.
    """
    file = Exported(path, shown)
    given = _batches(file, data)
    single = _run(file.name, model, given)
    exact = _run(file.name, backend.float64(copy.deepcopy(model)), [cast(batch, "float64") for batch in given])
    apart = _undecided(exact, single)
    kept = ~apart
    if not kept.any():
        raise UserError(
            f"{shown or path}: one rounding decides on every picture which queries it takes; give others by --data"
        )
    exact = _chosen(exact, kept)
    floors = noise_floors(exact, _beside(exact, _chosen(single, kept)))
    found = _beside(exact, _chosen(_run(file.name, file, given), kept))
    rows = {"torch": judge(compare_sets(exact, found, "float32"), floors, "max_abs")}
    if environment.complete(environment.JT.link):
        theirs = _beside(exact, _chosen(_run_in_jittor(file, model, given), kept))
        rows["jittor"] = judge(compare_sets(theirs, found), floors, "max_abs")
    return Judged(rows, int(kept.sum()), int(apart.sum()))


def _batches(file: Exported, data: Path | None) -> list[np.ndarray]:
    """The pictures as the network sees them."""
    if data is None:
        pictures = [scenes.draw(0, "val", index, 256).image for index in range(PICTURES)]
    else:
        pictures = [images.pixels(entry.file)[0] for entry in coco.load(coco.splits(data)[1]).images[:PICTURES]]
    recipe = transforms.recipe(file.name)
    prepared = [recipe.preprocess(picture, file.size)[0] for picture in pictures]
    return [transforms.stack(part) for part in (prepared[:-1], prepared[-1:]) if part]


def _run(name: str, model: nn.Module, batches: Sequence[np.ndarray]) -> Arrays:
    """What a model gives for all pictures; of RT-DETR, but for a file, also which tokens it takes and by what."""
    wanted = {
        feature: place
        for feature, place in models.intermediates(name).items()
        if feature in (by_family.SELECTED, by_family.SCORES) and not isinstance(model, Exported)
    }
    parts = []
    for batch in batches:
        with backend.no_grad(), features(model, wanted) as found:
            outputs = model(backend.tensor(batch))
        if isinstance(outputs, dict):
            parts.append({key: backend.numpy(value) for key, value in outputs.items()} | found)
        else:
            parts.append(by_family.named(name, outputs, {}))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _undecided(exact: Arrays, rounded: Arrays) -> np.ndarray:
    """(n,) whether K floors may decide which tokens become queries. Which of equal ones, the masked, is no matter."""
    count = len(next(iter(exact.values())))
    held = by_family.selection_margins(exact, rounded)
    if not held:
        return np.zeros(count, bool)
    other = np.sort(held[by_family.SELECTION].floors, 2)[:, :, 1]  # (n, t) how far each is from its other fate
    return np.where(other > 0, other, np.inf).min(1) <= K


def _chosen(arrays: Arrays, kept: np.ndarray) -> Arrays:
    """The outputs of these pictures."""
    return {key: array[kept] for key, array in arrays.items() if not key.startswith("decoder.")}


def _beside(reference: Arrays, found: Arrays) -> Arrays:
    """RT-DETR's outputs with each query where the reference has its own; others as they are."""
    if "pred_logits" not in found:
        return found
    ours, theirs = (np.concatenate([arrays["pred_logits"], arrays["pred_boxes"]], 2) for arrays in (reference, found))
    order = np.stack([_nearest(*pair) for pair in zip(ours, theirs)])[:, :, None]
    return {key: np.take_along_axis(array, order, 1) for key, array in found.items()}


def _nearest(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(q,) the row of theirs that belongs to each of ours, all of them one to one."""
    return linear_sum_assignment(np.abs(ours[:, None] - theirs[None]).max(2))[1]


# ------------------------------------------------------------------------------------------------------- Jittor's side
def _run_in_jittor(file: Exported, model: nn.Module, batches: Sequence[np.ndarray]) -> Arrays:
    with tempfile.TemporaryDirectory() as folder:
        asked = {"model": file.name, "classes": len(file.classes)}
        Path(folder, "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        safetensors.numpy.save_file(convert.state(model), Path(folder, "weights.safetensors"))
        pictures = {str(number): batch for number, batch in enumerate(batches)}
        safetensors.numpy.save_file(pictures, Path(folder, "pictures.safetensors"))
        environment.work(environment.JT, ["-m", "lib.alignment.deployed", folder], f"{file.name} in Jittor")
        return safetensors.numpy.load_file(Path(folder, "given.safetensors"))


def main(folder: str) -> None:
    """Run the folder's model in this framework on its pictures, and leave there what it gives."""
    asked = json.loads(Path(folder, "asked.json").read_text(encoding="utf-8"))
    model = models.build(asked["model"], asked["classes"], seed=None)
    convert.load(model, safetensors.numpy.load_file(Path(folder, "weights.safetensors")))
    pictures = safetensors.numpy.load_file(Path(folder, "pictures.safetensors"))
    given = _run(asked["model"], model.eval(), [pictures[number] for number in sorted(pictures)])
    safetensors.numpy.save_file(given, Path(folder, "given.safetensors"))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(*sys.argv[1:])))
