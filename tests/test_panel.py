"""The panel of 71_detect on records that nothing measured: what it offers, marks, shows, and the notebook around it."""

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import synthetic_records as synthetic

from lib import record
from lib.data import scenes
from lib.errors import UserError
from lib.show import figures
from notebooks.stages import panel

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def records(tmp_path):
    for side in ("torch", "jittor"):
        synthetic.write(tmp_path / "records", side, "evaluate", *synthetic.STAGES["evaluate"](side))
    return tmp_path / "records"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    scenes.generate(folder, train=1, val=3, size=64)
    return folder


def moved(rows, pixels=0.0, score=0.0, label=0):
    return rows + [0, pixels, pixels, pixels, pixels, score, label]


def decoded(html):
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


ROWS = np.array([[7, 10, 10, 30, 30, 0.9, 0], [7, 40, 40, 60, 60, 0.5, 1], [8, 10, 10, 30, 30, 0.9, 0]], float)


@pytest.mark.parametrize(
    "other, alone",
    [
        (ROWS, []),
        (moved(ROWS, 1.5), []),
        (moved(ROWS, 2.5), [0, 1, 2]),
        (moved(ROWS, 0, 0.04), []),
        (moved(ROWS, 0, -0.06), [0, 1, 2]),
        (moved(ROWS, 0, 0, 1), [0, 1, 2]),
        (ROWS[:2], [2]),
        (ROWS[[2, 1, 0]], []),
        (ROWS[:0], [0, 1, 2]),
    ],
)
def test_differences(other, alone):
    left, right = figures.differences(ROWS, other, pixels=2.0, scores=0.05)
    assert np.flatnonzero(left).tolist() == alone and right.sum() == len(other) - (len(ROWS) - len(alone))
    assert [mask.tolist() for mask in figures.differences(other, ROWS, 2.0, 0.05)] == [right.tolist(), left.tolist()]


def test_records_alone_are_enough(records):
    shown = panel.from_records(records)
    choice = shown.choice()
    assert (choice.model, choice.left, choice.right, choice.image) == (
        "synthetic",
        ("own", "jittor"),
        ("own", "torch"),
        0,
    )
    assert shown.choice("common", image=1).left == ("common", "jittor") and shown.offered("synthetic")["image"] == [
        0,
        1,
    ]
    picture = shown.picture(shown.choice(threshold=0.0))
    assert picture.kind == "image/jpeg"
    assert re.search(
        r"Jittor, own weights: \d+ boxes, 0 without counterpart \(≠\); PyTorch, own weights: \d+ boxes, 0", picture.alt
    )


def test_a_planted_difference_is_marked(records):
    def change(fields, arrays):
        rows = arrays["float32/own/detections"]
        index = int(np.argmax(np.where(rows[:, 0] == 0, rows[:, 5], -1)))
        rows[index, 1:5] += 9

    before = panel.from_records(records)
    synthetic.edit(records, "jittor", "evaluate", change)
    after = panel.from_records(records)
    choice = after.choice(weights="own", image=0, threshold=0.0)
    assert (
        "Jittor, own weights: " in after.picture(choice).alt
        and len(re.findall(" 1 without counterpart", after.picture(choice).alt)) == 2
    )
    assert (
        "1 without" not in before.picture(choice).alt
        and "1 without" not in after.picture(after.choice(weights="common")).alt
    )
    near = after.choice(weights="own", image=0, threshold=0.0, pixels=10.0)
    assert "1 without" not in after.picture(near).alt


def test_a_marked_box_looks_different_in_grey():
    from lib.evaluation.detection import Classes
    from lib.show import drawing

    painter = drawing.Painter(Classes(("cup",), (1,)))
    image, rows = np.full((120, 160, 3), 128, np.uint8), np.array([[20, 60, 140, 110, 0.5, 0]])
    plain, marked = (cv2.cvtColor(painter.paint(image, rows, marks), cv2.COLOR_BGR2GRAY) for marks in ([False], [True]))
    assert (marked != 128).sum() > 1.3 * (plain != 128).sum()
    assert (painter.paint(image, rows) == painter.paint(image, rows, [False])).all()
    assert (painter.paint(image, rows[:0], [], [[20, 60, 140, 110]]) == 255).any()


