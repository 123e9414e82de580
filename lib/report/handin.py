"""The document that the author of a port hands in, each item filled from the records or marked NOT RUN.

Environment, data preparation, training script, test script, alignment log, performance log, training log, loss curves,
visual results, and the checklist of reproducible machine learning. A port brought by a user is a folder of records.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup, escape

from lib.alignment.evidence import PAIRS, Evidence
from lib.errors import UserError
from lib.machine.notebook import BOTH
from lib.report import Rendered, beside, pictures, write
from lib.report.bound import SHARED, Held, Records, count, not_run, records, slug
from lib.report.messages import Messages

NO_SIDE = ("none",)  # records that no framework wrote
READERS = ("train", "evaluate")  # stages that read the data set
RAN = ("train", "evaluate", "loss", "forward", "convert", "speed")  # any of these says what the framework ran on
KINDS = ("PASS", "FAIL", "NOT RUN", "SHOWN", "UNDERPOWERED")
ORIGIN, MACHINE = "provenance", ("provenance", "machine")


@dataclass(frozen=True)
class Ask:
    """One line: what it is called, which stage's record tells (the first that is there), and its field."""

    label: str
    stages: tuple[str, ...]
    keys: tuple[str, ...]  # "SIDE" stands for the side's name
    sides: tuple[str, ...] = BOTH


@dataclass(frozen=True)
class Told:
    """A demand that the catalogue's text meets, where there is such a record."""

    side: str
    stage: str


def _asks(stages: Sequence[str], sides: tuple[str, ...], **keys: tuple[str, ...]) -> tuple[Ask, ...]:
    return tuple(Ask(f"handin.line.{label}", tuple(stages), path, sides) for label, path in keys.items())


ENVIRONMENT = _asks(
    RAN,
    BOTH,
    framework=(ORIGIN, "versions", "SIDE"),
    python=(ORIGIN, "versions", "python"),
    numpy=(ORIGIN, "versions", "numpy"),
    cpu=(*MACHINE, "cpu"),
    cores=(*MACHINE, "cores"),
    memory=(*MACHINE, "memory_gib"),
    os=(*MACHINE, "os"),
    device=(ORIGIN, "device"),
    threads=(ORIGIN, "threads"),
    commit=(ORIGIN, "git_commit"),
)
DATA = _asks(
    ("data",),
    NO_SIDE,
    dataset=("fields", "name"),
    train_images=("fields", "splits", "train", "images"),
    train_boxes=("fields", "splits", "train", "boxes"),
    val_images=("fields", "splits", "val", "images"),
    val_boxes=("fields", "splits", "val", "boxes"),
    train_sha256=("fields", "splits", "train", "images_sha256"),
    val_sha256=("fields", "splits", "val", "images_sha256"),
    command=(ORIGIN, "command"),
)
TRAINING = _asks(
    ("train",),
    BOTH,
    command=(ORIGIN, "command"),
    seed=(ORIGIN, "seed"),
    steps=("fields", "steps"),
    seconds=("fields", "seconds"),
    final_ap=("fields", "final", "AP"),
    final_ap50=("fields", "final", "AP50"),
    weights=("fields", "checkpoint", "path"),
    weights_sha256=("fields", "checkpoint", "sha256"),
    peak=(ORIGIN, "peak_rss_mib"),
)
TESTING = _asks(
    ("evaluate",),
    BOTH,
    command=(ORIGIN, "command"),
    images=("fields", "images"),
    own_ap=("fields", "own", "AP"),
    own_ap50=("fields", "own", "AP50"),
    common_ap=("fields", "common", "AP"),
    common_sha256=("fields", "common_weights_sha256"),
    wall=(ORIGIN, "wall_seconds"),
)
# The checklist: a demand, and the lines that meet it; no line: NOT RUN.
CHECKLIST: dict[str, tuple[Ask, ...] | Told] = {
    "model": _asks(("convert",), BOTH, parameters=("fields", "parameters")),
    "assumptions": Told("none", "compare"),
    "cost": _asks(("train",), BOTH, seconds=("fields", "seconds"), peak=(ORIGIN, "peak_rss_mib")),
    "data": DATA[:5],
    "splits": DATA[5:7],
    "preparation": DATA[7:],
    "dependencies": ENVIRONMENT[:3],
    "training": TRAINING[:1],
    "testing": TESTING[:1],
    "weights": TRAINING[6:8],
    "settings": Told("torch", "train"),
    "runs": TRAINING[1:2],
    "measure": TESTING[1:4],
    "variation": (),  # no stage repeats a training with other seeds
    "time": (*TRAINING[3:4], *TESTING[6:]),
    "machine": ENVIRONMENT[3:6],
}
PERFORMANCE = {  # columns of times and memory, and where they stand in a case of a speed record
    "batch": ("batch",),
    "median": ("synchronised_ms", "median"),
    "low": ("synchronised_ms", "q1"),
    "high": ("synchronised_ms", "q3"),
    "unsynchronised": ("unsynchronised_ms", "median"),
    "peak": ("memory", "peak_mib"),
}


