"""The command line of training logs: python -m lib curves."""

import argparse
from pathlib import Path

from lib.errors import UserError

PURPOSE = "draw the logs of trainings, ours and published ones"
EXAMPLES = """\
  python -m lib curves runs/scenes -o curves.png                       our own log.jsonl
  python -m lib curves runs/jittor runs/torch nanodet/logs.txt -o curves.svg --names Jittor PyTorch published
  python -m lib curves rtdetr/log.txt gold_yolo_console.txt -o curves.png --components
Reads our own logs and those of the published NanoDet, Gold-YOLO and RT-DETR; resumed and cut-off logs too.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", type=Path, metavar="log", help="file, or the folder of one of our runs")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture to write, .png or .svg")
    parser.add_argument("--names", nargs="+", default=[], help="what to call them, in their order")
    parser.add_argument("--components", action="store_true", help="also each component of the losses")


def run(chosen: argparse.Namespace) -> None:
    """Draw the curves; print where each training stands."""
    if chosen.output.suffix not in (".png", ".svg"):
        raise UserError(f"{chosen.output}: curves are drawn as .png or .svg; name it so")
    if chosen.names and len(chosen.names) != len(chosen.logs):
        raise UserError(f"--names: {len(chosen.names)} names for {len(chosen.logs)} logs; give one per log")
    from lib.record import atomic
    from lib.show import curves

    trainings = [curves.read(path, name) for path, name in zip(chosen.logs, chosen.names or [None] * len(chosen.logs))]
    picture = curves.draw(trainings, chosen.components, dense=chosen.output.suffix == ".png")
    with atomic(chosen.output) as temporary:
        temporary.write_bytes(picture.data)
    print("\n".join([*(one.standing() for one in trainings), str(chosen.output)]))
