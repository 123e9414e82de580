"""The command line of deployment: python -m lib export."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lib.commands import arguments
from lib.errors import UserError

if TYPE_CHECKING:
    from lib.alignment.deployed import Judged

PURPOSE = "a trained model as an ONNX file, held against both frameworks"
EXAMPLES = """\
  python -m lib export nanodet-plus-m_320 --weights runs/scenes/weights.safetensors --to nanodet.onnx
  python -m lib export rtdetr_r18vd --weights rtdetr_r18vd.pth --to rtdetr.onnx --size 480 640 --data coco/
  python -m lib detect - nanodet.onnx street.jpg -o found.png
In the torch environment. The file holds the network in its inference form for one size of the input, any number of
images, and says in its metadata what it is and how an image becomes its input; boxes come from what it gives as
lib.postprocess has it. It runs at once in onnxruntime on four pictures, held against PyTorch and Jittor, and is written
if it gives what both give, within 5 times rounding noise; else there is no file.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="the .onnx file to write")
    parser.add_argument(
        "--data", type=Path, help="pictures to hold it against: a COCO file or folder (built-in scenes)"
    )
    arguments.add_classes(parser)
    arguments.add_absent(parser)
    arguments.add_size(parser)
    parser.set_defaults(device="cpu")


def run(chosen: argparse.Namespace) -> None:
    """Write the file if it is the model; print what it was held against. UserError where it is not."""
    from lib import models
    from lib.alignment import deployed
    from lib.evaluation import exported
    from lib.record import atomic
    from lib.training import checkpoints

    exported.needed("onnx", chosen.to)
    if chosen.to.suffix != exported.SUFFIX:
        raise UserError(f"--to {chosen.to}: an ONNX file is written; call it {chosen.to.with_suffix(exported.SUFFIX)}")
    size = arguments.use(chosen) or models.input_size(chosen.model)
    weights = checkpoints.read(chosen.weights)
    classes = arguments.classes(chosen, weights.classes)
    model = models.build(chosen.model, len(classes.names), seed=None).eval()
    arguments.fill(model, chosen, weights, classes.names, chosen.classes)
    with atomic(chosen.to) as temporary:
        exported.write(model, chosen.model, classes.names, size, chosen.weights, temporary)
        found = deployed.judged(temporary, model, chosen.data, chosen.to)
        _show(found)
        if found.failing:
            raise UserError(f"{chosen.to}: not written: not the model in {', '.join(found.failing)}")
    print(f"{chosen.to}: {chosen.model}, images (n, 3, {size[0]}, {size[1]}), opset {exported.OPSET}")


def _show(found: "Judged") -> None:
    """A line for each output and side, and the verdict."""
    from lib.alignment.deployed import SIDES

    print(f"{'onnxruntime beside':<19} {'output':<12} {'error':>9} {'noise':>9} {'gate':>9} {'of the gate':>12}")
    for side, name in SIDES.items():
        for row in found.rows.get(side, ()):
            numbers = f"{row.error:9.2e} {row.reach:9.2e} {row.gate:9.2e} {row.ratio:12.1%}"
            print(f"{name:<19} {row.name:<12} {numbers} {'PASS' if row.passed else f'FAIL: {row.note}'}")
        if side not in found.rows:
            print(f"{name:<19} NOT RUN: its environment is absent; `make envs` builds it")
    apart = f"; {found.apart} set apart, where one rounding decides which queries it takes" if found.apart else ""
    print(f"{'FAIL' if found.failing else 'PASS'} on {found.pictures} pictures{apart}")
