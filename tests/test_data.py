"""Data sets: what is refused and how, and scenes that are the same bytes everywhere."""

import copy
import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.path import Path as Outline

from lib.data import coco, formats, scenes
from lib.errors import UserError
from lib.evaluation import evaluate

GOOD = {
    "images": [
        {"id": 7, "file_name": "b.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "a.jpg", "width": 20, "height": 20},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1.5, 2, 10, 12], "area": 120, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [-1, 0, 41, 30.5], "area": 1200, "iscrowd": 0},
        {"id": 4, "image_id": 7, "category_id": 2, "bbox": [5, 5, 8, 8], "area": 64, "iscrowd": 1},
    ],
}


@pytest.fixture
def write(tmp_path):
    """Writes the document, changed at will, with its images -> the JSON file."""

    def write(change=lambda document: None) -> Path:
        document = copy.deepcopy(GOOD)
        change(document)
        (tmp_path / "images").mkdir(exist_ok=True)
        for name, shape in (("b.png", (30, 40, 3)), ("a.jpg", (20, 20, 3))):
            cv2.imwrite(str(tmp_path / "images" / name), np.arange(np.prod(shape), dtype=np.uint8).reshape(shape))
        (tmp_path / "set.json").write_text(json.dumps(document))
        return tmp_path / "set.json"

    return write


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return scenes.generate(tmp_path_factory.mktemp("scenes"), seed=3, train=21, val=5, size=96)


# --- COCO files


def test_a_good_file_is_read_as_published(write):
    path = write()
    dataset = coco.load(path)
    assert formats.verify(path) == []
    assert (dataset.classes, dataset.category_ids) == (("cat", "dog"), (2, 9))
    empty, full = dataset.images
    assert (empty.id, len(empty.boxes), empty.boxes.shape, empty.labels.dtype) == (3, 0, (0, 4), np.int64)
    np.testing.assert_array_equal(full.boxes, np.array([[1.5, 2, 11.5, 14], [-1, 0, 40, 30.5]], np.float32))
    assert full.labels.tolist() == [1, 0] and full.crowd.tolist() == [[5, 5, 13, 13]]
    assert coco.read_image(full).shape == (30, 40, 3)


def edit(kind: str, index: int, **values):
    return lambda document: document[kind][index].update(values)


FAULTS = {  # name: (change, what the message names)
    "unknown image": (edit("annotations", 0, image_id=99), ["annotation 1", "image_id 99"]),
    "unknown category": (edit("annotations", 0, category_id=1), ["annotation 1", "category_id 1"]),
    "zero width": (edit("annotations", 0, bbox=[1, 2, 0, 5]), ["annotation 1", "image 7", "[1, 2, 0, 5]", "size"]),
    "negative height": (edit("annotations", 0, bbox=[1, 2, 5, -3]), ["annotation 1", "image 7", "size"]),
    "right of the image": (edit("annotations", 0, bbox=[40, 2, 5, 5]), ["annotation 1", "outside", "40x30"]),
    "above the image": (edit("annotations", 0, bbox=[1, -9, 5, 9]), ["annotation 1", "outside", "40x30"]),
    "three numbers": (edit("annotations", 0, bbox=[1, 2, 3]), ["annotation 1", "[1, 2, 3]", "four"]),
    "a number as text": (edit("annotations", 0, bbox=["1", 2, 3, 4]), ["annotation 1", "four"]),
    "no box": (lambda d: d["annotations"][0].pop("bbox"), ["annotation 1", "bbox None"]),
    "an area without end": (edit("annotations", 0, area=10**400), ["annotation 1", "area"]),
    "a crowd that is text": (edit("annotations", 0, iscrowd="0"), ["annotation 1", "iscrowd", "0 or 1"]),
    "annotation without id": (lambda d: d["annotations"][1].pop("id"), ["annotation number 2", "id"]),
    "annotation id twice": (edit("annotations", 1, id=1), ["annotation id 1", "twice"]),
    "image id twice": (edit("images", 1, id=7), ["image id 7", "twice"]),
    "category id twice": (edit("categories", 1, id=9), ["category id 9", "twice"]),
    "true as id": (edit("images", 0, id=True), ["image number 1", "id"]),
    "nameless category": (edit("categories", 0, name=" "), ["category 9", "name"]),
    "no file name": (edit("images", 0, file_name=None), ["image 7", "file_name"]),
    "a path out of the folder": (edit("images", 0, file_name="../b.png"), ["image 7", "../b.png", "leaves"]),
    "a path from the root": (edit("images", 0, file_name="/etc/passwd"), ["image 7", "/etc/passwd", "leaves"]),
    "a Windows path": (edit("images", 0, file_name="x\\..\\..\\b.png"), ["image 7", "leaves"]),
    "a file name of two lines": (edit("images", 0, file_name="a\nb.png"), ["image 7", "file_name"]),
    "half a character": (edit("images", 0, file_name="\ud800.png"), ["image 7", "file_name"]),
    "the folder itself": (edit("images", 0, file_name="."), ["image 7", "missing"]),
    "an endless file name": (edit("images", 0, file_name="n" * 5000), ["image 7", "missing"]),
    "no width": (edit("images", 0, width=0), ["image 7", "width 0"]),
    "a missing image": (edit("images", 0, file_name="c.png"), ["c.png", "image 7", "missing"]),
    "an image that is a list": (lambda d: d["images"].append([]), ["image number 3", "id"]),
    "no categories": (lambda d: d["categories"].clear(), ["categories", "empty"]),
    "no list of images": (lambda d: d.pop("images"), ["images"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_with_file_entry_and_remedy(write, name):
    change, named = FAULTS[name]
    path = write(change)
    with pytest.raises(UserError) as caught:
        coco.load(path)
    message = str(caught.value)
    assert "\n" not in message and "; " in message
    assert all(part in message for part in [str(path), *named]), message
    assert any(all(part in fault for part in named) for fault in formats.verify(path))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (json.dumps(GOOD)[:200], "cut short"),
        ("", "cut short"),
        ("[1, 2]", "images"),
        ("{}", "images"),
        (json.dumps(GOOD).replace("1.5", "NaN"), "NaN"),
        (json.dumps(GOOD).replace("1.5", "-Infinity"), "Infinity"),
        (json.dumps(GOOD).replace("1.5", "1e999"), "annotation 1"),
        ("[" * 100_000, "no valid JSON (lists in lists"),
        ("9" * 5000, "JSON"),
        ("\xff\xfe\x00", "is not UTF-8"),
        ('{"\xc2\xdd\xcb\xa8": 1}', "is not UTF-8 (byte 2); save it as UTF-8"),  # GBK
    ],
)
def test_a_file_that_is_no_coco_json(write, content, named):
    path = write()
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        coco.load(path)
    assert str(path) in str(caught.value) and named in str(caught.value) and "\n" not in str(caught.value)


def test_absent_files_and_folders(tmp_path):
    for path in (tmp_path / "no.json", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            coco.load(path)


def test_the_first_of_several_faults_tells_how_many_more(write):
    path = write(lambda document: [edit("annotations", n, image_id=99)(document) for n in (0, 1, 2)])
    with pytest.raises(UserError, match=r"annotation 1 .*2 more"):
        coco.load(path)
    assert len(formats.verify(path)) == 3


@pytest.mark.parametrize(
    ("values", "reason"),
    [({"bbox": [1, 2, 0.9, 5]}, "less than a pixel"), ({"area": 0}, "of no area"), ({"area": -1}, "of no area")],
)
def test_what_published_training_skips_is_skipped_and_reported(write, values, reason):
    path = write(edit("annotations", 0, **values))
    assert coco.load(path).images[1].labels.tolist() == [0]
    (fault,) = formats.verify(path)
    assert "annotation 1" in fault and reason in fault


def test_an_ignored_empty_box_and_a_box_across_the_border_load(write):
    assert len(coco.load(write(edit("annotations", 0, bbox=[1, 1, 0, 0], ignore=1))).images[1].boxes) == 1
    path = write(edit("annotations", 0, bbox=[30, 2, 20, 5]))
    np.testing.assert_array_equal(coco.load(path).images[1].boxes[0], [30, 2, 50, 7])
    assert "10 pixels beyond" in formats.verify(path)[0]


@pytest.mark.parametrize("name", ["b.png", "a.jpg"])
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda data: b"", "cut short"),
        (lambda data: data[:-9], "cut short"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: b"<html>not found</html>", "unknown format"),
    ],
)
def test_a_damaged_image_is_one_line(write, name, damage, named, capfd):
    path = write()
    file = path.parent / "images" / name
    file.write_bytes(damage(file.read_bytes()))
    dataset = coco.load(path)
    entry = next(entry for entry in dataset.images if entry.file == file)
    with pytest.raises(UserError, match=named) as caught:
        coco.read_image(entry)
    assert str(file) in str(caught.value) and f"image {entry.id}" in str(caught.value)
    assert formats.verify(path) == [str(caught.value)]
    assert capfd.readouterr().err == ""


