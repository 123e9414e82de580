"""The command line of detection: python -m lib detect."""

import argparse
from pathlib import Path

from lib.commands import arguments
from lib.errors import UserError

PURPOSE = "boxes on pictures, videos and a webcam"
EXAMPLES = """\
  python -m lib detect nanodet-plus-m_320 weights.pth street.jpg -o found.png
  python -m lib detect rtdetr_r18vd weights.pth pictures/ -o drawn/ --json found.json
  python -m lib detect gold-yolo-n weights.pkl clip.mp4 -o clip.avi --threshold 0.5
  python -m lib detect nanodet-plus-m_320 own/weights.safetensors 0 -o cam.avi --limit 500 --classes own/val.json
The source is a picture, a folder, a video, or a webcam's number; Ctrl-C ends a video, which then plays to that frame.
--json writes a COCO file: images, categories, and an annotation with its score per detection.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `detect` its arguments."""
    parser.add_argument("model")
    parser.add_argument("weights", type=Path)
    parser.add_argument("source", help="picture, folder, video, or a webcam's number")
    parser.add_argument("-o", "--output", type=Path, help="where to draw: a picture, a folder, or a video (.avi)")
    parser.add_argument("--json", type=Path, help="COCO file to write")
    names = "COCO file, or a text file with a name per line; those that the weights carry by default, or COCO's 80"
    parser.add_argument("--classes", type=Path, help=names)
    parser.add_argument("--threshold", type=float, default=0.35, help="lowest score that is shown (%(default)s)")
    parser.add_argument("--limit", type=int, help="stop after so many images or frames")
    arguments.add_absent(parser)
    arguments.add_network(parser)
    parser.set_defaults(run=run)


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
    from tqdm import tqdm

    from lib import models
    from lib.evaluation import detection, inference
    from lib.show.drawing import Painter
    from lib.training import checkpoints

    size = arguments.use(chosen)
    weights = checkpoints.read(chosen.weights)
    named = detection.Classes(weights.classes, tuple(range(1, len(weights.classes) + 1)))
    usual = named if weights.classes and weights.classes != detection.coco_classes().names else detection.coco_classes()
    classes = detection.read_classes(chosen.classes) if chosen.classes else usual
    model = models.build(chosen.model, len(classes.names))
    model = arguments.load(model, chosen, weights, classes.names, chosen.classes)
    painter = Painter(classes)

    def found(image):
        return inference.detect_image(model, chosen.model, image, size, chosen.threshold)

    def progress(frames, total):
        return tqdm(frames, total=total, unit="image", desc="detecting", leave=False, disable=None)

    done = detection.run(chosen.source, found, classes, painter.paint, chosen.output, chosen.json, limit, progress)
    notes = [*done.notes, *([painter.note] if painter.note and chosen.output else [])]
    print("\n".join([*done.faults, *notes, *map(str, done.written)]))
    print(f"{done.boxes} boxes in {done.images} images")
    if done.faults:
        raise UserError(f"{chosen.source}: {len(done.faults)} images could not be read, listed above")
