"""Records of a model that does not exist, for tests of the comparison and the report: nothing in them was measured.

Every side computes the same numbers in float64; float32 arrays carry noise of their own side, of relative size NOISE.
"""

import hashlib
import math
import os
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lib import record
from lib.alignment.gate import R, scalars
from lib.alignment.initial import samples
from lib.alignment.seeded import seeded_array, seeded_input
from lib.alignment.store import digest
from lib.alignment.verdict import ROUNDING, Row
from lib.evaluation import NUMBERS

MODEL = "synthetic"
NOISE = 1e-6
IMAGES = 20  # evaluated; fewer can't show that two detectors are equivalent
PARAMETERS = {
    "body.0.weight": (8, 3, 3, 3),
    "body.1.weight": (8,),
    "body.1.bias": (24,),
    "head.weight": (10, 8),
    "head.scale": (),
}
BUFFERS = {"body.1.running_mean": (8,), "body.1.running_var": (8,), "body.1.num_batches_tracked": ()}
PHASES = ("joint_epoch0", "detached_epoch10")
CHOICES = f"{PHASES[0]}/gt_inds", f"{PHASES[0]}/matched"  # the second is chosen from what the first chose
NEAR = (1, 7)  # the one place whose choice is a toss-up
TRUE_ZERO = "body.1.bias"
DEPTH = ("body.0", "body.1", "head")
STEP = {
    "rule": "AdamW",
    "phase": PHASES[0],
    "lr": 1e-3,
    "options": {"betas": [0.9, 0.999], "eps": 1e-8},
    "weight_decay": 0.05,
    "groups": [],
    "clip": 35.0,
}


def write_all(folder: Path) -> Path:
    """Records of all stages and sides."""
    for side in ("published", "torch", "jittor"):
        for stage, fill in STAGES.items():
            if side != "published" or stage in ("convert", "forward", "loss", "speed"):
                write(folder, side, stage, *fill(side))
    return folder


def write(folder: Path, side: str, stage: str, fields: dict, arrays: dict) -> None:
    backend = SimpleNamespace(NAME=side, VERSION="0.0-synthetic", device=lambda: "cpu", cache_path=lambda: None)
    with record.measure(stage, MODEL, folder, side=backend, seed=0) as out:
        out.fields |= fields
        out.arrays |= arrays
    forge(folder, side, stage, wall_seconds=100.0)  # what the fields say took its time


def forge(folder: Path, side: str, stage: str, **changed) -> None:
    """Rewrite where a record says it comes from."""
    path = folder / MODEL / side / f"{stage}.json"
    held = record.read(path)
    told = held.model_copy(update={"provenance": held.provenance.model_copy(update=changed)})
    record.write(folder, told, record.load_arrays(path))


def edit(folder: Path, side: str, stage: str, change) -> None:
    """Rewrite a record after change(fields, arrays) altered it: how tests plant a fault."""
    path = folder / MODEL / side / f"{stage}.json"
    held, arrays = record.read(path), record.load_arrays(path)
    change(held.fields, arrays)
    record.write(folder, held, arrays)


