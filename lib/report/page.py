"""The content of the report, taken from records: what stands where, with each number bound to the field that holds it."""
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from lib import figures, tables
from lib.alignment.evidence import PAIRS, Evidence, pointer
from lib.errors import UserError
from lib.record import Record
from lib.report.messages import Messages

SHOWN_ROWS = 2  # of each kind, the worst first
STAGES = ("data", "convert", "forward", "loss", "train", "evaluate", "speed", "compare")


@dataclass(frozen=True)
class Block:
    """One pair's part of a question: its verdict in a sentence, and the table below it."""

    pair: str
    title: str
    verdict: str
    reason: Markup
    targets: Markup | None
    notes: tuple[str, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[Markup, ...], ...]
    count: Markup | None


@dataclass(frozen=True)
class Section:
    question: str
    anchor: str
    blocks: tuple[Block, ...]
    numbers: tuple[tuple[Markup, ...], ...]  # header, then rows
    pictures: tuple[tuple[Markup, str], ...]  # figure, what to look for


@dataclass(frozen=True)
class Model:
    name: str
    anchor: str
    matrix: tuple[tuple[str, str, tuple[str, ...]], ...]  # question, anchor, a verdict per pair ("" where none is asked)
    sections: tuple[Section, ...]


def bound(value: Any, ref: str, text: str | None = None) -> Markup:
    """A number with the address of the field that holds it; `text` None: formatted as all numbers of the report are."""
    return Markup('<data value="{}" data-ref="{}" title="{}">{}</data>').format(
        value, ref, ref, tables.text(value) if text is None else text
    )


