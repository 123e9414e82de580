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
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lib import record
from lib import report as pages
from lib.errors import UserError, exit_code
from lib.families import FAMILIES, family
from lib.machine import environment, table
from lib.machine.gaps import cause, report_with_gaps
from lib.machine.job import Job, Stage, digest, ended, left, open_mark, read_mark, write_mark
from lib.machine.notebook import BOTH, parameters, sources

TOURS = {"nanodet_plus": "20_nanodet_plus", "gold_yolo": "21_gold_yolo", "rt_detr": "22_rt_detr"}
STAGES = (
    Stage("start", "00_start_here", sides=("none",), per_model=False),
    Stage("data", "10_data", sides=("none",), writes=("own",), per_model=False, shared=True, weight=10),
    Stage("kernels", command=("lib.alignment.kernels",), sides=("jittor",), prepares=True, weight=30),
    Stage("tour", "tour", weight=20),
    Stage("rosetta", "30_migration", writes=("own",), per_model=False, weight=20),
    Stage("convert", "40_convert", writes=("own",)),
    Stage("forward", "50_forward", writes=("own",), weight=8),
    Stage("divergence", "52_divergence", writes=("own",), leads="torch", weight=12),
    Stage("operators", "53_operators", writes=("own",), leads="torch", weight=40),
    Stage("loss", "51_loss_and_gradient", writes=("own",), weight=20),
    Stage("lockstep", "61_lockstep", needs=("data",), writes=("own",), weight=40),
    Stage("train", "60_train", needs=("data",), writes=("own",), weight=90),
    Stage("evaluate", "70_evaluate", needs=("data", "train"), writes=("own",), weight=8),
    Stage("detect", "71_detect", sides=("none",), needs=("data", "evaluate")),
    Stage("speed", "80_speed", sides=("none",), writes=BOTH, alone=True, weight=40),
    Stage(
        "compare",
        "90_compare",
        sides=("none",),
        per_model=False,
        needs=(
            *("data", "rosetta", "convert", "forward", "divergence", "operators"),
            *("loss", "lockstep", "train", "evaluate", "speed"),
        ),
        weight=20,
    ),
)


NAMED = 24  # jobs that a line names at most
TOLD = 500  # jobs of a run beyond which none says what is left: each would read the whole plan for it
CONSIDERED = 128  # ready jobs, drawn where there are more: Snakemake looks at the files of each whenever one ends
PER_SECOND = 1000  # marks that are looked for on a shared disk
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
    seed: int | None = None  # of all that is drawn but the data, instead of the profile's
    place: str = ""  # of the report below reports/, instead of the profile's name

    @property
    def folder(self) -> Path:
        return Path("reports", self.place or self.profile)


