"""Parts of a page, each for one cell of a notebook: a template of this room, filled in.

A fragment brings no style of its own but for the first, so that JupyterLab shows it as the page does.
"""

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from lib.report.bound import Bound, anchor, badge_class

TEMPLATES = Path(__file__).parent / "templates"
STYLE = TEMPLATES / "fragments.css"


@dataclass(frozen=True)
class Fragment:
    """What a cell shows; empty where there is nothing to show, and then its text is left out of the page as well."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Fragment of {len(self.html)} characters"


def fragment(template: str, **values: Any) -> Fragment:
    return Fragment(fill(template, **values))


def fill(template: str, **values: Any) -> str:
    """A template with its values; one that is missing is an error, not an empty place in the report."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"badge_class": badge_class, "anchor": anchor, "sheet": sheet, "numeric": numeric}
    environment.globals["style"] = Markup(STYLE.read_text(encoding="utf-8"))
    return environment


def numeric(rows: Sequence[Sequence[Any]]) -> list[int]:
    """The columns that hold numbers alone, which may be infinite: they end at one edge."""
    cells = [[cell for cell in column if isinstance(cell, Bound)] for column in zip(*rows)]
    return [
        place for place, held in enumerate(cells) if held and all(cell.is_number or "Infinity" in cell for cell in held)
    ]


def sheet(table: str) -> str:
    """The link that holds a table (HTML) as CSV: numbers in full, texts as they are read."""
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\n")
    for row in re.findall(r"<tr[ >].*?</tr>", table, re.S):
        lines.writerow(map(_plain, re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", row, re.S)))
    return f"data:text/csv;charset=utf-8,{quote(written.getvalue())}"


def _plain(cell: str) -> str:
    found = re.search(r'<data [^>]*?value="([^"]*)"', cell)
    return html.unescape(found[1]) if found else Markup(cell.replace("<wbr>", "").replace("<wbr/>", "")).striptags()
