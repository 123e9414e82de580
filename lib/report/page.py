"""The content of the report, taken from records: what stands where, with each number bound to the field that holds it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from lib.alignment.decisions import FLIP
from lib.alignment.evidence import Evidence, pointer
from lib.errors import UserError
from lib.machine.notebook import BOTH
from lib.record import ROOT, Record, read
from lib.report import beside, pictures, sources
from lib.report.bound import badge, bound, field, slug
from lib.report.messages import Messages
from lib.report.summary import summary
from lib.report.themes import grouped
from lib.show import figures

FAILING_ROWS = 5  # of each kind that are shown; of those that pass the one closest to its gate
FLIPS = 100  # flipped decisions that are shown, legal or not; a record lists them all
STATUSES = ("met", "missed", "below rounding")  # of a quoted target
TEXTS = ("name", "what", "note")  # columns that hold a text, not a number
NOTEBOOK = ROOT / "notebooks" / "30_migration.ipynb"


@dataclass(frozen=True)
class Judged:
    """One pair's part of a question: its verdict in a sentence."""

    pair: str
    verdict: Markup
    reason: Markup
    targets: Markup | None
    notes: tuple[Markup, ...]


@dataclass(frozen=True)
class Section:
    """A question: the verdict of each pair, one table of the numbers behind them (a group of rows per pair), figures."""

    question: str
    anchor: str
    judged: tuple[Judged, ...]
    header: tuple[str, ...]
    groups: tuple[tuple[Markup, tuple[tuple[Markup, ...], ...]], ...]  # what the rows are, and the rows
    numbers: tuple[tuple[Markup, ...], ...]  # header, then rows
    pictures: tuple[pictures.Figure, ...]
    beside: tuple[beside.Table, ...]


@dataclass(frozen=True)
class Model:
    name: Markup
    anchor: str
    themes: Mapping[str, tuple[Section, ...]]


@dataclass(frozen=True)
class Rosetta:
    """How Jittor's own operators answer beside PyTorch's: counts of probes."""

    said: Markup
    rows: tuple[tuple[Markup, ...], ...]  # header, then a row per topic
    notebook: str