def load_profile(name: str) -> dict[str, Any]:
    """profiles/<name>.yaml: seed, threads, what it requires, and a section with parameters for each stage."""
    path = environment.ROOT / "profiles" / f"{name}.yaml"
    if not (re.fullmatch(r"[\w.-]+", name) and path.is_file()):  # Snakemake sees it in paths, where {} is a wildcard
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"PROFILE={name}: {path.name} is not in profiles/: choose one of {known}")
    try:
        profile = _parsed(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"profiles/{path.name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(profile, dict):
        raise UserError(f"profiles/{path.name}: holds no section: name at least one stage, as the other profiles do")
    stages = [stage.name for stage in STAGES]
    for name in sorted(set(profile) - {*stages, "seed", "threads", "requires", "hours"}):
        raise UserError(f"profiles/{path.name}: '{name}' is no stage: choose from {', '.join(stages)}")
    return profile


@lru_cache(1)
def _parsed(text: str) -> Any:
    """Once for the many reports of a profile."""
    return yaml.safe_load(text)


def section(values: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A stage's parameters for a model: those under its family's name replace the others."""
    own = values.get(family(model), {}) if model != "all" else {}
    return {**{name: value for name, value in values.items() if name not in FAMILIES}, **own}


# --------------------------------------------------------------------------------------------------------- the plan


def plan(*requests: Request) -> list[Job]:
    """All jobs of these reports, in order; writes their descriptions where they say something else: any difference runs
    a job again."""
    for request in requests:
        check(request, load_profile(request.profile))
    jobs = []
    for job, description in together(requests):
        text = json.dumps(description, indent=1, ensure_ascii=False)
        if not job.file.is_file() or job.file.read_text(encoding="utf-8") != text:
            job.file.parent.mkdir(parents=True, exist_ok=True)
            job.file.write_text(text, encoding="utf-8")  # half of one is another text, and written again
        jobs.append(job)
    return jobs


def together(requests: Iterable[Request]) -> Iterator[tuple[Job, dict[str, Any]]]:
    """The jobs of reports, one report after the other, and what their files say. What a stage makes outside of them is
    made by the first that needs it, and the others wait: never forty at the same time."""
    first: dict[tuple[str, ...], str] = {}
    for request in requests:
        made = dataset(request, load_profile(request.profile))
        for job, description in described(request):
            if job.stage.shared or job.stage.prepares:
                what = job.stage.name, job.model, job.side, "" if job.stage.per_model else made
                earlier = first.setdefault(what, str(job.done))
                job = replace(job, after=(*job.after, earlier)) if earlier != str(job.done) else job
            yield job, description


def described(request: Request) -> list[tuple[Job, dict[str, Any]]]:
    """The jobs of a report, and what their files say."""
    profile = dict.fromkeys(request.also) | load_profile(request.profile)
    found: list[tuple[Job, dict[str, Any]]] = []
    for stage in (stage for stage in STAGES if stage.name in profile):
        for model in request.models if stage.per_model else ("all",):
            leader: list[str] = []
            for side in sorted(stage.sides, key=lambda side: side != stage.leads):
                needs = [str(job.done) for job, _ in found if feeds(job, stage, model)] + leader
                after = [str(job.done) for job, _ in found if prepares(job, stage, model, side)]
                found.append(make_job(stage, model, side, request, profile, needs, after))
                leader = [str(found[-1][0].done)] if side == stage.leads else leader
    return found


def of_table(path: Path, common: Request) -> tuple[list[Request], Path]:
    """A request for each row of a table, and the folder of their reports, which has the table's name."""
    profile, folder = load_profile(common.profile), Path("reports", path.stem)
    profiles = (environment.ROOT / "profiles").glob("*.yaml")
    if not re.fullmatch(r"\w[\w.-]*", folder.name) or folder.name in {one.stem for one in profiles}:
        raise UserError(f"TABLE={path}: reports/{folder.name} would not be its own: give the file another name")
    if (folder / "records").exists():
        raise UserError(f"TABLE={path}: {folder} holds one report: give the file another name, or move that away")
    requests = []
    for where, name, said in table.rows(path):
        requests.append(replace(common, place=f"{folder.name}/{name}", **said))
        try:
            check(requests[-1], profile)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return requests, folder


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
    """UserError if the profile requires what was not given, or if a stage, a model or a file that was given is not
    there."""
    stages = [stage.name for stage in STAGES]
    for name in request.also:
        if name not in stages:
            raise UserError(f"ALSO={name}: no stage: choose from {', '.join(stages)}")
    for name in request.models:
        family(name)
    annotations(request.data)
    given = {"data": request.data, "start": request.weights or request.backbone}
    for what in profile.get("requires", ()):
        if not given[what]:
            raise UserError(f"PROFILE={request.profile}: needs {REQUIRED[what]}")
    for name, path in (("WEIGHTS", request.weights), ("BACKBONE", request.backbone)):
        if path and not os.path.isfile(path):
            raise UserError(f"{name}={path}: no such file")


def dataset(request: Request, profile: Mapping[str, Any]) -> str:
    """Where the data set lies: the user's, a subset of it that the data stage chooses, or the built-in scenes. It is
    drawn by the profile's seed: a class has one."""
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
) -> tuple[Job, dict[str, Any]]:
    """A job and its description."""
    report, place = request.folder, Path(model, side)
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
            "seed": profile.get("seed", 0) if request.seed is None or stage.shared else request.seed,
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
    read = (str(file), *inputs, *needs)
    return Job(stage, model, side, file, done, read, tuple(results), threads, tuple(needs), tuple(after)), description


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
    found: dict[str, Job] = {}
    for job in jobs:
        if not found.keys().isdisjoint(job.needs) or not is_done(job):
            found[str(job.done)] = job
    return list(found.values())


def is_done(job: Job) -> bool:
    """Whether a job's mark fits the files as they are now."""
    if not (mark := read_mark(job.done)):
        return False
    results = {name: digest([name]) for name in job.results}
    return mark.get("results") == results and mark.get("inputs") == digest(job.inputs)


# ------------------------------------------------------------------------------------------------------- the report


def report(requests: Sequence[Request], folder: Path, extra: list[str], rows: Path | None = None) -> int:
    """Have Snakemake bring what lies below `folder` up to date: one report, or those of a table's rows."""
    page, plan_file, cores = folder / "index.html", folder / ".plan.json", requests[0].cores
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another `make report` is at work on it: wait for its end") from error
        jobs = plan(*requests)  # a user's mistake shows here, in one line
        to_do = stale(jobs)
        told = not rows or page.is_file() and page.stat().st_mtime_ns >= rows.stat().st_mtime_ns
        if not to_do and not extra and told:
            print(f"[report] nothing to do, up to date: {page}", flush=True)
            return 0
        begin(plan_file, jobs, to_do, cores, load_profile(requests[0].profile).get("hours", 1))
        # Our lock goes when this process and Snakemake have ended; Snakemake's own would stay after a kill. What makes
        # a job stale beyond the times of its files, the digests in its mark say. The other scheduler asks a solver of
        # integer programs before each job: a priority is all there is to know.
        options = ["--nolock", "--rerun-incomplete", "--keep-going", "--rerun-triggers=mtime", "--scheduler=greedy"]
        options += [f"--cores={cores}", f"--scheduler-subsample={CONSIDERED}"]
        marks = [str(job.done) for job in to_do if job.done.exists()]
        forced = ["--forcerun", *marks] if marks else []
        command = [sys.executable, "-m", "snakemake", "--configfile", str(plan_file), *options, *forced, *extra]
        with open(folder / "snakemake.log", "w") as log:  # its own words; the jobs speak on stdout
            os.environ.setdefault("USER", str(os.getuid()))  # the SLURM plugin needs it, a container may lack it
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, pass_fds=[lock.fileno()])
            code = wait(process, to_do if remote(extra) else (), plan_file if len(to_do) <= TOLD else None)
        open_jobs = stale(jobs)
        names = ", ".join(job.name for job in open_jobs[:NAMED])
        names += f" and {len(open_jobs) - NAMED} more" if len(open_jobs) > NAMED else ""
        if code:
            print(f"[report] not finished: {names}: {cause(open_jobs, Path(log.name))}", flush=True)
        by_mark, unwritten = {str(job.done): job for job in open_jobs}, False
        for request, own in zip(requests, by_report(jobs, requests)):
            try:
                pages.render_notebooks(request.folder, request.language)
                if code:
                    report_with_gaps(own, by_mark)
            except UserError as error:  # of one report: the others have their pages
                print(f"[report] {request.folder}: {error}", flush=True)
                unwritten = True
        if rows and (code or not to_do or open_jobs != to_do):  # not after a dry run
            from lib.report import overview  # only many reports need it

            overview.write(folder, {one.folder.name: one.models for one in requests}, requests[0].language)
        if code or unwritten:
            return 1
    # Open although all went well: Snakemake was asked for something else, what it would do or a part.
    said = f"to do, {len(open_jobs)} of {len(jobs)} jobs: {names}" if open_jobs else f"up to date: {page}"
    print(f"[report] {said}", flush=True)
    return 0


