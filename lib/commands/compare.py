"""The command line of the comparison: python -m lib compare, of recorded models or of a port of your own."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lib.errors import UserError

if TYPE_CHECKING:
    from lib.alignment.port import Port, Result
    from lib.report import Rendered

PURPOSE = "the alignment report of recorded models, or of a port of your own"
EXAMPLES = """\
  python -m lib compare reports/quick/records reports/quick nanodet-plus-m_320
Judges what the records hold, writes index.html and report.pdf, prints a verdict per question and pair. It runs no
model; what has no record is NOT RUN. Fails when a verdict is
FAIL or NOT COMPARABLE, after the report is written.

  python -m lib compare --torch notebooks.ports.original:build --jittor notebooks.ports.port:build --input 2,3,64,64
  python -m lib compare --torch mine.net:build --jittor mine.ported:build --input batch.npz --out runs/mine --name mine
A port of your own: a function without arguments per side that gives a torch.nn or a jittor.nn module, started from the
folder that holds both. Each side runs in its environment with the original's weights (constants, as a fresh norm holds,
are varied: they hide faults). Written: names.json, the pairs of names, to review, edit and hand back by --names;
records; the report; the error through the depth of the network; a script that runs the first layer that diverges alone.
Give a batch of two or more: a fault that mixes images does not show in one.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", type=Path, nargs="?", help="folder of the records")
    parser.add_argument("folder", type=Path, nargs="?", help="of the report")
    parser.add_argument("models", nargs="*", metavar="model")
    parser.add_argument("--profile", default="quick", help="how the report is called (%(default)s)")
    parser.add_argument("--language", default="en", help="of the report (%(default)s)")
    own = parser.add_argument_group("a port of your own")
    own.add_argument("--torch", metavar="MODULE:FUNCTION", help="builds the original")
    own.add_argument("--jittor", metavar="MODULE:FUNCTION", help="builds the port")
    own.add_argument(
        "--input", nargs="+", metavar="SHAPE", help="1,3,64,64 for each positional input, or one .npz file"
    )
    own.add_argument("--seed", type=int, default=0, help="of inputs given by their shape (%(default)s)")
    own.add_argument("--names", type=Path, help="pairs of names to use (default: inferred)")
    own.add_argument("--name", default="my_port", help="how the port is called (%(default)s)")
    own.add_argument("--out", type=Path, help="folder to write (reports/ports/NAME)")
    parser.set_defaults(refuse=parser.error)


def run(chosen: argparse.Namespace) -> None:
    """Compare what the records hold, or a port with its original."""
    own = {"--torch": chosen.torch, "--jittor": chosen.jittor, "--input": chosen.input}
    if not any(own.values()):
        if not chosen.models:
            chosen.refuse("give folders of records and report and the models, or --torch, --jittor and --input")
        _records(chosen)
    elif missing := [option for option, value in own.items() if not value]:
        chosen.refuse(f"a port of your own also needs {' and '.join(missing)}")
    elif chosen.records:
        chosen.refuse(f"{chosen.records}: a port of your own takes no folder of records; where to write is --out")
    else:
        _port(chosen)


def _records(chosen: argparse.Namespace) -> None:
    from lib.record import read

    written = _page(chosen.records, chosen.folder, chosen.models, chosen.profile, chosen.language)
    for model in chosen.models:
        for answer in read(chosen.records / model / "none" / "compare.json").fields["verdicts"]:
            print(f"{answer['verdict']:<8} {model}  {answer['question']}  {answer['pair']}")
    print(f"{written.html}\n{written.pdf}")
    if written.failure:
        raise written.failure


def _page(records: Path, folder: Path, models: list[str], profile: str, language: str) -> "Rendered":
    """Execute and render the report; its kernel runs in the project's folder."""
    from lib import report

    values = {"records": str(records.resolve()), "report": str(folder.resolve())}
    return report.make("90_compare", {**values, "models": models, "profile": profile, "language": language})


def _port(chosen: argparse.Namespace) -> None:
    from lib.alignment import port

    folder = chosen.out or Path("reports/ports") / chosen.name
    names = str(chosen.names) if chosen.names else None
    asked = port.Port(chosen.torch, chosen.jittor, tuple(chosen.input), str(folder), chosen.name, chosen.seed, names)
    result = port.compare(asked)
    print("\n".join([*result.lines(), *map(str, _drawn(asked, result))]))
    written = _page(asked.records, folder, [chosen.name], chosen.name, chosen.language)
    print(f"{written.html}\n{written.pdf}")
    if failing := result.failing() or (["layers in training"] if result.first() else []):
        raise UserError(f"{asked.jittor}: not the original's: {', '.join(failing)}; {written.html} has the numbers")


def _drawn(asked: "Port", result: "Result") -> list[Path]:
    """The files beside the report: a figure per mode, and the reproduction of the first cause."""
    from lib.record import atomic
    from lib.show import figures_alignment

    paths = []
    for mode in result.divergence:
        paths.append(asked.root / f"depth_{mode}.svg")
        with atomic(paths[-1]) as temporary:
            temporary.write_bytes(figures_alignment.error_through_depth(result.depth(mode)).data)
    script = result.reproduction()
    return [*paths, script] if script else paths
