"""The published Gold-YOLO cases (tests/golden/gold_yolo) as our code runs them; shared by the tests of Gold-YOLO."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from lib import backend
from lib.alignment.seeded import seeded_input, seeded_state
from lib.losses.gold_yolo import Criterion
from lib.models.gold_yolo import VARIANTS, build_variant

GOLDEN = Path(__file__).resolve().parent / "golden" / "gold_yolo"
FACTOR = 5  # float32: so many times the published code's own float32 error
SHARP = 1e-9  # float64: relative
TYPES = {"f32": np.float32, "f64": np.float64}
PRECISION = {"f32": "float32", "f64": "float64"}


@dataclass(frozen=True)
class Case:
    file: str  # of the golden record
    size: str  # n, s, m, l
    pixels: int  # of the square input
    reg_max: int | None  # None: the variant's
    prior: bool  # the record's tweak "prior": low scores


TRAINING = {
    "n": Case("train_gold_yolo-n_320", "n", 320, None, False),
    "n_prior": Case("train_gold_yolo-n_prior_320", "n", 320, None, True),
    "n_dfl_prior": Case("train_gold_yolo-n_dfl_prior_320", "n", 320, 16, True),
    "s": Case("", "s", 320, None, False),
    "m_prior": Case("train_gold_yolo-m_prior_160", "m", 160, None, True),
    "l_prior": Case("train_gold_yolo-l_prior_160", "l", 160, None, True),
}


@cache
def read(name):
    """The JSON content of a golden file."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


@cache
def arrays(name):
    """The arrays of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


def error(ours, theirs):
    """Largest absolute difference, in float64, after shape."""
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(np.float64) - theirs).max()


def size_of(array):
    """The L2 norm, in float64."""
    return np.linalg.norm(array.astype(np.float64))


def entries(model):
    return [
        [name, list(value.shape), str(value.dtype)]
        for name, value in ((name, backend.numpy(tensor)) for name, tensor in backend.named_state(model))
    ]


def variant_of(case):
    variant = VARIANTS[f"gold-yolo-{case.size}"]
    return variant if case.reg_max is None else replace(variant, reg_max=case.reg_max)


def seeded_model(variant, kind, adjust=lambda state: state):
    """The model with seeded weights; adjust may change the dict of them in place."""
    model = build_variant(variant, 80, None)
    state = seeded_state([(name, tuple(shape)) for name, shape, _ in entries(model)])
    adjust(state)
    backend.load_state(model, state)
    return backend.float64(model) if kind == "f64" else model


def with_low_scores(state):
    """The record's tweak "prior": class scores as in real training, and boxes that are not turned inside out."""
    for name, value in state.items():
        if name.startswith("detect.cls_preds."):
            state[name] = value * np.float32(0.5) if name.endswith("weight") else value - np.float32(3)
        elif name.startswith("detect.reg_preds.") and value.shape == (4,):
            state[name] = value + np.float32(3)


def training_model(case, kind):
    return seeded_model(variant_of(case), kind, with_low_scores if case.prior else lambda state: state).train()


def training_input(case, kind):
    return backend.tensor(seeded_input("train", (2, 3, case.pixels, case.pixels)).astype(TYPES[kind]))


def criterion_of(case, phase):
    variant = variant_of(case)
    return Criterion(80, variant.reg_max, variant.iou, atss_epochs=4 if phase == "atss" else 0)


def golden_targets(rows, pixels):
    """Targets of both images from the record's rows, in float64 as the published code has them."""
    table = np.asarray(rows, np.float32).astype(np.float64)
    found = []
    for image in range(2):
        own = table[table[:, 0] == image]
        centre, half = own[:, 2:4] * pixels, own[:, 4:] * pixels / 2
        found.append({"boxes": np.concatenate([centre - half, centre + half], 1), "labels": own[:, 1].astype(np.int64)})
    return found


class Drawn:
    """A generator that gives the published numbers, and counts how often it was asked."""

    def __init__(self, values):
        self.values, self.calls = np.asarray(values), 0

    def random(self, count):
        assert count == len(self.values)
        self.calls += 1
        return self.values
