"""Detection on what people have: a picture, a folder, a video, a webcam; drawn, or as a COCO file.

No framework here, and nothing that draws: whoever calls passes a function from an image to its detections, and one that
paints them. Videos become Motion JPEG in AVI, which stays playable however the run ends: every frame stands alone, and
no index at the end is needed. While it grows it is called *.unfinished.avi; Ctrl-C closes and renames it like any other
end. A killed process leaves the unfinished file, which plays but for the last frames, those OpenCV had not written yet
(half a MiB).
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lib.data import images
from lib.data.annotated import is_readable, read_json, text_lines
from lib.errors import UserError
from lib.evaluation import published_form
from lib.record import atomic

FPS = 25.0  # of a video that does not say
PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}  # that are written
COCO = """\
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush"""
UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # ids from 1 to 90 that COCO 2017 leaves out


@dataclass(frozen=True)
class Classes:
    """What the labels of a model are called: names and COCO category ids by label."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Frame:
    """One image and what to call it: its path under the source, or a video's name and the frame's number."""

    image: np.ndarray  # (h, w, 3) uint8 BGR
    name: str


@dataclass(frozen=True)
class Summary:
    """What a run did; `faults` has one line per image that could not be read, `notes` what else a user should know."""

    images: int
    boxes: int
    written: tuple[Path, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]


Detector = Callable[[np.ndarray], np.ndarray]  # (h, w, 3) uint8 BGR -> (m, 6) x1, y1, x2, y2, score, label, best first
Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of an image and its detections: the image to show


def coco_classes() -> Classes:
    """The eighty classes of COCO 2017 with their own ids."""
    return Classes(
        tuple(name.strip() for name in COCO.split(",")), tuple(id_ for id_ in range(1, 91) if id_ not in UNUSED)
    )


def read_classes(path: Path) -> Classes:
    """From a COCO file (by category id, as training sorts them), or a text file with one name per line (ids from 1)."""
    if path.suffix == ".json":
        try:
            pairs = sorted((int(category["id"]), str(category["name"])) for category in read_json(path)["categories"])
            ids, names = zip(*pairs, strict=True)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: has no categories with id and name ({error!r}); give a COCO file") from error
    else:
        names = tuple(line.strip() for line in text_lines(path) if line.strip())
        ids = tuple(range(1, len(names) + 1))
    if not names:
        raise UserError(f"{path}: names no class; write one per line")
    if bad := [name for name in names if not is_readable(name)]:
        raise UserError(f"{path}: a class is called {bad[0]!r}; give it a readable name")
    return Classes(names, ids)


def run(
    source: str,
    detector: Detector,
    classes: Classes,
    paint: Paint,
    output: Path | None,
    document: Path | None,
    limit: int | None = None,
) -> Summary:
    """Detect on at most `limit` images or frames of `source`; draw them to `output`, write a COCO file to `document`.

    A picture that can't be read is a fault, and the others go on. However the run ends, Ctrl-C included, what was
    drawn until then is a playable video, and the COCO file holds what was found until then.
    """
    opened = open_source(source)
    writer = _writer(output, opened) if output else None
    pictures, annotations, written = [], [], []
    try:
        total = min((number for number in (opened.total, limit) if number is not None), default=None)
        frames = opened.frames(limit)
        for frame in tqdm(frames, total=total, unit="image", desc="detecting", leave=False, disable=None):
            rows = detector(frame.image)
            height, width = frame.image.shape[:2]
            pictures.append({"id": len(pictures) + 1, "file_name": frame.name, "width": width, "height": height})
            for row in published_form([len(pictures)], [rows], classes.ids):
                area = row["bbox"][2] * row["bbox"][3]
                annotations.append({"id": len(annotations) + 1, **row, "area": area, "iscrowd": 0})
            if writer:
                writer.write(frame, paint(frame.image, rows))
    finally:
        opened.close()
        written += writer.close() if writer else []
        if document:
            categories = [{"id": id_, "name": name} for id_, name in zip(classes.ids, classes.names, strict=True)]
            content = {"images": pictures, "categories": categories, "annotations": annotations}
            with atomic(document) as temporary:
                temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            written.append(document)
    return Summary(len(pictures), len(annotations), tuple(written), tuple(opened.faults), tuple(opened.notes))


# --- where images come from


class Pictures:
    """Image files, in the order of their names; `faults` grows while they are read."""

    fps = None  # they are no video

    def __init__(self, files: list[Path], root: Path) -> None:
        self._files, self._root, self.total = files, root, len(files)
        self.faults: list[str] = []
        self.notes: list[str] = []

    def frames(self, limit: int | None) -> Iterator[Frame]:
        """The images in order, at most `limit`."""
        for file in self._files[:limit]:
            try:
                yield Frame(images.pixels(file)[0], file.relative_to(self._root).as_posix())
            except UserError as error:
                self.faults.append(str(error))

    def close(self) -> None:
        """Nothing was opened."""


