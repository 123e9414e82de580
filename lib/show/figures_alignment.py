"""Figures of the alignment engine: error through the depth of a network, and a run in the band of its controls."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lib.alignment.divergence import localise
from lib.alignment.trajectory import Band, band
from lib.alignment.verdict import ROUNDING, K
from lib.show import style
from lib.show.style import Picture, canvas, picture, said, single, styled

GIVEN = ("learning_rate", "step")  # quantities of a training that are not computed
DIRECTIONS = ("forward", "backward")
NAMED, APART = 6, 1 / 16  # of the worst layers on an axis, and how far apart, as a part of its length


@styled
def error_through_depth(depth: Mapping[str, Mapping[str, Sequence]]) -> Picture:
    """Of every call of a module, in order of execution: its own error over its gate, and below the relative error
    inherited. The axis names the layers that are worst.

    depth: "forward" and "backward", as `lib.alignment.divergence.Divergence.depth` gives them.
    """
    depth = {
        direction: columns for direction, columns in depth.items() if _known(columns["own"] + columns["inherited"])
    }
    if not depth:
        return style.nothing("depth.nothing")
    figure, axes = canvas(2, len(depth), (8.0, 6.6), sharex="col", sharey="row")
    blamed = []
    for (own, inherited), (direction, columns) in zip(axes.T, depth.items(), strict=True):
        leaf = np.array(columns["leaf"], bool)
        ratios = [None if None in pair else _over(*pair) for pair in zip(columns["own"], columns["gate"], strict=True)]
        dots = {"color": style.INK, "linestyle": "", "markersize": 3}
        _points(own, ratios, leaf, marker=".", label=said("depth.leaves"), **dots)
        _points(own, ratios, ~leaf, marker="+", label=said("depth.holders"), **dots | {"markersize": 5})
        own.axhline(1, color=style.QUIET, linestyle="-.", label=said("gate"))
        _points(inherited, columns["inherited"], label=said("depth.inherited"), **style.look("jittor", marker=False))
        _points(inherited, columns["noise"], label=said("depth.rounding"), **style.look("published", marker=False))
        own.set(title=said(f"depth.{direction}"))
        worst = _worst(ratios, columns["blamed"])
        own.plot(
            worst,
            [max(ratios[at], style.LEAST) for at in worst],
            "o",
            color=style.VERMILLION,
            fillstyle="none",
            markersize=7,
        )
        inherited.set_xticks(worst, [style.written(columns["name"][at]) for at in worst], rotation=90, fontsize=7)
        inherited.set(xlabel=said("depth.call", calls=len(ratios)))
        blamed += [said(f"depth.at.{direction}", layer=columns["name"][at]) for at in np.flatnonzero(columns["blamed"])]
    for row, (label, least) in zip(axes, {"depth.own": 0.5, "depth.relative": ROUNDING}.items(), strict=True):
        row[0].set_ylabel(said(label))
        style.logarithmic(*row, least=least)
    style.legend(figure, axes[:, 0], 5)
    beyond = said("depth.beyond", layers=style.listed(blamed)) if blamed else said("depth.none")
    return picture(figure, said("depth.alt", beyond=beyond))


def _over(error: float, gate: float) -> float:
    """The error in gates; an error that none is allowed is far beyond."""
    return error / gate if gate else 0.0 if not error else 1 / ROUNDING


def _known(values: Sequence[float | None], chosen: np.ndarray | bool = True) -> list[int]:
    """Places of the chosen values that are numbers."""
    return np.flatnonzero(
        chosen & np.array([value is not None and np.isfinite(value) for value in values], bool)
    ).tolist()


def _points(axis: Axes, values: Sequence[float | None], chosen: np.ndarray | bool = True, **line: Any) -> None:
    """The chosen values that are known; an error of exactly zero has no logarithm."""
    if known := _known(values, chosen):
        axis.plot(known, [max(values[index], style.LEAST) for index in known], **{"linewidth": 0.9, **line})


def _worst(ratios: Sequence[float | None], blamed: Sequence[bool]) -> list[int]:
    """Places of those to name: all that are blamed, then the nearest to their gates, not too close for their names."""
    chosen: list[int] = []
    for at in sorted(_known(ratios), key=lambda at: (not blamed[at], -ratios[at])):
        if len(chosen) < NAMED and all(abs(at - other) >= APART * len(ratios) for other in chosen):
            chosen.append(at)
    return chosen


@styled
def trajectory(name: str, band: Band, curves: Mapping[str, Sequence[float]]) -> Picture:
    """Distance of runs from the median of the controls, with the band and its horizon; curves: run -> (steps,).

    name: of the quantity; a side as run has its colour and name, any other run is black.
    """
    figure, axis = single()
    step, grey = np.arange(len(band.centre)), {"facecolor": "0.88", "edgecolor": "0.6"}
    axis.fill_between(step, style.LEAST, K * band.spread, label=said("band.band", factor=K), **grey)
    if band.horizon < len(step):
        axis.axvline(band.horizon, label=said("band.horizon"), **style.look("published", marker=False))
    left = []
    for run, curve in curves.items():
        curve = np.asarray(curve, float)
        line = style.look(run, marker=False) if run in style.SIDES else {"color": style.INK, "linestyle": "-."}
        axis.plot(step, np.maximum(np.abs(curve - band.centre), style.LEAST), label=style.called(run), **line)
        if (at := band.exit(curve)) is not None:
            left.append(said("band.leaves", run=style.called(run), step=at))
    axis.set(xlabel=said("step"), ylabel=said("band.distance", quantity=name))
    style.whole(axis.xaxis)
    style.logarithmic(axis)
    style.legend(figure, [axis], 5)
    return picture(figure, said("band.alt", quantity=name, exits=style.listed(left, "clauses") or said("band.stay")))


@styled
def layers(fields: Mapping[str, Any]) -> Picture:
    """`error_through_depth` of a divergence record's fields; a sentence for the reference's, which hold no errors."""
    if "layers" not in fields:
        return style.nothing("depth.reference", calls=fields["calls"])
    found = localise(fields)
    return error_through_depth({way: found.depth(way) for way in DIRECTIONS})


@styled
def band_of_controls(curves: Mapping[str, Any], others: Mapping[str, Sequence[float]] | None = None) -> Picture:
    """`trajectory` of the loss in the reference's longer runs, with `others` beside; a sentence without controls."""
    if "controls" not in curves:
        return style.nothing("band.nothing")
    runs = {"torch": curves["own"]["loss"], said("band.off"): curves["off"]["loss"], **(others or {})}
    return trajectory(said("band.loss"), band([run["loss"] for run in curves["controls"]]), runs)


