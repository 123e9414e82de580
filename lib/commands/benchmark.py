"""The command line of timing: python -m lib benchmark."""

import argparse
from pathlib import Path

PURPOSE = "time both frameworks side by side"
EXAMPLES = """\
  python -m lib benchmark nanodet-plus-m_320 reports/quick/records
  python -m lib benchmark nanodet-plus-m_320 records --batches 1 --train-batches 2 --sides jittor
Times inference and training steps in envs/torch and envs/jt in turn; one record (stage "speed") per side.
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
    """Measure, and print where the records are."""
    from lib import benchmark
    from lib.machine import environment

    pythons = {side: environment.interpreter(environment.named(side)) for side in chosen.sides}
    options = {name: getattr(chosen, name) for name in ("batches", "train_batches", "rounds", "threads", "seed")}
    for path in benchmark.benchmark(chosen.model, pythons, chosen.records, **options):
        print(path)
