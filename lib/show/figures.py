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
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

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


def picture(figure: Figure, alt: str, dense: bool = False, photographs: bool = False, colours: int = 0) -> Picture:
    """SVG without a date, the same bytes every time; PNG for thousands of marks (`dense`; `colours`, if few do), JPEG for photographs."""
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
    """Without comments, and with coordinates of five digits: a hundredth of a point in a figure of 600, half the bytes."""
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


@styled
def forward_depth(rows: Mapping[str, Sequence[Mapping]], depth: Sequence[str]) -> Picture:
    """Relative forward error of each named feature, in order of execution, with its gate.

    rows: pair -> rows of its forward verdict (dicts with name, what, error, floor, gate, scale).
    """
    figure, axes = canvas(2, 1, (8.0, 6.4), sharex=True)
    panels = (
        (
            axes[0, 0],
            ("published-torch", "published-jittor"),
            ("first values", "every element"),
            "Against the published implementation: the recorded values of each feature",
        ),
        (axes[1, 0], ("torch-jittor",), ("every element",), "Jittor against PyTorch: every element"),
    )
    for axis, pairs, kinds, title in panels:
        held = {pair: {r["name"]: r for r in rows.get(pair, ()) if r["what"] in kinds} for pair in pairs}
        for pair in pairs:
            _depth_line(
                axis, held[pair], depth, "error", PAIR_COLOURS[pair] if len(pairs) > 1 else "jittor", _pair(pair)
            )
        limits = next((held[pair] for pair in pairs if held[pair]), {})
        _depth_line(axis, limits, depth, "floor", "published", "noise floor")
        _depth_line(axis, limits, depth, "gate", None, "gate")
        axis.set(title=title, ylabel="largest error / largest value", yscale="log")
        if axis.lines:
            lowest = min(line.get_ydata()[line.get_ydata() > 10 * LEAST].min(initial=1.0) for line in axis.lines)
            axis.set_ylim(
                lowest / 3, 12 * axis.get_ylim()[1]
            )  # a decade for the legend; exact zeros leave at the bottom
            axis.legend(ncols=4, loc="upper left")
        else:
            _empty(axis)
    axes[1, 0].set_xticks(range(len(depth)), depth, rotation=90, fontsize=7)
    axes[1, 0].set_xlabel("feature, in order of execution")
    return picture(
        figure, "Forward error through the depth of the network, per named feature, with noise floor and gate."
    )


def _depth_line(
    axis: Axes, rows: Mapping[str, Mapping], depth: Sequence[str], key: str, side: str | None, label: str
) -> None:
    points = [
        (i, rows[n][key] / rows[n]["scale"])
        for i, n in enumerate(depth)
        for n in (f"features/{n}",)
        if n in rows and isinstance(rows[n][key], float) and rows[n]["scale"]
    ]
    if not points:
        return
    x, y = zip(*points)
    style = (
        {"color": "black", "linestyle": "-.", "linewidth": 1.0} if side is None else _look(side, marker=key == "error")
    )
    axis.plot(x, np.maximum(y, LEAST), label=label, **style)


@styled
def gradient_errors(rows: Mapping[str, Sequence[Mapping]]) -> Picture:
    """Error over gate of every judged float32 gradient, sorted, one line per pair: above 1 fails."""
    figure, axes = canvas(size=(8.0, 3.6))
    axis = axes[0, 0]
    for pair, found in rows.items():
        judged = [r for r in found if isinstance(r["error"], float) and r["gate"] and "float64" not in r["what"]]
        ratios = sorted(max(r["error"] / r["gate"], LEAST) for r in judged)
        side = PAIR_COLOURS[pair]
        axis.plot(
            np.linspace(0, 100, len(ratios)),
            ratios,
            MARKERS[side],
            color=COLOURS[side],
            markersize=3,
            fillstyle="none" if side == "jittor" else "full",
            label=_pair(pair),
            rasterized=True,
        )
    axis.axhline(1.0, color="black", linestyle="-.", linewidth=1.0, label="gate")
    axis.set(yscale="log", xlabel="judged gradients, sorted (percent)", ylabel="error / gate")
    _lift_floor(axis)
    axis.legend(loc="lower right")
    return picture(
        figure,
        "Gradient error divided by its gate for every parameter, sorted; values above 1 would fail.",
        dense=True,
        colours=COLOURED,
    )


