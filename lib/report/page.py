"""The report, part by part, as notebook 90_compare shows it: each number bound to the field of its record."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from lib.alignment.decisions import FLIP
from lib.alignment.evidence import PAIRS, Evidence
from lib.alignment.questions import QUESTIONS
from lib.alignment.verdict import FAILED
from lib.errors import UserError
from lib.machine.notebook import BOTH
from lib.report import beside, pictures
from lib.report.bound import SHARED, SIDES, Held, Records, bound, count, counted, not_run, records, slug
from lib.report.fragments import Fragment, fragment
from lib.show.messages import Messages

COLUMNS = ("name", "what", "error", "reach", "gate", "ratio", "target", "note")  # of the rows that are shown
TEXTS = ("name", "what", "note")  # columns that hold a text, not a number
FAILING_ROWS = 5  # of each kind that are shown; of those that pass the one closest to its gate
FLIPS = 100  # flipped decisions that are shown, legal or not; a record lists them all
STATUSES = ("met", "missed", "below rounding")  # of a quoted target
COUNTED = ("FAIL", "NOT COMPARABLE", "PASS", "UNDERPOWERED", "NOT RUN")  # what is shown only is no answer to count
ABREAST = 3  # models beside each other in one table, as many as A4 holds
LISTED = 6  # verdicts that fail, or were not run, that the first page names
WORST = (*FAILED, "NOT RUN", "UNDERPOWERED", "PASS", "SHOWN")  # the first of these stands for a question
ORIGIN = ("started", "wall_seconds", "peak_rss_mib", "threads", "wait_policy")
ORIGIN += ("seed", "device", "git_commit", "command")  # what is told of each record


def grouped(questions: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Theme -> its questions among these, all in the order of the report; ValueError for an unknown one."""
    found: dict[str, list[str]] = {}
    for question in sorted(questions, key=[*QUESTIONS].index):
        found.setdefault(QUESTIONS[question].theme, []).append(question)
    return {theme: tuple(members) for theme, members in found.items()}


def overall(kinds: Set[str]) -> str:
    """The verdict that stands for all: what can't tell, and what is only shown, is no answer."""
    gaps, judged = kinds & {"NOT RUN", "NOT COMPARABLE"}, kinds & {"PASS", "FAIL"}
    return "FAIL" if "FAIL" in kinds else "NOT RUN" if gaps or not judged else "PASS"


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
        values |= {name: _marked(values[name]) for name in self._apart}
        return self.words.say(f"reason.{self.held['reason']}", **{**dict(sides), **values})

    @property
    def _apart(self) -> list[str]:
        """Which of the outcomes, judged or not, say that the sides differ."""
        return [name for name in ("outcome", "own") if self.held["values"].get(name) == "DIFFERENT"]

    @property
    def apart(self) -> Markup | None:
        """What is not judged and yet not as one would wish: a quoted tolerance that is missed, another mAP."""
        missed = (self.held["targets"] or {}).get("missed")
        return self.reason if self._apart else self.targets if missed else None

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
        counts = [_marked(one) if status == "missed" else one for status, one in zip(found, counts)]
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


def _marked(text: Markup) -> Markup:
    return Markup('<b class="apart">{}</b>').format(text)


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

    def asked(self, question: str) -> list[Answer]:
        return [one for one in self.answers if one.question == question]

    def _linked(self, question: str, text: Markup | str) -> Markup:
        return Markup('<a href="#{}-{}">{}</a>').format(self.anchor, question, text)

    @property
    def measured(self) -> list[Held]:
        """The records that a framework wrote; of a model without any, all there are."""
        return [one for (side, _), one in self.records.items() if side in BOTH] or list(self.records.values())

    @property
    def highlights(self) -> dict[str, Markup]:
        """What is shown on the first page though it is not judged."""
        trained = {side: self.records.get((side, "train")) for side in BOTH}
        times = (
            one.ratios
            for one in self.answers
            if one.held["reason"].startswith("ratios") and one.held["pair"] == "torch-jittor"
        )
        precision = self.words.joined(
            [
                Markup("{} {}").format(
                    self.words(f"side.{side}"), held("fields", "final", "AP") if held else not_run(self.words)
                )
                for side, held in trained.items()
            ]
        )
        if of := self._trained_on(next(filter(None, trained.values()), None)):
            precision = self.words.joined([precision, of], "clauses")
        return {"final_map": precision, "time_ratio": next(times, not_run(self.words))}

    def _trained_on(self, train: Held | None) -> Markup | None:
        """What an AP is of: data set, epochs, size of the images."""
        data = self.shared.get(("none", "data"))
        if not train or not data:
            return None
        fields, told = train.value("fields"), [data("fields", "name")]
        if fields["epochs"]:
            last = ("fields", "epochs", len(fields["epochs"]) - 1, "epoch")
            told.append(self.words.count("epochs", train.value(*last) + 1, train(*last)))
        if size := fields.get("input_size"):  # height, width; records of before have none
            sides = [train("fields", "input_size", i) for i, side in enumerate(size) if size.index(side) == i]
            told.append(self.words.say("pixels", size=Markup(" × ").join(sides)))
        return self.words.joined(told)

    def named(self, answers: Iterable[Answer], said: str) -> list[Markup]:
        """These verdicts, each with what is `said` of it. Of one question the first pair stands for all."""
        first: dict[str, Answer] = {}
        for one in answers:
            first.setdefault(one.question, one)
        return [
            self.words.say(
                "summary.named",
                model=self.name,
                question=self._linked(question, self.words(f"question.{question}")),
                pair=one.pair,
                reason=getattr(one, said),
            )
            for question, one in first.items()
        ]


