"""Conversion: there and back gives the same numbers, what is lost is said, and a set appears whole or not at all."""

import json
import os
import shutil
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_images import HEIGHT, WIDTH, jpeg, pattern

from lib.data import coco, formats, scenes
from lib.data.annotated import Annotation, Picture, measured, tidy
from lib.errors import UserError

WAYS = list(permutations(formats.FORMATS, 2))


@pytest.fixture
def make(tmp_path):
    """Writes a data set of the given pictures' annotations in a format -> its folder."""

    def make(
        kind: str, splits: dict[str, dict[str, list[Annotation]]], classes=("cat", "wild dog"), name="source"
    ) -> Path:
        folder = tmp_path / name
        if folder.exists():
            shutil.rmtree(folder)
        made = {}
        for split, annotated in splits.items():
            place = folder / formats.IMAGES[kind] / (split if kind == "yolo" else "")
            for file in annotated:
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).write_bytes(cv2.imencode(Path(file).suffix, pattern())[1].tobytes())
            made[split] = tuple(
                Picture(file, place / file, folder, (WIDTH, HEIGHT), tuple(found)) for file, found in annotated.items()
            )
        formats.FORMATS[kind].write(folder, classes, made)
        return folder

    return make


PLAIN = {"a.png": [Annotation("wild dog", (1, 2, 30, 20)), Annotation("cat", (0, 0, 60, 40))], "sub/b c.jpg": []}
FLAGGED = {
    "a.png": [
        Annotation("cat", (1, 2, 30, 20), difficult=True),
        Annotation("cat", (5, 5, 9, 9), truncated=True, occluded=True, pose="Left"),
        Annotation("cat", (3, 3, 9, 9), crowd=True),
        Annotation("wild dog", (4, 4.5, 9, 9), area=12.5, outline=[[4, 4.5, 9, 9, 4, 9]]),
    ]
}


def contents(folder: Path, kind: str) -> tuple:
    """What a data set says, without where it lies."""
    collection = measured(formats.read(folder, kind=kind))
    assert collection.faults == ()
    return collection.classes, {
        split: {picture.name: (picture.annotations, picture.file.read_bytes()) for picture in pictures}
        for split, pictures in collection.splits.items()
    }


@pytest.mark.parametrize(("kind", "to"), WAYS)
@pytest.mark.parametrize(
    "splits", [{"": PLAIN}, {"train": PLAIN, "val": {"c.png": PLAIN["a.png"]}}], ids=["one", "splits"]
)
def test_there_and_back_is_the_same(make, tmp_path, kind, to, splits):
    folder = make(kind, splits)
    done = formats.convert(folder, tmp_path / "there", to)
    formats.convert(tmp_path / "there", tmp_path / "back", kind)
    assert formats.detect(tmp_path / "there") == to and formats.verify(tmp_path / "there") == []
    assert contents(tmp_path / "back", kind) == contents(folder, kind) == contents(tmp_path / "there", to)
    assert done.faults == () and done.counts == {
        split: (len(files), sum(map(len, files.values()))) for split, files in splits.items()
    }
    assert all(line.startswith(("pixels", "image ids")) for line in done.lost)


def test_train_and_val_are_trained_on_and_test_is_evaluated_on_where_asked(make, tmp_path):
    folder = make(
        "voc", {"train": PLAIN, "val": {"a.png": PLAIN["a.png"], "c.png": []}, "test": {"d.png": PLAIN["a.png"]}}
    )
    done = formats.convert(folder, tmp_path / "there", "coco", trainval=True)
    assert done.counts == {"train": (3, 2), "val": (1, 2)}
    assert sorted(contents(tmp_path / "there", "coco")[1]["train"]) == ["a.png", "c.png", "sub/b c.jpg"]
    with pytest.raises(UserError, match="only train, val; leave --trainval out"):
        formats.convert(tmp_path / "there", tmp_path / "again", "voc", trainval=True)
    assert not (tmp_path / "again").exists()


