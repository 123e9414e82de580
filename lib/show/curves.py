"""Logs of trainings, ours and those that the published repositories write, as comparable curves over epochs.

Read are
* `log.jsonl` of this suite, or the folder of a run that holds it;
* NanoDet's `logs.txt` and console output (RangiLyu/nanodet, nanodet/trainer/task.py and util/logger.py);
* Gold-YOLO's console output, kept by `tee` or `>>` (huawei-noah/Efficient-Computing, Detection/Gold-YOLO,
  yolov6/core/engine.py: the repository writes no text log of its own);
* RT-DETR's `log.txt` and console output (lyuwenyu/RT-DETR, rtdetr_pytorch/src/solver/det_solver.py).
A line that is cut off says nothing. Where a run was resumed, what it repeats replaces what was there.
"""

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.evaluation import NUMBERS
from lib.show import style
from lib.show.style import Picture, panels, picture, said, styled

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
KNOWN = "this suite's log.jsonl, NanoDet's logs.txt, Gold-YOLO's console output, RT-DETR's log.txt or console output"
Point = tuple[float, float]  # (epochs done, value)

FIELD = re.compile(
    r"(\w+):([^|\s]+)\|"
)  # NanoDet's; a line that ends neither in its bar nor in a port's time is cut off
NANODET = re.compile(
    r"([Tt]rain|[Vv]al)\|Epoch:?(\d+)/\d+\|Iter:?(\d+)\((\d+)(?:/(\d+))?\)\|(.*\|)\s*(?:time:[\d.]+s\s*)?$"
)
NANODET_METRICS = re.compile(r"Val_metrics: \{(.*)\}")
METRIC = re.compile(r"'(\w+)': (?:np\.float\d+\()?([-+.\w]+)")
NANODET_NAMES = {"mAP": "AP", "AP_50": "AP50", "AP_75": "AP75", "AP_small": "APs", "AP_m": "APm", "AP_l": "APl"}
GOLD_HEADER = re.compile(r"^\s*Epoch((?:\s+\w+)*\s+iou_loss(?:\s+\w+)*)\s*$")
GOLD_BAR = re.compile(r"^\s*(\d+)/\d+((?:\s+[-+.\w]+)+):\s*(\d+)%\|")
GOLD_AP = re.compile(r"Epoch: (\d+) \| mAP@0\.5: (\S+) \| mAP@0\.50:0\.95: (\S+)\s*$")
GOLD_COLUMNS = ("iou_loss", "dfl_loss", "cls_loss")  # where the log begins after its first header
DETR = re.compile(r"^Epoch: \[(\d+)\]\s+\[\s*(\d+)/(\d+)\]\s+eta: .*?  lr: (\S+)  (.*)  time: ")
DETR_VALUE = re.compile(r"(\w+): (\S+) \(\S+\)")  # median of the last steps (mean of the epoch)
SUMMARY = re.compile(r"\((AP|AR)\) @\[ IoU=(\S+)\s*\| area=\s*(\w+) \| maxDets=\s*(\d+) \] = (-?[\d.]+)\s*$")


