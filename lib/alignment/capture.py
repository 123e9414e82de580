"""What one framework does with one model, as fields and arrays for a record: weights, forward, losses, gradients, a
step.

Everything starts from seeded weights and inputs (lib.alignment.seeded), those of the published case, so that three
sides can be compared. Each computation runs in float32 and, where the backend computes wholly in float64, again in
float64: that run is what the rounding noise of the others is measured against. Nothing is compared here.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lib import backend, convert, losses, models, postprocess
from lib.alignment import by_family, gate, initial
from lib.alignment.decisions import farthest
from lib.alignment.evidence import is_reference
from lib.alignment.margins import Margins
from lib.alignment.measure import Arrays, entries, features, gradients, precisions
from lib.alignment.recipe import numbers
from lib.alignment.references.case import STATISTICS, Case, Phase
from lib.alignment.seeded import seeded_array
from lib.alignment.store import digest
from lib.alignment.verdict import K
from lib.backend import nn
from lib.data import coco, stream
from lib.errors import UserError
from lib.models.step import Step
from lib.training import checkpoints
from lib.training import loop as training
from lib.training.runs import Training
from lib.training.schedule import recipe

Fields = dict[str, Any]

NEAR = 10 * K  # floors up to which a detection's other fate is recorded: what may flip, and how near the others are
NOT_MOVING = nullcontext()
FORMATS = ("safetensors", "npz", "pth", "pkl")


def seeded_model(name: str, case: Case, precision: str = "float32") -> nn.Module:
    """The model with the case's weights."""
    model = models.build(name, case.num_classes, seed=None)
    state = convert.state(model)
    convert.load(model, state | case.weights({entry: array.shape for entry, array in state.items()}))
    return backend.float64(model) if precision == "float64" else model


# ------------------------------------------------------------------------------------------------------ conversion
def conversion(name: str, case: Case) -> Fields:
    """Every entry with its shape and hash, the coverage of a strict load, and whether each file format is lossless."""
    model = seeded_model(name, case)
    state = convert.state(model)
    coverage = convert.load(model, state)
    trained = {entry for entry, _ in model.named_parameters()}
    kinds = [type(module).__name__ for module in model.modules()]
    return {
        "case": case.name,
        "recipe": numbers(name, model),
        "state": entries(state, trained),
        "parameters": sum(state[entry].size for entry in trained),
        "norm_layers": {kind: kinds.count(kind) for kind in ("BatchNorm2d", "GroupNorm")},
        "coverage": {"loaded": len(coverage.loaded), "total": len(state)},
        **{kind: list(getattr(coverage, kind)) for kind in ("missing", "left_over", "not_finite", "misshapen")},
        "round_trip": {kind: _round_trip(model, state, kind) for kind in FORMATS},
    }


def start(name: str, case: Case) -> tuple[Fields, Arrays]:
    """Where a training starts: of each parameter's fresh values the digest, and a sample."""
    fresh = models.build(name, case.num_classes)
    values = {entry: np.array(backend.numpy(value)) for entry, value in fresh.named_parameters()}
    return {"first": {entry: digest(array) for entry, array in values.items()}}, initial.samples(values)