decimals = st.decimals(0, 50, places=6).map(float)
extents = st.decimals("1.5", 9, places=6).map(float)
some_boxes = st.lists(
    st.tuples(decimals, st.decimals(0, 30, places=6).map(float), extents, extents), max_size=4, unique=True
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_boxes, st.permutations(list(formats.FORMATS)))
def test_a_round_through_all_formats_gives_the_same_coordinates(make, tmp_path, found, order):
    annotations = [Annotation("cat", tuple(map(tidy, (x, y, x + w, y + h)))) for x, y, w, h in found]
    at = make(order[0], {"": {"a.png": annotations}})
    expected = contents(at, order[0])
    for number, to in enumerate([*order[1:], order[0]]):
        shutil.rmtree(tmp_path / f"step{number}", ignore_errors=True)
        formats.convert(at, tmp_path / f"step{number}", to)
        at = tmp_path / f"step{number}"
    assert contents(at, order[0]) == expected


def test_coordinates_of_voc_return_from_coco_as_they_were(make, tmp_path):
    folder = make("voc", {"": PLAIN})
    formats.convert(folder, tmp_path / "coco", "coco")
    formats.convert(tmp_path / "coco", tmp_path / "voc", "voc")
    for file in folder.rglob("*.xml"):
        assert file.read_bytes() == (tmp_path / "voc" / file.relative_to(folder)).read_bytes()
    first = json.loads((tmp_path / "coco/instances.json").read_text())["annotations"][0]
    assert "<xmin>2</xmin>" in (folder / "Annotations/a.xml").read_text() and first["bbox"] == [1, 2, 29, 18]


def test_flags_that_coco_has_no_place_for_are_kept_as_keys(make, tmp_path):
    folder = make("voc", {"": FLAGGED})
    formats.convert(folder, tmp_path / "coco", "coco")
    assert contents(tmp_path / "coco", "coco")[1] == contents(folder, "voc")[1]
    (entry,) = coco.load(tmp_path / "coco/instances.json").images
    assert len(entry.crowd) == 2 and len(entry.boxes) == 2  # difficult ones are no targets


LOST = {
    ("coco", "voc"): [
        "crowd: written as difficult: 1 boxes",
        "area: COCO's differs from width x height: 1 boxes",
        "segmentation: only its box stays: 1 boxes",
        "decimals: kept",
        "edges from 0: xmin = x + 1",
        "image 'license': 1 entries",
        "'info': 1 entries",
        "category ids",
        "image ids",
    ],
    ("coco", "yolo"): [
        "crowd: left out, it is no single object: 1",
        "difficult: left out (--keep-difficult writes them): 1",
        "truncated: lost: 1",
        "occluded: lost: 1",
        "pose: lost: 1",
        "area",
        "segmentation",
        "image 'license'",
        "'info'",
        "category ids",
        "image ids",
    ],
    ("voc", "yolo"): [
        "difficult: left out (--keep-difficult writes them): 2",
        "truncated: lost: 1",
        "occluded",
        "pose: lost: 1",
        "x1 = xmin - 1",
    ],
    ("voc", "coco"): ["pixels: VOC's boxes count pixels from 1"],
}


@pytest.mark.parametrize(("kind", "to"), LOST)
def test_what_is_lost_is_said_with_how_often(make, tmp_path, kind, to):
    folder = make(kind, {"": FLAGGED})
    if kind == "coco":
        path = folder / "instances.json"
        content = json.loads(path.read_text())
        content["info"] = {}
        content["images"][0] |= {"license": 1, "id": 77}
        for entry in content["annotations"]:
            entry |= {"image_id": 77, "category_id": entry["category_id"] + 10}
        for entry in content["categories"]:
            entry["id"] += 10
        path.write_text(json.dumps(content))
    lost = formats.convert(folder, tmp_path / "target", to).lost
    assert len(lost) == len(LOST[kind, to]), lost
    assert all(any(part in line for line in lost) for part in LOST[kind, to]), lost


