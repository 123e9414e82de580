"""Figures of data, of what two sides compute, of training, detections and speed, in the style of `lib.show.style`.

A function takes plain data (records' fields, arrays) and returns a Picture, which notebooks show by themselves.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lib.alignment.compare import match_detections
from lib.evaluation.detection import Classes
from lib.evaluation.errors import SIZES
from lib.show import drawing, style
from lib.show.style import Picture, canvas, panels, picture, said, single, styled

PAIR_COLOURS = {"published-torch": "torch", "published-jittor": "jittor", "torch-jittor": "published"}
POINTS = 6000  # of curves that are drawn as vectors
WIDE = 1000  # pixels of a board of photographs
LARGE = 3  # images with detections that are shown
NEAR, ALIKE = 2.0, 0.05  # pixels and scores within which two detections of one class are the same


# --------------------------------------------------------------------------------------------------------- alignment

DEPTHS = {  # panels of the forward error: title -> pairs, and the kinds of comparison
    "published": (("published-torch", "published-jittor"), ("first values", "every element")),
    "torch": (("torch-jittor",), ("every element",)),
}


@styled
def forward_depth(rows: Mapping[str, Sequence[Mapping]], depth: Sequence[str]) -> Picture:
    """Relative forward error of each named feature, in order of execution, with its gate.

    rows: pair -> rows of its forward verdict (dicts with name, what, error, reach, gate, scale).
    """
    held = {
        title: {pair: {r["name"]: r for r in rows[pair] if r["what"] in kinds} for pair in pairs if rows.get(pair)}
        for title, (pairs, kinds) in DEPTHS.items()
    }
    held = {title: found for title, found in held.items() if found}
    if not held:
        return style.nothing("forward.nothing")
    figure, axes = canvas(len(held), 1, (8.0, 1.4 + 2.5 * len(held)), sharex=True)
    for axis, (title, found) in zip(axes[:, 0], held.items()):
        for pair, own in found.items():
            side = PAIR_COLOURS[pair] if title == "published" else "jittor"
            _depth_line(axis, own, depth, "error", label=style.paired(pair), **style.look(side))
        limits = next(iter(found.values()))
        _depth_line(axis, limits, depth, "reach", label=said("reach"), **style.look("published", marker=False))
        _depth_line(axis, limits, depth, "gate", label=said("gate"), color=style.INK, linestyle="-.", linewidth=1.0)
        axis.set(title=said(f"forward.{title}"), ylabel=said("forward.error"))
        style.logarithmic(axis)
    axis.set_xticks(range(len(depth)), [style.written(one) for one in depth], rotation=90, fontsize=7)
    axis.set_xlabel(said("forward.feature"))
    style.legend(figure, axes[:, 0], 5)
    return picture(figure, said("forward.alt"))


def _depth_line(axis: Axes, rows: Mapping[str, Mapping], depth: Sequence[str], key: str, **line: Any) -> None:
    held = [(place, rows[name]) for place, name in enumerate(f"features/{n}" for n in depth) if name in rows]
    points = [(place, row[key] / row["scale"]) for place, row in held if isinstance(row[key], float) and row["scale"]]
    if points:
        x, y = zip(*points)
        axis.plot(x, np.maximum(y, style.LEAST), **line)


@styled
def gradient_errors(rows: Mapping[str, Sequence[Mapping]]) -> Picture:
    """Error over gate of every judged float32 gradient, sorted, one line per pair: above 1 fails."""
    figure, axis = single()
    for pair, found in rows.items():
        judged = [r for r in found if isinstance(r["error"], float) and r["gate"] and "float64" not in r["what"]]
        ratios = sorted(max(r["error"] / r["gate"], 1e-8) for r in judged)
        side = PAIR_COLOURS[pair]
        dots = {"color": style.COLOURS[side], "markersize": 3, "fillstyle": "none" if side == "jittor" else "full"}
        axis.plot(np.linspace(0, 100, len(ratios)), ratios, style.MARKERS[side], label=style.paired(pair), **dots)
    axis.plot([0, 100], [1, 1], color=style.INK, linestyle="-.", linewidth=1.0, label=said("gate"))
    axis.set(xlabel=said("gradients.share"), ylabel=said("ratio"))
    style.logarithmic(axis)
    axis.legend(loc="lower right")
    return picture(figure, said("gradients.alt"), dense=True, colours=style.COLOURED)


# ---------------------------------------------------------------------------------------------------------- training


@styled
def loss_curves(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """The loss over the steps on both sides, their difference beside it, and below it each component.

    curves: side -> the train record's `curves`.
    """
    names = list(dict.fromkeys(key for held in curves.values() for key in held if "loss" in key))
    few, both = len(names) <= 10, len(curves) == 2
    columns, letters = (3, 8) if few else (6, 6)
    rows = -(-(len(names) - 1) // columns)
    figure = Figure(figsize=(8.0, 3.0 + (1.6 if few else 1.2) * rows))
    cells = figure.add_gridspec(1 + rows, 6, height_ratios=[2.2, *[1.5 if few else 1.1] * rows])
    axes = [figure.add_subplot(cells[0, : 4 if both else 6])]
    for row, column in list(np.ndindex(rows, columns))[: len(names) - 1]:
        axes.append(figure.add_subplot(cells[1 + row, 6 // columns * column : 6 // columns * (column + 1)]))
    for axis, key in zip(axes, names):
        for side, held in curves.items():
            if key in held:
                style.trace(axis, held["step"], held[key], style.called(side), **style.look(side, marker=False))
    for axis, key in zip(axes[1:], names[1:]):
        axis.set_title(style.written(key, 24), fontsize=letters)
        axis.tick_params(labelsize=letters - 1)
    axes[0].set(ylabel=said("loss"), xlabel=said("step"), title=said("loss.total"))
    if both:
        _difference(figure.add_subplot(cells[0, 4:]), curves, names[0])
    style.legend(figure, axes[:1], 2)
    # Thousands of noisy points as vectors are a megabyte in a PDF.
    dense = sum(len(held[key]) for held in curves.values() for key in names if key in held) > POINTS
    return picture(figure, said("loss.alt"), dense=dense, colours=style.COLOURED)


def _difference(axis: Axes, curves: Mapping[str, Mapping[str, Sequence[float]]], key: str) -> None:
    """The second side less the first, at the steps that both made."""
    (first, one), (second, other) = curves.items()
    steps, here, there = np.intersect1d(one["step"], other["step"], return_indices=True)
    values = np.asarray(other[key], float)[there] - np.asarray(one[key], float)[here]
    axis.axhline(0, color=style.QUIET, linewidth=0.8)
    style.trace(axis, steps, values, color=style.INK)
    axis.set(title=said("loss.difference", first=style.called(first), second=style.called(second)), xlabel=said("step"))


@styled
def learning_rate(curves: Mapping[str, Sequence[float]]) -> Picture:
    """The learning rate of each step."""
    figure, axis = single(2.4)
    axis.plot(curves["step"], np.asarray(curves["learning_rate"], float), color=style.INK)
    axis.set(xlabel=said("step"), ylabel=said("rate"))
    return picture(figure, said("rate.alt"))


@styled
def map_curves(epochs: Mapping[str, Sequence[Mapping[str, float]]]) -> Picture:
    """AP after each evaluation; before the first step at 0. epochs: side, or any name -> a train record's `epochs`."""
    curves = {  # −1: there was nothing to find
        key: [(e["epoch"] + 1, 100 * float(e["AP"])) for e in found if e["AP"] != -1] for key, found in epochs.items()
    }
    if not any(np.isfinite(height) for found in curves.values() for _, height in found):
        return style.nothing("ap.nothing")
    figure, axis = single(2.8)
    for place, (key, found) in enumerate(curves.items()):
        if found:
            axis.plot(*zip(*found), label=style.called(key), **style.look(key, place))
    axis.set(xlabel=said("epoch"), ylabel=said("ap"))
    style.whole(axis.xaxis)
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left")
    return picture(figure, said("ap.alt", curves=style.listed([style.called(key) for key in curves])))


