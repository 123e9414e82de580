"""What a report consists of: which notebook runs in which kernel on what, and the running of one notebook.

The Snakefile turns `plan` into rules; Snakemake decides which of them must run. A job is one notebook for one model
and side. It is described by a file, `reports/<profile>/jobs/…yaml`, that holds its parameters, environment and inputs,
and it is done when its `.done` file exists, which is written last. Records, executed notebooks and checkpoints are not
declared to Snakemake, which would delete them before a job starts: a run that fails leaves the earlier ones in place.
"""
import argparse
import fcntl
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib import environment
from lib.alignment.evidence import REFERENCE
from lib.errors import UserError
from lib.notebook import BOTH, FAMILIES, execute, family, parameters, sources
from lib.record import atomic

@dataclass(frozen=True)
class Stage:
    """One notebook of the report; a profile that has no section for it leaves it out."""

    name: str                        # of its section in a profile and of its records
    notebook: str                    # notebooks/<notebook>.ipynb; "tour" stands for the family's own
    sides: tuple[str, ...] = BOTH    # one run per side; "none" runs in the torch kernel and knows no framework
    needs: tuple[str, ...] = ()      # stages that must be done before, on every side
    writes: tuple[str, ...] = ()     # the sides whose records it writes
    per_model: bool = True           # else one run for all models
    leads: str = ""                  # the side that must be done before the other starts
    alone: bool = False              # nothing may run beside it
    priority: int = 1                # of those that are ready the highest starts first


STAGES = (
    Stage("start", "00_start_here", sides=("none",), per_model=False),
    Stage("data", "10_data", sides=("none",), writes=("own",), per_model=False),
    Stage("tour", "tour"),
    Stage("rosetta", "30_migration", writes=("own",), per_model=False),
    Stage("convert", "40_convert", writes=("own",)),
    Stage("forward", "50_forward", writes=("own",)),
    Stage("divergence", "52_divergence", writes=("own",), leads=REFERENCE),
    Stage("loss", "51_loss_and_gradient", writes=("own",)),
    Stage("lockstep", "61_lockstep", needs=("data",), writes=("own",)),
    Stage("train", "60_train", needs=("data",), writes=("own",), priority=2),  # the longest
    Stage("evaluate", "70_evaluate", needs=("data", "train"), writes=("own",)),
    Stage("detect", "71_detect", sides=("none",), needs=("data", "evaluate")),
    Stage("speed", "80_speed", sides=("none",), writes=BOTH, alone=True, priority=0),  # others have compiled its kernels
    Stage("compare", "90_compare", sides=("none",), per_model=False,
          needs=("data", "rosetta", "convert", "forward", "divergence", "loss", "lockstep", "train", "evaluate", "speed")),
)


# What a profile may require of the request, and how to give it.
REQUIRED = {"data": "DATA=… (a COCO folder or file)",
            "start": "WEIGHTS=… (a checkpoint of the model) or BACKBONE=… (ImageNet weights of its backbone), or both"}


@dataclass(frozen=True)
class Request:
    """What `make report` was asked for."""

    profile: str
    models: tuple[str, ...]
    data: str                        # folder or COCO JSON; empty: the built-in scenes
    cores: int
    language: str = "en"             # of the report
    weights: str = ""                # trainings start from this checkpoint of the model
    backbone: str = ""               # or from these weights of its backbone; with both, one training from each


@dataclass(frozen=True)
class Job:
    stage: Stage
    model: str          # "all" for a stage that runs once
    side: str
    file: Path          # its description, which is also an input: a changed parameter runs it again
    done: Path
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    threads: int

    @property
    def name(self) -> str:
        return "_".join((self.stage.name, self.model, self.side))


def load_profile(name: str) -> dict[str, Any]:
    """profiles/<name>.yaml: seed, threads, what it requires, and one section per stage with its notebook's parameters."""
    path = environment.ROOT / "profiles" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"PROFILE={name}: {path.name} is not in profiles/: choose one of {known}")
    try:
        profile = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"profiles/{path.name}: not valid YAML: {' '.join(str(error).split())}") from error
    unknown = sorted(set(profile) - {stage.name for stage in STAGES} - {"seed", "threads", "requires"})
    if unknown:
        raise UserError(f"profiles/{path.name}: '{unknown[0]}' is no stage: choose from {', '.join(s.name for s in STAGES)}")
    return profile


