"""Tables of the notebooks: data frames that show themselves in the report's notation and in the reader's language."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.alignment import evidence
from lib.alignment.decisions import judge, restored
from lib.record import Record
from lib.show.messages import words

ROWS = 60  # that a notebook shows of a frame
LONG = 12  # rows from which on it can be sorted and searched, as a table of the report
SCRIPT = Path(__file__).parents[1].joinpath("report/templates/notebook/tables.js").read_text(encoding="utf-8")
KINDS = ("table", "verdict", "side")  # of the catalogues' keys: headings, and cells that are words
PAIRS = tuple(map("-".join, evidence.PAIRS))
TEXTS = {"selector": "", "props": "text-align: left; white-space: normal"}  # of a column of words, and of its heading
SHORT = {"selector": "", "props": "text-align: left; white-space: nowrap"}  # where Chinese would break at each letter
WORD = 12  # letters that stay in one line
SMALL = 1e-3  # numbers below need an exponent
WHOLE, LARGE = 1000, 1e7  # from here on decimals say nothing, and from there on whole numbers neither
NUMBERS = [
    {
        "selector": "td, .col_heading",
        "props": "text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap",
    },
    {"selector": ".row_heading, .index_name", "props": "text-align: left"},
]


class Frame(pd.DataFrame):
    """A data frame that a notebook shows in the report's notation: words to the left, numbers rounded, to the right."""

    @property
    def _constructor(self) -> type["Frame"]:
        return Frame

    def _repr_html_(self) -> str:
        if not len(self):
            return f"<p>{words()('table.none')}</p>"
        shown = self.style.format({column: _written(self[column]) for column in self}).set_table_styles(NUMBERS)
        for axis in (0, 1):
            shown = shown.format_index(lambda value: escape(said(value)), axis=axis)
            shown = shown.format_index_names(said, axis=axis)
        texts = {column: self[column].dropna() for column in self}
        texts = {column: held for column, held in texts.items() if all(isinstance(value, str) for value in held)}
        looks = {column: [SHORT if held.map(len).max() <= WORD else TEXTS] for column, held in texts.items()}
        table = shown.set_table_styles(looks, axis=0, overwrite=False).to_html(max_rows=ROWS)
        return f'<div class="table">{table}</div>' + (f"<script>{SCRIPT}</script>" if len(self) >= LONG else "")


def _written(column: pd.Series) -> Callable[[Any], str]:
    """How a column's cells are written: one of numbers alone with exponents, if the smallest of them needs one.

    A cell is escaped after it is said, for a catalogue knows a text with its own quotes; `code` looks like code.
    """
    held = column.dropna().tolist()
    small = all(isinstance(value, float) for value in held) and min(filter(None, map(abs, held)), default=1.0) < SMALL

    def cell(value: Any) -> str:
        shown = f"{value:.3e}" if small and value and value == value else shown_as(value)
        return re.sub("`([^`]+)`", r"<code>\1</code>", escape(shown))

    return cell


class Name(str):
    """A text that is shown as it is, also where a catalogue has that word: a type, a tensor, what a framework said."""


def shown_as(value: Any) -> str:
    """A cell: a number in the one notation, a word in the reader's language, nothing where there is nothing."""
    if value is None or value != value:
        return ""
    return text(value) if isinstance(value, Number) and not isinstance(value, bool | np.bool_) else said(value)


def said(value: Any) -> str:
    """A heading or a word in the reader's language, where a catalogue has it; a name as it is."""
    if isinstance(value, Name):
        return value
    if value in PAIRS:
        return words().pair(value)
    keys = (f"{kind}.{value}" for kind in KINDS)
    return next((words()(key) for key in keys if key in words().texts), words().term(str(value)))


def starts(found: Mapping[str, Mapping[str, Any]]) -> Frame:
    """COCO's numbers before (epoch 0) and after each training of a train record's `starts`, as far as there are any."""
    rows = {
        (name, when): numbers[when] for name, numbers in found.items() for when in ("before", "after") if numbers[when]
    }
    frame = Frame(list(rows.values()), pd.MultiIndex.from_tuples(rows)).drop(columns="step", errors="ignore")
    return frame.assign(epoch=frame["epoch"] + 1)


def parts(network: Any) -> Frame:
    """Tensors and scalars trained in each part (the name up to the first dot) of a module with `named_parameters`."""
    sizes = [(name.split(".")[0], math.prod(parameter.shape)) for name, parameter in network.named_parameters()]
    frame = pd.DataFrame(sizes, columns=["part", "parameters"])
    return Frame(frame.groupby("part", sort=False)["parameters"].agg(tensors="size", parameters="sum"))


def tensors(arrays: Mapping[str, Any], prefix: str = "") -> Frame:
    """Shape, type, mean, deviation and largest size of each array whose name starts with `prefix`."""
    held = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    rows = {
        name: (str(array.shape), array.dtype.name, array.mean(), array.std(), abs(array).max())
        for name, array in held.items()
    }
    return Frame.from_dict(rows, orient="index", columns=["shape", "type", "mean", "std", "max |x|"])


def values(named: Mapping[str, Any], title: str) -> Frame:
    """Named values as one column."""
    return side_by_side({title: named})


def side_by_side(columns: Mapping[str, Mapping[str, Any]]) -> Frame:
    """Named values, one column for each set of them."""
    return Frame({title: pd.Series(dict(named), dtype=object) for title, named in columns.items()})


def decisions(arrays: Mapping[str, np.ndarray], noise: Mapping[str, Mapping[str, float]]) -> Frame:
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
    return Frame.from_dict(rows, orient="index").rename_axis(index=["phase", "decision"])


def verdict_matrix(records: Iterable[Record]) -> Frame:
    """Verdicts by model and question (rows) and pair of sides (columns) of compare records; "" where none is asked."""
    cells = {(model, one["question"], one["pair"]): one["verdict"] for model, one in _verdicts(records)}
    return Frame(pd.Series(cells).unstack(sort=False).fillna("").rename_axis(index=["model", "question"]))


def closest_rows(records: Iterable[Record]) -> Frame:
    """Of each verdict of compare records the judged number closest to its gate, or farthest beyond it."""
    found = [
        verdict | max(verdict["rows"], key=lambda row: float(row["ratio"]))  # "Infinity" is a fault
        for _, verdict in _verdicts(records)
        if verdict["rows"]
    ]
    columns = ["question", "pair", "verdict", "name", "what", "error", "reach", "gate", "ratio", "note"]
    return Frame(found)[columns]


def _verdicts(records: Iterable[Record]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The model and each verdict of compare records, with its rows as dicts."""
    for held in records:
        for verdict in held.fields["verdicts"]:
            rows = [dict(zip(held.fields["columns"], row)) for row in verdict["rows"]]
            yield held.model, verdict | {"rows": rows, "question": Name(words()(f"question.{verdict['question']}"))}


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


def text(value: Any) -> str:
    """A number as the report shows it: with four digits, or whole, its thousands apart by a thin space."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, int) or abs(value) < LARGE and (value == int(value) or abs(value) >= WHOLE):
        return f"{value:,.0f}".replace(",", "\u2009")
    if float(few := f"{value:.3g}") == value or not math.isfinite(value):
        return few  # as somebody wrote it
    return f"{value:.3e}" if abs(value) < SMALL else f"{value:#.4g}"
