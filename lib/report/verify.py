"""Does a report say what the records say? Reads the pages as they lie there, and the records again.

A page passes when each number, name, verdict and figure in it is what its record holds, no digit stands outside of
these, no verdict of a model is left out, and the records are those that were compared. Arrays must be those of their
record where they are there; a report may travel without the large ones, and is then told to.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from lib.alignment.evidence import Evidence, pointer
from lib.errors import UserError
from lib.record import load_arrays, sha256
from lib.report import bound, pictures
from lib.report.page import COUNTED
from lib.show.messages import LANGUAGES, Messages

PAGES = ("index.html", "handin.html")
VOID = {"meta", "img", "br", "hr", "input", "link", "col", "wbr"}
UNSEEN = {"style", "title", "script"}
DIGITS = re.compile(r"\S*\d\S*")


@dataclass
class Element:
    """An element that says where its text comes from."""

    tag: str
    attributes: dict[str, str]
    place: str  # the last anchor before it
    link: dict[str, str] | None = None  # attributes of the reference around it
    text: str = ""

    def __getitem__(self, name: str) -> str:
        """An attribute; nothing where it has none of that name."""
        return self.attributes.get(name, "")

    @property
    def refs(self) -> list[str]:
        """What it refers to: a count refers to several lists."""
        return self["data-ref"].split(" ") if self["data-count"] else [self["data-ref"]] if self["data-ref"] else []


@dataclass
class Content(HTMLParser):
    """What a page holds: bound elements, figures, and the text outside of them."""

    elements: list[Element] = field(default_factory=list)
    figures: list[tuple[str, str, str]] = field(default_factory=list)  # place, key, image element
    free: list[tuple[str, str]] = field(default_factory=list)  # place, text
    meta: dict[str, str] = field(default_factory=dict)
    scripts: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[Element] = []
        self._place = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        held = {name: value or "" for name, value in attributes}
        self._place = held.get("id") or self._place
        element = Element(tag, held, self._place)
        if tag == "html":
            self.meta["lang"] = element["lang"]
        if tag == "meta" and "name" in held:
            self.meta[held["name"]] = element["content"]
        self.scripts += tag == "script"
        if tag == "img":
            key = next((one["data-figure"] for one in self._open if one.tag == "figure"), "")
            self.figures.append((self._place, key, self.get_starttag_text() or ""))
        if "data-ref" in held or tag == "data":
            links = (one for one in reversed(self._open) if one.tag == "a" and one["class"] == "ref")
            element.link = next((one.attributes for one in links), None)
            self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop().tag != tag:
            pass

    def handle_data(self, text: str) -> None:
        holder = next((one for one in self._open if "data-ref" in one.attributes or one.tag == "data"), None)
        if holder:
            holder.text += text
        elif not any(one.tag in UNSEEN for one in self._open):
            self.free.append((self._place, text))


@dataclass(frozen=True)
class Checked:
    """What was looked at in a page, and what is wrong with it."""

    page: Path
    numbers: int
    names: int
    figures: int
    records: int
    without_arrays: int  # records whose arrays don't lie beside them: only their JSON could be checked
    faults: tuple[str, ...]


def verify(report: Path) -> list[Checked]:
    """Check the pages of a report folder; UserError where there is none."""
    found = [report / name for name in PAGES if (report / name).is_file()]
    if not found:
        raise UserError(f"{report}: holds no {' or '.join(PAGES)}; run `make report` first")
    return [_page(path) for path in found]


def _page(path: Path) -> Checked:
    content = Content()
    content.feed(path.read_text(encoding="utf-8"))
    if content.meta.get("lang") not in LANGUAGES or "records" not in content.meta:
        raise UserError(f"{path}: does not say its language and where its records lie; render it again")
    words, fields = Messages(content.meta["lang"]), bound.Fields(path.parent / content.meta["records"])
    ids = sorted({ref.partition("#")[0] for element in content.elements for ref in element.refs})
    faults = [
        *(fault for element in content.elements for fault in _element(element, fields, words)),
        *_unbound(content, words, path),
        *_omitted(content, ids, fields),
        *_uncounted(content, fields),
        *_figures(content, fields, words),
        *_records(ids, fields),
    ]
    numbers = sum(element.tag == "data" for element in content.elements)
    held = [one for one in ids if fields.path(one).is_file() and fields[f"{one}#/arrays"]]
    bare = sum(not fields.arrays(one).is_file() for one in held)
    names, figures = len(content.elements) - numbers, len(content.figures)
    return Checked(path, numbers, names, figures, len(ids), bare, tuple(dict.fromkeys(faults)))


def _element(element: Element, fields: bound.Fields, words: Messages) -> Iterator[str]:
    """What is wrong with a bound element: text, value and record must say the same."""
    where, ref = f"#{element.place}", element["data-ref"]
    if not ref:
        yield f"{where}: '{element.text}' is bound to no record"
        return
    try:
        value, text = _expected(element, ref, fields, words)
    except UserError as error:
        yield f"{where}: '{element.text}': {error}"
        return
    if element.text != text:
        yield f"{where}: the page says '{element.text}', {ref} says '{text}'"
    if element.tag == "data" and element["value"] != str(value):
        yield f"{where}: the value of '{element.text}' is {element['value']}, {ref} holds {value}"
    link = element.link
    if link is not None and (link.get("title"), link.get("href")) != (ref, f"#{bound.anchor(ref)}"):
        yield f"{where}: '{element.text}' leads to {link.get('href')}, not to the record of {ref}"
    if "badge" in element["class"] and element["class"] != f"badge {bound.badge_class(value)}":
        yield f"{where}: '{element.text}' looks like another verdict ({element['class']})"


def _expected(element: Element, ref: str, fields: bound.Fields, words: Messages) -> tuple[object, str]:
    """What the records say should stand in the element: the value, and its text."""
    if kinds := element["data-count"]:
        lists = [fields[one] for one in element.refs]
        number = bound.counted([kind.replace("_", " ") for kind in kinds.split(" ")], lists)
        return number, str(number)
    value = fields[ref]
    return value, words(f"verdict.{value}") if "badge" in element["class"] else bound.shown(value, ref, words)


def _unbound(content: Content, words: Messages, path: Path) -> Iterator[str]:
    """Digits outside of bound elements: only the catalogue's words (float64, …) and the folder's name may have some."""
    allowed = {token for text in words.texts.values() for token in _tokens(text)} | {path.parent.name}
    for place, text in content.free:
        for token in _tokens(text):
            if token not in allowed:
                yield f"#{place}: '{token}' is bound to no record"
    if content.scripts:
        yield "the page runs a script, which may change what it shows"


def _tokens(text: str) -> list[str]:
    return [token.strip(".,;:()。，；：（）") for token in DIGITS.findall(text)]


def _omitted(content: Content, ids: Sequence[str], fields: bound.Fields) -> Iterator[str]:
    """Verdicts of the page's models that no badge shows."""
    shown = {element["data-ref"] for element in content.elements}
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
    shown: dict[str, list[Element]] = {}
    for element in content.elements:
        if element["data-count"]:
            shown.setdefault(element["data-ref"], []).append(element)
    for elements in shown.values():
        try:
            lists = [fields[ref] for ref in elements[0].refs]
        except UserError:
            continue  # said already, of the elements themselves
        kinds = {element["data-count"].replace("_", " ") for element in elements}
        for kind in (kind for kind in COUNTED if kind not in kinds and bound.counted((kind,), lists)):
            yield f"#{elements[0].place}: the page counts verdicts and leaves out {kind}"


def _figures(content: Content, fields: bound.Fields, words: Messages) -> Iterator[str]:
    """Figures that are not what the records draw."""
    drawn: dict[str, str] = {}
    for place, key, image in content.figures:
        model, _, question = key.rpartition("/")[0].rpartition("/")
        try:
            if key not in drawn and model:
                found = pictures.draw(Evidence(fields.folder, model), question, words)
                drawn |= {figure.key: figure.picture.html() for figure in found}
        except UserError as error:
            yield f"#{place}: the figure can't be drawn again: {error}"
            continue
        if drawn.get(key) != image:
            said = "is not what the records draw (edited, or drawn by another version of lib/show or with other fonts)"
            yield f"#{place}: the figure '{key}' {said}"


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
