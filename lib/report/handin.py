"""What the author of a port hands in, as notebook 95_handin shows it: each item from the records, or marked NOT RUN.

Environment, data preparation, training script, test script, alignment log, performance log, training log, loss curves,
visual results, and the checklist of reproducible machine learning. A port brought by a user is a folder of records.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape

from lib.alignment.evidence import PAIRS, Evidence
from lib.alignment.questions import QUESTIONS
from lib.errors import UserError
from lib.machine.notebook import BOTH
from lib.report import beside, pictures
from lib.report.bound import SHARED, Records, count, not_run, records, slug
from lib.report.fragments import Fragment, fragment
from lib.report.page import Notebooks, provenance
from lib.show.messages import Messages

NO_SIDE = ("none",)  # records that no framework wrote
READERS = ("train", "evaluate")  # stages that read the data set
RAN = ("train", "evaluate", "loss", "forward", "convert", "speed")  # any of these says what the framework ran on
KINDS = ("PASS", "FAIL", "NOT COMPARABLE", "NOT RUN", "SHOWN", "UNDERPOWERED")


class Ask(NamedTuple):
    """One line: what it is called, which stage's record tells (the first that is there), and its field."""

    label: str
    stages: tuple[str, ...]
    keys: list[str]  # "SIDE" stands for the side's name
    sides: tuple[str, ...]


class Told(NamedTuple):
    """A demand that the catalogue's text meets, where there is such a record."""

    side: str
    stage: str


def _asks(stages: tuple[str, ...], where: str, sides: tuple[str, ...] = BOTH, **fields: str) -> tuple[Ask, ...]:
    """fields: what each line is called, and the place of its field below `where`."""
    return tuple(Ask(f"handin.line.{label}", stages, f"{where}/{at}".split("/"), sides) for label, at in fields.items())


ENVIRONMENT = (
    *_asks(RAN, "provenance/versions", framework="SIDE", python="python", numpy="numpy"),
    *_asks(RAN, "provenance/machine", cpu="cpu", cores="cores", memory="memory_gib", os="os"),
    *_asks(RAN, "provenance", device="device", threads="threads", commit="git_commit"),
)
_SPLITS = {f"{split}_{key}": f"{split}/{key}" for split in ("train", "val") for key in ("images", "boxes")}
_HASHES = {f"{split}_sha256": f"{split}/images_sha256" for split in ("train", "val")}
DATA = (
    *_asks(("data",), "fields", NO_SIDE, dataset="name"),
    *_asks(("data",), "fields/splits", NO_SIDE, **_SPLITS, **_HASHES),
    *_asks(("data",), "provenance", NO_SIDE, command="command"),
)
TRAINING = (
    *_asks(("train",), "provenance", command="command", seed="seed"),
    *_asks(("train",), "fields", steps="steps", seconds="seconds", final_ap="final/AP", final_ap50="final/AP50"),
    *_asks(("train",), "fields/checkpoint", weights="path", weights_sha256="sha256"),
    *_asks(("train",), "provenance", peak="peak_rss_mib"),
)
TESTING = (
    *_asks(("evaluate",), "provenance", command="command"),
    *_asks(("evaluate",), "fields", images="images", own_ap="own/AP", own_ap50="own/AP50", common_ap="common/AP"),
    *_asks(("evaluate",), "fields", common_sha256="common_weights_sha256"),
    *_asks(("evaluate",), "provenance", wall="wall_seconds"),
)
# The checklist: a demand, and the lines that meet it; no line: NOT RUN.
CHECKLIST: dict[str, tuple[Ask, ...] | Told] = {
    "model": _asks(("convert",), "fields", parameters="parameters"),
    "assumptions": Told("none", "compare"),
    "cost": (TRAINING[3], TRAINING[8]),
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
    "batch": ["batch"],
    **{label: ["synchronised_ms", key] for label, key in (("median", "median"), ("low", "q1"), ("high", "q3"))},
    "unsynchronised": ["unsynchronised_ms", "median"],
    "peak": ["memory", "peak_mib"],
}