class Video:
    """A video file or a webcam; `notes` says when it has ended early."""

    def __init__(self, capture: cv2.VideoCapture, name: str, camera: bool) -> None:
        fps, count = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._capture, self._name = capture, name
        self.fps = fps if 0 < fps < 1000 else FPS
        self.total = count if count > 0 and not camera else None  # as far as is known before
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.close = capture.release

    def frames(self, limit: int | None) -> Iterator[Frame]:
        """The images in order, at most `limit`. UserError if there is none."""
        read = 0
        while limit is None or read < limit:
            there, image = self._capture.read()
            if not there:
                break
            yield Frame(image, f"{self._name}#{read:06d}")
            read += 1
        if not read:
            raise UserError(f"{self._name}: not one frame of it can be read; convert it or try another")
        if read != limit and self.total and read < self.total:
            self.notes.append(f"{self._name}: {read} of its {self.total} frames could be read")


def open_source(what: str) -> Pictures | Video:
    """A file, a folder, or a webcam's number. UserError if there is nothing to read."""
    path = Path(what)
    if what.isdigit() and not path.exists():
        return _video(int(what), f"webcam {what}")
    if path.is_dir():
        files = images.files(path)
        if not files:
            raise UserError(f"{path}: holds no image; known are {' '.join(sorted(images.SUFFIXES))}")
        return Pictures(files, path)
    if not path.is_file():
        remedy = "give a picture, a folder, a video or a webcam's number"
        raise UserError(f"{path}: there is no such file or folder; {remedy}")
    if path.suffix.lower() in images.SUFFIXES:
        images.pixels(path)  # a single picture that can't be read is an error, not a fault among others
        return Pictures([path], path.parent)
    return _video(str(path), path.name)


def _video(what: str | int, name: str) -> Video:
    capture = cv2.VideoCapture(what)
    if capture.isOpened():
        return Video(capture, name, camera=isinstance(what, int))
    capture.release()
    if isinstance(what, int):
        raise UserError(f"{name}: can't be opened; check that it is plugged in, free, and may be used by you")
    raise UserError(f"{what}: neither an image nor a video that can be opened; convert it to .mp4 or .avi")


# --- where drawn images go


class PictureWriter:
    """One picture, or a folder of pictures under the names of their sources."""

    def __init__(self, target: Path, single: bool) -> None:
        self._target, self._single, self._written = target, single, []

    def write(self, frame: Frame, drawn: np.ndarray) -> None:
        """Keep `drawn` (h, w, 3) uint8 BGR."""
        path = self._target if self._single else self._target / frame.name
        if path.suffix.lower() not in PICTURES:
            path = path.with_name(path.name + ".png")
        done, data = cv2.imencode(path.suffix, drawn)
        if not done:
            raise UserError(f"{path}: can't be written as {path.suffix}; choose .png or .jpg")
        with atomic(path) as temporary:
            temporary.write_bytes(data.tobytes())
        self._written = [self._target]

    def close(self) -> list[Path]:
        """What was written."""
        return self._written


class VideoWriter:
    """A Motion JPEG video of the first frame's size; an odd side gets its last line twice: OpenCV would cut it."""

    def __init__(self, target: Path, fps: float) -> None:
        self._target, self._fps = target, fps
        self._unfinished = target.with_name(f"{target.stem}.unfinished.avi")
        self._video: cv2.VideoWriter | None = None

    def write(self, _: Frame, drawn: np.ndarray) -> None:
        """Keep `drawn` (h, w, 3) uint8 BGR."""
        height, width = drawn.shape[:2]
        drawn = cv2.copyMakeBorder(drawn, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._video is None:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter_fourcc(*"MJPG")
            self._video = cv2.VideoWriter(str(self._unfinished), code, self._fps, drawn.shape[1::-1])
            if not self._video.isOpened():
                raise UserError(f"{self._target}: can't be written; choose a folder that you may write to")
        self._video.write(drawn)

    def close(self) -> list[Path]:
        """Finish the video; what was written."""
        if self._video is None or not self._video.isOpened():
            return []
        self._video.release()
        os.replace(self._unfinished, self._target)
        return [self._target]


def _writer(target: Path, source: Pictures | Video) -> PictureWriter | VideoWriter:
    """The writer that fits the source and the target's name."""
    suffix = target.suffix.lower()
    if source.fps is not None:
        if suffix != ".avi":
            remedy = "drawn videos are .avi, which stays playable when a run is cut short; name it so"
            raise UserError(f"{target}: {remedy}")
        return VideoWriter(target, source.fps)
    single = source.total == 1 and suffix in PICTURES
    if not single and suffix:
        names = " ".join(sorted(PICTURES))
        raise UserError(f"{target}: give a folder for several pictures, or for one a name that ends in {names}")
    return PictureWriter(target, single)
