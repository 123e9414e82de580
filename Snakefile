# Decides what must run: one rule per notebook, model and side, as lib/pipeline.py lists them. `make report` calls it.
# Local by default; on a cluster add a Snakemake profile: make report SNAKEMAKE="--profile my_cluster"
# (its executor plugin must be installed, and the checkout and the environments must be visible from the nodes).
import sys

sys.path.insert(0, workflow.basedir)
from lib import pipeline

# snakemake reads the values of --config as YAML: an empty one is None, 2024 a number
asked = {name: str(value or "") for name, value in config.items()}
jobs = pipeline.plan(pipeline.Request(asked["report"], tuple(asked["models"].split()), asked["data"], workflow.cores,
                                      asked["language"], asked["weights"], asked["backbone"]))


rule all:
    input: [job.done for job in jobs]


for job in jobs:
    rule:
        name: job.name
        input: job.inputs
        output: job.done
        threads: job.threads
        priority: job.stage.priority
        shell: "{sys.executable:q} -m lib.pipeline run {input[0]:q}"
