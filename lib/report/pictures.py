"""The figures of the report, drawn from records: each has a key, by which `lib.report.verify` has it drawn again."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lib.alignment import equivalence
from lib.alignment.evidence import Evidence
from lib.machine.notebook import BOTH
from lib.show import figures, figures_alignment, figures_evaluation, tables
from lib.show.messages import Messages
from lib.show.style import Picture, speaking


class Figure(NamedTuple):
    key: str  # "model/question/place"
    picture: Picture
    see: str  # key of the sentence that says what to look for


Drawn = Iterator[tuple[Picture, str]]


def draw(evidence: Evidence, question: str, words: Messages | None = None) -> tuple[Figure, ...]:
    """The figures of a question, as far as the records hold what they show, in the language of `words` or the shell."""
    with speaking(words):
        drawn = [one for one in _DRAWN[question](evidence) if one[0].data] if question in _DRAWN else []
    return tuple(
        Figure(f"{evidence.model}/{question}/{place}", picture, f"question.{see or question + '.see'}")
        for place, (picture, see) in enumerate(drawn)
    )


def _rows(evidence: Evidence, question: str) -> dict[str, list[dict]]:
    """pair -> rows of its verdict."""
    columns = evidence.field("none", "compare", "columns")
    return {
        v["pair"]: [dict(zip(columns, row)) for row in v["rows"]]
        for v in evidence.field("none", "compare", "verdicts")
        if v["question"] == question and v["rows"]
    }


def _fields(evidence: Evidence, stage: str, *keys: str) -> dict:
    """What each framework's record of a stage holds there, of those that have one."""
    return {side: evidence.field(side, stage, *keys) for side in BOTH if evidence.get(side, stage)}


def _forward(evidence: Evidence) -> Drawn:
    if found := _rows(evidence, "forward"):
        side = next(side for side in (*BOTH, "published") if evidence.get(side, "forward"))
        yield figures.forward_depth(found, evidence.field(side, "forward", "depth")), ""


def _gradients(evidence: Evidence) -> Drawn:
    if found := _rows(evidence, "gradients"):
        yield figures.gradient_errors(found), ""


def _training(evidence: Evidence) -> Drawn:
    if curves := _fields(evidence, "train", "curves"):
        yield figures.loss_curves(curves), ""
        yield figures.map_curves(_fields(evidence, "train", "epochs")), "training.see.map"


def _evaluation(evidence: Evidence) -> Drawn:
    if held := _fields(evidence, "evaluate"):
        sides = {side: (one, evidence.arrays(side, "evaluate")) for side, one in held.items()}
        samples = tables.samples(sides, "common")
        yield figures.detections(samples, next(iter(held.values()))["classes"]), ""


def _equivalence(evidence: Evidence) -> Drawn:
    """How good the detectors are that each side trained itself."""
    precisions = {
        side: equivalence.precision(equivalence.restored(evidence.arrays(side, "evaluate", "matches/own/"), images))
        for side, images in _fields(evidence, "evaluate", "images").items()
    }
    if precisions:
        names = evidence.field(next(iter(precisions)), "evaluate", "classes")
        yield figures_evaluation.sides(names, precisions), ""
        yield figures_evaluation.averages(names, precisions), "equivalence.see.classes"


def _speed(evidence: Evidence) -> Drawn:
    if cases := _fields(evidence, "speed", "cases"):
        yield figures.speed(cases), ""
        yield figures.memory(cases), "speed.see.memory"


def _divergence(evidence: Evidence) -> Drawn:
    if len(held := _fields(evidence, "divergence")) == len(BOTH):
        yield figures_alignment.layers(held["jittor"]), ""


def _trajectory(evidence: Evidence) -> Drawn:
    if len(held := _fields(evidence, "lockstep", "curves")) == len(BOTH):
        yield figures_alignment.band_of_controls(held["torch"], {"jittor": held["jittor"]["own"]["loss"]}), ""


_DRAWN: dict[str, Callable[[Evidence], Drawn]] = {
    "divergence": _divergence,
    "trajectory": _trajectory,
    "forward": _forward,
    "gradients": _gradients,
    "training": _training,
    "evaluation": _evaluation,
    "equivalence": _equivalence,
    "speed": _speed,
}
