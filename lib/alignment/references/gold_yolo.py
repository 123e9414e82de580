"""Gold-YOLO 225ddd2e: its golden cases, and how their records read.

The golden files were computed with 80 classes at 320 x 320 (sizes M and L in training: 160 x 160), drop path off.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from lib.alignment.references.case import GOLDEN, Arrays, Case, Found, Phase, Update, arrays_of, content_of

COMMIT = "225ddd2e"
FLOAT64 = "full"
PLAIN_SIDES = ("gold-yolo-n",)  # variants whose box sides are plain numbers, not distributions
# Targets of the training case: image, class, centre x, centre y, width, height as parts of the image.
ROWS = (
    (0, 17, 0.52, 0.46, 0.55, 0.62),
    (1, 0, 0.31, 0.36, 0.42, 0.52),
    (1, 0, 0.43, 0.44, 0.4, 0.46),
    (1, 56, 0.7, 0.67, 0.46, 0.54),
    (1, 2, 0.2, 0.8, 0.24, 0.22),
    (1, 79, 0.79, 0.22, 0.3, 0.34),
)
PHASES = {"tal": Phase(), "atss": Phase(criterion={"atss_epochs": 4})}
STEP = "sgd_lr0"
UNNAMED = (
    "drop_path",
    "backbone.ERBlock_2",
    "backbone.ERBlock_5.2",
    "neck.low_IFM",
)  # outputs that others have by name
LOSSES = {"iou": "loss_iou", "dfl": "loss_dfl", "cls": "loss_cls"}  # in the golden record, in the criterion


def case(model: str, stage: str) -> Case:
    """As the golden files of the model; size S has none for training and inference, and measures the same way."""
    name = model.replace("-yolo-", "_yolo-")
    match stage:
        case "forward":
            return Case(f"{name}_320", f"gold_yolo/forward_{name}_320.json", adjust=partial(_calibrate, model))
        case "loss":
            size = 160 if model in ("gold-yolo-m", "gold-yolo-l") else 320
            step = Update(STEP, "tal", 0.02 if model == "gold-yolo-n" else 0.01, None)  # the configurations' lr0
            return Case(
                f"{name}_prior_{size}",
                f"gold_yolo/train_{name}_prior_{size}.json",
                size=(size, size),
                images="train",
                batch=2,
                adjust=partial(_prior, model),
                targets=targets(size),
                phases=PHASES,
                update=step,
            )
        case "speed":
            return Case(f"{name}_timing", "gold_yolo/timing.json")
        case _:
            return Case(f"{name}_spec", f"gold_yolo/spec_{name}.json")


def targets(size: int) -> tuple[dict[str, np.ndarray], ...]:
    """Boxes xyxy in pixels, float64 from the float32 rows as the published code has them, and labels, of both images."""
    found = []
    for image in (0, 1):
        rows = np.array([row for row in ROWS if row[0] == image], np.float32).astype(np.float64)
        centre, half = rows[:, 2:4] * size, rows[:, 4:6] * size / 2
        found.append(
            {"boxes": np.concatenate([centre - half, centre + half], 1), "labels": rows[:, 1].astype(np.int64)}
        )
    return tuple(found)


def _calibrate(model: str, values: Arrays) -> Arrays:
    """Batch-norm statistics under which activations keep their scale, and boxes that are not turned inside out."""
    path = GOLDEN / "gold_yolo" / f"bn_cal_{model.replace('-yolo-', '_yolo-')}_320.npz"
    return _shift(model, values | arrays_of(path), "detect.reg_preds.", 4.0)


def _prior(model: str, values: Arrays) -> Arrays:
    """Low class scores, as in real training, and boxes that are not turned inside out."""
    changed = {
        name: array * np.float32(0.5) if name.endswith(".weight") else array - np.float32(3.0)
        for name, array in values.items()
        if name.startswith("detect.cls_preds.")
    }
    return _shift(model, values | changed, "detect.reg_preds.", 3.0)


def _shift(model: str, values: Arrays, prefix: str, by: float) -> Arrays:
    if model not in PLAIN_SIDES:
        return values
    return values | {
        name: array + np.float32(by)
        for name, array in values.items()
        if name.startswith(prefix) and name.endswith(".bias")
    }


# ---------------------------------------------------------------------------------------------------- the records
def _convert(content: Mapping, stored: Arrays, case: Case) -> Found:
    constants = set(content["not_trainable"])
    state = [
        [name, shape, kind, _kind(name, constants), case.digest(name, shape)] for name, shape, kind in content["state"]
    ]
    norms = sum(content["norms"].values())
    return {
        "state": state,
        "parameters": content["params_trainable"],
        "norm_layers": {"BatchNorm2d": norms, "GroupNorm": 0},
    }, {}


def _kind(name: str, constants: set[str]) -> str:
    """ "param" for what is trained; detect.proj, published as parameters that are not, counts as a buffer."""
    return (
        "buffer"
        if name in constants or name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        else "param"
    )


def _forward(content: Mapping, stored: Arrays, case: Case) -> Found:
    run = content["cal"]
    boxes, scores = stored["cal_output"][:, :, :4], stored["cal_output"][:, :, 5:]
    statistics: dict[str, Any] = {
        f"features/{entry['name']}": {"shape": entry["shape"], "l2": entry["l2"], "rounded": True}
        for entry in run["intermediates"]
        if not entry["name"].endswith(UNNAMED)
    }
    statistics["boxes"] = {"floor_max": run["float64"]["max_abs_diff_boxes"]}
    statistics["scores"] = {"floor_max": run["float64"]["max_abs_diff_scores"]}
    arrays = {"float32/boxes": boxes, "float32/scores": scores, "float32/detections": stored["nms_eval_conf0.03"]}
    arrays |= {
        f"float32/features/{name}": stored[f"cal_{key}"]
        for name, key in (("neck.Rep_p3", "p3"), ("neck.Rep_n4", "n4"), ("neck.Rep_n5", "n5"))
    }
    for name in ("neck.Rep_p3", "neck.Rep_n4", "neck.Rep_n5"):
        del statistics[f"features/{name}"]
    return {"depth": [entry["name"] for entry in run["intermediates"]], "statistics": statistics}, arrays


def _loss(content: Mapping, stored: Arrays, case: Case) -> Found:
    runs = {run: {phase: content["runs"][f"{phase}_{run}"] for phase in PHASES} for run in ("float32", "float64")}
    fields: dict[str, Any] = {
        "losses": {phase: {run: _components(runs[run][phase]) for run in runs} for phase in PHASES}
    }
    noise = content["noise_floor_float32_vs_float64"]
    statistics: dict[str, Any] = {
        "output/scores": {"floor_max": noise["cls_scores_max_abs"]},
        "output/distances": {"floor_max": noise["reg_distri_max_abs"]},
    }
    shapes = {
        name: shape for name, shape, _ in content_of(GOLDEN / f"gold_yolo/spec_{content['config']}.json")["state"]
    }
    for phase in PHASES:
        for name, (size, mean) in runs["float64"][phase]["grad"].items():
            statistics[f"gradient/{phase}/{name}"] = {
                "shape": shapes[name],
                "l2": size,
                "mean": mean,
                "l2_float32": runs["float32"][phase]["grad"][name][0],
            }
    fields["statistics"] = statistics
    sgd = {run: runs[run]["tal"]["sgd"] for run in runs}
    groups = _groups(sgd["float64"]["param_change_l2_after_step1"])
    moved = [name for group in groups for name in group["names"]]
    fields["optimiser"] = {
        STEP: {
            "rule": "SGD",
            "phase": "tal",
            "lr": sgd["float64"]["lr"],
            "weight_decay": sgd["float64"]["weight_decay_group_w"],
            "options": {"momentum": sgd["float64"]["momentum"], "nesterov": True},
            "clip": None,
            "groups": groups,
            "grad_norm": {run: runs[run]["tal"]["global_grad_l2"] for run in runs},
        }
    }
    fields["step_norms"] = {
        STEP: {name: {run: sgd[run]["param_change_l2_after_step1"][name] for run in runs} for name in moved}
    }
    before = case.weights(
        {
            name.removeprefix("sgd_step1/"): array.shape
            for name, array in stored.items()
            if name.startswith("sgd_step1/")
        }
    )
    arrays: Arrays = {f"weights/{name}": array for name, array in before.items()}
    for name, array in stored.items():
        arrays |= _loss_array(name, array, before)
    return fields, arrays


def _components(run: Mapping[str, Any]) -> dict[str, float]:
    return {"loss_total": run["total"], **{ours: run[f"{theirs}_weighted"] for theirs, ours in LOSSES.items()}}


def _groups(changes: Mapping[str, float]) -> list[dict[str, Any]]:
    """The published three groups: weights of norms, other weights (which decay), biases; nothing else is updated."""

    def norm(name: str) -> bool:
        return ".bn." in name or ".rbr_identity." in name

    weights = [name for name in changes if name.endswith(".weight") and name != "detect.proj_conv.weight"]
    return [
        {"names": [name for name in weights if norm(name)], "factor": 1.0, "decays": False},
        {"names": [name for name in weights if not norm(name)], "factor": 1.0, "decays": True},
        {"names": [name for name in changes if name.endswith(".bias")], "factor": 1.0, "decays": False},
    ]


def _loss_array(name: str, array: np.ndarray, before: Arrays) -> Arrays:
    """The golden array under the record's name; nothing for arrays that no question asks for."""
    match name.split("/"):
        case ["cls_scores"]:
            return {"float32/output/scores": array}
        case ["reg_distri"]:
            return {"float32/output/distances": array}
        case [run, "target_labels"] if run.endswith("_float32"):
            return {f"assignment/{run.split('_')[0]}/target_labels": array}
        case [run, "grad", parameter]:
            phase, precision = run.split("_")
            return {f"{precision}/gradient/{phase}/{parameter}": array}
        case ["bn", entry]:
            return {f"float32/bn/{entry}": array}
        case ["sgd_step1", parameter]:
            return {
                f"float32/step/{STEP}/{parameter}": (array.astype(np.float64) - before[parameter]).astype(np.float32)
            }
        case _:
            return {}


TIMED = {  # golden entry -> case, operation, batch, side of the input
    "s_infer_640_b1_training_form": ("gold_yolo-s_timing", "forward", 1, 640),
    "n_train_step_320_b4": ("gold_yolo-n_timing", "train", 4, 320),
}


def _speed(content: Mapping, stored: Arrays, case: Case) -> Found:
    cases = [
        {
            "operation": work,
            "batch": batch,
            "size": [side, side],
            "units": content[name]["median_wall_in_matmuls"],
            "synchronised_ms": {"median": 1e3 * content[name]["median_wall_s"]},
        }
        for name, (timed, work, batch, side) in TIMED.items()
        if timed == case.name
    ]
    return ({"deferred": False, "cases": cases}, {}) if cases else None  # PyTorch on the CPU


STAGES = {"convert": _convert, "forward": _forward, "loss": _loss, "speed": _speed}