def section(values: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A stage's parameters for a model: those under its family's name replace the others."""
    own = values.get(family(model), {}) if model != "all" else {}
    return {**{name: value for name, value in values.items() if name not in FAMILIES}, **own}


# --------------------------------------------------------------------------------------------------------- the plan

def plan(request: Request) -> list[Job]:
    """All jobs of a report, in order; writes their descriptions, and drops the mark of those whose results are gone."""
    profile = load_profile(request.profile)
    check(request, profile)
    jobs: list[Job] = []
    for stage in STAGES:
        if stage.name in profile:
            for model in request.models if stage.per_model else ("all",):
                needed = [str(job.done) for job in jobs
                          if job.stage.name in stage.needs and (model == "all" or job.model in ("all", model))]
                leader: list[str] = []
                for side in sorted(stage.sides, key=lambda side: side != stage.leads):
                    jobs.append(make_job(stage, model, side, needed + leader, describe(stage, model, side, request, profile)))
                    leader = [str(jobs[-1].done)] if side == stage.leads else leader
    return jobs


def check(request: Request, profile: Mapping[str, Any]) -> None:
    """UserError if the profile requires what was not given, or if a file that was given is not there."""
    given = {"data": request.data, "start": request.weights or request.backbone}
    for what in profile.get("requires", ()):
        if not given[what]:
            raise UserError(f"PROFILE={request.profile}: needs {REQUIRED[what]}")
    for name, path in (("WEIGHTS", request.weights), ("BACKBONE", request.backbone)):
        if path and not os.path.isfile(path):
            raise UserError(f"{name}={path}: no such file")


def dataset(request: Request, profile: Mapping[str, Any]) -> str:
    """Where the report's data set lies: the user's, a subset of it that the data stage chooses, or the built-in scenes."""
    if not request.data:
        return f"data/scenes-{request.profile}"
    if not is_subset(profile):
        return request.data
    choice = json.dumps([os.path.abspath(request.data), profile.get("seed", 0), profile["data"]], sort_keys=True)
    return f"data/{request.profile}-{hashlib.sha256(choice.encode()).hexdigest()[:8]}"


def is_subset(profile: Mapping[str, Any]) -> bool:
    """Whether the data stage chooses images and classes of the user's data."""
    return "subset_classes" in (profile.get("data") or {})


def describe(stage: Stage, model: str, side: str, request: Request, profile: Mapping[str, Any]) -> dict[str, Any]:
    """All that a job is made of; a difference to what its file says runs it again."""
    report = Path("reports", request.profile)
    name = FAMILIES[family(model)].tour if stage.notebook == "tour" else stage.notebook
    notebook = Path("notebooks", f"{name}.ipynb")
    threads = request.cores if stage.alone else min(request.cores, profile.get("threads", 1))
    offered = {
        "model": model, "models": list(request.models), "seed": profile.get("seed", 0), "threads": threads,
        "data": dataset(request, profile), "source": request.data if is_subset(profile) else "",
        "start_weights": request.weights, "start_backbone": request.backbone, "records": str(report / "records"),
        "runs": str(report / "runs"), "report": str(report), "profile": request.profile,
        "language": request.language,
    }
    kernel = side if side in BOTH else "torch"
    where = f"profiles/{request.profile}.yaml: {stage.name}"
    used = parameters(notebook, section(profile[stage.name] or {}, model), offered, where)
    last = stage.name == "compare"
    reads_annotations = ("source" if is_subset(profile) else "data") in used
    starts = [path for path in (request.weights, request.backbone) if path and "start_weights" in used]
    owners = [side if owner == "own" else owner for owner in stage.writes]
    return {
        "notebook": str(notebook),
        "output": str(report / "notebooks" / model / side / notebook.name),
        "kernel": kernel,
        "environment": environment.location(environment.named(kernel)).name,
        "threads": threads,
        "parameters": used,
        "inputs": [str(notebook), *sources(notebook, side, request.models if model == "all" else (model,), display=last),
                   *(report_files() if last else ()), *(annotations(request.data) if reads_annotations else ()), *starts],
        "results": [*(str(report / "records" / model / owner / f"{stage.name}.json") for owner in owners),
                    *([str(report / "index.html")] if last else ())],
        "resumes": str(report / "runs" / model / side) if stage.name == "train" else None,
        "done": str(report / ".done" / model / side / stage.name),
    }


def make_job(stage: Stage, model: str, side: str, needed: list[str], description: dict[str, Any]) -> Job:
    """Write the description where it differs from what stands there."""
    description = {**description, "inputs": description["inputs"] + needed}
    done = Path(description["done"])
    file = done.parents[3] / "jobs" / model / side / f"{stage.name}.yaml"
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    if not file.is_file() or file.read_text() != text:
        with atomic(file) as temporary:
            temporary.write_text(text)
    results = (description["output"], *description["results"])
    if not all(Path(result).is_file() for result in results):
        done.unlink(missing_ok=True)
    return Job(stage, model, side, file, done, (str(file), *description["inputs"]), results, description["threads"])


def report_files() -> list[str]:
    """What the comparison reads besides records and Python: templates, and the published implementations' numbers."""
    found = (path for folder in ("lib/report", "tests/golden") for path in glob.glob(f"{folder}/**", recursive=True))
    return sorted(path for path in found if os.path.isfile(path) and "__pycache__" not in path)


def annotations(data: str) -> list[str]:
    """The annotation files of the user's data (the built-in scenes follow from the data stage)."""
    if not data:
        return []
    if not os.path.exists(data):
        raise UserError(f"DATA={data}: no such file or folder")
    return [data] if os.path.isfile(data) else sorted(glob.glob(f"{data}/*.json") + glob.glob(f"{data}/annotations/*.json"))


# ---------------------------------------------------------------------------------------------------- running a job

def run(file: Path) -> None:
    """Execute the notebook of a job and mark it done; UserError says which cell failed and why."""
    job = yaml.safe_load(file.read_text())
    title = " · ".join(Path(job["done"]).parts[-3:])
    inputs = [str(file), *job["inputs"]]
    key = digest(inputs)
    if job["resumes"]:
        forget_other_run(Path(job["resumes"]), key)
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    os.environ["RECORD_COMMAND"] = f"python -m lib.pipeline run {file}"
    print(f"[report] {title}: {job['notebook']} starts", flush=True)
    started = time.monotonic()
    execute(Path(job["notebook"]), Path(job["output"]), job["kernel"], job["parameters"])
    if digest(inputs) != key:
        raise UserError(f"{job['notebook']}: a file that it depends on was edited while it ran: run again")
    results = [job["output"], *job["results"]]
    absent = [result for result in results if not Path(result).is_file()]
    if absent:
        raise UserError(f"{job['notebook']}: ended without writing {absent[0]}")
    with atomic(job["done"]) as temporary:
        temporary.write_text(json.dumps({"inputs": key, "results": {result: digest([result]) for result in results}}))
    print(f"[report] {title}: done in {time.monotonic() - started:.0f} s", flush=True)


def digest(files: list[str]) -> str:
    """One SHA-256 for the names and contents of files."""
    total = hashlib.sha256()
    for name in files:
        total.update(f"{name}\n".encode() + hashlib.sha256(Path(name).read_bytes()).digest())
    return total.hexdigest()


def forget_other_run(folder: Path, key: str) -> None:
    """Keep an interrupted run's folder only for the very inputs it was started with: it may be resumed."""
    mark = folder / "inputs.sha256"
    if mark.is_file() and mark.read_text() == key:
        return
    if folder.exists():
        shutil.rmtree(folder)
    with atomic(mark) as temporary:
        temporary.write_text(key)


# ------------------------------------------------------------------------------------------------------- the report

def report(request: Request, extra: list[str]) -> int:
    """Have Snakemake bring `reports/<profile>` up to date."""
    load_profile(request.profile)
    target = Path("reports", request.profile)
    target.mkdir(parents=True, exist_ok=True)
    with open(target / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{target}: another `make report` is at work on it: wait for its end") from error
        jobs = plan(request)  # a user's mistake shows here, in one line
        before = marks(jobs)
        # Our lock goes when this process and Snakemake have ended; Snakemake's own would stay after a kill.
        command = [sys.executable, "-m", "snakemake", "--cores", str(request.cores), "--nolock", "--rerun-incomplete",
                   "--keep-going", "--config", f"report={request.profile}",
                   f"models={' '.join(request.models)}", f"data={request.data}", f"language={request.language}",
                   f"weights={request.weights}", f"backbone={request.backbone}", *extra]
        with open(target / "snakemake.log", "w") as log:  # its own words; the jobs speak on stdout
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=log, pass_fds=[lock.fileno()]).returncode
    page = target / "index.html"
    if code:
        open_jobs = unfinished(jobs)
        print(f"[report] not finished: {', '.join(job.name for job in open_jobs)} (see {log.name})", flush=True)
        report_with_gaps(jobs, open_jobs)
        return 1
    print(f"[report] {'nothing to do, ' if marks(jobs) == before else ''}up to date: {page}", flush=True)
    return 0


def unfinished(jobs: list[Job]) -> list[Job]:
    """The jobs that failed, and those that depend on them, whose results are of an earlier run."""
    found: list[Job] = []
    for job in jobs:
        if not job.done.is_file() or any(str(other.done) in job.inputs for other in found):
            found.append(job)
    return found


def report_with_gaps(jobs: list[Job], open_jobs: list[Job]) -> None:
    """Render from the records of the jobs that are done, so that the others show as NOT RUN.

    A mistake in the data stops everything; then the earlier report stays as it was.
    """
    stages = {job.stage.name for job in open_jobs}
    if "compare" not in stages or len(stages) == 1 or "data" in stages:
        return
    compare = next(job for job in open_jobs if job.stage.name == "compare")
    compare.done.unlink(missing_ok=True)
    description = yaml.safe_load(compare.file.read_text())
    records, view = Path(description["parameters"]["records"]), compare.done.parents[3] / ".records"
    shutil.rmtree(view, ignore_errors=True)
    for job in jobs:
        for result in job.results if job not in open_jobs else ():
            if records in Path(result).parents:
                link = view / Path(result).relative_to(records)
                link.parent.mkdir(parents=True, exist_ok=True)
                for suffix in (".json", ".safetensors"):
                    link.with_suffix(suffix).symlink_to(Path(result).with_suffix(suffix).resolve())
    values = {**description["parameters"], "records": str(view)}
    execute(Path(description["notebook"]), Path(description["output"]), description["kernel"], values)
    print(f"[report] a report with gaps: {Path(values['report'], 'index.html')}", flush=True)


def marks(jobs: list[Job]) -> list[int]:
    return [job.done.stat().st_mtime_ns if job.done.is_file() else 0 for job in jobs]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.pipeline", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run", help="run one job")
    one.add_argument("file", type=Path)
    whole = verbs.add_parser("report", help="bring a report up to date")
    whole.add_argument("--profile", default="quick")
    whole.add_argument("--models", default="nanodet-plus-m_320", help="names, separated by spaces")
    whole.add_argument("--data", default="", help="folder or COCO JSON; the built-in scenes by default")
    whole.add_argument("--weights", default="", help="checkpoint of the model that trainings start from")
    whole.add_argument("--backbone", default="", help="weights of its backbone that they start from")
    whole.add_argument("--language", choices=("en", "zh"), default="en", help="of the report (%(default)s)")
    whole.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    whole.add_argument("snakemake", nargs="*", help="further arguments for snakemake, after --")
    chosen = parser.parse_args()
    if chosen.verb == "run":
        try:
            run(chosen.file)
        except UserError as error:
            print(f"[report] FAILED: {error}", flush=True)
            return 1
        return 0
    models = tuple(dict.fromkeys(chosen.models.split()))
    if not models:
        raise UserError("MODELS: no model is named: for example MODELS=nanodet-plus-m_320")
    request = Request(chosen.profile, models, chosen.data, chosen.cores, chosen.language, chosen.weights, chosen.backbone)
    return report(request, chosen.snakemake)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
