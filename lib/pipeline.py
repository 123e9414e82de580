"""What a report consists of: which notebook runs in which kernel on what, and the running of one notebook.

A job is one notebook for one model and side. It is described by a file, `reports/<profile>/jobs/…json`, that holds its
parameters, environment and inputs, and it is done when its `.done` file exists, which is written last and holds the digests
of what it read and of what it wrote: `stale` says which jobs are no longer done. Snakemake runs those, and what depends on
them, in their order. Records, executed notebooks and checkpoints are not declared to it, which would delete them before a
job starts: a run that fails leaves the earlier ones in place.
"""
import argparse
import fcntl
import glob
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib import environment, progress, record
from lib.alignment.evidence import REFERENCE
from lib.errors import UserError, of_a_place
from lib.job import digest, run, written
from lib.notebook import BOTH, FAMILIES, execute, family, parameters, sources
from lib.progress import open_mark, read_mark
from lib.record import atomic

@dataclass(frozen=True)
class Stage:
    """One notebook of the report, or one command; a profile that has no section for it leaves it out."""

    name: str                        # of its section in a profile and of its records
    notebook: str = ""               # notebooks/<notebook>.ipynb; "tour" stands for the family's own
    command: tuple[str, ...] = ()    # instead of a notebook: a module and its arguments, for its side's Python
    prepares: bool = False           # what runs its model on its side waits for it, but reads nothing that it writes
    sides: tuple[str, ...] = BOTH    # one run per side; "none" runs in the torch kernel and knows no framework
    needs: tuple[str, ...] = ()      # stages that must be done before, on every side
    writes: tuple[str, ...] = ()     # the sides whose records it writes
    per_model: bool = True           # else one run for all models
    leads: str = ""                  # the side that must be done before the other starts
    alone: bool = False              # nothing may run beside it
    priority: int = 1                # of those that are ready the highest starts first
    weight: int = 10                 # its share of a report's time, to guess what is left where it was not measured yet


