"""Detection on what people have: a picture, a folder, a video, a webcam; drawn, or as a COCO file. No framework here:
whoever calls passes a function from an image to its detections.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.evaluation.detection.classes import Classes
from lib.evaluation.detection.outputs import Document, Writer, open_writer
from lib.evaluation.detection.sources import Frame, Source, open_source
from lib.show.drawing import Painter

Progress = Callable[[Iterable[Frame], int | None], Iterable[Frame]]  # of frames and how many there will be, if known
Detector = Callable[[np.ndarray], np.ndarray]  # (h, w, 3) uint8 BGR -> (m, 6) x1, y1, x2, y2, score, label, best first


@dataclass(frozen=True)
class Summary:
    """What a run did; `faults` has one line per image that could not be read, `notes` what else a user should know."""

    images: int
    boxes: int
    written: tuple[Path, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]


def run(
    source: str,
    detector: Detector,
    classes: Classes,
    output: Path | None,
    document: Path | None,
    limit: int | None = None,
    progress: Progress = lambda frames, total: frames,
) -> Summary:
    """Detect on at most `limit` images or frames of `source`; draw them to `output`, write a COCO file to `document`.

    A picture that can't be read is a fault, and the others go on. However the run ends, Ctrl-C included, what was
    drawn until then is a playable video, and the COCO file holds what was found until then.
    """
    opened = open_source(source)
    writer = open_writer(output, opened) if output else None
    painter, found = Painter(classes), Document(classes)
    try:
        total = min((number for number in (opened.total, limit) if number is not None), default=None)
        for frame in progress(opened.frames(limit), total):
            rows = detector(frame.image)
            found.add(frame, rows)
            if writer:
                writer.write(frame, painter.paint(frame.image, rows))
    finally:
        written = _finish(opened, writer, found, document)
    notes = [*opened.notes(), *([painter.note] if painter.note and writer else [])]
    return Summary(len(found.images), len(found.annotations), written, tuple(opened.faults), tuple(notes))


def _finish(opened: Source, writer: Writer | None, found: Document, document: Path | None) -> tuple[Path, ...]:
    opened.close()
    written = writer.close() if writer else []
    if document:
        found.write(document)
        written = [*written, document]
    return tuple(written)
