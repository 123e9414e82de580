"""The panel of notebook 71_detect: what two frameworks find on the same image, side by side, differences marked.

Detections come from evaluation records and from COCO result files, so that one kernel shows both frameworks; those of
this kernel's own model join by `lib.show.panel_live`. Without a browser the panel is the figure of what is chosen,
`picture`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib import record
from lib.alignment.compare import match_detections
from lib.data import coco
from lib.errors import UserError
from lib.evaluation.detection import Classes
from lib.show.drawing import Painter
from lib.show.figures import NAMES, Picture, canvas, picture, show_image, styled

WEIGHTS = ("own", "common")  # of an evaluation record: trained by that side, and those of PyTorch that all sides run
Detector = Callable[[np.ndarray], np.ndarray]  # image (h, w, 3) uint8 BGR -> (m, 6)


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

    detect: Detector
    known: dict[int, np.ndarray] = field(default_factory=dict)

    def rows(self, id_: int, image: np.ndarray) -> np.ndarray:
        """Detections (m, 7) on the image."""
        if id_ not in self.known:
            self.known[id_] = with_ids([id_], [self.detect(image)])
        return self.known[id_]


@dataclass
class Panel:
    """Detections (m, 7), image id, x1, y1, x2, y2, score, label, by (model, weights) and side; and their images."""

    dataset: coco.Dataset | None = None
    classes: Classes | None = None
    found: dict[tuple[str, str], dict[str, np.ndarray | Asked]] = field(default_factory=dict)
    images: dict[int, np.ndarray] = field(default_factory=dict)  # (h, w, 3) uint8 RGB that records hold

    def add(self, model: str, weights: str, side: str, rows: np.ndarray | Detector) -> None:
        """Detections (m, 7) of a side, or what detects when asked; what was there under these names is replaced."""
        asked = Asked(rows) if callable(rows) else np.asarray(rows, np.float64).reshape(-1, 7)
        self.found.setdefault((model, weights), {})[side] = asked

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
            entries = content["annotations"] if isinstance(content, dict) else content
            rows = [_row(entry, label_of) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: no COCO result file of this data set ({error!r}); "
                "write one with python -m lib evaluate --detections"
            ) from error
        self.add(model, weights, side, np.array(rows))

    def offered(self, model: str, weights: str) -> dict[str, list]:
        """What there is to choose from, by field of a choice, once model and weights are chosen."""
        sides = list(self.found[model, weights])
        ids = sorted(self.images) if self.dataset is None else [entry.id for entry in self.dataset.images]
        if not ids:
            raise UserError("71_detect: no image to show; give the panel the data set's COCO file")
        return {
            "model": list(dict.fromkeys(name for name, _ in self.found)),
            "weights": [which for name, which in self.found if name == model],
            "left": sides,
            "right": sides,
            "image": ids,
        }

    def choice(self, **chosen: Any) -> Choice:
        """A choice that can be shown: what is not given, or not offered, is the first that is; `right` the last."""
        if not self.found:
            raise UserError("71_detect: nothing to show; run 70_evaluate, or add detections to the panel")
        model = chosen.pop("model", next(iter(self.found))[0])
        weights = [which for name, which in self.found if name == model]
        if not weights:
            known = ", ".join({name for name, _ in self.found})
            raise UserError(f"model: '{model}' has no detections here; there are {known}")
        which = chosen.pop("weights", None)
        which = which if which in weights else weights[0]
        offered = self.offered(model, which)
        for name, default in (("left", 0), ("right", -1), ("image", 0)):
            if chosen.get(name) not in offered[name]:
                chosen[name] = offered[name][default]
        return Choice(model, which, **chosen)

    def picture(self, choice: Choice) -> Picture:
        """Both sides' detections from `choice.threshold` on; those without a counterpart are marked with ≠."""
        self.names()
        image, truth = self._image(choice.image)
        painter, sides = Painter(self.classes), (choice.left, choice.right)
        rows = [self._rows(choice, side, image) for side in sides]
        shown = []
        for side, own, marks in zip(sides, rows, differences(*rows, choice.pixels, choice.scores)):
            from_on = own[:, 5] >= choice.threshold
            alone = int((from_on & marks).sum())
            title = f"{NAMES.get(side, side)}: {int(from_on.sum())} boxes, {alone} without counterpart"
            shown.append((title, painter.readable(image, own[from_on, 1:], marks[from_on], truth)))
        about = f"image {choice.image}, {choice.model}, {choice.weights} weights, score from {choice.threshold}"
        return _side_by_side(shown, about)

    def _rows(self, choice: Choice, side: str, image: np.ndarray) -> np.ndarray:
        rows = self.found[choice.model, choice.weights][side]
        if isinstance(rows, Asked):
            return rows.rows(choice.image, np.ascontiguousarray(image[:, :, ::-1]))
        return rows[rows[:, 0] == choice.image]

    def _image(self, id_: int) -> tuple[np.ndarray, np.ndarray]:
        """((h, w, 3) uint8 RGB, annotated boxes (k, 4))."""
        if self.dataset is None:
            return self.images[id_], np.zeros((0, 4))
        entry = next(entry for entry in self.dataset.images if entry.id == id_)
        return coco.read_image(entry)[:, :, ::-1], entry.boxes


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
