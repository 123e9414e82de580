"""The exam drawn: which gate caught the faults of each class, and how far beyond it they lie."""

from collections.abc import Sequence

import numpy as np

from lib.show import style
from lib.show.style import Picture, picture, said, styled
from notebooks.exam.examination import Result

# What became of a fault -> whose look it borrows.
LOOKS = {"localised": "torch", "caught": "jittor", "survived": "published"}
MARKERS = {"localised": "o", "caught": "s", "survived": "o"}  # the last one empty


def _fate(result: Result) -> str:
    return "localised" if result.localised and result.caught else "caught" if result.caught else "survived"


def kinds(held: Sequence[Result]) -> list[str]:
    """The classes of faults in the catalogue's order."""
    return list(dict.fromkeys(result.kind for result in held if result.kind != "clean"))


@styled
def classes(held: Sequence[Result]) -> Picture:
    """Faults of each class by what became of them."""
    names = kinds(held)
    figure, axis = style.single(0.34 * len(names) + 1.3, 7.0)
    left = np.zeros(len(names))
    for fate, look in LOOKS.items():
        counts = np.array([sum(result.kind == kind and _fate(result) == fate for result in held) for kind in names])
        label = said(f"exam.{fate}", faults=counts.sum())
        axis.barh(
            range(len(names)), counts, left=left, color=style.COLOURS[look], hatch=style.HATCHES[look], label=label
        )
        left += counts
    axis.set_yticks(range(len(names)), [style.term(kind) for kind in names])
    axis.set(xlabel=said("exam.planted"), xlim=(0, left.max(initial=0) * 1.05 + 1))
    style.whole(axis.xaxis)
    axis.invert_yaxis()
    style.legend(figure, [axis], 3)
    return picture(figure, said("exam.alt"))


@styled
def beyond(held: Sequence[Result], kind: str) -> Picture:
    """The faults of one class: the gate that caught each, and how many times its gate the error is there."""
    own = [result for result in held if result.kind == kind]
    figure, axis = style.single(0.34 * len(own) + 1.2)
    finite = [result.ratio for result in own if np.isfinite(result.ratio) and result.ratio > 0]
    most = 30 * max(finite, default=1.0)
    least = min([0.1, *finite]) / 2
    for place, result in enumerate(own):
        measured = np.isfinite(result.ratio)
        end, colour = max(result.ratio, least) if measured else most, style.COLOURS[LOOKS[_fate(result)]]
        axis.plot([1, end], [place, place], color=colour, linestyle="-" if measured else ":")
        sign = {
            "marker": MARKERS[_fate(result)] if measured else ">",
            "markerfacecolor": colour if result.caught else "white",
        }
        axis.plot([end], [place], color=colour, linestyle="", **sign)
        gate = style.term(result.gate) if result.caught else said("exam.through")
        told = gate if measured else said("exam.equal", gate=gate)
        axis.annotate(f"  {told}", (end, place), fontsize=7, verticalalignment="center")
    axis.axvline(1, color=style.INK, linewidth=0.8)
    axis.set_yticks(range(len(own)), [style.written(result.name) for result in own])
    axis.set(xscale="log", xlabel=said("exam.ratio"), title=style.term(kind))
    axis.set_xlim(least, most**1.6 if most > 30 else 1e4)
    style.decades(axis.xaxis)
    axis.invert_yaxis()
    return picture(
        figure, said("exam.beyond.alt", kind=style.term(kind), faults=", ".join(result.name for result in own))
    )
