"""The command line of data sets: python -m lib data <kind>. No framework is imported."""

import argparse
from dataclasses import replace
from pathlib import Path

from lib.commands.arguments import verb
from lib.errors import UserError

PURPOSE = "get, make, convert, check and show data sets"
FORMATS = ("voc", "coco", "yolo")
PICTURE_SUFFIX = ".png"
IMAGES = "folder of the images, where it is not in its usual place"

SCENES = """\
  python -m lib data scenes data/scenes                      the built-in data set: 160 + 40 drawn images, ten classes
  python -m lib data scenes data/tiny --train 8 --val 4      fewer
"""
FETCH = """\
  python -m lib data fetch voc2007 data/voc2007              trainval and test, from the publisher
  python -m lib data fetch coco2017 data/coco --parts annotations val
  python -m lib data fetch voc2012 data/voc2012 --from /media/archives      the archives lie there already
  python -m lib data fetch voc2007 data/voc2007 --from http://mirror.example/voc
The same command again continues a half-written download. The set appears whole or not at all.
"""
CONVERT = """\
  python -m lib data convert data/voc2007 data/voc2007-coco --to coco       then: python -m lib train MODEL data/...
  python -m lib data convert data/voc2007 data/voc07 --to coco --trainval   to train on train + val, evaluate on test
  python -m lib data convert coco/annotations/instances_val2017.json val-yolo --to yolo --images coco/val2017
  python -m lib data convert my-labels my-coco --to coco --skip-faults      leave out what is at fault, each named
The format of the source is found out. What the target format can't hold is said, with how often; images are copied
byte for byte (--link: hard links, no space taken). The new set appears whole or not at all.
"""
VERIFY = """\
  python -m lib data verify data/scenes/val.json             one COCO file and its images
  python -m lib data verify data/voc2007                     VOC XML
  python -m lib data verify my-labels --format yolo          YOLO text
Says what the set is, reads every annotation, decodes every image, lists each fault with file, entry and remedy; fails
if there is one. A note is no fault, but what whoever reads a number of the set should know.
"""
SHOW = """\
  python -m lib data show data/scenes/val.json scenes.png    one sheet of the first 16 images with their boxes
  python -m lib data show data/voc2007 sheet.png --count 64 --split test
  python -m lib data show my-labels boxes                    a folder: one PNG an image, in full size
"""
SUBSET = """\
  python -m lib data subset coco/annotations/instances_train2017.json data/mini --classes 10      800 + 200 images
  python -m lib data subset coco/annotations/instances_val2017.json data/tiny --train 50 --val 50
  python -m lib data subset voc2007-coco data/mini-voc --train 100 --val 50 --seed 1
VOC and YOLO data go through data convert --to coco first. Writes train.json and val.json, and a link to the images.
The same seed chooses the same images on every machine.
"""
EXAMPLES = "".join(examples.splitlines(keepends=True)[0] for examples in (SCENES, FETCH, CONVERT, SUBSET, VERIFY, SHOW))


def add(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `data` its kinds."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="scenes|fetch|convert|subset|verify|show")
    parser = verb(kinds, "scenes", "draw the built-in data set", SCENES)
    parser.add_argument("folder", type=Path)
    _add_counts(parser, 160, 40)
    parser.add_argument("--size", type=int, default=256, help="longer side in pixels (%(default)s)")
    parser.set_defaults(run=_scenes)

    parser = verb(kinds, "fetch", "get VOC 2007, VOC 2012 or COCO 2017, checked and unpacked", FETCH)
    parser.add_argument("name", choices=("voc2007", "voc2012", "coco2017"))
    parser.add_argument("folder", type=Path, help="to make")
    parser.add_argument("--from", dest="source", metavar="FOLDER|URL", help="where the archives lie by their names")
    parts = "some of trainval test (VOC), annotations val train (COCO); all by default"
    parser.add_argument("--parts", nargs="+", default=[], metavar="PART", help=parts)
    parser.set_defaults(run=_fetch)

    parser = verb(kinds, "convert", "from one of VOC XML, COCO JSON, YOLO text to another", CONVERT)
    parser.add_argument("--to", required=True, choices=FORMATS)
    _add_source(parser)
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--link", action="store_true", help="hard-link the images instead of copying them")
    parser.add_argument("--keep-difficult", action="store_true", help="YOLO: write difficult boxes as ordinary ones")
    joined = "train and val become train, test becomes val, as in VOC's tables"
    parser.add_argument("--trainval", action="store_true", help=joined)
    skipped = "leave out entries at fault and name them, instead of failing"
    parser.add_argument("--skip-faults", action="store_true", help=skipped)
    parser.set_defaults(run=_convert)

    parser = verb(kinds, "subset", "a small data set out of a large COCO file", SUBSET)
    parser.add_argument("source", type=Path, help="COCO JSON file, or a folder: its training file, or its only one")
    parser.add_argument("folder", type=Path, help="to make")
    _add_counts(parser, 800, 200)
    parser.add_argument("--classes", type=int, help="how many; all by default")
    parser.add_argument("--images", type=Path, help=IMAGES)
    parser.set_defaults(run=_subset)

    parser = verb(kinds, "verify", "list every fault of a data set and its images", VERIFY)
    _add_source(parser)
    parser.set_defaults(run=_verify)

    parser = verb(kinds, "show", "draw boxes and class names on the images", SHOW)
    _add_source(parser)
    parser.add_argument("target", type=Path, help="sheet to write (.png), or folder")
    parser.add_argument("--count", type=int, default=16, help="images (%(default)s)")
    parser.add_argument("--split", help="only this one, e.g. val")
    parser.set_defaults(run=_show)


def _add_counts(parser: argparse.ArgumentParser, train: int, val: int) -> None:
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=train, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=val, help="validation images (%(default)s)")


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder or COCO JSON file")
    parser.add_argument("--images", type=Path, help=IMAGES)
    parser.add_argument("--format", choices=FORMATS, help="of the source, where it can't be told")
    parser.add_argument("--workers", type=int, help="threads that decode images; one per core by default")


