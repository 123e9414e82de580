"""What one framework does with one model, as fields and arrays for a record: weights, forward, losses, gradients, a step.

Everything starts from seeded weights and inputs (lib.alignment.seeded), those of the published case, so that three sides
can be compared. Each computation runs in float32 and, where the backend computes wholly in float64, again in float64:
that run is what the rounding noise of the others is measured against. Nothing is compared here.
"""
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lib import backend, checkpoints, convert, losses, models, postprocess
from lib.alignment.published import GOLDEN, Case
from lib.alignment.seeded import seeded_input, seeded_state
from lib.alignment.verdict import ROUNDING
from lib.backend import nn
from lib.errors import UserError
from lib.schedule import RECIPES
from lib.training import clip

Fields, Arrays = dict[str, Any], dict[str, np.ndarray]

FORMATS = ("safetensors", "npz", "pth", "pkl")
PHASES = {"joint_epoch0": 0, "detached_epoch10": 10}  # name of a training phase -> model.epoch
STEP = "clip35_lr1e-3"  # name of the optimiser step
RATE, LIMIT = 1e-3, 35.0  # its learning rate and largest gradient norm
REPEATS = 4  # runs under moved inputs
SCORE_THRESHOLD, MAX_DETECTIONS = 0.05, 100
# Boxes and labels of the published training case, per image of the batch of two.
BOXES = ([[40.5, 60.25, 220.75, 250.5]],
         [[10.0, 12.0, 34.0, 40.0], [100.5, 80.25, 180.0, 200.75], [5.0, 5.0, 315.0, 300.0], [200.0, 20.0, 300.0, 60.5],
          [120.0, 100.0, 200.0, 220.0]])
LABELS = ([7], [0, 3, 19, 11, 3])


def seeded_model(name: str, case: Case, precision: str = "float32") -> nn.Module:
    """The model with the case's weights: seeded, its batch-norm statistics calibrated where the case says so."""
    model = models.build(name, case.num_classes)
    shapes = [(entry, array.shape) for entry, array in convert.state(model).items()]
    values = seeded_state(shapes) | calibration(case)
    constants = tuple(entry for entry, _ in shapes if entry not in values)
    convert.load(model, values, absent=constants)
    return backend.float64(model) if precision == "float64" else model


def calibration(case: Case) -> Arrays:
    """The published case's batch-norm statistics, under which activations keep their scale; none if it has no record."""
    path = GOLDEN / "nanodet_plus" / f"forward_{case.name}.npz"
    if not case.calibrated or not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name.removeprefix("calib/"): archive[name] for name in archive.files if name.startswith("calib/")}


def precisions() -> tuple[str, ...]:
    """The precisions this side computes in."""
    return ("float32",) if backend.FLOAT64 == "none" else ("float32", "float64")


# ------------------------------------------------------------------------------------------------------ conversion
def conversion(name: str, case: Case) -> Fields:
    """Every entry with its shape and hash, the coverage of a strict load, and whether each file format is lossless."""
    model = seeded_model(name, case)
    state = convert.state(model)
    coverage = convert.load(model, state)
    trained = {entry for entry, _ in model.named_parameters()}
    return {
        "case": case.name,
        "state": [[entry, list(array.shape), str(array.dtype), "param" if entry in trained else "buffer",
                   hashlib.sha256(array.tobytes()).hexdigest()] for entry, array in state.items()],
        "parameters": sum(state[entry].size for entry in trained),
        "norm_layers": _norm_layers(model),
        "coverage": {"loaded": len(coverage.loaded), "total": len(state)},
        **{kind: list(getattr(coverage, kind)) for kind in ("missing", "left_over", "not_finite", "misshapen")},
        "round_trip": {kind: _round_trip(model, state, kind) for kind in FORMATS},
    }


def _norm_layers(model: nn.Module) -> dict[str, int]:
    kinds = [type(module).__name__ for _, module in model.named_modules()]
    return {kind: kinds.count(kind) for kind in ("BatchNorm2d", "GroupNorm")}


