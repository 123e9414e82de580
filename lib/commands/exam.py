"""The command line of the engine's own exam: python -m lib exam."""

import argparse
from pathlib import Path

from lib.errors import UserError

PURPOSE = "does the alignment engine find the faults that people make?"
EXAMPLES = """\
  python -m lib exam                                     every fault and 20 clean runs, in this environment's framework
  python -m lib exam --only "BN eps" "EMA off by one"    some of them
  python -m lib exam --list
Results go to reports/exam/<framework>; an interrupted exam continues, a complete one starts anew.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="of the results (reports/exam/<framework>)")
    parser.add_argument("--only", nargs="+", default=[], metavar="name", help="faults, or clean runs, to run")
    parser.add_argument("--list", action="store_true", help="name the faults and run nothing")


def run(chosen: argparse.Namespace) -> None:
    """Run the exam and print what it says. UserError where the engine fails it."""
    from lib import backend
    from notebooks.exam import examination, score
    from notebooks.faults import FAULTS

    if chosen.list:
        print("\n".join(f"{fault.name:<32} {fault.people}" for fault in FAULTS))
        return
    folder = chosen.folder or Path("reports") / "exam" / backend.NAME
    held = examination.examine(folder, chosen.only)
    print(score.summary(held))
    if score.verdict(held) == "FAIL":
        raise UserError(f"{folder}: the engine fails its exam; the lines above name what it missed")
