"""The command line of detection: python -m lib detect."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lib.commands import arguments
from lib.errors import UserError

if TYPE_CHECKING:
    from lib.backend.nn import Module
    from lib.evaluation.detection import Classes

PURPOSE = "boxes on pictures, videos and a webcam"
EXAMPLES = """\
  python -m lib detect nanodet-plus-m_320 weights.pth street.jpg -o found.png
  python -m lib detect rtdetr_r18vd weights.pth pictures/ -o drawn/ --json found.json
  python -m lib detect gold-yolo-n weights.pkl clip.mp4 -o clip.avi --threshold 0.5
  python -m lib detect nanodet-plus-m_320 own/weights.safetensors 0 -o cam.avi --limit 500 --classes own/val.json
  python -m lib detect - nanodet.onnx street.jpg -o found.png     what python -m lib export wrote
The source is a picture, a folder, a video, or a webcam's number; Ctrl-C ends a video, which then plays to that frame.
--json writes a COCO file: images, categories, and an annotation with its score per detection.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `detect` its arguments."""
    parser.add_argument("model", help="- where the next is an .onnx file, which says it")
    parser.add_argument("weights", type=Path)
    parser.add_argument("source", help="picture, folder, video, or a webcam's number")
    parser.add_argument("-o", "--output", type=Path, help="where to draw: a picture, a folder, or a video (.avi)")
    parser.add_argument("--json", type=Path, help="COCO file to write")
    arguments.add_classes(parser)
    parser.add_argument("--threshold", type=float, default=0.35, help="lowest score that is shown (%(default)s)")
    parser.add_argument("--limit", type=int, help="stop after so many images or frames")
    arguments.add_absent(parser)
    arguments.add_network(parser)


def run(chosen: argparse.Namespace) -> None:
    """Detect, and say what was written. UserError after the run if a picture could not be read."""
    limit = chosen.limit
    if not (chosen.output or chosen.json):
        remedy = "give -o for a drawn picture, folder or video, --json for a COCO file"
        raise UserError(f"detect: nothing to write; {remedy}")
    if not 0 <= chosen.threshold <= 1:
        raise UserError(f"detect: --threshold is {chosen.threshold}; scores lie between 0 and 1")
    if limit is not None and limit < 1:
        raise UserError(f"detect: --limit is {limit}; give at least 1, or leave it out")
    from lib.evaluation import detection, inference
    from lib.show.drawing import Painter

    is_exported = chosen.weights.suffix == ".onnx"
    if is_exported and chosen.device != "cpu":
        raise UserError(f"--device {chosen.device}: {chosen.weights} runs on the CPU, in onnxruntime; leave it out")
    if is_exported and chosen.absent:
        raise UserError(f"--absent {' '.join(chosen.absent)}: {chosen.weights} is whole; leave it out")
    size = arguments.use(chosen)
    model, name, size, classes = (_exported if is_exported else _built)(chosen, size)
    painter = Painter(classes)

    def found(image):
        return inference.detect_image(model, name, image, size, chosen.threshold)

    done = detection.run(chosen.source, found, classes, painter.paint, chosen.output, chosen.json, limit)
    notes = [*done.notes, *([painter.note] if painter.note and chosen.output else [])]
    print("\n".join([*done.faults, *notes, *map(str, done.written)]))
    print(f"{done.boxes} boxes in {done.images} images")
    if done.faults:
        raise UserError(f"{chosen.source}: {len(done.faults)} images could not be read, listed above")


def _built(
    chosen: argparse.Namespace, size: tuple[int, int] | None
) -> "tuple[Module, str, tuple[int, int] | None, Classes]":
    """The named model with the weights."""
    from lib import models
    from lib.training import checkpoints

    weights = checkpoints.read(chosen.weights)
    classes = arguments.classes(chosen, weights.classes)
    model = models.build(chosen.model, len(classes.names))
    model = arguments.load(model, chosen, weights, classes.names, chosen.classes)
    return model, chosen.model, size, classes


def _exported(
    chosen: argparse.Namespace, size: tuple[int, int] | None
) -> "tuple[Module, str, tuple[int, int] | None, Classes]":
    """What python -m lib export wrote. UserError where the command line says otherwise than the file."""
    from lib.evaluation.exported import Exported
    from lib.training.checkpoints import Weights

    model = Exported(chosen.weights)
    classes = arguments.classes(chosen, model.classes)
    for what, asked, own in (
        ("model", chosen.model if chosen.model != "-" else model.name, model.name),
        ("--size", size or model.size, model.size),
        ("number of classes", len(classes.names), len(model.classes)),
    ):
        if asked != own:
            raise UserError(f"{chosen.weights}: its {what} is {own}, not {asked}; leave it out, or export it so")
    if note := Weights({}, classes=model.classes).other_classes(classes.names, chosen.classes):
        print(f"note: {chosen.weights}: {note}")
    return model, model.name, model.size, classes
