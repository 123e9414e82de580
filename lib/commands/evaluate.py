"""The command line of evaluation: python -m lib evaluate."""

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.commands import arguments
from lib.errors import visible

if TYPE_CHECKING:
    from lib.evaluation import Evaluation

Rows = Sequence[Mapping[str, Any]]  # COCO's result form

MOST = 100  # detections of a class in an image that COCO's numbers look at
LARGEST = 10  # confusions that are printed
NO_MODEL = "-"
PURPOSE = "COCO numbers of trained weights, or of detections"
EXAMPLES = """\
  python -m lib evaluate nanodet-plus-m_320 runs/scenes/weights.safetensors data/scenes/val.json
  python -m lib evaluate nanodet-plus-m_320 fused.npz coco/val.json --absent aux_fpn. aux_head. --detections found.json
  python -m lib evaluate - found.json coco/val.json           any detector's detections; no model is run
  python -m lib evaluate nanodet-plus-m_320 weights.pth voc/val.json --voc --per-class
  python -m lib evaluate nanodet-plus-m_320 weights.pth coco/val.json --errors --confusion --curves evaluation/
Prints the twelve COCO numbers; --detections keeps what was found in COCO's result format. - reads that format, or what
detect --json wrote: its images and classes are found by their names. Low scores count: give detect the --threshold of
the published evaluation (NanoDet-Plus 0.05, Gold-YOLO 0.03, RT-DETR 0). A model runs in the form that is deployed, its
norms folded into convolutions, where the gate finds that to be the same function of these weights.
--voc: VOC's average precision of 2007 and 2012. --errors: which kinds of mistakes cost how much AP. --confusion: what
is taken for what. --curves: precision-recall curves and the best threshold of each class, as figures and CSV in a
folder, with what --errors and --confusion show.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `evaluate` its arguments."""
    parser.add_argument("model", help="- where the next is a file of detections")
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path, help="COCO file")
    parser.add_argument("--images", type=Path, help="folder of the images, where it is not beside the COCO file")
    parser.add_argument("--batch", type=int, default=8, help="images at a time (%(default)s)")
    parser.add_argument("--per-class", action="store_true", help="also the average precision of each class")
    parser.add_argument("--detections", type=Path, help="file to write")
    parser.add_argument("--voc", action="store_true", help="also VOC's average precision of 2007 and 2012, at IoU .5")
    parser.add_argument("--errors", action="store_true", help="also kinds of mistakes and what they cost")
    parser.add_argument("--confusion", action="store_true", help="also what is taken for what most often")
    curves = "write precision-recall curves and best thresholds"
    parser.add_argument("--curves", type=Path, metavar="FOLDER", help=curves)
    arguments.add_absent(parser)
    arguments.add_workers(parser)
    arguments.add_network(parser)


def run(chosen: argparse.Namespace) -> None:
    """Print COCO's numbers and what else was asked for."""
    from lib.data import coco
    from lib.evaluation import evaluate, found
    from lib.record import atomic

    if chosen.data.is_dir():
        chosen.data = coco.splits(chosen.data)[1]
    truth, notes = coco.truth(chosen.data)
    if chosen.model == NO_MODEL:
        rows, others = found.read(chosen.weights, truth)
        result = evaluate(truth, rows)
        if others:
            those = f"{len(others)} images of {chosen.weights}"
            print(f"note: {those} are not the ground truth's and left out, such as {visible(others[0])}")
    else:
        rows, result = _detected(chosen)
    if chosen.detections:
        with atomic(chosen.detections) as temporary:
            temporary.write_text(json.dumps(rows), encoding="utf-8")
    for name, value in [*result.numbers.items(), *(result.per_class.items() if chosen.per_class else ())]:
        print(f"{name:<12} {value:.4f}")
    _show_more(chosen, truth, rows, result)
    for note in notes + _crowded(truth):
        print(f"note: {note}")
    if aside := sum(bool(a.get("ignore") or a.get("difficult")) and not a.get("iscrowd") for a in truth["annotations"]):
        print(
            f"note: {aside} boxes are difficult or to be ignored; COCO's numbers and curves count them as boxes to "
            "find, as pycocotools does, VOC's numbers, best thresholds and kinds of mistakes leave them out"
        )


