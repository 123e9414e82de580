"""A training of a model on a data set, as notebooks and the command line ask for it, from what it starts."""

import hashlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from lib import backend, convert, losses, models
from lib.data import coco, transforms
from lib.data.loader import Loader
from lib.errors import UserError
from lib.evaluation import inference
from lib.models.step import ParameterGroup
from lib.record import sha256
from lib.training import log, loop, pretrained, schedule
from lib.training.log import curves, read_log

IMAGENET, FINE_TUNED, FRESH = "ImageNet start", "fine-tuned", "fresh weights"  # how a training starts
REPEATS = "repeats"  # folder in a training's own, of those that repeat it


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
            absent = " ".join(self.absent)
            raise UserError(f"training: {absent} may be absent from weights, but none are given; name them too")
        if self.weights and self.backbone:
            raise UserError(f"training: {self.weights} holds a backbone already; give either weights or a backbone")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network input."""
        return self.input_size or models.input_size(self.model)

    @property
    def inputs(self) -> list[str]:
        """The files that the run reads, without images."""
        return [*map(str, coco.splits(self.data)), *filter(None, (self.weights, self.backbone, self.teacher))]


def loader(plan: Training) -> Loader:
    train = coco.load(coco.splits(plan.data)[0])
    published, augmentation = schedule.recipe(plan.model), transforms.recipe(plan.model)
    batch, epochs = plan.batch or published.batch, plan.epochs or published.epochs
    part = backend.rank(), backend.world()
    return Loader(train, augmentation, plan.size, batch, plan.seed, plan.workers, True, epochs, part)


def recipe(plan: Training, batches: Loader) -> schedule.Recipe:
    """The published recipe, scaled to the plan."""
    published = schedule.recipe(plan.model)
    images, epochs = len(batches.dataset.images), plan.epochs or published.epochs
    return schedule.scaled(published, images, batch=batches.batch, epochs=epochs, rate=plan.rate, size=plan.size)


def network(plan: Training, batches: Loader, drawn: bool = True) -> tuple[backend.nn.Module, pretrained.Origin | None]:
    """The model as the plan starts it, and where its weights come from (None: fresh).

    drawn: whether first weights are; False for a network that is given others.
    """
    classes = len(batches.dataset.classes)
    model = models.build(plan.model, classes, plan.seed if drawn else None)
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
    if origin.first_values or origin.weights.classes not in ((), batches.dataset.classes):
        raise UserError(
            f"{plan.teacher}: a teacher must know the {classes} classes of {batches.dataset.path}; train one on them, "
            f"as model {name}"
        )
    return model, origin


def train(plan: Training, replace: bool = True, moved: Mapping[str, np.ndarray] | None = None) -> loop.Outcome:
    """Train; the same plan again continues an interrupted run bit for bit. replace: see loop.train.

    moved: what the plan's own first weights were moved to, which starts in their place.
    """
    batches = loader(plan)
    val = coco.load(coco.splits(plan.data)[1])
    if batches.dataset.classes != val.classes:
        raise UserError(f"{val.path}: its classes are not those of {batches.dataset.path}; make both from one data set")
    model, origin = network(plan, batches)
    if moved:
        convert.load(model, moved)
    say_start(plan, model, origin)
    notes = [*batches.dataset.notes, *(note for note in val.notes if note not in batches.dataset.notes)]
    if origin and len(origin.weights.classes) == len(val.classes) and origin.weights.classes != val.classes:
        notes.append(f"{plan.weights}: its classes are {', '.join(origin.weights.classes)}, in this order")
    for note in notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    teacher, taught = distillation(plan, batches)

    def numbers(averaged: backend.nn.Module) -> dict[str, float]:
        return inference.evaluate_model(averaged, plan.model, val, plan.size, workers=plan.workers)[0].numbers

    identity = {
        "model": plan.model,
        "data": plan.data,
        "size": list(plan.size),
        "seed": plan.seed,
        "start": origin and origin.sha256,
        "teacher": taught and taught.sha256,
        **({"moved": hashlib.sha256(safetensors.numpy.save(dict(moved))).hexdigest()} if moved else {}),
        **({"processes": backend.world()} if backend.world() > 1 else {}),  # another number rounds otherwise
    }
    return loop.train(
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
        identity=identity,
        classes=batches.dataset.classes,
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
            f"warning: {plan.model}: the backbone's stem ({len(frozen)} parameters) and its norms are never trained "
            "and stay as random as they are; give ImageNet weights of the backbone (--backbone) or a checkpoint "
            "(--weights)",
            file=sys.stderr,
            flush=True,
        )


def plans(plan: Training, weights: str = "", backbone: str = "") -> dict[str, Training]:
    """The trainings that people set side by side, from a backbone of ImageNet and from a trained detector: the plan by
    how it starts; with weights and a backbone two, the second of which is in the plan's own folder.

    The last one's weights are those that later stages evaluate.
    """
    fine_tuned, imagenet = replace(plan, weights=weights or None), replace(plan, backbone=backbone or None)
    if weights and backbone:
        return {IMAGENET: replace(imagenet, folder=str(Path(plan.folder, "imagenet"))), FINE_TUNED: fine_tuned}
    return {FINE_TUNED: fine_tuned} if weights else {IMAGENET: imagenet} if backbone else {FRESH: plan}


def left(outcome: loop.Outcome, batches: Loader) -> dict[str, Any]:
    """What a run on these batches left, as its record holds it: input size, curves, COCO's numbers, cost, weights.

    input_size: height, width.
    """
    lines = read_log(outcome.log)
    columns, evaluations = curves(lines)
    seconds, waited = sum(columns["step_seconds"]), sum(columns["wait_seconds"])
    return {
        "input_size": list(batches.size),
        "curves": columns,
        "before": next((line["evaluation"] for line in lines if line["epoch"] < 0), None),
        "epochs": [numbers for numbers in evaluations if numbers["epoch"] >= 0],
        "final": outcome.best["evaluation"],
        "steps": outcome.steps,
        "resumed_at": outcome.resumed_at,  # steps of an earlier process, whose time is not this one's
        "seconds": seconds,
        "waiting_seconds": waited,
        "waiting_share": waited / seconds,
        "images_per_second": outcome.steps * batches.batch / seconds,
        "cost": [{"epoch": line["epoch"], **line["cost"]} for line in lines if "cost" in line],
        "checkpoint": {"path": str(outcome.weights), "sha256": sha256(outcome.weights)},
        "last": {"path": str(outcome.last), "sha256": sha256(outcome.last)},
    }


def followed(
    plan: Training, outcome: loop.Outcome, batches: Loader, groups: Sequence[ParameterGroup]
) -> dict[str, Any]:
    """The numbers of the schedule at each step of a finished run, as its trainer had them, and the plan they follow
    from. changes: `log.changes` by step; augmentation: the same of what pictures go through, by epoch."""
    told = recipe(plan, batches)
    flags = [asdict(batches.recipe_of(epoch)) for epoch in range(told.epochs)]
    return {
        "recipe": asdict(told),
        "steps_per_epoch": len(batches),
        "groups": [[one.learning_rate_factor, one.decays, one.warmup_from] for one in groups],
        "steps": outcome.steps,
        "changes": log.schedule(read_log(outcome.log)),
        "augmentation": log.changes({k: v for k, v in one.items() if isinstance(v, int | float)} for one in flags),
    }


def before_and_after(outcome: loop.Outcome) -> dict[str, Any]:
    """COCO's numbers before the first step (None from fresh weights), of the best epoch, and of every evaluation."""
    evaluations, best = curves(read_log(outcome.log))[1], outcome.best
    before = next((numbers for numbers in evaluations if numbers["epoch"] < 0), None)
    return {"before": before, "after": {**best["evaluation"], "epoch": best["epoch"]}, "evaluations": evaluations}
