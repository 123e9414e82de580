"""What the tour of Gold-YOLO looks at: a block with branches, settled norms, attention, dropped residuals."""

import re
from typing import Any

import numpy as np

from lib import backend, losses
from lib.alignment.references.case import Case
from lib.backend import nn
from lib.models.gold_yolo import RepVGGBlock
from notebooks.tours import calls


def branching(model: nn.Module) -> str:
    """The path of the first block with three branches; "" where there is none, as in size L."""
    blocks = ((path, module) for path, module in model.named_modules() if isinstance(module, RepVGGBlock))
    return next((path for path, block in blocks if block.rbr_identity is not None), "")


def settle(model: nn.Module, image: Any) -> None:
    """Give every norm the image's statistics and go to eval(): seeded ones let values grow to 1e9 and gates flip."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with backend.no_grad():
        model.train()(image)
    model.eval()


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
