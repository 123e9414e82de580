"""Tables of the notebooks and the report: data frames from records, numbers as text."""
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from lib.record import Record

CURVE_KEYS = ("step", "epoch")


def curves(lines: Iterable[Mapping[str, Any]]) -> tuple[dict[str, list], list[dict[str, Any]]]:
    """(columns per step, one dict per evaluation) from the lines of a training log, as the train record holds them."""
    lines = list(lines)
    steps = [line for line in lines if "evaluation" not in line]
    columns = {name: [line[name] for line in steps] for name in (steps[0] if steps else ())}
    return columns, [{**{key: line[key] for key in CURVE_KEYS}, **line["evaluation"]} for line in lines if "evaluation" in line]


def losses(fields: Mapping[str, Any]) -> pd.DataFrame:
    """Loss components (rows) in each phase and precision (columns) of a loss record's `losses`."""
    frame = {(phase, run): values for phase, runs in fields.items() for run, values in runs.items()}
    return pd.DataFrame(frame)


def coco(records: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The twelve COCO numbers (columns) of each run (rows)."""
    return pd.DataFrame(records).T


def speed(records: Iterable[Record]) -> pd.DataFrame:
    """One row per work, batch and side from speed records: milliseconds, spread, images per second, memory."""
    rows = [
        {
            "work": entry["what"], "batch": entry["batch"], "side": record.side, "median ms": 1e3 * entry["median_s"],
            "quartiles ms": f"{1e3 * entry['low_s']:.1f} to {1e3 * entry['high_s']:.1f}",
            "unsynchronised ms": 1e3 * entry["unsynchronised_s"], "images/s": entry["images_per_second"],
            "peak MiB": entry["peak_memory_mib"], "matmul units": entry["matmul_units"],
        }
        for record in records for entry in record.fields["entries"]
    ]  # fmt: skip
    return pd.DataFrame(rows).sort_values(["work", "batch", "side"], ignore_index=True)


def state(fields: Mapping[str, Any]) -> pd.DataFrame:
    """Entries, parameters and buffers of each part of a model (the name up to the first dot), from a convert record."""
    frame = pd.DataFrame(fields["state"], columns=["name", "shape", "type", "kind", "sha256"])
    frame["part"] = frame["name"].str.split(".").str[0]
    frame["scalars"] = [_product(shape) for shape in frame["shape"]]
    parts = frame.groupby("part", sort=False)
    return pd.DataFrame({
        "entries": parts.size(),
        "parameters": frame[frame["kind"] == "param"].groupby("part", sort=False)["scalars"].sum(),
        "buffers": frame[frame["kind"] == "buffer"].groupby("part", sort=False)["scalars"].sum(),
    }).fillna(0).astype(int)  # fmt: skip


def tensors(arrays: Mapping[str, Any], prefix: str = "") -> pd.DataFrame:
    """Shape, type, mean, deviation and largest size of each array whose name starts with `prefix`."""
    held = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    rows = {
        name: {"shape": str(array.shape), "type": array.dtype.name, "mean": array.mean(), "std": array.std(), "max |x|": abs(array).max()}
        for name, array in held.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def text(value: Any) -> str:
    """A number as the report shows it: integers whole, others with four significant digits."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009")  # thin space
    return f"{value:.4g}"


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
