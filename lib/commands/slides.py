"""The command line of the lectures: python -m lib slides."""

import argparse
from pathlib import Path

PURPOSE = "lectures from the notebooks, for a browser without network"
EXAMPLES = """\
  python -m lib slides                                       the tours and the migration lecture, into reports/slides
  LANG=zh python -m lib slides                               the same in Chinese
  python -m lib slides notebooks/51_loss_and_gradient.ipynb --out talk
Each deck is one HTML file for a browser without network: arrow keys step, s opens the speaker's view, and
file.html?print-pdf prints. What `make report` has executed is taken; other notebooks are run first.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="notebook", help="the lectures by default")
    parser.add_argument("--out", type=Path, default=Path("reports/slides"), help="folder (%(default)s)")
    parser.add_argument("--profile", default="quick", help="whose executed notebooks may serve (%(default)s)")


def run(chosen: argparse.Namespace) -> None:
    """Write the decks and print their files."""
    from lib.report import slides

    print("\n".join(map(str, slides.make({path.stem: path for path in chosen.notebooks}, chosen.out, chosen.profile))))
