"""Faults of conversion: what a port's own loader does to published weights."""

import re

import numpy as np

from lib.alignment.exam.planting import Fault, State, built, entry, loaded
from lib.backend import nn, tensor

NANODET, RT_DETR, KIND = "NanoDet-Plus", "RT-DETR", "weights"
ATTENTION = "encoder.encoder.0.layers.0.self_attn"
LINEAR = "decoder.decoder.layers.0.linear1.weight"
NORM = "backbone.stage3.2.branch2.4"
DEPTHWISE = "fpn.top_down_blocks.1.blocks.0.ghost1.cheap_operation.0.weight"


def _without(*ends: str):
    def edit(values: State) -> None:
        for name in [name for name in values if name.endswith(ends)]:
            del values[name]

    return edit


def _biased_head(values: State) -> None:
    for name in values:
        if name.startswith("head.gfl_cls.") and name.endswith("bias"):
            values[name] = values[name] + np.float32(2.0)


def _half_precision(values: State) -> None:
    for name, value in values.items():
        if value.dtype == np.float32:
            values[name] = value.astype(np.float16).astype(np.float32)


def _swapped_affine(values: State) -> None:
    if f"{NORM}.weight" in values:
        values[f"{NORM}.weight"], values[f"{NORM}.bias"] = values[f"{NORM}.bias"], values[f"{NORM}.weight"]


def _shaped_scales(model: nn.Module) -> None:
    """Learnt factors of shape (1,), as a framework without scalars has them."""
    for scale in model.aux_head.scales:
        scale.scale = nn.Parameter(tensor(np.ones(1, np.float32)))


def _shaped_as_the_port(values: State) -> None:
    for name in values:
        if name.startswith("aux_head.scales."):
            values[name] = values[name].reshape(1)


def _third_first(array: np.ndarray) -> np.ndarray:
    query, key, value = np.split(array, 3)
    return np.concatenate([key, query, value])


FAULTS = (
    Fault(
        "BN statistics not loaded",
        "load what named_parameters() lists: running means and variances keep 0 and 1",
        KIND,
        NANODET,
        r".*\.running_(mean|var)",
        (loaded(_without("running_mean", "running_var")),),
    ),
    Fault(
        "head bias + 2.0",
        "the head's bias is set anew after loading",
        KIND,
        NANODET,
        r"head\.gfl_cls\.\d\.bias",
        (loaded(_biased_head),),
    ),
    Fault(
        "scale shape",
        "hold a scalar factor in a tensor of shape (1,)",
        KIND,
        NANODET,
        r"aux_head\.scales\.\d\.scale",
        (built(_shaped_scales), loaded(_shaped_as_the_port)),
    ),
    Fault(
        "one missing key",
        "skip keys that a renaming rule missed",
        KIND,
        NANODET,
        r"head\.cls_convs\.2\.1\.pwnorm\.bias",
        (loaded(_without("head.cls_convs.2.1.pwnorm.bias")),),
    ),
    Fault(
        "transposed linear",
        "transpose a square linear layer, as a framework with (in, out) wants it",
        KIND,
        RT_DETR,
        re.escape(f"{ATTENTION}.out_proj.weight"),
        (entry(f"{ATTENTION}.out_proj.weight", np.transpose),),
    ),
    Fault(
        "reshaped linear",
        "reshape a linear layer to the shape wanted instead of transposing",
        KIND,
        RT_DETR,
        re.escape(LINEAR),
        (entry(LINEAR, lambda w: w.T.copy().reshape(w.shape)),),
    ),
    Fault(
        "q, k, v in another order",
        "split the packed projection as key, query, value",
        KIND,
        RT_DETR,
        re.escape(f"{ATTENTION}.in_proj_weight"),
        (entry(f"{ATTENTION}.in_proj_weight", _third_first),),
    ),
    Fault(
        "deviation for variance",
        "store a running deviation where a variance belongs",
        KIND,
        NANODET,
        re.escape(f"{NORM}.running_var"),
        (entry(f"{NORM}.running_var", np.sqrt),),
    ),
    Fault(
        "kernel turned",
        "swap height and width of a kernel",
        KIND,
        NANODET,
        re.escape(DEPTHWISE),
        (entry(DEPTHWISE, lambda w: w.swapaxes(2, 3)),),
    ),
    Fault(
        "gain and shift swapped",
        "load a norm's gain into its shift",
        KIND,
        NANODET,
        rf"{re.escape(NORM)}\.(weight|bias)",
        (loaded(_swapped_affine),),
    ),
    Fault(
        "classes moved by one",
        "leave room for a background class in front",
        KIND,
        NANODET,
        r"head\.gfl_cls\.0\.weight",
        (entry("head.gfl_cls.0.weight", lambda w: np.concatenate([np.roll(w[:-32], 1, 0), w[-32:]])),),
    ),
    Fault(
        "weights in half precision", "save a checkpoint in float16", KIND, NANODET, r".+", (loaded(_half_precision),)
    ),
)
