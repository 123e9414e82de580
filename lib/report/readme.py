"""What git keeps of a report: the measured block of README.md, and one page as an example.

python -m lib.report.readme reports/quick                     writes the block
python -m lib.report.readme reports/quick reports/example     copies the page
"""

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lib.alignment.evidence import PAIRS
from lib.errors import UserError
from lib.record import ROOT, Record, atomic, read
from lib.report import verify

START, END = "<!-- measured: python -m lib.report.readme reports/quick -->", "<!-- /measured -->"
SIDES = {"published": "published", "torch": "PyTorch", "jittor": "Jittor"}
WORKS = {"forward": "inference", "train": "training step"}
PAGE = "index.html"
LIMIT = 2 * 2**20  # bytes of the example


def block(records: Path, model: str) -> str:
    """Markdown: where it was measured, the verdicts, what both frameworks reach, and what it costs."""
    sides = ("torch", "jittor")
    train, evaluate, speed = (
        {side: read(records / model / side / f"{stage}.json") for side in sides}
        for stage in ("train", "evaluate", "speed")
    )
    where = train["torch"].provenance
    return "\n\n".join(
        [
            f"Measured on {where.started[:10]} at commit `{(where.git_commit or 'none')[:10]}`, {where.machine.cpu}, "
            f"{where.machine.cores} cores, {where.machine.memory_gib:.0f} GiB, without GPU; `{model}`, records of "
            f"`{records.parent.name}`.",
            _table(_verdicts(read(records / model / "none" / "compare.json"))),
            _table([_training(SIDES[side], train[side].fields, evaluate[side].fields) for side in sides]),
            _table(list(map(_speed, *(speed[side].fields["cases"] for side in sides)))),
        ]
    )


def _verdicts(compared: Record) -> list[dict[str, str]]:
    found = {(v["question"], v["pair"]): v["verdict"] for v in compared.fields["verdicts"]}
    return [
        {"question": question.replace("_", " ")}
        | {f"{SIDES[a]} ↔ {SIDES[b]}": found.get((question, f"{a}-{b}"), "") for a, b in PAIRS}
        for question in dict.fromkeys(question for question, _ in found)
    ]


def _training(name: str, train: Mapping, evaluate: Mapping) -> dict[str, str]:
    return {
        "built-in scenes": name,
        "steps": str(train["steps"]),
        "training s": f"{train['seconds']:.0f}",
        "loss": f"{train['curves']['loss'][0]:.2f} → {train['curves']['loss'][-1]:.2f}",
        "AP": f"{evaluate['own']['AP']:.3f}",
        "AP50": f"{evaluate['own']['AP50']:.3f}",
        "AP of the PyTorch-trained weights": f"{evaluate['common']['AP']:.4f}",
    }


def _speed(torch: Mapping, jittor: Mapping) -> dict[str, str]:
    """One case of both frameworks."""
    return {
        "synchronised medians": f"{WORKS[torch['operation']]}, batch {torch['batch']}",
        "PyTorch ms": f"{torch['synchronised_ms']['median']:.1f}",
        "Jittor ms": f"{jittor['synchronised_ms']['median']:.1f}",
        "Jittor / PyTorch": f"{jittor['ratio_to']['torch']['median']:.2f}",
        "Jittor, clock not synchronised, ms": f"{jittor['unsynchronised_ms']['median']:.1f}",
        "PyTorch matmul units": f"{torch['units']:.1f}",
        "Jittor matmul units": f"{jittor['units']:.1f}",
        "PyTorch peak MiB": f"{torch['memory']['peak_mib']:.0f}",
        "Jittor peak MiB": f"{jittor['memory']['peak_mib']:.0f}",
    }


def _table(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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


def copy(report: Path, target: Path) -> None:
    """Replace `target` by the page of `report`, once its records say that it is theirs.

    The records, of tens of megabytes, stay behind: who wants to verify makes the report anew.
    """
    if wrong := [fault for one in verify.verify(report) for fault in one.faults]:
        raise UserError(f"{report}: not as recorded: {wrong[0]}; render it again")
    page = report / PAGE
    if page.stat().st_size > LIMIT:
        raise UserError(f"{page}: {page.stat().st_size} bytes are too many for git; make the example of fewer models")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        fresh = Path(temporary) / target.name
        fresh.mkdir()
        shutil.copy(page, fresh)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)


if __name__ == "__main__":
    try:
        report, *target = map(Path, sys.argv[1:] or ["reports/quick"])
        copy(report, target[0]) if target else write(report)
    except UserError as error:
        sys.exit(f"error: {error}")
