"""NanoDet-Plus be9b4a9: its golden cases, and how their records read."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from lib.alignment.references import case as golden
from lib.alignment.references.case import GOLDEN, Arrays, Case, Found, Phase, Update
from lib.alignment.seeded import seeded_array
from lib.models.step import Step

COMMIT = "be9b4a9"
FLOAT64 = "full"
FULL_STEP = "clip35_lr1e-3"  # the one optimiser variant of which the golden file holds whole parameters after the step
PHASES = {"joint_epoch0": Phase(Step(epoch=0)), "detached_epoch10": Phase(Step(epoch=10))}
RUNS = {"float32": "f32", "float64": "f64"}  # in records, in golden records
# Boxes and labels of the training case, per image of the batch of two.
BOXES = (
    [[40.5, 60.25, 220.75, 250.5]],
    [
        [10.0, 12.0, 34.0, 40.0],
        [100.5, 80.25, 180.0, 200.75],
        [5.0, 5.0, 315.0, 300.0],
        [200.0, 20.0, 300.0, 60.5],
        [120.0, 100.0, 200.0, 220.0],
    ],
)
LABELS = ([7], [0, 3, 19, 11, 3])


def case(model: str, stage: str) -> Case:
    """20 classes where whole tensors are compared, whose golden files are small."""
    classes = 20 if stage in ("forward", "loss") else 80
    size = (int(model.rsplit("_", 1)[1]),) * 2
    name = f"{model.removeprefix('nanodet-plus-')}_{classes}cls"
    match stage:
        case "forward":
            path = f"nanodet_plus/forward_{name}.json"
            return Case(name, path, classes, size, adjust=partial(_calibrate, path))
        case "loss":
            targets = tuple(
                {"boxes": np.asarray(boxes, np.float32), "labels": np.asarray(labels, np.int64)}
                for boxes, labels in zip(BOXES, LABELS, strict=True)
            )
            update = Update(FULL_STEP, "joint_epoch0", 1e-3, 35.0)
            common = name, f"nanodet_plus/train_{name}.json", classes, size
            return Case(*common, "train_batch", 2, targets=targets, phases=PHASES, update=update)
        case "speed":
            return Case(name, "nanodet_plus/timings.json", classes, size)
        case _:
            return Case(name, f"nanodet_plus/spec_{name}.json", classes, size)


def _calibrate(path: str, values: Arrays) -> Arrays:
    """Batch-norm statistics under which activations keep their scale; none where the case has no record."""
    return values | golden.renamed(golden.arrays_of(GOLDEN / path), {r"calib/(.+)": r"\1"})


def _convert(content: Mapping, stored: Arrays, case: Case) -> Found:
    counts = content["counts"]
    norms = {"BatchNorm2d": counts["batchnorm_layers"], "GroupNorm": counts["groupnorm_layers(aux_head only)"]}
    state = [[*row[:4], case.digest(row[0], row[1])] for row in content["state_dict"]]
    return {"state": state, "parameters": counts["total_params_training_model"], "norm_layers": norms}, {}


def _forward(content: Mapping, stored: Arrays, case: Case) -> Found:
    arrays, features = {}, content["calibrated"]["intermediate_in_execution_order"]
    numbers = {
        "l2": "f64_l2",
        "max": "absmax",
        "first": "first16",
        "shape": "shape",
    }
    statistics = {
        f"features/{name}": {ours: entry[theirs] for ours, theirs in numbers.items()}
        for name, entry in features.items()
    }
    for run, suffix in (("float32", ""), ("float64", "_f64")):
        arrays[f"{run}/preds"] = stored["preds_calibrated" + suffix]
        boxes, labels = stored["dets_calibrated" + suffix], stored["labels_calibrated" + suffix]
        arrays[f"{run}/detections"] = np.concatenate([boxes, labels[:, None]], axis=1).astype(run)
    return {"depth": list(features), "statistics": statistics}, arrays


RULES = {
    r"((aux_)?head_out)": r"float32/output/\1",
    r"assign_gt_inds": r"assignment/joint_epoch0/gt_inds",
    r"grad/(.+)/f(32|64)/(.+)": r"float\2/gradient/\1/\3",
    r"bn/(.+)/(.+)": r"float32/bn/\1.\2",
    r"bn_f64/(.+)/(.+)": r"float64/bn/\1.\2",
}


def _loss(content: Mapping, stored: Arrays, case: Case) -> Found:
    phases = sorted({key.split("/")[0] for key in content["losses"]}, reverse=True)  # joint before detached
    statistics = {
        f"gradient/{phase}/{name}": {
            "shape": entry["shape"],
            "l2": entry[phase]["l2_f64"],
            "mean": entry[phase]["mean_f64"],
        }
        for name, entry in content["per_param"].items()
        for phase in phases
    }
    variants = content["optimizer"]["variants"]
    arrays = golden.renamed(stored, RULES)
    for name, array in golden.renamed(stored, {r"after_adamw/f(32|64)/(.+)": r"float\1/\2"}).items():
        run, parameter = name.split("/")
        change = array.astype(np.float64) - seeded_array(parameter, array.shape)
        arrays[f"{run}/step/{FULL_STEP}/{parameter}"] = change.astype(run)
    for module, entry in content["bn_after_one_forward"].items():
        arrays[f"bn/{module}.num_batches_tracked"] = np.array(entry["num_batches_tracked"], np.int64)
    return {
        "losses": {
            phase: {run: content["losses"][f"{phase}/{short}"] for run, short in RUNS.items()} for phase in phases
        },
        "statistics": statistics,
        "optimiser": {name: _settings(name, runs) for name, runs in variants.items()},
        "step_norms": {
            variant: {
                name: {run: entry["adamw_change_l2"][variant][short] for run, short in RUNS.items()}
                for name, entry in content["per_param"].items()
            }
            for variant in variants
        },
    }, arrays


def _settings(variant: str, runs: Mapping[str, Mapping]) -> dict[str, Any]:
    """AdamW's settings as the golden file states them: rate and clipping in the variant's name, the rest in words."""
    return {
        "rule": "AdamW",
        "phase": "joint_epoch0",
        "lr": float(variant.rsplit("lr", 1)[1]),
        "weight_decay": 0.05,
        "options": {"betas": [0.9, 0.999], "eps": 1e-8},
        "groups": [],
        "clip": 35.0 if "clip35" in variant else None,
        "grad_norm": {run: runs[short]["grad_norm_before_clip"] for run, short in RUNS.items()},
    }


TIMED = {"inference_batch1_forward": ("forward", 1), "train_step_batch8_joint": ("train", 8)}


def _speed(content: Mapping, stored: Arrays, case: Case) -> Found:
    return golden.timed(
        (*work, case.size[0], run["ratio_of_medians_to_matmul"], run["wall_median_s"])
        for name, work in TIMED.items()
        if (run := content.get(case.name, {}).get(name))
    )


STAGES = {"convert": _convert, "forward": _forward, "loss": _loss, "speed": _speed}