def test_an_annotation_has_no_score_and_small_images_are_enlarged():
    from lib.evaluation.detection import Classes
    from lib.show import drawing

    painter, image = drawing.Painter(Classes(("cup",), (1,))), np.full((60, 80, 3), [10, 128, 250], np.uint8)
    told, annotated = np.array([[10, 30, 40, 55, score, 0] for score in (0.5, np.nan)])
    black = [(painter.paint(image, row[None]) == 0).all(2).sum() for row in (told, annotated)]
    assert black[0] > black[1] > 0, "a score is written"
    large = painter.readable(image, told[None])
    assert large.shape == (360, drawing.SHOWN, 3) and large[0, 0].tolist() == [10, 128, 250], "RGB stays RGB"
    framed = np.argwhere((large != [10, 128, 250]).any(2))  # the box is where it was, six times as far
    assert abs(framed[:, 1].max() - 6 * 40) < 5 and abs(framed[:, 0].max() - 6 * 55) < 5


def test_a_data_set_and_result_files(tmp_path, data):
    shown = panel.Panel()
    with pytest.raises(UserError, match="nothing to show"):
        shown.choice()
    from lib.data import coco
    from lib.evaluation.detection import Classes

    shown.dataset = coco.load(data / "val.json")
    shown.classes = Classes(shown.dataset.classes, shown.dataset.category_ids)
    image, category = shown.dataset.images[1].id, shown.dataset.category_ids[2]
    entry = {"image_id": image, "category_id": category, "bbox": [5, 6, 20, 10], "score": 0.8}
    for name, content in (("list.json", [entry]), ("coco.json", {"annotations": [entry]})):
        (tmp_path / name).write_text(json.dumps(content))
        shown.add_file("mine", name, "torch", tmp_path / name)
        assert shown.found["mine"][name, "torch"].tolist() == [[image, 5, 6, 25, 16, 0.8, 2]]
    shown.add("mine", "list.json", "jittor", panel.with_ids([image], [np.array([[5, 6, 25, 16, 0.7, 2.0]])]))
    alt = shown.picture(shown.choice("list.json", threshold=0.3, image=image)).alt
    said = (f"{side}, list.json: 1 box, 1 without counterpart (≠)" for side in ("PyTorch", "Jittor"))
    assert "; ".join(said) in alt
    for text in ("[", 10**5 * "[", json.dumps([entry | {"category_id": 99}]), json.dumps([{"bbox": [1, 2, 3, 4]}])):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match="no COCO result file of this data set"):
            shown.add_file("mine", "bad", "torch", tmp_path / "bad.json")
    with pytest.raises(UserError, match="model: 'yours' has no detections here"):
        shown.choice(model="yours")


def test_records_of_other_classes_and_no_records(tmp_path, records, data):
    with pytest.raises(UserError, match="its classes are not those of"):
        panel.from_records(records, data)
    with pytest.raises(UserError, match="holds no evaluation record"):
        panel.from_records(tmp_path / "nowhere")


def test_what_is_shown_by_default_shows_boxes(records):
    """As many boxes as are annotated, on an image that has one: the scores of a short training are far below 0.3."""

    def low(fields, arrays):
        rows = arrays["float32/own/detections"]
        rows[:, 5] *= 0.1
        rows[rows[:, 0] == 0, 0] = 1  # nothing is found on the first image

    synthetic.edit(records, "jittor", "evaluate", low)
    shown = panel.from_records(records)
    choice, rows = shown.choice(), shown.found["synthetic"]["own", "jittor"]
    annotated = sum(len(boxes) for _, boxes in shown.samples.values())
    on_these = rows[np.isin(rows[:, 0], shown.offered("synthetic")["image"]), 5]
    assert choice.threshold < 0.1 and choice.image == 1
    assert (on_these >= choice.threshold).sum() >= min(annotated, len(on_these)) > 0
    first, other = (shown.picture(shown.choice(threshold=lowest, image=1)).alt for lowest in (None, 0.3))
    assert "Jittor, own weights: 0 boxes" not in first and "Jittor, own weights: 0 boxes" in other


def test_long_paths_and_dollars_in_names_stay_text(records):
    shown, path = panel.from_records(records), "/a/$b$/" + "long/" * 30 + "<img src=x onerror=alert(1)>.json"
    shown.add("synthetic", path, "torch", shown.found["synthetic"]["own", "torch"])
    name = panel.named((path, "torch"))
    assert len(name) < 45 and name.endswith(path[-10:])
    picture = shown.picture(shown.choice(right=(path, "torch"), threshold=0.0))
    assert "onerror" in picture.alt and "<img src=x" not in picture.html()


def test_the_notebook_runs(records, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = [
        c for c in json.loads((ROOT / "notebooks" / "71_detect.ipynb").read_text())["cells"] if c["cell_type"] == "code"
    ]
    values = {"model": synthetic.MODEL, "records": str(records), "data": None}
    scope = {}
    for cell in cells:
        exec("".join(cell["source"]), scope)
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(values) <= set(scope)
            scope |= values
    assert scope["choice"].left == ("common", "jittor") and record.read(
        records / synthetic.MODEL / "torch" / "evaluate.json"
    )
