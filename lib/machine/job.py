"""One job of a report: `python -m lib.machine.job FILE [PLAN]` runs the notebook or command that a file names, starts
it a second time after a crash, and says how far the report is.

A job is done when its mark exists, which is written last and holds the digests of what it read and of what it wrote.
Another mark beside it says, of a job that is running or that failed, since when and why. A plan lists the jobs of the
run that is under way, of one report or of many, for the Snakefile and for the jobs.
"""

from lib.errors import silent_interrupts

if __name__ == "__main__":
    silent_interrupts()
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lib import record
from lib.errors import UserError, exit_code, of_a_user
from lib.machine import environment
from lib.machine.notebook import BOTH, Process, ProcessDied, execute, failed_copy
from lib.record import atomic

Description = Mapping[str, Any]
Entry = Mapping[str, Any]  # a job in a plan


@dataclass(frozen=True)
class Stage:
    """One notebook of the report, or one command; a profile that has no section for it leaves it out."""

    name: str  # of its section in a profile and of its records
    notebook: str = ""  # notebooks/<notebook>.ipynb; "tour" stands for the family's own, see TOURS
    command: tuple[str, ...] = ()  # instead of a notebook: a module and its arguments, for its side's Python
    prepares: bool = False  # what runs its model on its side waits for it, but reads nothing that it writes
    shared: bool = False  # it makes what other reports read too: the first makes it, as it does what `prepares`
    sides: tuple[str, ...] = BOTH  # one run per side; "none" runs in the torch kernel and knows no framework
    needs: tuple[str, ...] = ()  # stages that must be done before, on every side
    writes: tuple[str, ...] = ()  # the sides whose records it writes
    per_model: bool = True  # else one run for all models
    leads: str = ""  # the side that the other is held against: it must be done before
    alone: bool = False  # nothing may run beside it, unless its section says threads
    weight: int = 5  # about its seconds (NanoDet-Plus, quick): what is left, and what to start first, is guessed by it
    memory: int = 4096  # MiB that a scheduler is asked for where no earlier record says what it takes


@dataclass(frozen=True)
class Job:
    stage: Stage
    model: str  # "all" for a stage that runs once
    side: str
    file: Path  # its description, which is also an input: a changed parameter runs it again
    done: Path
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    threads: int
    needs: tuple[str, ...]  # the marks of the jobs whose results it reads: inputs too
    after: tuple[str, ...]  # the marks of those that must only be done before

    @property
    def name(self) -> str:
        """After the name of its report where there are many."""
        return "_".join((*self.done.parts[2:-4], self.stage.name, self.model, self.side))


def run(file: Path, plan: Path | None = None) -> None:
    """Run the job that a file describes, as one of a plan or by hand, and mark it as done."""
    job = json.loads(file.read_text(encoding="utf-8"))
    done = Path(job["done"])
    title = name_of(done)
    inputs = [str(file), *job["inputs"]]
    key = digest(inputs)
    if job["resumes"]:
        forget_other_run(Path(job["resumes"]), key)
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    if job["wait_policy"]:
        os.environ["OMP_WAIT_POLICY"] = job["wait_policy"]
    os.environ["RECORD_COMMAND"] = f"python -m lib.machine.job {file}"
    os.environ[record.SOURCES] = json.dumps([name for name in job["inputs"] if shared(name)])
    print(f"[report] {title}: {what(job)} starts", flush=True)
    started = time.time()
    write_mark(open_mark(done), since=started)
    try:
        restarts = run_twice(job, title)
        if digest(inputs) != key:
            raise UserError(f"{what(job)}: a file that it depends on was edited while it ran: run again")
        if absent := [result for result in job["results"] if not Path(result).is_file()]:
            raise UserError(f"{what(job)}: ended without writing {absent[0]}")
    except (UserError, OSError) as error:
        if (problem := of_a_user(error)) is None:
            raise
        see = str(failure(job)) if failure(job).is_file() else ""
        write_mark(open_mark(done), since=started, why=str(problem), see=see)
        quote(error.lines if isinstance(error, ProcessDied) else ())
        raise UserError(f"{problem} (see {see})" if see else str(problem)) from error
    seconds, results = round(time.time() - started, 1), {result: digest([result]) for result in job["results"]}
    write_mark(done, inputs=key, results=results, seconds=seconds, restarts=restarts)
    open_mark(done).unlink(missing_ok=True)
    print(f"[report] {ended(done, started, plan)}", flush=True)


def shared(name: str) -> bool:
    """Whether an input is a file of lib that both sides' jobs of a stage depend on: no backend, which is one's own."""
    return name.startswith("lib/") and not name.startswith("lib/backend/")


def run_twice(job: Description, title: str) -> list[str]:
    """Run a job's notebook or command, once more if its process dies of a signal; why it was started again.

    Such a death is the machine's or a library's doing, and seldom comes twice; the record says that it came. Who was
    told to end (SIGTERM) was told so by a scheduler or a person.
    """
    restarts: list[str] = []
    while True:
        os.environ[record.RESTARTS] = json.dumps(restarts)
        try:
            run_once(job)
            return restarts
        except ProcessDied as death:
            if death.signal in (None, signal.SIGTERM) or restarts:
                raise
            restarts.append(str(death))
            quote(death.lines)
            print(f"[report] {title}: {death}: started once more", flush=True)