def test_an_image_of_another_size_or_without_permission(write):
    path = write(edit("images", 0, width=41))
    with pytest.raises(UserError, match=r"b\.png.* is 40x30 pixels, its entry says 41x30"):
        coco.read_image(coco.load(path).images[1])
    entry = coco.load(path).images[0]
    entry.file.unlink()
    entry.file.mkdir()
    with pytest.raises(UserError, match=r"a\.jpg: image 3 cannot be read"):
        coco.read_image(entry)


def test_where_images_and_splits_are_found(write, tmp_path):
    flat = write()
    (tmp_path / "coco/annotations").mkdir(parents=True)
    os.rename(tmp_path / "images", tmp_path / "coco/val2017")
    for split in ("train", "val"):
        (tmp_path / f"coco/annotations/instances_{split}2017.json").write_bytes(flat.read_bytes())
    train, val = coco.splits(tmp_path / "coco")
    assert coco.load(val).images[0].file == tmp_path / "coco/val2017/a.jpg"
    with pytest.raises(UserError, match="missing"):
        coco.load(train)
    assert coco.load(train, tmp_path / "coco/val2017").images
    assert coco.splits(flat) == (flat, flat)
    with pytest.raises(UserError, match="train.json"):
        coco.splits(tmp_path / "nowhere")


