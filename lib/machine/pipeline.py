"""What a report consists of: which notebook runs in which kernel on what. `python -m lib.machine.pipeline` makes one.

A job is one notebook for one model and side. It is described by a file, `reports/<profile>/jobs/…json`, that holds its
parameters, environment and inputs, and it is done when its `.done` file exists (see `job`): `stale` says which jobs are
no longer done. Snakemake runs those, and what depends on them, in their order. Records, executed notebooks and
checkpoints are not declared to it, which would delete them before a job starts: a run that fails leaves the earlier
ones in place.
"""

from lib.errors import silent_interrupts

if __name__ == "__main__":
    silent_interrupts()
import argparse
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lib import record
from lib import report as pages
from lib.errors import UserError, exit_code
from lib.families import FAMILIES, family
from lib.machine import environment
from lib.machine.job import digest, ended, left, name_of, open_mark, quote, read_mark, write_mark
from lib.machine.notebook import BOTH, LINES, parameters, sources
from lib.record import atomic


@dataclass(frozen=True)
class Stage:
    """One notebook of the report, or one command; a profile that has no section for it leaves it out."""

    name: str  # of its section in a profile and of its records
    notebook: str = ""  # notebooks/<notebook>.ipynb; "tour" stands for the family's own, see TOURS
    command: tuple[str, ...] = ()  # instead of a notebook: a module and its arguments, for its side's Python
    prepares: bool = False  # what runs its model on its side waits for it, but reads nothing that it writes
    sides: tuple[str, ...] = BOTH  # one run per side; "none" runs in the torch kernel and knows no framework
    needs: tuple[str, ...] = ()  # stages that must be done before, on every side
    writes: tuple[str, ...] = ()  # the sides whose records it writes
    per_model: bool = True  # else one run for all models
    leads: str = ""  # the side that the other is held against: it must be done before
    alone: bool = False  # nothing may run beside it, unless its section says threads
    priority: int = 1  # of those that are ready the highest starts first
    weight: int = 10  # its share of a report's time, to guess what is left where it was not measured yet
    memory: int = 4096  # MiB that a scheduler is asked for where no earlier record says what it takes


TOURS = {"nanodet_plus": "20_nanodet_plus", "gold_yolo": "21_gold_yolo", "rt_detr": "22_rt_detr"}
STAGES = (
    Stage("start", "00_start_here", sides=("none",), per_model=False),
    Stage("data", "10_data", sides=("none",), writes=("own",), per_model=False, priority=4),
    Stage("kernels", command=("lib.alignment.kernels",), sides=("jittor",), prepares=True, priority=4, weight=30),
    Stage("tour", "tour"),
    Stage("rosetta", "30_migration", writes=("own",), per_model=False),
    Stage("convert", "40_convert", writes=("own",)),
    Stage("forward", "50_forward", writes=("own",)),
    Stage("divergence", "52_divergence", writes=("own",), leads="torch", weight=30),
    Stage("operators", "53_operators", writes=("own",), leads="torch", weight=40),
    Stage("loss", "51_loss_and_gradient", writes=("own",), weight=40),
    Stage("lockstep", "61_lockstep", needs=("data",), writes=("own",), priority=2, weight=40),
    Stage("train", "60_train", needs=("data",), writes=("own",), priority=3, weight=150),  # the longest
    Stage("evaluate", "70_evaluate", needs=("data", "train"), writes=("own",)),
    Stage("detect", "71_detect", sides=("none",), needs=("data", "evaluate")),
    # The last to start: others have compiled its kernels.
    Stage("speed", "80_speed", sides=("none",), writes=BOTH, alone=True, priority=0, weight=80),
    Stage(
        "compare",
        "90_compare",
        sides=("none",),
        per_model=False,
        needs=(
            *("data", "rosetta", "convert", "forward", "divergence", "operators"),
            *("loss", "lockstep", "train", "evaluate", "speed"),
        ),
    ),
)


# What a profile may require of the request, and how to give it.
REQUIRED = {
    "data": "DATA=… (a COCO folder or file)",
    "start": "WEIGHTS=… (a checkpoint of the model) or BACKBONE=… (ImageNet weights of its backbone), or both",
}


