"""Tables beside the verdicts, shown and not judged: trainings by their start, the input pipeline, the engine's cost;
and at the end of a page where its numbers come from."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from lib.families import FAMILIES
from lib.machine.notebook import BOTH
from lib.report.bound import Held, Records, not_run
from lib.show.messages import Messages

STARTS = ("fresh weights", "ImageNet start", "fine-tuned")  # as lib.training.runs names them
REPORTED = ("AP", "AP50")
LOADING = ("images_per_second", "waiting_seconds", "waiting_share")  # of a training
WINDOW = ("first", "resumed", "end")  # steps of a window of lock-step
COST = ("seconds", "plain_seconds")  # of the engine's layer by layer comparison; its verdict has their ratio

Rows = Sequence[Sequence[Markup]]  # a header, then rows; none where nothing was measured


@dataclass(frozen=True)
class Table:
    """gap: what was not measured, in a sentence."""

    title: str
    lead: Markup
    rows: Rows
    gap: Markup | str | None


def tables(question: str, model: str, held: Records, shared: Records, words: Messages) -> list[Table]:
    """What stands beside the verdicts of this question, from a model's records and those of no one model."""
    if question == "training":
        return [_starts(held, words)]
    if question == "lockstep":
        return [_windows(held, words)]
    if question == "speed":
        return [_loader(model, held, shared, words)]
    if question == "divergence":
        return [
            _sides("engine", held, "divergence", [("cost", name) for name in COST], words.say("engine.lead"), words)
        ]
    return []


def cell(held: Held | None, words: Messages, *keys: str | int) -> Markup:
    """A field of a record, bound; NOT RUN where there is no such record or field."""
    return (held.find(*keys) if held else None) or not_run(words)


def _starts(held: Records, words: Messages) -> Table:
    """COCO's numbers before the first step and of the best epoch, for each start; fresh weights have none before."""
    trained = {side: held[side, "train"] for side in BOTH if (side, "train") in held}
    told = {side: one.value("fields").get("starts", {}) for side, one in trained.items()}
    rows, absent = [], []
    for name in STARTS:
        title = words(f"start.{name}")
        if not any(name in found for found in told.values()):
            absent.append(escape(title))
        for when in ("before", "after"):
            if any(found.get(name, {}).get(when) for found in told.values()):
                fields = [(side, ("fields", "starts", name, when, number)) for side in BOTH for number in REPORTED]
                cells = (cell(trained.get(side), words, *keys) for side, keys in fields)
                rows.append([words.say("starts.row", start=title, when=words(f"starts.{when}")), *cells])
    header = [escape(words("starts.start"))]
    header += [escape(f"{words(f'side.{side}')} {number}") for side in BOTH for number in REPORTED]
    gap = words.say("starts.absent", names=words.joined(absent)) if absent else None
    return Table(words("starts"), words.say("starts.lead"), [header, *rows] if rows else [], gap)


def _windows(held: Records, words: Messages) -> Table:
    """What the recipe's events are, and which steps around each were taken in lock-step."""
    one = next((held[side, "lockstep"] for side in BOTH if (side, "lockstep") in held), None)
    rows = [
        [
            words.joined([escape(words(f"event.{event}")) for event in window["events"]]),
            *(cell(one, words, "fields", "windows", i, place) for place in WINDOW),
        ]
        for i, window in enumerate(one.value("fields", "windows") if one else ())
    ]
    header = [escape(words(f"windows.{name}")) for name in ("event", *WINDOW)]
    gap = None if rows else words("beside.absent")
    return Table(words("windows"), words.say("windows.lead"), [header, *rows] if rows else [], gap)


def _loader(model: str, held: Records, shared: Records, words: Messages) -> Table:
    """How fast images come alone, by the recipe of the model's family, and whether the trainings waited for them."""
    family = next((name for name, models in FAMILIES.items() if model in models), "")
    data = shared.get(("none", "data"))
    alone = data.find("fields", "loader_images_per_second", family) if data else None
    lead = words.say("loader.lead", alone=alone) if alone else words.say("loader.absent")
    return _sides("loader", held, "train", [(name,) for name in LOADING], lead, words)


def _sides(
    name: str, held: Records, stage: str, fields: Sequence[tuple[str, ...]], lead: Markup, words: Messages
) -> Table:
    """A row per field, a column per side."""
    sides = [held.get((side, stage)) for side in BOTH]
    header = [escape(words(key)) for key in ("column.quantity", *(f"side.{side}" for side in BOTH))]
    rows = [
        [escape(words(f"{name}.{keys[-1]}")), *(cell(one, words, "fields", *keys) for one in sides)] for keys in fields
    ]
    known = any(sides)
    return Table(words(name), lead, [header, *rows] if known else [], None if known else words("beside.absent"))


# ------------------------------------------------------------------------------------------------------- provenance


def software(records: Sequence[Held], words: Messages) -> Rows:
    """A header and a line per package; a column per set of versions, named by the sides it ran on."""
    sets: dict[tuple, list[Held]] = {}
    for one in records:
        sets.setdefault(tuple(sorted(one.origin.versions.items())), []).append(one)
    header = [escape(words("software.package"))]
    for group in sets.values():
        sides = dict.fromkeys(one.record.side for one in group)
        names = (words("software.no_framework" if side == "none" else f"side.{side}") for side in sides)
        header.append(words.joined(list(map(escape, names))))
    rows = {
        package: [group[0].find("provenance", "versions", package) or "" for group in sets.values()]
        for package in dict.fromkeys(package for versions in sets for package, _ in versions)
    }
    return [header, *([escape(package), *cells] for package, cells in rows.items())]
