"""Figures of the tours through the models, in the style of lib.show.figures; their words are in texts/*/tours.po."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from lib.show import style
from lib.show.figures import numbers, show_image
from lib.show.style import FAINT, INK, QUIET, SERIES, VERMILLION, Picture, canvas, panels, picture, single, styled

MARKS = "osD^vP*X"  # of boxes, levels and heads: told apart without colour
SIDES = ("left", "top", "right", "bottom")  # keys of their words
GROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}  # of a text on lines


def _say(key: str, **values: object) -> str:
    """A text of the tours in the figure's language, its placeholders filled in."""
    return style.said(f"tour.{key}", **values)


def _listed(names: Iterable[str]) -> str:
    """Names of panels or rows in the figure's language, as one text."""
    return style.listed(list(map(style.term, names)))


def _colour(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _outline(axis: Axes, box: np.ndarray, colour, line: str = "-", width: float = 1.2) -> None:
    x1, y1, x2, y2 = box
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=line, linewidth=width))


def _pixels(axis: Axes, size: tuple[int, int]) -> None:
    """A frame for an image (height, width) without the image."""
    height, width = size
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xlabel=_say("x"))
    axis.grid(False)


def _matrix(axis: Axes, values: np.ndarray, **options):
    """One square per value, drawn as pixels, numbered from 0."""
    axis.grid(False)
    for edge in axis.spines.values():
        edge.set_visible(True)
    image = axis.imshow(values, interpolation="nearest", **options)
    for side in (axis.xaxis, axis.yaxis):
        side.get_major_locator().set_params(integer=True)
    return image


# ----------------------------------------------------------------------------------------------------------- wiring
@styled
def wiring(nodes: Sequence) -> Picture:
    """Modules (notebooks.tours.Node) from top to bottom in order of execution, left to right by stride; arrows to what
    reads them. Letters are as large as the rows: it is also looked at from the back of a room."""
    strides = sorted({node.stride for node in nodes})
    at = {node.name: (strides.index(node.stride), row) for row, node in enumerate(nodes)}
    figure, axis = single(0.7 + 0.24 * len(nodes), 10.0)
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 4, "shrinkB": 5, "linewidth": 1.2, "color": QUIET}
    for node in nodes:
        for source in node.reads:
            (x, y), (u, v) = at[source], at[node.name]
            bend = 0.35 * min(1.0, (v - y - 1) / 3) if x == u else 0.12 * np.sign(x - u)
            axis.add_patch(FancyArrowPatch((x, y), (u, v), connectionstyle=f"arc3,rad={bend}", **look))
    for node in nodes:
        x, y = at[node.name]
        axis.plot(x, y, "s", color=INK if len(node.reads) != 1 else "white", markeredgecolor=INK, markersize=8)
        name = f"{node.name.partition('.')[2]}  {node.channels}"
        axis.text(x + 0.08, y, name, fontsize=12, va="center", bbox=GROUND)
    axis.set(xlim=(-0.3, len(strides) - 0.1), ylim=(len(nodes) - 0.4, -0.6))
    axis.set_xlabel(_say("wiring.x"), fontsize=12)
    axis.set_ylabel(_say("wiring.y"), fontsize=12)
    axis.set_xticks(range(len(strides)), list(map(str, strides)), fontsize=12)
    axis.set_yticks([])
    return picture(figure, _say("wiring"))


