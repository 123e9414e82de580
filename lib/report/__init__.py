"""The report: records and their verdicts as one self-contained HTML file and a PDF. It computes nothing.

Here belongs what ties a page to the records and checks that it says what they say; not what measures, judges or draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from lib.record import atomic
from lib.report import beside, pdf
from lib.report.bound import anchor, badge_class
from lib.report.page import Page
from lib.show.messages import Messages

ORIGIN = (
    "started",
    "wall_seconds",
    "peak_rss_mib",
    "threads",
    "wait_policy",
    "seed",
    "device",
    "git_commit",
    "command",
)
TEMPLATES = Path(__file__).parent / "templates"


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
    page = Page(records_folder, out_folder, models, profile, Messages(language))
    return write(Path(out_folder), "index.html", "report.pdf", "report.html.j2", page)


def fill(template: str, **values: Any) -> str:
    """A template of this room with its values; one that is missing is an error, not an empty place in the report."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"badge_class": badge_class, "anchor": anchor}
    return environment.get_template(template).render(values)


def write(out: Path, html: str, printed: str, template: str, page: Any) -> Rendered:
    """Fill a template with a page, which has its `words`, and print it."""
    css, software = (TEMPLATES / "report.css").read_text(), beside.software(page.records, page.words)
    text = fill(template, page=page, t=page.words, css=css, origin=ORIGIN, software=software)
    with atomic(out / html) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic(out / printed) as temporary:
        printer = pdf.write(out / html, temporary)
    return Rendered(out / html, out / printed, printer)
