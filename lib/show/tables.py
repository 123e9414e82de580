"""Tables of the notebooks and the report: data frames from records, numbers as text."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.alignment.compare import norm
from lib.alignment.decisions import FLIP, judge, restored
from lib.alignment.divergence import localise
from lib.machine.locks import requirements
from lib.record import ROOT, Record

NEARNESS = ("decisions", "flipped", "within", "nearest", "nearest_name")  # what an answer about decisions says


def losses(fields: Mapping[str, Any]) -> pd.DataFrame:
    """Loss components (rows) in each phase and precision (columns) of a loss record's `losses`."""
    frame = {(phase, run): values for phase, runs in fields.items() for run, values in runs.items()}
    return pd.DataFrame(frame)


def coco(records: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The twelve COCO numbers (columns) of each run (rows)."""
    return pd.DataFrame(records).T


def starts(found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """COCO's numbers before (epoch 0) and after each training of a train record's `starts`, as far as there are any."""
    rows = {
        (name, when): numbers[when] for name, numbers in found.items() for when in ("before", "after") if numbers[when]
    }
    frame = pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows)).drop(columns="step", errors="ignore")
    return frame.assign(epoch=frame["epoch"] + 1)


def costs(epochs: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """What each epoch of a train record's `cost` took; waiting is the share of its time spent waiting for images."""
    frame = pd.DataFrame(list(epochs)).assign(epoch=lambda one: one["epoch"] + 1).set_index("epoch")
    memory = {"peak_rss_mib": "peak MiB", "peak_device_mib": "device peak MiB"}
    return frame.rename(columns={"images_per_second": "images/s", "waiting_share": "waiting", **memory})


def speed(records: Iterable[Record]) -> pd.DataFrame:
    """One row per work, batch and side from speed records: milliseconds, spread, images per second, memory."""
    rows = [
        {
            "work": case["operation"],
            "batch": case["batch"],
            "side": held.side,
            "median ms": case["synchronised_ms"]["median"],
            "quartiles ms": f"{case['synchronised_ms']['q1']:.1f} to {case['synchronised_ms']['q3']:.1f}",
            "unsynchronised ms": case["unsynchronised_ms"]["median"],
            "images/s": case["images_per_second"],
            "first call s": case["first_call_seconds"],
            "peak MiB": case["memory"]["peak_mib"],
            "units": case["units"],
        }
        for held in records
        for case in held.fields["cases"]
    ]
    return pd.DataFrame(rows).sort_values(["work", "batch", "side"], ignore_index=True)


def operators(records: Iterable[Record], operation: str = "train") -> pd.DataFrame:
    """The slowest operators of the largest case of `operation`, milliseconds and calls, per side of speed records."""
    rows = []
    for held in records:
        cases = [case for case in held.fields["cases"] if case["operation"] == operation]
        slowest = max(cases, key=lambda case: case["batch"])["slowest_operators"]
        rows += [(held.side, *operator) for operator in slowest]
    return pd.DataFrame(rows, columns=["side", "operator", "ms", "calls"])


def state(fields: Mapping[str, Any]) -> pd.DataFrame:
    """Entries, parameters and buffers of each part of a model (the name up to the first dot), from a convert record."""
    frame = pd.DataFrame(fields["state"], columns=["name", "shape", "type", "kind", "sha256"])
    frame["part"] = frame["name"].str.split(".").str[0]
    frame["scalars"] = [math.prod(shape) for shape in frame["shape"]]
    scalars = frame.pivot_table(index="part", columns="kind", values="scalars", aggfunc="sum", sort=False, fill_value=0)
    return pd.DataFrame({"entries": frame.groupby("part", sort=False).size(), **scalars})


def parts(network: Any) -> pd.DataFrame:
    """Tensors and scalars trained in each part (the name up to the first dot) of a module with `named_parameters`."""
    sizes = [(name.split(".")[0], math.prod(parameter.shape)) for name, parameter in network.named_parameters()]
    frame = pd.DataFrame(sizes, columns=["part", "parameters"])
    return frame.groupby("part", sort=False)["parameters"].agg(tensors="size", parameters="sum")


def tensors(arrays: Mapping[str, Any], prefix: str = "") -> pd.DataFrame:
    """Shape, type, mean, deviation and largest size of each array whose name starts with `prefix`."""
    held = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    rows = {
        name: (str(array.shape), array.dtype.name, array.mean(), array.std(), abs(array).max())
        for name, array in held.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["shape", "type", "mean", "std", "max |x|"])


def values(named: Mapping[str, Any], title: str) -> pd.DataFrame:
    """Named values as one column."""
    return side_by_side({title: named})


def side_by_side(columns: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Named values, one column for each set of them."""
    return pd.DataFrame({title: pd.Series(dict(named)) for title, named in columns.items()})


def overfit(check: Mapping[str, Any] | None) -> pd.DataFrame:
    """AP50 after each look of the overfit self-check; empty where it was not run."""
    return pd.DataFrame(check["looks"] if check else [], columns=["step", "AP50"]).set_index("step")


def decisions(arrays: Mapping[str, np.ndarray], noise: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Per discrete choice "assignment/<phase>/<name>": places, how many leave the commonest value, how many values.

    Where there are exact scores: the smallest margin in floors, how many lie below the gate, each score's largest one.
    """
    rows = {}
    for name in sorted(name.removeprefix("assignment/") for name in arrays if name.startswith("assignment/")):
        chosen, margins = arrays[f"assignment/{name}"], restored(name, arrays)
        _, number = np.unique(chosen, return_counts=True)
        judged = judge(name, chosen, chosen, margins)
        rows[tuple(name.split("/", 1))] = {
            "places": chosen.size,
            "chosen": chosen.size - number.max(),
            "values": len(number),
            "nearest, floors": judged.nearest,
            "below the gate": judged.within if margins else None,
            "floors of": ", ".join(f"{score} {text(floor)}" for score, floor in noise.get(name, {}).items()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=["phase", "decision"])


def flips(records: Iterable[Record]) -> pd.DataFrame:
    """Every discrete decision that flipped, from compare records, with its margin in floors; illegal ones first."""
    margin = "margin, floors"
    columns = ["model", "question", "pair", "decision", "chosen", margin, "gate, floors", "legal"]
    found = [
        (
            model,
            verdict["question"],
            verdict["pair"],
            row["name"],
            row["note"],
            float(row["error"]),
            row["gate"],
            row["passed"],
        )
        for model, verdict in _verdicts(records)
        for row in verdict["rows"]
        if row["what"] == FLIP
    ]
    frame = pd.DataFrame(found, columns=columns)
    return frame.sort_values(["legal", margin], ascending=[True, False], ignore_index=True)


def nearness(records: Iterable[Record]) -> pd.DataFrame:
    """How near to a toss-up each model's decisions were: how many there are, flipped, below the gate; the nearest."""
    rows = {
        (model, verdict["question"], verdict["pair"]): {name: verdict["values"][name] for name in NEARNESS}
        for model, verdict in _verdicts(records)
        if "nearest_name" in verdict["values"]
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(NEARNESS))


def verdict_matrix(records: Iterable[Record]) -> pd.DataFrame:
    """Verdicts by model and question (rows) and pair of sides (columns) of compare records; "" where none is asked."""
    cells = {(model, one["question"], one["pair"]): one["verdict"] for model, one in _verdicts(records)}
    return pd.Series(cells).unstack(sort=False).fillna("").rename_axis(index=["model", "question"])


def closest_rows(records: Iterable[Record]) -> pd.DataFrame:
    """Of each verdict of compare records the judged number closest to its gate, or farthest beyond it."""
    found = [
        verdict | max(verdict["rows"], key=lambda row: float(row["ratio"]))  # "Infinity" is a fault
        for _, verdict in _verdicts(records)
        if verdict["rows"]
    ]
    columns = ["question", "pair", "verdict", "name", "what", "error", "floor", "gate", "ratio", "note"]
    return pd.DataFrame(found)[columns]


def failures(records: Iterable[Record]) -> list[str]:
    """ "model: question (pair)" of every FAIL in compare records."""
    found = [(model, one) for model, one in _verdicts(records) if one["verdict"] == "FAIL"]
    return [f"{model}: {one['question']} ({one['pair']})" for model, one in found]


def summary(records: Iterable[Record]) -> str:
    """How many verdicts of compare records are of each kind, in one line."""
    counts = Counter(verdict["verdict"] for _, verdict in _verdicts(records))
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())


def _verdicts(records: Iterable[Record]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The model and each verdict of compare records, with its rows as dicts."""
    for held in records:
        for verdict in held.fields["verdicts"]:
            yield held.model, verdict | {"rows": [dict(zip(held.fields["columns"], row)) for row in verdict["rows"]]}


def gradient_norms(arrays: Mapping[str, np.ndarray], prefix: str) -> pd.DataFrame:
    """L2 norm by part (rows) and phase or variant (columns) of arrays "<prefix><phase>/<parameter>"."""
    squares: Counter = Counter()
    for name in (name for name in arrays if name.startswith(prefix)):
        phase, parameter = name.removeprefix(prefix).split("/", 1)
        squares[parameter.split(".")[0], phase] += norm(arrays[name]) ** 2
    return pd.Series({key: value**0.5 for key, value in squares.items()}).unstack(sort=False)


def live(found: Mapping[str, Any] | None) -> pd.DataFrame:
    """Each output of a live reference: its error beside our own, and the output's size; empty where none was run."""
    outputs = found["outputs"] if found else {}
    frame = pd.DataFrame.from_dict(outputs, orient="index", columns=["error", "floor", "scale"])
    return frame.rename_axis(f"{found['name']} {found['version']}" if found else "no live reference here")


def detections(rows: np.ndarray) -> pd.DataFrame:
    """Detections (m, 6) with their columns named."""
    return pd.DataFrame(rows, columns=["x1", "y1", "x2", "y2", "score", "label"]).astype({"label": int})


def samples(
    sides: Mapping[str, tuple[Mapping[str, Any], Mapping[str, np.ndarray]]], weights: str = "own"
) -> list[dict[str, Any]]:
    """Sample images with ground truth and each side's detections, for `figures.detections`.

    sides: side -> (fields, arrays) of its evaluate record; weights: "own" or "common".
    """
    fields, arrays = next(iter(sides.values()))
    found = {side: held[f"float32/{weights}/detections"] for side, (_, held) in sides.items()}
    return [
        {name: arrays[f"sample/{i}/{name}"] for name in ("image", "boxes", "labels")}
        | {"found": {side: rows[rows[:, 0] == i][:, 1:] for side, rows in found.items()}}
        for i in fields["samples"]
    ]


def environments() -> pd.DataFrame:
    """Every pinned package with its version in the two environments; a blank where one does without it."""
    names = {"torch": "torch", "jittor": "jt"}
    pins = {side: requirements(ROOT / f"environment-{name}.yml") for side, name in names.items()}
    return (
        pd.DataFrame({side: dict(pin.split("==") for pin in held) for side, held in pins.items()})
        .sort_index()
        .fillna("")
    )


def notebooks(folder: str | Path) -> pd.DataFrame:
    """Each notebook's question and time, as its first cell states them."""
    stated = {"question": r"\*\*Question\.\*\* (.+)", "time": r"Time: ([^.]+)", "kernel": r"Kernel: ([^.]+)"}
    rows = {}
    for path in sorted(Path(folder).glob("[0-9]*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        found = {name: re.search(pattern, first) for name, pattern in stated.items()}
        rows[path.stem] = {name: one[1] if one else "" for name, one in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def text(value: Any) -> str:
    """A number as the report shows it: integers whole, others with four significant digits."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")  # thin space
    return f"{value:.4g}"


def closest_layers(fields: Mapping[str, Any], count: int = 8) -> pd.DataFrame:
    """Of a divergence record the layers' own errors closest to their gates; empty for the reference's."""
    rows = [row for row in localise(fields).rows() if row.passed is not None] if "layers" in fields else []
    chosen = sorted(rows, key=lambda row: -row.ratio)[:count]
    rows = [(row.name, row.what, row.error, row.gate, row.ratio) for row in chosen]
    return pd.DataFrame(rows, columns=["layer", "what", "error", "gate", "ratio"])


def stages(data: Iterable[tuple[str, Mapping[str, str]]]) -> pd.DataFrame:
    """What a batch went through, with the beginning of each array's hash, from a lock-step record's `data`."""
    return pd.DataFrame(
        [{"stage": name, "array": key, "SHA-256": digest[:12]} for name, held in data for key, digest in held.items()]
    )