def _crowded(truth: Mapping[str, Any]) -> list[str]:
    """What COCO's numbers can't see where an image has more objects of a class than they look at."""
    objects = (entry for entry in truth["annotations"] if not entry.get("iscrowd"))
    most = Counter((entry["image_id"], entry["category_id"]) for entry in objects).most_common(1)
    seen = f"COCO's numbers look at the {MOST} best detections of a class in an image, the rest are missed"
    return [
        f"image {image} has {count} objects of category {of}; {seen}" for (image, of), count in most if count > MOST
    ]


def _detected(chosen: argparse.Namespace) -> tuple[Rows, "Evaluation"]:
    """What the model finds on the data set, and its numbers."""
    from lib import models
    from lib.data import coco
    from lib.evaluation import inference, published_form
    from lib.training import checkpoints

    dataset = coco.load(chosen.data, chosen.images)
    size = arguments.use(chosen)
    model = models.build(chosen.model, len(dataset.classes))
    model = arguments.load(model, chosen, checkpoints.read(chosen.weights), dataset.classes, chosen.data)
    result, boxes = inference.evaluate_model(model, chosen.model, dataset, size, chosen.batch, chosen.workers)
    return published_form([image.id for image in dataset.images], boxes, dataset.category_ids), result


def _show_more(chosen: argparse.Namespace, truth: Mapping[str, Any], detections: Rows, result: "Evaluation") -> None:
    """Print and write what was asked for beyond COCO's numbers; `detections` are those that gave `result`."""
    from lib.evaluation import curves, errors
    from lib.evaluation.table import match, overlaps, table

    if chosen.voc:
        found = curves.voc(truth, detections)
        print(f"{'VOC2007 mAP':<12} {found.mean_2007:.4f}\n{'VOC2012 mAP':<12} {found.mean_2012:.4f}")
        for name in found.voc2007 if chosen.per_class else ():
            print(f"{name:<12} {found.voc2007[name]:.4f} (2007)  {found.voc2012[name]:.4f} (2012)")
    if not (chosen.errors or chosen.confusion or chosen.curves):
        return
    from lib.show import figures_evaluation as figures

    held = table(truth, detections)
    pairs = overlaps(held, errors.BACKGROUND)
    matching = match(held, pairs)
    best = curves.best_thresholds(held, matching)
    whole = best["all"]
    threshold = whole.threshold if whole.correct else 0.0
    typed = math.floor(1e4 * threshold) / 1e4  # rounded up it would leave out the detection that it names
    about = f"precision {whole.precision:.4f}, recall {whole.recall:.4f}"
    print(f"{'best F1':<12} {whole.f1:.4f}  at score {typed:.4f}: {about}")
    files: dict[str, Any] = {"best_thresholds.csv": [{"class": name, **vars(one)} for name, one in best.items()]}
    if chosen.errors:
        mistakes = errors.errors(held, pairs, matching, threshold)
        files |= {"errors.csv": errors.rows(mistakes), "errors.svg": figures.errors(mistakes)}
        for row in files["errors.csv"]:
            lost = f"{row['AP lost']:.4f} of AP{100 * mistakes.iou:.0f} lost"
            print(f"{row['kind']:<12} {row['number']:>6} mistakes, {lost}")
    if chosen.confusion:
        taken = errors.confusion(held, pairs, threshold)
        for annotated, as_what, number in taken.largest(LARGEST):
            print(f"{number:>6} x {annotated} taken for {as_what}")
        names, picture = [*taken.classes, "background"], figures.confusion(taken)
        cells = [{"annotated": name, **dict(zip(names, row.tolist()))} for name, row in zip(names, taken.counts)]
        files |= {"confusion.csv": cells, f"confusion.{'svg' if 'svg' in picture.kind else 'png'}": picture}
    if chosen.curves:
        files["precision_recall.csv"] = result.curves.points()
        files["precision_recall.svg"] = figures.precision_recall(result.curves)
        files["classes.svg"] = figures.classes(result.curves)
        _write(chosen.curves, files)


def _write(folder: Path, files: Mapping[str, Any]) -> None:
    """Tables as CSV (with the mark by which spreadsheets know UTF-8), figures as they are."""
    import pandas as pd

    from lib.record import atomic

    form = dict(index=False, encoding="utf-8-sig", lineterminator="\r\n", na_rep="nan")
    for name, content in files.items():
        with atomic(folder / name) as temporary:
            if name.endswith(".csv"):
                pd.DataFrame(content).to_csv(temporary, **form)
            else:
                temporary.write_bytes(content.data)
        print(folder / name)
