"""An implementation written by others, run live on our weights: `transformers`' RT-DETR, where it is installed.

A reference for outputs and losses, not for gradients: it detaches a layer's box where the published code does not.
"""

import importlib.util
from typing import Any

import numpy as np

from lib import backend, convert, losses, models
from lib.alignment import capture
from lib.alignment.references.case import Case


def compare(name: str, case: Case) -> dict[str, Any] | None:
    """{"name", "version", "outputs": {output: {"error", "floor", "scale"}}} on the forward case's image.

    error: the largest difference of their float32 output from ours in float64; floor: of ours in float32 from it;
    scale: the largest size of it. None for a model that transformers doesn't have, and where it isn't installed (it
    needs PyTorch).
    """
    if models.family(name) != "rt_detr" or importlib.util.find_spec("transformers") is None:
        return None
    single, exact = (_ours(name, case, run) for run in ("float32", "float64"))
    theirs, version = _theirs(name, case)
    outputs = {
        key: {
            "error": float(np.abs(array - exact[f"final/{key}"]).max()),
            "floor": float(np.abs(single[f"final/{key}"] - exact[f"final/{key}"]).max()),
            "scale": float(np.abs(exact[f"final/{key}"]).max()),
        }
        for key, array in theirs.items()
    }
    return {"name": "transformers", "version": version, "outputs": outputs}


def _ours(name: str, case: Case, run: str) -> dict[str, np.ndarray]:
    model = capture.seeded_model(name, case, run).eval()
    with backend.no_grad(), capture.features(model, models.intermediates(name)) as found:
        return losses.named(name, model(backend.tensor(case.input().astype(run))), found)


def _theirs(name: str, case: Case) -> tuple[dict[str, np.ndarray], str]:
    """Their outputs after the layer at which ours ends, queries in the order of tokens, and their version."""
    import transformers

    from lib.models.rt_detr import VARIANTS
    from lib.models.rt_detr_transformers import renamed, settings

    chosen = settings(name, case.num_classes)
    backbone = transformers.RTDetrResNetConfig(**chosen.pop("backbone_config"))
    model = transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(backbone_config=backbone, **chosen)).eval()
    state = renamed(convert.state(capture.seeded_model(name, case)))
    if unknown := set(state) ^ {entry for entry, _ in backend.named_state(model)}:
        raise AssertionError(
            f"transformers {transformers.__version__}: entries without a counterpart: {sorted(unknown)[:3]}"
        )
    backend.load_state(model, state)
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
    }, transformers.__version__
