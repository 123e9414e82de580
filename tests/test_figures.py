"""Every figure: the same bytes each time, in the language asked for, names as they are, nothing empty."""

import html
import io
import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.alignment.trajectory import LEAST, band
from lib.evaluation.detection import Classes
from lib.show import drawing, figures, figures_alignment, figures_evaluation, fonts, style
from lib.show.messages import LANGUAGES, Messages
from notebooks.exam import figures as exam
from notebooks.exam.examination import Result

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = ("$x_1$", "_hidden", "{v1}", "<b>bold</b>", "螺栓", "x" * 100, "a #2", r"\frac{1}{2}", "two\nlines")
STEPS = np.arange(60)
CURVES = {
    side: {"step": STEPS, "loss": 3 - 0.01 * STEPS + np.sin(7 * STEPS + phase), "loss_qfl": np.cos(STEPS)}
    for phase, side in enumerate(("torch", "jittor"))
}
EPOCHS = [{"epoch": 0, "AP": 0.1}, {"epoch": 1, "AP": 0.3}]
IMAGE = np.zeros((32, 32, 3), np.uint8)
BOX = np.array([[4.0, 4.0, 20.0, 20.0]])
ROWS = np.array([[4, 4, 20, 20, 0.9, 0], [8, 8, 30, 30, 0.6, 1], [1, 1, 9, 9, 0.1, 1]])
SAMPLE = {"image": IMAGE, "boxes": BOX, "labels": [0], "found": {"torch": ROWS, "jittor": ROWS[:1]}}
PRECISION = {"torch": np.full((10, 101, 2), 0.5), "jittor": np.full((10, 101, 2), 0.25)}
RESULTS = [
    Result(f"fault {gate} {ratio}", "", "weights", "NanoDet-Plus", "", gate, ratio, (), "", 1.0)
    for gate, ratio in (("forward", 3.0), ("none", 0.0), ("none", 0.5), ("structure", float("inf")))
]
FIGURES = {
    "losses": lambda: figures.loss_curves(CURVES),
    "average precision": lambda: figures.map_curves({"torch": EPOCHS, "a run": EPOCHS[:1]}),
    "learning rate": lambda: figures.learning_rate({"step": [0, 1, 2], "learning_rate": [0.0, 1.0, 0.5]}),
    "box sizes": lambda: figures.box_sizes({"train": np.geomspace(4, 200, 60), "val": np.full(9, 5.0)}),
    "contact sheet": lambda: figures.contact_sheet([IMAGE] * 3, [BOX] * 3, columns=2),
    "detections": lambda: figures.detections([SAMPLE], ["disc", "star"]),
    "feature maps": lambda: figures.feature_maps({"a": np.ones((1, 3, 4, 4)), "b": np.ones((1, 3, 2, 2))}),
    "classes": lambda: figures.class_histogram({"train": [3, 1], "val": [1, 0]}, ["disc", "star"]),
    "bars": lambda: figures.bars({"conv": {"torch": 1.0, "jittor": 2.0}}, "time (ms)", "Slowest operators."),
    "precision": lambda: figures_evaluation.sides(["disc", "star"], PRECISION),
    "averages": lambda: figures_evaluation.averages(["disc", "star"], PRECISION),
    "exam": lambda: exam.classes(RESULTS),
    "beyond": lambda: exam.beyond(RESULTS, "weights"),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_figures_are_the_same_bytes_each_time_and_say_what_they_show(name, language):
    with style.speaking(Messages(language)):
        first, second = FIGURES[name](), FIGURES[name]()
    assert first == second and first.data and first.language == (language if fonts.chinese() else "en")
    assert b"<dc:date>" not in first.data
    assert first.html().startswith(f'<img alt="{html.escape(first.alt)}" lang="{first.language}" src="data:')
    chinese = re.search("[\u4e00-\u9fff]", first.alt)
    assert bool(chinese) == (first.language == "zh") or name == "bars", "its sentence is the caller's"


def test_a_figure_speaks_the_language_around_it_or_the_one_asked_for():
    english, chinese = (figures.map_curves({"torch": EPOCHS}, words=Messages(language)) for language in ("en", "zh"))
    with style.speaking(Messages("en")):
        assert figures.map_curves({"torch": EPOCHS}) == english
        assert figures.map_curves({"torch": EPOCHS}, words=Messages("zh")) == chinese
    assert (english.data != chinese.data) == bool(fonts.chinese())


def test_without_a_chinese_font_figures_are_english_and_that_is_said_once(monkeypatch):
    monkeypatch.setattr(fonts, "chinese", lambda: ())
    style._english.cache_clear()
    with pytest.warns(UserWarning, match="install a font") as caught:
        drawn = [figures.map_curves({"螺栓": EPOCHS}, words=Messages("zh")) for _ in range(2)]
    assert len(caught) == 1 and {one.language for one in drawn} == {"en"} and drawn[0] == drawn[1]
    assert fonts.one_line("螺栓 a") == "U+87BAU+6813 a", "no boxes"


def test_every_text_of_the_catalogue_is_drawn_and_every_text_that_is_drawn_is_in_it():
    drawing = (ROOT / "lib/show", ROOT / "notebooks/exam", ROOT / "notebooks/tours")
    sources = [path for folder in drawing for path in folder.glob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    asked = {re.sub(r"\\{\w+\\}", r"\\w+", re.escape(key)) for key in re.findall(r'"([a-z_.{}]+)"', code)}
    keys = {re.sub(r"^figure.(tour.)?", "", key) for key in Messages("en").texts if key.startswith("figure.")}
    assert not [key for key in keys if not any(re.fullmatch(pattern, key) for pattern in asked)]
    assert set(re.findall(r'(?:said|nothing)\(\s*"([^"]+)"', code)) <= keys


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_drawn_as_it_is(name):
    """Not as mathematics (whose letters are of another font), never as a crash, in one line that is not too long."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = [
            figures.bars({name: {"torch": 1.0, name: 2.0}}, "ms", name),
            figures.map_curves({name: EPOCHS}),
            figures_evaluation.sides([name], {"torch": PRECISION["torch"][:, :, :1]}),
            figures.detections([SAMPLE], [name, "star"]),
            figures.feature_maps({name: np.ones((1, 3, 4, 4))}),
        ]
    assert all(one.data and b"Oblique" not in one.data and b"STIX" not in one.data for one in drawn)
    written = style.written(name)
    assert len(written) <= fonts.LONGEST and "\n" not in written and not written.startswith("_")
    assert figures.map_curves({name: EPOCHS}).data != figures.map_curves({name.strip("$_"): EPOCHS}).data or name in (
        "{v1}", "<b>bold</b>", "螺栓", "x" * 100, "a #2", r"\frac{1}{2}", "two\nlines"
    )  # fmt: skip


def test_a_long_name_loses_its_middle():
    assert style.written("backbone." + "x" * 60 + ".weight", 20) == "backbone.…xxx.weight"


# ----------------------------------------------------------------------------------------------- what there is to see


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.map_curves({"torch": [], "jittor": []}),
        lambda: figures.map_curves({"torch": [{"epoch": 0, "AP": -1.0}, {"epoch": 1, "AP": "NaN"}]}),
        lambda: figures.forward_depth({"torch-jittor": []}, ["a"]),
        lambda: figures.detections([], ["disc"]),
        lambda: figures.box_sizes({"train": np.zeros(0)}),
        lambda: figures.bars({}, "ms", "Nothing."),
        lambda: figures.speed({"torch": []}),
        lambda: figures.feature_maps({"a": np.ones((1, 3))}),
        lambda: figures_evaluation.sides(["disc"], {"torch": np.full((10, 101, 1), -1.0)}),
        lambda: figures_alignment.band_of_controls({}),
    ],
)
def test_where_nothing_can_be_drawn_a_sentence_says_so(draw):
    picture = draw()
    assert not picture.data and re.fullmatch(r'<p lang="\w+">.+[.。]</p>', picture.html())


def test_sides_differ_without_colour():
    for look in (style.LINES, style.MARKERS, style.HATCHES, style.COLOURS):
        assert len({look[side] for side in style.SIDES}) == 3
    assert len({tuple(style.look("", place).values()) for place in range(8)}) == 8


def test_a_curve_is_smoothed_over_its_raw_points_and_a_nan_leaves_a_gap():
    figure, axis = style.single()
    values = np.where(STEPS == 30, np.nan, 2.0 + (-1.0) ** STEPS)
    style.trace(axis, STEPS, values, "curve", color="black")
    style.trace(axis, [3], [1.0], "point", color="black", marker=None)
    raw, mean, point = (np.asarray(line.get_ydata()) for line in axis.lines)
    assert np.array_equal(raw, values, equal_nan=True) and axis.lines[0].get_alpha() < 0.5
    known = mean[np.isfinite(mean)]
    assert 0 < np.isnan(mean).sum() <= 3 and np.ptp(known) < np.ptp(raw[:30]) and abs(known.mean() - 2) < 0.1
    assert np.isfinite(mean[-1]) and axis.lines[2].get_marker() is not None and len(point) == 1


def test_the_difference_is_that_of_the_steps_both_made(monkeypatch):
    traced = []
    monkeypatch.setattr(style, "trace", lambda axis, x, y, *label, **line: traced.append((x, y)))
    short = {"step": STEPS[10:], "loss": CURVES["jittor"]["loss"][10:]}
    figures.loss_curves({"torch": CURVES["torch"], "jittor": short})
    steps, values = traced[-1]
    assert np.array_equal(steps, STEPS[10:])
    assert np.array_equal(values, (CURVES["jittor"]["loss"] - CURVES["torch"]["loss"])[10:])


def test_exact_zeros_stand_on_the_lower_edge_of_a_logarithmic_axis():
    figure, axis = style.single()
    axis.plot([style.LEAST, 3e-5, 2e-3])
    axis.axvline(1)
    style.logarithmic(axis)
    tick = axis.yaxis.get_major_formatter()
    assert axis.get_ylim()[0] == pytest.approx(1e-6) == axis.lines[0].get_ydata()[0]
    assert [tick(10.0**power, 0) for power in (-6, -5, 2)] == ["0", "10⁻⁵", "10²"]


def test_long_curves_become_a_small_picture():
    """Vectors while they are few, else a PNG of few colours: a report of three models stays below five megabytes."""

    def drawn(steps: int) -> style.Picture:
        held = {"step": np.arange(steps), "loss": np.linspace(3, 1, steps) + np.sin(np.arange(steps))}
        return figures.loss_curves({"torch": held, "jittor": held})

    few, many = drawn(100), drawn(figures.POINTS)
    assert (few.kind, many.kind) == ("image/svg+xml", "image/png") and many == drawn(figures.POINTS)
    image = Image.open(io.BytesIO(many.data))
    assert image.mode == "P" and len(image.getcolors()) <= style.COLOURED and len(many.data) < 60_000


def test_a_framework_has_its_colour_in_every_figure():
    """The band's runs too: the run that is wrong on purpose is black."""
    runs = [1.0 + 1e-6 * np.random.default_rng(seed).standard_normal(8) for seed in range(LEAST)]
    drawn = figures_alignment.trajectory(
        "the loss", band(runs), {"torch": runs[0], "rate off": 1.1 * runs[0], "jittor": runs[1]}
    )
    shown = drawn.data.decode()
    assert all(style.COLOURS[side] in shown for side in ("torch", "jittor"))


def test_a_drawing_takes_the_page_s_ground_and_tones_and_an_image_in_colour_keeps_its_own():
    """In the dark a white slab would glare, and a photograph in other tones would be another one."""
    drawing_, photographs = figures.loss_curves(CURVES), figures.contact_sheet([IMAGE], [BOX])
    assert "var(--figure-ground" in drawing_.html() and "var(--figure-filter" in drawing_.html()
    assert b"fill: #ffffff" not in drawing_.data.split(b'id="axes_1"')[0], "its ground is the page's"
    figure, axis = style.single()
    figures.show_image(axis, IMAGE)
    mixed = style.picture(figure, "An image.", dense=True)
    assert photographs.photograph and mixed.photograph and "var(" not in photographs.html() + mixed.html()
    assert Image.open(io.BytesIO(mixed.data)).convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


# -------------------------------------------------------------------------------------------------------------- boxes


def test_detections_are_marked_where_the_other_side_has_none(monkeypatch):
    captions, marked = [], []
    board, readable = drawing.board, drawing.Painter.readable

    def framed(rows):
        captions.extend(caption for row in rows for caption, _ in row)
        return board(rows)

    def painted(painter, image, rows, marks, *rest):
        marked.append(marks.tolist())
        return readable(painter, image, rows, marks, *rest)

    monkeypatch.setattr(drawing, "board", framed)
    monkeypatch.setattr(drawing.Painter, "readable", painted)
    same = {**SAMPLE, "found": {"torch": ROWS, "jittor": ROWS}}
    figures.detections([same, same, SAMPLE, same, SAMPLE], ["disc", "star"], threshold=0.5, words=Messages("en"))
    assert len(marked) == 2 * figures.LARGE and marked.count([False, True]) == 2, "those with differences are shown"
    assert [re.findall(r"\d+", caption) for caption in captions[2:4]] == [["2", "1"], ["1", "0"]]


def test_as_many_boxes_are_shown_as_are_annotated():
    assert figures._threshold([SAMPLE]) == 0.5, "not above one half"
    weak = {"torch": ROWS * [1, 1, 1, 1, 0.2, 1], "jittor": ROWS[:0]}
    assert figures._threshold([{**SAMPLE, "found": weak}]) == pytest.approx(0.18)


def test_names_on_boxes_do_not_overlap(monkeypatch):
    stuck, stick = [], drawing._stick

    def watched(image, sticker, box, taken):
        stick(image, sticker, box, taken)
        stuck.append(taken)

    monkeypatch.setattr(drawing, "_stick", watched)
    rows = np.array([[40 + i, 60 + i, 200, 200, 0.9 - 0.01 * i, 0] for i in range(30)])
    drawing.Painter(Classes(("cup",), (1,))).paint(np.zeros((240, 320, 3), np.uint8), rows, [False] * 29 + [True])
    taken = stuck[-1]
    assert 8 < len(taken) < 30, "what has no room is left out"
    assert not any(
        x < u + v and u < x + w and y < b + c and b < y + h
        for (x, y, w, h), (u, b, v, c) in itertools.combinations(taken, 2)
    )
    assert all(x >= 0 and y >= 0 and x + w <= 320 and y + h <= 240 for x, y, w, h in taken)


def test_the_images_of_a_board_stand_in_columns():
    wide, high = np.full((20, 40, 3), 255, np.uint8), np.full((40, 20, 3), 255, np.uint8)
    board = drawing.board([[("a", wide), ("b", wide)], [("", high), ("", high)]])
    white = (board == 255).all(2)
    assert white[-drawing.INSET - 20 :].sum() == 2 * 20 * 20 and board.shape[1] == 2 * 40 + 3 * drawing.INSET
    assert (board[0] == drawing.FRAME).all() and not white[: drawing.INSET].any()
