"""The one look of every figure: colours, lines, fonts, language, and the picture that comes of it.

One colour, line, marker and hatch per side, the same everywhere, told apart by the colour-blind and in black and white.
What a figure writes comes from the catalogue `figures.po` in the language of `words`, which every figure takes as an
option: by default that of the figure around it, else the shell's. Names are written as they are, never as mathematics.
"""

import base64
import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from lib.show import fonts, messages
from lib.show.messages import Messages

SIDES = ("published", "torch", "jittor")
# Okabe and Ito's colours: they stay apart for every common colour blindness, and, darkest first, in grey.
INK, QUIET, FAINT = "#000000", "#6e6e6e", "#bdbdbd"
VERMILLION, BLUE = "#d55e00", "#0072b2"
SERIES = (INK, BLUE, VERMILLION, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", QUIET)
STROKES = ("-", "--", ":", "-.")
SIGNS = "osv^D<>P"
COLOURS = {"published": QUIET, "torch": VERMILLION, "jittor": BLUE}
LINES = {"published": ":", "torch": "-", "jittor": "--"}
MARKERS = {"published": "^", "torch": "o", "jittor": "s"}
HATCHES = {"published": "..", "torch": "", "jittor": "///"}
COLOURED = 64  # colours of a drawing that is kept in pixels, its edges smoothed
LEAST = 1e-18  # stands for an error of exactly zero on a logarithmic axis
MANY = 40  # points of a curve from which on their mean is drawn
WINDOWS = 25  # parts of a curve that the mean is taken over
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# A drawing's ground and tones are the page's where it sets these two; elsewhere ink on white paper.
TONES = "background:var(--figure-ground,#fff);filter:var(--figure-filter,none)"

_speaking: ContextVar[Messages | None] = ContextVar("speaking", default=None)


@dataclass(frozen=True)
class Picture:
    """A figure and the sentence that stands for it where it can't be seen; without data there was nothing to draw."""

    data: bytes
    kind: str  # "image/svg+xml", "image/png" or "image/jpeg"
    alt: str
    language: str = "en"  # of the sentence
    photograph: bool = False  # readable on any ground, wrong with other tones

    def html(self) -> str:
        """An element that needs no file."""
        if not self.data:
            return f'<p lang="{self.language}">{html.escape(self.alt)}</p>'
        encoded, tones = base64.b64encode(self.data).decode(), "" if self.photograph else f' style="{TONES}"'
        said = f'alt="{html.escape(self.alt, quote=True)}" lang="{self.language}"'
        return f'<img {said} src="data:{self.kind};base64,{encoded}"{tones}>'

    def _repr_html_(self) -> str:
        return self.html()


# ------------------------------------------------------------------------------------------------------------- words


def styled(draw: Callable[..., Picture]) -> Callable[..., Picture]:
    """Draw under the one style, whatever the notebook has set, and in the language of the option `words`."""

    @wraps(draw)
    def drawn(*arguments: Any, words: Messages | None = None, **options: Any) -> Picture:
        with speaking(words), matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.style.use(fonts.RULES)
            matplotlib.rcParams["font.family"] = fonts.families()
            return draw(*arguments, **options)

    return drawn


@contextmanager
def speaking(words: Messages | None) -> Iterator[None]:
    """Figures drawn here speak `words`, or go on in the language around them."""
    asked = words or _words()
    token = _speaking.set(asked if asked.language != "zh" or fonts.chinese() else _english())
    try:
        yield
    finally:
        _speaking.reset(token)


@lru_cache(maxsize=1)
def _english() -> Messages:
    """Instead of Chinese; said once."""
    warnings.warn(f"no font here has Chinese letters: figures speak English; {fonts.REMEDY}", stacklevel=2)
    return Messages("en")


def _words() -> Messages:
    return _speaking.get() or messages.words()


def said(key: str, **values: object) -> str:
    """The text `figure.<key>` with its placeholders filled in."""
    return _words()(f"figure.{key}").format(**values)


def counted(things: str, number: int) -> str:
    """So many of them, as the language has it: "1 box"."""
    return _words().count(things, number)


def listed(names: Sequence[str], by: str = "list") -> str:
    """Names one after the other, as the language has it."""
    return _words()(f"join.{by}").join(names)


def paired(pair: str) -> str:
    """What "published-torch" is called."""
    return _words().pair(pair)


def term(text: str) -> str:
    """A word of the records in this language, any other text as a name."""
    return written(_words().term(text))


def written(text: object, most: int = fonts.LONGEST) -> str:
    """A name in one line of at most `most` letters; a legend would leave out one that begins with a low line."""
    line = fonts.one_line(text, most)
    return f"\u200a{line}" if line.startswith("_") else line


def called(key: str) -> str:
    """What a side is called; anything else by its own name."""
    return _words()(f"side.{key}") if key in SIDES else written(key)


# ----------------------------------------------------------------------------------------------------------- figures


def canvas(
    rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches and its axes, always (rows, columns); pyplot, which keeps figures open, is not used."""
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def single(height: float = 3.6, width: float = 8.0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure, axes = canvas(size=(width, height))
    return figure, axes[0, 0]


def panels(count: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, row by row, in the last as many as are left; the lowest of a column have numbers."""
    figure, axes = canvas(-(-count // columns), columns, size, **options)
    for axis in axes.flat[count:]:
        axis.remove()
    for axis in axes.flat[max(0, count - columns) : count]:
        axis.tick_params(labelbottom=True)
    return figure, list(axes.flat[:count])


def picture(figure: Figure, alt: str, dense: bool = False, colours: int = 0) -> Picture:
    """SVG without a date, the same bytes every time; PNG for thousands of marks (`dense`; `colours`, if few do).

    The ground is the page's, but white around an image in colour, whose tones must not change.
    """
    buffer, form = io.BytesIO(), "png" if dense else "svg"
    coloured = any(np.ndim(image.get_array()) == 3 for axis in figure.axes for image in axis.images)
    figure.savefig(buffer, format=form, metadata={"Software" if dense else "Date": None}, transparent=not coloured)
    if colours and dense:
        drawn, buffer = Image.open(buffer), io.BytesIO()
        drawn.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    data = buffer.getvalue() if dense else _short(buffer.getvalue())
    return Picture(data, "image/png" if dense else "image/svg+xml", alt, _words().language, coloured)


def photographs(board: np.ndarray, alt: str) -> Picture:
    """(h, w, 3) uint8 RGB as JPEG, a quarter of the bytes of a PNG; full chroma, since thin coloured frames are what is
    looked at."""
    buffer = io.BytesIO()
    Image.fromarray(board).save(buffer, "jpeg", quality=75, subsampling=0)
    return Picture(buffer.getvalue(), "image/jpeg", alt, _words().language, photograph=True)


def nothing(key: str, **values: object) -> Picture:
    """Instead of an empty figure: the sentence that says what there is not."""
    return Picture(b"", "", said(key, **values), _words().language)


def _short(svg: bytes) -> bytes:
    """Half the bytes: no comments, no lines, coordinates of five digits (a hundredth of a point of 600), and the style
    of equal marks once, on the group that holds them."""
    svg = re.sub(rb"<!--.*?-->", b"", svg, flags=re.DOTALL)
    svg = re.sub(rb"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.5g}".encode(), svg)
    svg = re.sub(rb"\s*\n\s*", b"", re.sub(rb">\s+<", b"><", svg))
    marks = rb'<g([^>]*)>((?:<use [^>]*? (style="[^"]*")/>)(?:<use [^>]*? \3/>)+)</g>'
    return re.sub(marks, lambda own: b"<g%s %s>%s</g>" % (own[1], own[3], own[2].replace(b" " + own[3], b"")), svg)


# ------------------------------------------------------------------------------------------------------------- parts


def look(key: str, place: int = 0, marker: bool = True) -> dict[str, Any]:
    """The line of a side; of anything else by its place: no two of the first eight look alike, in colour or in grey."""
    colour, line, sign = (held[place % len(held)] for held in (SERIES, STROKES, SIGNS))
    drawn = {"color": COLOURS.get(key, colour), "linestyle": LINES.get(key, line)}
    return drawn | ({"marker": MARKERS.get(key, sign)} if marker else {})


def fill(key: str, place: int = 0) -> dict[str, Any]:
    """The bar of a side; of anything else by its place."""
    grey, hatch = ((QUIET, ""), (FAINT, "///"), ("white", ".."))[place % 3]
    edge = "white" if key in COLOURS else INK
    return {"color": COLOURS.get(key, grey), "hatch": HATCHES.get(key, hatch), "edgecolor": edge, "linewidth": 0.5}


def legend(figure: Any, axes: Sequence[Axes], columns: int, place: str = "outside upper center") -> None:
    """What the axes draw, each label once."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(found.values(), found.keys(), loc=place, ncols=columns)


def whole(axis: Any) -> None:
    """Ticks of an axis at whole numbers only."""
    axis.get_major_locator().set_params(integer=True)


def logarithmic(*axes: Axes, least: float = 1.0) -> None:
    """Powers of ten upwards, in axes that share their heights; errors of exactly zero stand on the lower edge, "0".

    least: the lower edge where nothing else is drawn.
    """
    lines = [line for axis in axes for line in axis.lines if line.get_transform() == axis.transData]
    heights = np.concatenate([np.asarray(line.get_ydata(), float) for line in lines] or [np.zeros(0)])
    heights = heights[np.isfinite(heights)]
    above, zero = heights[heights > 10 * LEAST], bool((heights <= 10 * LEAST).any())
    edge = 10.0 ** (math.floor(math.log10(above.min(initial=math.inf) if above.size else least)) - zero)
    for line in lines:
        line.set_ydata(np.maximum(np.asarray(line.get_ydata(), float), edge))
    for axis in axes:
        axis.set_yscale("log")
        axis.set_ylim(edge, max(100 * edge, 2 * above.max(initial=0.0)))
        decades(axis.yaxis, edge if zero else None)


def decades(axis: Any, zero: float | None = None) -> None:
    """Ticks 10⁻³ as letters, not as mathematics; that at `zero` is 0."""

    def label(value: float, _: int) -> str:
        return (
            "0" if zero and math.isclose(value, zero) else f"10{str(round(math.log10(value))).translate(SUPERSCRIPTS)}"
        )

    axis.set_major_formatter(label)
    axis.set_minor_formatter(NullFormatter())


def trace(axis: Axes, x: Sequence[float], y: Sequence[float], label: str | None = None, **line: Any) -> None:
    """A curve: where it has many points its running mean, over faint ones. A number that is none leaves a gap."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) >= MANY:
        mean = np.full(max(3, len(x) // WINDOWS), 1 / max(3, len(x) // WINDOWS))
        axis.plot(x, y, color=line["color"], alpha=0.25, linewidth=0.6)
        x, y, line = np.convolve(x, mean, "valid"), np.convolve(y, mean, "valid"), line | {"marker": None}
    axis.plot(x, y, label=label, **({"marker": "."} if len(x) < 3 else {}) | line)