class Page:
    """Everything the template asks for. `folder`: of the records; `out`: of the page."""

    def __init__(self, folder: str | Path, out: str | Path, models: Sequence[str], profile: str, words: Messages):
        self.words, self.profile, self.folder = words, profile, Path(folder)
        self.files = os.path.relpath(folder, out)
        self.evidence = {model: Evidence(folder, model) for model in models}
        for model, evidence in self.evidence.items():
            if evidence.get("none", "compare") is None:
                raise UserError(
                    f"{self.folder}: {model} has no verdicts; run notebook 90_compare, or python -m lib compare"
                )
        records = {model: sources.held(self.folder, model) for model in models}
        anchors = {model: slug(model) for model in models}
        self.models = tuple(self._model(model) for model in models)
        self.rosetta = self._rosetta(out)
        shared = sources.held(self.folder, "all")
        self.gaps = tuple(gap for one in shared if one.stage == "gaps" for gap in self._gaps(one))
        self.summary = summary(self.evidence, records, shared, anchors, self._reason, words)
        self.highlights = {
            "final_map": {anchors[model]: self._final(evidence) for model, evidence in self.evidence.items()},
            "time_ratio": {anchors[model]: self._times(model) for model in models},
        }
        every = [*shared, *(one for found in records.values() for one in found)]
        self.lines, self.columns = sources.lines(every, self.files, words), sources.COLUMNS
        self.software = sources.software(every, words)
        self.k = field(self.evidence[models[0]].get("none", "compare"), words, "fields", "k")

    def _gaps(self, held: Record) -> Iterator[Markup]:
        """Each job of an unfinished report in a sentence: what it failed of and where to look, or which failed one it waits for."""
        for i, gap in enumerate(held.fields["gaps"]):
            values = {name: field(held, self.words, "fields", "gaps", i, name) for name, text in gap.items() if text}
            if "see" in values:
                values["see"] = Markup('<a href="{}">{}</a>').format(gap["see"], values["see"])
            key = (
                "gap_waits"
                if gap["waits_for"]
                else "gap_open"
                if not gap["why"]
                else "gap_see"
                if gap["see"]
                else "gap_why"
            )
            yield Markup(escape(self.words(key))).format(**values)

    def _verdicts(self, model: str) -> list[Mapping[str, Any]]:
        return self.evidence[model].field("none", "compare", "verdicts")

    def _address(self, model: str, index: int, *keys: str | int) -> str:
        return pointer(self.evidence[model].run_id("none", "compare"), "fields", "verdicts", index, *keys)

    def _final(self, evidence: Evidence) -> Markup:
        """AP at the end of each framework's training."""
        held = ((side, evidence.get(side, "train")) for side in BOTH)
        return Markup(", ").join(
            Markup("{} {}").format(
                self.words(side), field(one, self.words, "fields", "final", "AP") if one else beside.not_run(self.words)
            )
            for side, one in held
        )

    def _times(self, model: str) -> Markup:
        """Times of one framework over the other's."""
        for index, verdict in enumerate(self._verdicts(model)):
            if (verdict["pair"], verdict["reason"]) == ("torch-jittor", "ratios"):
                return self._ratios(model, index, verdict)
        return beside.not_run(self.words)

    def _model(self, name: str) -> Model:
        questions = dict.fromkeys(verdict["question"] for verdict in self._verdicts(name))
        title = bound(name, pointer(self.evidence[name].run_id("none", "compare"), "model"), self.words)
        themes = {
            theme: tuple(self._section(name, question) for question in asked)
            for theme, asked in grouped(questions).items()
        }
        return Model(title, slug(name), themes)

    def _section(self, model: str, question: str) -> Section:
        own = [(i, verdict) for i, verdict in enumerate(self._verdicts(model)) if verdict["question"] == question]
        shown = (
            "name",
            "what",
            "error",
            "floor",
            "gate",
            "ratio",
            *(["target"] if own[0][1]["target"] else []),
            "note",
        )
        groups = ((self._counted(model, i, verdict), self._rows(model, i, verdict, shown)) for i, verdict in own)
        return Section(
            question,
            f"{slug(model)}-{question}",
            tuple(self._judged(model, i, verdict) for i, verdict in own),
            tuple(self.words(f"column_{column}") for column in shown),
            tuple(group for group in groups if group[1]),
            self._numbers(model, own),
            pictures.draw(self.evidence[model], question),
            beside.tables(self.evidence[model], question, self.words),
        )

    def _judged(self, model: str, index: int, verdict: Mapping[str, Any]) -> Judged:
        notes = (
            bound(note, self._address(model, index, "notes", i), self.words) for i, note in enumerate(verdict["notes"])
        )
        return Judged(
            self._pair(verdict),
            badge(verdict["verdict"], self._address(model, index, "verdict"), self.words),
            self._reason(model, index),
            self._targets(model, index, verdict),
            tuple(notes),
        )

    def _counted(self, model: str, index: int, verdict: Mapping[str, Any]) -> Markup:
        total = bound(verdict["values"].get("total"), self._address(model, index, "values", "total"), self.words)
        return Markup(escape(self.words("all_rows"))).format(pair=self._pair(verdict), count=total)

    def _rows(
        self, model: str, index: int, verdict: Mapping[str, Any], shown: Sequence[str]
    ) -> tuple[tuple[Markup, ...], ...]:
        columns = self.evidence[model].field("none", "compare", "columns")
        rows = [(i, dict(zip(columns, row))) for i, row in enumerate(verdict["rows"])]
        # What is identical is said in the sentence; a row of zeros adds nothing.
        ranked = _worst([(i, row) for i, row in rows if row["gate"] != 0 or not row["passed"]])
        return tuple(
            tuple(self._cell(row, c, self._address(model, index, "rows", i, columns.index(c))) for c in shown)
            for i, row in ranked
        )

    def _pair(self, verdict: Mapping[str, Any]) -> str:
        return self.words("pair").format(**self._sides(verdict))

    def _cell(self, row: Mapping[str, Any], column: str, ref: str) -> Markup:
        value = row[column]
        if column == "target":
            return escape(self.words(value)) if value else Markup("")
        return Markup("") if column in TEXTS and not value else bound(value, ref, self.words)

    def _sides(self, verdict: Mapping[str, Any]) -> dict[str, str]:
        return dict(zip(("first", "second"), map(self.words, verdict["pair"].split("-"))))

    def _reason(self, model: str, index: int) -> Markup:
        """The verdict in one sentence, its values bound."""
        verdict = self._verdicts(model)[index]
        values = {}
        for name, value in verdict["values"].items():
            if name == "ratios":
                values[name] = self._ratios(model, index, verdict)
            else:
                values[name] = (
                    bound(value, self._address(model, index, "values", name), self.words) if value != "" else Markup("")
                )
        return Markup(escape(self.words(verdict["reason"]))).format(**(self._sides(verdict) | values))

    def _ratios(self, model: str, index: int, verdict: Mapping[str, Any]) -> Markup:
        if not verdict["values"]["ratios"]:
            return escape(self.words("no_common_case"))
        about = {number["about"]: i for i, number in enumerate(verdict["numbers"])}
        return Markup("; ").join(
            Markup("{}: {}").format(
                bound(name, self._address(model, index, "numbers", about[name], "about"), self.words),
                bound(value, self._address(model, index, "values", "ratios", name), self.words),
            )
            for name, value in verdict["values"]["ratios"].items()
        )

    def _targets(self, model: str, index: int, verdict: Mapping[str, Any]) -> Markup | None:
        if not verdict["target"] or not verdict["targets"]:
            return None
        counts = (
            Markup(escape(self.words(f"targets_{status}"))).format(
                number=bound(number, self._address(model, index, "targets", status), self.words)
            )
            for status in STATUSES
            if (number := verdict["targets"].get(status))
        )
        target = bound(verdict["target"], self._address(model, index, "target"), self.words)
        return Markup(escape(self.words("targets"))).format(
            target=target, counts=escape(self.words("listed")).join(counts)
        )

    def _numbers(self, model: str, own: Sequence[tuple[int, Mapping[str, Any]]]) -> tuple[tuple[Markup, ...], ...]:
        """A table with a row per quantity and a column per side; nothing where the question has no such numbers."""
        cells: dict[tuple[str, str], dict[str, Markup]] = {}
        about: dict[str, Markup] = {"": Markup("")}
        for index, verdict in own:
            for i, number in enumerate(verdict["numbers"]):
                row = cells.setdefault((number["label"], number["about"]), {})
                row.setdefault(number["side"], bound(number["value"], number["ref"], self.words))
                about.setdefault(
                    number["about"],
                    bound(number["about"], self._address(model, index, "numbers", i, "about"), self.words),
                )
        if not cells:
            return ()
        sides = [side for side in figures.SIDES if any(side in row for row in cells.values())]
        header = (escape(self.words("column_quantity")), *(escape(self.words(side)) for side in sides))
        return (
            header,
            *(
                (Markup("{} {}").format(self.words(label), about[more]), *(row.get(side, Markup("")) for side in sides))
                for (label, more), row in cells.items()
            ),
        )

    def _rosetta(self, out: str | Path) -> Rosetta | None:
        """From the record that the comparison writes of both sides' probes; None where there is none."""
        path = self.folder / "all" / "none" / "rosetta.json"
        if not path.is_file():
            return None
        held = read(path)
        kinds = tuple(held.fields["counts"])
        counts = {kind: field(held, self.words, "fields", "counts", kind) for kind in kinds}
        rows = (
            (
                field(held, self.words, "fields", "topics", i, "topic"),
                *(field(held, self.words, "fields", "topics", i, kind) for kind in kinds),
            )
            for i in range(len(held.fields["topics"]))
        )
        header = tuple(escape(self.words(f"rosetta_{key}")) for key in ("topic", *kinds))
        said = Markup(escape(self.words("rosetta_counts"))).format(
            total=field(held, self.words, "fields", "total"), **counts
        )
        return Rosetta(said, (header, *rows), os.path.relpath(NOTEBOOK, out))


def _worst(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Of each kind of comparison the judged row closest to its gate, or those farthest beyond theirs; one shown, where none is judged."""

    def rank(item: tuple[int, Mapping[str, Any]]) -> tuple[bool, float]:
        ratio = item[1]["ratio"]
        if item[1]["passed"] is None:
            return True, 0.0  # as the record has them: what matters first
        return False, float("-inf") if isinstance(ratio, str) else -ratio  # infinite: a fault

    kinds: dict[str, list] = {}
    for item in sorted(rows, key=rank):
        kinds.setdefault(item[1]["what"], []).append(item)
    return [
        item
        for kind, items in kinds.items()
        for place, item in enumerate(items[: FLIPS if kind == FLIP else FAILING_ROWS])
        if place == 0 or kind == FLIP or item[1]["passed"] is False
    ]
