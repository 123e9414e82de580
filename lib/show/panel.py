"""The panel of notebook 71_detect: what two frameworks find on the same image, side by side, differences marked.

Detections come from evaluation records and from COCO result files, so that one kernel shows both frameworks; those of
this kernel's own model join by `add`. Without a browser the panel is the figure of what is chosen, `picture`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from lib import record
from lib.alignment.compare import match_detections
from lib.data import coco
from lib.errors import UserError
from lib.evaluation.detection import Classes
from lib.show.drawing import Painter
from lib.show.figures import NAMES, Picture, canvas, picture, show_image, styled

if TYPE_CHECKING:
    from lib.show.panel_live import Live

SHOWN = 480  # pixels of an image's longer side at least, so that names are readable
WEIGHTS = ("own", "common")  # of an evaluation record: trained by that side, and those of PyTorch that all sides run


@dataclass(frozen=True)
class Choice:
    """What is shown. `pixels` and `scores`: how far apart two detections of one class may be and be the same."""

    model: str
    weights: str
    left: str  # side
    right: str
    image: int  # id in the COCO file
    threshold: float = 0.3
    pixels: float = 2.0
    scores: float = 0.05


@dataclass
class Asked:
    """A side that detects when an image is shown, each once."""

    detect: Callable[[np.ndarray], np.ndarray]  # image (h, w, 3) uint8 BGR -> (m, 6)
    known: dict[int, np.ndarray] = field(default_factory=dict)

    def rows(self, id_: int, image: np.ndarray) -> np.ndarray:
        """Detections (m, 7) on the image."""
        if id_ not in self.known:
            self.known[id_] = with_ids([id_], [self.detect(image)])
        return self.known[id_]


@dataclass
class Panel:
    """Detections (m, 7) image id, x1, y1, x2, y2, score, label by (model, weights) and side; images as files or arrays."""

    dataset: coco.Dataset | None = None
    classes: Classes | None = None
    found: dict[tuple[str, str], dict[str, np.ndarray | Asked]] = field(default_factory=dict)
    images: dict[int, np.ndarray] = field(default_factory=dict)  # (h, w, 3) uint8 RGB that records hold

    def add(self, model: str, weights: str, side: str, rows: np.ndarray) -> None:
        """Detections (m, 7) of a side; what was there under these names is replaced."""
        self.found.setdefault((model, weights), {})[side] = np.asarray(rows, np.float64).reshape(-1, 7)

    def add_live(self, model: str, weights: str, side: str, detect: Callable[[np.ndarray], np.ndarray]) -> None:
        """A side that detects when asked; what was there under these names is replaced."""
        self.found.setdefault((model, weights), {})[side] = Asked(detect)

    def names(self) -> tuple[str, ...]:
        """The classes by label."""
        if self.classes is None:
            raise UserError("71_detect: the classes have no names; give the panel the data set's COCO file")
        return self.classes.names

    def add_file(self, model: str, weights: str, side: str, path: str | Path) -> None:
        """Detections of a COCO result file on the panel's data set. UserError if it is none, or of other data."""
        if self.dataset is None:
            raise UserError(f"{path}: needs the data set it was made on; give the panel its COCO file")
        label_of = {id_: label for label, id_ in enumerate(self.dataset.category_ids)}
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [
                _row(entry, label_of) for entry in (content["annotations"] if isinstance(content, dict) else content)
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: no COCO result file of this data set ({error!r}); "
                "write one with python -m lib evaluate --detections"
            ) from error
        self.add(model, weights, side, np.array(rows))

    def choice(self, **chosen: Any) -> Choice:
        """A choice that can be shown: what is not given is the first that is there."""
        if not self.found:
            raise UserError("71_detect: nothing to show; run 70_evaluate, or add detections to the panel")
        model = chosen.pop("model", next(iter(self.found))[0])
        offered = [weights for name, weights in self.found if name == model]
        if not offered:
            raise UserError(
                f"model: '{model}' has no detections here; there are {', '.join({m for m, _ in self.found})}"
            )
        weights = chosen.pop("weights", None)
        weights = weights if weights in offered else offered[0]
        sides = list(self.found[model, weights])
        left, right = (
            side if side in sides else default
            for side, default in ((chosen.pop("left", None), sides[0]), (chosen.pop("right", None), sides[-1]))
        )
        images = self.offered_images()
        image = chosen.pop("image", None)
        return Choice(model, weights, left, right, image if image in images else images[0], **chosen)

    def offered_images(self) -> list[int]:
        """Ids of the images that can be shown; where there is a data set, all of its."""
        ids = sorted(self.images) if self.dataset is None else [entry.id for entry in self.dataset.images]
        if not ids:
            raise UserError("71_detect: no image to show; give the panel the data set's COCO file")
        return ids

    def picture(self, choice: Choice) -> Picture:
        """Both sides' detections from `choice.threshold` on; those without a counterpart are marked with ≠."""
        image, truth = self._image(choice.image)
        rows = [self._rows(choice, side) for side in (choice.left, choice.right)]
        alone = differences(*rows, choice.pixels, choice.scores)
        panels = []
        for side, own, marks in zip((choice.left, choice.right), rows, alone):
            shown = own[:, 5] >= choice.threshold
            title = (
                f"{NAMES.get(side, side)}: {int(shown.sum())} boxes, {int((shown & marks).sum())} without counterpart"
            )
            panels.append((title, self._painted(image, truth, own[shown, 1:], marks[shown])))
        about = f"image {choice.image}, {choice.model}, {choice.weights} weights, score from {choice.threshold}"
        return _side_by_side(panels, about)

    def widget(self, choice: Choice, live: "Live | None" = None):
        """The panel as ipywidgets: what to choose above, the figure below; with `live` also a model to run here."""
        from lib.show.panel_widgets import assemble

        return assemble(self, choice, live)

    def _rows(self, choice: Choice, side: str) -> np.ndarray:
        rows = self.found[choice.model, choice.weights][side]
        if isinstance(rows, Asked):
            return rows.rows(choice.image, self._image(choice.image)[0])
        return rows[rows[:, 0] == choice.image]

    def _image(self, id_: int) -> tuple[np.ndarray, np.ndarray]:
        """((h, w, 3) uint8 BGR, annotated boxes (k, 4))."""
        if self.dataset is None:
            return np.ascontiguousarray(self.images[id_][:, :, ::-1]), np.zeros((0, 4))
        entry = next(entry for entry in self.dataset.images if entry.id == id_)
        return coco.read_image(entry), entry.boxes

    def _painted(self, image: np.ndarray, truth: np.ndarray, rows: np.ndarray, marks: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 RGB, enlarged to SHOWN; annotated boxes as thin white lines."""
        scale = max(1.0, SHOWN / max(image.shape[:2]))
        large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        scaled = np.concatenate([rows[:, :4] * scale, rows[:, 4:]], 1)
        painted = self._painter().paint(large, scaled, marks, truth * scale)
        return np.ascontiguousarray(painted[:, :, ::-1])

    def _painter(self) -> Painter:
        self.names()
        return Painter(self.classes)


def from_records(folder: str | Path, data: str | Path | None = None) -> Panel:
    """A panel of all evaluation records in a folder; `data` is their data set (folder or COCO file).

    With `data` all its validation images can be shown, with their annotated boxes; without it the samples that the
    records hold. UserError if there is no evaluation record.
    """
    paths = sorted(Path(folder).glob("*/*/evaluate.json"))
    if not paths:
        raise UserError(f"{folder}: holds no evaluation record; run 70_evaluate or make report first")
    panel = Panel()
    if data is not None:
        panel.dataset = coco.load(coco.splits(data)[1])
        panel.classes = Classes(panel.dataset.classes, panel.dataset.category_ids)
    for path in paths:
        held, arrays = record.read(path), record.load_arrays(path)
        names = tuple(held.fields["classes"])
        if panel.classes is None:
            panel.classes = Classes(names, tuple(range(1, len(names) + 1)))
        if names != panel.classes.names:
            raise UserError(f"{path}: its classes are not those of {data or paths[0]}; show one data set at a time")
        for weights in WEIGHTS:
            panel.add(held.model, weights, held.side, arrays[f"float32/{weights}/detections"])
        panel.images |= {id_: arrays[f"sample/{id_}/image"] for id_ in held.fields["samples"]}
    return panel


def with_ids(ids: Sequence[int], found: Sequence[np.ndarray]) -> np.ndarray:
    """Detections (m, 6) per image as one array (m, 7) that begins with the image's id."""
    rows = [
        np.insert(np.asarray(own, np.float64).reshape(-1, 6), 0, id_, axis=1)
        for id_, own in zip(ids, found, strict=True)
    ]
    return np.concatenate(rows) if rows else np.zeros((0, 7))


def differences(left: np.ndarray, right: np.ndarray, pixels: float, scores: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each detection (m, 7), (k, 7) whether the other side has none of its class so near and of so near a score.

    Scores below what is shown count too: a detection just above the threshold has its counterpart just below it.
    """
    matching = match_detections(left, right, pixels)
    alone = np.ones(len(left), bool), np.ones(len(right), bool)
    for a, b in matching.pairs:
        if abs(left[a, 5] - right[b, 5]) <= scores:
            alone[0][a] = alone[1][b] = False
    return alone


def _row(entry: Mapping[str, Any], label_of: Mapping[int, int]) -> list[float]:
    x, y, width, height = entry["bbox"]
    return [entry["image_id"], x, y, x + width, y + height, entry["score"], label_of[entry["category_id"]]]


@styled
def _side_by_side(panels: Sequence[tuple[str, np.ndarray]], about: str) -> Picture:
    height, width = panels[0][1].shape[:2]
    figure, axes = canvas(1, len(panels), (10.0, 10.0 / len(panels) * height / width + 0.4))
    for axis, (title, image) in zip(axes[0], panels):
        show_image(axis, image)
        axis.set_title(title)
    return picture(figure, f"Detections side by side: {about}. {'; '.join(title for title, _ in panels)}.", dense=True)
