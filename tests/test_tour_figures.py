"""The tours' figures: the same bytes each time, a sentence for each, and what they draw is what they were given."""

import html
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from lib.show import fonts
from lib.show.messages import Messages
from notebooks.tours import figures

RANDOM = np.random.default_rng(0)
NODES = [
    SimpleNamespace(name="a.one", stride=8, channels=4, reads=()),
    SimpleNamespace(name="a.two", stride=16, channels=8, reads=("a.one",)),
    SimpleNamespace(name="a.three", stride=8, channels=4, reads=("a.one", "a.two")),
]
KERNELS = {"3 × 3": RANDOM.standard_normal((2, 2, 3, 3)), "sum": RANDOM.standard_normal((2, 2, 3, 3))}
SHARES = np.full((4, 9, 9), 1 / 9)
IMAGE = np.full((64, 96, 3), 128, np.uint8)
BOXES = np.array([[4.0, 4.0, 40.0, 40.0], [20.0, 30.0, 90.0, 60.0]])
CELLS = np.array([[8.0, 8.0, 8.0], [16.0, 16.0, 16.0], [32.0, 32.0, 32.0]])
READ = SimpleNamespace(
    box=np.array([0.5, 0.5, 0.2, 0.4]), places=RANDOM.random((8, 3, 4, 2)), shares=np.full((8, 3, 4), 1 / 12)
)
SIDES = RANDOM.standard_normal((2, 4 * 17))
MAPS = {"square": RANDOM.random((4, 4, 8)), "wide": RANDOM.random((4, 6, 8))}
SCORES = RANDOM.random(30)
COST = np.array([[1.0, 5.0], [2.0, 0.5], [3.0, 4.0], [9.0, 9.0]])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.wiring(NODES),
        lambda: figures.kernels(KERNELS),
        lambda: figures.attention({"as published": SHARES, "divided": SHARES}),
        lambda: figures.sides(SIDES),
        lambda: figures.boxes_of_cells(np.array([[1.0, 2.0, 3.0, 4.0], [-0.5, 2.0, 3.0, 4.0]])),
        lambda: figures.assignments({"ATSS": np.array([1, 0, 2]), "TAL": np.array([0, 0, 0])}, BOXES, CELLS, (64, 96)),
        lambda: figures.assignments({"DSLA": np.array([1, 0, 2])}, BOXES, CELLS, (64, 96), centre=0, image=IMAGE),
        lambda: figures.residuals({"attention": np.array([1.0, 0.0]), "perceptron": np.array([1.1, 1.1])}),
        lambda: figures.reach({"pooled": np.ones((4, 4), bool), "strided": np.eye(4, dtype=bool)}),
        lambda: figures.positions(MAPS, (1, 2)),
        lambda: figures.selection(IMAGE, SCORES, np.array([0, 25, 29]), [(4, 6), (2, 3)]),
        lambda: figures.sampling(IMAGE, {"layer 0": READ, "layer 1": READ}),
        lambda: figures.denoising({"positive": BOXES, "negative": BOXES}, BOXES, (64, 96)),
        lambda: figures.mask(np.eye(6), 2),
        lambda: figures.costs(COST, np.array([0, 1]), np.array([0, 1]), 0.5, nearest=2),
    ],
)
def test_figures_are_the_same_bytes_each_time_and_say_what_they_show(draw):
    first, second = draw(), draw()
    assert first == second and first.alt.endswith(".")
    assert b"<dc:date>" not in first.data
    assert first.html().startswith(f'<img alt="{html.escape(first.alt, quote=True)}"')


def test_tokens_stand_where_their_cells_are():
    places, level = figures._cells([(2, 4), (1, 2)])
    assert level.tolist() == [0] * 8 + [1] * 2
    assert places[0].tolist() == [0.125, 0.25] and places[3].tolist() == [0.875, 0.25]  # row-major: x runs first
    assert places[4].tolist() == [0.125, 0.75] and places[9].tolist() == [0.75, 0.5]


def test_figures_speak_the_language_asked_for():
    draw = partial(figures.attention, {"as published": SHARES, "divided by the root": SHARES})
    english, chinese = draw(words=Messages("en")), draw(words=Messages("zh"))
    assert "Attention" in english.alt and english.data != chinese.data
    assert "注意力" in chinese.alt or not fonts.chinese()


@pytest.mark.parametrize(
    "draw",
    [
        lambda turned: figures.boxes_of_cells(np.array([[1.0, 2.0, 3.0, 5.0 if turned else 4.0]])),
        lambda turned: figures.assignments({"TAL": np.array([1, 0, 1 if turned else 2])}, BOXES, CELLS, (64, 96)),
        lambda turned: figures.assignments({"TAL": np.array([1, 0, 2])}, BOXES, CELLS, (64, 96), 0.5 * turned),
        lambda turned: figures.mask(np.eye(6)[:: -1 if turned else 1], 2),
        lambda turned: figures.costs(COST, np.array([0, 2 if turned else 1]), np.array([0, 1]), 0.5, nearest=4),
        lambda turned: figures.wiring(
            NODES[:2] + [SimpleNamespace(**{**vars(NODES[2]), "reads": ("a.two", "a.one")[turned:]})]
        ),
    ],
)
def test_another_answer_is_another_picture(draw):
    assert draw(False).data != draw(True).data


def test_marks_are_told_apart_without_colour():
    assert len(set(figures.MARKS)) == len(figures.MARKS) == 8
