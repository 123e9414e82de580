# Decides what must run: one rule per notebook, model and side, as lib/machine/pipeline.py lists them. `make report` calls it.
# Local by default; on a cluster by a Snakemake profile, which must see the checkout and the environments from its nodes:
# make report SNAKEMAKE="--profile profiles/slurm".
import sys


rule all:
    input: [job["done"] for job in config["jobs"]]


for job in config["jobs"]:
    rule:
        name: job["name"]
        input: job["file"], job["needs"], [ancient(mark) for mark in job["after"]]  # ready, however new
        output: job["done"]
        threads: job["threads"]
        priority: job["priority"]
        resources: **job["demand"]
        shell: "{sys.executable:q} -m lib.machine.job {input[0]:q}"
