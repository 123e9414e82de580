"""python -m lib detect, and what evaluate says beyond the twelve numbers, with a model that has learnt nothing."""
import csv
import json

import numpy as np
import pytest

from lib import checkpoints, convert, inference, models
from lib.__main__ import main
from lib.data import coco, images, scenes

MODEL, SIZE = "nanodet-plus-m_320", ("--size", "64", "64")


@pytest.fixture(scope="module")
def model():
    return models.build(MODEL, 10, seed=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    """(folder of a data set, weights)."""
    folder = tmp_path_factory.mktemp("made")
    scenes.generate(folder, train=1, val=3, size=96)
    checkpoints.write(folder / "weights.npz", convert.state(model))
    return folder, str(folder / "weights.npz")


def test_one_image_is_found_as_in_a_data_set(made, model):
    dataset = coco.load(made[0] / "val.json")
    model.train()
    together = inference.detect(model, MODEL, dataset, (64, 64), batch=1)
    for entry, expected in zip(dataset.images, together):
        alone = inference.detect_image(model, MODEL, images.pixels(entry.file)[0], (64, 64))
        np.testing.assert_array_equal(alone, expected)
        some = inference.detect_image(model, MODEL, images.pixels(entry.file)[0], (64, 64), score_threshold=0.005)
        assert len(some) == 100 and (np.diff(some[:, 4]) <= 0).all() and some[:, :4].max() <= 96
    assert model.training


def test_detect_draws_and_writes(capsys, tmp_path, made):
    folder, weights = made
    out = tmp_path / "found.json"
    arguments = ["detect", MODEL, weights, str(folder / "images" / "val"), "-o", str(tmp_path / "drawn"), "--json", str(out),
                 "--classes", str(folder / "val.json"), "--threshold", "0.005", "--limit", "2", *SIZE]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "200 boxes in 2 images"
    content = json.loads(out.read_text())
    assert len(content["images"]) == 2 == len(list((tmp_path / "drawn").iterdir())) and len(content["annotations"]) == 200
    assert [c["name"] for c in content["categories"]] == list(coco.load(folder / "val.json").classes)


def test_mistakes_are_one_line(capsys, tmp_path, made):
    folder, weights = made
    classes = ["--classes", str(folder / "val.json")]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for arguments, message in (
        ([weights, "nowhere.jpg", *classes], "nothing to write"),
        ([weights, "nowhere.jpg", "-o", "x.png", *classes], "there is no such file"),
        ([weights, "nowhere.jpg", "-o", "x.png"], "wrong shape"),  # ten classes, not COCO's eighty
        ([weights, str(tmp_path / "in"), "-o", str(tmp_path / "out"), *classes], "1 images could not be read"),
    ):
        assert main(["detect", MODEL, *arguments, *SIZE]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line


def test_evaluate_says_more(capsys, tmp_path, made):
    folder, weights = made
    out = tmp_path / "evaluation"
    assert main(["evaluate", MODEL, weights, str(folder / "val.json"), *SIZE, "--voc", "--per-class", "--errors", "--confusion",
                 "--curves", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "VOC2007 mAP" in shown and "best F1" in shown and "missed " in shown and "(2012)" in shown
    names = {path.name for path in out.iterdir()}
    assert {"precision_recall.csv", "precision_recall.svg", "classes.svg", "errors.csv", "errors.svg", "confusion.csv",
            "confusion.svg", "best_thresholds.csv"} == names
    with open(out / "confusion.csv", encoding="utf-8-sig") as stream:
        rows = list(csv.reader(stream))
    dataset = coco.load(folder / "val.json")
    assert rows[0] == ["annotated", *dataset.classes, "background"] and len(rows) == 12
    counts = np.array([row[1:] for row in rows[1:]], int)
    expected = np.bincount(np.concatenate([entry.labels for entry in dataset.images]), minlength=10)
    assert counts[:-1].sum(1).tolist() == expected.tolist()
    with open(out / "best_thresholds.csv", encoding="utf-8-sig") as stream:
        assert [row["class"] for row in csv.DictReader(stream)] == ["all", *dataset.classes]


@pytest.mark.parametrize("verb", ["detect", "curves", "evaluate"])
def test_help_shows_examples(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.count(f"python -m lib {verb} ") >= 3