@dataclass(frozen=True)
class Item:
    """One thing to hand in; `done` False: not all of it has a record."""

    title: str
    anchor: str
    done: bool
    tables: Sequence[beside.Rows]
    figures: Sequence[pictures.Figure]
    note: str


class Port:
    """What the document says of one model; `shared`: records of no one model."""

    def __init__(self, folder: Path, name: str, shared: Records, words: Messages):
        self.name, self.anchor, self.words = name, slug(name), words
        self.records = self._held = records(folder, name, words)
        self.title = next(iter(self.records.values()))("model")
        if any(stage in READERS for _, stage in self.records):  # else the port has not seen the report's data set
            self._held = self.records | dict(shared)
        evidence = Evidence(folder, name)
        curves, results = (pictures.draw(evidence, question) for question in ("training", "evaluation"))
        self.items = (
            self._asked("environment", ENVIRONMENT),
            self._asked("data", DATA),
            self._more(self._asked("training_script", TRAINING), "training"),
            self._asked("test_script", TESTING),
            self._alignment(),
            self._more(self._performance(), "speed"),
            self._log(),
            self._item("curves", bool(curves), figures=curves),
            self._item("results", bool(results), figures=results),
        )
        self.checklist = [(words(f"checklist.{key}"), self._answer(key, asks)) for key, asks in CHECKLIST.items()]

    def _item(
        self, key: str, done: bool, tables: Iterable[beside.Rows] = (), figures: Sequence[pictures.Figure] = ()
    ) -> Item:
        title, note = self.words(f"handin.{key}"), self.words(f"handin.{key}.note")
        return Item(title, f"{self.anchor}-{key}", done, tuple(tables), figures, note)

    def _more(self, item: Item, question: str) -> Item:
        """The item with the tables that stand beside this question's verdicts; it is done, or not, as it was."""
        more = beside.tables(question, self.name, self.records, self._held, self.words)
        return replace(item, tables=(*item.tables, *(table.rows for table in more if table.rows)))

    def _header(self, *keys: str) -> list[Markup]:
        return [escape(self.words(key) if key else "") for key in keys]

    def _value(self, ask: Ask, side: str) -> Markup | None:
        """The bound field, or None where no record holds it."""
        held = next((self._held[side, stage] for stage in ask.stages if (side, stage) in self._held), None)
        return held.find(*(side if key == "SIDE" else key for key in ask.keys)) if held else None

    def _asked(self, key: str, asks: Sequence[Ask]) -> Item:
        sides = asks[0].sides
        cells = [[self._value(ask, side) for side in sides] for ask in asks]
        titles = ("column.quantity", *(f"side.{side}" for side in sides)) if sides == BOTH else ("", "handin.all")
        rows = [
            [escape(self.words(ask.label)), *(one or not_run(self.words) for one in line)]
            for ask, line in zip(asks, cells)
        ]
        return self._item(key, all(one for line in cells for one in line), [[self._header(*titles), *rows]])

    def _alignment(self) -> Item:
        """The table of verdicts, a row per question."""
        compared = self.records.get(("none", "compare"))
        if compared is None:
            return self._item("alignment", False)
        verdicts = compared.value("fields", "verdicts")
        cells = {
            (one["question"], one["pair"]): compared.badge("fields", "verdicts", i, "verdict")
            for i, one in enumerate(verdicts)
        }
        pairs = [f"{a}-{b}" for a, b in PAIRS]
        rows = [
            [*self._header(f"question.{question}"), *(cells.get((question, pair), escape("–")) for pair in pairs)]
            for question in dict.fromkeys(one["question"] for one in verdicts)
        ]
        lists = {compared.ref("fields", "verdicts"): verdicts}
        total = [[*self._header(f"verdict.{kind}"), count((kind,), lists)] for kind in KINDS]
        tables = [
            [[*self._header("summary.question"), *(escape(self.words.pair(pair)) for pair in pairs)], *rows],
            [self._header("verdicts", "handin.number"), *total],
        ]
        return self._item("alignment", all(one["verdict"] != "NOT RUN" for one in verdicts), tables)

    def _performance(self) -> Item:
        """Times and memory, a row per case and side."""
        held = {side: self._held[side, "speed"] for side in BOTH if (side, "speed") in self._held}
        rows = [
            [
                Markup("{} {}").format(*self._header(f"side.{side}", f"handin.work.{case['operation']}")),
                *(one("fields", "cases", i, *keys) for keys in PERFORMANCE.values()),
            ]
            for side, one in held.items()
            for i, case in enumerate(one.value("fields", "cases"))
        ]
        header = self._header("column.quantity", *(f"handin.line.{label}" for label in PERFORMANCE))
        return self._item("performance", len(held) == len(BOTH), [[header, *rows]] if rows else [])

    def _log(self) -> Item:
        """The loss at the first and last step, and every evaluation, of each framework."""
        held = {side: self._held[side, "train"] for side in BOTH if (side, "train") in self._held}
        tables = [table for side, one in held.items() for table in self._steps(one, side)]
        return self._item("training_log", len(held) == len(BOTH), tables)

    def _steps(self, held: Held, side: str) -> Iterator[beside.Rows]:
        last = len(held.value("fields", "curves", "step")) - 1
        curves = ("step", "loss", "learning_rate")
        yield [
            self._header(f"side.{side}", "handin.line.step", "handin.line.loss", "handin.line.rate"),
            *(
                [*self._header(f"handin.line.{label}"), *(held("fields", "curves", name, i) for name in curves)]
                for label, i in (("first", 0), ("last", last))
            ),
        ]
        epoch = self.words("handin.line.epoch")
        yield [
            self._header(f"side.{side}", "handin.line.step", "AP", "AP50"),
            *(
                [
                    Markup("{} {}").format(epoch, held("fields", "epochs", i, "epoch")),
                    *(held("fields", "epochs", i, name) for name in ("step", "AP", "AP50")),
                ]
                for i in range(len(held.value("fields", "epochs")))
            ),
        ]

    def _answer(self, key: str, asks: tuple[Ask, ...] | Told) -> Markup:
        """What the records say to a demand of the checklist."""
        gap = not_run(self.words)
        if isinstance(asks, Told):
            there = (asks.side, asks.stage) in self._held
            return escape(self.words(f"checklist.{key}.answer")) if there else gap
        parts = []
        for side in asks[0].sides if asks else ():
            values = [(self.words(ask.label), self._value(ask, side)) for ask in asks]
            said = self.words.joined([Markup("{} {}").format(*one) for one in values if one[1]])
            said += Markup(" {}").format(gap) if not all(value for _, value in values) else ""
            name = self.words(f"side.{side}")
            parts.append(self.words.say("join.about", name=name, value=said) if side in BOTH else said)
        return Markup("<br>").join(parts) or gap


class Document:
    """Everything the template asks for. `folder`: of the records; `out`: of the page."""

    def __init__(self, folder: Path, out: Path, models: Sequence[str], words: Messages):
        self.words, self.profile, self.files = words, out.name, os.path.relpath(folder, out)
        shared = records(folder, SHARED, words)
        self.ports = [Port(folder, model, shared, words) for model in models]
        self.records = [*shared.values(), *(one for port in self.ports for one in port.records.values())]


def render(report: Path, models: Sequence[str] = (), language: str = "en") -> Rendered:
    """Write handin.html and handin.pdf of these models (none named: all with records) into the report's folder."""
    folder = report / "records"
    known = sorted(path.name for path in folder.glob("*") if path.name != SHARED and any(path.glob("*/*.json")))
    if not known:
        raise UserError(f"{folder}: holds no records; run `make report`, or bring the records of your port")
    if unknown := [model for model in models if model not in known]:
        raise UserError(f"{folder}: {unknown[0]} has no records; there are {', '.join(known)}")
    document = Document(folder, report, models or known, Messages(language))
    return write(report, "handin.html", "handin.pdf", "handin.html.j2", document)
