"""The panel of notebook 71_detect: what two frameworks find on the same image, side by side, differences marked.

Detections come from evaluation records and from COCO result files, so that one kernel shows both frameworks; those of
this kernel's own model join by `panel_live`. Without a browser the panel is the figure of what is chosen, `picture`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib import record
from lib.data import coco
from lib.errors import UserError
from lib.evaluation.detection import Classes
from lib.show import figures
from lib.show.drawing import Painter, board
from lib.show.messages import words
from lib.show.style import Picture, called, photographs

WEIGHTS = ("own", "common")  # of an evaluation record: trained by that side, and those of PyTorch that all sides run
FEW = 0.3  # the lowest score shown where nothing recorded says a better one
LONGEST = 28  # characters of a path that a menu or a title shows: its end
Detector = Callable[[np.ndarray], np.ndarray]  # image (h, w, 3) uint8 BGR -> (m, 6)
Source = tuple[str, str]  # which weights, and which side runs them


@dataclass(frozen=True)
class Choice:
    """What is shown. `pixels` and `scores`: how far apart two detections of one class may be and be the same."""

    model: str
    left: Source
    right: Source
    image: int  # id in the COCO file
    threshold: float  # lowest score
    pixels: float = figures.NEAR
    scores: float = figures.ALIKE


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
    """Detections (m, 7), image id, x1, y1, x2, y2, score, label, by model and source; and their images."""

    dataset: coco.Dataset | None = None
    classes: Classes | None = None
    found: dict[str, dict[Source, np.ndarray | Asked]] = field(default_factory=dict)
    samples: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # of records: as `image` gives them

    def add(self, model: str, weights: str, side: str, rows: np.ndarray | Detector) -> None:
        """Detections (m, 7) of a side, or what detects when asked; what was there under these names is replaced."""
        asked = Asked(rows) if callable(rows) else np.asarray(rows, np.float64).reshape(-1, 7)
        self.found.setdefault(model, {})[weights, side] = asked

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
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}: no COCO result file of this data set ({error!r}); "
                "write one with python -m lib evaluate --detections"
            ) from error
        self.add(model, weights, side, np.array(rows))

    def offered(self, model: str) -> dict[str, list]:
        """What there is to choose from, by field of a choice, once the model is chosen."""
        ids = sorted(self.samples) if self.dataset is None else [entry.id for entry in self.dataset.images]
        if not ids:
            raise UserError("71_detect: no image to show; give the panel the data set's COCO file")
        sources = list(self.found[model])
        return {"model": list(self.found), "left": sources, "right": sources, "image": ids}

    def choice(self, weights: str | None = None, threshold: float | None = None, **chosen: Any) -> Choice:
        """A choice that can be shown. What is not given, or not offered: the first and the last side that runs these
        weights, the score at which as many boxes are found as are annotated, and the first image that then has one.
        """
        if not self.found:
            raise UserError("71_detect: nothing to show; run 70_evaluate, or add detections to the panel")
        model = chosen.pop("model", next(iter(self.found)))
        if model not in self.found:
            raise UserError(f"model: '{model}' has no detections here; there are {', '.join(self.found)}")
        offered = self.offered(model)
        which = weights if any(weights == of for of, _ in offered["left"]) else offered["left"][0][0]
        sides = [source for source in offered["left"] if source[0] == which]
        for name, default in (("left", sides[0]), ("right", sides[-1])):
            if chosen.get(name) not in offered[name]:
                chosen[name] = default
        rows = self.found[model][chosen["left"]]
        known = np.zeros((0, 7)) if isinstance(rows, Asked) else rows[np.isin(rows[:, 0], offered["image"])]
        if threshold is None:
            images = self.dataset.images if self.dataset else ()
            annotated = sum(map(len, [one.boxes for one in images] or [boxes for _, boxes in self.samples.values()]))
            threshold = figures.break_even(known[:, 5], annotated) if annotated and len(known) else FEW
        if chosen.get("image") not in offered["image"]:
            shown = set(known[known[:, 5] >= threshold, 0].astype(int).tolist())
            chosen["image"] = next((id_ for id_ in offered["image"] if id_ in shown), offered["image"][0])
        return Choice(model, threshold=threshold, **chosen)

    def rows(self, model: str, source: Source, id_: int) -> np.ndarray:
        """Detections (m, 7) of a source on an image."""
        found = self.found[model][source]
        if isinstance(found, Asked):
            return found.rows(id_, np.ascontiguousarray(self.image(id_)[0][:, :, ::-1]))
        return found[found[:, 0] == id_]

    def image(self, id_: int) -> tuple[np.ndarray, np.ndarray]:
        """((h, w, 3) uint8 RGB, annotated boxes (k, 4))."""
        if self.dataset is None:
            return self.samples[id_]
        entry = next(entry for entry in self.dataset.images if entry.id == id_)
        return coco.read_image(entry)[:, :, ::-1], entry.boxes

    def picture(self, choice: Choice) -> Picture:
        """Both sides' detections from `choice.threshold` on; those without a counterpart are marked with ≠."""
        self.names()
        image, truth = self.image(choice.image)
        sides = choice.left, choice.right
        rows = [self.rows(choice.model, source, choice.image) for source in sides]
        found = figures.marked(rows, choice.threshold, choice.pixels, choice.scores)
        shown = figures.board_row(Painter(self.classes), image, truth, list(map(named, sides)), found)
        about = {"image": choice.image, "model": choice.model, "threshold": f"{choice.threshold:g}"}
        captions = "; ".join(caption for caption, _ in shown)
        return photographs(board([shown]), f"{words()('panel.alt').format(**about)} {captions}.")


def named(source: Source) -> str:
    """What menus and titles call a source: the side, and whose weights it runs."""
    weights, side = source
    known = words()(f"panel.{weights}") if weights in WEIGHTS else weights
    short = known if len(known) <= LONGEST else f"…{known[-LONGEST:]}"
    return words()("panel.source").format(side=called(side), weights=short)


def from_records(folder: str | Path, data: str | Path | None = None) -> Panel:
    """A panel of all evaluation records in a folder; `data` is their data set (folder or COCO file).

    With `data` all its validation images can be shown, with their annotated boxes; without it the samples that the
    records hold. UserError if there is no evaluation record.
    """
    paths = sorted(Path(folder).glob("*/*/evaluate.json"))
    if not paths:
        remedy = "run 70_evaluate, or name the records of a report, such as reports/quick/records"
        raise UserError(f"{folder}: holds no evaluation record; {remedy}")
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
        for id_ in held.fields["samples"]:
            panel.samples[id_] = arrays[f"sample/{id_}/image"], arrays[f"sample/{id_}/boxes"]
    return panel


def with_ids(ids: Sequence[int], found: Sequence[np.ndarray]) -> np.ndarray:
    """Detections (m, 6) per image as one array (m, 7) that begins with the image's id."""
    rows = [
        np.insert(np.asarray(own, np.float64).reshape(-1, 6), 0, id_, axis=1)
        for id_, own in zip(ids, found, strict=True)
    ]
    return np.concatenate(rows) if rows else np.zeros((0, 7))


def _row(entry: Mapping[str, Any], label_of: Mapping[int, int]) -> list[float]:
    x, y, width, height = entry["bbox"]
    return [entry["image_id"], x, y, x + width, y + height, entry["score"], label_of[entry["category_id"]]]