def _round_trip(model: nn.Module, state: Mapping[str, np.ndarray], kind: str) -> bool:
    """Whether the state written to a file, read and loaded is the same to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"weights.{kind}"
        checkpoints.write(path, state)
        convert.load(model, path)
    return all(array.tobytes() == state[entry].tobytes() for entry, array in convert.state(model).items())


# --------------------------------------------------------------------------------------------------------- forward
def forward(name: str, case: Case) -> tuple[Fields, Arrays]:
    """Inference on one seeded image: the output, named features by depth, and the detections."""
    settings = postprocess.settings(name)
    fields: Fields = {
        "case": case.name,
        "score_threshold": settings.score_threshold,
        "max_detections": settings.max_detections,
        "float64": backend.FLOAT64,
    }
    arrays, runs, outputs = {}, {}, {}
    for precision in precisions():
        model = seeded_model(name, case, precision).eval()
        outputs[precision], runs[precision] = inference(name, model, case, precision)
        named = by_family.named(name, outputs[precision], runs[precision])
        fields["depth"] = [key.removeprefix("features/") for key in named if key.startswith("features/")]
        arrays |= {f"{precision}/{key}": array for key, array in named.items()}
        arrays[f"{precision}/detections"] = postprocess.detections(name, outputs[precision], image_size=case.size)[0]
    if is_reference(backend.NAME):
        model = seeded_model(name, case).eval()

        def again(moving: AbstractContextManager) -> Arrays:
            return by_family.named(name, *inference(name, model, case, "float32", moving))

        fields["reach"] = gate.measured(gate.real(named), gate.runs(again))
    arrays |= {f"assignment/{key}": array for key, array in by_family.selection(runs["float32"]).items()}
    if "float64" in runs:
        _margins(by_family.selection_margins(runs["float64"], runs["float32"]), "", fields, arrays)
        arrays["near/detections"], noise = by_family.near_misses(
            name, outputs["float64"], outputs["float32"], case.size, NEAR
        )
        fields.setdefault("noise", {})["detections"] = noise
    return fields, arrays


def inference(
    name: str, model: nn.Module, case: Case, precision: str, moving: AbstractContextManager = NOT_MOVING
) -> tuple[Any, Arrays]:
    """The model's output for the case's image, and its named features."""
    with backend.no_grad(), features(model, models.intermediates(name)) as found, moving:
        return model(backend.tensor(case.input().astype(precision))), found


# ---------------------------------------------------------------------------------------------- loss and gradient
def loss_and_gradient(name: str, case: Case) -> tuple[Fields, Arrays]:
    """Training mode on a seeded batch: losses and gradients of every phase, one optimiser step, batch-norm statistics
    after one forward, and the discrete decisions of the criterion; on the reference's side also the reach of all."""
    largest = max(target["labels"].max(initial=-1) for target in case.targets)
    if largest >= case.num_classes:
        raise UserError(f"51_loss_and_gradient: classes is {case.num_classes}: its boxes need at least {largest + 1}")
    fields: Fields = {
        "case": case.name,
        "float64": backend.FLOAT64,
        "losses": {phase: {} for phase in case.phases},
        "optimiser": {},
    }
    arrays: Arrays = {}
    exact: Arrays = {}
    for phase in case.phases:
        outputs = {}
        for precision in precisions():
            backend.give_back()
            model = seeded_model(name, case, precision).train()
            outputs[precision], gradient, values, found = _phase(name, case, phase, precision, model)
            fields["losses"][phase][precision] = values
            real = gate.real(found)
            arrays |= {f"{precision}/{key}" if key in real else key: one for key, one in found.items()}
            exact |= real | _tensors(phase, values)  # of the last precision
            if case.update and case.update.phase == phase:
                _step(name, case, model, gradient, precision, fields, arrays)
            del model, gradient
        criterion = criterion_in(name, case, case.phases[phase])
        chosen = by_family.decisions(name, criterion, outputs["float32"], case.targets, case.size)
        arrays |= {f"assignment/{phase}/{key}": array for key, array in chosen.items()}
        if "float64" in outputs:
            held = by_family.margins(name, criterion, outputs["float64"], outputs["float32"], case.targets, case.size)
            _margins(held, f"{phase}/", fields, arrays)
    if is_reference(backend.NAME):
        fields["reach"] = gate.measured(exact, gate.runs(*_again(name, case)))
    return fields, arrays


def _phase(
    name: str,
    case: Case,
    phase: str,
    precision: str,
    model: nn.Module,
    moving: AbstractContextManager = NOT_MOVING,
) -> tuple[Any, dict[str, Any], dict[str, float], Arrays]:
    """One training forward and backward of the seeded model.

    Returns the outputs, without their graph: it is many times the model, and the other precision's comes beside it; the
    gradients; the losses; and all else as arrays. What does not depend on the phase is the first one's.
    """
    criterion = criterion_in(name, case, case.phases[phase])
    images = case.input().astype(precision)
    with moving:
        outputs, parts, gradient = _backward(model, criterion, case.phases[phase], images, case)
    outputs, values = _without_graph(outputs), _values(parts)
    del parts
    found = {f"gradient/{phase}/{entry}": backend.numpy(one) for entry, one in gradient.items()}
    if phase == next(iter(case.phases)):
        found |= {f"output/{key}": array for key, array in by_family.named(name, outputs, {}).items()}
        found |= {f"bn/{entry}": array for entry, array in _statistics(convert.state(model)).items()}
    return outputs, gradient, values, found


def _tensors(phase: str, values: Mapping[str, float]) -> Arrays:
    """A phase's losses as tensors of one element."""
    return gate.scalars({f"loss/{phase}/{name}": value for name, value in values.items()})


def _statistics(state: Mapping[str, np.ndarray]) -> Arrays:
    """What a training forward changes of a state: running statistics and counters, as they are now."""
    return {entry: array.copy() for entry, array in state.items() if entry.endswith(STATISTICS)}


def _again(name: str, case: Case) -> list[Callable[[AbstractContextManager], Arrays]]:
    """The phases, each to be run in float32 as often as one likes: a model starts from the statistics that it had."""
    model = seeded_model(name, case).train()
    statistics = _statistics({entry: backend.numpy(value) for entry, value in backend.named_state(model)})

    def again(phase: str, moving: AbstractContextManager) -> Arrays:
        backend.load_state(model, statistics)
        *_, values, found = _phase(name, case, phase, "float32", model, moving)
        return found | _tensors(phase, values)

    return [partial(again, phase) for phase in case.phases]


def _without_graph(outputs: Any) -> Any:
    """The outputs, dictionaries and sequences of tensors, with the same values."""
    if isinstance(outputs, Mapping):
        return {key: _without_graph(value) for key, value in outputs.items()}
    if isinstance(outputs, list | tuple):
        return [_without_graph(value) for value in outputs]
    return outputs.detach() if hasattr(outputs, "detach") else outputs


