"""The measured block of README.md, written from records: `python -m lib.report.readme reports/quick`."""

import sys
from pathlib import Path

from lib.errors import UserError
from lib.record import ROOT, Record, atomic, read

START, END = "<!-- measured: python -m lib.report.readme reports/quick -->", "<!-- /measured -->"
SIDES = {"torch": "PyTorch", "jittor": "Jittor"}
WORKS = {"forward": "inference", "train": "training step"}


def block(records: Path, model: str) -> str:
    """Markdown: where it was measured, the verdicts, what both frameworks reach, and what it costs."""
    held = {
        (side, stage): read(records / model / side / f"{stage}.json")
        for side in SIDES
        for stage in ("train", "evaluate", "speed")
    }
    verdicts = read(records / model / "none" / "compare.json")
    where = held["torch", "train"].provenance
    return "\n\n".join(
        [
            f"Measured on {where.started[:10]} at commit `{(where.git_commit or 'none')[:10]}`, {where.machine.cpu}, {where.machine.cores} cores, "
            f"{where.machine.memory_gib:.0f} GiB, without GPU; `{model}`, records of `{records.parent.name}`.",
            _verdicts(verdicts),
            _training(held),
            _speed(held),
        ]
    )


def _verdicts(compared: Record) -> str:
    pairs = ("published-torch", "published-jittor", "torch-jittor")
    found = {(v["question"], v["pair"]): v["verdict"] for v in compared.fields["verdicts"]}
    questions = dict.fromkeys(question for question, _ in found)
    rows = [
        [question.replace("_", " "), *(found.get((question, pair), "") for pair in pairs)] for question in questions
    ]
    return _table(["question", "published ↔ PyTorch", "published ↔ Jittor", "PyTorch ↔ Jittor"], rows)


def _training(held: dict[tuple[str, str], Record]) -> str:
    rows = []
    for side, name in SIDES.items():
        train, evaluate = held[side, "train"].fields, held[side, "evaluate"].fields
        rows.append(
            [
                name,
                train["steps"],
                f"{train['seconds']:.0f}",
                f"{train['curves']['loss'][0]:.2f} → {train['curves']['loss'][-1]:.2f}",
                f"{evaluate['own']['AP']:.3f}",
                f"{evaluate['own']['AP50']:.3f}",
                f"{evaluate['common']['AP']:.4f}",
            ]
        )
    return _table(
        ["built-in scenes", "steps", "training s", "loss", "AP", "AP50", "AP of the PyTorch-trained weights"], rows
    )


def _speed(held: dict[tuple[str, str], Record]) -> str:
    cases = {side: held[side, "speed"].fields["cases"] for side in SIDES}
    rows = []
    for torch, jittor in zip(cases["torch"], cases["jittor"], strict=True):
        rows.append(
            [
                f"{WORKS[torch['operation']]}, batch {torch['batch']}",
                f"{torch['synchronised_ms']['median']:.1f}",
                f"{jittor['synchronised_ms']['median']:.1f}",
                f"{jittor['ratio_to']['torch']['median']:.2f}",
                f"{jittor['unsynchronised_ms']['median']:.1f}",
                f"{torch['units']:.1f}",
                f"{jittor['units']:.1f}",
                f"{torch['memory']['peak_mib']:.0f}",
                f"{jittor['memory']['peak_mib']:.0f}",
            ]
        )
    return _table(
        [
            "synchronised medians",
            "PyTorch ms",
            "Jittor ms",
            "Jittor / PyTorch",
            "Jittor, clock not synchronised, ms",
            "PyTorch matmul units",
            "Jittor matmul units",
            "PyTorch peak MiB",
            "Jittor peak MiB",
        ],
        rows,
    )


def _table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write(report: Path, readme: Path = ROOT / "README.md") -> None:
    """Replace the block between the two marks; UserError where a mark or a record is missing."""
    text = readme.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise UserError(f"{readme}: the marks {START} and {END} are missing; restore them")
    models = sorted({path.parent.parent.name for path in (report / "records").glob("*/none/compare.json")})
    if not models:
        raise UserError(f"{report}: holds no verdicts; run `make report` first")
    body = "\n\n".join(block(report / "records", model) for model in models)
    with atomic(readme) as temporary:
        temporary.write_text(f"{text[: text.index(START)]}{START}\n{body}\n{text[text.index(END) :]}", encoding="utf-8")


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1] if len(sys.argv) > 1 else "reports/quick"))
    except UserError as error:
        sys.exit(f"error: {error}")
