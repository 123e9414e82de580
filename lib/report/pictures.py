"""The figures of the report, drawn from records: each has a key, by which `lib.report.verify` has it drawn again."""

from collections.abc import Iterator
from typing import NamedTuple

from lib.alignment.evidence import Evidence
from lib.show import figures, figures_alignment, tables
from lib.show.figures import Picture

SAMPLES = 3  # images with detections that are shown: they are the largest part of a page


class Figure(NamedTuple):
    key: str  # "model/question/place"
    picture: Picture
    see: str  # key of the sentence that says what to look for


def draw(evidence: Evidence, question: str) -> tuple[Figure, ...]:
    """The figures of a question, as far as the records hold what they show."""
    drawn = enumerate(_DRAWN[question](evidence)) if question in _DRAWN else ()
    return tuple(Figure(f"{evidence.model}/{question}/{place}", picture, see) for place, (picture, see) in drawn)


def _rows(evidence: Evidence, question: str) -> dict[str, list[dict]]:
    """pair -> rows of its verdict."""
    columns = evidence.field("none", "compare", "columns")
    return {
        v["pair"]: [dict(zip(columns, row)) for row in v["rows"]]
        for v in evidence.field("none", "compare", "verdicts")
        if v["question"] == question and v["rows"]
    }


def _forward(evidence: Evidence) -> Iterator[tuple[Picture, str]]:
    if found := _rows(evidence, "forward"):
        side = next(side for side in ("torch", "jittor", "published") if evidence.get(side, "forward"))
        yield figures.forward_depth(found, evidence.field(side, "forward", "depth")), "forward_see"


def _gradients(evidence: Evidence) -> Iterator[tuple[Picture, str]]:
    if found := _rows(evidence, "gradients"):
        yield figures.gradient_errors(found), "gradients_see"


def _training(evidence: Evidence) -> Iterator[tuple[Picture, str]]:
    if sides := present(evidence, "train"):
        yield figures.loss_curves({side: evidence.field(side, "train", "curves") for side in sides}), "training_see"
        yield figures.map_curves({side: evidence.field(side, "train", "epochs") for side in sides}), "training_map_see"


def _evaluation(evidence: Evidence) -> Iterator[tuple[Picture, str]]:
    if sides := present(evidence, "evaluate"):
        held = {side: (evidence.get(side, "evaluate").fields, evidence.arrays(side, "evaluate")) for side in sides}
        yield (
            figures.detections(tables.samples(held, "common")[:SAMPLES], held[sides[0]][0]["classes"]),
            "evaluation_see",
        )


def _speed(evidence: Evidence) -> Iterator[tuple[Picture, str]]:
    if sides := present(evidence, "speed"):
        cases = {side: evidence.field(side, "speed", "cases") for side in sides}
        yield figures.speed(cases), "speed_see"
        yield figures.memory(cases), "memory_see"


def _divergence(evidence: Evidence) -> Iterator[tuple[Picture, str]]:
    if evidence.get("torch", "divergence") and evidence.get("jittor", "divergence"):
        yield figures_alignment.layers(evidence.get("jittor", "divergence").fields), "divergence_see"


def _trajectory(evidence: Evidence) -> Iterator[tuple[Picture, str]]:
    if evidence.get("torch", "lockstep") and evidence.get("jittor", "lockstep"):
        mine, other = (evidence.field(side, "lockstep", "curves") for side in ("torch", "jittor"))
        yield figures_alignment.band_of_controls(mine, {"Jittor": other["own"]["loss"]}), "trajectory_see"


_DRAWN = {
    "divergence": _divergence,
    "trajectory": _trajectory,
    "forward": _forward,
    "gradients": _gradients,
    "training": _training,
    "evaluation": _evaluation,
    "speed": _speed,
}


def present(evidence: Evidence, stage: str) -> list[str]:
    """The frameworks that have a record of the stage."""
    return [side for side in ("torch", "jittor") if evidence.get(side, stage)]