@dataclass(frozen=True)
class Request:
    """What `make report` was asked for."""

    profile: str
    models: tuple[str, ...]
    data: str  # folder or COCO JSON; empty: the built-in scenes
    cores: int
    language: str = "en"  # of the report
    weights: str = ""  # trainings start from this checkpoint of the model
    backbone: str = ""  # or from these weights of its backbone; with both, one training from each
    also: tuple[str, ...] = ()  # stages that the profile leaves out


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
        return "_".join((self.stage.name, self.model, self.side))


def load_profile(name: str) -> dict[str, Any]:
    """profiles/<name>.yaml: seed, threads, what it requires, and a section with parameters for each stage."""
    path = environment.ROOT / "profiles" / f"{name}.yaml"
    if not (re.fullmatch(r"[\w.-]+", name) and path.is_file()):  # Snakemake sees it in paths, where {} is a wildcard
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"PROFILE={name}: {path.name} is not in profiles/: choose one of {known}")
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"profiles/{path.name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(profile, dict):
        raise UserError(f"profiles/{path.name}: holds no section: name at least one stage, as the other profiles do")
    stages = [stage.name for stage in STAGES]
    for name in sorted(set(profile) - {*stages, "seed", "threads", "requires", "hours"}):
        raise UserError(f"profiles/{path.name}: '{name}' is no stage: choose from {', '.join(stages)}")
    return profile


