"""What the judge asks of whole runs, beside what they need for themselves: the fields of the records of training and
evaluation. The notebooks 60_train and 70_evaluate call it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lib import backend, convert, losses, models, postprocess
from lib.alignment import equivalence
from lib.alignment.evidence import is_reference
from lib.alignment.seeded import seeded_input
from lib.alignment.verdict import REPEATS, ROUNDING
from lib.data import coco, stream
from lib.evaluation import evaluate, inference, published_form
from lib.models.step import Step
from lib.record import sha256
from lib.training import runs
from lib.training.log import curves, read_log
from lib.training.loop import Outcome
from lib.training.overfit import overfit

Fields, Arrays = dict[str, Any], dict[str, np.ndarray]

SAMPLES = 4  # validation images whose detections the report shows


def training(plans: Mapping[str, runs.Training], overfit_steps: int = 0) -> Fields:
    """Train each plan, by how it starts; the fields of the last, and under "starts" the numbers of all: COCO's before
    (None from fresh weights) and after, and of every evaluation; epoch -1 is before the first."""
    outcomes = {name: runs.train(plan) for name, plan in plans.items()}
    last, starts = list(plans)[-1], {}
    for name, outcome in outcomes.items():
        evaluations, best = curves(read_log(outcome.log))[1], outcome.best
        before = next((numbers for numbers in evaluations if numbers["epoch"] < 0), None)
        after = {**best["evaluation"], "epoch": best["epoch"]}
        starts[name] = {"before": before, "after": after, "evaluations": evaluations}
    return trained(plans[last], outcomes[last], overfit_steps) | {"starts": starts}


def trained(plan: runs.Training, outcome: Outcome, overfit_steps: int = 0) -> Fields:
    """Proof of equal beginnings, curves, final numbers, cost, and the overfit self-check of at most `overfit_steps` (0:
    not run)."""
    lines = read_log(outcome.log)
    columns, evaluations = curves(lines)
    batches = runs.loader(plan)
    first = next(iter(batches.iter_epoch(0)))
    model, origin = runs.network(plan, batches)
    names = [name for name in columns if "loss_" in name]
    learnt = overfit(plan.model, batches.dataset, plan.size, overfit_steps, plan.seed) if overfit_steps else None
    seconds, waited = sum(columns["step_seconds"]), sum(columns["wait_seconds"])
    return {
        "overfit": learnt,
        "start": asdict(origin) if origin else None,
        "initial_sha256": digest(convert.state(model)),
        "batches_sha256": hashlib.sha256(first.images.tobytes()).hexdigest(),
        "first_step": {"float32": {name: columns[name][0] for name in names}, **_first_step(plan, first, model)},
        "curves": columns,
        "before": next((line["evaluation"] for line in lines if line["epoch"] < 0), None),
        "epochs": [numbers for numbers in evaluations if numbers["epoch"] >= 0],
        "final": outcome.best["evaluation"],
        "steps": outcome.steps,
        "seconds": seconds,
        "waiting_seconds": waited,
        "waiting_share": waited / seconds,
        "images_per_second": outcome.steps * batches.batch / seconds,
        "cost": [{"epoch": line["epoch"], **line["cost"]} for line in lines if "cost" in line],
        "checkpoint": {"path": str(outcome.weights), "sha256": sha256(outcome.weights)},
        "last": {"path": str(outcome.last), "sha256": sha256(outcome.last)},
    }


def digest(state: Mapping[str, np.ndarray]) -> str:
    """One SHA-256 over the names and bytes of a state."""
    total = hashlib.sha256()
    for name, array in state.items():
        total.update(name.encode() + array.tobytes())
    return total.hexdigest()


def _first_step(plan: runs.Training, batch: Any, model: backend.nn.Module) -> dict[str, Any]:
    """The first step's losses in float64: the others' rounding noise; on the reference's side also in float32 under
    images moved by one rounding: of a scalar, one run is a poor sample of that noise. A distilled model's are not asked
    for.

    `model` is the plan's as it starts; it is of no use afterwards.
    """
    if plan.teacher:
        return {}
    criterion = losses.build(plan.model, len(coco.load(coco.splits(plan.data)[0]).classes))

    def values(images: np.ndarray) -> dict[str, float]:
        model.train().step = Step(0, stream(plan.seed, "model", 0), batch.targets)
        parts = criterion(model(backend.tensor(images)), batch.targets, image_size=images.shape[2:])
        return dict(zip(parts, backend.floats(list(parts.values())), strict=True))

    found = {}
    if is_reference(backend.NAME):
        noise = (seeded_input(f"repeat_{index}", batch.images.shape) for index in range(REPEATS))
        found["repeats"] = [values((batch.images * (1 + ROUNDING * moved)).astype(np.float32)) for moved in noise]
    model = backend.float64(model)
    return found | {"float64": values(batch.images.astype(np.float64))}


def evaluation(model: str, data: str, own: Path, common: Path, size: tuple[int, int]) -> tuple[Fields, Arrays]:
    """Evaluate the weights this side trained, and the torch-trained weights that every side evaluates.

    The second separates inference from training: equal weights must give equal detections.
    """
    dataset = coco.load(coco.splits(data)[1])
    ids = [image.id for image in dataset.images]
    settings = postprocess.settings(model)
    fields: Fields = {
        "images": len(dataset.images),
        "classes": list(dataset.classes),
        "score_threshold": settings.score_threshold,
        "max_detections": settings.max_detections,
        "common_weights_sha256": sha256(common),
    }
    arrays: Arrays = {}
    for name, path, precision in (
        ("own", own, "float32"),
        ("common", common, "float32"),
        ("common", common, "float64"),
    ):
        network = models.build(model, len(dataset.classes))
        convert.load(network, path)
        if precision == "float64":
            network = backend.float64(network)
        found = inference.detect(network, model, dataset, size, precision=precision)
        arrays[f"{precision}/{name}/detections"] = _with_ids(ids, found, precision)
        if precision == "float32":
            rows = published_form(ids, found, dataset.category_ids)
            result = evaluate(dataset.path, rows)
            fields[name], fields[f"{name}_per_class"] = result.numbers, result.per_class
            held = equivalence.matches(json.loads(Path(dataset.path).read_text(encoding="utf-8")), rows)
            arrays |= {f"matches/{name}/{key}": array for key, array in equivalence.arrays(held).items()}
    samples = [image for image in dataset.images if len(image.boxes)][:SAMPLES]
    fields["samples"] = [image.id for image in samples]
    for image in samples:
        arrays |= {
            f"sample/{image.id}/image": coco.read_image(image)[:, :, ::-1],
            f"sample/{image.id}/boxes": image.boxes,
            f"sample/{image.id}/labels": image.labels,
        }
    return fields, arrays


def _with_ids(ids: list[int], found: list[np.ndarray], precision: str) -> np.ndarray:
    """(m, 7): image id, then the detection's six columns."""
    rows = [np.insert(np.asarray(rows, precision), 0, image, axis=1) for image, rows in zip(ids, found, strict=True)]
    return np.concatenate(rows)