@dataclass(frozen=True)
class Curves:
    """Points by name, in order; "loss" is the total, evaluations are in 0..1 under COCO's names."""

    losses: dict[str, list[Point]] = field(default_factory=dict)
    rates: list[Point] = field(default_factory=list)
    evaluations: dict[str, list[Point]] = field(default_factory=dict)

    def add_losses(self, at: float, values: Mapping[str, float]) -> None:
        """Components at `at` epochs; their sum is the total where none of them is called so."""
        total = {} if "loss" in values else {"loss": math.fsum(values.values())}
        for name, value in {**total, **values}.items() if values else ():
            place(self.losses.setdefault(name, []), at, value)

    def add_evaluation(self, at: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            place(self.evaluations.setdefault(name, []), at, value)


@dataclass(frozen=True)
class Progress:
    """One training: what it is called, who wrote its log, its curves."""

    name: str
    kind: str
    curves: Curves

    def standing(self) -> str:
        """Epochs, last loss and best AP, in one line."""
        losses, precisions = self.curves.losses.get("loss", []), self.curves.evaluations.get("AP", [])
        epochs = max(points[-1][0] for points in (losses, precisions) if points)
        parts = [f"{self.name} ({self.kind}): {epochs:.4g} epochs"]
        if losses:
            parts.append(f"last loss {losses[-1][1]:.4g}")
        if precisions:
            at, best = max(precisions, key=lambda point: point[1])
            parts.append(f"best AP {best:.4f} after epoch {at:.4g}")
        return ", ".join(parts)


def place(points: list[Point], at: float, value: float) -> None:
    """Append a point; those from `at` on were of a run that was resumed before them."""
    _drop(points, at)
    points.append((at, value))


def _drop(points: list[Point], at: float) -> None:
    while points and points[-1][0] >= at:
        points.pop()


def ours(entries: Sequence[Mapping[str, Any]]) -> Curves:
    """A line per step, a line per evaluation. A first epoch that is not over is drawn as if it were."""
    curves = Curves()
    steps = [entry for entry in entries if {"step", "epoch", "loss", "learning_rate"} <= entry.keys()]
    later = [entry["step"] / entry["epoch"] for entry in steps if entry["epoch"]]
    per_epoch = round(min(later)) if later else len({entry["step"] for entry in steps})
    for entry in steps:
        at = (entry["step"] + 1) / per_epoch
        curves.add_losses(at, {name: value for name, value in entry.items() if "loss" in name})
        place(curves.rates, at, entry["learning_rate"])
    for entry in entries:
        if "evaluation" in entry:
            curves.add_evaluation(entry["epoch"] + 1.0, {n: v for n, v in entry["evaluation"].items() if n in NUMBERS})
    return curves


def rt_detr_file(entries: Sequence[Mapping[str, Any]]) -> Curves:
    """`log.txt`: a line per epoch, counted from 0."""
    curves = Curves()
    for entry in entries:
        if {"train_loss", "epoch"} <= entry.keys():
            at = entry["epoch"] + 1.0
            held = {
                name.removeprefix("train_"): value for name, value in entry.items() if name.startswith("train_loss")
            }
            curves.add_losses(at, held)
            if "train_lr" in entry:
                place(curves.rates, at, entry["train_lr"])
            curves.add_evaluation(at, dict(zip(NUMBERS, entry.get("test_coco_eval_bbox", ()))))
    return curves


def rt_detr_console(lines: Iterable[str]) -> Curves:
    """A line every so many steps, pycocotools' summary after each epoch."""
    curves, epoch = Curves(), None
    for line in lines:
        if step := DETR.match(line):
            epoch, number, total = (int(step[group]) for group in (1, 2, 3))
            at = epoch + (number + 1) / total
            curves.add_losses(at, _numbers(DETR_VALUE.findall(step[5]), "loss"))
            _add_rate(curves, at, step[4])
        elif epoch is not None:
            _add_summary(curves, epoch + 1.0, line)
    return curves


def nanodet(lines: Iterable[str]) -> Curves:
    """A line every so many steps, epochs counted from 1; the metrics of an evaluation as a dictionary, before which, in
    the first version alone, pycocotools' summary stands.

    Old versions do not say how many batches an epoch has: then it is the largest number that the log shows.
    """
    curves, epoch, lines = Curves(), None, list(lines)
    steps = [NANODET.search(line) for line in lines]
    most = max((int(step[4]) + 1 for step in steps if step and step[1].lower() == "train"), default=1)
    for line, step in zip(lines, steps):
        if step:
            epoch = int(step[2])
            at = epoch - 1 + min(int(step[4]) / int(step[5] or most), 1.0)
            fields = FIELD.findall(step[6])
            if step[1].lower() == "train":  # the first version's is small
                curves.add_losses(at, _numbers(fields, "loss"))
                _add_rate(curves, at, dict(fields).get("lr", ""))
        elif epoch is not None and (metrics := NANODET_METRICS.search(line)):
            values = _numbers(METRIC.findall(metrics[1]))
            curves.add_evaluation(float(epoch), {NANODET_NAMES[n]: v for n, v in values.items() if n in NANODET_NAMES})
        elif epoch is not None:
            _add_summary(curves, float(epoch), line)
    return curves


def gold_yolo(lines: Iterable[str]) -> Curves:
    """A progress bar per epoch (counted from 0) with the epoch's mean losses so far; its last state counts."""
    curves, names = Curves(), GOLD_COLUMNS
    for line in lines:
        if header := GOLD_HEADER.match(line):
            names = tuple(header[1].split())
        elif (bar := GOLD_BAR.match(line)) and len(bar[2].split()) == len(names) and int(bar[3]):
            epoch, share = int(bar[1]), int(bar[3]) / 100
            for points in curves.losses.values():  # earlier states of the same bar
                _drop(points, epoch + 1e-9)
            curves.add_losses(epoch + share, _numbers(zip(names, bar[2].split()), "loss"))
        elif found := GOLD_AP.search(line):
            values = _numbers([("AP50", found[2]), ("AP", found[3])])
            curves.add_evaluation(int(found[1]) + 1.0, values)
    return curves


# (who wrote it, whether it is made of JSON lines, how it is read)
PARSERS: tuple[tuple[str, bool, Callable[[Any], Curves]], ...] = (
    ("this suite", True, ours),
    ("RT-DETR", True, rt_detr_file),
    ("NanoDet", False, nanodet),
    ("RT-DETR", False, rt_detr_console),
    ("Gold-YOLO", False, gold_yolo),
)


def _numbers(pairs: Iterable[tuple[str, str]], word: str = "") -> dict[str, float]:
    """The values that are numbers, of names that hold `word`."""
    found = {name: _number(value) for name, value in pairs if word in name}
    return {name: number for name, number in found.items() if number is not None}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _add_rate(curves: Curves, at: float, text: str) -> None:
    if (rate := _number(text)) is not None:
        place(curves.rates, at, rate)


def _add_summary(curves: Curves, at: float, line: str) -> None:
    """A line of pycocotools' summary."""
    if number := SUMMARY.search(line):
        curves.add_evaluation(at, {_coco_name(*number.groups()[:4]): float(number[5])})


def _coco_name(kind: str, iou: str, area: str, detections: str) -> str:
    """COCO's short name of a line of its summary."""
    if area != "all":
        return f"{kind}{area[0]}"
    if kind == "AR":
        return f"AR{detections}"
    return {"0.50:0.95": "AP", "0.50": "AP50", "0.75": "AP75"}.get(iou, f"AP@{iou}")


def read(path: str | Path, name: str | None = None) -> Progress:
    """One training; `name` is what its curves are called, by default its file or folder. UserError for another file."""
    path = Path(path)
    file = path / "log.jsonl" if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror}); give {KNOWN}") from error
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as consoles of Windows write what > gets
    text = content.decode("utf-16" if utf_16 else "utf-8", errors="replace")
    # Lines that have their end; a progress bar's carriage returns end lines too.
    lines = ANSI.sub("", text.replace("\r", "\n")).split("\n")[:-1]
    common = file.name in ("log.jsonl", "log.txt", "logs.txt")
    name = name or (common and file.parent.name) or file.name
    entries = [entry for line in lines if (entry := _entry(line)) is not None]
    for kind, of_entries, parse in PARSERS:
        curves = parse(entries if of_entries else lines)
        if curves.losses or curves.evaluations:
            return Progress(name, kind, curves)
    raise UserError(f"{file}: no training log that is known; give {KNOWN}")


