"""The published RT-DETR cases (tests/golden/rt_detr) as our code runs them; shared by the tests of RT-DETR."""

import json
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lib import backend, models
from lib.alignment.margins import second_best_gap
from lib.alignment.seeded import seeded_input, seeded_state
from lib.losses.rt_detr import costs, match, ordinary, values
from lib.models import rt_detr
from lib.models.step import Step

GOLDEN = Path(__file__).resolve().parent / "golden" / "rt_detr"
NAME = "rtdetr_r18vd"
FACTOR = 5  # float32: so many times the published code's own float32 error
SHARP = 1e-10  # float64: relative
TYPES = {"f32": np.float32, "f64": np.float64}


def read(name):
    """(json content, arrays) of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return json.loads((GOLDEN / f"{name}.json").read_text()), {key: archive[key] for key in archive.files}


def error(ours, theirs):
    """Largest absolute difference, in float64, after shape."""
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(np.float64) - theirs).max()


def shapes(model):
    return [(name, backend.numpy(value).shape) for name, value in backend.named_state(model)]


def seeded_model(kind="f32", overrides=(), name=NAME):
    """The model with seeded weights; overrides are the record's [pattern, factor, shift], applied in float32."""
    model = models.build(name, 80, seed=None)
    state = seeded_state(shapes(model))
    for pattern, factor, shift in overrides:
        state |= {
            entry: np.float32(factor) * value + np.float32(shift)
            for entry, value in state.items()
            if re.search(pattern, entry)
        }
    backend.load_state(model, state)
    return backend.float64(model) if kind == "f64" else model


@contextmanager
def published_tables(monkeypatch, arrays=None):
    """Position embedding and anchors as the published code rounded them, which its float64 runs keep."""
    arrays = arrays or read("forward_r18vd_320")[1]
    with monkeypatch.context() as patch:
        if "pos_embed2" in arrays:
            patch.setattr(rt_detr, "position_embedding", lambda *_: arrays["pos_embed2"])
        patch.setattr(rt_detr, "anchors", lambda _: (arrays["anchors_logit"][0], arrays["valid_mask"][0]))
        yield


def predict(model, images):
    with backend.no_grad():
        return {key: backend.numpy(value) for key, value in model.eval()(backend.tensor(images)).items()}


def image(record, kind):
    return seeded_input(record["input_name"], tuple(record["input_shape"])).astype(TYPES[kind])


class Replay:
    """Stands for the random generator: gives back the published draws, in their order."""

    def __init__(self, arrays):
        self.draws = [arrays[name] for name in ("dn_label_uniform", "dn_new_label", "dn_sign01", "dn_box_uniform")]

    def random(self, shape, dtype):
        return self._next(shape).astype(dtype)

    def integers(self, low, high, shape):
        draw = self._next(shape)
        assert low <= draw.min() and draw.max() < high
        return draw

    def _next(self, shape):
        draw = self.draws.pop(0)
        assert draw.shape == tuple(shape)
        return draw


def targets(record):
    """The record's float32 boxes (centre, width, height) as xyxy in pixels, without further rounding."""
    found = []
    for target in record["targets"]:
        boxes = np.asarray(target["boxes"], np.float32).astype(np.float64)
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        found.append({"boxes": record["size"] * corners, "labels": np.asarray(target["labels"], np.int64)})
    return found


def step(record, arrays, variant):
    return Step(random=Replay(arrays) if variant == "dn" else None, targets=targets(record))


def matchings(outputs, given, size, num_classes):
    """Per prediction that is matched, by its losses' suffix, and image: (matching, by what the second is dearer)."""
    true, found = rt_detr.truths(given, size, num_classes), {}
    for suffix, prediction in ordinary(outputs).items():
        rows = zip(*values(prediction), true, strict=True)
        gaps = [second_best_gap(costs(logits, boxes, t.labels, t.boxes)) for logits, boxes, t in rows]
        found[suffix] = list(zip(match(prediction, true), gaps, strict=True))
    return found
