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
    alone: bool = False              # nothing may run beside it


STAGES = (
    Stage("start", "00_start_here", sides=("none",), per_model=False),
    Stage("data", "10_data", sides=("none",), per_model=False),
    Stage("tour", "tour"),
    Stage("convert", "40_convert", writes=("own",)),
    Stage("forward", "50_forward", writes=("own",)),
    Stage("loss", "51_loss_and_gradient", writes=("own",)),
    Stage("train", "60_train", needs=("data",), writes=("own",)),
    Stage("evaluate", "70_evaluate", needs=("data", "train"), writes=("own",)),
    Stage("speed", "80_speed", sides=("none",), writes=BOTH, alone=True),
    Stage("compare", "90_compare", sides=("none",), per_model=False,
          needs=("data", "convert", "forward", "loss", "train", "evaluate", "speed")),
)


@dataclass(frozen=True)
class Job:
    stage: Stage
    model: str          # "all" for a stage that runs once
    side: str
    file: Path          # its description, which is also an input: a changed parameter runs it again
    done: Path
    inputs: tuple[str, ...]
    threads: int

    @property
    def name(self) -> str:
        return "_".join((self.stage.name, self.model, self.side))


def load_profile(name: str) -> dict[str, Any]:
    """profiles/<name>.yaml: seed, threads, and one section per stage with its notebook's parameters."""
    path = environment.ROOT / "profiles" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise UserError(f"PROFILE={name}: {path.name} is not in profiles/: choose one of {known}")
    try:
        profile = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"profiles/{path.name}: not valid YAML: {' '.join(str(error).split())}") from error
    unknown = sorted(set(profile) - {stage.name for stage in STAGES} - {"seed", "threads"})
    if unknown:
        raise UserError(f"profiles/{path.name}: '{unknown[0]}' is no stage: choose from {', '.join(s.name for s in STAGES)}")
    return profile


# --------------------------------------------------------------------------------------------------------- the plan

def plan(profile_name: str, models: list[str], data: str, cores: int) -> list[Job]:
    """All jobs of a report, in order; writes their descriptions, and drops the mark of those whose results are gone."""
    profile = load_profile(profile_name)
    jobs: list[Job] = []
    for stage in STAGES:
        if stage.name in profile:
            for model in models if stage.per_model else ["all"]:
                jobs += [make_job(stage, model, side, profile_name, profile, models, data, jobs, cores) for side in stage.sides]
    return jobs


def make_job(stage: Stage, model: str, side: str, profile_name: str, profile: Mapping[str, Any], models: list[str],
             data: str, before: list[Job], cores: int) -> Job:
    report = Path("reports", profile_name)
    name = FAMILIES[family(model)].tour if stage.notebook == "tour" else stage.notebook
    notebook = Path("notebooks", f"{name}.ipynb")
    place = Path(model, side, stage.name)
    threads = cores if stage.alone else min(cores, profile.get("threads", 1))
    offered = {
        "model": model, "models": models, "seed": profile.get("seed", 0), "threads": threads,
        "data": data or f"data/scenes-{profile_name}", "records": str(report / "records"), "runs": str(report / "runs"),
        "report": str(report), "profile": profile_name,
    }
    kernel = side if side in BOTH else "torch"
    upstream = [str(job.done) for job in before
                if job.stage.name in stage.needs and (model == "all" or job.model in ("all", model))]
    used = parameters(environment.ROOT / notebook, profile[stage.name] or {}, offered, f"profiles/{profile_name}.yaml: {stage.name}")
    display = stage.name == "compare"
    inputs = [str(notebook), *sources(environment.ROOT / notebook, side, models if model == "all" else [model], display), *upstream]
    inputs += report_files() if display else []
    inputs += annotations(data) if "data" in used else []
    results = [str(report / "notebooks" / place.with_name(f"{name}.ipynb"))]
    results += [str(report / "records" / model / (side if owner == "own" else owner) / f"{stage.name}.json") for owner in stage.writes]
    results += [str(report / "index.html")] if display else []
    description = {
        "notebook": str(notebook), "output": results[0], "kernel": kernel,
        "environment": environment.location(environment.named(kernel)).name,
        "parameters": used, "threads": threads, "inputs": inputs, "results": results,
        "done": str(report / ".done" / place), "resumes": str(report / "runs" / model / side) if stage.name == "train" else None,
    }
    file = report / "jobs" / place.with_suffix(".yaml")
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    if not file.is_file() or file.read_text() != text:
        with atomic(file) as temporary:
            temporary.write_text(text)
    done = Path(description["done"])
    if not all(Path(result).is_file() for result in results):
        done.unlink(missing_ok=True)
    return Job(stage, model, side, file, done, (str(file), *inputs), threads)


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
    key = digest([str(file), *job["inputs"]])
    if job["resumes"]:
        forget_other_run(Path(job["resumes"]), key)
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    os.environ["RECORD_COMMAND"] = f"python -m lib.pipeline run {file}"
    print(f"[report] {title}: {job['notebook']} starts", flush=True)
    started = time.monotonic()
    execute(Path(job["notebook"]), Path(job["output"]), job["kernel"], job["parameters"])
    absent = [result for result in job["results"] if not Path(result).is_file()]
    if absent:
        raise UserError(f"{job['notebook']}: ended without writing {absent[0]}")
    with atomic(job["done"]) as temporary:
        temporary.write_text(json.dumps({"inputs": key, "results": {result: digest([result]) for result in job["results"]}}))
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

def report(profile: str, models: list[str], data: str, cores: int, extra: list[str]) -> int:
    """Have Snakemake bring `reports/<profile>` up to date."""
    jobs = plan(profile, models, data, cores)  # a user's mistake shows here, in one line
    target = Path("reports", profile)
    with open(target / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{target}: another `make report` is at work on it: wait for its end") from error
        before = marks(jobs)
        # Our lock goes with the process; Snakemake's own would stay after a kill.
        command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--nolock", "--rerun-incomplete", "--keep-going",
                   "--quiet", "all", "--config", f"report={profile}", f"models={' '.join(models)}", f"data={data}", *extra]
        code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    page = target / "index.html"
    if code:
        open_jobs = unfinished(jobs)
        print(f"[report] not finished: {', '.join(job.name for job in open_jobs)}", file=sys.stderr)
        report_with_gaps(open_jobs)
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


def report_with_gaps(open_jobs: list[Job]) -> None:
    """Render what is there, the rest as NOT RUN; a mistake in the data leaves the earlier report as it was."""
    gaps = [f"{job.model}/{job.side}/{job.stage.name}" for job in open_jobs if job.stage.name != "compare"]
    compare = [job for job in open_jobs if job.stage.name == "compare"]
    if not gaps or not compare or any(job.stage.name == "data" for job in open_jobs):
        return
    compare[0].done.unlink(missing_ok=True)
    description = yaml.safe_load(compare[0].file.read_text())
    notebook = Path(description["notebook"])
    values = {**description["parameters"], **parameters(notebook, {"not_run": gaps}, {}, "report with gaps")}
    execute(notebook, Path(description["output"]), description["kernel"], values)
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
    whole.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    whole.add_argument("snakemake", nargs="*", help="further arguments for snakemake, after --")
    chosen = parser.parse_args()
    if chosen.verb == "run":
        run(chosen.file)
        return 0
    return report(chosen.profile, chosen.models.split(), chosen.data, chosen.cores, chosen.snakemake)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
