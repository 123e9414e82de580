"""python -m lib data: every kind explains itself by example, and does what it says with one line for a mistake."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.__main__ import main
from lib.data import coco, formats
from lib.data.annotated import Annotation, Picture
from lib.show import drawing, fonts

ROOT = Path(__file__).resolve().parents[1]
KINDS = ["scenes", "fetch", "convert", "subset", "verify", "show"]


def run(capsys, *arguments) -> str:
    """What a successful call prints."""
    assert main(["data", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def fails(capsys, *arguments) -> tuple[str, str]:
    """(stdout, the one line on stderr) of a call that ends with exit code 1."""
    assert main(["data", *map(str, arguments)]) == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    return shown.out, line


@pytest.fixture
def scenes(tmp_path, capsys) -> Path:
    run(capsys, "scenes", tmp_path / "scenes", "--train", 6, "--val", 3, "--size", 64)
    return tmp_path / "scenes"


@pytest.mark.parametrize("kind", KINDS)
def test_help_explains_by_example(capsys, kind):
    with pytest.raises(SystemExit) as ended:
        main(["data", kind, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.count(f"python -m lib data {kind} ") >= 2
    assert all(len(line) < 120 for line in shown.splitlines())


def test_every_kind_is_in_the_help_of_data(capsys):
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    shown = capsys.readouterr().out
    assert all(f"python -m lib data {kind} " in shown for kind in KINDS)


@pytest.mark.parametrize(
    "arguments", [["convert", "a", "b"], ["convert", "a", "b", "--to", "kitti"], ["fetch", "mnist", "a"]]
)
def test_a_wrong_command_line_is_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["data", *arguments])
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


def test_convert_says_what_became_of_it(capsys, scenes, tmp_path):
    shown = run(capsys, "convert", scenes, tmp_path / "yolo", "--to", "yolo")
    assert f"{tmp_path / 'yolo'}: train: 6 images" in shown and "not the same: area" in shown
    assert "no fault" in run(capsys, "verify", tmp_path / "yolo")
    (tmp_path / "yolo/images/train").joinpath("train/000002.png").write_bytes(b"no image")
    assert "--skip-faults" in fails(capsys, "convert", tmp_path / "yolo", tmp_path / "voc", "--to", "voc")[1]
    assert not (tmp_path / "voc").exists()
    shown = run(
        capsys, "convert", tmp_path / "yolo", tmp_path / "voc", "--to", "voc", "--skip-faults", "--link", "--workers", 1
    )
    assert "fault: " in shown and "000002.png" in shown and "train: 5 images" in shown


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_verify_lists_each_fault_in_each_format(capsys, scenes, tmp_path, kind):
    folder = scenes if kind == "coco" else tmp_path / kind
    if kind != "coco":
        run(capsys, "convert", scenes, folder, "--to", kind)
    files = sorted(folder.rglob("*.png"))[:2]
    for file in files:
        file.write_bytes(b"no image")
    out, line = fails(capsys, "verify", folder)
    assert all(str(file) in row for file, row in zip(files, out.splitlines()[1:])) and len(out.splitlines()) == 3
    assert "2 faults" in line


def test_verify_says_what_a_set_is_and_a_name_commands_no_terminal(capsys, scenes, tmp_path):
    run(capsys, "convert", scenes, tmp_path / "yolo", "--to", "yolo")
    shown = run(capsys, "verify", tmp_path / "yolo")
    assert re.search(r"yolo: yolo; train: 6 images, \d+ objects; val: 3 images, \d+ objects; 10 classes \(", shown)
    (tmp_path / "yolo/images/train/red\x1b[31m.png").write_bytes(b"")
    out, _ = fails(capsys, "verify", tmp_path / "yolo")
    assert "\x1b" not in out and "red\\x1b[31m" in out


def test_verify_of_nothing_and_of_an_unclear_folder(capsys, scenes, tmp_path):
    assert "is not there" in fails(capsys, "verify", tmp_path / "gone")[0]
    (scenes / "labels").mkdir()
    assert "coco or yolo" in fails(capsys, "verify", scenes)[0]
    assert "no fault" in run(capsys, "verify", scenes, "--format", "coco")


def test_subset_of_converted_data_is_a_training_set(capsys, scenes, tmp_path):
    run(capsys, "convert", scenes, tmp_path / "voc", "--to", "voc")
    run(capsys, "convert", tmp_path / "voc", tmp_path / "coco", "--to", "coco")
    shown = run(
        capsys, "subset", tmp_path / "coco/train.json", tmp_path / "mini", "--train", 2, "--val", 1, "--seed", 1
    )
    assert str(tmp_path / "mini/train.json") in shown and len(coco.load(tmp_path / "mini/train.json").images) == 2
    assert "no fault" in run(capsys, "verify", tmp_path / "mini")


def test_fetch_from_a_folder_without_archives_is_one_line(capsys, tmp_path):
    _, line = fails(capsys, "fetch", "voc2007", tmp_path / "voc", "--from", tmp_path, "--parts", "test")
    assert "VOCtest_06-Nov-2007.tar: is not there" in line and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file/new", "/proc/nowhere/new"])
@pytest.mark.parametrize("kind", ["scenes", "convert", "subset", "fetch", "show"])
def test_where_nothing_can_be_written_is_one_line(capsys, scenes, tmp_path, kind, place):
    (tmp_path / "file").touch()
    options = {
        "scenes": [tmp_path / place, "--train", 1, "--val", 1],
        "convert": [scenes, tmp_path / place, "--to", "voc"],
        "subset": [scenes / "train.json", tmp_path / place, "--train", 1, "--val", 1],
        "fetch": ["voc2007", tmp_path / place],
        "show": [scenes, tmp_path / place],
    }
    said = fails(capsys, kind, *options[kind])[1]
    assert re.search(r"can't be written \(N.*; choose another folder|Not a directory: move away the file", said), said


# --- show


def test_show_writes_a_sheet_or_a_picture_an_image(capsys, scenes, tmp_path):
    assert "4 of 6 images" in run(capsys, "show", scenes, tmp_path / "sheet.png", "--count", 4, "--split", "train")
    height, width, _ = cv2.imread(str(tmp_path / "sheet.png")).shape
    assert width == 2 * (drawing.TILE + drawing.INSET) + drawing.INSET and height > width, "four tiles with their names"
    assert "2 of 9 images" in run(capsys, "show", scenes, tmp_path / "boxes", "--count", 2)
    assert len(list((tmp_path / "boxes").rglob("*.png"))) == 2
    assert (
        "has no split 'test'; it has train, val"
        in fails(capsys, "show", scenes, tmp_path / "x.png", "--split", "test")[1]
    )
    blocked = fails(capsys, "show", scenes, scenes / "val.json" / "sheet.png")[1]
    assert "can't be written" in blocked


def test_show_names_what_it_can_not_show(capsys, scenes, tmp_path):
    name = json.loads((scenes / "val.json").read_text())["images"][0]["file_name"]
    (scenes / "images" / name).write_bytes(b"no image")
    assert (
        "fault: " in (shown := run(capsys, "show", scenes / "val.json", tmp_path / "sheet.png")) and "2 of 3" in shown
    )
    for file in scenes.rglob("*.png"):
        file.write_bytes(b"no image")
    assert "no sound image" in fails(capsys, "show", scenes, tmp_path / "none.png")[1]
    assert not (tmp_path / "none.png").exists()


def test_boxes_are_drawn_on_the_pixels_they_hold(tmp_path):
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.full((200, 300, 3), 128, np.uint8))[1].tobytes())
    picture = Picture("a.png", tmp_path / "a.png", tmp_path, (300, 200), (Annotation("cat", (100, 50, 201, 151)),))
    image = drawing.Annotated(("dog", "cat"), [picture]).drawn(picture)
    colour = np.array(drawing.colour_of(1))
    # the first and the last row in it
    assert (image[50:151, 100] == colour).all() and (image[150, 100:201] == colour).all()
    assert (image[60:140, 110:190] == 128).all() and (image[160:] == 128).all()
    assert drawing.Annotated(("dog", "cat"), [picture]).drawn(picture, 150).shape == (100, 150, 3)
    endless = Picture("a.png", picture.file, tmp_path, (300, 200), (Annotation("cat", (9, 9, 2.0**40, 1e300)),))
    assert (drawing.Annotated(("dog", "cat"), [endless]).drawn(endless)[20:190, 9] == colour).all()


def test_flags_are_said_and_classes_of_another_script_drawn_or_numbered(capsys, scenes, tmp_path, monkeypatch):
    path = scenes / "val.json"
    content = json.loads(path.read_text())
    content["categories"][3]["name"] = "浣熊"
    for entry in content["annotations"]:
        entry |= {"category_id": 4, "iscrowd": 1, "difficult": 1}
    path.write_text(json.dumps(content))
    monkeypatch.setattr(fonts, "chinese", lambda: ())
    shown = run(capsys, "show", path, tmp_path / "sheet.png")
    assert "#3 is 浣熊" in shown and "note: no font here can draw 浣熊" in shown
    picture = Picture("", tmp_path, tmp_path, None, (Annotation("cat", (0, 0, 9, 9), crowd=True, difficult=True),))
    drawer = drawing.Annotated(("dog", "cat"), [picture])
    assert not drawer.note and drawer._painter._names == ["dog", "cat", "cat (crowd) (difficult)"]


def test_no_framework_is_imported(tmp_path):
    commands = (
        ["verify", "nowhere"],
        ["fetch", "voc2007", "x", "--from", "nowhere"],
        ["convert", "nowhere", "x", "--to", "voc"],
        ["show", "nowhere", "x.png"],
    )
    program = (
        f"import sys\nfrom lib.__main__ import main\ncodes = [main(['data', *one]) for one in {commands}]\n"
        "print(codes, sorted({'torch', 'jittor', 'lib.backend'} & sys.modules.keys()))"
    )
    environ = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[1, 1, 1, 1] []", done.stderr
    assert list(tmp_path.iterdir()) == []
