"""YOLO text: pixels come back exactly, each faulty line is named, and the layouts people use are found."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data import yolo
from lib.data.annotated import Annotation, Picture, _in_pixels, measured, tidy
from lib.errors import UserError


@pytest.fixture
def write(tmp_path):
    """Writes path -> text, and images of 40x30, below the data set's folder."""

    def write(texts: dict[str, str], images=("images/a.png",)) -> Path:
        for name in images:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(cv2.imencode(".png", np.zeros((30, 40, 3), np.uint8))[1].tobytes())
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return write


def boxes(folder: Path) -> list[tuple[str, tuple[float, ...]]]:
    return [(annotation.name, annotation.box) for annotation in measured(yolo.read(folder)).annotations()]


def names(folder: Path) -> dict[str, list[str]]:
    return {split: [picture.name for picture in pictures] for split, pictures in yolo.read(folder).splits.items()}


CLASSES = {"classes.txt": "cat\nwild dog\n"}
GOOD = {**CLASSES, "labels/a.txt": "0 0.5 0.5 1 1\n\n1 0.25 0.5 0.5 0.2\n"}


def test_parts_of_the_sides_become_pixels(write):
    folder = write(GOOD)
    assert boxes(folder) == [("cat", (0, 0, 40, 30)), ("wild dog", (0, 12, 20, 18))]
    assert measured(yolo.read(folder)).faults == ()


def test_an_outline_keeps_its_extent_and_its_points(write):
    (annotation,) = measured(yolo.read(write({**CLASSES, "labels/a.txt": "0 0.1 0.1 0.5 0.2 0.25 0.9"}))).annotations()
    assert annotation.box == (4, 3, 20, 27) and annotation.outline == [[4, 3, 20, 6, 10, 27]]


FAULTS = {  # line: what its message names
    "2 0.5 0.5 1 1": "class '2', not one of 0..1",
    "-1 0.5 0.5 1 1": "class '-1'",
    "cat 0.5 0.5 1 1": "class 'cat'",
    "0 0.5 0.5 1": "has 4 values",
    "0 0.5 0.5 1 1 0.98": "has 6 values",
    "0 20 15 10 10": "divide pixels",
    "0 nan 0.5 1 1": "divide pixels",
    "0 x 0.5 1 1": "divide pixels",
    "0 0.5 0.5 0 1": "zero or negative size",
    "0 0.5 0.5 0.1 -0.1": "zero or negative size",
    "0 1.4 0.5 0.1 0.1": "outside the image of 40x30",
    "0 0.5 0.5 1 1.4": "beyond the image of 40x30",
    "0 0.5 0.5 0.01 0.5": "less than a pixel",
    "1 0.25 0.5 0.5 0.2": "as another of its class has",
}


@pytest.mark.parametrize("content", FAULTS)
def test_a_faulty_line_is_named_and_the_others_stay(write, content):
    folder = write({**GOOD, "labels/a.txt": "1 0.25 0.5 0.5 0.2\n" + content + "\n"})
    collection = measured(yolo.read(folder))
    (fault,) = collection.faults
    assert FAULTS[content] in fault.message and "a.txt: line 2" in fault.message and "; " in fault.message
    assert len(list(collection.annotations())) == 2 - fault.loses


def test_files_that_lack_each_other(write):
    folder = write({**GOOD, "labels/gone.txt": "0 0.5 0.5 1 1"}, ["images/a.png", "images/b c.png"])
    found = {fault.message: fault.loses for fault in yolo.read(folder).faults}
    assert len(found) == 2
    assert any("gone.txt: annotates no image" in message and loses for message, loses in found.items())
    assert any("b c.txt: is not there" in message and not loses for message, loses in found.items())
    assert names(folder) == {"": ["a.png", "b c.png"]}


def only(folder: Path) -> str:
    """The one fault of a set, which loses objects."""
    (fault,) = yolo.read(folder).faults
    assert fault.loses and "; " in fault.message
    return fault.message


def test_objects_never_become_background_in_silence(write):
    box = "0 0.5 0.5 1 1"
    both = write({**CLASSES, "labels/a.txt": box, "images/a.txt": "1 0.5 0.5 1 1"})
    assert "as " in only(both) and "does in another way" in only(both)
    (both / "images/a.txt").write_text(box)
    assert yolo.read(both).faults == () and len(boxes(both)) == 1
    shared = write({}, ["images/a.png", "images/a.jpg"])
    assert "annotates a.jpg and a.png" in only(shared)
    (shared / "images/a.jpg").unlink()
    for text in shared.rglob("a.txt"):
        text.unlink()
    assert "none of the 1 images" in only(shared) and names(shared) == {}


