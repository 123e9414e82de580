"""python -m lib detect, and what evaluate says beyond the twelve numbers, with a model that has learnt nothing."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from lib import backend, convert, models, postprocess
from lib.__main__ import main
from lib.data import coco, images, scenes
from lib.evaluation import inference
from lib.training import checkpoints

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
    where = ["-o", str(tmp_path / "drawn"), "--json", str(out), "--classes", str(folder / "val.json")]
    arguments = ["detect", MODEL, weights, str(folder / "images" / "val"), *where, "--threshold", "0.005", *SIZE]
    assert main([*arguments, "--limit", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "200 boxes in 2 images"
    content = json.loads(out.read_text())
    assert (
        len(content["images"]) == 2 == len(list((tmp_path / "drawn").iterdir())) and len(content["annotations"]) == 200
    )
    assert [c["name"] for c in content["categories"]] == list(coco.load(folder / "val.json").classes)


def test_mistakes_are_one_line(capsys, tmp_path, made):
    folder, weights = made
    classes = ["--classes", str(folder / "val.json")]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for arguments, message in (
        ([weights, "nowhere.jpg", *classes], "nothing to write"),
        ([weights, "nowhere.jpg", "-o", "x.png", *classes], "there is no such file"),
        ([weights, "nowhere.jpg", "-o", "x.png", "--limit", "0"], "--limit is 0"),
        ([weights, "nowhere.jpg", "-o", "x.png", "--threshold", "nan"], "--threshold is nan"),
        ([weights, "nowhere.jpg", "-o", "x.png", *classes, "--size", "50", "64"], "take 64 64"),
        ([weights, "nowhere.jpg", "-o", "x.png"], "wrong shape"),  # ten classes, not COCO's eighty
        ([weights, str(tmp_path / "in"), "-o", str(tmp_path / "out"), *classes], "1 images could not be read"),
    ):
        assert main(["detect", MODEL, *SIZE, *arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line


@pytest.mark.skipif(backend.NAME == "torch", reason="there they work: tests/test_export.py")
def test_jittor_names_the_environment_that_exports(capsys, made):
    file, weights = made[0] / "x.onnx", made[1]
    for given in (["export", MODEL, "--weights", weights, "--to"], ["detect", "-", "--json", "x.json", "x.jpg"]):
        given.insert(2 if given[0] == "detect" else len(given), str(file))
        assert main(given) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "use envs/torch/bin/python" in line and "envs/jt" not in line, line


def test_evaluate_says_more(capsys, tmp_path, made):
    folder, weights = made
    out = tmp_path / "evaluation"
    asked = ["--voc", "--per-class", "--errors", "--confusion", "--curves", str(out)]
    assert main(["evaluate", MODEL, weights, str(folder / "val.json"), *SIZE, *asked]) == 0
    shown = capsys.readouterr().out
    assert "VOC2007 mAP" in shown and "best F1" in shown and "missed " in shown and "(2012)" in shown
    names = {path.name for path in out.iterdir()}
    kinds = ("precision_recall", "errors", "confusion")
    assert {
        "classes.svg",
        "best_thresholds.csv",
        *(f"{kind}.{end}" for kind in kinds for end in ("csv", "svg")),
    } == names
    with open(out / "confusion.csv", encoding="utf-8-sig") as stream:
        rows = list(csv.reader(stream))
    dataset = coco.load(folder / "val.json")
    assert rows[0] == ["annotated", *dataset.classes, "background"] and len(rows) == 12
    counts = np.array([row[1:] for row in rows[1:]], int)
    expected = np.bincount(np.concatenate([entry.labels for entry in dataset.images]), minlength=10)
    assert counts[:-1].sum(1).tolist() == expected.tolist()
    with open(out / "best_thresholds.csv", encoding="utf-8-sig") as stream:
        assert [row["class"] for row in csv.DictReader(stream)] == ["all", *dataset.classes]


def test_what_detect_wrote_is_evaluated_as_the_model_itself(capsys, tmp_path, made, monkeypatch):
    folder, weights = made
    low = replace(postprocess.settings(MODEL), score_threshold=0.001)  # it has learnt nothing: its scores are low
    monkeypatch.setitem(postprocess.SETTINGS, models.family(MODEL), low)
    truth, out, rows = str(folder / "val.json"), str(tmp_path / "found.json"), str(tmp_path / "rows.json")
    found = ["--json", out, "--classes", truth, "--threshold", "0.001"]
    assert main(["detect", MODEL, weights, str(folder / "images"), *found, *SIZE]) == 0
    assert main(["evaluate", MODEL, weights, truth, "--batch", "1", "--detections", rows, *SIZE]) == 0
    numbers = capsys.readouterr().out.splitlines()[-12:]
    assert numbers[0].split()[1] != "0.0000"
    for file in (rows, out):
        assert main(["evaluate", "-", file, truth]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[-12:] == numbers and len(said) == (12 if file == rows else 13)
    assert said[0] == f"note: 1 images of {out} are not the ground truth's and left out, such as train/000000.png"


def test_boxes_to_ignore_are_said(capsys, tmp_path, made):
    truth = json.loads((made[0] / "val.json").read_text())
    truth["annotations"][0]["ignore"] = 1
    (tmp_path / "val.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text("[]")
    for file, notes in ((tmp_path / "val.json", 1), (made[0] / "val.json", 0)):
        assert main(["evaluate", "-", str(tmp_path / "found.json"), str(file)]) == 0
        assert capsys.readouterr().out.count("note: 1 boxes are difficult") == notes
