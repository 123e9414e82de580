"""Does a report say what the records say? Reads the pages as they lie there, and the records again.

A page passes when each number, name, verdict, figure and table in it is what its records hold, no digit stands outside
of these, no verdict of a model is left out, the records are those that were compared, and give the same verdicts when
they are judged again; those of the published side are what the golden files hold. Style, script and the picture
of how to read it must be the project's own, and nothing may be hidden: they could change what is seen. Arrays must be
those of their record where they are there; a report may travel without the large ones, and is then told to.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup, Tag

from lib.alignment import questions
from lib.alignment.derived import alike
from lib.alignment.evidence import Evidence, pointer
from lib.alignment.references import forged
from lib.errors import UserError
from lib.families import NAMES
from lib.record import ROOT, ArraysMissing, Record, git_state, load_arrays, plain, read, sha256
from lib.report import bound, fragments, pictures
from lib.report.page import COUNTED, overall
from lib.show.messages import LANGUAGES, TEXTS, Messages, entries

PAGES = ("index.html", "handin.html")
UNSEEN = ("style", "title", "script", "data")
DIGITS = re.compile(r"\S*\d\S*")
OWN = (
    fragments.STYLE,
    *(fragments.TEMPLATES / name for name in ("notebook/page.css", "notebook/tables.js", "report/report.js")),
)


class Content:
    """What a page holds."""

    def __init__(self, text: str):
        self.page = BeautifulSoup(text, "html.parser")
        self.bound: list[Tag] = self.page.select("[data-ref], data")
        self.figures: list[Tag] = self.page.select("figure, img")
        self.language = str((self.page.html or {}).get("lang", ""))
        self.records = next((str(one["data-records"]) for one in self.page.select("[data-records]")), None)

    def free(self) -> Iterator[tuple[Tag, str]]:
        """The text that is bound to nothing."""
        for text in self.page.find_all(string=True):
            if not any(one.name in UNSEEN or one.has_attr("data-ref") for one in text.parents):
                yield text, str(text)


def where(element: Tag) -> str:
    """The last anchor before an element."""
    found = element if element.name and element.has_attr("id") else element.find_previous(id=True)
    return f"#{found['id']}" if found else "#"


def refs(element: Tag) -> list[str]:
    """What an element refers to: a count refers to several lists."""
    ref = str(element.get("data-ref", ""))
    return ref.split(" ") if element.has_attr("data-count") else [ref] if ref else []


@dataclass(frozen=True)
class Checked:
    """What was looked at in a page, and what is wrong with it."""

    page: Path
    numbers: int
    names: int
    figures: int
    records: int
    without_arrays: int  # records whose arrays don't lie beside them: only their JSON could be checked
    not_drawn: int  # figures that could not be drawn again for want of these arrays
    not_judged: int  # verdicts, likewise
    absent: tuple[str, ...]  # what numbers are derived from, and is not here
    faults: tuple[str, ...]


def verify(report: Path) -> list[Checked]:
    """Check the pages of a report folder; UserError where there is none."""
    found = [report / name for name in PAGES if (report / name).is_file()]
    if not found:
        raise UserError(f"{report}: holds no {' or '.join(PAGES)}; run `make report` first")
    judged = cache(Judged.of)  # both pages show the same records
    if " data-report=" not in (text := found[0].read_text(encoding="utf-8")):
        return [_page(path, judged) for path in found]
    many = Content(text)
    names = [str(row["data-report"]) for row in many.page.select("[data-report]") if row.get("data-records")]
    return [_overview(found[0], many), *(checked for name in names for checked in verify(report / name))]


@dataclass(frozen=True)
class Judged:
    """What becomes of a model's records when they are judged again."""

    faults: tuple[str, ...]
    not_judged: int
    absent: frozenset[str]

    @classmethod
    def of(cls, folder: Path, model: str) -> "Judged":
        """Against the verdicts that were recorded; of records that nobody can judge, why."""
        run_id, evidence = f"{model}/none/compare", Evidence(folder, model)
        try:
            faults = [f"{path}: is not what the golden files hold; compare again" for path in forged(folder, model)]
            verdicts, answers = read(folder / f"{run_id}.json"), questions.answers(evidence, partial=True)
        except UserError as error:
            return cls((str(error),), 0, frozenset())
        held = {(one["question"], one["pair"]): one for one in verdicts.fields["verdicts"]}
        found = {(one.question, one.pair): one for one in answers}
        for (question, pair), answer in found.items():
            said = held.get((question, pair))
            if not said or not alike(said, plain(questions.plain(answer))):
                says, gives = said["verdict"] if said else "nothing", answer.verdict.value
                where = f"{run_id}: says {says} of {question} ({pair}), where its records give {gives}"
                faults.append(f"{where}; compare again{_elsewhere(verdicts)}")
        faults += [
            f"{run_id}: answers {question} ({pair}), which nobody asks"
            for question, pair in held
            if question not in questions.QUESTIONS or not questions.asked(evidence, question, *pair.split("-"))
        ]
        absent = {one.again for found in evidence.derived.values() for one in found if one.holds is None}
        return cls(tuple(faults), len(held.keys() - found.keys()), frozenset(absent))


