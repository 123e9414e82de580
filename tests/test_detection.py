"""Detection on pictures, folders and videos with a detector that is none: what is drawn, written, kept and said."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.errors import UserError
from lib.evaluation import detection
from lib.show import drawing, fonts

ROOT = Path(__file__).resolve().parents[1]
CUPS = detection.Classes(("cup", "杯子"), (3, 7))


def finds(image):
    """One box in the middle, of the class that the first pixel names."""
    height, width = image.shape[:2]
    return np.array([[width / 4, height / 4, 3 * width / 4, 3 * height / 4, 0.9, image[0, 0, 0] > 127]])


def run(source, detector, output, document, **options):
    return detection.run(str(source), detector, CUPS, drawing.Painter(CUPS).paint, output, document, **options)


def picture(path, value=60, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))
    return path


def video(path, frames=12, size=(48, 64)):
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, size[::-1])
    for index in range(frames):
        out.write(np.full((*size, 3), 20 * index, np.uint8))
    out.release()
    return path


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def test_a_picture_is_drawn_and_written_as_coco(tmp_path):
    source = picture(tmp_path / "a.png")
    done = run(source, finds, tmp_path / "out.png", tmp_path / "out.json")
    assert (done.images, done.boxes, done.faults, done.written) == (
        1,
        1,
        (),
        (tmp_path / "out.png", tmp_path / "out.json"),
    )
    drawn = cv2.imread(str(tmp_path / "out.png"))
    assert drawn.shape == (48, 64, 3) and (drawn[30, 30] == 60).all() and (drawn != 60).any()
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}]
    assert content["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [16, 12, 32, 24], "area": 768.0, "iscrowd": 0, "score": 0.9}
    ]
    assert content["categories"] == [{"id": 3, "name": "cup"}, {"id": 7, "name": "杯子"}]


def test_a_folder_goes_on_after_a_broken_picture(tmp_path):
    for name, value in (("b.jpg", 60), ("deep/a.png", 200), ("c.gif", 60)):
        picture(tmp_path / "in" / name, value) if name != "c.gif" else (tmp_path / "in" / name).write_bytes(b"GIF89a")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    done = run(tmp_path / "in", finds, tmp_path / "out", tmp_path / "out.json")
    assert done.images == 2 and len(done.faults) == 1 and "c.gif" in done.faults[0]
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")) == [
        "b.jpg",
        "deep/a.png",
    ]
    content = json.loads((tmp_path / "out.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["b.jpg", "deep/a.png"]
    assert [annotation["category_id"] for annotation in content["annotations"]] == [3, 7]


def test_a_video_keeps_its_frames_size_and_rate(tmp_path):
    source = video(tmp_path / "clip.avi")
    done = run(source, finds, tmp_path / "out.avi", tmp_path / "out.json", limit=9)
    frames = frames_of(tmp_path / "out.avi")
    assert done.images == len(frames) == 9 and frames[0].shape == (48, 64, 3) and done.notes == ()
    assert cv2.VideoCapture(str(tmp_path / "out.avi")).get(cv2.CAP_PROP_FPS) == 10
    images = json.loads((tmp_path / "out.json").read_text())["images"]
    assert images[8]["file_name"] == "clip.avi#000008" and not list(tmp_path.glob("*unfinished*"))


def test_odd_sides_are_not_cut(tmp_path):
    writer = detection.VideoWriter(tmp_path / "out.avi", 10.0)
    writer.write(None, np.full((47, 65, 3), 90, np.uint8))
    assert writer.close() == [tmp_path / "out.avi"] and frames_of(tmp_path / "out.avi")[0].shape == (48, 66, 3)


def test_a_video_that_ends_early_says_so(tmp_path):
    source = video(tmp_path / "clip.avi", frames=20)
    capture = cv2.VideoCapture(str(source))
    opened = detection.Video(capture, "clip.avi", camera=False)
    opened.total = 25
    assert len(list(opened.frames(None))) == 20 and opened.notes == ["clip.avi: 20 of its 25 frames could be read"]


CHILD = """
import sys, time
import numpy as np
from lib.evaluation import detection
rng = np.random.default_rng(0)

class Endless:
    fps, total, faults, notes = 10.0, None, [], []
    def close(self): pass
    def frames(self, limit):
        for number in range(100000):
            if number == 40:
                print("on", flush=True)
            if number > 40:
                time.sleep(0.01)
            yield detection.Frame(rng.integers(0, 255, (240, 320, 3), np.uint8), str(number))

