"""Every figure of the notebooks and the report, in one style.

One colour, line, marker and hatch per side, the same everywhere, told apart by the colour-blind and in black and white.
A function takes plain data (records' fields, arrays) and returns a Picture, which notebooks show by themselves.
"""

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lib.show import drawing

STYLE = Path(__file__).with_name("align.mplstyle")
SIDES = ("published", "torch", "jittor")
NAMES = {"published": "published", "torch": "PyTorch", "jittor": "Jittor"}
# Okabe and Ito's vermillion and blue: they stay apart for every common colour blindness, and in grey.
COLOURS = {"published": "#6e6e6e", "torch": "#d55e00", "jittor": "#0072b2"}
LINES = {"published": ":", "torch": "-", "jittor": "--"}
MARKERS = {"published": "^", "torch": "o", "jittor": "s"}
HATCHES = {"published": "..", "torch": "", "jittor": "///"}
PAIR_COLOURS = {"published-torch": "torch", "published-jittor": "jittor", "torch-jittor": "published"}
WORKS = {"forward": "inference", "train": "training step"}  # operations of the speed records
POINTS = 6000  # of curves that are drawn as vectors
COLOURED = 64  # colours of a drawing, its edges smoothed
LEAST = 1e-18  # stands for an error of exactly zero on a logarithmic axis


@dataclass(frozen=True)
class Picture:
    """A drawn figure and the sentence that stands for it where it can't be seen."""

    data: bytes
    kind: str  # "image/svg+xml" or "image/png"
    alt: str

    def html(self) -> str:
        encoded = base64.b64encode(self.data).decode()
        return f'<img alt="{html.escape(self.alt, quote=True)}" lang="en" src="data:{self.kind};base64,{encoded}">'

    def _repr_html_(self) -> str:
        return self.html()


