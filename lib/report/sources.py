"""Where the numbers come from: the records behind a page, one line each, and the software that wrote them."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from lib.alignment.evidence import pointer
from lib.record import Record, read
from lib.report.bound import anchor, bound, field
from lib.report.messages import Messages

STAGES = ("data", "rosetta", "convert", "forward", "divergence", "loss", "train", "lockstep", "evaluate", "speed", "compare", "gaps")
SIDES = ("published", "torch", "jittor", "none")
COLUMNS = ("started", "wall_seconds", "peak_rss_mib", "threads", "wait_policy", "seed", "device", "git_commit", "command")  # of the provenance


@dataclass(frozen=True)
class Line:
    """A record: its anchor, its id, its file beside the report, what its provenance says under COLUMNS, and why its
    stage was started again."""

    anchor: str
    run_id: Markup
    file: str
    cells: tuple[Markup, ...]
    restarts: tuple[Markup, ...]


def held(folder: Path, model: str) -> list[Record]:
    """A model's records in the order of the stages; "all": those of no one model."""
    found = [read(path) for path in sorted(folder.glob(f"{model}/*/*.json"))]
    order = {name: i for i, name in enumerate(STAGES)}
    return sorted(found, key=lambda one: (order.get(one.stage, len(order)), SIDES.index(one.side), one.stage))


def lines(records: Sequence[Record], files: str, words: Messages) -> list[Line]:
    """files: the folder of the records as the page sees it."""
    return [
        Line(anchor(one.run_id), bound(one.run_id, pointer(one.run_id, "run_id"), words), f"{files}/{one.run_id}.json",
             tuple(field(one, words, "provenance", column) for column in COLUMNS),
             tuple(field(one, words, "provenance", "restarts", i) for i in range(len(one.provenance.restarts))))
        for one in records
    ]  # fmt: skip


def software(records: Sequence[Record], words: Messages) -> tuple[tuple[Markup, ...], ...]:
    """A header and a line per package; a column per set of versions, named by the sides it ran on."""
    sets: dict[tuple, list[Record]] = {}
    for one in records:
        sets.setdefault(tuple(sorted(one.provenance.versions.items())), []).append(one)
    header = [escape(words("package"))]
    for group in sets.values():
        sides = dict.fromkeys(one.side for one in group)
        header.append(escape(", ".join(words("no_framework" if side == "none" else side) for side in sides)))
    packages = dict.fromkeys(package for versions in sets for package, _ in versions)
    body = []
    for package in packages:
        cells = [field(group[0], words, "provenance", "versions", package) if package in group[0].provenance.versions else Markup("")
                 for group in sets.values()]
        body.append((escape(package), *cells))
    return (tuple(header), *body)
