"""The report: records and their verdicts as one self-contained HTML file and a PDF. It computes nothing.

A notebook is executed, its cells show parts of a page bound to records, and nbconvert makes the page of it. Here
belongs what ties a page to the records and checks that it says what they say; not what measures, judges or draws.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.errors import UserError
from lib.machine import notebook
from lib.record import ROOT, atomic
from lib.report import pdf

if TYPE_CHECKING:
    from nbconvert.exporters import HTMLExporter

TEMPLATES = Path(__file__).parent / "templates"
PAGES = {"90_compare": ("index.html", "report.pdf"), "95_handin": ("handin.html", "handin.pdf")}


@dataclass(frozen=True)
class Rendered:
    """The files that were written, what made the PDF, and what the notebook's last cell raised: a verdict FAIL."""

    html: Path
    pdf: Path
    printer: str
    failure: UserError | None


def make(name: str, values: Mapping[str, Any]) -> Rendered:
    """Execute 90_compare or 95_handin with these parameters; write the page that it is, and its PDF.

    A verdict FAIL stops the notebook at its last cell, not the page. The HTML is complete even where no PDF can be
    made, which is a UserError that says how to get one.
    """
    folder, source = Path(values["report"]), Path(os.path.relpath(ROOT / "notebooks" / f"{name}.ipynb"))
    os.environ.setdefault("RECORD_COMMAND", shlex.join(sys.orig_argv))  # of what is judged: the kernel can't know it
    executed, failure = folder / "notebooks" / "all" / "none" / f"{name}.ipynb", None
    notebook.failed_copy(executed).unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as beside:  # the kernel is another process: a second core would have nothing to do
        others = beside.submit(render_notebooks, folder, values["language"])
        try:
            notebook.execute(source, executed, "torch", values)
        except UserError as error:
            executed, failure = notebook.failed_copy(executed), error
            all_but_the_last = executed.is_file() and notebook.cells(executed)[-1]["execution_count"] is not None
            if isinstance(error, notebook.ProcessDied) or not all_but_the_last:
                raise
    page, printed = (folder / file for file in PAGES[name])
    render(executed, page, "report", values["language"])
    with atomic(printed) as temporary:
        printer = pdf.write(page, temporary)
    others.result()  # another page that fails takes nothing from this one
    return Rendered(page, printed, printer, failure)


def render_notebooks(folder: Path, language: str) -> None:
    """Write a page beside every other notebook that a report executed; what is there already costs nothing."""
    for executed in sorted(folder.glob("notebooks/*/*/[0-9]*.ipynb")):
        if executed.stem not in PAGES and not executed.stem.endswith(".failed"):
            render(executed, executed.with_suffix(".html"), "notebook", language)


def render(executed: Path, page: Path, template: str, language: str) -> None:
    """What `jupyter nbconvert --to html --template lib/report/templates/<template>` makes of a notebook, in this
    language where the notebook was executed in none; nothing to do where that is there already."""
    sources = [executed, *TEMPLATES.glob("notebook/*"), *TEMPLATES.glob("report/*")]
    fresh = page.is_file() and page.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in sources)
    if fresh and f'lang="{language}"' in page.read_text(encoding="utf-8")[:100]:
        return
    from nbformat import v4

    try:
        held = v4.reads(executed.read_text(encoding="utf-8"))  # unchecked: papermill wrote it
    except (ValueError, AttributeError) as error:  # no JSON, or none of a notebook
        raise UserError(f"{executed}: damaged ({error}): remove it, and its job runs again") from error
    text, _ = _exporter(template).from_notebook_node(held, {"language": language, "home": "../../../index.html"})
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


@cache
def _exporter(template: str) -> "HTMLExporter":
    from nbconvert.exporters import HTMLExporter

    return HTMLExporter(template_name=f"lib/report/templates/{template}", extra_template_basedirs=[str(ROOT)])
