"""What `python -m lib evaluate` says beyond COCO's twelve numbers."""
import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib.evaluation import Evaluation
    from lib.evaluation.errors import Confusion, Errors
    from lib.evaluation.voc import Voc

LARGEST = 10  # confusions that are printed
EXAMPLES = """\
  python -m lib evaluate nanodet-plus-m_320 weights.pth voc/val.json --voc --per-class
  python -m lib evaluate nanodet-plus-m_320 weights.pth coco/val.json --errors --confusion --curves evaluation/
--voc: VOC's average precision of 2007 and 2012. --errors: which kinds of mistakes cost how much AP. --confusion: what is
taken for what. --curves: precision-recall curves and the best threshold of each class, as figures and CSV in a folder,
with what --errors and --confusion show.
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `evaluate` the arguments of this module."""
    parser.add_argument("--voc", action="store_true", help="also VOC's average precision of 2007 and 2012, at IoU .5")
    parser.add_argument("--errors", action="store_true", help="also kinds of mistakes and what they cost")
    parser.add_argument("--confusion", action="store_true", help="also what is taken for what most often")
    parser.add_argument("--curves", type=Path, metavar="FOLDER", help="write precision-recall curves and best thresholds")


def show(chosen: argparse.Namespace, ground_truth: Path, detections: Sequence[Mapping], result: "Evaluation") -> None:
    """Print and write what was asked for; `detections` are those that gave `result`."""
    from lib.evaluation import voc
    from lib.evaluation.curves import best_thresholds
    from lib.evaluation.errors import BACKGROUND, confusion, errors
    from lib.evaluation.table import match, overlaps, table

    truth = json.loads(Path(ground_truth).read_text(encoding="utf-8"))
    if chosen.voc:
        _show_voc(voc.evaluate(truth, detections), chosen.per_class)
    if not (chosen.errors or chosen.confusion or chosen.curves):
        return
    held = table(truth, detections)
    pairs = overlaps(held, BACKGROUND)
    matching = match(held, pairs)
    best = best_thresholds(held, matching)
    threshold = best["all"].threshold if best["all"].correct else 0.0
    print(f"{'best F1':<12} {best['all'].f1:.4f}  at score {threshold:.3f}: precision {best['all'].precision:.4f}, "
          f"recall {best['all'].recall:.4f}")
    files: dict[str, Any] = {"best_thresholds.csv": [{"class": name, **vars(one)} for name, one in best.items()]}
    if chosen.errors:
        files |= _errors(errors(held, pairs, matching, threshold))
    if chosen.confusion:
        files |= _confusion(confusion(held, pairs, threshold))
    if chosen.curves:
        _write(chosen.curves, files | _curves(result))


def _show_voc(found: "Voc", per_class: bool) -> None:
    print(f"{'VOC2007 mAP':<12} {found.mean_2007:.4f}\n{'VOC2012 mAP':<12} {found.mean_2012:.4f}")
    for name in found.voc2007 if per_class else ():
        print(f"{name:<12} {found.voc2007[name]:.4f} (2007)  {found.voc2012[name]:.4f} (2012)")


def _errors(found: "Errors") -> dict[str, Any]:
    from lib.evaluation import figures
    from lib.evaluation.errors import rows

    for row in rows(found):
        print(f"{row['kind']:<12} {row['number']:>6} mistakes, {row['AP lost']:.4f} of AP{100 * found.iou:.0f} lost")
    return {"errors.csv": rows(found), "errors.svg": figures.errors(found)}


def _confusion(found: "Confusion") -> dict[str, Any]:
    from lib.evaluation import figures

    for annotated, taken, number in found.largest(LARGEST):
        print(f"{number:>6} x {annotated} taken for {taken}")
    names = [*found.classes, "background"]
    cells = [{"annotated": name, **dict(zip(names, row.tolist()))} for name, row in zip(names, found.counts)]
    picture = figures.confusion(found)
    return {"confusion.csv": cells, f"confusion.{'svg' if 'svg' in picture.kind else 'png'}": picture}


def _curves(result: "Evaluation") -> dict[str, Any]:
    from lib.evaluation import figures

    held = result.curves
    points = [{"class": name, "IoU": f"{iou:.2f}", "recall": f"{recall:.2f}", "precision": held.precision[i, r, c],
               "score": held.score[i, r, c]}
              for c, name in enumerate(held.classes) for i, iou in enumerate(held.iou) for r, recall in enumerate(held.recall)
              if held.precision[i, r, c] > -1]
    return {"precision_recall.csv": points, "precision_recall.svg": figures.precision_recall(held),
            "classes.svg": figures.classes(held)}


def _write(folder: Path, files: Mapping[str, Any]) -> None:
    """Tables as CSV (with the mark by which spreadsheets know UTF-8), figures as they are."""
    from lib.record import atomic

    for name, content in files.items():
        with atomic(folder / name) as temporary:
            temporary.write_bytes(_csv(content) if name.endswith(".csv") else content.data)
        print(folder / name)


def _csv(table_rows: Sequence[Mapping[str, Any]]) -> bytes:
    out = io.StringIO(newline="")
    if table_rows:
        writer = csv.DictWriter(out, table_rows[0].keys())
        writer.writeheader()
        writer.writerows(table_rows)
    return out.getvalue().encode("utf-8-sig")
