"""NanoDet-Plus be9b4a9: its golden cases, and how their records read."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from lib.alignment.references.case import GOLDEN, Arrays, Case, Found, Phase, Update, arrays_of
from lib.alignment.seeded import seeded_array
from lib.models.step import Step

COMMIT = "be9b4a9"
FLOAT64 = "full"
FULL_STEP = "clip35_lr1e-3"  # the one optimiser variant of which the golden file holds whole parameters after the step
PHASES = {"joint_epoch0": Phase(Step(epoch=0)), "detached_epoch10": Phase(Step(epoch=10))}
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
            return Case(
                name,
                f"nanodet_plus/train_{name}.json",
                classes,
                size,
                "train_batch",
                2,
                targets=targets,
                phases=PHASES,
                update=Update(FULL_STEP, "joint_epoch0", 1e-3, 35.0),
            )
        case "speed":
            return Case(name, "nanodet_plus/timings.json", classes, size)
        case _:
            return Case(name, f"nanodet_plus/spec_{name}.json", classes, size)


def _calibrate(path: str, values: Arrays) -> Arrays:
    """Batch-norm statistics under which activations keep their scale; none where the case has no record."""
    stored = arrays_of(GOLDEN / path)
    return values | {name.removeprefix("calib/"): array for name, array in stored.items() if name.startswith("calib/")}


def _convert(content: Mapping, stored: Arrays, case: Case) -> Found:
    fields = {"measured_on": content["env"]}
    fields["state"] = [[*row[:4], case.digest(row[0], row[1])] for row in content["state_dict"]]
    fields["parameters"] = content["counts"]["total_params_training_model"]
    fields["norm_layers"] = {
        "BatchNorm2d": content["counts"]["batchnorm_layers"],
        "GroupNorm": content["counts"]["groupnorm_layers(aux_head only)"],
    }
    return fields, {}


def _forward(content: Mapping, stored: Arrays, case: Case) -> Found:
    fields, arrays = {"measured_on": content["env"]}, {}
    features = content["calibrated"]["intermediate_in_execution_order"]
    fields["depth"] = list(features)
    fields["statistics"] = {
        f"features/{name}": {
            "shape": entry["shape"],
            "l2": entry["f64_l2"],
            "max": entry["absmax"],
            "first": entry["first16"],
            "floor_max": entry["f32_minus_f64_absmax"],
        }
        for name, entry in features.items()
    }
    for run, suffix in (("float32", ""), ("float64", "_f64")):
        arrays[f"{run}/preds"] = stored["preds_calibrated" + suffix]
        boxes, labels = stored["dets_calibrated" + suffix], stored["labels_calibrated" + suffix]
        arrays[f"{run}/detections"] = np.concatenate([boxes, labels[:, None]], axis=1).astype(run)
    return fields, arrays


def _loss(content: Mapping, stored: Arrays, case: Case) -> Found:
    fields, arrays = {"measured_on": content["env"]}, {}
    phases = sorted({key.split("/")[0] for key in content["losses"]}, reverse=True)  # joint before detached
    fields["losses"] = {
        phase: {run: content["losses"][f"{phase}/{short}"] for run, short in (("float32", "f32"), ("float64", "f64"))}
        for phase in phases
    }
    statistics = {
        f"output/{name}": {"floor_max": floor} for name, floor in content["raw_outputs_f32_minus_f64_absmax"].items()
    }
    for name, entry in content["per_param"].items():
        for phase in phases:
            numbers = entry[phase]
            statistics[f"gradient/{phase}/{name}"] = {
                "shape": entry["shape"],
                "l2": numbers["l2_f64"],
                "mean": numbers["mean_f64"],
                "floor_l2": numbers["rel_l2_err_f32_vs_f64"] * numbers["l2_f64"],
            }
    fields["statistics"] = statistics
    fields["optimiser"] = {name: _settings(name, runs) for name, runs in content["optimizer"]["variants"].items()}
    fields["step_norms"] = {
        variant: {
            name: {
                "float32": entry["adamw_change_l2"][variant]["f32"],
                "float64": entry["adamw_change_l2"][variant]["f64"],
            }
            for name, entry in content["per_param"].items()
        }
        for variant in fields["optimiser"]
    }
    for name, array in stored.items():
        arrays |= _loss_array(name, array)
    for module, entry in content["bn_after_one_forward"].items():
        arrays[f"bn/{module}.num_batches_tracked"] = np.array(entry["num_batches_tracked"], np.int64)
    return fields, arrays


def _loss_array(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """The golden array under the record's name; nothing for arrays that no question asks for."""
    runs = {"f32": "float32", "f64": "float64"}
    match name.split("/"):
        case [("head_out" | "aux_head_out") as output]:
            return {f"float32/output/{output}": array}
        case ["assign_gt_inds"]:
            return {"assignment/joint_epoch0/gt_inds": array}
        case ["grad", phase, run, parameter]:
            return {f"{runs[run]}/gradient/{phase}/{parameter}": array}
        case ["bn" | "bn_f64" as run, module, entry]:
            return {f"{'float64' if run == 'bn_f64' else 'float32'}/bn/{module}.{entry}": array}
        case ["after_adamw", run, parameter]:
            change = array.astype(np.float64) - seeded_array(parameter, array.shape)
            return {f"{runs[run]}/step/{FULL_STEP}/{parameter}": change.astype(runs[run])}
        case _:
            return {}


def _settings(variant: str, runs: Mapping[str, Mapping]) -> dict[str, Any]:
    """AdamW's settings as the golden file states them: rate and clipping in the variant's name, the rest once in words."""
    return {
        "rule": "AdamW",
        "phase": "joint_epoch0",
        "lr": float(variant.rsplit("lr", 1)[1]),
        "weight_decay": 0.05,
        "options": {"betas": [0.9, 0.999], "eps": 1e-8},
        "groups": [],
        "clip": 35.0 if "clip35" in variant else None,
        "grad_norm": {"float32": runs["f32"]["grad_norm_before_clip"], "float64": runs["f64"]["grad_norm_before_clip"]},
    }


def _speed(content: Mapping, stored: Arrays, case: Case) -> Found:
    if case.name not in content:
        return None
    names = {"inference_batch1_forward": ("forward", 1), "train_step_batch8_joint": ("train", 8)}
    cases = [
        {
            "operation": work,
            "batch": batch,
            "size": list(case.size),
            "units": run["ratio_of_medians_to_matmul"],
            "synchronised_ms": {"median": 1e3 * run["wall_median_s"]},
        }
        for name, (work, batch) in names.items()
        if (run := content[case.name].get(name))
    ]
    return {"measured_on": content["env"], "deferred": False, "cases": cases}, {}  # PyTorch on the CPU


STAGES = {"convert": _convert, "forward": _forward, "loss": _loss, "speed": _speed}