def _entry(line: str) -> dict | None:
    """The JSON object of a line, None for anything else."""
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


@styled
def draw(trainings: Sequence[Progress], components: bool = False, dense: bool = False) -> Picture:
    """One panel per quantity that any training has; `components` adds a panel per component of the loss."""
    held = [one.curves for one in trainings]
    parts = dict.fromkeys(part for one in held for part in one.losses if part != "loss")
    losses = [
        (style.written(part), said("loss"), [one.losses.get(part, []) for one in held]) for part in ("loss", *parts)
    ]
    precisions = [
        (
            kind,
            said("curves.precision", quantity=kind),
            [[(at, 100 * value) for at, value in one.evaluations.get(kind, [])] for one in held],
        )
        for kind in ("AP", "AP50")
    ]
    rates = (said("rate"), said("rate"), [one.rates for one in held])
    shown = [one for one in (losses[0], *precisions, rates, *(losses[1:] if components else ())) if any(one[2])]
    figure, axes = panels(len(shown), 2, (8.0, 0.6 + 2.3 * -(-len(shown) // 2)), sharex=True)
    for axis, (title, unit, lines) in zip(axes, shown):
        axis.set(title=title, ylabel=unit, xlabel=said("epoch"))
        for place, (one, points) in enumerate(zip(trainings, lines)):
            if points:
                style.trace(axis, *zip(*points), style.written(f"{one.name} ({one.kind})", 60), **style.look("", place))
    style.legend(figure, axes, min(3, len(trainings)))
    return picture(figure, said("curves.alt", trainings=style.listed([one.name for one in trainings])), dense=dense)
