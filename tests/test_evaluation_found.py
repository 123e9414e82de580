"""Detections from files: COCO's result list, what detect writes, and what is wrong with others. No framework runs."""

import json

import pytest

from lib.__main__ import main
from lib.errors import UserError
from lib.evaluation import found

TRUTH = {
    "images": [
        {"id": 7, "file_name": "val/a.png"},
        {"id": 9, "file_name": "val/b/c.png"},
        {"id": 11, "file_name": "other/c.png"},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [],
}
ROW = {"image_id": 1, "category_id": 2, "bbox": [1, 2.5, 3, 4], "score": 0.5}


def detected(*names, **changes):
    """A file of detect with one detection an image, of the class dog."""
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names, 1)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {**ROW, "id": number, "image_id": number, "area": 12, "iscrowd": 0} for number, _ in enumerate(names, 1)
        ],
        **changes,
    }


def read(tmp_path, content):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    return found.read(path, TRUTH)


def test_a_result_list_is_taken_as_it_is(tmp_path):
    rows = [{**ROW, "image_id": 7, "category_id": 3}]
    assert read(tmp_path, rows) == (rows, []) and read(tmp_path, []) == ([], [])


def test_images_and_classes_go_by_name(tmp_path):
    rows, others = read(tmp_path, detected("a.png", "b/c.png", "stranger.png"))
    assert [(row["image_id"], row["category_id"], row["bbox"], row["score"]) for row in rows] == [
        (7, 5, ROW["bbox"], 0.5),
        (9, 5, ROW["bbox"], 0.5),
    ]
    assert others == ["stranger.png"]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"images": []}, "is no list of detections"),
        ("text", "is no list of detections"),
        ([{**ROW, "score": None}], "detection 0 has bbox"),
        ([{key: value for key, value in ROW.items() if key != "score"}], "detection 0 has no score"),
        ([3], "detection 0 has no image_id nor category_id"),
        ([{**ROW, "image_id": [1]}], r"detection 0 has image_id \[1\] and category_id 2; give numbers"),
        (detected("a.png", images=[3]), "an image or a category without id and name"),
        ([ROW, {**ROW, "bbox": [1, 2, 3]}], "detection 1 has bbox"),
        ([{**ROW, "score": float("nan")}], "detection 0 has NaN"),
        ([{**ROW, "bbox": [float("inf"), float("-inf"), 1, 1]}], "detection 0 has NaN"),
        (detected("stranger.png"), "none of its 1 images"),
        (detected("c.png"), "c.png may be several images"),
        (detected("a.png", categories=[{"id": 2, "name": "Dog"}]), "class 'Dog' is none"),
        (detected("a.png", categories=[]), "detection 0 is of an image or class"),
    ],
)
def test_what_can_not_be_evaluated_is_one_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as raised:
        read(tmp_path, content)
    assert "found.json: " in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("count", [100, 101])
def test_more_objects_than_the_numbers_can_see_are_said(tmp_path, capsys, count):
    truth = {
        "images": [{"id": 7, "file_name": "a.png", "width": 500, "height": 500}],
        "categories": TRUTH["categories"],
        "annotations": [
            {"id": at, "image_id": 7, "category_id": 3, "bbox": [at, at, 9, 9], "area": 81} for at in range(count)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text("[]")
    assert main(["evaluate", "-", str(tmp_path / "found.json"), str(tmp_path / "truth.json")]) == 0
    shown = capsys.readouterr().out
    assert ("note: image 7 has 101 objects of category 3" in shown) == (count > 100)