def criterion_in(name: str, case: Case, phase: Phase) -> Any:
    """The criterion as it is in a phase of training."""
    criterion = losses.build(name, case.num_classes)
    for attribute, value in phase.criterion.items():
        setattr(criterion, attribute, value)
    return criterion


def _margins(found: Mapping[str, Margins], phase: str, fields: Fields, arrays: Arrays) -> None:
    """The choices' margins under "margin/<phase><name>", what may be chosen under "option/…", and the scores' noise."""
    for name, margins in found.items():
        with np.errstate(over="ignore"):  # what float32 can't hold is far enough to be infinite
            arrays[f"margin/{phase}{name}"] = margins.floors.astype(np.float32)
        arrays[f"option/{phase}{name}"] = np.asarray(margins.options, np.int64)
        fields.setdefault("noise", {})[phase + name] = dict(margins.noise)
        fields.setdefault("follows", {})[phase + name] = phase + margins.follows if margins.follows else ""


def _backward(model: nn.Module, criterion, phase: Phase, images: np.ndarray, case: Case) -> tuple[Any, dict, dict]:
    """(outputs, loss components, gradient of their sum by parameter) in a phase of training."""
    model.step = phase.step
    outputs = model(backend.tensor(images))
    parts = criterion(outputs, case.targets, image_size=images.shape[2:])
    return outputs, parts, gradients(sum(parts.values()), dict(model.named_parameters()))


def _values(parts: Mapping[str, Any]) -> dict[str, float]:
    """A criterion's components, and their sum first."""
    found = dict(zip(parts, backend.floats(list(parts.values())), strict=True))
    return {"loss_total": math.fsum(found.values()), **found}


def _step(
    name: str,
    case: Case,
    model: nn.Module,
    gradient: Mapping[str, Any],
    precision: str,
    fields: Fields,
    arrays: Arrays,
) -> None:
    """One optimiser step of the published recipe from the case's weights, the model's, with the given gradients."""
    published, update = recipe(name), case.update
    before = {
        entry: backend.numpy(parameter).copy() for entry, parameter in model.named_parameters()
    }  # PyTorch's is a view
    groups = models.parameter_groups(name, model)
    optimiser, named = training.optimiser(model, groups, published, lr=update.learning_rate)
    limit = np.inf if update.clip is None else update.clip
    clipped, norm = training.clip([gradient[entry] for entry, _ in named], limit)
    optimiser.step(clipped)
    settings = fields["optimiser"].setdefault(
        update.name,
        {
            "rule": published.optimiser,
            "phase": update.phase,
            "lr": update.learning_rate,
            "options": dict(published.options),
            "weight_decay": published.weight_decay,
            "clip": update.clip,
            "grad_norm": {},
            "groups": [{"names": list(g.names), "factor": g.learning_rate_factor, "decays": g.decays} for g in groups],
        },
    )
    settings["grad_norm"][precision] = backend.floats([norm])[0]
    updated = {entry for entry, _ in named}
    for entry, parameter in model.named_parameters():
        if entry in updated:
            change = backend.numpy(parameter).astype(np.float64) - before[entry]
            arrays[f"{precision}/step/{update.name}/{entry}"] = change.astype(precision)
            seeded = seeded_array(entry, before[entry].shape)
            if precision == "float32" and (seeded is None or not np.array_equal(seeded, before[entry])):
                arrays[f"weights/{entry}"] = before[entry]


# ------------------------------------------------------------------------------------------------------- training
def first_step(plan: Training, batch: Any, model: nn.Module) -> dict[str, Any]:
    """The first step's losses in float64, on the reference's side with their reach; "astray": how far its float32
    choices lie from the exact ones, in floors. A distilled model's are not asked for.

    `model` is the plan's as it starts; it is of no use afterwards.
    """
    if plan.teacher:
        return {}
    criterion = losses.build(plan.model, len(coco.load(coco.splits(plan.data)[0]).classes))
    size = batch.images.shape[2:]

    def run(images: np.ndarray, moving: AbstractContextManager = NOT_MOVING) -> tuple[Any, dict[str, float]]:
        """The outputs, and the losses."""
        model.train().step = Step(0, stream(plan.seed, "model", 0), batch.targets)
        with backend.no_grad(), moving:
            outputs = model(backend.tensor(images))
            parts = criterion(outputs, batch.targets, image_size=size)
        return outputs, dict(zip(parts, backend.floats(list(parts.values())), strict=True))

    rounded, _ = run(batch.images)
    again = gate.runs(lambda moving: gate.scalars(run(batch.images, moving)[1]))
    moved = list(again) if is_reference(backend.NAME) else []
    model = backend.float64(model)
    exact, values = run(batch.images.astype(np.float64))
    chosen = by_family.decisions(plan.model, criterion, rounded, batch.targets, size)
    margins = by_family.margins(plan.model, criterion, exact, rounded, batch.targets, size)
    astray = max(farthest(margins[name], choices) for name, choices in chosen.items())
    found: dict[str, Any] = {"float64": values, "astray": astray}
    return found | ({"reach": gate.measured(gate.scalars(values), moved)} if moved else {})
