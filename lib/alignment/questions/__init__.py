"""The questions of the alignment report; each answers one pair of sides from their records.

Here belongs what is asked of which record and what becomes of the answer. No model runs here, and no row is judged by a
rule of its own: those of tensors are `gate`'s, which `rows` asks, those of decisions `decisions`, of numbers `verdict`.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lib.alignment import references
from lib.alignment.evidence import PAIRS, REFERENCE, SIDES, Evidence
from lib.alignment.gate import SHARP, C, R
from lib.alignment.questions import admission, inference, learning
from lib.alignment.questions.pair import Pair
from lib.alignment.verdict import TARGETS, Answer, K, Verdict, target_status
from lib.errors import UserError
from lib.record import ArraysMissing, Record, measure, read

COLUMNS = ("name", "what", "error", "reach", "gate", "ratio", "scale", "passed", "note", "target")


@dataclass(frozen=True)
class Question:
    """Its theme in the report, the stage of its records, the notebooks that make these, and how it is answered.

    published: whether the published side has it; on_request: whether most profiles leave it out.
    """

    theme: str
    stage: str
    notebooks: tuple[str, ...]
    how: Callable[[Pair], Answer]
    published: bool = False
    on_request: bool = False


CONVERT, LOSS, LOCKSTEP = ("40_convert",), ("51_loss_and_gradient",), ("61_lockstep",)
# What is asked, in the order of the report.
QUESTIONS: dict[str, Question] = {
    "structure": Question("parts", "convert", CONVERT, inference.structure, published=True),
    "conversion": Question("parts", "convert", CONVERT, inference.conversion, published=True),
    "recipe": Question("parts", "convert", CONVERT, learning.recipe, published=True),
    "initialisation": Question("parts", "convert", CONVERT, inference.initialisation, published=True),
    "data": Question("parts", "lockstep", ("10_data", *LOCKSTEP), learning.data),
    "forward": Question("answers", "forward", ("50_forward",), inference.forward, published=True),
    "divergence": Question("answers", "divergence", ("52_divergence",), inference.divergence),
    "operators": Question("answers", "operators", ("53_operators",), inference.operators, on_request=True),
    "poison": Question("answers", "operators", ("53_operators",), inference.poison, on_request=True),
    "losses": Question("learning", "loss", LOSS, learning.losses, published=True),
    "assignment": Question("learning", "loss", LOSS, learning.assignment, published=True),
    "gradients": Question("learning", "loss", LOSS, learning.gradients, published=True),
    "step": Question("learning", "loss", LOSS, learning.step, published=True),
    "batch_norm": Question("learning", "loss", LOSS, learning.batch_norm, published=True),
    "lockstep": Question("learning", "lockstep", LOCKSTEP, learning.lockstep),
    "schedule": Question("learning", "train", ("60_train",), learning.schedule),
    "trajectory": Question("result", "lockstep", LOCKSTEP, learning.trajectory),
    "training": Question("result", "train", ("60_train",), learning.training),
    "evaluation": Question("result", "evaluate", ("70_evaluate",), inference.evaluation),
    "equivalence": Question("result", "evaluate", ("70_evaluate",), inference.equivalence),
    "speed": Question("cost", "speed", ("80_speed",), inference.speed, published=True),
}
# Judged by the reach, which PyTorch's record holds, whatever the pair.
GATED = (*admission.MOVED, "step")


def ask(question: str, evidence: Evidence, a: str, b: str) -> Answer:
    """The answer to one question about sides whose records are there."""
    return QUESTIONS[question].how(Pair(evidence, question, QUESTIONS[question].stage, a, b))


def asked(evidence: Evidence, question: str, a: str, b: str) -> bool:
    """Whether a pair of sides has to answer: always, but for what most profiles leave out, where neither ran it."""
    one = QUESTIONS[question]
    return not one.on_request or any(evidence.get(side, one.stage) for side in (a, b))


def answers(evidence: Evidence, partial: bool = False) -> list[Answer]:
    """One answer per question and pair that can have one; NOT RUN where a record is missing.

    partial: without those whose records came without their arrays, which is a UserError else.
    """
    refused = cache(admission.refused)
    # A port that a user brings has no published numbers to miss.
    known = references.module(evidence.model) is not None or any(
        evidence.get("published", one.stage) for one in QUESTIONS.values()
    )
    found = []
    for question, one in QUESTIONS.items():
        stage = one.stage
        for a, b in (sides for sides in PAIRS if "published" not in sides or (one.published and known)):
            pair = Pair(evidence, question, stage, a, b)
            if not asked(evidence, question, a, b):
                continue
            needed = dict.fromkeys((a, b, REFERENCE) if question in GATED else (a, b))
            missing = [evidence.run_id(side, stage) for side in needed if evidence.get(side, stage) is None]
            if not missing and not pair.holds(question):
                missing = [question]
            if missing:
                values = {"missing": ", ".join(missing)}
                found.append(Answer(question, f"{a}-{b}", Verdict.NOT_RUN, "no_record", values))
                continue
            try:
                refusal = refused(evidence, stage, a, b)
                found.append(pair.answer(*refusal) if refusal else admission.held_up(one.how(pair)))
            except ArraysMissing:
                if not partial:
                    raise
            except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                said = f"{' and '.join(pair.sources)}: not what the stage writes ({type(error).__name__}: {error})"
                raise UserError(f"{said}; run it again") from error
    return found


def judge_records(folder: str | Path, models: Iterable[str], golden: Path = references.GOLDEN) -> list[Record]:
    """Write the published side's records of each model, answer all questions, and save the verdicts as records.

    Returns these, `<model>/none/compare`.
    """
    return [_judge_model(Path(folder), model, golden) for model in models]


def _judge_model(folder: Path, model: str, golden: Path) -> Record:
    references.write(folder, model, golden)
    inputs = sorted(path for side in SIDES for path in (folder / model / side).glob("*.json"))
    with measure("compare", model, folder, inputs=inputs) as measurement:
        measurement.fields |= {"k": K, "c": C, "sharper": 1 / SHARP, "runs": R, "columns": list(COLUMNS)}
        measurement.fields["verdicts"] = [plain(answer) for answer in answers(Evidence(folder, model))]
    return read(measurement.path)


def plain(answer: Answer) -> dict[str, Any]:
    """The answer as JSON: rows as lists under COLUMNS, with the status of the quoted target where there is one."""
    target = TARGETS.get(answer.question)
    statuses = [target_status(row, target) if target and row.scale else None for row in answer.rows]
    return {
        "question": answer.question,
        "pair": answer.pair,
        "verdict": answer.verdict.value,
        "reason": answer.reason,
        "values": answer.values,
        "target": target,
        "targets": dict(Counter(status for status in statuses if status)),
        "sources": answer.sources,
        "notes": answer.notes,
        "numbers": [asdict(number) for number in answer.numbers],
        "rows": [
            [r.name, r.what, r.error, r.reach, r.gate, r.ratio, r.scale, r.passed, r.note, status]
            for r, status in zip(answer.rows, statuses)
        ],
    }
