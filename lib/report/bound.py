"""What ties the text of a page to the records: each number and name stands in an element that says where it comes from.

    <data value="…" data-ref="run_id#/json/pointer">…</data>       a number, or nothing ("–"), of a record
    <span data-ref="run_id#/json/pointer">…</span>                 a text of a record: a name, a command, a version
    <data value="…" data-ref="… …" data-count="PASS">…</data>      how many verdicts of such a kind are in these lists

`lib.report.verify` reads the same elements back: text, value and record must agree by the rules of this module.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from lib.alignment.evidence import pointer
from lib.errors import UserError
from lib.record import Record, read
from lib.show.messages import Messages
from lib.show.tables import text

ABSENT = "–"
COMMIT = 12  # characters of a commit that are shown
RATIO = 5  # the column of a verdict's rows that holds error over gate
STAGES = ("data", "rosetta", "convert", "forward", "divergence", "operators", "loss")
STAGES += ("train", "lockstep", "evaluate", "speed", "compare", "gaps")
SIDES = ("published", "torch", "jittor", "none")
SHARED = "all"  # in place of a model: records of no one model

Records = Mapping[tuple[str, str], "Held"]  # by side and stage


def slug(text: str) -> str:
    """An ASCII anchor for a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def anchor(ref: str) -> str:
    """Where a page says more about the record of a reference."""
    return f"record-{slug(ref.partition('#')[0])}"


def shown(value: Any, ref: str, words: Messages) -> str:
    """The text that stands for the value of a field; the place of the field says what kind of number it is."""
    keys = ref.split("/")
    if value is None:
        return ABSENT
    if keys[-1] == "started":
        return value.replace("T", " ").removesuffix("+00:00")
    if keys[-1] in ("git_commit", "published"):
        return value[:COMMIT]
    if isinstance(value, bool):
        return str(value)
    return words.term(value) if isinstance(value, str) else number(value, keys)


def number(value: float, keys: Sequence[str]) -> str:
    """A number in the notation of its kind, so that those of a column stand below each other."""
    place = [key for key in keys[-2:] if not key.isdigit()][-1:]
    if place in (["epoch"], ["step"]):
        return text(value + 1)  # records count from zero, readers from one
    if isinstance(value, int) or value == 0:
        return text(value)
    if keys[-3:-2] == ["rows"]:  # of a verdict: error, reach and gate span ten decades, their ratio does not
        return f"{value:.2e}" if int(keys[-1]) < RATIO else f"{value:.3f}"
    if keys[-1].startswith(("AP", "AR")):
        return f"{value:.4f}"
    return text(value)


class Bound(Markup):
    """An element that `verify` reads back."""

    @property
    def is_number(self) -> bool:
        return self.startswith("<a ")


def bound(value: Any, ref: str, words: Messages) -> Bound:
    """The element for a value that stands at `ref`; a number leads to the line of its record, and a name may be broken
    at its dots."""
    said = shown(value, ref, words)
    if isinstance(value, str):
        broken = re.sub(r"(?<=[./])(?=[^\W\d])", "<wbr>", str(escape(said)))
        return Bound(Markup('<span data-ref="{}">{}</span>').format(ref, Markup(broken)))
    return Bound(
        Markup('<a class="ref" href="#{}" title="{}"><data value="{}" data-ref="{}">{}</data></a>').format(
            anchor(ref), ref, value, ref, said
        )
    )


class Held:
    """A record whose fields a page shows: `held("provenance", "seed")` is the element for that field."""

    def __init__(self, record: Record, words: Messages):
        self.record, self.origin, self.words = record, record.provenance, words

    @cached_property
    def _content(self) -> dict[str, Any]:
        return self.record.model_dump(mode="json")

    def value(self, *keys: str | int) -> Any:
        """What stands there; UserError where the record has no such field."""
        value: Any = self._content
        try:
            for key in keys:
                value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            said = f"has no field /{'/'.join(map(str, keys))}; run its stage again"
            raise UserError(f"{self.record.run_id}: the record {said}") from error
        return value

    def ref(self, *keys: str | int) -> str:
        return pointer(self.record.run_id, *keys)

    def __call__(self, *keys: str | int) -> Bound:
        return bound(self.value(*keys), self.ref(*keys), self.words)

    def find(self, *keys: str | int) -> Bound | None:
        """The element, or None where the record has no such field, or nothing in it."""
        try:
            return None if self.value(*keys) is None else self(*keys)
        except UserError:
            return None

    def badge(self, *keys: str | int) -> Markup:
        """A verdict as a word in a frame."""
        verdict = self.value(*keys)
        if f"verdict.{verdict}" not in self.words.texts:
            raise UserError(f"{self.ref(*keys)}: {verdict!r:.60} is no verdict; run its stage again")
        return Markup('<span class="badge {}" data-ref="{}">{}</span>').format(
            badge_class(verdict), self.ref(*keys), self.words(f"verdict.{verdict}")
        )


def records(folder: Path, model: str, words: Messages) -> dict[tuple[str, str], Held]:
    """A model's records by side and stage, in the order of the stages; of SHARED those of no one model."""

    def place(one: Record) -> tuple:
        return STAGES.index(one.stage) if one.stage in STAGES else len(STAGES), SIDES.index(one.side), one.stage

    found = [read(path) for path in sorted(folder.glob(f"{model}/*/*.json"))]
    return {(one.side, one.stage): Held(one, words) for one in sorted(found, key=place)}


def not_run(words: Messages) -> Markup:
    """The frame that stands where a record is missing."""
    return Markup('<span class="badge not-run">{}</span>').format(words("verdict.NOT RUN"))


def badge_class(verdict: str) -> str:
    return verdict.lower().replace(" ", "-")


def count(kinds: Sequence[str], verdicts: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """How many verdicts are of these kinds. verdicts: reference of a list of verdicts -> the list."""
    refs, number = " ".join(verdicts), counted(kinds, verdicts.values())
    return Markup('<data value="{}" data-ref="{}" data-count="{}" title="{}">{}</data>').format(
        number, refs, " ".join(kind.replace(" ", "_") for kind in kinds), refs, number
    )


def counted(kinds: Sequence[str], lists: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    return sum(verdict["verdict"] in kinds for verdicts in lists for verdict in verdicts)


class Fields:
    """The records of a folder, looked up by reference."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.read = lru_cache(maxsize=None)(self._read)

    def __getitem__(self, ref: str) -> Any:
        """The value at a reference; UserError where there is no such record or no such field."""
        run_id, _, path = ref.partition("#/")
        value = self.read(run_id)
        for key in path.split("/"):
            key = key.replace("~1", "/").replace("~0", "~")
            try:
                value = value[int(key)] if isinstance(value, list) else value[key]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise UserError(f"{run_id}: the record has no field /{path}") from error
        return value

    def path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.json"

    def arrays(self, run_id: str) -> Path:
        return self.path(run_id).with_suffix(".safetensors")

    def _read(self, run_id: str) -> Any:
        path = self.path(run_id)
        if not re.fullmatch(r"[^/]+/[^/]+/[^/]+", run_id) or not path.is_file():
            raise UserError(f"{run_id}: the record is missing")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{run_id}: not a readable record ({error})") from error