def canvas(
    rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches and its axes, always (rows, columns); pyplot, which keeps figures open, is not used."""
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def single(height: float = 3.6, width: float = 8.0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure, axes = canvas(size=(width, height))
    return figure, axes[0, 0]


def panels(count: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, row by row; in the last row as many as are left."""
    figure, axes = canvas(max(1, -(-count // columns)), columns, size, **options)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def picture(figure: Figure, alt: str, dense: bool = False, photographs: bool = False, colours: int = 0) -> Picture:
    """SVG without a date, the same bytes every time; PNG for thousands of marks (`dense`; `colours`, if few do), JPEG
    for photographs."""
    buffer = io.BytesIO()
    if photographs:  # a quarter of the bytes of a PNG; full chroma, since thin coloured frames are what is looked at
        figure.savefig(buffer, format="jpeg", dpi=110, pil_kwargs={"quality": 80, "subsampling": 0})
        return Picture(buffer.getvalue(), "image/jpeg", alt)
    if dense:
        figure.savefig(buffer, format="png", metadata={"Software": None})
        if colours:
            drawn, buffer = Image.open(buffer).convert("RGB"), io.BytesIO()
            drawn.quantize(colours, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
        return Picture(buffer.getvalue(), "image/png", alt)
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Picture(_short(buffer.getvalue()), "image/svg+xml", alt)


def _short(svg: bytes) -> bytes:
    """Without comments, and with coordinates of five digits: a hundredth of a point of 600, in half the bytes."""
    return re.sub(
        rb"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.5g}".encode(), re.sub(rb"<!--.*?-->\n?", b"", svg)
    )


def styled(draw: Callable[..., Picture]) -> Callable[..., Picture]:
    """Draw under the one style, whatever the notebook has set."""

    def wrapped(*arguments: Any, **options: Any) -> Picture:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.style.use(STYLE)
            return draw(*arguments, **options)

    wrapped.__doc__, wrapped.__name__ = draw.__doc__, draw.__name__
    return wrapped


# --------------------------------------------------------------------------------------------------------- alignment

DEPTHS = {  # panels of the forward error: title -> pairs, and the kinds of comparison
    "Against the published implementation: the recorded values of each feature": (
        ("published-torch", "published-jittor"),
        ("first values", "every element"),
    ),
    "Jittor against PyTorch: every element": (("torch-jittor",), ("every element",)),
}


@styled
def forward_depth(rows: Mapping[str, Sequence[Mapping]], depth: Sequence[str]) -> Picture:
    """Relative forward error of each named feature, in order of execution, with its gate.

    rows: pair -> rows of its forward verdict (dicts with name, what, error, floor, gate, scale).
    """
    figure, axes = canvas(2, 1, (8.0, 6.4), sharex=True)
    for axis, (title, (pairs, kinds)) in zip(axes[:, 0], DEPTHS.items(), strict=True):
        held = {pair: {r["name"]: r for r in rows.get(pair, ()) if r["what"] in kinds} for pair in pairs}
        for pair in pairs:
            side = PAIR_COLOURS[pair] if len(pairs) > 1 else "jittor"
            _depth_line(axis, held[pair], depth, "error", label=_pair(pair), **look(side))
        limits = next((held[pair] for pair in pairs if held[pair]), {})
        _depth_line(axis, limits, depth, "floor", label="noise floor", **look("published", marker=False))
        _depth_line(axis, limits, depth, "gate", label="gate", color="black", linestyle="-.", linewidth=1.0)
        axis.set(title=title, ylabel="largest error / largest value", yscale="log")
        if axis.lines:  # a decade for the legend; exact zeros leave at the bottom
            lowest = min(line.get_ydata()[line.get_ydata() > 10 * LEAST].min(initial=1.0) for line in axis.lines)
            axis.set_ylim(lowest / 3, 12 * axis.get_ylim()[1])
            axis.legend(ncols=4, loc="upper left")
        else:
            axis.text(0.5, 0.5, "NOT RUN", transform=axis.transAxes, horizontalalignment="center")
    axis.set_xticks(range(len(depth)), depth, rotation=90, fontsize=7)
    axis.set_xlabel("feature, in order of execution")
    return picture(
        figure, "Forward error through the depth of the network, per named feature, with noise floor and gate."
    )


def _depth_line(axis: Axes, rows: Mapping[str, Mapping], depth: Sequence[str], key: str, **line: Any) -> None:
    held = [(place, rows[name]) for place, name in enumerate(f"features/{n}" for n in depth) if name in rows]
    points = [(place, row[key] / row["scale"]) for place, row in held if isinstance(row[key], float) and row["scale"]]
    if points:
        x, y = zip(*points)
        axis.plot(x, np.maximum(y, LEAST), **line)


@styled
def gradient_errors(rows: Mapping[str, Sequence[Mapping]]) -> Picture:
    """Error over gate of every judged float32 gradient, sorted, one line per pair: above 1 fails."""
    figure, axis = single()
    for pair, found in rows.items():
        judged = [r for r in found if isinstance(r["error"], float) and r["gate"] and "float64" not in r["what"]]
        ratios = sorted(max(r["error"] / r["gate"], LEAST) for r in judged)
        side = PAIR_COLOURS[pair]
        dots = {"color": COLOURS[side], "markersize": 3, "fillstyle": "none" if side == "jittor" else "full"}
        axis.plot(np.linspace(0, 100, len(ratios)), ratios, MARKERS[side], label=_pair(pair), rasterized=True, **dots)
    axis.axhline(1.0, color="black", linestyle="-.", linewidth=1.0, label="gate")
    axis.set(yscale="log", xlabel="judged gradients, sorted (percent)", ylabel="error / gate")
    low, high = axis.get_ylim()  # exact zeros leave at the lower edge
    axis.set_ylim(max(low, 1e-8), max(high, 2.0))
    axis.legend(loc="lower right")
    said = "Gradient error divided by its gate for every parameter, sorted; values above 1 would fail."
    return picture(figure, said, dense=True, colours=COLOURED)


# ---------------------------------------------------------------------------------------------------------- training


@styled
def loss_curves(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """Each loss component over the steps, both sides in one panel. curves: side -> the train record's `curves`."""
    names = [name for name in next(iter(curves.values())) if "loss" in name]
    few = len(names) <= 9
    columns = min(3 if few else 6, len(names))
    height, line, title, ticks = (2.0, 1.4, 10, 8) if few else (1.3, 0.7, 7, 6)
    figure, axes = panels(len(names), columns, (8.0, 0.4 + height * -(-len(names) // columns)), sharex=True)
    for axis, name in zip(axes, names):
        for side, held in curves.items():
            axis.plot(held["step"], held[name], label=NAMES[side], linewidth=line, **look(side, marker=False))
        axis.set_title(name, fontsize=title)
        axis.tick_params(labelsize=ticks)
    for axis in axes[-columns:]:  # the lowest that is drawn in each column
        axis.set_xlabel("step")
        axis.tick_params(labelbottom=True)
    for axis in axes[::columns]:
        axis.set_ylabel("loss")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    # Dashes along thousands of noisy points are a megabyte in a PDF.
    dense = sum(len(held[name]) for held in curves.values() for name in names) > POINTS
    said = "Training loss by component over the steps, in both frameworks."
    return picture(figure, said, dense=dense, colours=COLOURED)


@styled
def learning_rate(curves: Mapping[str, Sequence[float]]) -> Picture:
    """The learning rate of each step."""
    figure, axis = single(2.4)
    axis.plot(curves["step"], curves["learning_rate"], color="black")
    axis.set(xlabel="step", ylabel="learning rate")
    return picture(figure, "Learning rate over the steps: warm-up, then cosine decay.")


@styled
def map_curves(epochs: Mapping[str, Sequence[Mapping[str, float]]]) -> Picture:
    """AP after each evaluation; before the first step at 0. epochs: side, or any name -> a train record's `epochs`."""
    figure, axis = single(2.8)
    for (name, found), line in zip(epochs.items(), ("-", "--", ":") * len(epochs)):
        drawn = look(name) if name in NAMES else {"color": "black", "linestyle": line, "marker": "."}
        axis.plot([e["epoch"] + 1 for e in found], [100 * e["AP"] for e in found], label=NAMES.get(name, name), **drawn)
    axis.set(xlabel="epoch", ylabel="AP (percent)")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left")
    names = ", ".join(NAMES.get(name, name) for name in epochs)
    return picture(figure, f"COCO average precision after each evaluation: {names}.")


# -------------------------------------------------------------------------------------------------------- detections


@styled
def detections(samples: Sequence[Mapping[str, Any]], classes: Sequence[str], threshold: float = 0.2) -> Picture:
    """One row per sample image: ground truth, then each side's detections above `threshold`.

    samples: dicts with image (h, w, 3) uint8 RGB, boxes (k, 4), labels (k,), and found: side -> (m, 6) x1, y1, x2, y2,
    score, label.
    """
    sides, named = list(samples[0]["found"]), SimpleNamespace(names=classes, ids=range(1, 1 + len(classes)))
    painter = drawing.Painter(named)
    columns = 1 + len(sides)
    heights = [one["image"].shape[0] / one["image"].shape[1] for one in samples]  # of a row, in widths of a panel
    size = (8.0, 0.3 + 8.0 / columns * sum(heights))
    figure, axes = canvas(len(samples), columns, size, gridspec_kw={"height_ratios": heights})
    for row, sample in zip(axes, samples):
        truth = np.column_stack([sample["boxes"], np.full(len(sample["boxes"]), np.nan), sample["labels"]])
        found = [rows[rows[:, 4] > threshold] for rows in sample["found"].values()]
        for axis, rows in zip(row, [truth, *found]):
            show_image(axis, painter.readable(sample["image"], rows, least=360))
    for axis, title in zip(axes[0], ["ground truth", *(f"{NAMES[side]}, score > {threshold:g}" for side in sides)]):
        axis.set_title(title)
    said = f"Sample images with ground truth and with each framework's detections above {threshold}."
    return picture(figure, said, photographs=True)


@styled
def contact_sheet(images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], columns: int = 6) -> Picture:
    """Images (h, w, 3) uint8 RGB with their boxes (k, 4)."""
    figure, axes = panels(len(images), columns, (8.0, 8.0 / columns * -(-len(images) // columns)))
    for axis, image, own in zip(axes, images, boxes):
        show_image(axis, drawing.outlined(image, own))
    return picture(figure, f"{len(images)} images of the data set with their boxes.", dense=True)


@styled
def feature_maps(features: Mapping[str, np.ndarray], columns: int = 6) -> Picture:
    """Mean size over channels of each feature that is a map, (1, c, h, w)."""
    features = {name: feature for name, feature in features.items() if feature.ndim == 4}
    figure, axes = panels(len(features), columns, (8.0, 1.6 * -(-len(features) // columns)))
    for axis, (name, feature) in zip(axes, features.items()):
        axis.imshow(np.abs(feature[0]).mean(axis=0), cmap="gray", interpolation="nearest")
        axis.set_title(f"{name}\n{' × '.join(map(str, feature.shape[1:]))}", fontsize=6)
        axis.set_axis_off()
    return picture(figure, "Mean activation of the named features.", dense=True)


def show_image(axis: Axes, image: np.ndarray) -> None:
    """(h, w, 3) uint8 RGB without ticks."""
    axis.imshow(image)
    axis.set_axis_off()


def numbers(axis: Axes, written: Sequence[Sequence[str]], dark: np.ndarray, size: int = 7) -> None:
    """A text in each square of a matrix, white where the square is dark."""
    for (row, column), white in np.ndenumerate(dark):
        form = {"fontsize": size, "color": "white" if white else "black", "ha": "center", "va": "center"}
        axis.text(column, row, written[row][column], **form)


# ------------------------------------------------------------------------------------------------------ speed, sizes


@styled
def speed(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Median time with quartiles, synchronised, and what an unsynchronised clock would claim. side -> `cases`."""
    works = list(dict.fromkeys(case["operation"] for found in cases.values() for case in found))
    figure, axes = canvas(1, len(works), (8.0, 3.4))
    for axis, work in zip(axes[0], works):
        held = {side: {c["batch"]: c for c in found if c["operation"] == work} for side, found in cases.items()}
        batches = sorted({batch for found in held.values() for batch in found})
        for offset, (side, found) in enumerate(held.items()):
            at = np.arange(len(batches)) + 0.38 * (offset - (len(held) - 1) / 2)
            true, claimed = (
                [found.get(b, {}).get(clock, {}) for b in batches] for clock in ("synchronised_ms", "unsynchronised_ms")
            )
            low, median, high = (np.array([t.get(key, np.nan) for t in true]) for key in ("q1", "median", "q3"))
            axis.bar(at, median, 0.36, label=f"{NAMES[side]}, synchronised", **_fill(side))
            axis.vlines(at, low, high, color="black")
            cross = {"marker": "x", "linestyle": "", "color": "black", "markersize": 6}
            label = "unsynchronised clock" if offset == 0 else None
            axis.plot(at, [c.get("median", np.nan) for c in claimed], label=label, **cross)
        axis.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        axis.set(title=WORKS[work], xlabel="batch size (images)", ylabel="time (ms)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    said = "Median time per batch size with quartiles, synchronised, beside the unsynchronised clock's claim."
    return picture(figure, said)


@styled
def memory(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Peak memory per work and batch. side -> `cases` of the speed record."""
    held = {
        side: {f"{WORKS[case['operation']]}, batch {case['batch']}": case["memory"]["peak_mib"] for case in found}
        for side, found in cases.items()
    }
    names = dict.fromkeys(name for found in held.values() for name in found)
    figure, axis = single(0.9 + 0.45 * len(names))
    _groups(axis, list(names), {side: [found.get(name, np.nan) for name in names] for side, found in held.items()})
    axis.set_xlabel("peak memory of the process (MiB)")
    figure.legend(loc="outside upper center", ncols=2)
    return picture(figure, "Peak memory per kind of work and batch size, in both frameworks.")


@styled
def bars(values: Mapping[str, Mapping[str, float]], unit: str, alt: str) -> Picture:
    """Horizontal bars, one group per name, one bar per side (or one bar, side "")."""
    sides = list(dict.fromkeys(side for row in values.values() for side in row))
    figure, axis = single(0.8 + max(0.26 * max(2, len(values) * len(sides)), 0.3 * len(values)))
    _groups(axis, list(values), {side: [row.get(side, np.nan) for row in values.values()] for side in sides})
    axis.set_xlabel(unit)
    if len(sides) > 1:
        axis.legend()
    return picture(figure, alt)


def class_histogram(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> Picture:
    """Boxes of each class, one bar per split."""
    values = {name: {split: found[place] for split, found in counts.items()} for place, name in enumerate(classes)}
    return bars(values, "boxes", "Number of boxes of each class, per split.")


def _groups(axis: Axes, names: Sequence[str], lengths: Mapping[str, Sequence[float]]) -> None:
    """Horizontal bars: a group per name, in it a bar per side or any other key."""
    for offset, (key, values) in enumerate(lengths.items()):
        at = np.arange(len(names)) + 0.8 / len(lengths) * (offset - (len(lengths) - 1) / 2)
        axis.barh(at, values, 0.76 / len(lengths), label=NAMES.get(key, key) or None, **_fill(key, offset))
    axis.set_yticks(range(len(names)), list(names))
    axis.invert_yaxis()


@styled
def box_sizes(sizes: Mapping[str, np.ndarray]) -> Picture:
    """Histogram of box sizes (square root of the area, pixels) per split, with COCO's bounds of small and large."""
    figure, axis = single(2.8)
    edges = np.geomspace(max(1.0, min(s.min() for s in sizes.values())), max(s.max() for s in sizes.values()), 31)
    for (name, values), line, colour in zip(sizes.items(), ("-", "--"), ("black", "#6e6e6e")):
        drawn = {"linestyle": line, "color": colour, "linewidth": 1.4, "histtype": "step"}
        axis.hist(values, edges, label=f"{name}, {len(values)} boxes", **drawn)
    for bound in (32, 96):
        axis.axvline(bound, color="black", linestyle=":", linewidth=0.8)
    axis.set(xscale="log", xlabel="square root of the box's area (pixels; dotted: 32 and 96)", ylabel="boxes")
    axis.legend(loc="upper left")
    return picture(figure, "Histogram of box sizes per split, with COCO's bounds between small, medium and large.")


# ------------------------------------------------------------------------------------------------------------- parts


def look(side: str, marker: bool = True) -> dict[str, Any]:
    """The line of a side."""
    return {"color": COLOURS[side], "linestyle": LINES[side], "marker": MARKERS[side] if marker else None}


def _fill(key: str, place: int = 0) -> dict[str, Any]:
    """The bar of a side; of anything else by its place."""
    grey, hatch = (("#6e6e6e", ""), ("#bdbdbd", "///"))[place % 2]
    return {"color": COLOURS.get(key, grey), "hatch": HATCHES.get(key, hatch), "edgecolor": "white"}


def _pair(pair: str) -> str:
    first, second = pair.split("-")
    return f"{NAMES[second]} against {NAMES[first]}"
