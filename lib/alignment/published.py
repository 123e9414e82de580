"""The published side: the golden records in the vocabulary of the other sides' records.

The golden files hold whole tensors for some names and statistics (norm, mean, first values, size of the float32 error)
for the rest; these become `fields["statistics"]`, keyed by the name that the other sides give the array.
"""
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lib.alignment.seeded import seeded_array
from lib.record import ROOT, Measurement, measure

GOLDEN = ROOT / "tests" / "golden"
FULL_STEP = "clip35_lr1e-3"  # the one optimiser variant of which the golden file holds whole parameters after the step


@dataclass(frozen=True)
class Case:
    """The published case that a stage measures: seeded weights and inputs follow from it."""

    name: str  # "m_320_80cls"
    num_classes: int
    calibrated: bool  # batch-norm statistics come from the golden file's `calib/` arrays


def case(model: str, stage: str) -> Case:
    """What `stage` measures for `model`: 20 classes where whole tensors are compared, whose golden files are small."""
    classes = 20 if stage in ("forward", "loss") else 80
    return Case(f"{model.removeprefix('nanodet-plus-')}_{classes}cls", classes, stage == "forward")


def write(folder: str | Path, model: str, golden: Path = GOLDEN) -> list[Path]:
    """Write the published side's records of `model` into `folder`; stages without a golden file are left out."""
    paths = []
    for stage, (name, fill) in STAGES.items():
        source = golden / "nanodet_plus" / name.format(case=case(model, stage).name, model=model)
        inputs = [path for path in (source, source.with_suffix(".npz")) if path.exists()]
        content = json.loads(source.read_text()) if source.exists() else {}
        if not content or (stage == "speed" and case(model, stage).name not in content):
            continue
        side = SimpleNamespace(
            NAME="published", VERSION=content["env"]["official_commit"], device=lambda: "cpu", cache_path=lambda: None
        )
        with measure(stage, model, folder, inputs=inputs, side=side) as measurement:
            measurement.fields |= {"case": case(model, stage).name, "measured_on": content["env"]}
            fill(content, _arrays(source.with_suffix(".npz")), measurement, case(model, stage))
        paths.append(measurement.path)
    return paths


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _convert(content: Mapping, arrays: Mapping[str, np.ndarray], out: Measurement, chosen: Case) -> None:
    out.fields["state"] = [[*row[:4], _hash(row[0], row[1])] for row in content["state_dict"]]
    out.fields["parameters"] = content["counts"]["total_params_training_model"]
    out.fields["norm_layers"] = {
        "BatchNorm2d": content["counts"]["batchnorm_layers"],
        "GroupNorm": content["counts"]["groupnorm_layers(aux_head only)"],
    }


def _hash(name: str, shape: list[int]) -> str | None:
    """SHA-256 of the seeded entry's bytes; None for constants, which have no seed."""
    array = seeded_array(name, tuple(shape))
    return None if array is None else hashlib.sha256(array.tobytes()).hexdigest()


def _forward(content: Mapping, arrays: Mapping[str, np.ndarray], out: Measurement, chosen: Case) -> None:
    features = content["calibrated"]["intermediate_in_execution_order"]
    out.fields["depth"] = list(features)
    out.fields["statistics"] = {
        f"features/{name}": {"shape": entry["shape"], "l2": entry["f64_l2"], "max": entry["absmax"], "first": entry["first16"],
                             "floor_max": entry["f32_minus_f64_absmax"]}
        for name, entry in features.items()
    }
    for run, suffix in (("float32", ""), ("float64", "_f64")):
        out.arrays[f"{run}/preds"] = arrays["preds_calibrated" + suffix]
        boxes, labels = arrays["dets_calibrated" + suffix], arrays["labels_calibrated" + suffix]
        out.arrays[f"{run}/detections"] = np.concatenate([boxes, labels[:, None]], axis=1).astype(run)


def _loss(content: Mapping, arrays: Mapping[str, np.ndarray], out: Measurement, chosen: Case) -> None:
    phases = sorted({key.split("/")[0] for key in content["losses"]}, reverse=True)  # joint before detached
    out.fields["losses"] = {
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
                "shape": entry["shape"], "l2": numbers["l2_f64"], "mean": numbers["mean_f64"],
                "floor_l2": numbers["rel_l2_err_f32_vs_f64"] * numbers["l2_f64"],
            }  # fmt: skip
    out.fields["statistics"] = statistics
    out.fields["optimiser"] = {name: _settings(name, runs) for name, runs in content["optimizer"]["variants"].items()}
    out.fields["step_norms"] = {
        variant: {
            name: {"float32": entry["adamw_change_l2"][variant]["f32"], "float64": entry["adamw_change_l2"][variant]["f64"]}
            for name, entry in content["per_param"].items()
        }
        for variant in out.fields["optimiser"]
    }
    for name, array in arrays.items():
        out.arrays |= _loss_array(name, array)
    for module, entry in content["bn_after_one_forward"].items():
        out.arrays[f"bn/{module}.num_batches_tracked"] = np.array(entry["num_batches_tracked"], np.int64)


def _loss_array(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """The golden array under the record's name; nothing for arrays that no question asks for."""
    runs = {"f32": "float32", "f64": "float64"}
    match name.split("/"):
        case [("head_out" | "aux_head_out") as output]:
            return {f"float32/output/{output}": array}
        case ["assign_gt_inds"]:
            return {"assignment/gt_inds": array}
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
        "phase": "joint_epoch0", "lr": float(variant.rsplit("lr", 1)[1]), "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.05,
        "clip": 35.0 if "clip35" in variant else None,
        "grad_norm": {"float32": runs["f32"]["grad_norm_before_clip"], "float64": runs["f64"]["grad_norm_before_clip"]},
    }  # fmt: skip


def _speed(content: Mapping, arrays: Mapping[str, np.ndarray], out: Measurement, chosen: Case) -> None:
    names = {"inference_batch1_forward": ("forward", 1), "train_step_batch8_joint": ("train", 8)}
    out.fields["deferred"] = False  # PyTorch on the CPU
    out.fields["cases"] = [
        {"operation": work, "batch": batch, "units": run["ratio_of_medians_to_matmul"], "synchronised_ms": {"median": 1e3 * run["wall_median_s"]}}
        for name, (work, batch) in names.items() if (run := content[chosen.name].get(name))
    ]  # fmt: skip


STAGES: dict[str, tuple[str, Callable]] = {
    "convert": ("spec_{case}.json", _convert),
    "forward": ("forward_{case}.json", _forward),
    "loss": ("train_{case}.json", _loss),
    "speed": ("timings.json", _speed),
}
