"""The engine's figures say in words what they show, draw every call, and are the same bytes every time."""

import numpy as np

from lib.alignment.trajectory import LEAST, band
from lib.show import figures_alignment

DEPTH = {
    "name": ["a", "b", "(the model itself)"],
    "leaf": [True, True, False],
    "own": [1e-7, 2e-3, None],
    "gate": [5e-7, 5e-7, None],
    "inherited": [0.0, 1e-3, float("inf")],
    "noise": [1e-7, 1e-7, 2e-7],
    "blamed": [False, True, False],
}
SOUND = DEPTH | {"own": [1e-7, 1e-8, 1e-7], "blamed": [False] * 3}
NOTHING = {key: [None] * 3 if key in ("own", "gate", "inherited", "noise") else value for key, value in SOUND.items()}


def test_the_layer_that_is_blamed_is_named_in_picture_and_words():
    picture = figures_alignment.error_through_depth({"forward": DEPTH, "backward": SOUND})
    assert "Beyond their gates: forward b." in picture.alt
    assert picture.data == figures_alignment.error_through_depth({"forward": DEPTH, "backward": SOUND}).data
    assert "No layer" in figures_alignment.error_through_depth({"forward": SOUND, "backward": SOUND}).alt


def test_the_axis_names_the_worst_layers_and_a_direction_without_errors_has_no_panel():
    worst = figures_alignment._worst([0.1] * 50 + [0.9, 0.8, None, float("inf")], [True] + [False] * 53)
    assert worst[:2] == [0, 50] and len(worst) <= figures_alignment.NAMED, "0.8 is too close to 0.9 for its name"
    draw = figures_alignment.error_through_depth
    both, one = (draw({"forward": SOUND, "backward": other}) for other in (SOUND, NOTHING))
    assert len(one.data) < len(both.data) and not draw({"forward": NOTHING, "backward": NOTHING}).data
    assert "7 calls" in figures_alignment.layers({"calls": 7}).html()


def test_the_run_that_leaves_is_named():
    runs = [2.0 + 1e-6 * np.random.default_rng(seed).standard_normal(20) for seed in range(LEAST)]
    picture = figures_alignment.trajectory("loss", band(runs), {"jittor": runs[0], "rate 1 % off": runs[0] * 1.01})
    assert "rate 1 % off leaves at step 0" in picture.alt and "Jittor leaves" not in picture.alt
