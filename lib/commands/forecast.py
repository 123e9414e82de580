"""The command line of how long reports would take: python -m lib forecast."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

PURPOSE = "how long would a report take, of more images, models, seeds, or on more nodes?"
EXAMPLES = """\
  python -m lib forecast reports/quick                      every profile, from the times of a report that was made
  python -m lib forecast reports/quick --profiles course --seeds 40 --nodes 10 --cores 16
Plays the plan of each profile through: what was measured grows with images, epochs and the area of an image, what was
not takes its share. A row per profile, in Markdown; a column per growth, each of the others as the profile has it.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, help="folder of a report that was made")
    parser.add_argument("--profiles", nargs="+", metavar="NAME", help="all by default")
    parser.add_argument("--images", type=int, default=10, help="times as many (%(default)s)")
    parser.add_argument("--models", type=int, default=3, help="of the measured one's family (%(default)s)")
    parser.add_argument("--seeds", type=int, default=40, help="a report for each (%(default)s)")
    parser.add_argument("--nodes", type=int, default=10, help="for these reports (%(default)s)")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="of a node (%(default)s, as here)")


def run(chosen: argparse.Namespace) -> None:
    """Print the table."""
    from lib.machine import environment, forecast
    from lib.machine.job import in_words

    times, one = forecast.measured(chosen.report), forecast.Load()
    many = replace(one, seeds=chosen.seeds)
    columns = {
        "one report": one,
        f"{chosen.images} × the images": replace(one, images=chosen.images),
        f"{chosen.models} models": replace(one, models=chosen.models),
        f"{chosen.seeds} reports": many,
        f"{chosen.seeds} reports, {chosen.nodes} nodes": replace(many, nodes=chosen.nodes),
    }
    every = sorted(path.stem for path in (environment.ROOT / "profiles").glob("*.yaml"))
    print(f"| profile | jobs | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 2)}")
    for profile in chosen.profiles or every:
        found = [forecast.forecast(times, profile, load, chosen.cores) for load in columns.values()]
        print(f"| `{profile}` | {found[0][0]} | {' | '.join(in_words(seconds) for _, seconds in found)} |", flush=True)
