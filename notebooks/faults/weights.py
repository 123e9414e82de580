"""Faults of conversion: what a port's own loader does to published weights."""

import re

import numpy as np

from lib.backend import nn, tensor
from notebooks.exam.planting import Faults, State, built, entry, loaded

FAULTS = Faults()
nanodet, rt_detr = FAULTS.of("weights", "NanoDet-Plus"), FAULTS.of("weights", "RT-DETR")
ATTENTION = "encoder.encoder.0.layers.0.self_attn"
LINEAR = "decoder.decoder.layers.0.linear1.weight"
NORM = "backbone.stage3.2.branch2.4"
DEPTHWISE = "fpn.top_down_blocks.1.blocks.0.ghost1.cheap_operation.0.weight"
FORGOTTEN = "head.cls_convs.2.1.pwnorm.bias"


def _without(*ends: str):
    def edit(values: State) -> None:
        for name in [name for name in values if name.endswith(ends)]:
            del values[name]

    return edit


nanodet.add(
    "BN statistics not loaded",
    "load what named_parameters() lists: running means and variances keep 0 and 1",
    r".*\.running_(mean|var)",
    loaded(_without("running_mean", "running_var")),
)


@nanodet.weights("head bias + 2.0", r"head\.gfl_cls\.\d\.bias")
def _(values: State) -> None:
    """the head's bias is set anew after loading"""
    for name in values:
        if name.startswith("head.gfl_cls.") and name.endswith("bias"):
            values[name] = values[name] + np.float32(2.0)


def _shaped_scales(model: nn.Module) -> None:
    """Learnt factors of shape (1,), as a framework without scalars has them."""
    for scale in model.aux_head.scales:
        scale.scale = nn.Parameter(tensor(np.ones(1, np.float32)))


@nanodet.weights("scale shape", r"aux_head\.scales\.\d\.scale", built(_shaped_scales))
def _(values: State) -> None:
    """hold a scalar factor in a tensor of shape (1,)"""
    for name in values:
        if name.startswith("aux_head.scales."):
            values[name] = values[name].reshape(1)


nanodet.add(
    "one missing key", "skip keys that a renaming rule missed", re.escape(FORGOTTEN), loaded(_without(FORGOTTEN))
)
rt_detr.add(
    "transposed linear",
    "transpose a square linear layer, as a framework with (in, out) wants it",
    re.escape(f"{ATTENTION}.out_proj.weight"),
    entry(f"{ATTENTION}.out_proj.weight", np.transpose),
)
rt_detr.add(
    "reshaped linear",
    "reshape a linear layer to the shape wanted instead of transposing",
    re.escape(LINEAR),
    entry(LINEAR, lambda w: w.T.copy().reshape(w.shape)),
)
rt_detr.add(
    "q, k, v in another order",
    "split the packed projection as key, query, value",
    re.escape(f"{ATTENTION}.in_proj_weight"),
    entry(f"{ATTENTION}.in_proj_weight", lambda w: np.concatenate([np.split(w, 3)[i] for i in (1, 0, 2)])),
)
nanodet.add(
    "deviation for variance",
    "store a running deviation where a variance belongs",
    re.escape(f"{NORM}.running_var"),
    entry(f"{NORM}.running_var", np.sqrt),
)
nanodet.add(
    "kernel turned",
    "swap height and width of a kernel",
    re.escape(DEPTHWISE),
    entry(DEPTHWISE, lambda w: w.swapaxes(2, 3)),
)


@nanodet.weights("gain and shift swapped", rf"{re.escape(NORM)}\.(weight|bias)")
def _(values: State) -> None:
    """load a norm's gain into its shift"""
    if f"{NORM}.weight" in values:
        values[f"{NORM}.weight"], values[f"{NORM}.bias"] = values[f"{NORM}.bias"], values[f"{NORM}.weight"]


nanodet.add(
    "classes moved by one",
    "leave room for a background class in front",
    r"head\.gfl_cls\.0\.weight",
    entry("head.gfl_cls.0.weight", lambda w: np.concatenate([np.roll(w[:-32], 1, 0), w[-32:]])),
)


@nanodet.weights("weights in half precision", r".+")
def _(values: State) -> None:
    """save a checkpoint in float16"""
    for name, value in values.items():
        if value.dtype == np.float32:
            values[name] = value.astype(np.float16).astype(np.float32)
