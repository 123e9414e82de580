"""What the tour of Gold-YOLO looks at: kernels of branches, what merging changes, attention, dropped residuals."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lib import backend, losses, models
from lib.alignment import by_family, capture
from lib.alignment.references.case import Case
from lib.backend import nn
from lib.models.gold_yolo import RepVGGBlock
from notebooks.tours import calls

BRANCHES = {"rbr_dense": "3 × 3", "rbr_1x1": "1 × 1", "rbr_identity": "identity", "rbr_reparam": "merged"}


def branching(model: nn.Module) -> str | None:
    """The path of the first block with three branches; None where there is none."""
    return next(
        (
            path
            for path, module in model.named_modules()
            if isinstance(module, RepVGGBlock) and module.rbr_identity is not None
        ),
        None,
    )


def responses(model: nn.Module, path: str | None) -> dict[str, np.ndarray]:
    """Kernel (c_out, c_in, 3, 3) of each branch of a block in eval(), with its norm, from answers to single pixels."""
    if path is None:
        return {}
    block = dict(model.named_modules())[path]
    parts = {name: getattr(block, child) for child, name in BRANCHES.items()}
    return {name: _kernel(part, _width(block)) for name, part in parts.items() if part is not None}


def _width(block: RepVGGBlock) -> int:
    convolution = block.rbr_dense.conv if block.rbr_reparam is None else block.rbr_reparam
    return convolution.weight.shape[1]


def _kernel(module: nn.Module, channels: int) -> np.ndarray:
    lit = np.zeros((channels + 1, channels, 3, 3), np.float32)  # the last image stays dark
    lit[np.arange(channels), np.arange(channels), 1, 1] = 1
    with backend.no_grad():
        answer = backend.numpy(module(backend.tensor(lit)))
    return (answer[:-1] - answer[-1:]).transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]


def merging(name: str, case: Case) -> dict[str, dict[str, float]]:
    """What merging branches changes in the neck's and the model's outputs, in parts of the largest value, by precision.

    A difference that shrinks with the precision is rounding; one that stays would be a fault.
    """
    wanted = {path: place for path, place in models.intermediates(name).items() if ".Rep_" in path}
    found = {}
    for precision in capture.precisions():
        model = capture.seeded_model(name, case, precision)
        image = backend.tensor(case.input().astype(precision))
        _settle(model, image)
        before, after = _outputs(name, model, image, wanted), _outputs(name, model.deploy(), image, wanted)
        found[precision] = {
            key.removeprefix("features/"): float(np.abs(array - after[key]).max() / np.abs(array).max())
            for key, array in before.items()
        }
    return found


def _settle(model: nn.Module, image: Any) -> None:
    """Give every norm the image's statistics and go to eval(): seeded ones let values grow to 1e9 and gates flip."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with backend.no_grad():
        model.train()(image)
    model.eval()


def _outputs(name: str, model: nn.Module, image: Any, wanted: Mapping) -> dict[str, np.ndarray]:
    with backend.no_grad(), capture.features(model, wanted) as features:
        output = model(image)
    return by_family.named(name, output, features)


def attention_scores(model: nn.Module, images: np.ndarray, path: str) -> np.ndarray:
    """(a, t, t) products of queries and keys of the first image in one of the neck's attentions, before the softmax."""
    heads = dict(model.named_modules())[path].heads
    with backend.no_grad(), calls(model, re.escape(path) + r"\.to_[qk]") as found:
        model(backend.tensor(images))
    query, key = (call.output[0].reshape(heads, -1, call.output[0, 0].size) for call in found.values())
    return query.transpose(0, 2, 1) @ key


def residuals(model: nn.Module, images: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """With which factor each residual of the neck's transformer is added to its input, (n,) as measured on noise."""
    layer = model.neck.high_IFM
    channels = layer.transformer_blocks[0].attn.to_q.c.weight.shape[1]
    noise = random.standard_normal((images, channels, 5, 5)).astype(np.float32)
    with backend.no_grad(), calls(layer, r"transformer_blocks\.\d+(\.attn|\.mlp)?") as found:
        layer(backend.tensor(noise), random)
    factors = {}
    for path in sorted(path for path in found if path.count(".") == 1):
        block, attention, mlp = (found[path + part] for part in ("", ".attn", ".mlp"))
        for name, before, after, residual in (
            ("attention", block.inputs[0], mlp.inputs[0], attention.output),
            ("perceptron", mlp.inputs[0], block.output, mlp.output),
        ):
            weight = residual.reshape(images, -1)
            moved = (after - before).reshape(images, -1)
            factors[f"block {path[-1]}, {name}"] = (moved * weight).sum(1) / (weight * weight).sum(1)
    return factors


def criterion(model: str, case: Case, phase: str) -> Any:
    """The model's criterion in a phase of its training case."""
    built = losses.build(model, case.num_classes)
    vars(built).update(case.phases[phase].criterion)
    return built