def _round_trip(model: nn.Module, state: Mapping[str, np.ndarray], kind: str) -> bool:
    """Whether the state written to a file, read and loaded is the same to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"weights.{kind}"
        checkpoints.write(path, state)
        convert.load(model, path)
    return all(array.tobytes() == state[entry].tobytes() for entry, array in convert.state(model).items())


# --------------------------------------------------------------------------------------------------------- forward
@contextmanager
def features(model: nn.Module, wanted: Mapping[str, tuple[str, int | None]]) -> Iterator[Arrays]:
    """Collect outputs of modules while the model runs. wanted: name -> (module path, element of its output or None)."""
    found: Arrays = {}
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name, (path, element) in wanted.items():
            def keep(module, inputs, output, name=name, element=element):
                found[name] = backend.numpy(output if element is None else output[element])
            stack.callback(modules[path].register_forward_hook(keep).remove)
        yield found


def forward(name: str, case: Case) -> tuple[Fields, Arrays]:
    """Inference on one seeded image: the output, named features by depth, and the detections."""
    fields: Fields = {"case": case.name, "score_threshold": SCORE_THRESHOLD, "max_detections": MAX_DETECTIONS,
                      "float64": backend.FLOAT64}
    arrays: Arrays = {}
    size = models.input_size(name)
    for precision in precisions():
        model = seeded_model(name, case, precision).eval()
        image = backend.tensor(seeded_input("image", (1, 3, *size)).astype(precision))
        with backend.no_grad(), features(model, models.intermediates(name)) as found:
            output = backend.numpy(model(image))
        fields["depth"] = list(found)
        arrays |= {f"{precision}/features/{path}": array for path, array in found.items()}
        arrays[f"{precision}/preds"] = output
        arrays[f"{precision}/detections"] = postprocess.detections(
            name, output, image_size=size, score_threshold=SCORE_THRESHOLD, max_detections=MAX_DETECTIONS)[0]
    return fields, arrays


# ---------------------------------------------------------------------------------------------- loss and gradient
def loss_and_gradient(name: str, case: Case) -> tuple[Fields, Arrays]:
    """Training mode on a seeded batch of two: losses and gradients of both phases, one optimiser step, batch-norm
    statistics after one forward, and the assignment."""
    if max(map(max, LABELS)) >= case.num_classes:
        raise UserError(f"51_loss_and_gradient: classes is {case.num_classes}: its boxes need at least {max(map(max, LABELS)) + 1}")
    fields: Fields = {"case": case.name, "float64": backend.FLOAT64,
                      "losses": {phase: {} for phase in PHASES}, "optimiser": {}}
    arrays: Arrays = {}
    for precision in precisions():
        for phase in PHASES:
            _phase(name, case, phase, precision, fields, arrays)
    if not (GOLDEN / "nanodet_plus" / f"train_{case.name}.json").exists():
        _repeats(name, case, arrays)
    return fields, arrays


def training_batch(name: str, precision: str = "float32") -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """The seeded batch of two images (2, 3, h, w) and its boxes and labels."""
    images = seeded_input("train_batch", (2, 3, *models.input_size(name))).astype(precision)
    return images, [{"boxes": np.asarray(boxes, np.float32), "labels": np.asarray(labels, np.int64)}
                    for boxes, labels in zip(BOXES, LABELS, strict=True)]


def _phase(name: str, case: Case, phase: str, precision: str, fields: Fields, arrays: Arrays) -> None:
    """One training forward and backward from the seeded state; the first phase also gives what does not depend on it."""
    images, targets = training_batch(name, precision)
    size = models.input_size(name)
    criterion = losses.build(name, case.num_classes)
    model = seeded_model(name, case, precision).train()
    outputs, parts, gradients = _backward(model, criterion, phase, images, targets)
    values = backend.floats([sum(parts.values()), *parts.values()])
    fields["losses"][phase][precision] = dict(zip(["loss_total", *parts], values, strict=True))
    arrays |= {f"{precision}/gradient/{phase}/{entry}": backend.numpy(gradient) for entry, gradient in gradients.items()}
    if PHASES[phase]:
        return
    for label, output in zip(("head_out", "aux_head_out"), outputs, strict=True):
        arrays[f"{precision}/output/{label}"] = backend.numpy(output)
    for entry, array in convert.state(model).items():
        if entry.endswith(("running_mean", "running_var")):
            arrays[f"{precision}/bn/{entry}"] = array
        elif entry.endswith("num_batches_tracked"):
            arrays[f"bn/{entry}"] = array
    arrays["assignment/gt_inds"] = criterion.assign(backend.numpy(outputs[-1]), targets, size).box
    _step(name, case, phase, list(gradients.values()), precision, fields, arrays)


def _backward(model: nn.Module, criterion, phase: str, images: np.ndarray, targets: list) -> tuple[Any, dict, dict]:
    """(outputs, loss components, gradient of their sum by parameter) in a phase of training."""
    model.epoch = PHASES[phase]
    outputs = model(backend.tensor(images))
    parts = criterion(outputs, targets, image_size=images.shape[2:])
    named = list(model.named_parameters())
    found = backend.grad(sum(parts.values()), [parameter for _, parameter in named])
    return outputs, parts, {entry: gradient for (entry, _), gradient in zip(named, found, strict=True)}


def _repeats(name: str, case: Case, arrays: Arrays) -> None:
    """Float32 gradients under inputs moved by one rounding: how far this framework lies from itself.

    One run is a poor sample of that: an activation whose input lies within noise of zero takes one slope in some runs and
    the other in others. Only where there is no published float32 run of the case, which is another sample.
    """
    images, targets = training_batch(name)
    for index in range(REPEATS):
        moved = images * (1 + ROUNDING * seeded_input(f"repeat_{index}", images.shape))
        for phase in PHASES:
            model = seeded_model(name, case).train()
            gradients = _backward(model, losses.build(name, case.num_classes), phase, moved.astype(np.float32), targets)[2]
            arrays |= {f"repeat/{index}/gradient/{phase}/{entry}": backend.numpy(g) for entry, g in gradients.items()}


def _step(name: str, case: Case, phase: str, gradients: list, precision: str, fields: Fields, arrays: Arrays) -> None:
    """One optimiser step of the published recipe from the seeded state with the given gradients."""
    recipe = RECIPES[models.family(name)]
    model = seeded_model(name, case, precision)
    named = list(model.named_parameters())
    before = {entry: backend.numpy(parameter).astype(np.float64) for entry, parameter in named}
    clipped, norm = clip(gradients, LIMIT)
    optimiser = getattr(backend, recipe.optimiser)(
        [{"parameters": named}], lr=RATE, betas=recipe.betas, eps=recipe.epsilon, weight_decay=recipe.weight_decay)
    optimiser.step(clipped)
    settings = fields["optimiser"].setdefault(STEP, {
        "phase": phase, "lr": RATE, "betas": list(recipe.betas), "eps": recipe.epsilon,
        "weight_decay": recipe.weight_decay, "clip": LIMIT, "grad_norm": {}})
    settings["grad_norm"][precision] = backend.floats([norm])[0]
    arrays |= {f"{precision}/step/{STEP}/{entry}": (backend.numpy(parameter) - before[entry]).astype(precision)
               for entry, parameter in model.named_parameters()}
