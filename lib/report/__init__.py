"""The report: records and their verdicts as one self-contained HTML file and a PDF. It computes nothing."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lib.record import atomic
from lib.report import pdf
from lib.report.messages import Messages
from lib.report.page import Page

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Rendered:
    """The files that were written, and what made the PDF."""

    html: Path
    pdf: Path
    printer: str


def render(
    records_folder: str | Path, out_folder: str | Path, profile: str, models: Sequence[str], language: str = "en"
) -> Rendered:
    """Write index.html and report.pdf of these models' verdicts (`questions.judge_records`) into `out_folder`.

    The HTML is complete even where no PDF can be made, which is a UserError that says how to get one.
    """
    words = Messages(language)
    out = Path(out_folder)
    # StrictUndefined: a key that no record fills is an error, not an empty place in the report.
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.get_template("report.html.j2")
    text = template.render(page=Page(records_folder, models, profile, words), t=words, css=(HERE / "report.css").read_text())
    with atomic(out / "index.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic(out / "report.pdf") as temporary:
        printer = pdf.write(out / "index.html", temporary)
    return Rendered(out / "index.html", out / "report.pdf", printer)
