"""The questions of the alignment report; each answers one pair of sides from their records.

Here belongs what is asked of which record and what becomes of the answer. No model runs here, and no row is judged by a
rule of its own: those of tensors are `rows`, those of decisions `decisions`, of numbers `verdict`.

Pairs with the published side: error against its float64 numbers <= K x its own float32 error. Where it gives statistics
instead of a tensor, the gate follows from the tensor's: |norm(a) - norm(b)| <= norm(a - b), and a mean deviates by at
most norm(a - b) / sqrt(n). Pair torch-jittor: difference <= K x PyTorch's own float32 deviation from float64.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from lib.alignment import references, rosetta
from lib.alignment.evidence import PAIRS, SIDES, Evidence
from lib.alignment.questions import admission, inference, learning
from lib.alignment.questions.pair import Pair
from lib.alignment.verdict import TARGETS, Answer, K, Verdict, target_status
from lib.errors import UserError
from lib.record import ArraysMissing, Record, measure, read

COLUMNS = ("name", "what", "error", "floor", "gate", "ratio", "scale", "passed", "note", "target")
# What is asked, in the order of the report: question -> (stage its records come from, whether published has it, how).
QUESTIONS: dict[str, tuple[str, bool, Callable[[Pair], Answer]]] = {
    "structure": ("convert", True, inference.structure),
    "conversion": ("convert", True, inference.conversion),
    "recipe": ("convert", True, learning.recipe),
    "initialisation": ("lockstep", False, inference.initialisation),
    "data": ("lockstep", False, learning.data),
    "forward": ("forward", True, inference.forward),
    "divergence": ("divergence", False, inference.divergence),
    "operators": ("operators", False, inference.operators),
    "poison": ("operators", False, inference.poison),
    "losses": ("loss", True, learning.losses),
    "assignment": ("loss", True, learning.assignment),
    "gradients": ("loss", True, learning.gradients),
    "step": ("loss", True, learning.step),
    "batch_norm": ("loss", True, learning.batch_norm),
    "lockstep": ("lockstep", False, learning.lockstep),
    "trajectory": ("lockstep", False, learning.trajectory),
    "training": ("train", False, learning.training),
    "evaluation": ("evaluate", False, inference.evaluation),
    "equivalence": ("evaluate", False, inference.equivalence),
    "speed": ("speed", True, inference.speed),
}

ON_REQUEST = ("operators",)  # stages that most profiles leave out


def ask(question: str, evidence: Evidence, a: str, b: str) -> Answer:
    """The answer to one question about sides whose records are there."""
    stage, _, how = QUESTIONS[question]
    return how(Pair(evidence, question, stage, a, b))


def asked(evidence: Evidence, question: str, a: str, b: str) -> bool:
    """Whether a pair of sides has to answer: always, but for what most profiles leave out, where neither ran it."""
    stage = QUESTIONS[question][0]
    return stage not in ON_REQUEST or any(evidence.get(side, stage) for side in (a, b))


def answers(evidence: Evidence, partial: bool = False) -> list[Answer]:
    """One answer per question and pair that can have one; NOT RUN where a record is missing.

    partial: without those whose records came without their arrays, which is a UserError else.
    """
    refused = cache(admission.refused)
    # A port that a user brings has no published numbers to miss.
    known = references.module(evidence.model) is not None or any(
        evidence.get("published", stage) for stage, *_ in QUESTIONS.values()
    )
    found = []
    for question, (stage, has_published, how) in QUESTIONS.items():
        for a, b in (sides for sides in PAIRS if "published" not in sides or (has_published and known)):
            pair = Pair(evidence, question, stage, a, b)
            missing = [evidence.run_id(side, stage) for side in (a, b) if evidence.get(side, stage) is None]
            if not missing and not pair.holds(question):
                missing = [question]
            if not asked(evidence, question, a, b):
                continue
            if missing:
                values = {"missing": ", ".join(missing)}
                found.append(Answer(question, f"{a}-{b}", Verdict.NOT_RUN, "no_record", values))
                continue
            try:
                refusal = refused(evidence, stage, a, b)
                found.append(pair.answer(*refusal) if refusal else admission.held_up(how(pair)))
            except ArraysMissing:
                if not partial:
                    raise
            except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                said = f"{' and '.join(pair.sources)}: not what the stage writes ({type(error).__name__}: {error})"
                raise UserError(f"{said}; run it again") from error
    return found


def judge_records(folder: str | Path, models: Iterable[str], golden: Path = references.GOLDEN) -> list[Record]:
    """Write the published side's records of each model, answer all questions, and save the verdicts as records.

    Returns these, `<model>/none/compare`; `all/none/rosetta` counts the verdicts on the probes, where they have run.
    """
    rosetta.count(folder)
    return [_judge_model(Path(folder), model, golden) for model in models]


def _judge_model(folder: Path, model: str, golden: Path) -> Record:
    references.write(folder, model, golden)
    inputs = sorted(path for side in SIDES for path in (folder / model / side).glob("*.json"))
    with measure("compare", model, folder, inputs=inputs) as measurement:
        measurement.fields |= {"k": K, "columns": list(COLUMNS)}
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
            [r.name, r.what, r.error, r.floor, r.gate, r.ratio, r.scale, r.passed, r.note, status]
            for r, status in zip(answer.rows, statuses)
        ],
    }
