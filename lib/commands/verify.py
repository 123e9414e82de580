"""The command line of checking a report: python -m lib verify."""

import argparse
from pathlib import Path

from lib.errors import UserError

PURPOSE = "does a report say what its records say?"
EXAMPLES = """\
  python -m lib verify reports/quick
Reads index.html and handin.html of the folder and the records behind them. Fails, and says where, if a number, a name,
a verdict or a figure is not what its record holds, if a record is missing, was changed after it was compared or gives
another verdict when it is judged again, and if a digit belongs to no record.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, help="folder of the report")


def run(chosen: argparse.Namespace) -> None:
    """Check; print what was looked at, and every fault."""
    from lib.report import verify

    checked = verify.verify(chosen.report)
    for one in checked:
        seen = f"{one.numbers} numbers, {one.names} names and verdicts, {one.figures} figures, {one.records} records"
        print(f"{one.page}: {seen}")
        if count := one.without_arrays:
            print(f"  the arrays of {count} records are not here: their numbers in JSON were checked, the arrays not")
        if one.not_drawn:
            print(f"  {one.not_drawn} figures need them and were not drawn again")
        if one.not_judged:
            print(f"  {one.not_judged} verdicts need them and were not judged again")
        if one.absent:
            print(f"  not here, so that what follows from them was not derived again: {', '.join(one.absent)}")
        print("\n".join(f"  {fault}" for fault in one.faults) or "  all as recorded")
    for one in checked:
        if one.faults:
            places = f"{len(one.faults)} places are not as recorded, the first {one.faults[0]}"
            raise UserError(f"{one.page}: {places}; render it again")
