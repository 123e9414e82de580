"""Figures of an evaluation: precision over recall, the confusion matrix, what mistakes cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.evaluation.curves import Curves
from lib.evaluation.errors import SIZES, Confusion, Errors
from lib.show import style
from lib.show.figures import bars, numbers
from lib.show.style import Picture, canvas, panels, picture, said, single, styled

WRITTEN = 25  # classes up to which a confusion matrix has numbers and names
SHOWN = 24  # classes that have a panel of their own
COLUMNS = 6  # of the small pictures, one per class


@styled
def precision_recall(curves: Curves) -> Picture:
    """The mean over the classes at each IoU, from dark (.50) to light (.95)."""
    figure, axis = single(4.0, 6.0)
    for index, iou in enumerate(curves.iou):
        precision = curves.mean(iou)
        if precision.size:
            line = {"color": f"{0.08 * index:.2f}", "linestyle": style.STROKES[index % 3]}
            axis.plot(curves.recall, precision, label=f"IoU {iou:.2f}, AP {precision.mean():.3f}", **line)
    if not axis.lines:
        return style.nothing("precision.nothing")
    axis.set(xlabel=said("recall"), ylabel=said("precision"), xlim=(0, 1), ylim=(0, 1.02))
    style.legend(figure, [axis], 1, "outside right upper")
    return picture(figure, said("precision.alt"))


@styled
def classes(curves: Curves) -> Picture:
    """Precision over recall of each class that has boxes, at IoU .50 and .75."""
    held = [
        (f"IoU {iou:.2f}", {"color": style.INK, "linestyle": line}, curves.at(iou))
        for iou, line in zip((0.5, 0.75), style.STROKES)
    ]
    return _small(curves.classes, held, said("precision.classes.alt"))


@styled
def sides(names: Sequence[str], found: Mapping[str, np.ndarray]) -> Picture:
    """Precision over recall at IoU .50 on each side: the mean over the classes and each class that has boxes; of many
    the ones that differ most. found: side -> (10, 101, classes) precision as in `Curves`."""
    held = [(style.called(side), style.look(side, marker=False), precision[0]) for side, precision in found.items()]
    return _small(names, held, said("precision.sides.alt", iou=".50"), SHOWN)


@styled
def averages(names: Sequence[str], found: Mapping[str, np.ndarray]) -> Picture:
    """AP of each class that has boxes on each side; of many the ones that differ most. found: as for `sides`."""
    values = np.stack([100 * precision.mean((0, 1)) for precision in found.values()])
    chosen = _differing(values, SHOWN)
    rows = {names[index]: dict(zip(found, values[:, index])) for index in chosen}
    return bars(rows, said("ap"), said("averages.alt"))


def _differing(values: np.ndarray, most: int | None) -> list[int]:
    """Of values (sides, classes) the classes that have some, in order; of more than `most` those that differ most."""
    held = np.flatnonzero(values[0] >= 0)
    return np.sort(held[np.argsort(-np.ptp(values[:, held], axis=0), kind="stable")[:most]]).tolist()


Line = tuple[str, Mapping[str, Any], np.ndarray]  # label, look, (101, classes) precision


def _small(names: Sequence[str], lines: Sequence[Line], alt: str, most: int | None = None) -> Picture:
    """A small picture per class, that of their mean first."""
    averages = np.stack([precision.mean(0) for _, _, precision in lines])
    held, chosen = _differing(averages, None), _differing(averages, most)
    if not held:
        return style.nothing("precision.nothing")
    columns = min(COLUMNS, 1 + len(chosen))
    rows = -(-(1 + len(chosen)) // columns)
    size = (0.2 + 1.3 * max(2, columns), 0.6 + 1.3 * rows)  # two: room for the legend
    figure, axes = panels(1 + len(chosen), columns, size, sharex=True, sharey=True)
    for axis, index in zip(axes, [None, *chosen]):
        for label, line, precision in lines:
            shown = precision[:, held].mean(1) if index is None else precision[:, index]
            axis.plot(np.linspace(0, 1, len(shown)), shown, linewidth=1.0, label=label, **line)
        axis.set_title(said("precision.mean") if index is None else style.written(names[index], 18), fontsize=7)
        axis.tick_params(labelsize=6)
        axis.set(xlim=(0, 1), ylim=(0, 1.05))
    style.legend(figure, axes[:1], 2)
    figure.supxlabel(said("recall"), fontsize=8)
    figure.supylabel(said("precision"), fontsize=8)
    return picture(figure, alt)


@styled
def confusion(found: Confusion) -> Picture:
    """Shares of each row: of the boxes of a class, and of the detections on background."""
    names, shares = [*found.classes, None], found.counts / np.maximum(found.counts.sum(1, keepdims=True), 1)
    side = float(np.clip(0.32 * len(names) + 2.0, 4.0, 9.0))
    figure, axis = single(side, side)
    axis.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    axis.grid(False)
    axis.set(xlabel=said("confusion.found"), ylabel=said("confusion.annotated"))
    if len(names) <= WRITTEN:
        written = [said("confusion.background") if one is None else style.written(one, 24) for one in names]
        axis.set_xticks(range(len(names)), written, rotation=90)
        axis.set_yticks(range(len(names)), written)
        numbers(axis, np.where(found.counts, found.counts.astype(str), ""), shares > 0.5, size=6)
    alt = said("confusion.alt", threshold=f"{found.threshold:.2f}", iou=found.iou)
    return picture(figure, alt, dense=len(names) > WRITTEN)


@styled
def errors(found: Errors) -> Picture:
    """What each kind of mistake costs, and how many there are by size of the box."""
    kinds, left = [said(f"mistake.{kind}") for kind in found.cost], np.zeros(len(found.cost))
    figure, axes = canvas(1, 2, (8.0, 2.8), sharey=True)
    cost, number = axes[0]
    cost.barh(kinds, [100 * lost for lost in found.cost.values()], color=style.QUIET)
    cost.set(xlabel=said("mistakes.cost", iou=f"{found.iou:g}"))
    for place, size in enumerate(SIZES):
        counts = np.array([found.counts[kind][size] for kind in found.cost])
        number.barh(
            kinds, counts, left=left, label=said(f"size.{size}"), **style.fill("", place) | {"edgecolor": style.INK}
        )
        left += counts
    number.set(xlabel=said("mistakes.number", threshold=f"{found.threshold:.2f}"))
    style.whole(number.xaxis)
    style.legend(figure, [number], 1, "outside right upper")
    cost.invert_yaxis()
    return picture(figure, said("mistakes.alt"))