def section(values: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A stage's parameters for a model: those under its family's name replace the others."""
    own = values.get(family(model), {}) if model != "all" else {}
    return {**{name: value for name, value in values.items() if name not in FAMILIES}, **own}


# --------------------------------------------------------------------------------------------------------- the plan


def plan(request: Request) -> list[Job]:
    """All jobs of a report, in order; writes their descriptions."""
    profile = dict.fromkeys(request.also) | load_profile(request.profile)
    check(request, profile)
    jobs: list[Job] = []
    for stage in (stage for stage in STAGES if stage.name in profile):
        for model in request.models if stage.per_model else ("all",):
            leader: list[str] = []
            for side in sorted(stage.sides, key=lambda side: side != stage.leads):
                needs = [str(job.done) for job in jobs if feeds(job, stage, model)] + leader
                after = [str(job.done) for job in jobs if prepares(job, stage, model, side)]
                jobs.append(make_job(stage, model, side, request, profile, needs, after))
                leader = [str(jobs[-1].done)] if side == stage.leads else leader
    return jobs


def owners(stage: Stage, side: str) -> list[str]:
    """The sides whose records a stage writes when it runs on a side."""
    return [side if owner == "own" else owner for owner in stage.writes]


def feeds(job: Job, stage: Stage, model: str) -> bool:
    """Whether a stage reads, for a model, what a job writes."""
    return job.stage.name in stage.needs and (model == "all" or job.model in ("all", model))


def prepares(job: Job, stage: Stage, model: str, side: str) -> bool:
    """Whether a job makes ready what a stage runs on; no record depends on it."""
    return job.stage.prepares and job.model == model and job.side in (side, *owners(stage, side))


def check(request: Request, profile: Mapping[str, Any]) -> None:
    """UserError if the profile requires what was not given, or if a stage or a file that was given is not there."""
    stages = [stage.name for stage in STAGES]
    for name in request.also:
        if name not in stages:
            raise UserError(f"ALSO={name}: no stage: choose from {', '.join(stages)}")
    given = {"data": request.data, "start": request.weights or request.backbone}
    for what in profile.get("requires", ()):
        if not given[what]:
            raise UserError(f"PROFILE={request.profile}: needs {REQUIRED[what]}")
    for name, path in (("WEIGHTS", request.weights), ("BACKBONE", request.backbone)):
        if path and not os.path.isfile(path):
            raise UserError(f"{name}={path}: no such file")


def dataset(request: Request, profile: Mapping[str, Any]) -> str:
    """Where the data set lies: the user's, a subset of it that the data stage chooses, or the built-in scenes."""
    if not request.data:
        return f"data/scenes-{request.profile}"
    if not is_subset(profile):
        return request.data
    choice = json.dumps([os.path.abspath(request.data), profile.get("seed", 0), profile["data"]], sort_keys=True)
    return f"data/{request.profile}-{hashlib.sha256(choice.encode()).hexdigest()[:8]}"


def is_subset(profile: Mapping[str, Any]) -> bool:
    """Whether the data stage chooses images and classes of the user's data."""
    return "subset_classes" in (profile.get("data") or {})


def make_job(
    stage: Stage,
    model: str,
    side: str,
    request: Request,
    profile: Mapping[str, Any],
    needs: Sequence[str],
    after: Sequence[str],
) -> Job:
    """Describe a job in its file, unless that says so already: any difference runs it again."""
    report, place = Path("reports", request.profile), Path(model, side)
    chosen = section(profile[stage.name] or {}, model)
    usual = request.cores if stage.alone else profile.get("threads", 1)
    threads = min(request.cores, chosen.pop("threads", usual))
    kernel = side if side in BOTH else "torch"
    last, subset = stage.name == "compare", is_subset(profile)
    models = request.models if model == "all" else (model,)
    results = [str(report / "records" / model / owner / f"{stage.name}.json") for owner in owners(stage, side)]
    if stage.command:
        module, *arguments = stage.command
        options = [text for name, value in {"model": model, **chosen}.items() for text in (f"--{name}", str(value))]
        runs = {"command": ["-m", module, *arguments, *options]}
        inputs = sources(Path(*module.split(".")).with_suffix(".py"), side, models)
    else:
        offered = {
            "model": model,
            "models": list(request.models),
            "seed": profile.get("seed", 0),
            "threads": threads,
            "data": dataset(request, profile),
            "source": request.data if subset else "",
            "start_weights": request.weights,
            "start_backbone": request.backbone,
            "records": str(report / "records"),
            "runs": str(report / "runs"),
            "report": str(report),
            "profile": request.profile,
            "language": request.language,
        }
        name = TOURS[family(model)] if stage.notebook == "tour" else stage.notebook
        notebook = Path("notebooks", f"{name}.ipynb")
        output = str(report / "notebooks" / place / notebook.name)
        used = parameters(notebook, chosen, offered, f"profiles/{request.profile}.yaml: {stage.name}")
        runs = {"notebook": str(notebook), "output": output, "parameters": used, "is_report": last}
        results = [output, *results, *([str(report / "index.html")] if last else [])]
        inputs = [str(notebook), *sources(notebook, side, models, display=last), *(report_files() if last else ())]
        inputs += annotations(request.data) if ("source" if subset else "data") in used else []
        inputs += filter(None, (request.weights, request.backbone) if "start_weights" in used else ())
    done, file = report / ".done" / place / stage.name, report / "jobs" / place / f"{stage.name}.json"
    description = {
        "kernel": kernel,
        "environment": environment.location(environment.named(kernel)).name,
        "threads": threads,
        # Of a thread that waits for its team: it sleeps where jobs share the cores (else a convolution takes 50 ms
        # instead of 3), and spins for a while, as is usual, where one has them all, which is up to 1.8 times as fast.
        "wait_policy": "" if threads == request.cores > 1 else "PASSIVE",
        "results": results,
        "resumes": str(report / "runs" / place) if stage.name == "train" else None,
        "done": str(done),
        **runs,
        "inputs": [*inputs, *needs],
    }
    text = json.dumps(description, indent=1, ensure_ascii=False)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with atomic(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    read = (str(file), *inputs, *needs)
    return Job(stage, model, side, file, done, read, tuple(results), threads, tuple(needs), tuple(after))


def report_files() -> list[str]:
    """What the comparison reads besides records and Python: templates, and the published implementations' numbers."""
    folders = (Path("lib/report"), Path("lib/show"), Path("tests/golden"))
    found = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.suffix != ".pyc" and not path.name.startswith("."))


def annotations(data: str) -> list[str]:
    """The annotation files of the user's data (the built-in scenes follow from the data stage)."""
    if data and not os.path.exists(data):
        raise UserError(f"DATA={data}: no such file or folder")
    if os.path.isdir(data):
        return sorted(path for place in ("*.json", "*/*.json") for path in glob.glob(f"{glob.escape(data)}/{place}"))
    return [data] if data else []


def demand(job: Job, hours: float) -> dict[str, Any]:
    """What a cluster's scheduler is asked for beside cores, under Snakemake's names: half as much again as it took in
    an earlier run, else its stage's memory (MiB) and its profile's hours."""
    peaks = []
    for result in job.results:
        with suppress(UserError):  # no record, or a damaged one: its job is to do again
            peaks += [record.read(result).provenance.peak_rss_mib] if result.endswith(".json") else []
    seconds = read_mark(job.done).get("seconds")
    asked = {
        "mem_mb": round(1.5 * max(peaks)) if peaks else job.stage.memory,
        "runtime": math.ceil(1.5 * seconds / 60) + 10 if seconds else round(60 * hours),  # minutes
    }
    if job.side in BOTH and os.environ.get("ALIGN_DEVICE", "cpu") != "cpu":
        asked["gpu"] = 1
    return {**asked, "slurm_extra": "--exclusive"} if job.stage.alone else asked


# ------------------------------------------------------------------------------------------------------ what is done


def stale(jobs: Sequence[Job]) -> list[Job]:
    """The jobs that are not done: that never ended well, whose inputs or results are not what they were, and those that
    read the results of such a job."""
    found: list[Job] = []
    for job in jobs:
        if any(str(other.done) in job.needs for other in found) or not is_done(job):
            found.append(job)
    return found


def is_done(job: Job) -> bool:
    """Whether a job's mark fits the files as they are now."""
    mark, results = read_mark(job.done), {name: digest([name]) for name in job.results}
    return mark.get("inputs") == digest(job.inputs) and mark.get("results") == results


# ------------------------------------------------------------------------------------------------------- the report


def report(request: Request, extra: list[str]) -> int:
    """Have Snakemake bring `reports/<profile>` up to date."""
    hours = load_profile(request.profile).get("hours", 1)
    target = Path("reports", request.profile)
    page, plan_file = target / "index.html", target / ".plan.json"
    target.mkdir(parents=True, exist_ok=True)
    with open(target / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{target}: another `make report` is at work on it: wait for its end") from error
        jobs = plan(request)  # a user's mistake shows here, in one line
        to_do = stale(jobs)
        if not to_do and not extra:
            print(f"[report] nothing to do, up to date: {page}", flush=True)
            return 0
        begin(plan_file, jobs, to_do, request.cores, hours)
        # Our lock goes when this process and Snakemake have ended; Snakemake's own would stay after a kill.
        options = ["--nolock", "--rerun-incomplete", "--keep-going", "--cores", str(request.cores)]
        forced = ["--forcerun", *(job.name for job in to_do)] if to_do else []
        command = [sys.executable, "-m", "snakemake", "--configfile", str(plan_file), *options, *forced, *extra]
        with open(target / "snakemake.log", "w") as log:  # its own words; the jobs speak on stdout
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, pass_fds=[lock.fileno()])
            code = wait(process, to_do if remote(extra) else ())
        pages.render_notebooks(target, request.language)
        open_jobs = stale(jobs)
        names = ", ".join(job.name for job in open_jobs)
        if code:
            print(f"[report] not finished: {names}: {cause(open_jobs, Path(log.name))}", flush=True)
            report_with_gaps(jobs, open_jobs)
            return 1
    # Open although all went well: Snakemake was asked for something else, what it would do or a part.
    said = f"to do, {len(open_jobs)} of {len(jobs)} jobs: {names}" if open_jobs else f"up to date: {page}"
    print(f"[report] {said}", flush=True)
    return 0


def begin(plan_file: Path, jobs: Sequence[Job], to_do: Sequence[Job], cores: int, hours: float) -> None:
    """Write the plan of a run, with the times of earlier runs of the same jobs where their marks have them."""
    entries = []
    for job in jobs:
        open_mark(job.done).unlink(missing_ok=True)
        seconds = read_mark(job.done).get("seconds")
        more = {"name": job.name, "done": str(job.done), "seconds": seconds, "to_do": job in to_do}
        entries.append({**asdict(job), **more, "demand": demand(job, hours)})
    write_mark(plan_file, cores=cores, began=time.time(), jobs=entries)
    if to_do:
        rest = left([entry for entry in entries if entry["to_do"]], {}, cores)
        count = f"{len(to_do)} job{'s' if len(to_do) != 1 else ''}"
        print(f"[report] {count}{f', about {rest}' if rest else ''}", flush=True)


def remote(options: Sequence[str]) -> bool:
    """Whether Snakemake is told to run jobs elsewhere, where they print into logs of their own."""
    return any(text.startswith(("--executor", "--profile", "--workflow-profile")) for text in options)


def wait(process: subprocess.Popen, elsewhere: Sequence[Job]) -> int:
    """Its exit code; of jobs that run elsewhere it is said here how they end. On Ctrl-C it is asked to end its jobs and
    waited for."""
    began, told = time.time(), set()
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=1 if elsewhere else None)
            for job in elsewhere:
                said = ended(job.done, began)
                if said and said not in told:
                    print(f"[report] {said}", flush=True)
                    told.add(said)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.send_signal(signal.SIGINT)  # it has it already, if a terminal sent it
        process.wait()
        raise


