"""Running the exam: every fault of the catalogue through the gates, clean runs beside them, each result kept at once.

`<folder>/<name>.json` holds one result; an exam that was interrupted goes on with what is missing, a complete one
starts anew. `<folder>/exam.json` says of which catalogue and which sources the results are: others are not mixed with
them.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from lib import backend
from lib.errors import UserError
from lib.record import ROOT, atomic, plain
from notebooks.exam import gates
from notebooks.exam.gates import Finding, Reference
from notebooks.exam.planting import Change, Fault
from notebooks.exam.rounding import otherwise_rounded
from notebooks.exam.subjects import SUBJECTS
from notebooks.faults import FAULTS

SEEDS = range(1, 21)  # of the clean runs
CAUGHT, LOCALISED = 0.95, 0.80  # what the engine must reach
HEADER = "exam.json"
# What decides about a result: the engine, what it looks at, and the exam itself.
JUDGED = (
    *("lib/alignment", "lib/backend", "lib/data", "lib/losses", "lib/models", "lib/training"),
    *("notebooks/exam", "notebooks/faults"),
)


@dataclass(frozen=True)
class Result:
    """What became of one fault, or of one clean run (whose `kind` is "clean")."""

    name: str
    people: str
    kind: str
    subject: str
    place: str
    gate: str  # that failed first; "none": it went through all of them
    ratio: float  # error over gate there; infinite where only what has no gate differs
    named: tuple[str, ...]
    note: str
    seconds: float

    @property
    def caught(self) -> bool:
        return self.gate != "none"

    @property
    def localised(self) -> bool:
        """Something is named, and nothing but the place of the fault."""
        return bool(self.named) and all(re.fullmatch(self.place, name) for name in self.named)


CLEAN = {f"clean run {seed}": (seed, list(SUBJECTS)[(seed - 1) % len(SUBJECTS)]) for seed in SEEDS}


def judge(fault: Fault, reference: Reference) -> Result:
    """Plant the fault and send the candidate through the gates."""
    return _result(fault, reference, fault.changes)


def judge_clean(name: str, subject: str, reference: Reference, seed: int) -> Result:
    """A right candidate that rounds otherwise goes through the gates."""
    right = Fault(name, "the same model, whose sums run in another order", "clean", subject, "", ())
    return _result(right, reference, otherwise_rounded(seed))


def _result(fault: Fault, reference: Reference, changes: Sequence[Change]) -> Result:
    started = time.perf_counter()
    found: Finding = gates.examine(reference, gates.candidate_of(reference.subject, changes))
    return Result(
        fault.name,
        fault.people,
        fault.kind,
        fault.subject,
        fault.place,
        found.gate,
        found.ratio,
        () if found.passed else found.named,
        found.note,
        round(time.perf_counter() - started, 2),
    )


# ------------------------------------------------------------------------------------------------------ a whole exam
def examine(folder: str | Path, names: Sequence[str] = ()) -> list[Result]:
    """The results of the catalogue and of the clean runs, or of `names` alone; what `folder` holds is not run again."""
    folder = Path(folder)
    chosen = _chosen(names)
    _open(folder, complete=all(_path(folder, name).exists() for name in chosen))
    waiting = [name for name in chosen if not _path(folder, name).exists()]
    faults = {fault.name: fault for fault in FAULTS}
    with tqdm(total=len(chosen), initial=len(chosen) - len(waiting), unit="run", desc="exam") as bar:
        for subject in SUBJECTS:
            own = [name for name in waiting if name in faults and faults[name].subject == subject]
            for result in _of_subject(subject, [faults[name] for name in own]):
                _write(folder, result)
                bar.update()
        for name in (name for name in waiting if name in CLEAN):
            seed, subject = CLEAN[name]
            with gates.reference_of(SUBJECTS[subject](seed)) as reference:
                _write(folder, judge_clean(name, subject, reference, seed))
            bar.update()
    return [result for result in results(folder) if result.name in chosen]


def _of_subject(subject: str, faults: Sequence[Fault]) -> Iterator[Result]:
    if not faults:
        return
    with gates.reference_of(SUBJECTS[subject](0)) as reference:
        for fault in faults:
            yield judge(fault, reference)


def _chosen(names: Sequence[str]) -> list[str]:
    known = [*(fault.name for fault in FAULTS), *CLEAN]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{unknown[0]}: no such fault; `python -m lib exam --list` names them")
    return list(names) or known


def results(folder: str | Path) -> list[Result]:
    """What an exam left, in the catalogue's order; empty where there was none."""
    found = []
    for name in _chosen(()):
        path = _path(Path(folder), name)
        if path.exists():
            held = json.loads(path.read_text())
            found.append(Result(**{**held, "ratio": float(held["ratio"]), "named": tuple(held["named"])}))
    return found


def _path(folder: Path, name: str) -> Path:
    return folder / f"{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.json"


def _write(folder: Path, result: Result) -> None:
    with atomic(_path(folder, result.name)) as temporary:
        temporary.write_text(json.dumps(plain(asdict(result)), allow_nan=False, indent=1))


def _open(folder: Path, complete: bool) -> None:
    """Results of a complete exam, or of other sources, go; the header says what those to come belong to."""
    header = {"sources": _sources(), "framework": backend.NAME, "version": backend.VERSION}
    path = folder / HEADER
    if complete or not path.exists() or json.loads(path.read_text()) != header:
        for old in folder.glob("*.json"):
            old.unlink()
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(header))


def _sources() -> str:
    """SHA-256 of what decides about a result."""
    digest = hashlib.sha256()
    files = [path for part in JUDGED for path in (ROOT / part).rglob("*.*") if path.suffix in (".py", ".h")]
    for path in sorted([*files, *(ROOT / "lib").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
