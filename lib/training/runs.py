"""Whole runs on a data set, and what their records hold: training and evaluation. Notebooks and command line call these."""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib import backend, convert, losses, models, postprocess
from lib.alignment import equivalence
from lib.alignment.evidence import is_reference
from lib.alignment.seeded import seeded_input
from lib.alignment.verdict import REPEATS, ROUNDING
from lib.data import coco, stream, transforms
from lib.data.loader import Loader
from lib.errors import UserError
from lib.evaluation import evaluate, inference, published_form
from lib.models.step import Step
from lib.record import sha256
from lib.training import loop as training
from lib.training import pretrained, schedule
from lib.training.log import curves, read_log
from lib.training.overfit import overfit

Fields, Arrays = dict[str, Any], dict[str, np.ndarray]

SAMPLES = 4  # validation images whose detections the report shows


@dataclass(frozen=True)
class Training:
    """What to train on what. None stands for the published value."""

    model: str
    data: str  # folder with train.json and val.json, or one COCO file for both
    folder: str  # of the run: log, checkpoint, weights
    input_size: tuple[int, int] | None = None  # height, width; multiples of 32
    batch: int | None = None  # images per step
    epochs: int | None = None
    rate: float = 1.0  # times the published learning rate
    evaluate_every: int = 10  # epochs
    seed: int = 0
    workers: int = 2  # threads that prepare images
    weights: str | None = None  # start from this checkpoint of the model, perhaps of another number of classes
    backbone: str | None = None  # or from these weights of its backbone alone
    precision: str = "float32"  # or "mixed", on a GPU
    teacher: str | None = None  # weights of the model that Gold-YOLO is distilled from
    absent: tuple[str, ...] = ()  # parts that `weights` may lack, see convert.load: they start fresh

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("epochs", 1), ("evaluate_every", 1), ("workers", 1), ("seed", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"training: {name} is {value}; give at least {least}")
        if not 0 < self.rate < math.inf:
            raise UserError(f"training: rate is {self.rate:g}, a factor of the published one; give a number above 0")
        if self.input_size:
            inference.checked_size(self.input_size)
        if self.absent and not self.weights:
            raise UserError(
                f"training: {' '.join(self.absent)} may be absent from weights, but none are given; name them too"
            )
        if self.weights and self.backbone:
            raise UserError(f"training: {self.weights} holds a backbone already; give either weights or a backbone")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network input."""
        return self.input_size or models.input_size(self.model)

    @property
    def inputs(self) -> list[str]:
        """The files that the run reads, without images."""
        return [
            *map(str, coco.splits(self.data)),
            *(path for path in (self.weights, self.backbone, self.teacher) if path),
        ]


def loader(plan: Training) -> Loader:
    """The training batches of the plan."""
    train = coco.load(coco.splits(plan.data)[0])
    published = schedule.recipe(plan.model)
    augmentation = transforms.recipe(plan.model)
    return Loader(
        train,
        augmentation,
        plan.size,
        plan.batch or published.batch,
        plan.seed,
        plan.workers,
        train=True,
        epochs=plan.epochs or published.epochs,
    )


def recipe(plan: Training, batches: Loader) -> schedule.Recipe:
    """The published recipe, scaled to the plan."""
    published = schedule.recipe(plan.model)
    return schedule.scaled(
        published,
        len(batches.dataset.images),
        batch=batches.batch,
        epochs=plan.epochs or published.epochs,
        rate=plan.rate,
        size=plan.size,
    )


def network(plan: Training, batches: Loader) -> tuple[backend.nn.Module, pretrained.Origin | None]:
    """The model as the plan starts it, and where its weights come from (None: fresh)."""
    classes = len(batches.dataset.classes)
    model = models.build(plan.model, classes, plan.seed)
    if sides := recipe(plan, batches).sides:
        model.multi_scale = sides
    if plan.weights:
        return model, pretrained.load_weights(model, plan.model, classes, plan.weights, plan.absent)
    if plan.backbone:
        return model, pretrained.load_backbone(model, plan.backbone)
    return model, None


def criterion(plan: Training, batches: Loader) -> Callable:
    """The model's criterion, or its distillation's where the plan has a teacher."""
    classes = len(batches.dataset.classes)
    if plan.teacher:
        return losses.build_distillation(plan.model, classes, recipe(plan, batches).epochs)
    return losses.build(plan.model, classes)


def distillation(plan: Training, batches: Loader) -> tuple[backend.nn.Module | None, pretrained.Origin | None]:
    """The plan's teacher and where its weights come from; UserError if they are of another model or other classes."""
    if not plan.teacher:
        return None, None
    name, classes = losses.teacher(plan.model), len(batches.dataset.classes)
    model = models.build(name, classes, plan.seed)
    origin = pretrained.load_weights(model, name, classes, plan.teacher)
    if origin.first_values:
        raise UserError(
            f"{plan.teacher}: a teacher must know the {classes} classes of {batches.dataset.path}; train one on them, "
            f"as model {name}"
        )
    return model, origin


