"""The content of the report, taken from records: what stands where, each number bound to the field that holds it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from lib.alignment.decisions import FLIP
from lib.alignment.evidence import PAIRS, Evidence
from lib.errors import UserError
from lib.machine.notebook import BOTH
from lib.record import ROOT
from lib.report import beside, pictures
from lib.report.bound import SHARED, SIDES, Held, Records, bound, count, counted, not_run, records, slug
from lib.show.messages import Messages

THEMES = {  # what belongs together, in the order of the report
    "parts": ("structure", "conversion", "initialisation", "data"),
    "answers": ("forward", "divergence", "decisions"),
    "learning": ("losses", "assignment", "gradients", "step", "batch_norm", "lockstep"),
    "result": ("training", "trajectory", "evaluation", "equivalence"),
    "cost": ("speed",),
}
COLUMNS = ("name", "what", "error", "floor", "gate", "ratio", "target", "note")  # of the rows that are shown
TEXTS = ("name", "what", "note")  # columns that hold a text, not a number
FAILING_ROWS = 5  # of each kind that are shown; of those that pass the one closest to its gate
FLIPS = 100  # flipped decisions that are shown, legal or not; a record lists them all
STATUSES = ("met", "missed", "below rounding")  # of a quoted target
COUNTED = ("FAIL", "PASS", "UNDERPOWERED", "NOT RUN")  # what is shown only is no answer to count
LEGEND = ("PASS", "FAIL", "UNDERPOWERED", "SHOWN", "NOT RUN")
ABREAST = 3  # models beside each other in one table, as many as A4 holds
LISTED = 6  # verdicts that fail, or were not run, that the first page names
NOTEBOOK = ROOT / "notebooks" / "30_migration.ipynb"


def grouped(questions: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Theme -> those of the questions that belong to it; KeyError for one that THEMES does not list."""
    theme = {question: theme for theme, members in THEMES.items() for question in members}
    found: dict[str, list[str]] = {}
    for question in questions:
        found.setdefault(theme[question], []).append(question)
    return {theme: tuple(found[theme]) for theme in THEMES if theme in found}


class Answer:
    """One pair's verdict on a question, as a page shows it: each part bound to its field of the compare record."""

    def __init__(self, compared: Held, index: int):
        self._compared, self._place, self.words = compared, ("fields", "verdicts", index), compared.words
        self.held: Mapping[str, Any] = compared.value(*self._place)
        self.question, self.verdict = self.held["question"], self.held["verdict"]
        self.pair = self.words.pair(self.held["pair"])

    def __call__(self, *keys: str | int) -> Markup:
        return self._compared(*self._place, *keys)

    @property
    def badge(self) -> Markup:
        return self._compared.badge(*self._place, "verdict")

    @property
    def reason(self) -> Markup:
        """The verdict in one sentence."""
        sides = zip(("first", "second"), (self.words(f"side.{side}") for side in self.held["pair"].split("-")))
        values = {
            name: self.ratios if name == "ratios" else "" if value == "" else self("values", name)
            for name, value in self.held["values"].items()
        }
        return self.words.say(f"reason.{self.held['reason']}", **{**dict(sides), **values})

    @property
    def ratios(self) -> Markup:
        """Times of the second side over those of the first."""
        about = {number["about"]: i for i, number in enumerate(self.held["numbers"])}
        parts = [
            self.words.say(
                "join.about", name=self("numbers", about[name], "about"), value=self("values", "ratios", name)
            )
            for name in self.held["values"]["ratios"]
        ]
        return self.words.joined(parts, "clauses") if parts else escape(self.words("reason.ratios.none"))

    @property
    def targets(self) -> Markup | None:
        """By how many numbers the quoted tolerance is met and missed."""
        found = [status for status in STATUSES if self.held["targets"] and self.held["targets"].get(status)]
        if not self.held["target"] or not self.held["targets"]:
            return None
        counts = [self.words.say(f"targets.{status}", number=self("targets", status)) for status in found]
        return self.words.say("targets", target=self("target"), counts=self.words.joined(counts))

    @property
    def notes(self) -> list[Markup]:
        return [self("notes", i) for i in range(len(self.held["notes"]))]

    @property
    def counted(self) -> Markup:
        """What the rows are, and how many there are of which."""
        return self.words.say("evidence.rows", pair=self.pair, count=self("values", "total"))

    def rows(self, shown: Sequence[str]) -> list[list[Markup]]:
        """The rows that matter, as cells of the columns; what is identical is said in the sentence."""
        columns = self._compared.value("fields", "columns")
        rows = [(i, dict(zip(columns, row))) for i, row in enumerate(self.held["rows"])]
        ranked = worst([(i, row) for i, row in rows if row["gate"] != 0 or not row["passed"]])
        return [[self._cell(i, row[column], column, columns.index(column)) for column in shown] for i, row in ranked]

    def _cell(self, row: int, value: Any, column: str, place: int) -> Markup:
        if column == "target":
            return escape(self.words(f"target.{value}") if value else "")
        return Markup("") if column in TEXTS and not value else self("rows", row, place)


