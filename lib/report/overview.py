"""The page of many reports: of each its verdict and a few numbers, bound to that report's records, and a link to it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from lib.errors import UserError
from lib.machine.notebook import BOTH
from lib.record import atomic
from lib.report.bound import ABSENT, not_run
from lib.report.fragments import TEMPLATES, fill
from lib.report.page import WORST, Model, Page, overall
from lib.show.messages import Messages

PAGE = "index.html"


@dataclass(frozen=True)
class Row:
    """What the page says of one model of a report."""

    model: Markup | str
    verdict: str
    badge: Markup
    seed: Markup | str = ABSENT
    counts: Markup | str = ABSENT
    highlights: Mapping[str, Markup] | None = None


@dataclass(frozen=True)
class Report:
    """name: of its folder; records: where they lie, seen from there, "" where there is no page."""

    name: str
    records: str
    rows: Sequence[Row]


def write(folder: Path, reports: Mapping[str, Sequence[str]], language: str) -> Path:
    """Write the page of the reports below a folder. reports: by name, the models that each was asked for."""
    words, page = Messages(language), folder / PAGE
    found = [_report(folder / name, models, words) for name, models in reports.items()]
    verdicts = Counter(row.verdict for report in found for row in report.rows)
    kinds = [(kind, verdicts[kind]) for kind in WORST if verdicts[kind]]
    style = Markup((TEMPLATES / "notebook" / "page.css").read_text(encoding="utf-8"))
    text = fill("overview.html.j2", t=words, name=folder.name, reports=found, kinds=kinds, page_style=style)
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page


def _report(folder: Path, models: Sequence[str], words: Messages) -> Report:
    page = folder / PAGE
    told = re.search(r'data-records="([^"]+)"', page.read_text(encoding="utf-8")) if page.is_file() else None
    try:
        if told is None:
            raise UserError(f"{page}: is not there")
        made = Page(folder / told[1], folder, models, folder.name, words.language)
        return Report(folder.name, told[1], [_row(model, folder.name) for model in made.models])
    except UserError:  # no report yet, or records that are damaged: theirs alone, and its own page's matter
        return Report(folder.name, "", [Row(name, "NOT RUN", not_run(words)) for name in models])


def _row(model: Model, report: str) -> Row:
    """The verdict by its own page's rule. Its numbers lead to the lines of their records on that page."""

    def there(text: Markup) -> Markup:
        return Markup(str(text).replace('href="#', f'href="{report}/{PAGE}#'))

    verdict = overall({one.verdict for one in model.answers})
    badge = next((one.badge for one in model.answers if one.verdict == verdict), not_run(model.words))
    trained = next((model.records[side, "train"] for side in BOTH if (side, "train") in model.records), None)
    seed = trained.find("provenance", "seed") if trained else None
    shown = {name: there(text) for name, text in model.highlights.items()}
    return Row(there(model.name), verdict, badge, there(seed) if seed else ABSENT, there(model.counts), shown)