def test_difficult_boxes_can_be_kept_in_yolo(make, tmp_path):
    done = formats.convert(make("voc", {"": FLAGGED}), tmp_path / "target", "yolo", keep_difficult=True)
    assert done.counts == {"": (1, 4)} and "difficult: written as ordinary: 2 boxes" in done.lost


def test_one_name_in_two_splits_stays_two_files(make, tmp_path):
    folder = make("yolo", {"train": {"a.png": PLAIN["a.png"]}, "val": {"a.png": PLAIN["a.png"][:1]}})
    for to in ("voc", "coco"):
        formats.convert(folder, tmp_path / to, to)
        assert contents(tmp_path / to, to)[1].keys() == {"train", "val"}
        assert {picture.name for picture in formats.read(tmp_path / to).pictures()} == {"train/a.png", "val/a.png"}


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_names_that_differ_in_the_suffix_alone_are_refused(make, tmp_path, to):
    with pytest.raises(UserError, match="a.png and a.jpg would both be 'a'"):
        formats.convert(make("coco", {"": {"a.png": [], "a.jpg": PLAIN["a.png"]}}), tmp_path / "target", to)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_faults_that_lose_something_stop_the_conversion_or_are_named(make, tmp_path):
    folder = make("yolo", {"": PLAIN})
    (folder / "labels/a.txt").write_text("0 0.5 0.5 1 1\n0 9 9 9 9\n")
    (folder / "images/sub/b c.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="--skip-faults"):
        formats.convert(folder, tmp_path / "target", "coco")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    done = formats.convert(folder, tmp_path / "target", "coco", skip_faults=True)
    assert done.counts == {"": (1, 1)} and len(done.faults) == 2
    assert any("line 2" in fault for fault in done.faults) and any("b c.jpg" in fault for fault in done.faults)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(make, tmp_path, monkeypatch, stop):
    folder = make("voc", {"": {f"{name}.png": [Annotation("cat", (0, 0, 9, 9))] for name in "abcd"}})
    copy, count = shutil.copyfile, []

    def third_fails(*paths):
        count.append(paths)
        if len(count) == 3:
            raise stop
        return copy(*paths)

    monkeypatch.setattr(shutil, "copyfile", third_fails)
    with pytest.raises(UserError if isinstance(stop, OSError) else stop):
        formats.convert(folder, tmp_path / "target", "coco")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_targets(make, tmp_path):
    folder = make("voc", {"": PLAIN})
    (tmp_path / "empty").mkdir()
    formats.convert(folder, tmp_path / "empty", "coco")
    before = sorted(tmp_path.rglob("*"))
    for target in (tmp_path / "empty", folder / "Annotations/a.xml"):
        with pytest.raises(UserError, match="is there already"):
            formats.convert(folder, target, "coco")
    with pytest.raises(UserError, match="is voc already"):
        formats.convert(folder, tmp_path / "new", "voc")
    with pytest.raises(UserError, match="choose another folder"):
        formats.convert(folder, folder / "Annotations/a.xml/inner", "coco")
    assert sorted(tmp_path.rglob("*")) == before


def test_linked_images_take_no_space(make, tmp_path):
    folder = make("voc", {"": PLAIN})
    formats.convert(folder, tmp_path / "linked", "coco", link=True)
    formats.convert(folder, tmp_path / "copied", "coco")
    source = folder / "JPEGImages/a.png"
    assert os.path.samefile(source, tmp_path / "linked/images/a.png")
    assert not os.path.samefile(source, tmp_path / "copied/images/a.png")


def test_detection(make, tmp_path):
    for kind in formats.FORMATS:
        assert formats.detect(make(kind, {"train": PLAIN, "val": PLAIN}, name=kind)) == kind
    shutil.copytree(tmp_path / "voc", tmp_path / "yolo", dirs_exist_ok=True)
    with pytest.raises(UserError, match="voc or yolo; say which with --format"):
        formats.detect(tmp_path / "yolo")
    (tmp_path / "bare").mkdir()
    for nothing, named in ((tmp_path / "bare", "holds no annotations"), (tmp_path / "gone", "is not there")):
        with pytest.raises(UserError, match=named):
            formats.detect(nothing)
        assert named in formats.verify(nothing)[0]


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_a_set_without_anything_to_convert_is_one_line(make, tmp_path, kind):
    folder = make(kind, {"": {"a.png": []}})
    (folder / formats.IMAGES[kind] / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="no sound image"):
        formats.convert(folder, tmp_path / "target", "coco", skip_faults=True)


def test_scenes_and_their_splits(tmp_path):
    scenes.generate(tmp_path / "scenes", seed=3, train=4, val=2, size=64)
    for to in ("voc", "yolo"):
        formats.convert(tmp_path / "scenes", tmp_path / to, to)
        formats.convert(tmp_path / to, tmp_path / f"{to}-coco", "coco")
        for split in ("train", "val"):
            one, other = (coco.load(tmp_path / name / f"{split}.json") for name in ("scenes", f"{to}-coco"))
            assert one.classes == other.classes and len(one.images) == len(other.images)
            for entry, again in zip(one.images, other.images):
                np.testing.assert_array_equal(entry.boxes, again.boxes)
                np.testing.assert_array_equal(coco.read_image(entry), coco.read_image(again))


def test_cocos_own_empty_boxes_do_not_stop_training_but_are_named(make, tmp_path):
    folder = make("coco", {"": PLAIN})
    path = folder / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"bbox": [9.98, 18.56, 15.52, 0.0], "area": 0.0}  # as train2017's 2206849
    path.write_text(json.dumps(content))
    assert sum(len(entry.boxes) for entry in coco.load(path).images) == 1
    assert "skipped as published" in formats.verify(path)[0]
    with pytest.raises(UserError, match="has no extent"):
        formats.convert(folder, tmp_path / "target", "voc")
    content["annotations"][0]["area"] = 5
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="zero or negative size"):
        coco.load(path)