# ---------------------------------------------------------------------------------------------------------- training


@styled
def loss_curves(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """Each loss component over the steps, both sides in one panel. curves: side -> the train record's `curves`."""
    first = next(iter(curves.values()))
    names = [name for name in first if "loss" in name]
    columns = min(3 if len(names) <= 9 else 6, len(names))
    count = -(-len(names) // columns)
    figure, axes = canvas(count, columns, (8.0, 0.4 + (2.0 if columns <= 3 else 1.3) * count), sharex=True)
    for axis, name in zip(axes.flat, names):
        for side, columns_of in curves.items():
            axis.plot(
                columns_of["step"],
                columns_of[name],
                label=NAMES[side],
                linewidth=1.4 if columns <= 3 else 0.7,
                **_look(side, marker=False),
            )
        axis.set_title(name, fontsize=10 if columns <= 3 else 7)
        axis.tick_params(labelsize=8 if columns <= 3 else 6)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(names) - columns) : len(names)]:  # the lowest that is drawn in each column
        axis.set_xlabel("step")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("loss")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    # Dashes along thousands of noisy points are a megabyte in a PDF.
    points = sum(len(held[name]) for held in curves.values() for name in names)
    return picture(
        figure,
        "Training loss by component over the steps, in both frameworks.",
        dense=points > POINTS,
        colours=COLOURED,
    )


@styled
def learning_rate(curves: Mapping[str, Sequence[float]]) -> Picture:
    """The learning rate of each step."""
    figure, axes = canvas(size=(8.0, 2.4))
    axes[0, 0].plot(curves["step"], curves["learning_rate"], color="black")
    axes[0, 0].set(xlabel="step", ylabel="learning rate")
    return picture(figure, "Learning rate over the steps: warm-up, then cosine decay.")


@styled
def map_curves(epochs: Mapping[str, Sequence[Mapping[str, float]]]) -> Picture:
    """AP after each evaluation; before the first step at 0. epochs: side, or any name -> the train record's `epochs`."""
    figure, axes = canvas(size=(8.0, 2.8))
    axis = axes[0, 0]
    for (name, found), line in zip(epochs.items(), ("-", "--", ":") * len(epochs)):
        look = _look(name) if name in NAMES else {"color": "black", "linestyle": line, "marker": "."}
        axis.plot([e["epoch"] + 1 for e in found], [100 * e["AP"] for e in found], label=NAMES.get(name, name), **look)
    axis.set(xlabel="epoch", ylabel="AP (percent)")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left")
    return picture(
        figure, f"COCO average precision after each evaluation: {', '.join(NAMES.get(name, name) for name in epochs)}."
    )


# -------------------------------------------------------------------------------------------------------- detections


@styled
def detections(samples: Sequence[Mapping[str, Any]], classes: Sequence[str], threshold: float = 0.2) -> Picture:
    """One row per sample image: ground truth, then each side's detections above `threshold`.

    samples: dicts with image (h, w, 3) uint8 RGB, boxes (k, 4), labels (k,), and found: side -> (m, 6) x1 … y2, score, label.
    """
    sides = list(samples[0]["found"])
    columns = 1 + len(sides)
    heights = [
        sample["image"].shape[0] / sample["image"].shape[1] for sample in samples
    ]  # of a row, in widths of a panel
    figure, axes = canvas(
        len(samples), columns, (8.0, 0.3 + 8.0 / columns * sum(heights)), gridspec_kw={"height_ratios": heights}
    )
    for row, sample in zip(axes, samples):
        show_image(row[0], sample["image"])
        _boxes(row[0], sample["boxes"], [classes[int(label)] for label in sample["labels"]], "#009e73", "-")
        for axis, side in zip(row[1:], sides):
            found = sample["found"][side][sample["found"][side][:, 4] > threshold]
            show_image(axis, sample["image"])
            _boxes(axis, found[:, :4], [f"{classes[int(d[5])]} {d[4]:.2f}" for d in found], COLOURS[side], LINES[side])
    for axis, title in zip(axes[0], ["ground truth", *(f"{NAMES[side]}, score > {threshold:g}" for side in sides)]):
        axis.set_title(title)
    return picture(
        figure,
        f"Sample images with ground truth and with each framework's detections above {threshold}.",
        photographs=True,
    )