def exact(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return seeded_input(name, shape).astype(np.float64)


def rounded(name: str, shape: tuple[int, ...], side: str) -> np.ndarray:
    return np.asarray(exact(name, shape) * (1 + NOISE * exact(f"{side}:{name}", shape)), np.float32)


def both(name: str, shape: tuple[int, ...], side: str) -> dict[str, np.ndarray]:
    return {f"float32/{name}": rounded(name, shape, side), f"float64/{name}": exact(name, shape)}


def reach(exact: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """As `gate.measured` gives it where R runs move every element of each tensor by NOISE."""
    found = {}
    for name, array in exact.items():
        length = np.linalg.norm(array)
        moved = [NOISE * array * seeded_input(f"{name}:{draw}", array.shape) for draw in range(R)]
        apart = [abs(np.vdot(one, array)) / length for one in moved]
        found[name] = [max(np.abs(one).max() for one in moved), max(map(np.linalg.norm, moved)), max(apart)]
    return found


def reached(arrays: dict[str, np.ndarray], more: dict[str, float] | None = None) -> dict[str, list[float]]:
    """The reach of a record's float64 tensors, and of more numbers."""
    found = {name.removeprefix("float64/"): array for name, array in arrays.items() if name.startswith("float64/")}
    return reach(found | {name: np.array([value]) for name, value in (more or {}).items()})


def _convert(side: str) -> tuple[dict, dict]:
    rows = []
    for name, shape in {**PARAMETERS, **BUFFERS}.items():
        array = seeded_array(name, shape)
        sha = (
            None
            if array is None and side == "published"
            else hashlib.sha256(b"" if array is None else array.tobytes()).hexdigest()
        )
        kind = "param" if name in PARAMETERS else "buffer"
        rows.append([name, list(shape), "float32" if array is not None else "int64", kind, sha])
    recipe = {"training/clip": 35.0, "augmentation/colours": (0.015, 0.7, 0.4), "group 0": (1.0, True, 0.0)}
    fields = {
        "case": "c",
        "recipe": recipe,
        "state": rows,
        "parameters": sum(math.prod(shape) for shape in PARAMETERS.values()),
        "norm_layers": {"BatchNorm2d": 1},
        "first": {name: {"constant": 1.0} for name in PARAMETERS}
        | {"body.0.weight": {"normal": 0.01}, "body.1.bias": {"constant": 0.0}, "head.weight": {"uniform": 0.5}},
    }
    if side == "published":
        return fields, {}
    drawn = np.random.default_rng(0)
    first = {name: np.ones(shape) for name, shape in PARAMETERS.items()}
    first |= {"body.0.weight": 0.01 * drawn.standard_normal(216), "body.1.bias": np.zeros(24)}
    first["head.weight"] = drawn.uniform(-0.5, 0.5, 80)
    fields["first"] = {name: digest(np.reshape(first[name], shape)) for name, shape in PARAMETERS.items()}
    fields |= {
        "coverage": {"loaded": len(rows), "total": len(rows)},
        "missing": [],
        "left_over": [],
        "misshapen": [],
        "not_finite": [],
        "round_trip": {"safetensors": True, "npz": True},
    }
    return fields, samples(first)


def _forward(side: str) -> tuple[dict, dict]:
    shapes = {f"features/{name}": (1, 4, 6, 6) for name in DEPTH}
    arrays, fields = both("preds", (1, 50, 12), side), {"case": "c", "float64": "full", "depth": list(DEPTH)}
    fields |= {"score_threshold": 0.05, "max_detections": 100, "live": None}
    if side == "torch":
        fields["live"] = {
            "name": "others",
            "version": "1",
            "outputs": {"preds": {"error": 4e-7, "floor": 1e-7, "scale": 1.0}},
        }
    for run in ("float32", "float64"):
        arrays[f"{run}/detections"] = _detections(side, run)[:, 1:]
    if side != "published":
        for name, shape in shapes.items():
            arrays |= both(name, shape, side)
        if side == "torch":
            fields["reach"] = reached(arrays) | reach({"final/preds": exact("preds", (1, 50, 12))})
        return fields, arrays
    fields["statistics"] = {}
    for name, shape in shapes.items():
        true, own = exact(name, shape), rounded(name, shape, side)
        fields["statistics"][name] = {
            "shape": list(shape),
            "l2": float(np.linalg.norm(true)),
            "max": float(np.abs(own).max()),
            "first": own.ravel()[:16].tolist(),
        }
    return fields, arrays


def _decisions() -> dict[str, np.ndarray]:
    """Of two images with 50 places each which are chosen, and for two boxes which place each is given."""
    chosen = (exact("gt", (2, 50)) > 1).astype(np.int64)
    return {
        f"assignment/{CHOICES[0]}": chosen,
        f"assignment/{CHOICES[1]}": np.argsort(-chosen, 1, kind="stable")[:, :2],
    }


def _margins() -> dict[str, np.ndarray]:
    """Every other option is 400 floors away or more, but for a near tie: NEAR."""
    found = {}
    for name, options in zip(CHOICES, (2, 50)):
        chosen = _decisions()[f"assignment/{name}"]
        floors = 400 + 100 * np.abs(exact(f"margin:{name}", (*chosen.shape, options)))
        np.put_along_axis(floors, chosen[..., None], 0.0, -1)
        found |= {f"margin/{name}": floors.astype(np.float32), f"option/{name}": np.arange(options)}
    near = (*NEAR, 1 - _decisions()[f"assignment/{CHOICES[0]}"][NEAR])
    found[f"margin/{CHOICES[0]}"][near] = 0.5
    return found


def _loss(side: str) -> tuple[dict, dict]:
    values = {"loss_qfl": 968.29063, "loss_bbox": 1.4007684, "loss_total": 0.0}
    noise = dict(zip(values, exact(f"{side}:losses", (3,))))
    runs = {"float32": {n: v * (1 + 1e-7 * noise[n]) for n, v in values.items()}, "float64": values}
    for run in runs.values():
        run["loss_total"] = run["loss_qfl"] + run["loss_bbox"]
    arrays = both("output/head_out", (2, 50, 12), side)
    del arrays["float64/output/head_out"]
    arrays |= _decisions()
    norms, zero = {}, exact(f"{side}:zero", (24,))
    for phase in PHASES:
        for name, shape in PARAMETERS.items():
            arrays |= both(f"gradient/{phase}/{name}", shape, side)
        arrays[f"float32/gradient/{phase}/{TRUE_ZERO}"] = (1e-6 * zero).astype(np.float32)
        arrays[f"float64/gradient/{phase}/{TRUE_ZERO}"] = 1e-15 * zero
    for run, kind in (("float32", np.float32), ("float64", np.float64)):
        gradients = {name: arrays[f"{run}/gradient/{PHASES[0]}/{name}"].astype(np.float64) for name in PARAMETERS}
        norms[run] = float(np.sqrt(sum((g**2).sum() for g in gradients.values())))
        for name, gradient in gradients.items():
            weight = seeded_array(name, PARAMETERS[name]).astype(np.float64)
            g = gradient * min(1.0, STEP["clip"] / norms[run])
            change = -STEP["lr"] * (STEP["weight_decay"] * weight + g / (np.abs(g) + STEP["options"]["eps"]))
            size = ROUNDING * np.abs(weight) if run == "float32" else 0.0
            arrays[f"{run}/step/clip35_lr1e-3/{name}"] = np.asarray(
                change + size * exact(f"{side}:step:{name}", weight.shape), kind
            )
        for name in ("running_mean", "running_var"):
            arrays |= both(f"bn/body.1.{name}", (8,), side)
    arrays["float32/output/head_out"] = rounded("output/head_out", (2, 50, 12), side)
    if side != "published":
        arrays["float64/output/head_out"] = exact("output/head_out", (2, 50, 12))
    arrays["bn/body.1.num_batches_tracked"] = np.array(1, np.int64)
    fields = {
        "case": "c",
        "float64": "full",
        "losses": dict.fromkeys(PHASES, runs),
        "optimiser": {"clip35_lr1e-3": {**STEP, "grad_norm": norms}},
    }
    if side != "published":
        fields |= {
            "noise": {name: {"score": 2e-6} for name in CHOICES},
            "follows": {CHOICES[0]: "", CHOICES[1]: CHOICES[0]},
        }
        arrays |= _margins()
    if side == "torch":
        sizes = {f"loss/{phase}/{name}": value for phase in PHASES for name, value in values.items()}
        fields["reach"] = reached(arrays, sizes)
        for phase in PHASES:  # moved, a true zero is noise of float32's size
            fields["reach"][f"gradient/{phase}/{TRUE_ZERO}"] = [4e-6, 1e-5, 1e-5]
    if side == "published":
        fields["statistics"] = {}
        fields["step_norms"] = {
            "clip35_lr1e-3": {
                name: {
                    run: float(np.linalg.norm(arrays[f"{run}/step/clip35_lr1e-3/{name}"]))
                    for run in ("float32", "float64")
                }
                for name in PARAMETERS
            }
        }
    return fields, arrays


def _train(side: str) -> tuple[dict, dict]:
    steps = np.arange(80)
    base = {
        "loss_qfl": 3 * np.exp(-steps / 40) + 0.4,
        "loss_bbox": np.exp(-steps / 60) + 0.6,
        "loss_dfl": 0.2 * np.exp(-steps / 50) + 0.2,
    }
    wobble = np.cumsum(exact(f"{side}:curve", (80,))) * 2e-3
    columns = {name: (values + wobble * (steps > 3)).tolist() for name, values in base.items()}
    columns = {
        name: [values[0] * (1 + 1e-7 * float(exact(f"{side}:{name}", ()))), *values[1:]]
        for name, values in columns.items()
    }
    first = {name: float(values[0]) for name, values in base.items()}
    seconds, waited = (61.5 + len(side)) / 80, 0.5 / 80
    curves = {
        "step": steps.tolist(),
        "epoch": (steps // 20).tolist(),
        "learning_rate": (1e-3 * (1 - steps / 90)).tolist(),
        "loss": np.sum(list(columns.values()), axis=0).tolist(),
        **columns,
        "step_seconds": [seconds] * 80,
        "wait_seconds": [waited] * 80,
    }
    epochs = [
        dict.fromkeys(NUMBERS, 0.06 * (e + 1) + 0.003 * len(side))
        | {"epoch": e, "step": 20 * e + 19, "AP50": 0.1 * (e + 1)}
        for e in range(4)
    ]
    final = {name: epochs[-1][name] for name in NUMBERS}
    return {
        "input_size": [96, 128],
        "schedule": {
            "recipe": {"epochs": 4},
            "steps_per_epoch": 20,
            "steps": 80,
            "changes": {"learning_rate/0": [[0, 1e-3], [20, 9e-4]], "updates": [[i, i + 1] for i in range(80)]},
            "augmentation": {"mosaic": [[0, 1.0], [3, 0.0]]},
        },
        "overfit": {"reached": True, "AP50": 0.95, "steps": 120},
        "initial_sha256": "a" * 64,
        "batches_sha256": "b" * 64,
        "curves": curves,
        "before": None,
        "epochs": epochs,
        "final": final,
        "seconds": 80 * seconds,
        "steps": 80,
        "waiting_seconds": 80 * waited,
        "waiting_share": waited / seconds,
        "images_per_second": 5.1,
        "starts": {"fresh weights": {"before": None, "after": {**final, "epoch": 3}, "evaluations": epochs}},
        "first_step": {
            "float32": {name: columns[name][0] for name in columns},
            "float64": first,
            "astray": 0.0,
            "reach": reach(scalars(first)),
        },
        "checkpoint": {"path": "x.safetensors", "sha256": "d" * 64},
    }, {}


def _evaluate(side: str) -> tuple[dict, dict]:
    arrays = {f"{run}/common/detections": _detections(side, run) for run in ("float32", "float64")}
    arrays["float32/own/detections"] = _detections(side, "float32")
    for image in (0, 1):
        pixels = (120 + 30 * seeded_input(f"image{image}", (64, 64, 3))).clip(0, 255).astype(np.uint8)
        found = _detections("published", "float64")
        mine = found[found[:, 0] == image]
        arrays |= {
            f"sample/{image}/image": pixels,
            f"sample/{image}/boxes": mine[:, 1:5].astype(np.float32),
            f"sample/{image}/labels": mine[:, 6].astype(np.int64),
        }
    for weights in ("own", "common"):
        for label in (0, 1):  # every box is found on both sides
            arrays |= {
                f"matches/{weights}/{label}/image": np.arange(IMAGES),
                f"matches/{weights}/{label}/hit": np.ones((10, IMAGES), bool),
                f"matches/{weights}/{label}/counts": np.ones((10, IMAGES), bool),
                f"matches/{weights}/{label}/boxes": np.ones(IMAGES, np.int64),
            }
    numbers = dict.fromkeys(NUMBERS, 0.25) | {"AP": 1.0}
    return {
        "own": numbers,
        "common": numbers,
        "common_weights_sha256": "d" * 64,
        "images": IMAGES,
        "score_threshold": 0.05,
        "max_detections": 100,
        "classes": ["disc", "star"],
        "samples": [0, 1],
    }, arrays


FORM = asdict(Row("features/stem", "every element", 1e-7, 5e-8, 2.5e-7, 3.0, True))  # what the judge says of a form


def _speed(side: str) -> tuple[dict, dict]:
    cases = []
    for work, batch, seconds in (("forward", 1, 0.03), ("forward", 8, 0.2), ("train", 8, 1.8)):
        turns = {one: 1e3 * seconds * (1 + 0.05 * len(one)) for one in ("published", "torch", "jittor")}
        median, calls = turns[side], math.ceil(2 / seconds)
        cases.append(
            {
                "operation": work,
                "batch": batch,
                "size": [64, 64],
                "form": "inference" if work == "forward" else "training",
                "form_judged": {"worst": FORM, "rows": 60} if work == "forward" else None,
                "others_cores": [0.01] * 3,
                "synchronised_ms": _spread(median, 3 * calls),
                "unsynchronised_ms": {"median": median if side == "torch" else 0.1 * median},
                "images_per_second": 1e3 * batch / median,
                "memory": {"peak_mib": 300.0 + 20 * batch},
                "first_call_seconds": 3.0,
                "unit_ms": _spread(20 / 3, 3),
                "units": 0.15 * median,
                "turns_ms": [[median] * calls] * 3,
                "ratio_to": {one: _spread(median / turns[one], 3) for one in ("torch", "jittor") if one != side},
            }
        )
    return {
        "cases": cases,
        "deferred": side == "jittor",
        "threads": os.cpu_count(),
        "seconds_per_turn": 2.0,
        "rounds": 3,
    }, {}


def _spread(value: float, samples: int) -> dict[str, float]:
    return {"median": value, "q1": value, "q3": value, "samples": samples}


def _detections(side: str, run: str) -> np.ndarray:
    """(6, 7) image, x1, y1, x2, y2, score, label."""
    corner, size = 4 + 20 * np.abs(exact("corner", (6, 2))).clip(0, 1), 10 + 8 * np.abs(exact("size", (6, 2)))
    rows = np.concatenate(
        [
            np.repeat([0, 1], 3)[:, None],
            corner,
            corner + size,
            np.linspace(0.9, 0.4, 6)[:, None],
            np.tile([0, 1], 3)[:, None],
        ],
        axis=1,
    )
    if run == "float64":
        return rows
    rows[:, 1:6] += 1e-5 * exact(f"{side}:boxes", (6, 5))
    return rows.astype(np.float32)


def _divergence(side: str) -> tuple[dict, dict]:
    cost = {"seconds": 3.0, "plain_seconds": 1.5, "times_plain": 2.0, "bytes": 6e7, "gb_per_second": 0.02}
    fields = {"case": "c", "size": [64, 64], "batch": 2, "captured": "e" * 64, "cost": cost}
    if side == "torch":
        return fields | {"calls": len(DEPTH), "bytes": 10**6}, {}
    layers = []
    for index, path in enumerate(DEPTH):
        held = {
            "tensor": "output",
            "fault": None,
            "size": 64,
            "scale_max": 3.0,
            "scale_l2": 9.0,
            "worst": [0, 1],
            "discrete": False,
            "floor_max": 3e-7,
            "floor_l2": 9e-7,
        }
        errors = {
            "float32": {way: {**held, "max_abs": 2e-7, "l2": 6e-7} for way in ("forward", "backward")},
            "float64": {way: {**held, "max_abs": 2e-16, "l2": 6e-16} for way in ("forward", "backward")},
        }
        inherited = dict(zip(("input", "output", "input_gradient", "output_gradient"), (1e-7 * (index + 1),) * 4))
        layers.append(
            {
                "path": path,
                "call": 0,
                "kind": "Conv2d",
                "leaf": True,
                "repeat": 0.0,
                "replay": 0.0,
                "unable": None,
                "as": path,
                "noise": inherited,
                "inherited": inherited,
                "errors": errors,
                "fault": None,
            }
        )
    return fields | {
        "layers": layers,
        "apart": {"reference": [], "candidate": []},
        "mapped": False,
        "float64": "full",
        "precisions": ["float32", "float64"],
        "reproduction": None,
    }, {}


def _lockstep(side: str) -> tuple[dict, dict]:
    kinds = ("gradient", "clipped", "parameter", "average")
    size = {name: int(np.prod(shape)) for name, shape in PARAMETERS.items()}
    true = {
        kind: {name: float(np.linalg.norm(exact(f"{kind}:{name}", shape))) for name, shape in PARAMETERS.items()}
        for kind in kinds
    }
    noisy = {
        kind: {n: v * (1 + 1e-7 * float(exact(f"{side}:{kind}:{n}", ()))) for n, v in held.items()}
        for kind, held in true.items()
    }
    line = {
        "norms": {"float32": noisy, "float64": true},
        "noise": {kind: {n: 3e-7 * v for n, v in held.items()} for kind, held in true.items()},
    }
    mode = {
        "groups": {name: [1.0, True, 0.0] for name in PARAMETERS},
        "sizes": dict.fromkeys(kinds, size),
        "steps": [line, line],
        "precisions": ["float32", "float64"],
    }
    steps = np.arange(6)

    def curve(name: str, off: float = 0.0) -> dict[str, list[float]]:
        loss = (3 * np.exp(-steps / 9) * (1 + 1e-6 * exact(f"{name}:loss", (6,))) + off * steps).tolist()
        return {"loss": loss, "loss_qfl": list(loss)}

    curves = {"batches": ["b" * 64], "rate": 1e-3, "seeded": True, "own": curve(f"{side}:own")}
    if side == "torch":
        curves |= {"controls": [curve(f"control:{seed}") for seed in range(5)], "off": curve("off", 1e-3)}
    data = [
        ["image 0, decoded", {"image": "1" * 64}],
        ["image 0, 1: colours", {"result": "2" * 64}],
        ["targets", {"boxes 0": "3" * 64}],
    ]
    return {
        "data": data,
        "batches": ["b" * 64],
        "fed": mode,
        "native": mode,
        "windows": [
            {"events": ["end of warm-up"], "first": 99, "resumed": 100, "end": 99 + len(mode["steps"]), **mode}
        ],
        "curves": curves,
    }, {}


STAGES = {
    "convert": _convert,
    "forward": _forward,
    "divergence": _divergence,
    "loss": _loss,
    "lockstep": _lockstep,
    "train": _train,
    "evaluate": _evaluate,
    "speed": _speed,
}