def _elsewhere(verdicts: Record) -> str:
    """Said where verdicts were given at another commit, whose rules or sums may have been others."""
    then, now = verdicts.provenance.git_commit, git_state()[0]
    return "" if then == now else f" (it was judged at commit {then or 'unknown'}, and is judged again at {now})"


def _page(path: Path, judged: Callable[[Path, str], Judged]) -> Checked:
    content = Content(path.read_text(encoding="utf-8"))
    if content.language not in LANGUAGES or content.records is None:
        raise UserError(f"{path}: does not say its language and where its records lie; render it again")
    folder = path.parent / content.records
    if not any(folder.glob("*/*/*.json")):
        raise UserError(f"{folder}: holds no records to hold {path.name} against: bring them, or make it again")
    words, fields = Messages(content.language), bound.Fields(folder)
    ids = sorted({ref.partition("#")[0] for element in content.bound for ref in refs(element)})
    bare = [one for one in ids if fields.path(one).is_file() and fields[f"{one}#/arrays"]]
    bare = [one for one in bare if not fields.arrays(one).is_file()]
    drawn, not_drawn = _figures(content, fields, words)
    compared = [one for one in ids if one.endswith("/compare") and fields.path(one).is_file()]
    again = [judged(folder, one.split("/")[0]) for one in compared]
    faults = [
        *(fault for element in content.bound for fault in _element(element, fields, words)),
        *_unbound(content, words, path),
        *_disguised(content, words),
        *_omitted(content, ids, fields),
        *_uncounted(content, fields),
        *drawn,
        *_records(ids, fields),
        *(fault for one in again for fault in one.faults),
    ]
    numbers = sum(element.name == "data" for element in content.bound)
    names, figures = len(content.bound) - numbers, sum(one.name == "figure" for one in content.figures)
    without = len(bare), not_drawn, sum(one.not_judged for one in again)
    absent = sorted({what for one in again for what in one.absent})
    return Checked(path, numbers, names, figures, len(ids), *without, tuple(absent), tuple(dict.fromkeys(faults)))


def _overview(path: Path, content: Content) -> Checked:
    """The page of many reports: each row against the records of its report."""
    words, shown, ids = Messages(content.language), Counter(), set()
    faults = [*_unbound(content, words, path), *_disguised(content, words)]
    for row in content.page.select("[data-report]"):
        name, own = str(row["data-report"]), Content(str(row))
        page, fields = f"{name}/index.html", bound.Fields(path.parent / name / str(row.get("data-records")))
        said = [fault for element in own.bound for fault in _element(element, fields, words, page)]
        said += _uncounted(own, fields)
        if any(str(link.get("href")).partition("#")[0] != page for link in row.select("a")):
            said.append("the row leads to another report")
        for line in row.select("tr") if not said else ():
            listed = {ref for element in line.select("[data-count]") for ref in refs(element)}
            verdict = overall({one["verdict"] for ref in listed for one in fields[ref]})
            shown[verdict] += 1
            should = ["badge", bound.badge_class(verdict)], words(f"verdict.{verdict}")
            for badge in line.select(".verdict .badge"):
                if (badge["class"], badge.get_text()) != should:
                    said.append(f"the row says {badge.get_text()}, where its verdicts together are {verdict}")
        ids |= {f"{name}/{ref.partition('#')[0]}" for element in own.bound for ref in refs(element)}
        faults += [f"{name}: {fault}" for fault in said]
    for element in content.bound:
        if not element.find_parent(attrs={"data-report": True}):
            number = str(shown[str(element.get("data-rows"))])
            if (element.get_text(), element.get("value")) != (number, number):
                faults.append(f"'{element.get_text()}' is not how many rows say {element.get('data-rows')}: {number}")
    numbers = sum(element.name == "data" for element in content.bound)
    return Checked(path, numbers, len(content.bound) - numbers, 0, len(ids), 0, 0, 0, (), tuple(dict.fromkeys(faults)))