NAMES = (
    "2024_05",
    "a #2",
    "1e3",
    "data[1]",
    "{v1}",
    "US$",
    "螺栓",
    "图　片",
    "می‌شود",
    "<b>",
    "it's",
    'a"b&',
    "-x",
    "~",
    "null",
    " a ",
    "*?",
)


@pytest.mark.parametrize("name", [*NAMES, "n" * 100])
def test_a_name_is_only_a_name(make, tmp_path, name):
    """Of the folder, of an image, of a class: whatever YAML, XML, a pattern or a shell would take it for."""
    folder = make("coco", {"": {f"{name}.png": [Annotation(name.strip(), (0, 0, 9, 9))]}}, (name.strip(),), name)
    for to, kind in (("yolo", "coco"), ("voc", "coco")):
        formats.convert(folder, tmp_path / to / name, to)
        assert formats.verify(tmp_path / to / name) == []
        formats.convert(tmp_path / to / name, tmp_path / f"{to} back" / name, kind)
        assert contents(tmp_path / f"{to} back" / name, kind) == contents(folder, kind)


@pytest.mark.parametrize("name", [os.fsdecode(b"\xc2\xdd\xcb\xa8"), "red\x1b[31m"], ids=["GBK", "control"])
def test_a_file_whose_name_is_no_text_is_a_fault_in_one_line(make, tmp_path, name):
    """It was found sound, and ended the conversion to COCO with a traceback."""
    folder = make("yolo", {"": {f"{name}.png": [Annotation("cat", (0, 0, 9, 9))], "a.png": []}})
    (fault,) = formats.verify(folder)
    assert "rename it" in fault and fault.isprintable()
    with pytest.raises(UserError, match="rename it"):
        formats.convert(folder, tmp_path / "target", "coco")
    assert formats.convert(folder, tmp_path / "target", "coco", skip_faults=True).counts == {"": (1, 0)}