def by_report(jobs: Sequence[Job], requests: Sequence[Request]) -> list[list[Job]]:
    """The jobs of each report."""
    found: dict[Path, list[Job]] = {request.folder: [] for request in requests}
    for job in jobs:
        found[job.done.parents[3]].append(job)
    return list(found.values())


def priorities(jobs: Sequence[Job]) -> dict[str, int]:
    """By stage; of the jobs that are ready the highest starts first: the one that begins the longest chain, for what is
    long and starts late ends alone. What nothing may run beside comes last: others have compiled its kernels then."""
    behind, found = {}, {}
    for job in reversed(jobs):  # they stand in the order of their needs
        chain = job.stage.weight + behind.get(str(job.done), 0)
        behind |= {mark: max(behind.get(mark, 0), chain) for mark in (*job.needs, *job.after)}
        found[job.stage.name] = 0 if job.stage.alone else max(chain, found.get(job.stage.name, 0))
    return found


def begin(plan_file: Path, jobs: Sequence[Job], to_do: Sequence[Job], cores: int, hours: float) -> None:
    """Write the plan of a run, with the times of earlier runs of the same jobs where their marks have them."""
    entries, marks, first = [], {job.done for job in to_do}, priorities(jobs)
    for job in jobs:
        open_mark(job.done).unlink(missing_ok=True)
        entries.append(
            {
                "stage": job.stage.name,
                "file": str(job.file),
                "done": str(job.done),
                "needs": job.needs,
                "after": job.after,
                "threads": job.threads,
                "priority": first[job.stage.name],
                "demand": demand(job, hours),
                "weight": job.stage.weight,
                "seconds": read_mark(job.done).get("seconds"),
                "to_do": job.done in marks,
            }
        )
    asked = str(plan_file) if len(to_do) <= TOLD else ""  # by the jobs, when they end
    write_mark(plan_file, plan=asked, cores=cores, began=time.time(), jobs=entries)
    if to_do:
        rest = left([entry for entry in entries if entry["to_do"]], {}, cores)
        count = f"{len(to_do)} job{'s' if len(to_do) != 1 else ''}"
        print(f"[report] {count}{f', about {rest}' if rest else ''}", flush=True)


