"""The figures of the report, drawn from records: each has a key, by which `lib.report.verify` has it drawn again."""

from collections.abc import Iterator
from typing import NamedTuple

from lib.alignment.equivalence import precision, restored
from lib.alignment.evidence import Evidence
from lib.machine.notebook import BOTH
from lib.show import figures, figures_alignment, figures_evaluation, tables
from lib.show.messages import Messages
from lib.show.style import Picture, speaking


class Figure(NamedTuple):
    key: str  # "model/question/place"
    picture: Picture
    see: str  # key of the sentence that says what to look for


QUESTIONS = ("divergence", "trajectory", "forward", "gradients", "training", "evaluation", "equivalence", "speed")


def draw(evidence: Evidence, question: str, words: Messages | None = None) -> tuple[Figure, ...]:
    """The figures of a question, as far as the records hold what they show, in the language of `words` or the shell."""
    with speaking(words):
        drawn = [(see, picture) for see, picture in _drawn(evidence, question) if picture.data]
    return tuple(
        Figure(f"{evidence.model}/{question}/{place}", picture, f"question.{question}.{see}")
        for place, (see, picture) in enumerate(drawn)
    )


def _drawn(evidence: Evidence, question: str) -> Iterator[tuple[str, Picture]]:
    """Each with the last part of the key of what to look for."""
    if question == "forward" and (found := _rows(evidence, "forward")):
        side = next(side for side in (*BOTH, "published") if evidence.get(side, "forward"))
        yield "see", figures.forward_depth(found, evidence.field(side, "forward", "depth"))
    elif question == "gradients" and (found := _rows(evidence, "gradients")):
        yield "see", figures.gradient_errors(found)
    elif question == "training" and (curves := _fields(evidence, "train", "curves")):
        yield "see", figures.loss_curves(curves)
        yield "see.map", figures.map_curves(_fields(evidence, "train", "epochs"))
    elif question == "evaluation" and (held := _fields(evidence, "evaluate")):
        sides = {side: (one, evidence.arrays(side, "evaluate")) for side, one in held.items()}
        yield "see", figures.detections(tables.samples(sides, "common"), next(iter(held.values()))["classes"])
    elif question == "equivalence" and (images := _fields(evidence, "evaluate", "images")):
        matches = {side: evidence.arrays(side, "evaluate", "matches/own/") for side in images}  # trained by each side
        found = {side: precision(restored(own, images[side])) for side, own in matches.items()}
        names = evidence.field(next(iter(images)), "evaluate", "classes")
        yield "see", figures_evaluation.sides(names, found)
        yield "see.classes", figures_evaluation.averages(names, found)
    elif question == "speed" and (cases := _fields(evidence, "speed", "cases")):
        yield "see", figures.speed(cases)
        yield "see.memory", figures.memory(cases)
    elif question == "divergence" and len(held := _fields(evidence, "divergence")) == len(BOTH):
        yield "see", figures_alignment.layers(held["jittor"])
    elif question == "trajectory" and len(held := _fields(evidence, "lockstep", "curves")) == len(BOTH):
        runs = {"jittor": held["jittor"]["own"]["loss"]}
        yield "see", figures_alignment.band_of_controls(held["torch"], runs)


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
