"""What one framework does with one model, as fields and arrays for a record: weights, forward, losses, gradients, a
step.

Everything starts from seeded weights and inputs (lib.alignment.seeded), those of the published case, so that three
sides can be compared. Each computation runs in float32 and, where the backend computes wholly in float64, again in
float64: that run is what the rounding noise of the others is measured against. Nothing is compared here.
"""

import itertools
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib import backend, convert, losses, models, postprocess
from lib.alignment import by_family, initial
from lib.alignment.evidence import is_reference
from lib.alignment.margins import Margins
from lib.alignment.measure import Arrays, entries, features, gradients, moved, precisions
from lib.alignment.recipe import numbers
from lib.alignment.references.case import Case, Phase
from lib.alignment.seeded import seeded_array
from lib.alignment.store import digest
from lib.alignment.trajectory import perturbed
from lib.alignment.verdict import REPEATS, K, Noise, size
from lib.backend import nn
from lib.errors import UserError
from lib.training import checkpoints
from lib.training import loop as training
from lib.training.schedule import recipe

Fields = dict[str, Any]

NEAR = 10 * K  # floors up to which a detection's other fate is recorded: what may flip, and how near the others are
FORMATS = ("safetensors", "npz", "pth", "pkl")


def seeded_model(name: str, case: Case, precision: str = "float32") -> nn.Module:
    """The model with the case's weights."""
    model = models.build(name, case.num_classes, seed=None)
    shapes = {entry: array.shape for entry, array in convert.state(model).items()}
    values = case.weights(shapes)
    convert.load(model, values, absent=tuple(entry for entry in shapes if entry not in values))
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
        with backend.no_grad(), features(model, models.intermediates(name)) as found:
            runs[precision] = found
            output = outputs[precision] = model(backend.tensor(case.input().astype(precision)))
        named = by_family.named(name, output, found)
        fields["depth"] = [key.removeprefix("features/") for key in named if key.startswith("features/")]
        arrays |= {f"{precision}/{key}": array for key, array in named.items()}
        arrays[f"{precision}/detections"] = postprocess.detections(name, output, image_size=case.size)[0]
    arrays |= {f"assignment/{key}": array for key, array in by_family.selection(runs["float32"]).items()}
    if "float64" in runs:
        _margins(by_family.selection_margins(runs["float64"], runs["float32"]), "", fields, arrays)
        arrays["near/detections"], noise = by_family.near_misses(
            name, outputs["float64"], outputs["float32"], case.size, NEAR
        )
        fields.setdefault("noise", {})["detections"] = noise
    return fields, arrays


# ---------------------------------------------------------------------------------------------- loss and gradient
def loss_and_gradient(name: str, case: Case) -> tuple[Fields, Arrays]:
    """Training mode on a seeded batch: losses and gradients of every phase, one optimiser step, batch-norm statistics
    after one forward, and the discrete decisions of the criterion."""
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
    for phase in case.phases:
        runs = {precision: _phase(name, case, phase, precision, fields, arrays) for precision in precisions()}
        if "float64" in runs:
            criterion = criterion_in(name, case, case.phases[phase])
            _margins(
                by_family.margins(name, criterion, runs["float64"], runs["float32"], case.targets, case.size),
                f"{phase}/",
                fields,
                arrays,
            )
    if is_reference(backend.NAME):
        fields["repeats"] = {label: _repeats(name, case, phase) for label, phase in case.phases.items()}
        if not case.has_golden() and "float64" in precisions():
            fields["jumps"] = _jumps(name, case, arrays)
    return fields, arrays