def test_a_name_too_long_for_the_disk_is_a_fault(make, tmp_path):
    """It ended a conversion with a traceback."""
    folder = make("coco", {"": PLAIN})
    content = json.loads((folder / "instances.json").read_text())
    content["images"][0]["file_name"] = "n" * 5000
    (folder / "instances.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is missing; restore the file"):
        formats.convert(folder, tmp_path / "target", "voc")


def test_boxes_on_stored_pixels_are_reported_and_kept_from_yolo(make, tmp_path):
    folder = make("voc", {"": PLAIN})
    (folder / "JPEGImages/sub/b c.jpg").write_bytes(jpeg(6))
    (fault,) = formats.verify(folder)
    assert "EXIF orientation is left out" in fault and "b c.jpg" in fault
    formats.convert(folder, tmp_path / "coco", "coco")
    assert formats.verify(tmp_path / "coco") == [
        fault.replace(str(folder / "JPEGImages"), str(tmp_path / "coco/images"))
    ]
    with pytest.raises(UserError, match="YOLO's readers turn it"):
        formats.convert(folder, tmp_path / "yolo", "yolo")
    assert formats.convert(folder, tmp_path / "yolo", "yolo", skip_faults=True).counts == {"": (1, 2)}


def test_verifying_names_every_image_at_fault_in_order_on_any_number_of_threads(make):
    folder = make("voc", {"": {f"{number:02}.png": [] for number in range(20)}})
    for number in (3, 7, 19):
        (folder / f"JPEGImages/{number:02}.png").write_bytes(b"no image")
    found = formats.verify(folder, workers=1)
    assert [fault.split(".png")[0][-2:] for fault in found] == ["03", "07", "19"] and formats.verify(
        folder, workers=4
    ) == found


# --- real data


def test_real_raccoons_go_all_six_ways(shared, tmp_path):
    source = shared / "real/voc_raccoon_40"
    counts = {"": (40, sum(path.read_text().count("<object>") for path in (source / "Annotations").glob("*.xml")))}
    sets = {"voc": source}
    for kind, to in [
        ("voc", "coco"),
        ("voc", "yolo"),
        ("coco", "voc"),
        ("coco", "yolo"),
        ("yolo", "voc"),
        ("yolo", "coco"),
    ]:
        target = tmp_path / f"{kind}-{to}"
        done = formats.convert(sets[kind], target, to, link=True)
        assert done.counts == counts and done.faults == () and formats.verify(target) == []
        sets.setdefault(to, target)
    for again in ("coco-voc", "yolo-voc"):
        for path in (source / "Annotations").glob("*.xml"):
            texts = [file.read_text() for file in (path, tmp_path / again / "Annotations" / path.name)]
            one, other = (
                [line.strip() for line in text.splitlines() if "<x" in line or "<y" in line] for text in texts
            )
            assert one == other


def test_real_coco_returns_from_voc(shared, tmp_path):
    formats.convert(shared / "real/coco_val_64", tmp_path / "voc", "voc", link=True)
    formats.convert(tmp_path / "voc", tmp_path / "coco", "coco", link=True)
    one, other = coco.load(shared / "real/coco_val_64/instances.json"), coco.load(tmp_path / "coco/instances.json")
    assert one.classes == other.classes and [entry.id for entry in one.images] == [entry.id for entry in other.images]
    for entry, again in zip(one.images, other.images):
        np.testing.assert_allclose(entry.boxes, again.boxes, rtol=0, atol=1e-4)  # float32 of pixels up to 640
        np.testing.assert_array_equal(entry.labels, again.labels)
        assert len(entry.crowd) == len(again.crowd)