CURVES = ("step", "loss", "learning_rate")  # of a training's log


@dataclass(frozen=True)
class Item:
    """One thing to hand in; `done` False: not all of it has a record."""

    model: Markup
    anchor: str
    done: bool
    tables: Sequence[beside.Rows]
    figures: Sequence[pictures.Figure]
    notebooks: Sequence[Markup]  # links


class Port:
    """What the document says of one model; `shared`: records of no one model."""

    def __init__(self, folder: Path, name: str, shared: Records, notebooks: Notebooks, words: Messages):
        self.name, self.anchor, self.words = name, slug(name), words
        self.records = self._held = records(folder, name, words)
        self.title = next(iter(self.records.values()))("model")
        if any(stage in READERS for _, stage in self.records):  # else the port has not seen the report's data set
            self._held = self.records | dict(shared)
        evidence = Evidence(folder, name)
        curves, results = (pictures.draw(evidence, one, words) for one in ("training", "evaluation"))
        self._notebooks = notebooks
        self.items = {
            "environment": self._item("environment", *self._asked(ENVIRONMENT)),
            "data": self._item("data", *self._asked(DATA), questions=("data",)),
            "training_script": self._item("training_script", *self._asked(TRAINING), questions=("training",)),
            "test_script": self._item("test_script", *self._asked(TESTING), questions=("evaluation",)),
            "alignment": self._item("alignment", *self._alignment()),
            "performance": self._item("performance", *self._performance(), questions=("speed", "divergence")),
            "training_log": self._item("training_log", *self._log()),
            "curves": self._item("curves", bool(curves), figures=curves),
            "results": self._item("results", bool(results), figures=results),
        }
        self.checklist = [(words(f"checklist.{key}"), self._answer(key, asks)) for key, asks in CHECKLIST.items()]

    def _item(
        self,
        key: str,
        done: bool,
        tables: Sequence[beside.Rows] = (),
        figures: Sequence[pictures.Figure] = (),
        questions: Sequence[str] = (),
    ) -> Item:
        """questions: their notebooks measured this, and the tables beside their verdicts are the item's too."""
        others = (beside.tables(one, self.name, self.records, self._held, self.words) for one in questions)
        every = [*tables, *(table.rows for found in others for table in found if table.rows)]
        links = [link for one in questions for link in self._notebooks.of(QUESTIONS[one].notebooks, self.name)]
        return Item(self.title, f"{self.anchor}-{key}", done, every, figures, links)

    def _header(self, *keys: str) -> list[Markup]:
        return [escape(self.words(key) if key else "") for key in keys]

    def _value(self, ask: Ask, side: str) -> Markup | None:
        """The bound field, or None where no record holds it."""
        held = next((self._held[side, stage] for stage in ask.stages if (side, stage) in self._held), None)
        return held.find(*(side if key == "SIDE" else key for key in ask.keys)) if held else None

    def _asked(self, asks: Sequence[Ask]) -> tuple[bool, list[beside.Rows]]:
        """Whether all are told, and the table; so of each kind of item."""
        sides = asks[0].sides
        titles = ("column.quantity", *(f"side.{side}" for side in sides)) if sides == BOTH else ("", "handin.all")
        cells = [[self._value(ask, side) for side in sides] for ask in asks]
        rows = [
            [*self._header(ask.label), *(one or not_run(self.words) for one in line)] for ask, line in zip(asks, cells)
        ]
        return all(one for line in cells for one in line), [[self._header(*titles), *rows]]

    def _alignment(self) -> tuple[bool, list[beside.Rows]]:
        """A row per question, a column per pair; and how many verdicts there are of each kind."""
        compared = self.records.get(("none", "compare"))
        if compared is None:
            return False, []
        place = ("fields", "verdicts")
        verdicts = compared.value(*place)
        cells = {(v["question"], v["pair"]): compared.badge(*place, i, "verdict") for i, v in enumerate(verdicts)}
        pairs = [f"{a}-{b}" for a, b in PAIRS]
        rows = [
            [*self._header(f"question.{question}"), *(cells.get((question, pair), escape("–")) for pair in pairs)]
            for question in dict.fromkeys(one["question"] for one in verdicts)
        ]
        lists = {compared.ref(*place): verdicts}
        total = [[*self._header(f"verdict.{kind}"), count((kind,), lists)] for kind in KINDS]
        header = [*self._header("summary.question"), *(escape(self.words.pair(pair)) for pair in pairs)]
        tables = [[header, *rows], [self._header("verdicts", "handin.number"), *total]]
        return all(one["verdict"] not in ("NOT RUN", "NOT COMPARABLE") for one in verdicts), tables

    def _performance(self) -> tuple[bool, list[beside.Rows]]:
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
        return len(held) == len(BOTH), [[header, *rows]] if rows else []

    def _log(self) -> tuple[bool, list[beside.Rows]]:
        """The loss at the first and last step, and every evaluation, of each framework."""
        tables = []
        held = {side: self._held[side, "train"] for side in BOTH if (side, "train") in self._held}
        for side, one in held.items():
            ends = {"first": 0, "last": len(one.value("fields", "curves", "step")) - 1}
            steps = [
                [*self._header(f"handin.line.{end}"), *(one("fields", "curves", name, i) for name in CURVES)]
                for end, i in ends.items()
            ]
            epoch = self.words("handin.line.epoch")
            epochs = [
                [
                    Markup("{} {}").format(epoch, one("fields", "epochs", i, "epoch")),
                    *(one("fields", "epochs", i, name) for name in ("step", "AP", "AP50")),
                ]
                for i in range(len(one.value("fields", "epochs")))
            ]
            titles = [f"handin.line.{name}" for name in ("step", "loss", "rate")], ["handin.line.step", "AP", "AP50"]
            tables += [[self._header(f"side.{side}", *names), *rows] for names, rows in zip(titles, (steps, epochs))]
        return len(held) == len(BOTH), tables

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
    """The hand-in of some models (none named: of all that have records). Each method is one of its parts, for a cell.

    folder: of the records; out: where the page will lie.
    """

    def __init__(self, folder: str | Path, out: str | Path, models: Sequence[str] = (), language: str = "en"):
        models = known(Path(folder), models)
        self.words, self.files = Messages(language), os.path.relpath(folder, out)
        shared = records(Path(folder), SHARED, self.words)
        notebooks = Notebooks(Path(out), self.words)
        self.ports = [Port(Path(folder), model, shared, notebooks, self.words) for model in models]
        self.records = [*shared.values(), *(one for port in self.ports for one in port.records.values())]

    def summary(self) -> Fragment:
        """The first page: what is filled and what is not."""
        return fragment("items.html.j2", page=self, t=self.words)

    def item(self, key: str) -> Fragment:
        """One thing to hand in, model by model."""
        items = [port.items[key] for port in self.ports]
        return fragment("item.html.j2", items=items, several=len(items) > 1, t=self.words)

    def checklist(self) -> Fragment:
        return fragment("checklist.html.j2", page=self, t=self.words)

    def provenance(self) -> Fragment:
        return provenance(self.records, self.files, self.words)


def known(folder: Path, models: Sequence[str]) -> Sequence[str]:
    """The models asked for, by default all that have records; UserError for one that has none."""
    found = sorted(path.name for path in folder.glob("*") if path.name != SHARED and any(path.glob("*/*.json")))
    if not found:
        raise UserError(f"{folder}: holds no records; run `make report`, or bring the records of your port")
    if unknown := [model for model in models if model not in found]:
        raise UserError(f"{folder}: {unknown[0]} has no records; there are {', '.join(found)}")
    return models or found