def _phase(name: str, case: Case, phase: str, precision: str, fields: Fields, arrays: Arrays) -> Any:
    """One training forward and backward from the seeded state; the first phase also gives what does not depend on it.

    Returns the outputs, without their graph: it is many times the model, and the other precision's comes beside it.
    """
    backend.give_back()
    criterion = criterion_in(name, case, case.phases[phase])
    model = seeded_model(name, case, precision).train()
    outputs, parts, found = _backward(model, criterion, case.phases[phase], case.input().astype(precision), case)
    fields["losses"][phase][precision] = _values(parts)
    outputs = _without_graph(outputs)
    del parts
    arrays |= {f"{precision}/gradient/{phase}/{entry}": backend.numpy(gradient) for entry, gradient in found.items()}
    if precision == "float32":
        decided = by_family.decisions(name, criterion, outputs, case.targets, case.size)
        arrays |= {f"assignment/{phase}/{key}": array for key, array in decided.items()}
    if phase == next(iter(case.phases)):
        arrays |= {f"{precision}/output/{key}": array for key, array in by_family.named(name, outputs, {}).items()}
        arrays |= _batch_norm(model, precision)
    del model  # the step builds its own
    if case.update and case.update.phase == phase:
        _step(name, case, found, precision, fields, arrays)
    return outputs


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


def _batch_norm(model: nn.Module, precision: str) -> Arrays:
    """The running statistics and counters."""
    found = {}
    for entry, array in convert.state(model).items():
        if entry.endswith(("running_mean", "running_var")):
            found[f"{precision}/bn/{entry}"] = array
        elif entry.endswith("num_batches_tracked"):
            found[f"bn/{entry}"] = array
    return found


def _values(parts: Mapping[str, Any]) -> dict[str, float]:
    values = dict(zip(parts, backend.floats(list(parts.values())), strict=True))
    return {"loss_total": math.fsum(values.values()), **values}


def _repeats(name: str, case: Case, phase: Phase) -> list[dict[str, float]]:
    """Losses of float32 runs on an input moved by one rounding: how near float64 so few numbers lie is luck."""
    model, criterion, found = seeded_model(name, case).train(), criterion_in(name, case, phase), []
    model.step = phase.step
    for draw in range(REPEATS):
        images = perturbed({"images": case.input()}, draw)["images"]
        with backend.no_grad():
            found.append(_values(criterion(model(backend.tensor(images)), case.targets, image_size=images.shape[2:])))
    return found


def _jumps(name: str, case: Case, arrays: Arrays) -> dict[str, list[float]]:
    """By how much gradients and the update's changes jump where an activation's input lies within noise of zero.

    "gradient/<phase>/<parameter>", "step/<update>/<parameter>" -> [largest, L2]. Each pair of float64 runs starts from
    weights and input moved by K roundings, one run there, the other back. What responds smoothly moves by as much back
    as there, and falls out of g(there) + g(back) - 2 g; an activation flips in one of the two, and the difference is
    its jump alone. Only where there is no published float32 run of the case, which is another sample.
    """
    found: dict[str, Noise] = {}
    for label, draw in itertools.product(case.phases, range(REPEATS // 2)):
        there, back = (_moved(name, case, label, draw, roundings) for roundings in (K, -K))
        for key, array in there.items():
            jump, known = size(array + back[key] - 2 * arrays[key]), key.removeprefix("float64/")
            found[known] = jump.at_least(found.get(known, jump))
    return {key: [jump.max_abs, jump.l2] for key, jump in found.items()}


def _moved(name: str, case: Case, label: str, draw: int, roundings: float) -> Arrays:
    """Float64 gradients from weights and input moved by so many roundings, and their update; names as in `arrays`."""
    model, phase = moved(seeded_model(name, case, "float64").train(), draw, roundings), case.phases[label]
    images = perturbed({"images": case.input().astype(np.float64)}, draw, roundings)["images"]
    found = _backward(model, criterion_in(name, case, phase), phase, images, case)[2]
    kept = {f"float64/gradient/{label}/{entry}": backend.numpy(gradient) for entry, gradient in found.items()}
    if case.update and case.update.phase == label:
        _step(name, case, found, "float64", {"optimiser": {}}, kept)
    return kept


def _step(name: str, case: Case, gradient: Mapping[str, Any], precision: str, fields: Fields, arrays: Arrays) -> None:
    """One optimiser step of the published recipe from the case's weights with the given gradients."""
    published, update = recipe(name), case.update
    model = seeded_model(name, case, precision)
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
