"""What git keeps of a report: the measured block of README.md, and one page as an example.

python -m lib.report.readme reports/quick                     writes the block
python -m lib.report.readme reports/quick reports/example     copies the page and its records, without their arrays
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

from lib.alignment.evidence import PAIRS
from lib.errors import UserError
from lib.record import ROOT, atomic, read
from lib.report import verify
from lib.report.fragments import fill

START, END = "<!-- measured: python -m lib.report.readme reports/quick -->", "<!-- /measured -->"
PAGE = "index.html"
LIMIT = 2 * 2**20  # bytes of the example


def block(records: Path, model: str) -> str:
    """Markdown: where it was measured, the verdicts, what both frameworks reach, and what it costs."""
    held = {
        stage: {side: read(records / model / side / f"{stage}.json") for side in ("torch", "jittor")}
        for stage in ("train", "evaluate", "speed")
    }
    compared = read(records / model / "none" / "compare.json").fields["verdicts"]
    verdicts = {(one["question"], one["pair"]): one["verdict"] for one in compared}
    questions = dict.fromkeys(question for question, _ in verdicts)
    asked = {(question, f"{a}-{b}"): "" for question in questions for a, b in PAIRS} | verdicts
    said = {"model": model, "report": records.parent.name, "verdicts": asked, "questions": questions}
    return fill("readme.md.j2", **said, **held).strip()


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
    """Replace `target` by the page of `report` and the records behind it, once they say that the page is theirs.

    Arrays, of hundreds of megabytes, stay behind, and so do the executed notebooks with the links to them.
    """
    if wrong := [fault for one in verify.verify(report) for fault in one.faults]:
        raise UserError(f"{report}: not as recorded: {wrong[0]}; render it again")
    page = report / PAGE
    if page.stat().st_size > LIMIT:
        raise UserError(f"{page}: {page.stat().st_size} bytes are too many for git; make the example of fewer models")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        fresh = Path(temporary) / target.name
        shutil.copytree(report / "records", fresh / "records", ignore=shutil.ignore_patterns("*.safetensors"))
        text = re.sub(r'<p class="quiet links">.*?</p>', "", page.read_text(encoding="utf-8"), flags=re.S)
        (fresh / PAGE).write_text(text, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)


if __name__ == "__main__":
    try:
        report, *target = map(Path, sys.argv[1:] or ["reports/quick"])
        copy(report, target[0]) if target else write(report)
    except UserError as error:
        sys.exit(f"error: {error}")
