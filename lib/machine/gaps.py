"""What is said of a report that isn't finished: where to look, and a page that shows what is missing as NOT RUN."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib import record
from lib import report as pages
from lib.machine.job import Job, name_of, open_mark, quote, read_mark
from lib.machine.notebook import LINES


def cause(open_jobs: Sequence[Job], log: Path) -> str:
    """Where to look after a failure: what the jobs said; where none failed, Snakemake's error, or its last words."""
    if any("why" in read_mark(open_mark(job.done)) for job in open_jobs):
        return f"see above, and {log}"
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    lost = [line.partition(": ")[2] for line in lines if line.startswith("    message: ")]  # jobs, by a cluster
    if lost and not any(read_mark(open_mark(job.done)) for job in open_jobs):
        shared = f"{Path.cwd()}, the environments and ALIGN_HOME must be there on each node, under the same paths"
        return f"Snakemake stopped: no job has begun in what is seen from here: {shared}: {lost[0]} ({log})"
    if said := lost or [line for line in lines if re.match(r"(\S+: )?[Ee]rror: ", line)]:
        return f"Snakemake stopped: {said[0]} ({log})"
    quote(lines[-LINES:])
    return f"Snakemake stopped, though no job failed: its last words are above ({log})"


def gaps(jobs: Sequence[Job], open_jobs: Mapping[str, Job], page: Path) -> list[dict[str, str]]:
    """Why each of these jobs is not done: what it failed of and where to look, seen from the page; or the names of the
    failed jobs that it waits for, of this report or another. open_jobs: by mark, of all reports."""
    found = []
    for job in jobs:
        said = read_mark(open_mark(job.done))
        why, see = said.get("why", ""), said.get("see", "")
        failed = [other for other in before(job, open_jobs) if "why" in read_mark(open_mark(Path(other)))]
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


def report_with_gaps(jobs: Sequence[Job], open_jobs: Mapping[str, Job]) -> None:
    """Render from the records of a report's jobs that are done, so that the others show as NOT RUN, with a record of
    the gaps. open_jobs: by mark, of all reports.

    A mistake in the data stops everything; then the earlier report stays as it was.
    """
    rest = [job for job in jobs if str(job.done) in open_jobs]
    stages = {job.stage.name for job in rest}
    if "compare" not in stages or len(stages) == 1 or "data" in stages:
        return
    compare = next(job for job in rest if job.stage.name == "compare")
    compare.done.unlink(missing_ok=True)
    description = json.loads(compare.file.read_text(encoding="utf-8"))
    values = description["parameters"]
    records, page = Path(values["records"]), Path(values["report"], "index.html")
    view = page.with_name(".records")
    shutil.rmtree(view, ignore_errors=True)
    for result in (Path(result) for job in jobs if job not in rest for result in job.results):
        if records in result.parents:
            link = view / result.relative_to(records)
            link.parent.mkdir(parents=True, exist_ok=True)
            for suffix in (".json", ".safetensors"):
                link.with_suffix(suffix).symlink_to(result.with_suffix(suffix).resolve())
    with record.measure("gaps", "all", view) as measured:
        measured.fields["gaps"] = gaps(rest, open_jobs, page.parent)
    pages.make(Path(description["notebook"]).stem, {**values, "records": str(view)})
    print(f"[report] a report with gaps: {page}", flush=True)
