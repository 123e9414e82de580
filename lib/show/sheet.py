"""A data set's pictures with their boxes and class names, one image each or one sheet of many."""

from collections.abc import Sequence

import cv2
import numpy as np

from lib.data import images
from lib.data.annotated import Annotation, Picture
from lib.evaluation.detection import Classes
from lib.show import drawing, fonts
from lib.show.drawing import Painter

TILE = 320  # pixels a side on a sheet
NAME = 32  # letters of a file's name that stand above it
NO_SCORE = float("nan")


class Annotated:
    """Draws measured pictures of a data set; `note` says which classes are shown by their number, or is empty."""

    def __init__(self, classes: Sequence[str], pictures: Sequence[Picture]) -> None:
        said = {_said(one): classes.index(one.name) for picture in pictures for one in picture.annotations}
        said = {**{name: number for number, name in enumerate(classes)}, **said}
        self._labels = {text: label for label, text in enumerate(said)}
        self._painter = Painter(Classes(tuple(said), tuple(said.values())))
        self.note = self._painter.note

    def drawn(self, picture: Picture, longest: int | None = None) -> np.ndarray:
        """(h, w, 3) uint8 BGR, its longer side `longest` pixels where given; crowd and difficult boxes say so."""
        image = images.pixels(picture.file, "the image", picture.size[::-1])[0]
        scale = longest / max(image.shape[:2]) if longest else 1.0
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        inside = (0, 0, 1, 1)  # the last row and column that a box holds, not the next
        rows = [
            [*np.multiply(one.box, scale) - inside, NO_SCORE, self._labels[_said(one)]] for one in picture.annotations
        ]
        return self._painter.paint(image, rows)

    def sheet(self, pictures: Sequence[Picture], workers: int | None = None) -> np.ndarray:
        """All `pictures` as tiles with their names, (h, w, 3) uint8 BGR."""
        drawn = images.each(lambda picture: drawing.tile(self.drawn(picture, TILE), TILE), pictures, workers)
        tiles = [(fonts.one_line(picture.name, NAME), image) for picture, image in zip(pictures, drawn)]
        columns = int(np.ceil(np.sqrt(len(tiles))))
        return drawing.board([tiles[i : i + columns] for i in range(0, len(tiles), columns)])


def _said(annotation: Annotation) -> str:
    return " ".join([annotation.name, *(f"({flag})" for flag in ("crowd", "difficult") if getattr(annotation, flag))])
