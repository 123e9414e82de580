"""The exam drawn: which gate caught the faults of each class, and how far beyond it they lie."""

from collections.abc import Sequence

import numpy as np

from lib.alignment.exam.examination import Result
from lib.show.figures import COLOURS, HATCHES, Picture, canvas, picture, styled

# What became of a fault -> (whose look it borrows, label).
LOOKS = {
    "localised": ("torch", "localised"),
    "caught": ("jittor", "caught, another place named"),
    "survived": ("published", "survived"),
}
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
    figure, axes = canvas(size=(7.0, 0.34 * len(names) + 1.3))
    axis, left = axes[0, 0], np.zeros(len(names))
    for fate, (look, label) in LOOKS.items():
        counts = np.array([sum(result.kind == name and _fate(result) == fate for result in held) for name in names])
        axis.barh(names, counts, left=left, color=COLOURS[look], hatch=HATCHES[look], label=label)
        left += counts
    axis.set(xlabel="faults planted", xlim=(0, left.max(initial=0) * 1.05 + 1))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.invert_yaxis()
    figure.legend(loc="outside upper right", ncols=3)
    total = ", ".join(
        f"{label} {sum(_fate(r) == fate for r in held if r.kind != 'clean')}" for fate, (_, label) in LOOKS.items()
    )
    return picture(figure, f"Faults planted by class: {total}.")


@styled
def beyond(held: Sequence[Result], kind: str) -> Picture:
    """The faults of one class: the gate that caught each, and how many times its gate the error is there."""
    own = [result for result in held if result.kind == kind]
    figure, axes = canvas(size=(8.0, 0.34 * len(own) + 1.2))
    axis = axes[0, 0]
    finite = [result.ratio for result in own if np.isfinite(result.ratio) and result.ratio > 0]
    most = 30 * max(finite, default=1.0)
    for place, result in enumerate(own):
        measured = np.isfinite(result.ratio)
        end, colour = result.ratio if measured else most, COLOURS[LOOKS[_fate(result)][0]]
        axis.plot([1, end], [place, place], color=colour, linestyle="-" if measured else ":")
        axis.plot(
            [end],
            [place],
            color=colour,
            linestyle="",
            marker=MARKERS[_fate(result)] if measured else ">",
            markerfacecolor=colour if result.caught else "white",
        )
        said = (result.gate if result.caught else "through all gates") + ("" if measured else ", must be equal")
        axis.annotate(f"  {said}", (end, place), fontsize=7, verticalalignment="center")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(own)), [result.name for result in own])
    axis.set(xscale="log", xlabel="error over gate (1: the gate)", title=kind)
    axis.set_xlim(min([0.1, *finite]) / 2, most**1.6 if most > 30 else 1e4)
    axis.invert_yaxis()
    return picture(figure, f"{kind}: " + "; ".join(f"{r.name}, {r.gate}" for r in own) + ".")