@styled
def contact_sheet(images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], columns: int = 6) -> Picture:
    """Images (h, w, 3) uint8 RGB with their boxes (k, 4)."""
    count = -(-len(images) // columns)
    figure, axes = canvas(count, columns, (8.0, 8.0 / columns * count))
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, image, own in zip(axes.flat, images, boxes):
        axis.set_visible(True)
        show_image(axis, image)
        _boxes(axis, own, [""] * len(own), "#009e73", "-")
    return picture(figure, f"{len(images)} images of the data set with their boxes.", dense=True)


@styled
def assignment(image: np.ndarray, boxes: np.ndarray, cells: np.ndarray, gt_inds: np.ndarray) -> Picture:
    """Which prior was given which box: points of the positive priors in their box's colour.

    cells: (priors, 3) x, y, stride in pixels; gt_inds: (priors,), 0 for background, else 1-based box.
    """
    figure, axes = canvas(size=(4.6, 4.6))
    axis = axes[0, 0]
    show_image(axis, image)
    for index, box in enumerate(boxes, 1):
        colour, mine = matplotlib.colormaps["tab10"]((index - 1) % 10), gt_inds == index
        _boxes(axis, box[None], [str(index)], colour, "-")
        axis.scatter(cells[mine, 0], cells[mine, 1], s=cells[mine, 2], color=colour, edgecolor="black", linewidth=0.5)
    return picture(figure, f"{int((gt_inds > 0).sum())} positive priors on the boxes they were given.", dense=True)


@styled
def feature_maps(features: Mapping[str, np.ndarray], columns: int = 6) -> Picture:
    """Mean size over channels of each feature that is a map, (1, c, h, w)."""
    features = {name: feature for name, feature in features.items() if feature.ndim == 4}
    count = -(-len(features) // columns)
    figure, axes = canvas(count, columns, (8.0, 1.6 * count))
    for axis in axes.flat[len(features) :]:
        axis.set_visible(False)
    for axis, (name, feature) in zip(axes.flat, features.items()):
        axis.imshow(np.abs(feature[0]).mean(axis=0), cmap="gray", interpolation="nearest")
        axis.set_title(f"{name}\n{' × '.join(map(str, feature.shape[1:]))}", fontsize=6)
        axis.set_axis_off()
    return picture(figure, "Mean activation of the named features.", dense=True)


def show_image(axis: Axes, image: np.ndarray) -> None:
    """(h, w, 3) uint8 RGB without ticks."""
    axis.imshow(image)
    axis.set_axis_off()


def _boxes(axis: Axes, boxes: np.ndarray, labels: Sequence[str], colour: Any, line: str) -> None:
    for (x1, y1, x2, y2), label in zip(boxes, labels):
        axis.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=line, linewidth=1.2)
        )
        if label:
            inside = y1 < 0.06 * axis.get_ylim()[0]  # no room above the box
            axis.text(
                x1,
                y1,
                label,
                fontsize=5,
                color="white",
                verticalalignment="top" if inside else "bottom",
                clip_on=True,
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
            )


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
            axis.bar(
                at,
                median,
                0.36,
                label=f"{NAMES[side]}, synchronised",
                color=COLOURS[side],
                hatch=HATCHES[side],
                edgecolor="white",
            )
            axis.vlines(at, low, high, color="black")
            axis.plot(
                at,
                [c.get("median", np.nan) for c in claimed],
                "x",
                color="black",
                markersize=6,
                label="unsynchronised clock" if offset == 0 else None,
            )
        axis.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        axis.set(title=WORKS[work], xlabel="batch size (images)", ylabel="time (ms)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return picture(
        figure, "Median time per batch size with quartiles, synchronised, beside the unsynchronised clock's claim."
    )