def cause(open_jobs: Sequence[Job], log: Path) -> str:
    """Where to look after a failure: at what the jobs said; where none failed, what Snakemake said last is shown."""
    if any("why" in read_mark(open_mark(job.done)) for job in open_jobs):
        return f"see above, and {log}"
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if lost := [line for line in lines if line.startswith("message: ")]:  # of a job that a cluster lost
        return f"Snakemake stopped: {lost[0].removeprefix('message: ')} ({log})"
    quote(lines[-LINES:])
    return f"Snakemake stopped, though no job failed: its last words are above ({log})"


def gaps(open_jobs: Sequence[Job], page: Path) -> list[dict[str, str]]:
    """Why each job of a report that is not done is not: what it failed of and where to look, seen from the page; or the
    names of the failed jobs that it waits for."""
    by_mark = {str(job.done): job for job in open_jobs}
    said = {mark: read_mark(open_mark(job.done)) for mark, job in by_mark.items()}
    found = []
    for mark, job in by_mark.items():
        why, see = said[mark].get("why", ""), said[mark].get("see", "")
        failed = [other for other in before(job, by_mark) if "why" in said[other]]
        gap = {
            "stage": job.stage.name,
            "model": job.model,
            "side": job.side,
            "why": why,
            "see": os.path.relpath(see, page) if see else "",
            "waits_for": "" if why else ", ".join(name_of(Path(other)) for other in failed),
        }
        found += [gap] if job.stage.name != "compare" else []
    return found