@styled
def noise_of_steps(modes: Mapping[str, Mapping[str, Any]]) -> Picture:
    """Median relative deviation of float32 from float64, per quantity and step. modes: mode -> fields of its steps."""
    figure, axes = canvas(1, len(modes), (8.0, 3.4), sharey=True)
    for axis, (mode, fields) in zip(axes[0], modes.items(), strict=True):
        for index, kind in enumerate(kind for kind in fields["steps"][0]["noise"] if kind not in GIVEN):
            heights = [_typical(line["noise"][kind], line["norms"]["float64"][kind]) for line in fields["steps"]]
            label = style.term(kind.replace("_", " "))
            axis.plot(range(len(heights)), np.maximum(heights, style.LEAST), label=label, **style.look("", index))
        axis.set(title=style.term(mode), xlabel=said("step"))
        axis.set_xticks(range(len(fields["steps"])))
    axes[0, 0].set_ylabel(said("noise.relative"))
    style.logarithmic(*axes[0])
    style.legend(figure, axes[0], 1, "outside right center")
    return picture(figure, said("noise.alt", steps=len(fields["steps"])))


def _typical(noise: Mapping[str, float], norms: Mapping[str, float]) -> float:
    relative = [float(noise[name]) / abs(float(value)) for name, value in norms.items() if float(value)]
    return float(np.median(relative)) if relative else 0.0