@styled
def memory(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Peak memory per work and batch. side -> `cases` of the speed record."""
    keys = list(dict.fromkeys((c["operation"], c["batch"]) for found in cases.values() for c in found))
    figure, axes = canvas(size=(8.0, 0.9 + 0.45 * len(keys)))
    axis = axes[0, 0]
    for offset, (side, found) in enumerate(cases.items()):
        held = {(c["operation"], c["batch"]): c["memory"]["peak_mib"] for c in found}
        at = np.arange(len(keys)) + 0.38 * (offset - (len(cases) - 1) / 2)
        axis.barh(
            at,
            [held.get(key, np.nan) for key in keys],
            0.36,
            label=NAMES[side],
            color=COLOURS[side],
            hatch=HATCHES[side],
            edgecolor="white",
        )
    axis.set_yticks(range(len(keys)), [f"{WORKS[what]}, batch {batch}" for what, batch in keys])
    axis.invert_yaxis()
    axis.set_xlabel("peak memory of the process (MiB)")
    figure.legend(loc="outside upper center", ncols=2)
    return picture(figure, "Peak memory per kind of work and batch size, in both frameworks.")


@styled
def bars(values: Mapping[str, Mapping[str, float]], unit: str, alt: str) -> Picture:
    """Horizontal bars, one group per name, one bar per side (or one bar, side ""): slowest operators, parameters by part."""
    sides = list(dict.fromkeys(side for row in values.values() for side in row))
    figure, axes = canvas(size=(8.0, 0.8 + 0.26 * max(2, len(values) * len(sides))))
    axis = axes[0, 0]
    for offset, side in enumerate(sides):
        at = np.arange(len(values)) + 0.8 / len(sides) * (offset - (len(sides) - 1) / 2)
        axis.barh(
            at,
            [row.get(side, np.nan) for row in values.values()],
            0.76 / len(sides),
            label=NAMES.get(side),
            color=COLOURS.get(side, "#6e6e6e"),
            hatch=HATCHES.get(side, ""),
            edgecolor="white",
        )
    axis.set_yticks(range(len(values)), list(values))
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    if len(sides) > 1:
        axis.legend()
    return picture(figure, alt)


@styled
def box_sizes(sizes: Mapping[str, np.ndarray]) -> Picture:
    """Histogram of box sizes (square root of the area, pixels) per split, with COCO's bounds of small and large."""
    figure, axes = canvas(size=(8.0, 2.8))
    axis = axes[0, 0]
    edges = np.geomspace(max(1.0, min(s.min() for s in sizes.values())), max(s.max() for s in sizes.values()), 31)
    for (name, values), line, colour in zip(sizes.items(), ("-", "--"), ("black", "#6e6e6e")):
        axis.hist(
            values,
            edges,
            histtype="step",
            label=f"{name}, {len(values)} boxes",
            linestyle=line,
            color=colour,
            linewidth=1.4,
        )
    for bound in (32, 96):
        axis.axvline(bound, color="black", linestyle=":", linewidth=0.8)
    axis.set(xscale="log", xlabel="square root of the box's area (pixels; dotted: 32 and 96)", ylabel="boxes")
    axis.legend(loc="upper left")
    return picture(figure, "Histogram of box sizes per split, with COCO's bounds between small, medium and large.")


@styled
def class_histogram(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> Picture:
    """Boxes of each class, one bar per split."""
    figure, axes = canvas(size=(8.0, 0.8 + 0.3 * len(classes)))
    axis = axes[0, 0]
    for offset, (split, found) in enumerate(counts.items()):
        at = np.arange(len(classes)) + 0.8 / len(counts) * (offset - (len(counts) - 1) / 2)
        axis.barh(
            at,
            found,
            0.76 / len(counts),
            label=split,
            color=("#6e6e6e", "#bdbdbd")[offset],
            hatch=("", "///")[offset],
            edgecolor="white",
        )
    axis.set_yticks(range(len(classes)), list(classes))
    axis.invert_yaxis()
    axis.set_xlabel("boxes")
    axis.legend()
    return picture(figure, "Number of boxes of each class, per split.")


# ------------------------------------------------------------------------------------------------------------- parts


def _look(side: str, marker: bool = True) -> dict[str, Any]:
    return {"color": COLOURS[side], "linestyle": LINES[side], "marker": MARKERS[side] if marker else None}


def _pair(pair: str) -> str:
    first, second = pair.split("-")
    return f"{NAMES[second]} against {NAMES[first]}"


def _lift_floor(axis: Axes) -> None:
    """Leave exact zeros at the lower edge instead of stretching the axis over eighteen decades."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, 1e-8), max(high, 2.0))


def _empty(axis: Axes) -> None:
    axis.text(0.5, 0.5, "NOT RUN", transform=axis.transAxes, horizontalalignment="center")