STAGES = (
    Stage("start", "00_start_here", sides=("none",), per_model=False),
    Stage("data", "10_data", sides=("none",), writes=("own",), per_model=False, priority=4),
    Stage("kernels", command=("lib.alignment.kernels",), sides=("jittor",), prepares=True, priority=4, weight=30),
    Stage("tour", "tour"),
    Stage("rosetta", "30_migration", writes=("own",), per_model=False),
    Stage("convert", "40_convert", writes=("own",)),
    Stage("forward", "50_forward", writes=("own",)),
    Stage("divergence", "52_divergence", writes=("own",), leads=REFERENCE, weight=30),
    Stage("loss", "51_loss_and_gradient", writes=("own",), weight=40),
    Stage("lockstep", "61_lockstep", needs=("data",), writes=("own",), priority=2, weight=40),
    Stage("train", "60_train", needs=("data",), writes=("own",), priority=3, weight=150),  # the longest
    Stage("evaluate", "70_evaluate", needs=("data", "train"), writes=("own",)),
    Stage("detect", "71_detect", sides=("none",), needs=("data", "evaluate")),
    Stage("speed", "80_speed", sides=("none",), writes=BOTH, alone=True, priority=0, weight=80),  # others have compiled its kernels
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
    needs: tuple[str, ...]  # the marks of the jobs whose results it reads: inputs too
    after: tuple[str, ...]  # the marks of those that must only be done before

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
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"profiles/{path.name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(profile, dict):
        raise UserError(f"profiles/{path.name}: holds no section: name at least one stage, as the other profiles do")
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
    """All jobs of a report, in order; writes their descriptions."""
    profile = load_profile(request.profile)
    check(request, profile)
    jobs: list[Job] = []
    for stage in STAGES:
        if stage.name in profile:
            for model in request.models if stage.per_model else ("all",):
                leader: list[str] = []
                for side in sorted(stage.sides, key=lambda side: side != stage.leads):
                    needed = [str(job.done) for job in jobs if feeds(job, stage, model)] + leader
                    after = [str(job.done) for job in jobs if prepares(job, stage, model, side)]
                    description = describe(stage, model, side, request, profile)
                    jobs.append(make_job(stage, model, side, needed, after, description))
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
    threads = request.cores if stage.alone else min(request.cores, profile.get("threads", 1))
    kernel = side if side in BOTH else "torch"
    last = stage.name == "compare"
    done = report / ".done" / model / side / stage.name
    common = {
        "kernel": kernel, "environment": environment.location(environment.named(kernel)).name, "threads": threads,
        # Of a thread that waits for its team: it sleeps where jobs share the cores (else a convolution takes 50 ms instead
        # of 3), and spins for a while, as is usual, where one has them all, which is up to 1.8 times as fast.
        "wait_policy": "" if threads == request.cores > 1 else "PASSIVE",
        "results": [*(str(report / "records" / model / owner / f"{stage.name}.json") for owner in owners(stage, side)),
                    *([str(report / "index.html")] if last else ())],
        "resumes": str(report / "runs" / model / side) if stage.name == "train" else None,
        "done": str(done),
    }
    used_models = request.models if model == "all" else (model,)
    chosen = section(profile[stage.name] or {}, model)
    if stage.command:
        module, *arguments = stage.command
        options = [text for name, value in {"model": model, **chosen}.items() for text in (f"--{name}", str(value))]
        code = Path(*module.split(".")).with_suffix(".py")
        return {**common, "command": ["-m", module, *arguments, *options], "output": None,
                "inputs": sources(code, side, used_models)}
    offered = {
        "model": model, "models": list(request.models), "seed": profile.get("seed", 0), "threads": threads,
        "data": dataset(request, profile), "source": request.data if is_subset(profile) else "",
        "start_weights": request.weights, "start_backbone": request.backbone, "records": str(report / "records"),
        "runs": str(report / "runs"), "report": str(report), "profile": request.profile,
        "language": request.language,
    }
    name = FAMILIES[family(model)].tour if stage.notebook == "tour" else stage.notebook
    notebook = Path("notebooks", f"{name}.ipynb")
    used = parameters(notebook, chosen, offered, f"profiles/{request.profile}.yaml: {stage.name}")
    reads_annotations = ("source" if is_subset(profile) else "data") in used
    starts = [path for path in (request.weights, request.backbone) if path and "start_weights" in used]
    return {
        **common,
        "notebook": str(notebook),
        "output": str(report / "notebooks" / model / side / notebook.name),
        "parameters": used,
        "inputs": [str(notebook), *sources(notebook, side, used_models, display=last),
                   *(report_files() if last else ()), *(annotations(request.data) if reads_annotations else ()), *starts],
    }


def make_job(
    stage: Stage, model: str, side: str, needed: list[str], after: list[str], description: dict[str, Any]
) -> Job:
    """Write the description where it differs from what stands there."""
    description = {**description, "inputs": description["inputs"] + needed}
    done = Path(description["done"])
    file = done.parents[3] / "jobs" / model / side / f"{stage.name}.json"
    text = json.dumps(description, indent=1, ensure_ascii=False)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with atomic(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return Job(stage, model, side, file, done, (str(file), *description["inputs"]), written(description),
               description["threads"], tuple(needed), tuple(after))


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
    mark = read_mark(job.done)
    return (mark.get("inputs") == digest(job.inputs)
            and mark.get("results") == {name: digest([name]) for name in job.results})


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
        to_do = stale(jobs)
        page = target / "index.html"
        if not to_do and not extra:
            print(f"[report] nothing to do, up to date: {page}", flush=True)
            return 0
        for job in jobs:
            open_mark(job.done).unlink(missing_ok=True)
        plan_file = progress.write(target, jobs, to_do, request.cores)
        if to_do:
            print(f"[report] {progress.beginning(plan_file)}", flush=True)
        # Our lock goes when this process and Snakemake have ended; Snakemake's own would stay after a kill.
        command = [sys.executable, "-m", "snakemake", "--config", f"plan={plan_file}", "--nolock", "--rerun-incomplete",
                   "--keep-going", *(["--forcerun", *(job.name for job in to_do)] if to_do else []),
                   "--cores", str(request.cores), *extra]
        with open(target / "snakemake.log", "w") as log:  # its own words; the jobs speak on stdout
            code = wait(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, pass_fds=[lock.fileno()]))
        open_jobs = stale(jobs)
        if code:
            names = ", ".join(job.name for job in open_jobs)
            print(f"[report] not finished: {names}: {cause(open_jobs, Path(log.name))}", flush=True)
            report_with_gaps(jobs, open_jobs)
            return 1
    if open_jobs:  # Snakemake was asked for something else: what it would do, or a part
        names = ", ".join(job.name for job in open_jobs)
        print(f"[report] to do, {len(open_jobs)} of {len(jobs)} jobs: {names}", flush=True)
    else:
        print(f"[report] up to date: {page}", flush=True)
    return 0


def wait(process: subprocess.Popen) -> int:
    """Its exit code; on Ctrl-C it is asked to end its jobs and waited for."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.send_signal(signal.SIGINT)  # it has it already, if a terminal sent it
        process.wait()
        raise


def cause(open_jobs: Sequence[Job], log: Path) -> str:
    """Where to look after a failure: at what the jobs said, or at Snakemake's last words where none failed."""
    if any("why" in read_mark(open_mark(job.done)) for job in open_jobs):
        return f"see above, and {log}"
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"Snakemake stopped: {said[-1].strip() if said else 'it said nothing'} ({log})"


def gaps(jobs: Sequence[Job], open_jobs: Sequence[Job], page: Path) -> list[dict[str, str]]:
    """Why each job of a report that is not done is not: what it failed of and where to look, seen from the page; or the
    names of the failed jobs that it waits for."""
    found = []
    names = {str(job.done): job for job in open_jobs}
    for job in open_jobs:
        said = read_mark(open_mark(job.done))
        see = os.path.relpath(said["see"], page) if said.get("see") else ""
        failed = "" if "why" in said else ", ".join(
            "/".join(other.done.parts[-3:]) for other in before(job, names) if "why" in read_mark(open_mark(other.done)))
        if job.stage.name != "compare":
            found.append({"stage": job.stage.name, "model": job.model, "side": job.side, "why": said.get("why", ""),
                          "see": see, "waits_for": failed})
    return found


def before(job: Job, open_jobs: Mapping[str, Job]) -> list[Job]:
    """The open jobs that a job waits for, directly or not."""
    direct = [open_jobs[name] for name in (*job.needs, *job.after) if name in open_jobs]
    return list(dict.fromkeys(other for one in direct for other in (one, *before(one, open_jobs))))


def report_with_gaps(jobs: list[Job], open_jobs: list[Job]) -> None:
    """Render from the records of the jobs that are done, so that the others show as NOT RUN, with a record of the gaps.

    A mistake in the data stops everything; then the earlier report stays as it was.
    """
    stages = {job.stage.name for job in open_jobs}
    if "compare" not in stages or len(stages) == 1 or "data" in stages:
        return
    compare = next(job for job in open_jobs if job.stage.name == "compare")
    compare.done.unlink(missing_ok=True)
    description = json.loads(compare.file.read_text(encoding="utf-8"))
    records, view = Path(description["parameters"]["records"]), compare.done.parents[3] / ".records"
    shutil.rmtree(view, ignore_errors=True)
    for job in jobs:
        for result in job.results if job not in open_jobs else ():
            if records in Path(result).parents:
                link = view / Path(result).relative_to(records)
                link.parent.mkdir(parents=True, exist_ok=True)
                for suffix in (".json", ".safetensors"):
                    link.with_suffix(suffix).symlink_to(Path(result).with_suffix(suffix).resolve())
    with record.measure("gaps", "all", view) as measured:
        measured.fields["gaps"] = gaps(jobs, open_jobs, compare.done.parents[3])
    values = {**description["parameters"], "records": str(view)}
    execute(Path(description["notebook"]), Path(description["output"]), description["kernel"], values)
    print(f"[report] a report with gaps: {Path(values['report'], 'index.html')}", flush=True)


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


def guarded() -> int:
    """`main`, with one line for what the user, the machine or Ctrl-C ended."""
    sys.stdout.reconfigure(errors="backslashreplace")  # LANG=C: a terminal that can't show a name still gets the line
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if (known := of_a_place(error)) is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if sys.argv[1:2] == ["report"]:
            print("[report] interrupted; what was complete is kept: `make report` continues", flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(guarded())
