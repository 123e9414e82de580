"""The command line of the document to hand in: python -m lib handin."""

import argparse
from pathlib import Path

PURPOSE = "the document that a port's author hands in"
EXAMPLES = """\
  python -m lib handin reports/quick                         every model that has records there
  python -m lib handin reports/quick my_port --language zh   your own port: records in reports/quick/records/my_port
Writes handin.html and handin.pdf: what the author of a port hands in, each item from the records or marked NOT RUN.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, help="folder of the report")
    parser.add_argument("models", nargs="*", metavar="model", help="all that have records by default")
    parser.add_argument("--language", default="en", help="en or zh (%(default)s)")


def run(chosen: argparse.Namespace) -> None:
    """Write the document and print its files."""
    from lib import report
    from lib.report import handin
    from lib.show.messages import Messages

    Messages(chosen.language)  # a mistake is told before a kernel starts
    folder = chosen.report.resolve()
    models = list(handin.known(folder / "records", chosen.models))
    values = {"records": str(folder / "records"), "report": str(folder), "profile": folder.name}
    written = report.make("95_handin", {**values, "models": models, "language": chosen.language})
    print(f"{written.html}\n{written.pdf}")
    if written.failure:
        raise written.failure