def test_text_files_that_no_image_has_are_named_wherever_they_lie(write):
    folder = write(
        {**GOOD, "images/b.txt": "0 0.5 0.5 1 1", "images/.ipynb_checkpoints/a-checkpoint.txt": "x", "notes.txt": "x"}
    )
    assert "images/b.txt: annotates no image" in only(folder)


def test_labels_of_another_encoding_are_one_line(write):
    folder = write(GOOD)
    (folder / "labels/a.txt").write_bytes(b"0 0.5\xff")
    assert "is not UTF-8" in yolo.read(folder).faults[0].message


LAYOUTS = {  # name: (texts, images, expected names)
    "side by side": ({**CLASSES, "a.txt": "0 0.5 0.5 1 1", "README.txt": "hello"}, ["a.png"], {"": ["a.png"]}),
    "flat images, labels apart": ({**CLASSES, "labels/a.txt": "0 0.5 0.5 1 1"}, ["a.png"], {"": ["a.png"]}),
    "split folders": (
        {**CLASSES, "labels/train/a.txt": "0 0.5 0.5 1 1", "labels/val/x/b.txt": ""},
        ["images/train/a.png", "images/val/x/b.png"],
        {"train": ["a.png"], "val": ["x/b.png"]},
    ),
    "data.yaml": (
        {
            "data.yaml": "path: ../datasets/far\ntrain: images/t\nval: images/v\nnames: {0: cat}",
            "labels/t/a.txt": "0 0.5 0.5 1 1",
            "labels/v/b.txt": "",
        },
        ["images/t/a.png", "images/v/b.png"],
        {"train": ["a.png"], "val": ["b.png"]},
    ),
    "folders above": (
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\nnames: [cat]",
            "train/labels/a.txt": "0 0.5 0.5 1 1",
            "valid/labels/b.txt": "",
            "README.roboflow.txt": "x",
        },
        ["train/images/a.png", "valid/images/b.png"],
        {"train": ["a.png"], "val": ["b.png"]},
    ),
    "partly beside": (
        {**CLASSES, "labels/a.txt": "", "images/b.txt": "0 0.5 0.5 1 1"},
        ["images/a.png", "images/b.png"],
        {"": ["a.png", "b.png"]},
    ),
    "in capitals": ({**CLASSES, "labels/a.TXT": "0 0.5 0.5 1 1"}, ["images/a.PNG"], {"": ["a.PNG"]}),
    "class list among the labels": (
        {"labels/classes.txt": "cat\n", "labels/a.txt": "0 0.5 0.5 1 1"},
        ["images/a.png"],
        {"": ["a.png"]},
    ),
    "class lists in each split": (
        {
            "data.yaml": "train: images/train\nval: images/val\nnames: [cat]",
            "labels/train/classes.txt": "cat",
            "labels/val/classes.txt": "cat\n\n",
            "labels/train/a.txt": "0 0.5 0.5 1 1",
            "labels/val/b.txt": "",
        },
        ["images/train/a.png", "images/val/b.png"],
        {"train": ["a.png"], "val": ["b.png"]},
    ),
    "what notebooks and thumbnails leave": (
        {**CLASSES, "labels/a.txt": "0 0.5 0.5 1 1", "labels/.ipynb_checkpoints/a-checkpoint.txt": "0 0.5 0.5 1 1"},
        ["images/a.png", "images/.thumbnails/a.png", "images/@eaDir/a.png", "__MACOSX/images/a.png", "images/._a.png"],
        {"": ["a.png"]},
    ),
    "dataset.yaml of another machine, with lists": (
        {
            "dataset.yaml": "path: /home/me/set\ntrain: [images/one, images/two]\nval: /home/me/set/images/v\n"
            "test: images/test\nnames: [cat]",
            "labels/one/a.txt": "0 0.5 0.5 1 1",
            "labels/two/a.txt": "",
            "labels/v/b.txt": "",
            "labels/test/c.txt": "",
        },
        ["images/one/a.png", "images/two/a.png", "images/v/b.png", "images/test/c.png"],
        {"train": ["one/a.png", "two/a.png"], "val": ["b.png"], "test": ["c.png"]},
    ),
    "train and valid folders alone": (
        {**CLASSES, "train/labels/a.txt": "0 0.5 0.5 1 1", "valid/labels/b.txt": ""},
        ["train/images/a.png", "valid/images/b.png"],
        {"train": ["a.png"], "val": ["b.png"]},
    ),
    "one set twice": (
        {"data.yaml": "train: images\nval: images\nnames: [cat]", "labels/a.txt": "0 0.5 0.5 1 1"},
        ["images/a.png"],
        {"": ["a.png"]},
    ),
    "lists of images": (
        {
            "data.yaml": "train: train.txt\nval: val.txt\nnames: [cat]",
            "labels/a.txt": "0 0.5 0.5 1 1",
            "labels/b.txt": "",
            "train.txt": "./images/a.png\n",
            "val.txt": "images/b.png\n",
        },
        ["images/a.png", "images/b.png"],
        {"train": ["a.png"], "val": ["b.png"]},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(write, name):
    texts, images, expected = LAYOUTS[name]
    folder = write(texts, images)
    assert yolo.is_yolo(folder) and names(folder) == expected
    assert boxes(folder) == [("cat", (0, 0, 40, 30))] and yolo.read(folder).faults == ()


def test_a_test_split_that_is_not_there_is_passed_over_and_said(write):
    settings = "train: images\nval: images\ntest: images/test\nnames: [cat]"
    (fault,) = yolo.read(write({"data.yaml": settings, "labels/a.txt": ""})).faults
    assert "test is 'images/test', which is not inside" in fault.message and not fault.loses


def test_images_and_lines_outside_the_splits_are_named(write):
    folder = write(
        {
            "data.yaml": "train: train.txt\nval: images/val\nnames: [cat]",
            "labels/a.txt": "",
            "labels/c.txt": "",
            "labels/val/b.txt": "",
            "train.txt": "images/a.png\n../../etc/passwd\n",
        },
        ["images/a.png", "images/val/b.png", "images/c.png"],
    )
    found = " ".join(fault.message for fault in yolo.read(folder).faults if fault.loses)
    assert "line 2 lists '../../etc/passwd'" in found and "c.png: is in no split" in found


REFUSED = {
    "no names": ({"labels/a.txt": ""}, "has no class names"),
    "a name twice": ({"classes.txt": "cat\ncat\n"}, "class 1 has name 'cat'"),
    "an empty name": ({"classes.txt": "cat\n\ndog\n"}, "class 1 has name ''"),
    "two lists": ({"classes.txt": "cat\n", "data.yaml": "names: [dog]\ntrain: images\n"}, "not those of data.yaml"),
    "a gap": ({"data.yaml": "names: {0: cat, 2: dog}"}, "no list or table"),
    "a truth": ({"data.yaml": "names: [yes, no]"}, "in quotes"),
    "no table": ({"data.yaml": "cat"}, "has no entries"),
    "no YAML": ({"data.yaml": "names: [cat"}, "no valid YAML"),
    "code": ({"data.yaml": "names: !!python/object/apply:os.system ['true']"}, "no valid YAML"),
    "a bomb": ({"data.yaml": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nnames: [*c, *c]"}, "no list or table"),
    "a place outside": ({"data.yaml": "names: [cat]\ntrain: /etc\n"}, "not inside"),
    "a place that is nowhere": ({"data.yaml": "names: [cat]\ntrain: images/gone\n"}, "not inside"),
    "a table of places": ({"data.yaml": "names: [cat]\ntrain: [{a: images}]\n"}, "give a folder"),
    "two lists apart": ({"classes.txt": "cat\n", "labels/classes.txt": "dog\n"}, "not those of classes.txt"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_can_not_be_right_are_one_line(write, name):
    texts, named = REFUSED[name]
    with pytest.raises(UserError, match=named) as caught:
        yolo.read(write(texts))
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


sides = st.integers(1, 20_000)
corners = st.decimals(-1, 20_000, places=6).map(float)


@given(sides, sides, corners, corners, st.decimals("0.01", 20_000, places=6).map(float))
def test_pixels_survive_the_way_through_text(width, height, x, y, extent):
    annotation = Annotation("cat", (tidy(x), tidy(y), tidy(x + extent), tidy(y + extent)))
    fields = yolo.line(annotation, ("cat",), (width, height)).split()
    assert len(fields) == 5 and "e" not in "".join(fields)
    box = yolo._box([float(field) for field in fields[1:]])[0]
    assert _in_pixels(Annotation("cat", box), (width, height)) == annotation


def test_what_is_written_is_read_again(tmp_path):
    classes = ("yes", "浣熊", "0")
    annotation = Annotation("浣熊", (1, 2, 3.5, 30))
    for split in ("train", "val"):
        file = tmp_path / "images" / split / "deep" / "a b.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(cv2.imencode(".png", np.zeros((30, 40, 3), np.uint8))[1].tobytes())
    pictures = (Picture("deep/a b.png", tmp_path, tmp_path, (40, 30), (annotation,)),)
    yolo.write(tmp_path, classes, {"train": pictures, "val": pictures})
    collection = measured(yolo.read(tmp_path))
    assert collection.classes == classes and collection.faults == ()
    assert {split: [picture.annotations for picture in found] for split, found in collection.splits.items()} == {
        "train": [(annotation,)],
        "val": [(annotation,)],
    }
