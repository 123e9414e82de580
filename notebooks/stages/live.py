"""An implementation written by others, run live on our weights: `transformers`' RT-DETR, where it is installed.

A reference for outputs and losses on square inputs, not for gradients: it predicts a layer's box from the layer
before's without that one's history. Names and settings are those of transformers 5.23, RTDetrForObjectDetection.
"""

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lib import backend, convert, models
from lib.alignment import capture
from lib.alignment.references.case import Case
from lib.models.rt_detr import EXPANSION, STAGE_WIDTHS, VARIANTS

# Rewritten one after the other; what a pattern matches is replaced wherever it stands.
_RULES = (
    (r"^backbone\.conv1\.conv1_1\.", "model.backbone.model.embedder.embedder.0."),
    (r"^backbone\.conv1\.conv1_2\.", "model.backbone.model.embedder.embedder.1."),
    (r"^backbone\.conv1\.conv1_3\.", "model.backbone.model.embedder.embedder.2."),
    (r"^backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.", r"model.backbone.model.encoder.stages.\1.layers.\2."),
    (r"short\.conv\.(conv|norm)\.", r"shortcut.1.\1."),
    (r"short\.", "shortcut."),
    (r"branch2([abc])\.", lambda found: f"layer.{'abc'.index(found[1])}."),
    (r"(^model\.backbone.*\.)conv\.", r"\1convolution."),
    (r"(^model\.backbone.*\.)norm\.", r"\1normalization."),
    (r"^decoder\.input_proj\.(\d)\.conv\.", r"model.decoder_input_proj.\1.0."),
    (r"^decoder\.input_proj\.(\d)\.norm\.", r"model.decoder_input_proj.\1.1."),
    (r"^encoder\.input_proj\.", "model.encoder_input_proj."),
    (r"^(encoder\.encoder\..*)norm2\.", r"\1final_layer_norm."),
    (r"norm2\.(?=\w+$)", "encoder_attn_layer_norm."),
    (r"norm3\.", "final_layer_norm."),
    (r"norm1\.", "self_attn_layer_norm."),
    (r"out_proj\.", "o_proj."),
    (r"cross_attn\.", "encoder_attn."),
    (r"linear([12])\.", r"mlp.fc\1."),
    (r"^encoder\.encoder\.", "model.encoder.aifi."),
    (r"^encoder\.", "model.encoder."),
    (r"^decoder\.(decoder\.|query_pos_head)", lambda found: "model.decoder." + found[1].removeprefix("decoder.")),
    (r"^decoder\.dec_score_head\.", "model.decoder.class_embed."),
    (r"^decoder\.dec_bbox_head\.", "model.decoder.bbox_embed."),
    (r"^decoder\.", "model."),
)


def compare(name: str, case: Case, ours: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """{"name", "version", "outputs": {output: {"error", "floor", "scale"}}} on the forward case's image.

    ours: what `capture.forward` gave. error: the largest difference of their float32 output from ours in float64;
    floor: of ours in float32 from it; scale: the largest size of it. None for a model that transformers doesn't have,
    and where it isn't installed (it needs PyTorch).
    """
    if models.family(name) != "rt_detr" or importlib.util.find_spec("transformers") is None:
        return None
    outputs = {}
    for key, array in _theirs(name, case).items():
        single, exact = (ours[f"{run}/final/{key}"] for run in ("float32", "float64"))
        errors = {"error": array - exact, "floor": single - exact, "scale": exact}
        outputs[key] = {what: float(np.abs(values).max()) for what, values in errors.items()}
    return {"name": "transformers", "version": importlib.metadata.version("transformers"), "outputs": outputs}


def built(name: str, num_classes: int, state: dict[str, np.ndarray]) -> Any:
    """Their model of the variant with all entries of ours, none left over."""
    import transformers
    from transformers.initialization import no_init_weights

    chosen = settings(name, num_classes)
    backbone = transformers.RTDetrResNetConfig(**chosen.pop("backbone_config"))
    with no_init_weights():  # all are given
        model = transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(backbone_config=backbone, **chosen))
    given = renamed(state)
    if unknown := set(given) ^ {entry for entry, _ in backend.named_state(model)}:
        raise AssertionError(
            f"transformers {transformers.__version__}: entries without a counterpart: {sorted(unknown)[:3]}"
        )
    backend.load_state(model, given)
    return model


def _theirs(name: str, case: Case) -> dict[str, np.ndarray]:
    """Their outputs after the layer at which ours ends, queries in the order of tokens."""
    model = built(name, case.num_classes, convert.state(capture.seeded_model(name, case))).eval()
    with backend.no_grad():
        found = model(backend.tensor(case.input()))
    scores = backend.numpy(found.enc_outputs_class).max(2)
    logits = backend.numpy(found.intermediate_logits)[:, VARIANTS[name].last]
    tokens = np.argsort(-scores, 1, kind="stable")[:, : logits.shape[1]]
    boxes = backend.numpy(found.intermediate_reference_points)[:, VARIANTS[name].last]
    order = np.argsort(tokens, 1)[:, :, None]
    return {
        "pred_logits": np.take_along_axis(logits, order, 1),
        "pred_boxes": np.take_along_axis(boxes, order, 1),
    }


def renamed(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A model's state under the other names; a packed attention projection becomes three entries."""
    found: dict[str, np.ndarray] = {}
    for name, value in state.items():
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        if packed := re.fullmatch(r"(.*\.)in_proj_(weight|bias)", name):
            thirds = np.split(value, 3)
            found |= {f"{packed[1]}{part}_proj.{packed[2]}": third for part, third in zip("qkv", thirds)}
        else:
            found[name] = value
    return found


def settings(name: str, num_classes: int) -> dict[str, Any]:
    """What RTDetrConfig must be told about the variant; `backbone_config` holds what RTDetrResNetConfig must."""
    variant = VARIANTS[name]
    outputs = [width * (EXPANSION if variant.bottleneck else 1) for width in STAGE_WIDTHS]
    return {
        "backbone_config": {
            "depths": list(variant.blocks),
            "layer_type": "bottleneck" if variant.bottleneck else "basic",
            "hidden_sizes": outputs,
            "out_features": ["stage2", "stage3", "stage4"],
        },
        "encoder_in_channels": outputs[1:],
        "encoder_hidden_dim": variant.width,
        "encoder_ffn_dim": variant.hidden,
        "decoder_in_channels": [variant.width] * 3,
        "hidden_expansion": variant.fusion / variant.width,
        "decoder_layers": variant.layers,
        "freeze_backbone_batch_norms": variant.frozen,
        "num_labels": num_classes,
    }