class Page:
    """Everything the template asks for."""

    def __init__(self, folder: str | Path, models: Sequence[str], profile: str, words: Messages):
        self.words, self.profile, self.folder = words, profile, Path(folder)
        self.evidence = {model: Evidence(folder, model) for model in models}
        for model, evidence in self.evidence.items():
            if evidence.get("none", "compare") is None:
                raise UserError(f"{self.folder}: {model} has no verdicts; run notebook 90_compare, or python -m lib compare")
        self.models = tuple(self._model(model) for model in models)
        self.records = tuple(self._records())
        self.pairs = tuple(words("pair").format(first=words(a), second=words(b)) for a, b in PAIRS)

    @staticmethod
    def bound(value: Any, run_id: str, *keys: str) -> Markup:
        """A field of a record, bound; a time of day without the letters of its standard, an absent value as a dash."""
        text = "–" if value is None else value.replace("T", " ").removesuffix("+00:00") if keys[-1] == "started" else None
        return bound(value, pointer(run_id, *keys), text)

    # ------------------------------------------------------------------------------------------------------ summary

    @property
    def counts(self) -> Markup:
        """How many verdicts there are of each kind. Counted here: the report has no other number of its own."""
        found = [v["verdict"] for e in self.evidence.values() for v in e.field("none", "compare", "verdicts")]
        number = {kind: found.count(kind) for kind in ("PASS", "FAIL", "NOT RUN")}
        return Markup(escape(self.words("counts"))).format(
            passed=number["PASS"], judged=number["PASS"] + number["FAIL"], failed=number["FAIL"], not_run=number["NOT RUN"]
        )

    @property
    def compared(self) -> Record:
        return next(iter(self.evidence.values())).get("none", "compare")

    def provenance(self, *keys: str) -> Markup:
        """A field of the comparison's provenance, bound."""
        value: Any = self.compared.provenance.model_dump(mode="json")
        for key in keys:
            value = value[key]
        return self.bound(value, self.compared.run_id, "provenance", *keys)

    @property
    def machine(self) -> Markup:
        names = {"cpu": "cpu", "cores": "cores", "memory": "memory_gib", "os": "os"}
        return Markup(escape(self.words("machine_value"))).format(**{k: self.provenance("machine", v) for k, v in names.items()})

    @property
    def commit(self) -> Markup:
        provenance = self.compared.provenance
        if provenance.git_commit is None:
            return escape(self.words("commit_absent"))
        dirty = f", {self.words('commit_dirty')}" if provenance.git_dirty else ""
        return Markup("{}{}").format(self.provenance("git_commit"), dirty)

    @property
    def reference(self) -> Markup:
        held = next((r for r in self.records if r.side == "published"), None)
        if held is None:
            return escape(self.words("reference_absent"))
        commit = bound(held.provenance.versions["published"], pointer(held.run_id, "provenance", "versions", "published"))
        return Markup(escape(self.words("reference_value"))).format(commit=commit)

    @property
    def frameworks(self) -> Markup:
        found = {}
        for held in self.records:
            if held.side in held.provenance.versions and held.side != "published":
                found.setdefault(held.side, bound(held.provenance.versions[held.side], pointer(held.run_id, "provenance", "versions", held.side)))
        return Markup(", ").join(Markup("{} {}").format(self.words(side), version) for side, version in found.items())

    @property
    def k(self) -> Markup:
        return bound(self.compared.fields["k"], pointer(self.compared.run_id, "fields", "k"))

    # ---------------------------------------------------------------------------------------------------- questions

    def _model(self, name: str) -> Model:
        verdicts = self.evidence[name].field("none", "compare", "verdicts")
        questions = list(dict.fromkeys(verdict["question"] for verdict in verdicts))
        anchor = slug(name)
        held = {(verdict["question"], verdict["pair"]): verdict["verdict"] for verdict in verdicts}
        matrix = tuple(
            (question, f"{anchor}-{question}", tuple(held.get((question, f"{a}-{b}"), "") for a, b in PAIRS)) for question in questions
        )
        return Model(name, anchor, matrix, tuple(self._section(name, anchor, question) for question in questions))

    def _section(self, model: str, anchor: str, question: str) -> Section:
        evidence = self.evidence[model]
        own = [(i, v) for i, v in enumerate(evidence.field("none", "compare", "verdicts")) if v["question"] == question]
        return Section(
            question, f"{anchor}-{question}", tuple(self._block(evidence, i, verdict) for i, verdict in own),
            self._numbers([number for _, verdict in own for number in verdict["numbers"]]),
            tuple(_pictures(evidence, question, self.words)),
        )  # fmt: skip

    def _block(self, evidence: Evidence, index: int, verdict: Mapping[str, Any]) -> Block:
        columns = evidence.field("none", "compare", "columns")
        rows = [(i, dict(zip(columns, row))) for i, row in enumerate(verdict["rows"])]
        # What is identical is said in the sentence; a row of zeros adds nothing.
        ranked = _worst([(i, row) for i, row in rows if row["gate"] != 0 or not row["passed"]])
        address = (evidence.run_id("none", "compare"), "fields", "verdicts", index)
        shown = ("name", "what", "error", "floor", "gate", "ratio") + (("target",) if verdict["target"] else ()) + ("note",)
        rows = tuple(tuple(self._cell(row, c, pointer(*address, "rows", i, columns.index(c))) for c in shown) for i, row in ranked)
        first, second = verdict["pair"].split("-")
        total = bound(verdict["values"].get("total"), pointer(*address, "values", "total"))
        count = Markup(escape(self.words("all_rows"))).format(count=total) if rows else None
        notes = tuple(verdict["notes"])
        return Block(
            verdict["pair"], self.words("pair").format(first=self.words(first), second=self.words(second)), verdict["verdict"],
            self._reason(verdict, address), self._targets(verdict, address), notes, tuple(self.words(f"column_{c}") for c in shown), rows, count,
        )  # fmt: skip

    def _cell(self, row: Mapping[str, Any], column: str, ref: str) -> Markup:
        value = row[column]
        if column == "target":
            return escape(self.words(value)) if value else Markup("")
        if column in ("name", "what", "note"):
            return escape(value)
        return bound(value, ref)

    def _reason(self, verdict: Mapping[str, Any], address: tuple) -> Markup:
        values = {}
        for name, value in verdict["values"].items():
            ref = pointer(*address, "values", name)
            if name == "ratios":
                value = Markup("; ").join(Markup("{} {}").format(key, bound(v, f"{ref}/{key}")) for key, v in value.items())
            elif isinstance(value, int | float):
                value = bound(value, ref)
            values[name] = value
        first, second = verdict["pair"].split("-")
        names = {"first": self.words(first), "second": self.words(second)}
        return Markup(escape(self.words(verdict["reason"]))).format(**(names | values))

    def _targets(self, verdict: Mapping[str, Any], address: tuple) -> Markup | None:
        if not verdict["target"] or not verdict["targets"]:
            return None
        counts = {key: verdict["targets"].get(name) for key, name in (("met", "met"), ("missed", "missed"), ("below", "below rounding"))}
        names = {"met": "met", "missed": "missed", "below": "below rounding"}
        numbers = {k: "none" if v is None else bound(v, pointer(*address, "targets", names[k])) for k, v in counts.items()}
        return Markup(escape(self.words("targets"))).format(target=bound(verdict["target"], pointer(*address, "target")), **numbers)

    def _numbers(self, numbers: Sequence[Mapping[str, Any]]) -> tuple[tuple[Markup, ...], ...]:
        """A table with a row per quantity and a column per side; nothing where the question has no such numbers."""
        if not numbers:
            return ()
        held = {((n["label"], n["about"]), n["side"]): bound(n["value"], n["ref"]) for n in numbers}
        sides = [side for side in figures.SIDES if any(s == side for _, s in held)]
        keys = list(dict.fromkeys(key for key, _ in held))
        header = (escape(self.words("column_quantity")), *(escape(self.words(side)) for side in sides))
        body = (
            (escape(" ".join(filter(None, (self.words(label), about)))), *(held.get(((label, about), side), Markup("")) for side in sides))
            for label, about in keys
        )
        return (header, *body)

    def _records(self) -> Iterator[Record]:
        for evidence in self.evidence.values():
            for stage in STAGES:
                for side in (*figures.SIDES, "none"):
                    if held := evidence.get(side, stage):
                        yield held


