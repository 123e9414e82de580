"""The document that the author of a port hands in, each item filled from the records or marked NOT RUN.

Environment, data preparation, training script, test script, alignment log, performance log, training log, loss curves,
visual results, and the checklist of reproducible machine learning. A port brought by a user is a folder of records.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from lib.alignment.evidence import PAIRS, Evidence, pointer
from lib.errors import UserError
from lib.record import Record
from lib.report import Rendered, beside, pictures, sources, write
from lib.report.bound import badge, bound, count, slug
from lib.report.messages import Messages

BOTH = ("torch", "jittor")
SHARED = ("none",)  # records that no framework wrote
READERS = ("train", "evaluate")  # stages that read the data set
RAN = ("train", "evaluate", "loss", "forward", "convert", "speed")  # any of these says what the framework ran on
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
    return tuple(Ask(f"h_{label}", tuple(stages), path, sides) for label, path in keys.items())


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
    SHARED,
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
    "c_model": _asks(("convert",), BOTH, parameters=("fields", "parameters")),
    "c_assumptions": Told("none", "compare"),
    "c_cost": _asks(("train",), BOTH, seconds=("fields", "seconds"), peak=(ORIGIN, "peak_rss_mib")),
    "c_data": DATA[:5],
    "c_splits": DATA[5:7],
    "c_preparation": DATA[7:],
    "c_dependencies": ENVIRONMENT[:3],
    "c_training": TRAINING[:1],
    "c_testing": TESTING[:1],
    "c_weights": TRAINING[6:8],
    "c_settings": Told("torch", "train"),
    "c_runs": TRAINING[1:2],
    "c_measure": TESTING[1:4],
    "c_variation": (),  # no stage repeats a training with other seeds
    "c_time": (*TRAINING[3:4], *TESTING[6:]),
    "c_machine": ENVIRONMENT[3:6],
}


@dataclass(frozen=True)
class Item:
    """One thing to hand in; `done` False: not all of it has a record."""

    title: str
    anchor: str
    done: bool
    tables: tuple[tuple[tuple[Markup, ...], ...], ...] = ()
    figures: tuple[pictures.Figure, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Port:
    name: str
    title: Markup
    anchor: str
    items: tuple[Item, ...]
    checklist: tuple[tuple[str, Markup], ...]


class Document:
    """Everything the template asks for. `folder`: of the records; `out`: of the page."""

    def __init__(self, folder: Path, out: Path, models: Sequence[str], words: Messages):
        self.words, self.folder, self.profile = words, folder, out.name
        self.files = os.path.relpath(folder, out)
        records = {model: sources.held(folder, model) for model in models}
        self.shared = sources.held(folder, "all")
        self.ports = tuple(self._port(model, records[model]) for model in models)
        every = [*self.shared, *(one for found in records.values() for one in found)]
        self.lines, self.columns, self.software = (
            sources.lines(every, self.files, words),
            sources.COLUMNS,
            sources.software(every, words),
        )

    def _port(self, model: str, records: Sequence[Record]) -> Port:
        held = {(one.side, one.stage): one for one in records}
        if any(stage in READERS for _, stage in held):  # else the port has not seen the report's data set
            held |= {(one.side, one.stage): one for one in self.shared}
        evidence = Evidence(self.folder, model)
        title = bound(model, pointer(records[0].run_id, "model"), self.words)
        items = (
            self._asked(model, "environment", ENVIRONMENT, held),
            self._asked(model, "data", DATA, held),
            self._more(self._asked(model, "training_script", TRAINING, held), evidence, "training"),
            self._asked(model, "test_script", TESTING, held),
            self._alignment(model, evidence),
            self._more(self._performance(model, held), evidence, "speed"),
            self._log(model, held),
            self._figure(model, "curves", evidence, "training"),
            self._figure(model, "results", evidence, "evaluation"),
        )
        checklist = tuple((self.words(key), self._answer(key, asks, held)) for key, asks in CHECKLIST.items())
        return Port(model, title, slug(model), items, checklist)

    def _more(self, item: Item, evidence: Evidence, question: str) -> Item:
        """The item with the tables that stand beside this question's verdicts; it is done, or not, as it was."""
        return replace(
            item,
            tables=(
                *item.tables,
                *(table.rows for table in beside.tables(evidence, question, self.words) if table.rows),
            ),
        )

    # ------------------------------------------------------------------------------------------------------- fields

    def _value(self, ask: Ask, side: str, held: dict[tuple[str, str], Record]) -> Markup | None:
        """The bound field, or None where no record holds it."""
        record = next((held[side, stage] for stage in ask.stages if (side, stage) in held), None)
        value: Any = record.model_dump(mode="json") if record else None
        keys = [side if key == "SIDE" else key for key in ask.keys]
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return None if value is None else bound(value, pointer(record.run_id, *keys), self.words)

    def _asked(self, model: str, key: str, asks: Sequence[Ask], held: dict[tuple[str, str], Record]) -> Item:
        sides = asks[0].sides
        cells = [[self._value(ask, side, held) for side in sides] for ask in asks]
        header = (
            (self.words("column_quantity"), *(self.words(side) for side in sides))
            if sides == BOTH
            else ("", self.words("h_all"))
        )
        rows = [
            (escape(self.words(ask.label)), *(cell or beside.not_run(self.words) for cell in line))
            for ask, line in zip(asks, cells)
        ]
        done = all(cell is not None for line in cells for cell in line)
        return self._item(model, key, done, [(tuple(map(escape, header)), *rows)])

    def _item(
        self, model: str, key: str, done: bool, tables: Iterable[tuple] = (), figures: Sequence[pictures.Figure] = ()
    ) -> Item:
        return Item(
            self.words(f"h_{key}"),
            f"{slug(model)}-{key}",
            done,
            tuple(tables),
            tuple(figures),
            self.words(f"h_{key}_note"),
        )

    # ---------------------------------------------------------------------------------------------------------- logs

    def _alignment(self, model: str, evidence: Evidence) -> Item:
        """The table of verdicts, a row per question."""
        if evidence.get("none", "compare") is None:
            return self._item(model, "alignment", False)
        verdicts = evidence.field("none", "compare", "verdicts")
        ref = pointer(evidence.run_id("none", "compare"), "fields", "verdicts")
        cells = {
            (v["question"], v["pair"]): badge(v["verdict"], f"{ref}/{i}/verdict", self.words)
            for i, v in enumerate(verdicts)
        }
        pairs = [(f"{a}-{b}", self.words("pair").format(first=self.words(a), second=self.words(b))) for a, b in PAIRS]
        rows = [
            (escape(self.words(question)), *(cells.get((question, pair), escape("–")) for pair, _ in pairs))
            for question in dict.fromkeys(v["question"] for v in verdicts)
        ]
        total = [
            (escape(self.words(kind)), count((kind,), {ref: verdicts}))
            for kind in ("PASS", "FAIL", "NOT RUN", "SHOWN", "UNDERPOWERED")
        ]
        tables = [
            ((escape(self.words("question")), *(escape(title) for _, title in pairs)), *rows),
            ((escape(self.words("verdicts")), escape(self.words("h_number"))), *total),
        ]
        return self._item(model, "alignment", all(v["verdict"] != "NOT RUN" for v in verdicts), tables)

    def _performance(self, model: str, held: dict[tuple[str, str], Record]) -> Item:
        """Times and memory, a row per case and side."""
        columns = {
            "h_batch": ("batch",),
            "h_median": ("synchronised_ms", "median"),
            "h_low": ("synchronised_ms", "q1"),
            "h_high": ("synchronised_ms", "q3"),
            "h_unsynchronised": ("unsynchronised_ms", "median"),
            "h_peak": ("memory", "peak_mib"),
        }
        rows = []
        for side in BOTH:
            record = held.get((side, "speed"))
            for i, case in enumerate(record.fields["cases"] if record else ()):
                found = [Markup("{} {}").format(self.words(side), self.words(f"h_{case['operation']}"))]
                for keys in columns.values():
                    value: Any = case
                    for key in keys:
                        value = value[key]
                    found.append(bound(value, pointer(record.run_id, "fields", "cases", i, *keys), self.words))
                rows.append(tuple(found))
        header = (escape(self.words("column_quantity")), *(escape(self.words(label)) for label in columns))
        done = all((side, "speed") in held for side in BOTH)
        return self._item(model, "performance", done, [(header, *rows)] if rows else [])

    def _log(self, model: str, held: dict[tuple[str, str], Record]) -> Item:
        """The loss at the first and last step, and every evaluation, of each framework."""
        tables = []
        for side in BOTH:
            if record := held.get((side, "train")):
                tables += self._steps(record, side)
        return self._item(model, "training_log", all((side, "train") in held for side in BOTH), tables)

    def _steps(self, record: Record, side: str) -> Iterator[tuple[tuple[Markup, ...], ...]]:
        def cell(*keys: str | int) -> Markup:
            value: Any = record.fields
            for key in keys:
                value = value[key]
            return bound(value, pointer(record.run_id, "fields", *keys), self.words)

        def header(*labels: str) -> tuple[Markup, ...]:
            return (escape(self.words(side)), *(escape(self.words(label)) for label in labels))

        last = len(record.fields["curves"]["step"]) - 1
        yield (
            header("h_step", "h_loss", "h_rate"),
            *(
                (escape(self.words(label)), *(cell("curves", name, i) for name in ("step", "loss", "learning_rate")))
                for label, i in (("h_first", 0), ("h_last", last))
            ),
        )
        yield (
            header("h_step", "AP", "AP50"),
            *(
                (
                    Markup("{} {}").format(self.words("h_epoch"), cell("epochs", i, "epoch")),
                    *(cell("epochs", i, name) for name in ("step", "AP", "AP50")),
                )
                for i in range(len(record.fields["epochs"]))
            ),
        )

    def _figure(self, model: str, key: str, evidence: Evidence, question: str) -> Item:
        found = pictures.draw(evidence, question)
        return self._item(model, key, bool(found), figures=found)

    # ----------------------------------------------------------------------------------------------------- checklist

    def _answer(self, key: str, asks: tuple[Ask, ...] | Told, held: dict[tuple[str, str], Record]) -> Markup:
        """What the records say to a demand of the checklist."""
        gap = beside.not_run(self.words)
        if isinstance(asks, Told):
            return escape(self.words(f"{key}_answer")) if (asks.side, asks.stage) in held else gap
        if not asks:
            return gap
        parts = []
        for side in asks[0].sides:
            values = [(self.words(ask.label), self._value(ask, side, held)) for ask in asks]
            said = Markup(", ").join(
                Markup("{} {}").format(label, value) for label, value in values if value is not None
            )
            missing = any(value is None for _, value in values)
            name = f"{self.words(side)}: " if side in BOTH else ""
            parts.append(Markup("{}{}{}").format(name, said, Markup(" {}").format(gap) if missing else ""))
        return Markup("<br>").join(parts)


def render(report: Path, models: Sequence[str] = (), language: str = "en") -> Rendered:
    """Write handin.html and handin.pdf of these models (none named: all with records) into the report's folder."""
    folder = report / "records"
    known = sorted(path.name for path in folder.glob("*") if path.name != "all" and any(path.glob("*/*.json")))
    if not known:
        raise UserError(f"{folder}: holds no records; run `make report`, or bring the records of your port")
    if unknown := [model for model in models if model not in known]:
        raise UserError(f"{folder}: {unknown[0]} has no records; there are {', '.join(known)}")
    words = Messages(language)
    return write(
        report, "handin.html", "handin.pdf", "handin.html.j2", Document(folder, report, models or known, words), words
    )