# -------------------------------------------------------------------------------------------------------- Gold-YOLO
@styled
def kernels(parts: Mapping[str, np.ndarray], shown: int = 8) -> Picture:
    """Kernels (c_out, c_in, 3, 3) of the first output channel: one row per part, one column per input channel."""
    shown = min(shown, next(iter(parts.values())).shape[1])
    figure, axes = canvas(len(parts), shown, (8.0, 0.5 + 0.95 * len(parts)))
    # Shades end at a middling row's largest weight: the identity's would drown the others.
    middle = np.percentile([np.abs(part[0, :shown]).max() for part in parts.values()], 25)
    for row, (name, part) in zip(axes, parts.items()):
        for channel, axis in enumerate(row):
            image = _matrix(axis, part[0, channel], cmap="gray", vmin=-middle, vmax=middle)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(style.term(name), rotation=0, ha="right", va="center")
    for channel, axis in enumerate(axes[-1]):
        axis.set_xlabel(_say("kernels.channel", channel=channel))
    figure.colorbar(image, ax=axes, label=_say("kernels.weight"), shrink=0.8, extend="both")
    return picture(figure, _say("kernels", parts=_listed(parts)), dense=True)


@styled
def attention(panels: Mapping[str, np.ndarray], shown: int = 4) -> Picture:
    """Shares (a, t, t) of the first heads: one row per panel, one column per head."""
    figure, axes = canvas(len(panels), shown, (8.0, 0.6 + 2.0 * len(panels)), sharex=True, sharey=True)
    for row, (name, shares) in zip(axes, panels.items()):
        for head, axis in enumerate(row):
            image = _matrix(axis, shares[head], cmap="Greys", vmin=0, vmax=1)
            axis.set_title(_say("attention.title", name=style.term(name), head=head), fontsize=8)
        row[0].set_ylabel(_say("attention.y"))
    for axis in axes[-1]:
        axis.set_xlabel(_say("attention.x"))
    figure.colorbar(image, ax=axes, label=_say("attention.share"), shrink=0.8)
    return picture(figure, _say("attention"), dense=True)


@styled
def sides(distances: np.ndarray) -> Picture:
    """Sides (k, 4 b) of a few cells as the head gives them, b > 1: probabilities of b distances, and their mean."""
    bins = distances.shape[1] // 4
    figure, axes = canvas(len(distances), 4, (8.0, 0.5 + 1.2 * len(distances)), sharex=True, sharey="row")
    for index, (row, cell) in enumerate(zip(axes, distances.reshape(len(distances), 4, bins)), 1):
        for axis, values in zip(row, cell):
            shares = np.exp(values - np.logaddexp.reduce(values))
            axis.bar(range(bins), shares, color=QUIET)
            mean = float(shares @ np.arange(bins))
            axis.axvline(mean, color=INK, linestyle="--", linewidth=1.0)
            form = {"fontsize": 7, "ha": "right", "va": "top", "bbox": GROUND}
            axis.text(0.98, 0.95, f"{mean:.2f}", transform=axis.transAxes, **form)
        row[0].set_ylabel(_say("sides.y", cell=index))
    for axis, side in zip(axes[0], SIDES):
        axis.set_title(_say(side))
    for axis in axes[-1]:
        axis.set_xlabel(_say("sides.x"))
    return picture(figure, _say("sides"))