def _named(chosen: argparse.Namespace, *names: str) -> dict[str, object]:
    return {name: getattr(chosen, name) for name in names}


def _scenes(chosen: argparse.Namespace) -> None:
    from lib.data import scenes

    for split, path in scenes.generate(**_named(chosen, "folder", "seed", "train", "val", "size")).items():
        print(f"{split}: {path}")


def _fetch(chosen: argparse.Namespace) -> None:
    from lib.data import fetch

    files = fetch.fetch(chosen.name, chosen.folder, chosen.source, chosen.parts)
    print(f"{chosen.folder}: " + (f"{files} files" if files else "is there already, nothing to do"))


def _convert(chosen: argparse.Namespace) -> None:
    from lib.data import formats

    options = _named(chosen, "link", "keep_difficult", "skip_faults", "workers", "trainval")
    done = formats.convert(chosen.source, chosen.target, chosen.to, chosen.images, chosen.format, **options)
    for kind, lines in {"fault": done.faults, "note": done.notes, "not the same": done.lost}.items():
        for line in lines:
            print(f"{kind}: {line}")
    for split, (images, boxes) in done.counts.items():
        print(f"{chosen.target}: {split + ': ' if split else ''}{images} images, {boxes} boxes")


def _subset(chosen: argparse.Namespace) -> None:
    from lib.data import sets

    options = _named(chosen, "train", "val", "classes", "seed")
    made = sets.subset(sets.source_file(chosen.source), chosen.folder, images_dir=chosen.images, **options)
    for split, path in made.items():
        print(f"{split}: {path}")


def _verify(chosen: argparse.Namespace) -> None:
    from lib.data import formats

    faults = formats.verify(chosen.source, chosen.images, chosen.format, chosen.workers, tell=print)
    print("\n".join(faults or [f"{chosen.source}: no fault"]))
    if faults:
        count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
        raise UserError(f"{chosen.source}: {count}, listed above; mend the annotations or the images")


def _show(chosen: argparse.Namespace) -> None:
    import cv2

    from lib.data import annotated, formats
    from lib.record import atomic
    from lib.show.drawing import Annotated

    collection = formats.read(chosen.source, chosen.images, chosen.format)
    if chosen.split is not None and chosen.split not in collection.splits:
        raise UserError(f"{chosen.source}: has no split {chosen.split!r}; it has {', '.join(collection.splits)}")
    every = list(collection.pictures() if chosen.split is None else collection.splits[chosen.split])
    some = replace(collection, splits={"": tuple(every[: max(chosen.count, 1)])}, faults=())
    shown = annotated.measured(some, chosen.workers)
    for fault in shown.faults:
        print(f"fault: {fault.message}")
    pictures = list(shown.pictures())
    if not pictures:
        raise UserError(f"{chosen.source}: has no sound image to show; run python -m lib data verify")
    drawing, target = Annotated(shown.classes, pictures), chosen.target
    if drawing.note:
        print(f"note: {drawing.note}")
        print("\n".join(f"#{number} is {name}" for number, name in enumerate(shown.classes) if not name.isascii()))
    if target.suffix.lower() == PICTURE_SUFFIX:
        drawn = {target: drawing.sheet(pictures, chosen.workers)}.items()
    else:
        drawn = ((target / f"{picture.name}{PICTURE_SUFFIX}", drawing.drawn(picture)) for picture in pictures)
    for path, image in drawn:
        with atomic(path) as temporary:
            temporary.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    print(f"{target}: {len(pictures)} of {len(every)} images")