detection.open_source = lambda source: Endless()
box = lambda image: np.array([[9, 9, 60, 60, 0.5, 0]])
paint = lambda image, rows: image
detection.run("endless", box, detection.coco_classes(), paint, *map(detection.Path, sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_video_plays(tmp_path, how):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, tmp_path / "out.avi", tmp_path / "out.json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "on\n"
    time.sleep(0.2)
    child.send_signal(how)
    _, error = child.communicate(timeout=30)
    assert child.returncode != 0
    if how == signal.SIGKILL:
        assert len(frames_of(tmp_path / "out.unfinished.avi")) >= 20 and not (tmp_path / "out.avi").exists()
        return
    assert "KeyboardInterrupt" in error and not list(tmp_path.glob("*unfinished*"))
    frames, found = frames_of(tmp_path / "out.avi"), json.loads((tmp_path / "out.json").read_text())
    assert 40 <= len(frames) <= len(found["images"]) <= len(frames) + 1 and frames[-1].shape == (240, 320, 3)


class Camera:
    """A webcam that gives three frames, then none, and claims nonsense about itself."""

    def __init__(self, what):
        self.left = 3 if what == 5 else 0

    def isOpened(self):
        return self.left > 0

    def get(self, _):
        return -1.0

    def read(self):
        self.left -= 1
        return (True, np.full((48, 64, 3), 90, np.uint8)) if self.left >= 0 else (False, None)

    def release(self):
        self.left = 0


def test_a_webcam(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    opened = detection.open_source("5")
    assert opened.fps == detection.FPS and opened.total is None
    assert run("5", finds, tmp_path / "out.avi", None).images == 3
    assert run("5", finds, tmp_path / "out.avi", None, limit=2).images == 2
    with pytest.raises(UserError, match="^webcam 0: can't be opened"):
        detection.open_source("0")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: folder / "nowhere.mp4", "there is no such file"),
        (lambda folder: folder, "holds no image"),
        (
            lambda folder: [(folder / "x.mp4"), (folder / "x.mp4").write_bytes(b"no video" * 99)][0],
            "neither an image nor a video",
        ),
        (lambda folder: [(folder / "x.png"), (folder / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")][0], "cut short"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line(tmp_path, make, message, capfd):
    with pytest.raises(UserError, match=message) as caught:
        run(make(tmp_path), finds, tmp_path / "out", None)
    assert len(str(caught.value).splitlines()) == 1 and capfd.readouterr().err == ""


def test_targets_that_do_not_fit_their_source(tmp_path):
    with pytest.raises(UserError, match="drawn videos are .avi"):
        run(video(tmp_path / "clip.avi"), finds, tmp_path / "out.mp4", None)
    picture(tmp_path / "in" / "a.png"), picture(tmp_path / "in" / "b.png")
    with pytest.raises(UserError, match="give a folder"):
        run(tmp_path / "in", finds, tmp_path / "out.png", None)


def test_a_failing_detector_leaves_what_was_drawn(tmp_path):
    def fails(image):
        if image[0, 0, 0] > 100:
            raise RuntimeError("out of memory")
        return finds(image)

    with pytest.raises(RuntimeError):
        run(video(tmp_path / "clip.avi"), fails, tmp_path / "out.avi", tmp_path / "out.json")
    assert len(frames_of(tmp_path / "out.avi")) == 6 == len(json.loads((tmp_path / "out.json").read_text())["images"])


def test_boxes_stand_out_on_black_on_white_and_in_grey():
    for ground in (0, 128, 255):
        image = np.full((120, 160, 3), ground, np.uint8)
        for label in range(20):
            painter = drawing.Painter(detection.Classes(tuple("abcdefghijklmnopqrst"), tuple(range(20))))
            drawn = painter.paint(image, np.array([[20, 40, 140, 110, 0.5, label]]))
            edge = cv2.cvtColor(drawn, cv2.COLOR_BGR2GRAY)[75, 14:27].astype(int)
            assert edge.max() - edge.min() > 90, (ground, label)
    assert (image == 255).all()


def test_the_best_box_is_on_top_and_labels_stay_inside():
    painter = drawing.Painter(CUPS)
    image = np.zeros((100, 100, 3), np.uint8)
    rows = np.array([[-20, -20, 30, 30, 0.9, 0], [-20, -20, 30, 30, 0.2, 0], [80, 80, 130, 130, 0.5, 0]])
    np.testing.assert_array_equal(painter.paint(image, rows[[0]])[:15, :40], painter.paint(image, rows[:2])[:15, :40])
    assert (painter.paint(image, rows)[60:] == 255).any()


def test_chinese_names_are_drawn_or_replaced_and_said(monkeypatch):
    if fonts.covering("杯子"):
        written = drawing._text("杯子", 24)
        assert not drawing.Painter(CUPS).note and (written < 128).sum() > 60
        assert (written != drawing._text("椅子", 24)).any()  # not two boxes for missing glyphs
    monkeypatch.setattr(fonts, "chinese", lambda: ())
    painter = drawing.Painter(CUPS)
    assert "杯子" in painter.note and "install" in painter.note and painter._names == ["cup", "#7"]
    image = np.zeros((100, 100, 3), np.uint8)
    assert painter.paint(image, np.array([[10, 40, 90, 90, 0.5, 1]])).any()


def test_classes(tmp_path):
    held = detection.coco_classes()
    assert len(held.names) == len(held.ids) == 80 == len(set(held.names)) and held.ids[-1] == 90
    assert dict(zip(held.names, held.ids))["stop sign"] == 13 and dict(zip(held.names, held.ids))["tv"] == 72
    (tmp_path / "names.txt").write_text("cup\n\n杯子\n", encoding="utf-8")
    assert detection.read_classes(tmp_path / "names.txt") == detection.Classes(("cup", "杯子"), (1, 2))
    (tmp_path / "coco.json").write_text(
        json.dumps({"categories": [{"id": 7, "name": "egg"}, {"id": 3, "name": "cup"}]})
    )
    assert detection.read_classes(tmp_path / "coco.json") == detection.Classes(("cup", "egg"), (3, 7))
    for name, text, message in (
        ("empty.txt", " \n", "names no class"),
        ("red.txt", "red\x1b[31m\n", "called .red.*give it a readable name"),
        ("broken.json", "[1", "no valid JSON"),
        ("other.json", "{}", "has no categories"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            detection.read_classes(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        detection.read_classes(tmp_path / "nowhere.txt")


def test_the_names_are_those_of_cocos_own_file(shared):
    assert detection.read_classes(shared / "real" / "coco_val_64" / "instances.json") == detection.coco_classes()