# -------------------------------------------------------------------------------------------------------- detections


def differences(left: np.ndarray, right: np.ndarray, pixels: float, scores: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each detection (m, 7), (k, 7) whether the other side has none of its class so near and of so near a score.

    Scores below what is shown count too: a detection just above the threshold has its counterpart just below it.
    """
    matching = match_detections(left, right, pixels)
    alone = np.ones(len(left), bool), np.ones(len(right), bool)
    for a, b in matching.pairs:
        if abs(left[a, 5] - right[b, 5]) <= scores:
            alone[0][a] = alone[1][b] = False
    return alone


@styled
def detections(samples: Sequence[Mapping[str, Any]], classes: Sequence[str], threshold: float | None = None) -> Picture:
    """A row per image: each side's detections over the annotated boxes (thin white), differences marked ≠. Of more than
    LARGE images those with the most differences, and among these with the most detections.

    samples: dicts with image (h, w, 3) uint8 RGB, boxes (k, 4), and found: side -> (m, 6) x1, y1, x2, y2, score, label;
    threshold: the least score shown, by default the one at which there are about as many boxes as annotated.
    """
    if not samples:
        return style.nothing("detections.nothing")
    painter = drawing.Painter(Classes(tuple(classes), tuple(range(1, 1 + len(classes)))))
    least = _threshold(samples) if threshold is None else threshold
    ids = [[np.insert(np.asarray(rows, float), 0, 0, axis=1) for rows in one["found"].values()] for one in samples]
    held = [marked(rows, least) for rows in ids]
    busy = [tuple(map(sum, zip(*((marks.sum(), len(marks)) for _, marks in found)))) for found in held]
    chosen = sorted(sorted(range(len(samples)), key=lambda at: busy[at], reverse=True)[:LARGE])
    rows = []
    for sample, found in ((samples[at], held[at]) for at in chosen):
        names = list(map(style.called, sample["found"]))
        rows.append(board_row(painter, sample["image"], sample["boxes"], names, found, WIDE // len(found)))
    return style.photographs(drawing.board(rows), said("detections.alt", score=f"{least:.2g}"))


Marked = Sequence[tuple[np.ndarray, np.ndarray]]  # per side detections (m, 7), and which of them the other has not


def marked(found: Sequence[np.ndarray], least: float, pixels: float = NEAR, scores: float = ALIKE) -> Marked:
    """Of each side's detections (m, 7) those from the score `least` on, and which of them the other of two has not."""
    alone = differences(*found, pixels, scores) if len(found) == 2 else [np.zeros(len(own), bool) for own in found]
    return [(own[own[:, 5] >= least], marks[own[:, 5] >= least]) for own, marks in zip(found, alone)]


def board_row(
    painter: drawing.Painter,
    image: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    found: Marked,
    least: int = drawing.SHOWN,
) -> list[tuple[str, np.ndarray]]:
    """A row of a board: an image (h, w, 3) uint8 RGB, `least` pixels long or more, with each side's detections over the
    annotated boxes (k, 4), and above it how many there are."""
    key = "detections.caption" if len(found) == 2 else "detections.found"
    counts = [{"boxes": style.counted("boxes", len(rows)), "alone": marks.sum()} for rows, marks in found]
    captions = [said(key, side=name, **count) for name, count in zip(names, counts)]
    return list(zip(captions, [painter.readable(image, rows[:, 1:], marks, truth, least) for rows, marks in found]))


def _threshold(samples: Sequence[Mapping[str, Any]]) -> float:
    """The highest break-even of the sides, not above one half."""
    number = max(1, sum(len(sample["boxes"]) for sample in samples))
    sides = (np.concatenate([sample["found"][side][:, 4] for sample in samples]) for side in samples[0]["found"])
    return min(0.5, max((break_even(scores, number) for scores in sides if scores.size), default=0.5))


def break_even(scores: np.ndarray, number: int) -> float:
    """The score, in hundredths, from which on as many are found as are annotated: there precision equals recall."""
    return math.floor(100 * float(np.sort(scores)[-min(number, len(scores))])) / 100


@styled
def contact_sheet(images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], columns: int = 6) -> Picture:
    """Images (h, w, 3) uint8 RGB with their boxes (k, 4)."""
    tiles = [("", drawing.tile(drawing.outlined(image, own), WIDE // columns)) for image, own in zip(images, boxes)]
    board = drawing.board([tiles[i : i + columns] for i in range(0, len(tiles), columns)])
    return style.photographs(board, said("sheet.alt", images=len(images)))


@styled
def feature_maps(features: Mapping[str, np.ndarray], columns: int = 6) -> Picture:
    """Mean size over channels of each feature that is a map, (1, c, h, w)."""
    maps = {key: np.abs(feature[0]).mean(axis=0) for key, feature in features.items() if feature.ndim == 4}
    if not maps:
        return style.nothing("features.nothing")
    figure, axes = panels(len(maps), columns, (8.0, 1.6 * -(-len(maps) // columns)))
    for axis, (key, values) in zip(axes, maps.items()):
        axis.imshow(values, cmap="gray", interpolation="nearest")
        axis.set_title(f"{style.written(key, 24)}\n{' × '.join(map(str, features[key].shape[1:]))}", fontsize=6)
        axis.set_axis_off()
    return picture(figure, said("features.alt"), dense=True)


def show_image(axis: Axes, image: np.ndarray) -> None:
    """(h, w, 3) uint8 RGB without ticks."""
    axis.imshow(image)
    axis.set_axis_off()


def numbers(axis: Axes, written: Sequence[Sequence[str]], dark: np.ndarray, size: int = 7) -> None:
    """A text in each square of a matrix, white where the square is dark."""
    for (row, column), white in np.ndenumerate(dark):
        form = {"fontsize": size, "color": "white" if white else style.INK, "ha": "center", "va": "center"}
        axis.text(column, row, written[row][column], **form)


# ------------------------------------------------------------------------------------------------------ speed, sizes


@styled
def speed(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Median time with quartiles, synchronised, and what an unsynchronised clock would claim. side -> `cases`."""
    works = list(dict.fromkeys(case["operation"] for found in cases.values() for case in found))
    if not works:
        return style.nothing("speed.nothing")
    figure, axes = canvas(1, len(works), (8.0, 3.4))
    for axis, work in zip(axes[0], works):
        held = {side: {c["batch"]: c for c in found if c["operation"] == work} for side, found in cases.items()}
        batches = sorted({batch for found in held.values() for batch in found})
        for offset, (side, found) in enumerate(held.items()):
            at = np.arange(len(batches)) + 0.38 * (offset - (len(held) - 1) / 2)
            true, claimed = (
                [found.get(b, {}).get(clock, {}) for b in batches] for clock in ("synchronised_ms", "unsynchronised_ms")
            )
            low, median, high = (np.array([t.get(key, np.nan) for t in true], float) for key in ("q1", "median", "q3"))
            axis.bar(at, median, 0.36, label=said("speed.synchronised", side=style.called(side)), **style.fill(side))
            axis.vlines(at, low, high, color=style.INK)
            cross = {"marker": "x", "linestyle": "", "color": style.INK, "markersize": 6}
            label = said("speed.unsynchronised") if offset == 0 else None
            axis.plot(at, np.array([c.get("median", np.nan) for c in claimed], float), label=label, **cross)
        axis.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        axis.set(title=said(f"work.{work}"), xlabel=said("speed.batch"), ylabel=said("speed.time"))
    style.legend(figure, axes[0], 3)
    return picture(figure, said("speed.alt"))


@styled
def memory(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Peak memory per work and batch. side -> `cases` of the speed record."""
    values: dict[str, dict[str, float]] = {}
    for side, found in cases.items():
        for case in found:
            label = said("memory.case", work=said(f"work.{case['operation']}"), batch=case["batch"])
            values.setdefault(label, {})[side] = case["memory"]["peak_mib"]
    return bars(values, said("memory.peak"), said("memory.alt"))


@styled
def bars(values: Mapping[str, Mapping[str, float]], unit: str, alt: str) -> Picture:
    """Horizontal bars, one group per name, one bar per side (or one bar, side "")."""
    keys = list(dict.fromkeys(key for row in values.values() for key in row))
    if not keys:
        return style.nothing("bars.nothing")
    figure, axis = single(0.9 + max(0.26 * max(2, len(values) * len(keys)), 0.3 * len(values)))
    for offset, key in enumerate(keys):
        at = np.arange(len(values)) + 0.8 / len(keys) * (offset - (len(keys) - 1) / 2)
        lengths = np.array([row.get(key, np.nan) for row in values.values()], float)
        axis.barh(at, lengths, 0.76 / len(keys), label=style.called(key) or None, **style.fill(key, offset))
    axis.set_yticks(range(len(values)), [style.written(one) for one in values])
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    if len(keys) > 1:
        style.legend(figure, [axis], len(keys))
    return picture(figure, alt)


@styled
def class_histogram(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> Picture:
    """Boxes of each class, one bar per split."""
    values = {one: {split: found[place] for split, found in counts.items()} for place, one in enumerate(classes)}
    return bars(values, said("boxes"), said("histogram.alt"))


@styled
def box_sizes(sizes: Mapping[str, np.ndarray]) -> Picture:
    """Histogram of box sizes (square root of the area, pixels) per split, with COCO's bounds of small and large."""
    sizes = {key: held for key, held in sizes.items() if len(held)}
    if not sizes:
        return style.nothing("sizes.nothing")
    figure, axis = single(2.8)
    every = np.concatenate(list(sizes.values()))
    edges = np.geomspace(0.95 * every.clip(1e-3).min(), 1.05 * max(1.0, every.max()), 31)
    for place, (key, held) in enumerate(sizes.items()):
        label = said("sizes.split", split=style.written(key), boxes=style.counted("boxes", len(held)))
        axis.hist(held, edges, label=label, histtype="step", **style.look("", place, marker=False))
    bounds = [math.isqrt(int(area)) for area in SIZES.values() if np.isfinite(area)]
    for bound in bounds:
        axis.axvline(bound, color=style.INK, linestyle=":", linewidth=0.8)
    axis.set(
        xscale="log", ylabel=said("boxes"), xlabel=said("sizes.root", bounds=style.listed([str(one) for one in bounds]))
    )
    style.whole(axis.yaxis)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend(loc="upper left")
    return picture(figure, said("sizes.alt"))
