"""Running one job: the notebook or command that a description names, its marks, and a second start after a crash."""
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib import environment, progress, record
from lib.errors import UserError, of_a_place
from lib.kernel import Process, ProcessDied
from lib.notebook import execute, failed_copy
from lib.progress import open_mark
from lib.record import atomic

Description = Mapping[str, Any]


def run(file: Path) -> None:
    """Run the job that a file describes, and mark it as done."""
    job = json.loads(file.read_text(encoding="utf-8"))
    done = Path(job["done"])
    title = "/".join(done.parts[-3:])
    inputs = [str(file), *job["inputs"]]
    key = digest(inputs)
    if job["resumes"]:
        forget_other_run(Path(job["resumes"]), key)
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    if job["wait_policy"]:
        os.environ["OMP_WAIT_POLICY"] = job["wait_policy"]
    os.environ["RECORD_COMMAND"] = f"python -m lib.pipeline run {file}"
    print(f"[report] {title}: {what(job)} starts", flush=True)
    started = time.time()
    mark(done, since=started)
    try:
        restarts = run_twice(job, title)
        if digest(inputs) != key:
            raise UserError(f"{what(job)}: a file that it depends on was edited while it ran: run again")
        if absent := [result for result in written(job) if not Path(result).is_file()]:
            raise UserError(f"{what(job)}: ended without writing {absent[0]}")
    except (UserError, OSError) as error:
        error = of_a_place(error) if isinstance(error, OSError) else error
        if error is None:
            raise
        see = failure(job) if failure(job).is_file() else ""
        mark(done, since=started, why=str(error), see=str(see))
        quote(error.lines if isinstance(error, ProcessDied) else ())
        raise UserError(f"{error} (see {see})" if see else str(error)) from error
    results = {result: digest([result]) for result in written(job)}
    with atomic(done) as temporary:
        seconds = round(time.time() - started, 1)
        temporary.write_text(json.dumps({"inputs": key, "results": results, "seconds": seconds, "restarts": restarts}))
    open_mark(done).unlink(missing_ok=True)
    print(f"[report] {title}: done in {seconds:.0f} s{progress.told(done)}", flush=True)


def run_twice(job: Description, title: str) -> list[str]:
    """Run a job's notebook or command, once more if its process dies of a signal; why it was started again.

    Such a death is the machine's or a library's doing, and seldom comes twice; the record says that it came.
    """
    os.environ[record.RESTARTS] = "[]"
    try:
        run_once(job)
        return []
    except ProcessDied as death:
        if death.signal is None:
            raise
        restarts = [str(death)]
        quote(death.lines)
        print(f"[report] {title}: {death}: started once more", flush=True)
    os.environ[record.RESTARTS] = json.dumps(restarts)
    run_once(job)
    return restarts


def run_once(job: Description) -> None:
    if "notebook" in job:
        execute(Path(job["notebook"]), Path(job["output"]), job["kernel"], job["parameters"])
        return
    side = environment.named(job["kernel"])
    folder, log = environment.location(side), failure(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as stream:
        process = Process(log, subprocess.Popen(
            [folder / "bin" / "python", *job["command"]], cwd=environment.ROOT, stdin=subprocess.DEVNULL, stdout=stream,
            stderr=subprocess.STDOUT, env=environment.process_environment(side, folder)))
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


def mark(done: Path, **values: Any) -> None:
    with atomic(open_mark(done)) as temporary:
        temporary.write_text(json.dumps(values), encoding="utf-8")


def forget_other_run(folder: Path, key: str) -> None:
    """Keep an interrupted run's folder only for the very inputs it was started with: it may be resumed."""
    mark_file = folder / "inputs.sha256"
    if mark_file.is_file() and mark_file.read_text() == key:
        return
    if folder.exists():
        shutil.rmtree(folder)
    with atomic(mark_file) as temporary:
        temporary.write_text(key)


def written(description: Description) -> tuple[str, ...]:
    """The files that a job must have written when it ends."""
    return tuple(filter(None, (description["output"], *description["results"])))


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


@lru_cache(maxsize=None)
def content(name: str, mtime: int, size: int) -> bytes:  # noqa: ARG001: a file that changed is read again
    """SHA-256 of a file; the jobs of a report share most of theirs."""
    with open(name, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