def worst(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Of each kind of comparison the judged row closest to its gate, or those farthest beyond theirs; one shown, where
    none is judged."""

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


class Model:
    """What the report says of one model; UserError where it was not compared."""

    def __init__(self, folder: Path, name: str, shared: Records, words: Messages):
        self.anchor, self.shared, self.words = slug(name), shared, words
        self.evidence, self.records = Evidence(folder, name), records(folder, name, words)
        self.compared = self.records.get(("none", "compare"))
        if self.compared is None:
            raise UserError(f"{folder}: {name} has no verdicts; run notebook 90_compare, or python -m lib compare")
        self.name = self.compared("model")
        self.answers = [Answer(self.compared, i) for i in range(len(self.compared.value("fields", "verdicts")))]
        self.lists = {self.compared.ref("fields", "verdicts"): self.compared.value("fields", "verdicts")}
        self.cells = {(one.question, one.held["pair"]): self._linked(one.question, one.badge) for one in self.answers}
        self.counts = counts(self.lists, words)

    def _linked(self, question: str, text: Markup | str) -> Markup:
        return Markup('<a href="#{}-{}">{}</a>').format(self.anchor, question, text)

    @property
    def measured(self) -> list[Held]:
        """The records that a framework wrote; of a model without any, all there are."""
        return [one for (side, _), one in self.records.items() if side in BOTH] or list(self.records.values())

    @property
    def highlights(self) -> dict[str, Markup]:
        """What is shown on the first page though it is not judged."""
        ends = [(self.words(f"side.{side}"), self.records.get((side, "train"))) for side in BOTH]
        times = (
            one.ratios for one in self.answers if one.held["reason"] == "ratios" and one.held["pair"] == "torch-jittor"
        )
        precision = [
            Markup("{} {}").format(name, held("fields", "final", "AP") if held else not_run(self.words))
            for name, held in ends
        ]
        return {"final_map": self.words.joined(precision), "time_ratio": next(times, not_run(self.words))}

    def named(self, kind: str) -> list[Markup]:
        """The verdicts of a kind, each with its reason. Of one question the first pair stands for all."""
        found: dict[str, Answer] = {}
        for one in self.answers:
            if one.verdict == kind:
                found.setdefault(one.question, one)
        return [
            self.words.say(
                "summary.named",
                model=self.name,
                question=self._linked(question, self.words(f"question.{question}")),
                pair=one.pair,
                reason=one.reason,
            )
            for question, one in found.items()
        ]

    @cached_property
    def themes(self) -> dict[str, list["Section"]]:
        asked = grouped(dict.fromkeys(one.question for one in self.answers))
        return {theme: [Section(self, question) for question in questions] for theme, questions in asked.items()}


class Section:
    """A question: the verdict of each pair, the numbers behind them (a group of rows per pair), figures, tables."""

    def __init__(self, model: Model, question: str):
        self.question, self.anchor, self.words = question, f"{model.anchor}-{question}", model.words
        self.answers = [one for one in model.answers if one.question == question]
        shown = [column for column in COLUMNS if column != "target" or self.answers[0].held["target"]]
        self.header = [self.words(f"column.{column}") for column in shown]
        self.groups = [(one.counted, rows) for one in self.answers if (rows := one.rows(shown))]
        self.pictures = pictures.draw(model.evidence, question, model.words)
        self.beside = beside.tables(question, model.evidence.model, model.records, model.shared, self.words)

    @cached_property
    def numbers(self) -> list[list[Markup]]:
        """A table with a row per quantity and a column per side; nothing where the question has no such numbers."""
        rows: dict[tuple[str, str], dict[str, Markup]] = {}
        about: dict[str, Markup] = {"": Markup("")}
        for one in self.answers:
            for i, number in enumerate(one.held["numbers"]):
                row = rows.setdefault((number["label"], number["about"]), {})
                row.setdefault(number["side"], bound(number["value"], number["ref"], self.words))
                about.setdefault(number["about"], one("numbers", i, "about"))
        sides = [side for side in SIDES if any(side in row for row in rows.values())]
        header = [escape(self.words(key)) for key in ("column.quantity", *(f"side.{side}" for side in sides))]
        table = [
            [Markup("{} {}").format(self.words(f"number.{label}"), about[more]), *(row.get(side, "") for side in sides)]
            for (label, more), row in rows.items()
        ]
        return [header, *table] if table else []


def counts(lists: Mapping[str, Sequence[Mapping]], words: Messages) -> Markup:
    """How many verdicts are of each kind, where there are any."""
    held = [kind for kind in COUNTED if counted((kind,), lists.values())]
    return words.joined(
        [words.say("headline.count", number=count((kind,), lists), verdict=words(f"verdict.{kind}")) for kind in held]
    )


class Page:
    """Everything the template asks for. `folder`: of the records; `out`: of the page."""

    def __init__(self, folder: str | Path, out: str | Path, models: Sequence[str], profile: str, words: Messages):
        self.words, self.profile, self.folder = words, profile, Path(folder)
        self.files = os.path.relpath(folder, out)
        self.shared = records(self.folder, SHARED, words)
        self.models = [Model(self.folder, name, self.shared, words) for name in models]
        self.k = self.models[0].compared("fields", "k")
        self.gaps = gaps(self.shared.get(("none", "gaps")), words)
        self.rosetta = rosetta(self.shared.get(("none", "rosetta")), words)
        self.notebook = os.path.relpath(NOTEBOOK, out)
        self.records = [*self.shared.values(), *(one for model in self.models for one in model.records.values())]
        self._summarise([verdict for model in self.models for found in model.lists.values() for verdict in found])

    def _summarise(self, verdicts: Sequence[Mapping[str, Any]]) -> None:
        """The first page: `verdict` is the worst, `kinds` are explained, `pairs` those that were asked."""
        words, kinds = self.words, {verdict["verdict"] for verdict in verdicts}
        failed, not_run, judged = "FAIL" in kinds, "NOT RUN" in kinds, kinds & {"PASS", "FAIL"}
        self.verdict = "FAIL" if failed else "NOT RUN" if not_run or not judged else "PASS"
        headline = "fail" if failed else "none" if not judged else "gaps" if not_run else "pass"
        lists = {ref: found for model in self.models for ref, found in model.lists.items()}
        self.headline = words.say(f"headline.{headline}", counts=counts(lists, words))
        self.kinds = [kind for kind in LEGEND if kind in kinds]
        self.themes = grouped(dict.fromkeys(verdict["question"] for verdict in verdicts))
        asked, pairs = {verdict["pair"] for verdict in verdicts}, [f"{a}-{b}" for a, b in PAIRS]
        self.pairs = [(pair, words.pair(pair)) for pair in pairs if pair in asked]
        self.tables = [self.models[i : i + ABREAST] for i in range(0, len(self.models), ABREAST)]
        self.facts = facts(self.models, self.shared, words)
        self.failing, self.missing = (self._named(kind) for kind in ("FAIL", "NOT RUN"))

    def _named(self, kind: str) -> list[Markup]:
        found = [one for model in self.models for one in model.named(kind)]
        return [*found[:LISTED], *([escape(self.words("summary.more"))] if len(found) > LISTED else [])]


def gaps(held: Held | None, words: Messages) -> list[Markup]:
    """Each job of an unfinished report in a sentence: what it failed of and where to look, or what it waits for."""
    said = []
    for i, gap in enumerate(held.value("fields", "gaps") if held else ()):
        values = {name: held("fields", "gaps", i, name) for name, text in gap.items() if text}
        if "see" in values:
            values["see"] = Markup('<a href="{}">{}</a>').format(gap["see"], values["see"])
        key = "waits" if gap["waits_for"] else "open" if not gap["why"] else "see" if gap["see"] else "why"
        said.append(words.say(f"gap.{key}", **values))
    return said


def rosetta(held: Held | None, words: Messages) -> tuple[Markup, list[list[Markup]]] | None:
    """How Jittor's own operators answer beside PyTorch's: the counts in a sentence, a table with a row per topic."""
    if held is None:
        return None
    columns = ("topic", *held.value("fields", "counts"))
    values = {kind: held("fields", "counts", kind) for kind in columns[1:]}
    rows = [
        [held("fields", "topics", i, column) for column in columns] for i in range(len(held.value("fields", "topics")))
    ]
    header = [escape(words(f"rosetta.{column}")) for column in columns]
    return words.say("rosetta.counts", total=held("fields", "total"), **values), [header, *rows]


# ------------------------------------------------------------------------------------------------------------- facts

FACTS = {"reference": "list", "frameworks": "list", "machine": "clauses", "commit": "list"}  # how several are joined


def facts(models: Sequence[Model], shared: Records, words: Messages) -> list[tuple[str, Markup]]:
    """(label, value): reference, machine, moment; a value that not all models share says whose it is."""
    found = []
    for key, by in FACTS.items():
        groups: dict[str, tuple[Markup, list[Markup]]] = {}
        for model in models:
            parts: dict[str, Markup] = {}  # those that read the same once
            for part in filter(None, (_told(one, model.measured)[key] for one in model.records.values())):
                parts.setdefault(part.striptags(), part)
            value = words.joined(list(parts.values()), by) or escape(words(f"fact.{key}.absent"))
            groups.setdefault(value.striptags(), (value, []))[1].append(model.name)
        values = [
            value if len(groups) == 1 else words.say("join.brackets", text=value, more=words.joined(names))
            for value, names in groups.values()
        ]
        found.append((key, words.joined(values, "clauses")))
    data, told = shared.get(("none", "data")), escape(words("fact.data_set.absent"))
    if data:
        images = {split: data("fields", "splits", split, "images") for split in ("train", "val")}
        told = words.say("fact.data_set.value", name=data("fields", "name"), **images)
    order = sorted((one for model in models for one in model.measured), key=lambda one: one.origin.started)
    moments = {"first": order[0]("provenance", "started"), "last": order[-1]("provenance", "started")}
    return [*found, ("data_set", told), ("measured", words.say("fact.measured.value", **moments))]


def _told(one: Held, measured: Sequence[Held]) -> dict[str, Markup | None]:
    """What a record says of each of FACTS; of machine and commit only those that are `measured` say something."""
    words, side = one.words, one.record.side
    reference = one("provenance", "versions", "published") if side == "published" else None
    version = one.find("provenance", "versions", side) if side in BOTH else None
    framework = Markup("{} {}").format(words(f"side.{side}"), version) if version else None
    if one not in measured:
        return {"reference": reference, "frameworks": framework, "machine": None, "commit": None}
    names = {"cpu": "cpu", "cores": "cores", "memory": "memory_gib", "os": "os"}
    machine = {key: one("provenance", "machine", name) for key, name in names.items()}
    commit = one.find("provenance", "git_commit") or escape(words("fact.commit.absent"))
    if one.origin.git_dirty:
        commit = words.say("join.brackets", text=commit, more=words("fact.commit.dirty"))
    told = {"machine": words.say("fact.machine.value", **machine), "commit": commit}
    return {"reference": reference, "frameworks": framework, **told}
