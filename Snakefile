# Decides what must run: one rule per stage, one job per mark in the plan that lib/machine/pipeline.py writes, of one
# report or of many. `make report` calls it. Local by default; on a cluster by a Snakemake profile, which must see the
# checkout and the environments from its nodes: make report SNAKEMAKE="--profile profiles/slurm".
import sys

JOBS = {job["done"]: job for job in config["jobs"]}
STAGES = {job["stage"]: job for job in config["jobs"]}  # each by one of its jobs: all ask for the same kinds


def told(stage, *keys):
    """What the plan says under these keys of a stage's job, which Snakemake knows by where its mark lies."""

    def found(wildcards):
        value = JOBS[f"{wildcards.place}/{stage}"]
        for key in keys:
            value = value[key]
        return value

    return found


def inputs(stage):
    """Its description, the marks of what it reads, and of what must be ready, however new that is."""
    file, needs, after = (told(stage, key) for key in ("file", "needs", "after"))
    return lambda wildcards: [file(wildcards), *needs(wildcards), *map(ancient, after(wildcards))]


rule all:
    input: list(JOBS)


for stage, one in STAGES.items():
    rule:
        name: stage
        input: inputs(stage)
        output: "{place}/" + stage
        threads: told(stage, "threads")
        priority: one["priority"]
        resources: **{kind: told(stage, "demand", kind) for kind in one["demand"]}
        shell: "{sys.executable:q} -m lib.machine.job {input[0]:q} {config[plan]:q}"
