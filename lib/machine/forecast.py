"""How long reports take that nobody has made: plans, played through with the times of one that was made.

Of a job that was measured, what its training says it took, else all but the start of a process, grows with the
parameters that GROWS names; the rest stays. A stage that was not measured takes its weight's share.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.families import FAMILIES, family
from lib.machine.job import read_mark
from lib.machine.pipeline import STAGES, Job, Request, priorities, together

AREA = ("input_size", "input_size")  # of an image
GROWS = {  # the parameters that a stage's time is proportional to
    "data": ("train_images",),
    "divergence": AREA,
    "lockstep": ("batch", "curve_steps", *AREA),
    "train": ("train_images", "epochs", "repeats", *AREA),
    "evaluate": ("val_images", *AREA),
    "speed": ("rounds", "train_batches"),
}


@dataclass(frozen=True)
class Measured:
    """The jobs of a report that was made. seconds, grown, sizes: by (stage, side)."""

    seconds: Mapping[tuple[str, str], float]
    grown: Mapping[tuple[str, str], float]  # the part of them that grows
    sizes: Mapping[tuple[str, str], Mapping[str, Any]]
    per_weight: float  # seconds
    models: Sequence[str]

    def of(self, job: Job, sizes: Mapping[str, Any]) -> float:
        """Seconds that a job of another plan takes, with parameters of these sizes."""
        key = job.stage.name, job.side
        if key not in self.seconds:
            return job.stage.weight * self.per_weight
        grows = [(name, f"{job.stage.name}: {name}") for name in GROWS.get(job.stage.name, ())]
        factor = math.prod(size(sizes, name, what) / size(self.sizes[key], name, what) for name, what in grows)
        return self.seconds[key] + self.grown[key] * (factor - 1)


def size(sizes: Mapping[str, Any], name: str, what: str) -> float:
    """Of a parameter that lists several, their sum; UserError that says `what` where it is not known, or nothing."""
    value = sizes.get(name)
    found = sum(value) if isinstance(value, list) else value
    if not found:
        raise UserError(f"{what}: {value}: the time grows with it: give the profile, and the report, a number above 0")
    return found


def measured(report: Path) -> Measured:
    """The times of a finished report's first model; UserError where it has none."""
    marks = {path.parts[-3:]: read_mark(path).get("seconds") for path in sorted(report.glob(".done/*/*/[!.]*"))}
    models = sorted({model for model, _, _ in marks} - {"all"})
    held = {place: seconds for place, seconds in marks.items() if seconds and place[0] in ("all", *models[:1])}
    if not held or not models:
        raise UserError(f"{report}: holds no times of jobs: give the folder of a report that `make report` finished")
    start = min(held.values())
    data = read_mark(report / "records" / "all" / "none" / "data.json").get("fields", {}).get("splits", {})
    images = {f"{split}_images": one["images"] for split, one in data.items()}  # of a user's data, no parameter says
    common = {**_parameters(report, ("all", "none", "data")), **images}
    seconds = {(stage, side): taken for (_, side, stage), taken in held.items()}
    grown, sizes = {}, {}
    for (model, side, stage), taken in held.items():
        said = read_mark(report / "records" / model / side / f"{stage}.json").get("fields", {})
        grown[stage, side] = said.get("seconds", taken - start) * len(said.get("repeats", ("own",)))
        sizes[stage, side] = {**common, **_parameters(report, (model, side, stage))}
    weights = {stage.name: stage.weight for stage in STAGES}
    per_weight = sum(held.values()) / sum(weights[stage] for stage, _ in seconds if stage in weights)
    return Measured(seconds, grown, sizes, per_weight, models)


def _parameters(report: Path, place: tuple[str, str, str]) -> dict[str, Any]:
    return read_mark(report.joinpath("jobs", *place).with_suffix(".json")).get("parameters", {})


@dataclass(frozen=True)
class Load:
    """What is asked of a profile: so many times its images, models of the measured one's family, seeds, nodes."""

    images: int = 1
    models: int = 1
    seeds: int = 1
    nodes: int = 1


def forecast(times: Measured, profile: str, load: Load, cores: int) -> tuple[int, float]:
    """How many jobs there are, and the seconds until the last ends on nodes of so many cores."""
    if min(load.images, load.models, load.seeds, load.nodes, cores) < 1:
        raise UserError(f"{load}, {cores} cores: each is at least 1")
    family_names = FAMILIES[family(times.models[0])]
    if load.models > len(family_names):
        raise UserError(f"{load.models} models: the family of {times.models[0]} has {len(family_names)}: ask for fewer")
    request = Request(profile, family_names[: load.models], "", cores)
    seeds = [replace(request, seed=seed, place=f"{profile}/{seed}") for seed in range(load.seeds)]
    jobs, images = [], {}
    for job, description in together(seeds):
        given = description.get("parameters", {})
        if job.stage.name == "data":
            images = {name: load.images * given.get(name, 0) for name in ("train_images", "val_images")}
        jobs.append((job, times.of(job, {**given, **images})))
    return len(jobs), played(jobs, load.nodes, cores)


def played(jobs: Sequence[tuple[Job, float]], nodes: int, cores: int) -> float:
    """Seconds until the last job has ended, if of those that are ready the first in the order of priorities starts, on
    the fullest node where it finds room; one that runs alone takes a whole node."""
    places = {str(job.done): place for place, (job, _) in enumerate(jobs)}
    priority = priorities([job for job, _ in jobs])
    open_needs = [{places[mark] for mark in (*job.needs, *job.after)} for job, _ in jobs]
    followers: list[list[int]] = [[] for _ in jobs]
    for place, needs in enumerate(open_needs):
        for one in needs:
            followers[one].append(place)

    def ranked(place: int) -> tuple[int, int]:
        return -priority[jobs[place][0].stage.name], place

    ready = [ranked(place) for place, needs in enumerate(open_needs) if not needs]
    free, running, now = [cores] * nodes, [], 0.0
    heapq.heapify(ready)
    while ready or running:
        no_room = []
        while ready and any(free):
            place = heapq.heappop(ready)[1]
            job, seconds = jobs[place]
            needed = cores if job.stage.alone else min(job.threads, cores)
            node = min((one for one in range(nodes) if free[one] >= needed), key=free.__getitem__, default=None)
            if node is None:
                no_room.append(place)
                continue
            free[node] -= needed
            heapq.heappush(running, (now + seconds, place, node, needed))
        for place in no_room:
            heapq.heappush(ready, ranked(place))
        now, done, node, needed = heapq.heappop(running)
        free[node] += needed
        for place in followers[done]:
            open_needs[place].discard(done)
            if not open_needs[place]:
                heapq.heappush(ready, ranked(place))
    return now
