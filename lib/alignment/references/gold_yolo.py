"""Gold-YOLO 225ddd2e: its golden cases, and how their records read.

The golden files were computed with 80 classes at 320 x 320 (sizes M and L in training: 160 x 160), drop path off.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from lib.alignment.references import case as golden
from lib.alignment.references.case import GOLDEN, Arrays, Case, Found, Phase, Update

COMMIT = "225ddd2e"
FLOAT64 = "full"
PLAIN_SIDES = ("gold-yolo-n",)  # variants whose box sides are plain numbers, not distributions
# Targets of the training case, per image: label, then centre x, centre y, width, height as parts of the image.
ROWS = (
    ((17, 0.52, 0.46, 0.55, 0.62),),
    (
        (0, 0.31, 0.36, 0.42, 0.52),
        (0, 0.43, 0.44, 0.4, 0.46),
        (56, 0.7, 0.67, 0.46, 0.54),
        (2, 0.2, 0.8, 0.24, 0.22),
        (79, 0.79, 0.22, 0.3, 0.34),
    ),
)
PHASES = {"tal": Phase(), "atss": Phase(criterion={"atss_epochs": 4})}
STEP = "sgd_lr0"
# Outputs that others have by name.
UNNAMED = ("drop_path", "backbone.ERBlock_2", "backbone.ERBlock_5.2", "neck.low_IFM")
MAPS = {"neck.Rep_p3": "cal_p3", "neck.Rep_n4": "cal_n4", "neck.Rep_n5": "cal_n5"}  # features held whole
LOSSES = {"loss_iou": "iou", "loss_dfl": "dfl", "loss_cls": "cls"}  # in the criterion, in the golden record


def case(model: str, stage: str) -> Case:
    """As the golden files of the model; size S has none for training and inference, and measures the same way."""
    name = model.replace("-yolo-", "_yolo-")
    match stage:
        case "forward":
            return Case(f"{name}_320", f"gold_yolo/forward_{name}_320.json", adjust=partial(_calibrate, model))
        case "loss":
            size = 160 if model in ("gold-yolo-m", "gold-yolo-l") else 320
            return Case(
                f"{name}_prior_{size}",
                f"gold_yolo/train_{name}_prior_{size}.json",
                size=(size, size),
                images="train",
                batch=2,
                adjust=partial(_prior, model),
                targets=golden.pixels(ROWS, size),
                phases=PHASES,
                update=Update(STEP, "tal", 0.02 if model == "gold-yolo-n" else 0.01, None),  # the configurations' lr0
            )
        case "speed":
            return Case(f"{name}_timing", "gold_yolo/timing.json")
        case _:
            return Case(f"{name}_spec", f"gold_yolo/spec_{name}.json")


def _calibrate(model: str, values: Arrays) -> Arrays:
    """Batch-norm statistics under which activations keep their scale, and boxes that are not turned inside out."""
    path = GOLDEN / "gold_yolo" / f"bn_cal_{model.replace('-yolo-', '_yolo-')}_320.npz"
    return _shifted(model, values | golden.arrays_of(path), 4.0)


def _prior(model: str, values: Arrays) -> Arrays:
    """Low class scores, as in real training, and boxes that are not turned inside out."""
    scores = (r"^detect\.cls_preds\..*\.weight$", 0.5, 0.0), (r"^detect\.cls_preds\..*(?<!\.weight)$", 1.0, -3.0)
    return _shifted(model, golden.scaled(values, scores), 3.0)


def _shifted(model: str, values: Arrays, by: float) -> Arrays:
    return golden.scaled(values, [(r"^detect\.reg_preds\..*\.bias$", 1.0, by)] if model in PLAIN_SIDES else ())


# ---------------------------------------------------------------------------------------------------- the records
def _convert(content: Mapping, stored: Arrays, case: Case) -> Found:
    """detect.proj, published as parameters that are not trained, counts as a buffer."""
    constants, norms = set(content["not_trainable"]), sum(content["norms"].values())
    return golden.spec(case, content["state"], constants.__contains__, content["params_trainable"], norms)


def _forward(content: Mapping, stored: Arrays, case: Case) -> Found:
    run = content["cal"]
    statistics = golden.features(run["intermediates"], lambda name: name.endswith(UNNAMED) or name in MAPS)
    arrays = {
        "float32/boxes": stored["cal_output"][:, :, :4],
        "float32/scores": stored["cal_output"][:, :, 5:],
        "float32/detections": stored["nms_eval_conf0.03"],
        **{f"float32/features/{name}": stored[key] for name, key in MAPS.items()},
    }
    return {"depth": [entry["name"] for entry in run["intermediates"]], "statistics": statistics}, arrays


RULES = {
    r"cls_scores": r"float32/output/scores",
    r"reg_distri": r"float32/output/distances",
    r"(tal|atss)_float32/target_labels": r"assignment/\1/target_labels",
    r"(tal|atss)_(float\d\d)/grad/(.+)": r"\2/gradient/\1/\3",
    r"bn/(.+)": r"float32/bn/\1",
    r"sgd_step1/(.+)": r"weights/\1",
}


def _loss(content: Mapping, stored: Arrays, case: Case) -> Found:
    runs = {run: {phase: content["runs"][f"{phase}_{run}"] for phase in PHASES} for run in ("float32", "float64")}
    spec = golden.content_of(GOLDEN / f"gold_yolo/spec_{content['config']}.json")
    shapes = {name: shape for name, shape, _ in spec["state"]}
    statistics = {
        f"gradient/{phase}/{name}": {"shape": shapes[name], "l2": size, "mean": mean}
        for phase in PHASES
        for name, (size, mean) in runs["float64"][phase]["grad"].items()
    }
    settings, moved = runs["float64"]["tal"]["sgd"], {run: runs[run]["tal"]["sgd"] for run in runs}
    moved = {run: found["param_change_l2_after_step1"] for run, found in moved.items()}
    groups = _groups(moved["float64"])
    arrays = golden.renamed(stored, RULES)
    # The golden file holds the parameters after the step; the record their change, and what they were before.
    after = {name: array for name, array in arrays.items() if name.startswith("weights/")}
    for name, array in case.weights(
        {name.removeprefix("weights/"): array.shape for name, array in after.items()}
    ).items():
        change = after[f"weights/{name}"].astype(np.float64) - array
        arrays |= {f"weights/{name}": array, f"float32/step/{STEP}/{name}": change.astype(np.float32)}
    return {
        "losses": {phase: {run: _components(runs[run][phase]) for run in runs} for phase in PHASES},
        "statistics": statistics,
        "optimiser": {
            STEP: {
                "rule": "SGD",
                "phase": "tal",
                "lr": settings["lr"],
                "weight_decay": settings["weight_decay_group_w"],
                "options": {"momentum": settings["momentum"], "nesterov": True},
                "clip": None,
                "groups": groups,
                "grad_norm": {run: runs[run]["tal"]["global_grad_l2"] for run in runs},
            }
        },
        "step_norms": {
            STEP: {name: {run: moved[run][name] for run in runs} for group in groups for name in group["names"]}
        },
    }, arrays


def _components(run: Mapping[str, Any]) -> dict[str, float]:
    return {"loss_total": run["total"], **{ours: run[f"{theirs}_weighted"] for ours, theirs in LOSSES.items()}}


def _groups(changes: Mapping[str, float]) -> list[dict[str, Any]]:
    """The published three groups: weights of norms, other weights (which decay), biases; nothing else is updated."""
    weights = [name for name in changes if name.endswith(".weight") and name != "detect.proj_conv.weight"]
    norms = [name for name in weights if ".bn." in name or ".rbr_identity." in name]
    others = [name for name in weights if name not in norms]
    members = (norms, False), (others, True), ([name for name in changes if name.endswith(".bias")], False)
    return [{"names": names, "factor": 1.0, "decays": decays} for names, decays in members]


TIMED = {  # golden entry -> case, operation, batch, side of the input; its form, if another
    "s_infer_640_b1_deploy_and_fused": ("gold_yolo-s_timing", "forward", 1, 640, ["inference"]),
    "n_train_step_320_b4": ("gold_yolo-n_timing", "train", 4, 320, []),
}


def _speed(content: Mapping, stored: Arrays, case: Case) -> Found:
    return golden.timed(
        (*work, content[name]["median_wall_in_matmuls"], content[name]["median_wall_s"], *form)
        for name, (own, *work, form) in TIMED.items()
        if own == case.name
    )


STAGES = {"convert": _convert, "forward": _forward, "loss": _loss, "speed": _speed}
