"""What detection leaves: drawn pictures, a drawn video, a COCO file.

Videos are Motion JPEG in AVI, which stays playable however the run ends: every frame stands alone, and no index at the
end is needed. While it grows it is called *.unfinished.avi; Ctrl-C closes and renames it like any other end. A killed
process leaves the unfinished file, which plays but for the last frames, those OpenCV had not written yet (half a MiB).
"""

import json
import os
from abc import ABC, abstractmethod
from pathlib import Path

import cv2
import numpy as np

from lib.errors import UserError
from lib.evaluation.detection.classes import Classes
from lib.evaluation.detection.sources import Frame, Source
from lib.record import atomic

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


class Writer(ABC):
    """Takes drawn images one after another."""

    @abstractmethod
    def write(self, frame: Frame, drawn: np.ndarray) -> None:
        """Keep `drawn` (h, w, 3) uint8 BGR."""

    @abstractmethod
    def close(self) -> list[Path]:
        """Finish; what was written."""


class PictureWriter(Writer):
    """One picture, or a folder of pictures under the names of their sources."""

    def __init__(self, target: Path, single: bool) -> None:
        self._target, self._single, self._count = target, single, 0

    def write(self, frame: Frame, drawn: np.ndarray) -> None:
        path = self._target if self._single else self._target / frame.name
        if path.suffix.lower() not in PICTURES:
            path = path.with_name(path.name + ".png")
        done, data = cv2.imencode(path.suffix, drawn)
        if not done:
            raise UserError(f"{path}: can't be written as {path.suffix}; choose .png or .jpg")
        with atomic(path) as temporary:
            temporary.write_bytes(data.tobytes())
        self._count += 1

    def close(self) -> list[Path]:
        return [self._target] if self._count else []


class VideoWriter(Writer):
    """A Motion JPEG video of the first frame's size; an odd side gets its last line twice, where OpenCV would cut it."""

    def __init__(self, target: Path, fps: float) -> None:
        self._target, self._fps = target, fps
        self._unfinished = target.with_name(f"{target.stem}.unfinished.avi")
        self._video: cv2.VideoWriter | None = None

    def write(self, frame: Frame, drawn: np.ndarray) -> None:
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
        if self._video is None or not self._video.isOpened():
            return []
        self._video.release()
        os.replace(self._unfinished, self._target)
        return [self._target]


class Document:
    """A COCO file in the making: every image, and a scored annotation per detection."""

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, frame: Frame, rows: np.ndarray) -> None:
        """Rows (m, 6) of one more image; ids count from 1."""
        height, width = frame.image.shape[:2]
        image = len(self.images) + 1
        self.images.append({"id": image, "file_name": frame.name, "width": width, "height": height})
        for x1, y1, x2, y2, score, label in np.asarray(rows, np.float64).tolist():
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image,
                    "category_id": self._classes.ids[int(label)],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": score,
                }
            )

    def write(self, path: Path) -> None:
        """The COCO file, whole or not at all."""
        categories = [
            {"id": id_, "name": name} for id_, name in zip(self._classes.ids, self._classes.names, strict=True)
        ]
        content = {"images": self.images, "categories": categories, "annotations": self.annotations}
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def open_writer(target: Path, source: Source) -> Writer:
    """The writer that fits the source and the target's name."""
    if source.fps is not None:
        if target.suffix.lower() != ".avi":
            raise UserError(
                f"{target}: drawn videos are .avi, which stays playable when a run is cut short; name it so"
            )
        return VideoWriter(target, source.fps)
    single = source.total == 1 and target.suffix.lower() in PICTURES
    if not single and target.suffix:
        raise UserError(
            f"{target}: give a folder for several pictures, or for one a name that ends in {' '.join(sorted(PICTURES))}"
        )
    return PictureWriter(target, single)
