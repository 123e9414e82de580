"""Trainings side by side: total loss, average precision, learning rate, and the components of the loss."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from lib.show.curves.formats import Point, Progress
from lib.show.figures import Picture, canvas, picture, styled

# Okabe and Ito's, darkest first; with the lines below no two of the first eight look alike, in colour or in grey.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6e6e6e")
LINES = ("-", "--", ":", "-.")
MARKERS = "osv^D<>P"
MANY = 200  # points from which on a running mean is drawn over faint ones
WINDOW = 50  # parts of the run that the mean is taken over


@styled
def draw(trainings: Sequence[Progress], components: bool = False, dense: bool = False) -> Picture:
    """One panel per quantity that any training has; `components` adds a panel per component of the loss."""
    parts = dict.fromkeys(name for one in trainings for name in one.curves.losses if name != "loss")
    panels = [("loss", "loss", [one.curves.losses.get("loss", []) for one in trainings])]
    panels += [
        (name, f"{name} (percent)", [_percent(one.curves.evaluations.get(name, [])) for one in trainings])
        for name in ("AP", "AP50")
    ]
    panels += [("learning rate", "learning rate", [one.curves.rates for one in trainings])]
    panels += [
        (name, "loss", [one.curves.losses.get(name, []) for one in trainings]) for name in (parts if components else ())
    ]
    panels = [panel for panel in panels if any(panel[2])]
    rows = -(-len(panels) // 2)
    figure, axes = canvas(rows, 2, (8.0, 0.6 + 2.3 * rows), sharex=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, unit, lines) in zip(axes.flat, panels):
        axis.set(title=title, ylabel=unit, xlabel="epochs")
        for index, (one, points) in enumerate(zip(trainings, lines)):
            _line(axis, points, index, f"{one.name} ({one.kind})")
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=min(3, len(handles)))
    names = ", ".join(one.name for one in trainings)
    return picture(figure, f"Loss, average precision and learning rate over the epochs of {names}.", dense=dense)


def _line(axis: Axes, points: Sequence[Point], index: int, label: str) -> None:
    if not points:
        return
    x, y = np.asarray(points, np.float64).T
    look = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % len(LINES)], "label": label}
    if len(x) < MANY:
        axis.plot(x, y, marker=MARKERS[index % len(MARKERS)] if len(x) < 40 else None, **look)
        return
    axis.plot(x, y, color=look["color"], alpha=0.2, linewidth=0.6)
    width = len(x) // WINDOW
    sums = np.cumsum(np.insert(y, 0, 0.0))
    axis.plot(x[width - 1 :], (sums[width:] - sums[:-width]) / width, **look)


def _percent(points: Sequence[Point]) -> list[Point]:
    return [(at, 100 * value) for at, value in points]
