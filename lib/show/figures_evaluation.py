"""Figures of an evaluation: precision over recall, the confusion matrix, what mistakes cost."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from lib.evaluation.curves import Curves
from lib.evaluation.errors import SIZES, Confusion, Errors
from lib.show.figures import Picture, canvas, numbers, panels, picture, single, styled

WRITTEN = 25  # classes up to which a confusion matrix has numbers and names
COLUMNS = 6  # of the small pictures, one per class


@styled
def precision_recall(curves: Curves) -> Picture:
    """The mean over the classes at each IoU, from dark (.50) to light (.95)."""
    figure, axis = single(4.0, 6.0)
    for index, iou in enumerate(curves.iou):
        precision = curves.mean(iou)
        if precision.size:
            line = {"color": f"{0.08 * index:.2f}", "linestyle": ("-", "--", ":")[index % 3]}
            axis.plot(curves.recall, precision, label=f"IoU {iou:.2f}, AP {precision.mean():.3f}", **line)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return picture(figure, "Precision over recall, mean over the classes, at each of COCO's ten IoUs.")


@styled
def classes(curves: Curves) -> Picture:
    """Precision over recall of each class that has boxes, at IoU .50 and .75."""
    held = [index for index in range(len(curves.classes)) if curves.at(0.5)[0, index] > -1]
    columns = min(COLUMNS, max(2, len(held)))  # two: room for the legend
    rows = max(1, -(-len(held) // columns))
    figure, axes = panels(len(held), columns, (0.2 + 1.3 * columns, 0.5 + 1.3 * rows), sharex=True, sharey=True)
    for axis, index in zip(axes, held):
        for iou, line in ((0.5, "-"), (0.75, "--")):
            look = {"color": "black", "linewidth": 1.0, "label": f"IoU {iou:.2f}"}
            axis.plot(curves.recall, curves.at(iou)[:, index], line, **look)
        axis.set_title(curves.classes[index], fontsize=7)
        axis.tick_params(labelsize=6)
        axis.set(xlim=(0, 1), ylim=(0, 1.05))
    if held:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.supxlabel("recall", fontsize=8)
    figure.supylabel("precision", fontsize=8)
    return picture(figure, "Precision over recall of each class at IoU .50 and .75.")


@styled
def confusion(found: Confusion) -> Picture:
    """Shares of each row: of the boxes of a class, and of the detections on background."""
    names, shares = [*found.classes, "background"], found.counts / np.maximum(found.counts.sum(1, keepdims=True), 1)
    side = float(np.clip(0.32 * len(names) + 2.0, 4.0, 9.0))
    figure, axis = single(side, side)
    axis.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    axis.grid(False)
    axis.set(xlabel="found as", ylabel="annotated as")
    if len(names) <= WRITTEN:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
        numbers(axis, np.where(found.counts, found.counts.astype(str), ""), shares > 0.5, size=6)
    said = f"Confusion matrix at score {found.threshold:.2f} and IoU {found.iou}: darker is a larger share."
    return picture(figure, said, dense=len(names) > WRITTEN)


@styled
def errors(found: Errors) -> Picture:
    """What each kind of mistake costs, and how many there are by size of the box."""
    kinds, left = list(found.cost), np.zeros(len(found.cost))
    figure, axes = canvas(1, 2, (8.0, 2.8), sharey=True)
    cost, number = axes[0]
    cost.barh(kinds, [100 * found.cost[kind] for kind in kinds], color="#6e6e6e")
    cost.set(xlabel=f"AP lost at IoU {found.iou:g} (percent)")
    for size, grey, hatch in zip(SIZES, ("#bdbdbd", "#6e6e6e", "#ffffff"), ("", "///", "..")):
        counts = np.array([found.counts[kind][size] for kind in kinds])
        look = {"color": grey, "hatch": hatch, "edgecolor": "black", "linewidth": 0.5}
        number.barh(kinds, counts, left=left, label=size, **look)
        left += counts
    number.set(xlabel=f"mistakes from score {found.threshold:.2f} on")
    number.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    figure.legend(*number.get_legend_handles_labels(), loc="outside right upper")
    cost.invert_yaxis()
    return picture(figure, "What each kind of mistake costs in AP, and how many there are by size of box.")
