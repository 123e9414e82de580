"""Figures of the alignment engine: error through the depth of a network, and a run in the band of its controls."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lib.alignment.divergence import localise
from lib.alignment.trajectory import Band, band
from lib.alignment.verdict import ROUNDING, K
from lib.show.figures import LEAST, NAMES, Picture, canvas, look, picture, single, styled

KINDS = [
    "loss",
    "gradient",
    "clipped",
    "exp_avg",
    "exp_avg_sq",
    "momentum_buffer",
    "parameter",
    "statistics",
    "average",
]
STROKES, DOTS = ("-", "--", ":", "-."), "os^vDx+"
DIRECTIONS = {"forward": "outputs", "backward": "gradients at the inputs"}


@styled
def error_through_depth(depth: Mapping[str, Mapping[str, Sequence]]) -> Picture:
    """Of every call of a module, in order of execution: its own error over its gate, and below the relative error
    inherited.

    depth: "forward" and "backward", as `lib.alignment.divergence.Divergence.depth` gives them.
    """
    figure, axes = canvas(2, 2, (8.0, 6.0), sharex="col", sharey="row")
    blamed = []
    for (own, inherited), (direction, columns) in zip(axes.T, depth.items(), strict=True):
        leaf = np.array(columns["leaf"], bool)
        ratios = [None if None in pair else _over(*pair) for pair in zip(columns["own"], columns["gate"], strict=True)]
        dots = {"color": "black", "linestyle": "", "markersize": 3}
        _points(own, ratios, leaf, marker=".", label="leaves", **dots)
        _points(own, ratios, ~leaf, marker="+", label="modules that hold others", **dots)
        own.axhline(1, color="0.5", linestyle="-.", label="gate")
        for index in np.flatnonzero(columns["blamed"]):
            own.axvline(index, color="0.5", linewidth=0.8)
            place = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "right", "va": "top"}
            own.annotate(columns["name"][index], (index, 1), fontsize=6, **place)
            blamed.append(f"{direction} {columns['name'][index]}")
        _points(inherited, columns["inherited"], label="inherited", **look("jittor", marker=False))
        _points(inherited, columns["noise"], label="PyTorch's own rounding", **look("published", marker=False))
        own.set(title=f"{direction.capitalize()}: {DIRECTIONS[direction]}", yscale="log")
        inherited.set(xlabel="call of a module", yscale="log")
    labels = {"own error / gate": 0.5, "inherited relative error": ROUNDING}
    for row, (label, least) in zip(axes, labels.items(), strict=True):
        heights = (height for axis in row for line in axis.lines for height in line.get_ydata())
        row[0].set(ylabel=label)  # exact zeros leave at the bottom
        row[0].set_ylim(bottom=min((height for height in heights if height > 10 * LEAST), default=least) / 3)
    handles, labels = (sum(both, []) for both in zip(*(axis.get_legend_handles_labels() for axis in axes[:, 0])))
    figure.legend(handles, labels, fontsize=8, loc="outside upper center", ncols=5)
    said = f"Beyond their gates: {', '.join(blamed)}." if blamed else "No layer is beyond its gate."
    about = "Own error over its gate and inherited error of each layer through the depth of the network."
    return picture(figure, f"{about} {said}")


def _over(error: float, gate: float) -> float:
    """The error in gates; an error that none is allowed is far beyond."""
    return error / gate if gate else 0.0 if not error else 1 / ROUNDING


def _points(axis: Axes, values: Sequence[float | None], chosen: np.ndarray | bool = True, **line: Any) -> None:
    """The chosen values that are known; an error of exactly zero has no logarithm."""
    known = np.flatnonzero(chosen & np.array([value is not None and np.isfinite(value) for value in values], bool))
    if known.size:
        axis.plot(known, [max(values[index], LEAST) for index in known], **{"linewidth": 0.9, **line})


@styled
def trajectory(name: str, band: Band, curves: Mapping[str, Sequence[float]]) -> Picture:
    """Distance of runs from the median of the controls, with the band and its horizon; curves: label -> (steps,).

    A framework's name as label gives its colour; any other run is black.
    """
    figure, axis = single()
    step, grey = np.arange(len(band.centre)), {"facecolor": "0.88", "edgecolor": "0.6"}
    axis.fill_between(step, LEAST, K * band.spread, label=f"band: {K} x the controls' spread", **grey)
    if band.horizon < len(step):
        axis.axvline(band.horizon, label="horizon", **look("published", marker=False))
    for label, curve in curves.items():
        distance = np.abs(np.asarray(curve, float) - band.centre)
        side = next((side for side, known in NAMES.items() if known == label), None)
        line = look(side, marker=False) if side else {"color": "black", "linestyle": "-."}
        axis.plot(step, np.maximum(distance, LEAST), label=label, **line)
    lowest = band.spread[band.spread > 0].min(initial=1.0)
    axis.set(xlabel="step", ylabel=f"distance of {name}\nfrom the controls' median", yscale="log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(bottom=lowest / 100)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=8)
    left = {label: band.exit(np.asarray(curve, float)) for label, curve in curves.items()}
    exits = "; ".join(f"{label} leaves at step {step}" for label, step in left.items() if step is not None)
    said = f"Training curves of {name} against the band of the controls. {exits or 'No run leaves it'}."
    return picture(figure, said)


def layers(fields: Mapping[str, Any]) -> Picture | str:
    """`error_through_depth` of a divergence record's fields; a sentence for the reference's, which hold no errors."""
    if "layers" not in fields:
        return f"{fields['calls']} calls captured"
    found = localise(fields)
    return error_through_depth({direction: found.depth(direction) for direction in DIRECTIONS})


def band_of_controls(curves: Mapping[str, Any], others: Mapping[str, Sequence[float]] | None = None) -> Picture | str:
    """`trajectory` of the loss in the reference's longer runs, with `others` beside; a sentence without controls."""
    if "controls" not in curves:
        return "the controls are the reference's"
    held = band([run["loss"] for run in curves["controls"]])
    return trajectory(
        "the loss", held, {"PyTorch": curves["own"]["loss"], "rate 1 % off": curves["off"]["loss"], **(others or {})}
    )


@styled
def noise_of_steps(modes: Mapping[str, Mapping[str, Any]]) -> Picture:
    """Median relative deviation of float32 from float64, per quantity and step. modes: mode -> fields of its steps."""
    figure, axes = canvas(1, len(modes), (8.0, 3.4), sharey=True)
    for axis, (mode, fields) in zip(axes[0], modes.items(), strict=True):
        for index, kind in enumerate(kind for kind in KINDS if kind in fields["steps"][0]["noise"]):
            heights = [_typical(line["noise"][kind], line["norms"]["float64"][kind]) for line in fields["steps"]]
            line = {"color": str(0.12 * (index % 6)), "linestyle": STROKES[index % 4], "marker": DOTS[index % 7]}
            axis.plot(range(len(heights)), np.maximum(heights, LEAST), label=kind.replace("_", " "), **line)
        axis.set(title=mode, xlabel="step", yscale="log")
        axis.set_xticks(range(len(fields["steps"])))
    axes[0, 0].set_ylabel("relative float32 noise, median")
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    steps = len(fields["steps"])
    return picture(figure, f"Rounding noise of each quantity of the training state over {steps} steps, by mode.")


def _typical(noise: Mapping[str, float], norms: Mapping[str, float]) -> float:
    relative = [float(noise[name]) / abs(float(value)) for name, value in norms.items() if float(value)]
    return float(np.median(relative)) if relative else 0.0
