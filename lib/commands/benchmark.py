"""The command line of timing: python -m lib benchmark."""

import argparse
from collections.abc import Mapping
from pathlib import Path

PURPOSE = "time both frameworks side by side"
EXAMPLES = """\
  python -m lib benchmark nanodet-plus-m_320 reports/quick/records
  python -m lib benchmark nanodet-plus-m_320 records --batches 1 --train-batches 2 --sides jittor
  python -m lib benchmark gold-yolo-n records --form training
Times inference and training steps in envs/torch and envs/jt in turn; one record (stage "speed") per side. Inference in
the form that is deployed, norms folded into convolutions, unless --form says otherwise.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("records", type=Path, help="folder of the records")
    parser.add_argument("--sides", nargs="+", choices=("torch", "jittor"), default=["torch", "jittor"])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="of inference (1 8)")
    parser.add_argument("--train-batches", type=int, nargs="*", default=[8], help="of training steps (8)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--form", choices=("inference", "training"), default="inference", help="of inference (%(default)s)"
    )


def run(chosen: argparse.Namespace) -> None:
    """Measure, and print where the records are and what they say."""
    from lib import benchmark, record
    from lib.machine import environment

    pythons = {side: environment.interpreter(environment.named(side)) for side in chosen.sides}
    options = ("batches", "train_batches", "rounds", "threads", "seed", "form")
    asked = {name: getattr(chosen, name) for name in options}
    for path in benchmark.benchmark(chosen.model, pythons, chosen.records, **asked):
        kept = record.read(path)
        print(f"{path}: {chosen.threads} threads, which wait {kept.provenance.wait_policy}")
        for case in kept.fields["cases"]:
            print(f"  {said(case, kept.provenance.machine.cores - chosen.threads)}")


def said(case: Mapping, idle: int) -> str:
    """A line for a case: its form, time, and why it may not be believed; idle: the machine's cores less its threads."""
    from lib.alignment.questions.inference import disturbance

    work = (
        f"{case['operation']}, {case['form']} form, batch {case['batch']}: {case['synchronised_ms']['median']:.1f} ms"
    )
    found = disturbance(case, next(iter(case["ratio_to"]), ""), idle)
    beside = f"turns scatter by {found.scatter:.0%}, others took {found.others:.2f} cores"
    if unable := (case["form_judged"] or {}).get("unable"):
        beside += f"; the form could not be judged: {unable}"
    return f"{work}; {beside}" + "; UNDERPOWERED: measure again with nothing beside" * found.disturbs