def _worst(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Of each kind of comparison the rows closest to, or farthest beyond, their gates."""
    def rank(item: tuple[int, Mapping[str, Any]]) -> float:
        ratio = item[1]["ratio"]
        return float("-inf") if isinstance(ratio, str) else -ratio  # infinite: a fault

    kinds: dict[str, list] = {}
    for item in sorted(rows, key=rank):
        kinds.setdefault(item[1]["what"], []).append(item)
    return [item for items in kinds.values() for item in items[:SHOWN_ROWS]]


def _pictures(evidence: Evidence, question: str, words: Messages) -> Iterator[tuple[Markup, str]]:
    """The figures of a question, as far as the records hold what they show."""
    def shown(picture: figures.Picture, see: str) -> tuple[Markup, str]:
        return Markup(picture.html()), words(see)

    if question in ("forward", "gradients"):
        columns = evidence.field("none", "compare", "columns")
        found = {v["pair"]: [dict(zip(columns, row)) for row in v["rows"]] for v in evidence.field("none", "compare", "verdicts")
                 if v["question"] == question and v["rows"]}  # fmt: skip
        if found and question == "forward":
            side = next(side for side in ("torch", "jittor", "published") if evidence.get(side, "forward"))
            yield shown(figures.forward_depth(found, evidence.field(side, "forward", "depth")), "forward_see")
        elif found:
            yield shown(figures.gradient_errors(found), "gradients_see")
    elif question == "training" and (sides := _present(evidence, "train")):
        yield shown(figures.loss_curves({s: evidence.field(s, "train", "curves") for s in sides}), "training_see")
        yield shown(figures.map_curves({s: evidence.field(s, "train", "epochs") for s in sides}), "training_map_see")
    elif question == "evaluation" and (sides := _present(evidence, "evaluate")):
        held = {side: (evidence.get(side, "evaluate").fields, evidence.arrays(side, "evaluate")) for side in sides}
        yield shown(figures.detections(tables.samples(held, "common"), held[sides[0]][0]["classes"]), "evaluation_see")
    elif question == "speed" and (sides := _present(evidence, "speed")):
        cases = {side: evidence.field(side, "speed", "cases") for side in sides}
        yield shown(figures.speed(cases), "speed_see")
        yield shown(figures.memory(cases), "memory_see")


def _present(evidence: Evidence, stage: str) -> list[str]:
    return [side for side in ("torch", "jittor") if evidence.get(side, stage)]


def slug(text: str) -> str:
    """An ASCII anchor for a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