def before(job: Job, open_jobs: Mapping[str, Job]) -> list[str]:
    """The marks of the open jobs that a job waits for, directly or not."""
    direct = [mark for mark in (*job.needs, *job.after) if mark in open_jobs]
    return list(dict.fromkeys(other for one in direct for other in (one, *before(open_jobs[one], open_jobs))))


def report_with_gaps(jobs: Sequence[Job], open_jobs: Sequence[Job]) -> None:
    """Render from the records of the jobs that are done, so that the others show as NOT RUN, with a record of the gaps.

    A mistake in the data stops everything; then the earlier report stays as it was.
    """
    stages = {job.stage.name for job in open_jobs}
    if "compare" not in stages or len(stages) == 1 or "data" in stages:
        return
    compare = next(job for job in open_jobs if job.stage.name == "compare")
    compare.done.unlink(missing_ok=True)
    description = json.loads(compare.file.read_text(encoding="utf-8"))
    values = description["parameters"]
    records, page = Path(values["records"]), Path(values["report"], "index.html")
    view = page.with_name(".records")
    shutil.rmtree(view, ignore_errors=True)
    for result in (Path(result) for job in jobs if job not in open_jobs for result in job.results):
        if records in result.parents:
            link = view / result.relative_to(records)
            link.parent.mkdir(parents=True, exist_ok=True)
            for suffix in (".json", ".safetensors"):
                link.with_suffix(suffix).symlink_to(result.with_suffix(suffix).resolve())
    with record.measure("gaps", "all", view) as measured:
        measured.fields["gaps"] = gaps(open_jobs, page.parent)
    pages.make(Path(description["notebook"]).stem, {**values, "records": str(view)})
    print(f"[report] a report with gaps: {page}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.machine.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--models", default="nanodet-plus-m_320", help="names, separated by spaces")
    parser.add_argument("--data", default="", help="folder or COCO JSON; the built-in scenes by default")
    parser.add_argument("--weights", default="", help="checkpoint of the model that trainings start from")
    parser.add_argument("--backbone", default="", help="weights of its backbone that they start from")
    parser.add_argument("--also", default="", help="stages that the profile leaves out, separated by spaces")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="of the report (%(default)s)")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("snakemake", nargs="*", help="further arguments for snakemake, after --")
    chosen = vars(parser.parse_args())
    extra, models = chosen.pop("snakemake"), tuple(dict.fromkeys(chosen.pop("models").split()))
    if not models:
        raise UserError("MODELS: no model is named: for example MODELS=nanodet-plus-m_320")
    also = tuple(chosen.pop("also").split())
    return report(Request(models=models, also=also, **chosen), extra)


if __name__ == "__main__":
    sys.exit(exit_code(main, "[report] interrupted; what was complete is kept: `make report` continues"))