def _element(element: Tag, fields: bound.Fields, words: Messages, page: str = "") -> Iterator[str]:
    """What is wrong with a bound element: text, value and record must say the same. page: where its record is told."""
    ref, said, look = str(element.get("data-ref", "")), element.get_text(), element.get("class", [])
    if not ref:
        yield f"{where(element)}: '{said}' is bound to no record"
        return
    try:
        value, text = _expected(element, ref, fields, words)
    except UserError as error:
        yield f"{where(element)}: '{said}': {error}"
        return
    if said != text:
        yield f"{where(element)}: the page says '{said}', {ref} says '{text}'"
    if element.name == "data" and element.get("value") != str(value):
        yield f"{where(element)}: the value of '{said}' is {element.get('value')}, {ref} holds {value}"
    link = element.find_parent("a", class_="ref")
    if link and (link.get("title"), link.get("href")) != (ref, f"{page}#{bound.anchor(ref)}"):
        yield f"{where(element)}: '{said}' leads to {link.get('href')}, not to the record of {ref}"
    if "badge" in look and look != ["badge", bound.badge_class(value)]:
        yield f"{where(element)}: '{said}' looks like another verdict ({' '.join(look)})"


def _expected(element: Tag, ref: str, fields: bound.Fields, words: Messages) -> tuple[object, str]:
    """What the records say should stand in the element: the value, and its text."""
    if kinds := element.get("data-count"):
        lists = [fields[one] for one in refs(element)]
        number = bound.counted([kind.replace("_", " ") for kind in str(kinds).split(" ")], lists)
        return number, str(number)
    value = fields[ref]
    return value, words(f"verdict.{value}") if "badge" in element.get("class", []) else bound.shown(value, ref, words)


def _unbound(content: Content, words: Messages, path: Path) -> Iterator[str]:
    """Digits outside of bound elements: only words of the catalogue (float64, …), the names of notebooks and of the
    folder may have some."""
    reports = {str(row["data-report"]) for row in content.page.select("[data-report]")}
    allowed = digits(words.language) | {path.parent.name, *reports, *NAMES}
    allowed |= {name for file in (ROOT / "notebooks").glob("*.ipynb") for name in (file.stem, f"notebooks/{file.name}")}
    for text, said in content.free():
        for token in _tokens(said):
            if token not in allowed:
                yield f"{where(text)}: '{token}' is bound to no record"


def digits(language: str) -> set[str]:
    """The words with digits in what a page says: names such as float64. Other readers' texts may count."""
    texts = (one.string for one in entries(TEXTS / language / "report.po") if not one.context)
    return {token for text in texts for token in _tokens(text)}


def _tokens(text: str) -> list[str]:
    return [token.strip(".,;:()。，；：（）") for token in DIGITS.findall(text)]


def _disguised(content: Content, words: Messages) -> Iterator[str]:
    """What could make the page look other than it says."""
    texts = {path.read_text(encoding="utf-8").strip() for path in OWN}
    for element in content.page.select("style, script"):
        if (element.string or "").strip() not in texts or element.name == "script" and element.attrs:
            yield f"the page runs a {element.name} of its own, which may change what it shows"
    reading = str(Content(fragments.fill("axis.html.j2", t=words)).page.svg)
    for element in content.page.select("svg"):
        if str(element) != reading:
            yield f"{where(element)}: the picture is not the project's own"
    for element in content.page.find_all(True):
        if element.name == "img" and element.find_parent("figure"):
            continue  # a figure is held against its records as a whole
        if any(name in ("style", "hidden") or name.startswith("on") for name in element.attrs):
            yield f"{where(element)}: <{element.name}> has a style or script of its own, which may change what it shows"
    for link in content.page.select("a.csv"):
        if link.get("href") != fragments.sheet(str(link.find_previous("table"))):
            yield f"{where(link)}: the CSV file does not hold the table above it"


