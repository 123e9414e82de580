"""Whole runs on a data set, and what their records hold: training and evaluation. Notebooks and command line call these."""
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib import backend, convert, inference, losses, models, postprocess, schedule, training
from lib.data import coco, stream, transforms
from lib.data.loader import Loader
from lib.evaluation import evaluate, published_form
from lib.models.step import Step
from lib.overfit import overfit
from lib.record import sha256
from lib.tables import curves

Fields, Arrays = dict[str, Any], dict[str, np.ndarray]

SAMPLES = 4  # validation images whose detections the report shows


@dataclass(frozen=True)
class Training:
    """What to train on what. None stands for the published value."""

    model: str
    data: str                           # folder with train.json and val.json, or one COCO file for both
    folder: str                         # of the run: log, checkpoint, weights
    input_size: tuple[int, int] | None = None  # height, width; multiples of 32
    batch: int | None = None            # images per step
    epochs: int | None = None
    rate: float = 1.0                   # times the published learning rate
    evaluate_every: int = 10            # epochs
    seed: int = 0
    workers: int = 2                    # threads that prepare images
    weights: str | None = None          # start from these instead of fresh ones

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network input."""
        return self.input_size or models.input_size(self.model)


def loader(plan: Training) -> Loader:
    """The training batches of the plan."""
    train = coco.load(coco.splits(plan.data)[0])
    published = schedule.recipe(plan.model)
    recipe = transforms.recipe(plan.model, models.family(plan.model))
    return Loader(train, recipe, plan.size, plan.batch or published.batch, plan.seed, plan.workers, train=True,
                  epochs=plan.epochs or published.epochs)


def train(plan: Training) -> training.Outcome:
    """Train; the same plan again continues an interrupted run bit for bit."""
    batches = loader(plan)
    val = coco.load(coco.splits(plan.data)[1])
    published = schedule.recipe(plan.model)
    recipe = schedule.scaled(published, len(batches.dataset.images), batch=batches.batch,
                             epochs=plan.epochs or published.epochs, rate=plan.rate)
    model = models.build(plan.model, len(val.classes), plan.seed)
    if plan.weights:
        convert.load(model, plan.weights)

    def numbers(averaged: backend.nn.Module) -> dict[str, float]:
        return inference.evaluate_model(averaged, plan.model, val, plan.size, workers=plan.workers)[0].numbers

    return training.train(
        model, losses.build(plan.model, len(val.classes)), batches, recipe, plan.folder,
        groups=models.parameter_groups(plan.model, model), seed=plan.seed, evaluate=numbers,
        evaluate_every=plan.evaluate_every,
        identity={"model": plan.model, "data": plan.data, "size": list(plan.size), "seed": plan.seed},
    )


def training_record(plan: Training, outcome: training.Outcome, overfit_steps: int = 0) -> Fields:
    """What the training record holds: proof of equal beginnings, curves, final numbers, cost, and the overfit self-check
    of at most `overfit_steps` (0: not run)."""
    columns, evaluations = curves(training.read_log(outcome.log))
    batches = loader(plan)
    first = next(iter(batches.iter_epoch(0)))
    model = models.build(plan.model, len(batches.dataset.classes), plan.seed)
    names = [name for name in columns if "loss_" in name]
    learnt = overfit(plan.model, batches.dataset, plan.size, overfit_steps, plan.seed) if overfit_steps else None
    return {
        "overfit": learnt,
        "initial_sha256": digest(convert.state(model)),
        "batches_sha256": hashlib.sha256(first.images.tobytes()).hexdigest(),
        "first_step": {"float32": {name: columns[name][0] for name in names}, **_first_step(plan, first)},
        "curves": columns,
        "epochs": evaluations,
        "final": outcome.best["evaluation"],
        "steps": outcome.steps,
        "seconds": sum(columns["step_seconds"]),
        "waiting_seconds": sum(columns["wait_seconds"]),
        "checkpoint": {"path": str(outcome.weights), "sha256": sha256(outcome.weights)},
    }


def _first_step(plan: Training, batch) -> dict[str, dict[str, float]]:
    """The first step's losses in float64, where the backend computes wholly in it: the others' rounding noise."""
    if backend.FLOAT64 != "full":
        return {}
    classes = len(coco.load(coco.splits(plan.data)[0]).classes)
    model = backend.float64(models.build(plan.model, classes, plan.seed)).train()
    model.step = Step(0, stream(plan.seed, "model", 0), batch.targets)
    outputs = model(backend.tensor(batch.images.astype(np.float64)))
    parts = losses.build(plan.model, classes)(outputs, batch.targets, image_size=batch.images.shape[2:])
    return {"float64": dict(zip(parts, backend.floats(list(parts.values())), strict=True))}


def digest(state: Mapping[str, np.ndarray]) -> str:
    """One SHA-256 over the names and bytes of a state."""
    total = hashlib.sha256()
    for name, array in state.items():
        total.update(name.encode() + array.tobytes())
    return total.hexdigest()


def evaluation_record(model: str, data: str, own: Path, common: Path, size: tuple[int, int]) -> tuple[Fields, Arrays]:
    """Evaluate the weights this side trained, and the torch-trained weights that every side evaluates.

    The second separates inference from training: equal weights must give equal detections.
    """
    dataset = coco.load(coco.splits(data)[1])
    settings = postprocess.settings(model)
    fields: Fields = {
        "images": len(dataset.images), "classes": list(dataset.classes), "score_threshold": settings.SCORE_THRESHOLD,
        "max_detections": settings.MAX_DETECTIONS, "common_weights_sha256": sha256(common)}  # fmt: skip
    arrays: Arrays = {}
    for name, path, precision in [("own", own, "float32"), ("common", common, "float32")] + (
            [("common", common, "float64")] if backend.FLOAT64 == "full" else []):
        network = models.build(model, len(dataset.classes))
        convert.load(network, path)
        if precision == "float64":
            network = backend.float64(network)
        found = inference.detect(network, model, dataset, size, precision=precision)
        ids = [image.id for image in dataset.images]
        arrays[f"{precision}/{name}/detections"] = _with_ids(ids, found, precision)
        if precision == "float32":
            result = evaluate(dataset.path, published_form(ids, found, dataset.category_ids))
            fields[name], fields[f"{name}_per_class"] = result.numbers, result.per_class
    samples = [image for image in dataset.images if len(image.boxes)][:SAMPLES]
    fields["samples"] = [image.id for image in samples]
    for image in samples:
        arrays |= {f"sample/{image.id}/image": coco.read_image(image)[:, :, ::-1], f"sample/{image.id}/boxes": image.boxes,
                   f"sample/{image.id}/labels": image.labels}
    return fields, arrays


def _with_ids(ids: list[int], found: list[np.ndarray], precision: str) -> np.ndarray:
    """(m, 7): image id, then the detection's six columns."""
    rows = [np.insert(np.asarray(rows, precision), 0, image, axis=1) for image, rows in zip(ids, found, strict=True)]
    return np.concatenate(rows)