EXPORTS = {  # name: (JSON files, where the images lie, what stands before their names)
    "a labelling tool's": (["result.json"], "images", "images/"),
    "the same from Windows": (["result.json"], "images", "images\\"),
    "images of both splits below one folder": (
        ["annotations/instances_train2017.json", "annotations/instances_val2017.json"],
        "images/{}2017",
        "",
    ),
    "a folder for each split, the JSON inside": (
        ["train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"],
        "{}",
        "",
    ),
    "another tool's": (["annotations/instances_default.json"], "images/default", ""),
    "a folder of images beside each JSON": (["train.json", "val.json"], "{}", ""),
    "names with the split's folder": (["train.json", "val.json"], "images/{}", "{}/"),
    "all in one folder": (["labels.json"], ".", "./"),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_what_tools_export_needs_no_option(write, tmp_path, name):
    files, place, before = EXPORTS[name]
    folder, good = tmp_path / "export", write()
    for file in files:
        (path := folder / file).parent.mkdir(parents=True, exist_ok=True)
        split = next((split for split in ("train", "valid", "val", "test") if split in file), "")
        (folder / place.format(split)).mkdir(parents=True, exist_ok=True)
        document = json.loads(good.read_text())
        for entry in document["images"]:
            shutil.copy(tmp_path / "images" / entry["file_name"], folder / place.format(split))
            entry["file_name"] = before.format(split) + entry["file_name"]
        path.write_text(json.dumps(document))
    assert formats.detect(folder) == "coco" and formats.verify(folder) == []
    assert coco.splits(folder) == (folder / files[0], folder / files[min(1, len(files) - 1)])
    dataset = coco.load(coco.splits(folder)[1])
    assert [entry.file.name for entry in dataset.images] == ["a.jpg", "b.png"]
    formats.convert(folder, tmp_path / "yolo", "yolo")
    assert len(list((tmp_path / "yolo/labels").rglob("*.txt"))) == 2 * len(files)


def test_images_that_lie_nowhere_are_told_with_where_was_looked(write, tmp_path):
    path = write()
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    with pytest.raises(UserError, match="its 2 images are missing, such as b.png; looked in .*; restore them, or name"):
        coco.load(path)
    assert coco.load(path, tmp_path / "elsewhere").images


def test_a_folder_of_other_json_files_is_no_coco_set(write, tmp_path):
    (tmp_path / "yolo/labels").mkdir(parents=True)
    (tmp_path / "yolo/notes.json").write_text('{"categories": []}')
    assert formats.detect(tmp_path / "yolo") == "yolo"


def test_a_root_category_and_two_of_one_name_are_pointed_out(write, tmp_path):
    def root(document):
        document["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
        for entry in document["categories"][1:]:
            entry["supercategory"] = "pets"

    assert formats.verify(path := write(root), tell=(said := []).append) == []
    (note,) = coco.load(path).notes
    assert "category 0 (pets) is only what others name as their supercategory" in note
    assert said[1:] == [f"note: {note}"] and formats.convert(path, tmp_path / "out", "yolo").notes == (note,)
    twins = write(lambda document: document["categories"].insert(0, {"id": 0, "name": "cat"}))
    assert "categories 2 and 0 have one name, 'cat'" in formats.verify(twins)[0]
    with pytest.raises(UserError, match="remove category 0"):
        coco.load(twins)


def test_a_set_without_any_object_and_a_panoptic_one(write):
    (note,) = coco.load(path := write(lambda document: document["annotations"].clear())).notes
    assert "has no object: nothing to learn or to find" in note and coco.truth(path)[1] == [note]
    with pytest.raises(UserError, match="panoptic form; give the file of instances"):
        coco.load(write(lambda document: document["annotations"][0].update(segments_info=[])))


@pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
def test_a_changed_ground_truth_is_refused_or_gives_numbers(write, kind):
    """No traceback: whatever a field is, the truth is judged before anything is computed from it."""
    values = [None, True, -1, 0, 1.5, 10**400, "1", "", [], [1], {}, {"a": 1}, "\ud800", "a\nb", [1, 2, 3, "4"]]
    done = 0
    for key in {key for entry in GOOD[kind] for key in entry}:
        for value in values:
            path = write(edit(kind, 0, **{key: value}))
            try:
                truth, _ = coco.truth(path)
                evaluate(truth, [])
                done += 1
            except UserError as error:
                assert "\n" not in str(error)
    assert done


def test_real_coco_is_clean(shared):
    path = shared / "real/coco_val_64/instances.json"
    assert formats.verify(path) == []
    dataset = coco.load(path)
    document = json.loads(path.read_text())
    crowd = sum(annotation["iscrowd"] for annotation in document["annotations"])
    assert len(dataset.images) == len(document["images"]) == 64 and len(dataset.classes) == 80
    assert sum(len(entry.crowd) for entry in dataset.images) == crowd
    assert sum(len(entry.boxes) for entry in dataset.images) == len(document["annotations"]) - crowd


# --- built-in scenes

PINNED = {  # the JSON files hold the digests of all images
    "train.json": "3fe80d6980d2d099fff7cc0bba8875312ab2d90955cfef0581908b551227467e",
    "val.json": "865815d7c68065d39e560522e89ea6301c76ae086f3baeb56df1c99b3da651c1",
    "images/train/000000.png": "a97e0a177bafdd4b52b6b41b9710f199e8569cefafd0c0f63fa8424f684aef9c",
}
FIRST_OF_QUICK = "6b54e77fa9c70febb1e130371b455b1b0894cb3ddb0ceda4e44e3579e99defb1"


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def test_scenes_are_these_bytes(drawn):
    folder = drawn["train"].parent
    assert {name: digest(folder / name) for name in PINNED} == PINNED
    assert sha256(scenes._png(scenes.draw(0, "train", 0, 256).image)).hexdigest() == FIRST_OF_QUICK


def test_scenes_hold_what_they_promise(drawn):
    document = json.loads(drawn["train"].read_text())
    assert formats.verify(drawn["train"]) == formats.verify(drawn["val"]) == []
    assert [category["name"] for category in document["categories"]] == list(scenes.CLASSES)
    assert len(scenes.CLASSES) == 10
    dataset = coco.load(drawn["train"])
    assert {len(entry.boxes) == 0 for entry in dataset.images} == {True, False}
    assert len({(entry.width, entry.height) for entry in dataset.images}) > 3
    for index in (0, 5):
        scene = scenes.draw(3, "train", index, 96)
        np.testing.assert_array_equal(coco.read_image(dataset.images[index]), scene.image)
        assert (scene.areas <= scene.boxes[:, 2] * scene.boxes[:, 3]).all()


@pytest.mark.parametrize("size", [64, 200])
def test_visible_boxes_hold_their_objects(size):
    for index in range(40):
        scene = scenes.draw(11, "train", index, size)
        height, width = scene.image.shape[:2]
        x, y, box_width, box_height = scene.boxes.T
        assert max(height, width) == size and (scene.areas > 0).all() and (scene.areas <= box_width * box_height).all()
        assert (x >= 0).all() and (y >= 0).all() and (x + box_width <= width).all() and (y + box_height <= height).all()


def test_a_longer_set_begins_like_a_shorter_one(drawn, tmp_path):
    longer = scenes.generate(tmp_path, seed=3, train=22, val=1, size=96)
    assert digest(tmp_path / "images/train/000020.png") == digest(drawn["train"].parent / "images/train/000020.png")
    assert len(coco.load(longer["train"]).images) == 22


def test_an_interrupted_or_damaged_set_is_completed_to_the_same_bytes(drawn, tmp_path, monkeypatch):
    draw, seen = scenes.draw, []

    def stop_at_nine(*key):
        seen.append(key)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return draw(*key)

    monkeypatch.setattr(scenes, "draw", stop_at_nine)
    with pytest.raises(KeyboardInterrupt):
        scenes.generate(tmp_path, seed=3, train=21, val=5, size=96)
    assert not list(tmp_path.glob("*.json")) and len(list(tmp_path.rglob("*.png"))) == 8
    scenes.generate(tmp_path, seed=3, train=21, val=5, size=96)
    assert contents(tmp_path) == contents(drawn["train"].parent)

    (tmp_path / "images/val/000001.png").write_bytes(b"damaged")
    (tmp_path / "images/train/000002.png").unlink()
    scenes.generate(tmp_path, seed=3, train=21, val=5, size=96)
    assert contents(tmp_path) == contents(drawn["train"].parent)

    seen.clear()
    scenes.generate(tmp_path, seed=3, train=21, val=5, size=96)
    assert not seen  # complete: nothing is drawn


def test_another_set_is_left_alone(write):
    path = write()
    path = path.rename(path.with_name("val.json"))
    before = contents(path.parent)
    with pytest.raises(UserError, match=r"val\.json.*another folder"):
        scenes.generate(path.parent, train=1, val=1)
    assert contents(path.parent) == before


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": -1}, {"size": 8}, {"seed": -1}])
def test_sizes_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}.*change"):
        scenes.generate(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", scenes.CLASSES)
def test_shapes_cover_what_geometry_says(name):
    """Pixel coverage against matplotlib's point-in-polygon test in float64 at the same 16 samples a pixel."""
    layer, radius, (c, s, n) = scenes.CLASSES[name][0], 30, (3, 4, 5)
    coverage, x, y = scenes._raster(layer, (40, 50), radius, (c, s, n))
    side = np.arange(len(coverage) * scenes.SAMPLES)
    centres = (side + 0.5) / scenes.SAMPLES
    points = np.stack(np.meshgrid(centres + x, centres + y), -1).reshape(-1, 2)

    def parity(contours) -> np.ndarray:
        turn = np.array([[c, -s], [s, c]]) / n
        outlines = [np.array(contour) @ turn.T * radius / scenes.UNIT + (40, 50) for contour in contours]
        # matplotlib fills a self-crossing outline by winding; none but the hourglass crosses itself: split it in two
        parts = [part for outline in outlines for part in _triangles(outline, name)]
        return sum(Outline(part).contains_points(points) for part in parts) % 2

    expected = parity(layer.contours) & ~parity(layer.cuts) & 1 if layer.cuts else parity(layer.contours)
    per_pixel = expected.reshape(len(coverage), scenes.SAMPLES, len(coverage), scenes.SAMPLES).sum((1, 3))
    assert coverage.max() == scenes.SAMPLES**2
    # corners are rounded to an eighth of a pixel, so only samples at an edge may differ
    assert np.abs(per_pixel - coverage).max() <= scenes.SAMPLES
    assert abs(int(per_pixel.sum()) - int(coverage.sum())) <= 0.02 * coverage.sum()


def _triangles(outline: np.ndarray, name: str) -> list[np.ndarray]:
    if name != "hourglass":
        return [outline]
    middle = outline.mean(axis=0)
    return [np.array([outline[0], outline[1], middle]), np.array([outline[2], outline[3], middle])]
