"""RT-DETR's entries and settings under the names of `transformers` (5.23), whose RTDetrForObjectDetection is a second
reference for predictions and losses on square inputs. Not for gradients: it predicts a layer's box from the layer before's
without that one's history.
"""

import re
from typing import Any

import numpy as np

from lib.models.rt_detr import VARIANTS
from lib.models.rt_detr_backbone import EXPANSION, WIDTHS

_BRANCHES = {"a": "0", "b": "1", "c": "2"}
# Rewritten one after the other; what a pattern matches is replaced wherever it stands.
_RULES = (
    (r"^backbone\.conv1\.conv1_1\.", "model.backbone.model.embedder.embedder.0."),
    (r"^backbone\.conv1\.conv1_2\.", "model.backbone.model.embedder.embedder.1."),
    (r"^backbone\.conv1\.conv1_3\.", "model.backbone.model.embedder.embedder.2."),
    (r"^backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.", r"model.backbone.model.encoder.stages.\1.layers.\2."),
    (r"short\.conv\.(conv|norm)\.", r"shortcut.1.\1."),
    (r"short\.", "shortcut."),
    (r"branch2([abc])\.", lambda found: f"layer.{_BRANCHES[found[1]]}."),
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
    outputs = [width * (EXPANSION if variant.bottleneck else 1) for width in WIDTHS]
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
