"""Images one after another from a picture, a folder, a video or a webcam. What can't be opened is one line."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # a damaged video is reported in one line of ours

import cv2
import numpy as np

from lib.data import images
from lib.errors import UserError

FPS = 25.0  # of a video that does not say


@dataclass(frozen=True, eq=False)
class Frame:
    """One image and what to call it: its path under the source, or a video's name and the frame's number."""

    image: np.ndarray  # (h, w, 3) uint8 BGR
    name: str


class Source(ABC):
    """Where images come from; `faults` grows while `frames` is read."""

    fps: float | None = None  # None: separate pictures
    total: int | None = None  # as far as is known before

    def __init__(self) -> None:
        self.faults: list[str] = []

    @abstractmethod
    def frames(self, limit: int | None) -> Iterator[Frame]:
        """The images in order, at most `limit`."""

    def notes(self) -> list[str]:
        """What a user should know afterwards."""
        return []

    def close(self) -> None:
        """Give back what was opened."""


class Pictures(Source):
    """Image files, in the order of their names."""

    def __init__(self, files: list[Path], root: Path) -> None:
        super().__init__()
        self._files, self._root, self.total = files, root, len(files)

    def frames(self, limit: int | None) -> Iterator[Frame]:
        for file in self._files[:limit]:
            try:
                yield Frame(images.pixels(file)[0], file.relative_to(self._root).as_posix())
            except UserError as error:
                self.faults.append(str(error))


class Video(Source):
    """A video file or a webcam."""

    def __init__(self, capture: cv2.VideoCapture, name: str, camera: bool) -> None:
        super().__init__()
        fps, count = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._capture, self._name = capture, name
        self.fps = fps if 0 < fps < 1000 else FPS
        self.total = count if count > 0 and not camera else None
        self._read, self._cut = 0, False

    def frames(self, limit: int | None) -> Iterator[Frame]:
        while limit is None or self._read < limit:
            there, image = self._capture.read()
            if not there:
                self._cut = True
                break
            yield Frame(image, f"{self._name}#{self._read:06d}")
            self._read += 1
        if not self._read:
            raise UserError(f"{self._name}: not one frame of it can be read; convert it or try another")

    def notes(self) -> list[str]:
        if self._cut and self.total and self._read < self.total:
            return [f"{self._name}: {self._read} of its {self.total} frames could be read"]
        return []

    def close(self) -> None:
        self._capture.release()


def open_source(what: str) -> Source:
    """A file, a folder, or a webcam's number. UserError if there is nothing to read."""
    path = Path(what)
    if what.isdigit() and not path.exists():
        return _video(int(what), f"webcam {what}")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in images.SUFFIXES and file.is_file())
        if not files:
            raise UserError(f"{path}: holds no image; known are {' '.join(sorted(images.SUFFIXES))}")
        return Pictures(files, path)
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file or folder; give a picture, a folder, a video or a webcam's number"
        )
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
