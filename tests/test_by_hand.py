"""What the notebooks write out by hand is what lib does: functions of their cells against lib's own."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from lib.data import boxes, coco
from lib.evaluation import published_form, table

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SIZE, CLASSES = 100, 3


def by_hand(notebook: str, name: str, change=lambda source: source):
    """A function that a cell of a notebook defines, perhaps changed as a student would."""
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    found = [one for source in sources for one in ast.parse(source).body if getattr(one, "name", "") == name]
    scope = {"np": np, "boxes": boxes}
    exec(change(ast.unparse(found[0])), scope)
    return scope[name]


@pytest.fixture(scope="module")
def scenes():
    """(entries, detections (m, 6) of each): boxes that overlap, found twice, in the wrong class or not at all."""
    draw = np.random.default_rng(3)
    entries, found = [], []
    for id_ in range(1, 13):
        corner = draw.uniform(0, SIZE / 2, (5, 2))
        annotated = np.concatenate([corner, corner + draw.uniform(10, SIZE / 2, (5, 2))], 1).astype(np.float32)
        labels = draw.integers(0, CLASSES, 5)
        entries.append(coco.ImageEntry(id_, Path(), SIZE, SIZE, annotated, labels, np.zeros((0, 4), np.float32)))
        picked = draw.integers(0, 5, 20)
        near = annotated[picked] + draw.normal(0, 4, (20, 4))
        taken = np.where(draw.random(20) < 0.8, labels[picked], draw.integers(0, CLASSES, 20))
        rows = np.column_stack([near, draw.random(20), taken])
        found.append(rows[np.argsort(-rows[:, 4])])
    return entries, found


def by_lib(entries, found, least):
    """The number of the box that each detection takes, image by image, by lib's matching."""
    ids = range(CLASSES)
    annotations = [
        {"image_id": entry.id, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        for entry in entries
        for (x1, y1, x2, y2), label in zip(entry.boxes.tolist(), entry.labels)
    ]
    truth = {
        "images": [{"id": entry.id} for entry in entries],
        "categories": [{"id": id_, "name": str(id_)} for id_ in ids],
        "annotations": annotations,
    }
    held = table.table(truth, published_form([entry.id for entry in entries], found, ids))
    partner = table.match(held, table.overlaps(held, least), least).partner
    return [
        np.where((own := partner[held.found.image == rank]) < 0, -1, own - 5 * rank) for rank in range(len(entries))
    ]


@pytest.mark.parametrize("least", [0.5, 0.75])
def test_the_rule_of_70_is_that_of_the_evaluation(scenes, least):
    entries, found = scenes
    matched = by_hand("70_evaluate", "matched")
    expected = by_lib(entries, found, least)
    pairs = [(matched(rows, entry, least), theirs) for entry, rows, theirs in zip(entries, found, expected)]
    for mine, theirs in pairs:
        np.testing.assert_array_equal(mine, theirs)
    assert sum((mine >= 0).sum() for mine, _ in pairs) > 10


def test_a_changed_rule_is_another_one(scenes):
    """The comparison above can fail: a box that may be taken twice, a class that is forgotten."""
    entries, found = scenes
    expected = by_lib(entries, found, 0.5)
    for gone in ("& ~np.isin(np.arange(len(image.labels)), partner) ", "(image.labels == row[5]) & "):
        other = by_hand("70_evaluate", "matched", lambda source, gone=gone: source.replace(gone, ""))
        assert any((other(rows, entry) != theirs).any() for entry, rows, theirs in zip(entries, found, expected)), gone