def train(plan: Training, replace: bool = True) -> training.Outcome:
    """Train; the same plan again continues an interrupted run bit for bit. replace: see training.train."""
    batches = loader(plan)
    val = coco.load(coco.splits(plan.data)[1])
    if batches.dataset.classes != val.classes:
        raise UserError(f"{val.path}: its classes are not those of {batches.dataset.path}; make both from one data set")
    model, origin = network(plan, batches)
    say_start(plan, model, origin)

    teacher, taught = distillation(plan, batches)

    def numbers(averaged: backend.nn.Module) -> dict[str, float]:
        return inference.evaluate_model(averaged, plan.model, val, plan.size, workers=plan.workers)[0].numbers

    return training.train(
        model,
        criterion(plan, batches),
        batches,
        recipe(plan, batches),
        plan.folder,
        groups=models.parameter_groups(plan.model, model),
        seed=plan.seed,
        evaluate=numbers,
        evaluate_every=plan.evaluate_every,
        evaluate_before=origin is not None,
        identity={
            "model": plan.model,
            "data": plan.data,
            "size": list(plan.size),
            "seed": plan.seed,
            "start": origin and origin.sha256,
            "teacher": taught and taught.sha256,
        },
        precision=plan.precision,
        teacher=teacher,
        replace=replace,
    )


def say_start(plan: Training, model: backend.nn.Module, origin: pretrained.Origin | None) -> None:
    """Print what was loaded, or on stderr that a part which is never trained stays random.

    No error: the checks at small sizes run such models too.
    """
    if origin:
        print(origin, flush=True)
    elif frozen := getattr(model, "frozen_names", ()):
        print(
            f"warning: {plan.model}: the backbone's stem ({len(frozen)} parameters) and its norms are never trained and stay as "
            "random as they are; give ImageNet weights of the backbone (--backbone) or a checkpoint (--weights)",
            file=sys.stderr,
            flush=True,
        )


def training_record(plan: Training, outcome: training.Outcome, overfit_steps: int = 0) -> Fields:
    """What the training record holds: proof of equal beginnings, curves, final numbers, cost, and the overfit self-check
    of at most `overfit_steps` (0: not run)."""
    lines = read_log(outcome.log)
    columns, evaluations = curves(lines)
    batches = loader(plan)
    first = next(iter(batches.iter_epoch(0)))
    model, origin = network(plan, batches)
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


def _first_step(plan: Training, batch: Any, model: backend.nn.Module) -> dict[str, dict[str, float]]:
    """The first step's losses in float64, where the backend computes wholly in it: the others' rounding noise; on the
    reference's side also in float32 under images moved by one rounding: of a scalar, one run is a poor sample of that noise.
    A distilled model's are not asked for.

    `model` is the plan's as it starts; it is of no use afterwards.
    """
    if backend.FLOAT64 != "full" or plan.teacher:
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
        "images": len(dataset.images),
        "classes": list(dataset.classes),
        "score_threshold": settings.score_threshold,
        "max_detections": settings.max_detections,
        "common_weights_sha256": sha256(common),
    }
    arrays: Arrays = {}
    for name, path, precision in [("own", own, "float32"), ("common", common, "float32")] + (
        [("common", common, "float64")] if backend.FLOAT64 == "full" else []
    ):
        network = models.build(model, len(dataset.classes))
        convert.load(network, path)
        if precision == "float64":
            network = backend.float64(network)
        found = inference.detect(network, model, dataset, size, precision=precision)
        ids = [image.id for image in dataset.images]
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