@styled
def boxes_of_cells(sides: np.ndarray, columns: int = 4) -> Picture:
    """Boxes that sides (k, 4) left, top, right, bottom, in strides, span around the centres of their cells."""
    figure, axes = panels(len(sides), columns, (8.0, 2.4 * -(-len(sides) // columns)))
    reach = 1.15 * np.abs(sides).max()
    for index, (axis, (left, top, right, bottom)) in enumerate(zip(axes, sides), 1):
        _outline(axis, np.array([-left, -top, right, bottom]), INK)
        axis.plot(0, 0, "+", color=INK, markersize=9)
        for x, y, value in ((-left / 2, 0, left), (0, -top / 2, top), (right / 2, 0, right), (0, bottom / 2, bottom)):
            axis.text(x, y, f"{value:.2f}", fontsize=7, ha="center", va="center", bbox=GROUND)
        axis.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal", title=_say("cell", cell=index))
        axis.set_xlabel(_say("sides.x"))
    return picture(figure, _say("boxes"))


@styled
def assignments(
    found: Mapping[str, np.ndarray],
    boxes: np.ndarray,
    cells: np.ndarray,
    size: tuple[int, int],
    centre: float = 0.5,
    image: np.ndarray | None = None,
) -> Picture:
    """Which cell was given which box, one panel per assigner: the positive cells in their box's colour and shape.

    found: name -> (p,) 0 for background, else the 1-based box; cells (p, 3): x, y of the top left corner, stride, in
    pixels; centre: where in its cell a point lies by which the model measures; image (h, w, 3), drawn pale below.
    """
    figure, axes = canvas(1, len(found), (8.0, 8.0 / max(2, len(found)) + 0.4), sharey=True)
    for axis, (name, chosen) in zip(axes[0], found.items()):
        if image is not None:
            axis.imshow(image, alpha=0.35, extent=(0, size[1], size[0], 0))
        for index, box in enumerate(boxes):
            mine = cells[chosen == index + 1]
            _outline(axis, box, _colour(index))
            marks = {"marker": MARKS[index % len(MARKS)], "color": _colour(index), "edgecolor": INK, "linewidth": 0.4}
            axis.scatter(*(mine[:, :2] + centre * mine[:, 2:]).T, s=1.5 * mine[:, 2], **marks)
            label = _say("assignments.box", box=index + 1, cells=len(mine))
            axis.text(box[0], max(box[1] - 3, 8), label, fontsize=7, zorder=3, bbox=GROUND)
        _pixels(axis, size)
        axis.set_title(
            _say("assignments.title", name=style.term(name), cells=style.counted("cells", int((chosen > 0).sum())))
        )
    axes[0, 0].set_ylabel(_say("y"))
    return picture(figure, _say("assignments", names=_listed(found)), dense=True)


@styled
def residuals(factors: Mapping[str, np.ndarray]) -> Picture:
    """With which factor each residual (rows) counts for each image (columns); black is dropped."""
    values = np.stack(list(factors.values()))
    figure, axis = single(1.0 + 0.3 * len(values))
    _matrix(axis, values, cmap="gray", vmin=0, vmax=1.3, aspect="auto")
    numbers(axis, [[f"{value:.2g}" for value in row] for row in values], values < 0.5, size=6)
    axis.set_yticks(range(len(values)), list(map(style.term, factors)))
    axis.set_xlabel(_say("residuals.x"))
    return picture(figure, _say("residuals"))


# ---------------------------------------------------------------------------------------------------------- RT-DETR
@styled
def reach(panels: Mapping[str, np.ndarray]) -> Picture:
    """Which input pixels (h, w) bool each module reads, at least one: grey squares; white ones are never seen."""
    figure, axes = canvas(1, len(panels), (8.0, 8.0 / len(panels) + 0.7))
    for axis, (name, seen) in zip(axes[0], panels.items()):
        _matrix(axis, np.where(seen, 0.55, 0.0), cmap="Greys", vmin=0, vmax=1)
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        within = f"{np.ptp(rows) + 1} × {np.ptp(columns) + 1}"
        count = _say("reach.count", seen=int(seen.sum()), of=seen.size, within=within)
        axis.set_title(f"{style.term(name)}\n{count}", fontsize=8)
        axis.set_xlabel(_say("column"))
        axis.set_xticks(np.arange(-0.5, seen.shape[1]), minor=True)
        axis.set_yticks(np.arange(-0.5, seen.shape[0]), minor=True)
        axis.grid(True, which="minor", color=FAINT, linewidth=0.4)
        axis.tick_params(which="minor", length=0)
    axes[0, 0].set_ylabel(_say("row"))
    return picture(figure, _say("reach", names=_listed(panels)), dense=True)


@styled
def positions(panels: Mapping[str, np.ndarray], at: tuple[int, int]) -> Picture:
    """How alike the position embedding (h, w, d) of the pixel `at` (row, column; ringed) is to others: their cosine."""
    widths = [embedding.shape[1] for embedding in panels.values()]
    figure, axes = canvas(1, len(panels), (8.0, 2.6), width_ratios=widths)
    units = {name: embedding / np.linalg.norm(embedding, axis=2, keepdims=True) for name, embedding in panels.items()}
    likeness = {name: unit @ unit[at] for name, unit in units.items()}
    least = min(cosines.min() for cosines in likeness.values())
    for axis, (name, cosines) in zip(axes[0], likeness.items()):
        image = _matrix(axis, cosines, cmap="Greys", vmin=least, vmax=1)
        axis.plot(at[1], at[0], "o", markersize=9, fillstyle="none", color="white", markeredgewidth=1.6)
        axis.set_title(style.term(name), fontsize=8)
        axis.set_xlabel(_say("column"))
    axes[0, 0].set_ylabel(_say("row"))
    figure.colorbar(image, ax=axes, label=_say("positions.cosine"), shrink=0.9)
    return picture(figure, _say("positions", names=_listed(panels)), dense=True)


@styled
def selection(image: np.ndarray, scores: np.ndarray, tokens: np.ndarray, sizes: Sequence[tuple[int, int]]) -> Picture:
    """Where the selected tokens lie on the image, by level, and the scores of all tokens in falling order with the cut.

    scores (m,) the best class logit of each token; tokens (q,); sizes: (rows, columns) of the levels.
    """
    figure, axes = canvas(1, 2, (8.0, 4.6))
    shown, ranks = axes[0]
    places, level = _cells(sizes)
    show_image(shown, image)
    marks = {"linewidth": 0.7, "edgecolor": INK, "facecolor": (1, 1, 1, 0.55)}
    for index, (rows, columns) in enumerate(sizes):
        mine = tokens[level[tokens] == index]
        label = _say("selection.level", rows=rows, columns=columns, chosen=len(mine), of=rows * columns)
        points = (places[mine] * (image.shape[1], image.shape[0])).T
        shown.scatter(*points, s=12 * 3**index, marker=MARKS[index], label=label, **marks)
    shown.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01))
    falling, count = np.sort(scores)[::-1], len(tokens)
    ranks.plot(np.arange(1, len(falling) + 1), falling, color=INK)
    ranks.axvline(count + 0.5, color=QUIET, linestyle="--", label=_say("selection.cut", count=count))
    ranks.set(xlabel=_say("selection.x"), ylabel=_say("selection.y"))
    ranks.legend(loc="upper right")
    return picture(figure, _say("selection", count=count, of=len(falling)), dense=True)


def _cells(sizes: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(m, 2) x and y of each token's centre as parts of the image, and (m,) its level."""
    grids = [np.mgrid[:rows, :columns].reshape(2, -1)[::-1].T + 0.5 for rows, columns in sizes]
    places = [grid / (columns, rows) for grid, (rows, columns) in zip(grids, sizes)]
    return np.concatenate(places), np.repeat(np.arange(len(sizes)), [len(grid) for grid in grids])


@styled
def sampling(image: np.ndarray, layers: Mapping[str, object]) -> Picture:
    """Where each panel's query (notebooks.tours.Sampling) reads: a mark per head, the larger the greater its share."""
    columns = min(4, len(layers))
    figure, axes = panels(len(layers), columns, (8.0, 8.0 / columns * -(-len(layers) // columns) + 0.7))
    extent = np.array([image.shape[1], image.shape[0]])
    for axis, (name, read) in zip(axes, layers.items()):
        axis.imshow(image)
        axis.grid(False)
        corners = np.stack([read.box[:2] - read.box[2:] / 2, read.box[:2] + read.box[2:] / 2]) * extent
        _outline(axis, corners.ravel(), "white", "-", 2.4)
        _outline(axis, corners.ravel(), INK, "--")
        for head, (places, shares) in enumerate(zip(read.places, read.shares)):
            marks = {"marker": MARKS[head % len(MARKS)], "color": _colour(head), "edgecolor": "white", "linewidth": 0.4}
            points = (places.reshape(-1, 2) * extent).T
            axis.scatter(*points, s=4 + 220 * shares.reshape(-1), label=_say("head", head=head), **marks)
        points = np.concatenate([corners, read.places.reshape(-1, 2) * extent])  # a square part with all of them
        middle, half = (points.min(0) + points.max(0)) / 2, 0.6 * np.ptp(points, axis=0).max()
        axis.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] + half, middle[1] - half))
        axis.set_title(style.term(name), fontsize=8)
        axis.set_xlabel(_say("x"))
    axes[0].set_ylabel(_say("y"))
    legend = {"loc": "outside lower center", "ncols": 8, "fontsize": 7, "handletextpad": 0.1, "columnspacing": 1.0}
    figure.legend(*axes[0].get_legend_handles_labels(), **legend)
    return picture(figure, _say("sampling", layers=_listed(layers)), dense=True)


@styled
def denoising(noised: Mapping[str, np.ndarray], boxes: np.ndarray, size: tuple[int, int]) -> Picture:
    """Noised boxes (m, 4) of each sign ("positive", "negative"), thin, over the image's boxes (k, 4), thick, in
    pixels."""
    figure, axes = canvas(1, len(noised), (8.0, 8.0 / len(noised) + 0.3), sharey=True)
    for axis, (name, moved) in zip(axes[0], noised.items()):
        for index, box in enumerate(moved):
            _outline(axis, box, _colour(index % len(boxes)), ("-", "--")[name == "negative"], 0.7)
        for index, box in enumerate(boxes):
            _outline(axis, box, "white", "-", 4.0)
            _outline(axis, box, _colour(index), "-", 2.4)
        _pixels(axis, size)
        axis.set_title(_say(f"denoising.{name}", count=len(moved)))
    axes[0, 0].set_ylabel(_say("y"))
    return picture(figure, _say("denoising"), dense=True)


@styled
def mask(blocks: np.ndarray, denoising: int) -> Picture:
    """Who sees whom among the queries: blocks (t, t), non-zero (dark) where the row does not see the column."""
    figure, axis = single(4.6, 4.6)
    _matrix(axis, blocks != 0, cmap="Greys", vmin=0, vmax=1.4)
    for line in (axis.axhline, axis.axvline):
        line(denoising - 0.5, color=INK, linewidth=0.8)
    axis.set(xlabel=_say("mask.x", count=denoising), ylabel=_say("mask.y"))
    return picture(figure, _say("mask"), dense=True)


@styled
def costs(cost: np.ndarray, queries: np.ndarray, boxes: np.ndarray, gap: float, nearest: int = 3) -> Picture:
    """What it costs to give a box (columns) a query (rows): the chosen pairs framed, and each box's `nearest` cheapest
    queries.

    cost (q, g); queries, boxes (m,) the pairs; gap: what the second cheapest assignment costs more.
    """
    cheap = np.argsort(cost, 0, kind="stable")[:nearest].ravel()
    rows = np.unique(np.concatenate([cheap, queries]))
    figure, axis = single(1.3 + 0.26 * len(rows), 6.4)
    image = _matrix(axis, cost[rows], cmap="Greys", aspect="auto")
    written = [[f"{value:.2f}" for value in row] for row in cost[rows]]
    numbers(axis, written, cost[rows] > sum(image.get_clim()) / 2)
    for query, box in zip(queries, boxes):
        row = int(np.searchsorted(rows, query))
        axis.add_patch(Rectangle((box - 0.47, row - 0.44), 0.94, 0.88, fill=False, edgecolor=VERMILLION, linewidth=2.0))
    axis.set_xticks(range(cost.shape[1]), [str(box + 1) for box in range(cost.shape[1])])
    axis.set_yticks(range(len(rows)), list(map(str, rows)))
    axis.set(xlabel=_say("costs.x"), ylabel=_say("costs.y"), title=_say("costs.gap", gap=f"{gap:.2g}"))
    figure.colorbar(image, ax=axis, label=_say("costs.cost"))
    return picture(figure, _say("costs", count=len(queries)), dense=True)
