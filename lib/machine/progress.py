"""How far a report is: how many of its jobs are done, and about how long the others will take.

`reports/<profile>/.plan.json` lists the jobs of the run that is under way, for the Snakefile and for the jobs, each of which
says at its end how many are left.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.record import atomic

if TYPE_CHECKING:
    from lib.machine.pipeline import Job

Entry = Mapping[str, Any]


def write(report: Path, jobs: Sequence["Job"], to_do: Sequence["Job"], cores: int) -> Path:
    """The plan of a run, with the times of earlier runs of the same jobs where their marks have them."""
    entries = [
        {
            "name": job.name,
            "file": str(job.file),
            "done": str(job.done),
            "needs": job.needs,
            "after": job.after,
            "threads": job.threads,
            "priority": job.stage.priority,
            "weight": job.stage.weight,
            "seconds": read_mark(job.done).get("seconds"),
            "to_do": job in to_do,
        }
        for job in jobs
    ]
    path = report / ".plan.json"
    with atomic(path) as temporary:
        temporary.write_text(json.dumps({"cores": cores, "began": time.time(), "jobs": entries}), encoding="utf-8")
    return path


def read_mark(path: Path) -> dict[str, Any]:
    """What a job's mark says; nothing where it is absent, empty or cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def open_mark(done: Path) -> Path:
    """Where a job that is running, or that failed, says since when and why."""
    return done.with_name(f".{done.name}.open")


def told(done: Path) -> str:
    """ "; 7 of 18 jobs, about 2 min left" for a job that has just ended; nothing for one that was run by hand."""
    plan = read_mark(done.parents[3] / ".plan.json")
    entries = [entry for entry in plan.get("jobs", ()) if entry["to_do"]]
    if str(done) not in {entry["done"] for entry in entries}:
        return ""
    ended = {entry["done"] for entry in entries if _ended(entry, plan["began"])}
    rest = left(entries, ended, plan["cores"])
    return f"; {len(ended)} of {len(entries)} jobs{f', about {rest} left' if rest else ''}"


def beginning(plan_file: Path) -> str:
    """ "18 jobs, about 4 min" before the first of them starts; without a time where none was ever measured."""
    plan = read_mark(plan_file)
    entries = [entry for entry in plan["jobs"] if entry["to_do"]]
    rest = left(entries, set(), plan["cores"])
    return f"{len(entries)} job{'s' if len(entries) != 1 else ''}{f', about {rest}' if rest else ''}"


def _ended(entry: Entry, began: float) -> bool:
    path = Path(entry["done"])
    return path.is_file() and path.stat().st_mtime >= began


def left(entries: Sequence[Entry], ended: set[str], cores: int) -> str:
    """How long the entries that have not ended will take on these cores, in words; "" where none are left or no time is
    known: a job takes what it took before, else its weight by what the others take for theirs."""
    took = {
        entry["done"]: read_mark(Path(entry["done"]))["seconds"] if entry["done"] in ended else entry["seconds"]
        for entry in entries
    }
    known = [entry for entry in entries if took[entry["done"]]]
    waiting = {entry["done"]: entry for entry in entries if entry["done"] not in ended}
    if not known or not waiting:
        return ""
    scale = sum(took[entry["done"]] for entry in known) / sum(entry["weight"] for entry in known)
    seconds = {}
    for done, entry in waiting.items():
        since = read_mark(open_mark(Path(done))).get("since")
        whole = took[done] or scale * entry["weight"]
        seconds[done] = max(0.0, whole - (time.time() - since if since else 0.0))
    chains: dict[str, float] = {}  # until a job ends, if cores were plenty; entries stand in the order of their needs
    for done, entry in waiting.items():
        chains[done] = seconds[done] + max(
            (chains.get(name, 0.0) for name in (*entry["needs"], *entry["after"])), default=0.0
        )
    work = sum(seconds[done] * min(entry["threads"], cores) for done, entry in waiting.items())
    return in_words(max(work / cores, *chains.values()))


def in_words(seconds: float) -> str:
    """A time as a guess deserves: to ten seconds, minutes, or half hours."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{round(seconds / 1800) / 2:g} h"