def _omitted(content: Content, ids: Sequence[str], fields: bound.Fields) -> Iterator[str]:
    """Verdicts of the page's models that no badge shows."""
    shown = {element.get("data-ref") for element in content.bound}
    for run_id in (one for one in ids if one.endswith("/compare")):
        try:
            verdicts = fields[pointer(run_id, "fields", "verdicts")]
        except UserError:
            continue  # said already, of the elements that refer to it
        for i, verdict in enumerate(verdicts):
            if pointer(run_id, "fields", "verdicts", i, "verdict") not in shown:
                yield f"{run_id}: the page leaves out the verdict on {verdict['question']} ({verdict['pair']})"


def _uncounted(content: Content, fields: bound.Fields) -> Iterator[str]:
    """Counts of verdicts beside which a kind that occurs is not counted."""
    shown: dict[str, list[Tag]] = {}
    for element in content.page.select("[data-count]"):
        shown.setdefault(str(element["data-ref"]), []).append(element)
    for elements in shown.values():
        try:
            lists = [fields[ref] for ref in refs(elements[0])]
        except UserError:
            continue  # said already, of the elements themselves
        kinds = {str(element["data-count"]).replace("_", " ") for element in elements}
        for kind in (kind for kind in COUNTED if kind not in kinds and bound.counted((kind,), lists)):
            yield f"{where(elements[0])}: the page counts verdicts and leaves out {kind}"


def _figures(content: Content, fields: bound.Fields, words: Messages) -> tuple[list[str], int]:
    """Figures that are not what the records draw; and how many need arrays that are not there."""
    faults, without = [], 0
    drawn: dict[str, list[str]] = {}
    for figure in content.figures:
        if figure.name == "img" and figure.find_parent("figure"):
            continue
        key = str(figure.get("data-figure", ""))
        model, _, question = key.rpartition("/")[0].rpartition("/")
        try:
            if key not in drawn and model:
                found = pictures.draw(Evidence(fields.folder, model), question, words)
                drawn |= {one.key: _parts(Content(f"<p>{one.picture.html()}</p>").page.p) for one in found}
        except ArraysMissing:
            without += 1
            continue
        except (UserError, OSError, LookupError, TypeError, ValueError) as error:
            faults.append(f"{where(figure)}: the figure can't be drawn again: {error}")
            continue
        if drawn.get(key) != _parts(figure):
            said = "is not what the records draw (edited, or drawn by another version of lib/show or with other fonts)"
            faults.append(f"{where(figure)}: the figure '{key}' {said}")
    return faults, without


def _parts(figure: Tag) -> list[str]:
    return [str(part) for part in figure.children if part.name != "figcaption"]


def _records(ids: Sequence[str], fields: bound.Fields) -> Iterator[str]:
    """Records whose arrays are not their own, and those that changed after they were compared."""
    for run_id in ids:
        if not fields.path(run_id).is_file():
            continue  # said already, of the elements that refer to it
        try:
            if fields.arrays(run_id).is_file():
                load_arrays(fields.path(run_id))
        except UserError as error:
            yield str(error)
        if run_id.endswith("/compare"):
            yield from _changed(run_id, fields)


def _changed(run_id: str, fields: bound.Fields) -> Iterator[str]:
    for name, digest in fields[pointer(run_id, "provenance", "inputs")].items():
        other = "/".join(Path(name).with_suffix("").parts[-3:])
        if not fields.path(other).is_file():
            yield f"{other}: the record is missing, which {run_id} was made from"
        elif sha256(fields.path(other)) != digest:
            yield f"{other}: the record changed after {run_id} was made from it; compare again"