class Section:
    """A question: the verdict of each pair, the numbers behind them (a group of rows per pair), figures, tables."""

    def __init__(self, model: Model, question: str, notebooks: "Notebooks"):
        self.question, self.anchor, self.words = question, f"{model.anchor}-{question}", model.words
        self.name, self.answers = model.name, model.asked(question)
        self.notebooks = notebooks.of(QUESTIONS[question].notebooks, model.evidence.model)
        shown = [column for column in COLUMNS if column != "target" or self.answers[0].held["target"]]
        self.header = [self.words(f"column.{column}") for column in shown]
        self.groups = [(one.counted, rows) for one in self.answers if (rows := one.rows(shown))]
        self.pictures = pictures.draw(model.evidence, question, self.words)
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
            [self.words.beside(self.words(f"number.{label}"), about[more]), *(row.get(side, "") for side in sides)]
            for (label, more), row in rows.items()
        ]
        return [header, *table] if table else []


def counts(lists: Mapping[str, Sequence[Mapping]], words: Messages) -> Markup:
    """How many verdicts are of each kind, where there are any."""
    held = [kind for kind in COUNTED if counted((kind,), lists.values())]
    return words.joined(
        [words.say("headline.count", number=count((kind,), lists), verdict=words(f"verdict.{kind}")) for kind in held]
    )


class Notebooks:
    """The executed notebooks of a report, as links from its page; each is rendered beside itself."""

    def __init__(self, report: Path, words: Messages):
        self.folder, self._words = report / "notebooks", words

    def of(self, names: Iterable[str], model: str) -> list[Markup]:
        """A link per kernel that ran one of these notebooks for the model, or for all models."""
        found = [path for stem in names for path in sorted(self.folder.glob(f"*/*/{stem}.ipynb"))]
        return [self._link(path) for path in found if path.parts[-3] in (model, SHARED)]

    def _link(self, path: Path) -> Markup:
        side = path.parts[-2]
        kernel = self._words("notebook.both" if side == "none" else f"side.{side}")
        target = path.relative_to(self.folder.parent).with_suffix(".html")
        return Markup('<a href="{}">{}: {}</a>').format(target.as_posix(), path.stem, kernel)


