"""Tables beside the verdicts of a question, shown and not judged: trainings by their start, the input pipeline, the engine's cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from lib.alignment.evidence import Evidence
from lib.families import FAMILIES
from lib.machine.notebook import BOTH
from lib.record import Record, read
from lib.report.bound import field
from lib.report.messages import Messages

STARTS = {
    "fresh weights": "start_fresh",
    "ImageNet start": "start_imagenet",
    "fine-tuned": "start_fine_tuned",
}  # as lib.training.starts names them
REPORTED = ("AP", "AP50")
LOADING = ("images_per_second", "waiting_seconds", "waiting_share")  # of a training
COST = ("times_plain", "seconds", "plain_seconds", "gb_per_second")  # of the engine's layer by layer comparison

Row = tuple[Markup, ...]


@dataclass(frozen=True)
class Table:
    """rows: header, then rows; none where nothing was measured. gap: what was not measured, in a sentence."""

    title: str
    lead: Markup
    rows: tuple[Row, ...]
    gap: str | None


def tables(evidence: Evidence, question: str, words: Messages) -> tuple[Table, ...]:
    """What stands beside the verdicts of this question."""
    return tuple(table(evidence, words) for table in _BESIDE.get(question, ()))


def not_run(words: Messages) -> Markup:
    """The frame that stands where a record is missing."""
    return Markup('<span class="badge not-run">{}</span>').format(words("NOT RUN"))


def _starts(evidence: Evidence, words: Messages) -> Table:
    """COCO's numbers before the first step and of the best epoch, for each start; fresh weights have none before."""
    held = _records(evidence, "train")
    rows, absent = [], []
    for name, key in STARTS.items():
        found = {side: one for side, one in held.items() if name in one.fields.get("starts", ())}
        if not found:
            absent.append(words(key))
        for when in ("before", "after"):
            if any(one.fields["starts"][name][when] for one in found.values()):
                cells = (
                    _cell(held.get(side), words, "starts", name, when, number) for side in BOTH for number in REPORTED
                )
                rows.append((escape(f"{words(key)}, {words(when)}"), *cells))
    header = (
        escape(words("starts_start")),
        *(escape(f"{words(side)} {number}") for side in BOTH for number in REPORTED),
    )
    gap = words("starts_absent").format(names=words("listed").join(absent)) if absent else None
    return Table(words("starts"), escape(words("starts_lead")), (header, *rows) if rows else (), gap)


def _loader(evidence: Evidence, words: Messages) -> Table:
    """How fast images come alone, and whether the trainings waited for them."""
    alone = _alone(evidence, words)
    lead = escape(words("loader_absent")) if alone is None else Markup(escape(words("loader_lead"))).format(alone=alone)
    return _sides("loader", _records(evidence, "train"), [(name,) for name in LOADING], lead, words)


def _alone(evidence: Evidence, words: Messages) -> Markup | None:
    """Images per second of reading and augmentation, which the data stage measured for each family's recipe."""
    path = evidence.folder / "all" / "none" / "data.json"
    family = next((family for family, names in FAMILIES.items() if evidence.model in names), None)
    if not path.is_file() or family not in (held := read(path)).fields.get("loader_images_per_second", ()):
        return None
    return field(held, words, "fields", "loader_images_per_second", family)


def _engine(evidence: Evidence, words: Messages) -> Table:
    return _sides(
        "engine",
        _records(evidence, "divergence"),
        [("cost", name) for name in COST],
        escape(words("engine_lead")),
        words,
    )


def _records(evidence: Evidence, stage: str) -> dict[str, Record]:
    return {side: held for side in BOTH if (held := evidence.get(side, stage))}


def _sides(
    name: str, held: dict[str, Record], fields: Sequence[tuple[str, ...]], lead: Markup, words: Messages
) -> Table:
    """A row per field, a column per side."""
    header = (escape(words("column_quantity")), *(escape(words(side)) for side in BOTH))
    rows = (
        (escape(words(f"{name}_{keys[-1]}")), *(_cell(held.get(side), words, *keys) for side in BOTH))
        for keys in fields
    )
    return Table(words(name), lead, (header, *rows) if held else (), None if held else words("beside_absent"))


def _cell(held: Record | None, words: Messages, *keys: str) -> Markup:
    """A field of a record, bound; NOT RUN where there is no such record or field."""
    value: Any = held.fields if held else None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return not_run(words) if held is None or value is None else field(held, words, "fields", *keys)


_BESIDE = {"training": (_starts,), "speed": (_loader, _engine)}