def remote(options: Sequence[str]) -> bool:
    """Whether Snakemake is told to run jobs elsewhere, where they print into logs of their own."""
    return any(text.startswith(("--executor", "--profile", "--workflow-profile")) for text in options)


def wait(process: subprocess.Popen, elsewhere: Sequence[Job], plan_file: Path | None) -> int:
    """Its exit code; of jobs that run elsewhere it is said here how they end. On Ctrl-C it is asked to end its jobs and
    waited for."""
    began, running = time.time(), [job.done for job in elsewhere]
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(1, len(running) / PER_SECOND) if running else None)
            said = {done: text for done in running if (text := ended(done, began, plan_file))}
            for text in said.values():
                print(f"[report] {text}", flush=True)
            running = [done for done in running if done not in said]
            if process.returncode is not None:
                return process.returncode
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.send_signal(signal.SIGINT)  # it has it already, if a terminal sent it
        process.wait()
        raise


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.machine.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--models", default="nanodet-plus-m_320", help="names, separated by spaces")
    parser.add_argument("--data", default="", help="folder or COCO JSON; the built-in scenes by default")
    parser.add_argument("--weights", default="", help="checkpoint of the model that trainings start from")
    parser.add_argument("--backbone", default="", help="weights of its backbone that they start from")
    parser.add_argument(
        "--table",
        type=lambda text: Path(text) if text else None,
        help="CSV file with a row for each of many reports: name, model, seed …",
    )
    parser.add_argument("--also", default="", help="stages that the profile leaves out, separated by spaces")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="of the report (%(default)s)")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("snakemake", nargs="*", help="further arguments for snakemake, after --")
    chosen = vars(parser.parse_args())
    extra, rows = chosen.pop("snakemake"), chosen.pop("table")
    models, also = (tuple(dict.fromkeys(chosen.pop(name).split())) for name in ("models", "also"))
    if not models:
        raise UserError("MODELS: no model is named: for example MODELS=nanodet-plus-m_320")
    request = Request(models=models, also=also, **chosen)
    if rows:
        return report(*of_table(rows, request), extra, rows)
    return report([request], request.folder, extra)


if __name__ == "__main__":
    sys.exit(exit_code(main, "[report] interrupted; what was complete is kept: `make report` continues"))