class Page:
    """The report of some models. Each method is one of its parts, for a cell of the notebook.

    folder: of the records, after `questions.judge_records`; out: where the page will lie.
    """

    def __init__(self, folder: str | Path, out: str | Path, models: Sequence[str], profile: str, language: str = "en"):
        self.words, self.profile, self.folder = Messages(language), profile, Path(folder)
        self.files = os.path.relpath(folder, out)
        self.shared = records(self.folder, SHARED, self.words)
        self.models = [Model(self.folder, name, self.shared, self.words) for name in models]
        self.rules = {name: self.models[0].compared("fields", name) for name in ("k", "c", "sharper", "runs")}
        self.notebooks = Notebooks(Path(out), self.words)
        self.records = [*self.shared.values(), *(one for model in self.models for one in model.records.values())]
        self._summarise([verdict for model in self.models for found in model.lists.values() for verdict in found])

    def summary(self) -> Fragment:
        """The first page: the verdict, a word for each question and pair, what fails, what it was measured on."""
        return fragment(
            "summary.html.j2", page=self, t=self.words, gaps=gaps(self.shared.get(("none", "gaps")), self.words)
        )

    def contents(self) -> Fragment:
        """Links to all parts; of each question the worst verdict."""
        return fragment("contents.html.j2", page=self, t=self.words)

    def reading(self) -> Fragment:
        """A picture of what is judged by what, and the rules in full."""
        return fragment("reading.html.j2", page=self, t=self.words)

    def question(self, question: str) -> Fragment:
        """What the records say to one question, model by model; nothing where no model was asked."""
        if question not in QUESTIONS:
            raise UserError(f"{question}: no such question: choose from {', '.join(QUESTIONS)}")
        asked = [Section(model, question, self.notebooks) for model in self.models if model.asked(question)]
        return fragment("question.html.j2", sections=asked, several=len(self.models) > 1, t=self.words)

    def rosetta(self) -> Fragment:
        """How Jittor's own operators answer beside PyTorch's."""
        told = rosetta(self.shared.get(("none", "rosetta")), self.words)
        links = self.notebooks.of(("30_migration",), SHARED)
        return fragment("rosetta.html.j2", told=told, notebooks=links, t=self.words)

    def provenance(self) -> Fragment:
        """A line per record: what made it; and the versions of what ran."""
        return provenance(self.records, self.files, self.words)

    @property
    def failures(self) -> list[str]:
        """ "model: question (pair)" of every FAIL, and of what is not comparable."""
        found = ((model, one.held) for model in self.models for one in model.answers if one.verdict in FAILED)
        return [f"{model.evidence.model}: {held['question']} ({held['pair']})" for model, held in found]

    def anchor(self, question: str) -> str:
        """Where a question is answered first."""
        return next(f"{model.anchor}-{question}" for model in self.models if model.asked(question))

    def worst(self, question: str) -> Markup:
        """The badge that stands for a question."""
        answers = [one for model in self.models for one in model.asked(question)]
        return min(answers, key=lambda one: WORST.index(one.verdict)).badge

    def _summarise(self, verdicts: Sequence[Mapping[str, Any]]) -> None:
        """The first page: `verdict` stands for all, `kinds` are explained, `pairs` those that were asked."""
        words, kinds = self.words, {verdict["verdict"] for verdict in verdicts}
        self.verdict = overall(kinds)
        missing = "gaps" if "PASS" in kinds else "none"
        headline = missing if self.verdict == "NOT RUN" else self.verdict.lower()
        lists = {ref: found for model in self.models for ref, found in model.lists.items()}
        self.headline = words.say(f"headline.{headline}", counts=counts(lists, words))
        self.kinds = [kind for kind in WORST if kind in kinds]
        self.themes = grouped(dict.fromkeys(verdict["question"] for verdict in verdicts))
        asked, pairs = {verdict["pair"] for verdict in verdicts}, [f"{a}-{b}" for a, b in PAIRS]
        self.pairs = [(pair, words.pair(pair)) for pair in pairs if pair in asked]
        self.tables = [self.models[i : i + ABREAST] for i in range(0, len(self.models), ABREAST)]
        self.facts = facts(self.models, self.shared, words)
        self.failing = self._named(lambda one: one.verdict in FAILED, "reason")
        self.missing = self._named(lambda one: one.verdict == "NOT RUN", "reason")
        self.apart = self._named(lambda one: one.verdict in ("PASS", "SHOWN") and one.apart, "apart")

    def _named(self, chosen: Callable[[Answer], Any], said: str) -> list[Markup]:
        found = [one for model in self.models for one in model.named(filter(chosen, model.answers), said)]
        return [*found[:LISTED], *([escape(self.words("summary.more"))] if len(found) > LISTED else [])]


def provenance(records: Sequence[Held], files: str, words: Messages) -> Fragment:
    """files: the folder of the records, seen from the page."""
    software = beside.software(records, words)
    return fragment("provenance.html.j2", records=records, files=files, origin=ORIGIN, software=software, t=words)


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
    machine["cores"] = words.count("cores", one.origin.machine.cores, machine["cores"])
    commit = one.find("provenance", "git_commit") or escape(words("fact.commit.absent"))
    if one.origin.git_dirty:
        commit = words.say("join.brackets", text=commit, more=words("fact.commit.dirty"))
    told = {"machine": words.say("fact.machine.value", **machine), "commit": commit}
    return {"reference": reference, "frameworks": framework, **told}