def run_once(job: Description) -> None:
    if "notebook" in job:
        notebook = Path(job["notebook"])
        if job["is_report"]:
            from lib import report  # the other jobs have no need of it

            made = report.make(notebook.stem, job["parameters"])
            if made.failure:
                raise made.failure
        else:
            execute(notebook, Path(job["output"]), job["kernel"], job["parameters"])
        return
    side, log = environment.named(job["kernel"]), failure(job)
    folder = environment.location(side)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as stream:
        streams = dict(stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
        environ = environment.process_environment(side, folder)
        command = [folder / "bin" / "python", *job["command"]]
        process = Process(log, subprocess.Popen(command, cwd=environment.ROOT, env=environ, **streams))
    if process.running.wait():
        raise process.died(f"{what(job)}: its process")
    log.unlink()


def what(job: Description) -> str:
    """What a job runs, as its user knows it."""
    return job["notebook"] if "notebook" in job else " ".join(["python", *job["command"]])


def failure(job: Description) -> Path:
    """What a failed job leaves to look at."""
    done = Path(job["done"])
    if "notebook" in job:
        return failed_copy(Path(job["output"]))
    return done.parents[3] / "logs" / "/".join(done.parts[-3:-1]) / f"{done.name}.log"


def quote(lines: Sequence[str]) -> None:
    """What a dead process wrote last, on the console."""
    for line in lines:
        print(f"[report]   | {line}", flush=True)


def forget_other_run(folder: Path, key: str) -> None:
    """Keep an interrupted run's folder only for the very inputs it was started with: it may be resumed."""
    mark_file = folder / "inputs.sha256"
    if mark_file.is_file() and mark_file.read_text() == key:
        return
    if folder.exists():
        shutil.rmtree(folder)
    with atomic(mark_file) as temporary:
        temporary.write_text(key)


# ------------------------------------------------------------------------------------------------------------- marks


def name_of(done: Path) -> str:
    """model/side/stage, below the name of its report where there are many."""
    return "/".join((*done.parts[2:-4], *done.parts[-3:]))


def open_mark(done: Path) -> Path:
    """Where a job that is running, or that failed, says since when and why."""
    return done.with_name(f".{done.name}.open")


def read_mark(path: Path) -> dict[str, Any]:
    """What a mark, or a plan, says; nothing where it is absent, empty or cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_mark(path: Path, **values: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, default=str), encoding="utf-8")


def digest(files: Sequence[str]) -> str:
    """One SHA-256 for the names and contents of files; a file that is absent counts as none."""
    total = hashlib.sha256()
    for name in files:
        total.update(f"{name}\n".encode())
        try:
            state = os.stat(name)
            total.update(content(name, state.st_mtime_ns, state.st_size))
        except FileNotFoundError:
            total.update(b"absent")
    return total.hexdigest()


@cache
def content(name: str, _mtime: int, _size: int) -> bytes:
    """SHA-256 of a file, read again when it changed; the jobs of a report share most of theirs."""
    with open(name, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


# ------------------------------------------------------------------------------------------------ how far the report is


def ended(done: Path, since: float, plan: Path | None) -> str:
    """How a job ended since then, with what is left to do of a plan; "" where it has not."""
    if done.is_file() and done.stat().st_mtime >= since:
        return f"{name_of(done)}: done in {read_mark(done)['seconds']:.0f} s{told(done, plan) if plan else ''}"
    why = read_mark(open_mark(done)).get("why")
    return f"{name_of(done)}: FAILED: {why}" if why else ""


def told(done: Path, file: Path) -> str:
    """ "; 7 of 18 jobs, about 2 min left" for a job of a plan that has just ended; nothing for one of none."""
    plan = read_mark(file)
    entries = [entry for entry in plan.get("jobs", ()) if entry["to_do"]]
    marks = [path for path in (Path(entry["done"]) for entry in entries) if path.is_file()]
    ended = {str(path): read_mark(path)["seconds"] for path in marks if path.stat().st_mtime >= plan["began"]}
    if str(done) not in ended:
        return ""
    rest = left(entries, ended, plan["cores"])
    return f"; {len(ended)} of {len(entries)} jobs{f', about {rest} left' if rest else ''}"


def left(entries: Sequence[Entry], ended: Mapping[str, float], cores: int) -> str:
    """How long the entries that have not ended will take on these cores, in words; "" where none are left or no time is
    known: a job takes what it took before, else its weight by what the others take for theirs."""
    took = {entry["done"]: ended.get(entry["done"], entry["seconds"]) for entry in entries}
    weights = {entry["done"]: entry["weight"] for entry in entries}
    known = [done for done, seconds in took.items() if seconds]
    waiting = [entry for entry in entries if entry["done"] not in ended]
    if not known or not waiting:
        return ""
    scale = sum(took[done] for done in known) / sum(weights[done] for done in known)
    work, chains = 0.0, {}  # chains: until a job ends, if cores were plenty; entries stand in the order of their needs
    for entry in waiting:
        done = entry["done"]
        running = time.time() - read_mark(open_mark(Path(done))).get("since", time.time())
        seconds = max(0.0, (took[done] or scale * weights[done]) - running)
        chains[done] = seconds + max(
            (chains.get(name, 0.0) for name in (*entry["needs"], *entry["after"])), default=0.0
        )
        work += seconds * min(entry["threads"], cores)
    return in_words(max(work / cores, *chains.values()))


def in_words(seconds: float) -> str:
    """A time as a guess deserves: to ten seconds, minutes, or half hours."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{round(seconds / 1800) / 2:g} h"


def stopped(signum: int, _frame: object) -> None:
    """What a scheduler asks at a job's time limit, or when its node goes away: end, and say so."""
    raise UserError(
        f"stopped from outside ({signal.Signals(signum).name}): a scheduler's time limit, or a cancelled job"
    )


def main() -> int:
    signal.signal(signal.SIGTERM, stopped)
    try:
        run(*(Path(name) for name in sys.argv[1:] if name))  # no plan where it is too long to be read by each
    except UserError as error:
        print(f"[report] FAILED: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, interrupted=""))
