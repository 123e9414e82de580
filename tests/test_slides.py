"""Decks work without a network and show every cell's result after its question. Needs reveal.js, which only the torch
environment has."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

from lib import __main__ as command_line
from lib import backend
from lib.errors import UserError
from lib.report import slides
from lib.report.pdf import BROWSERS

if backend.NAME != "torch":
    pytest.skip("reveal.js comes with sphinx-revealjs, in the torch environment", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
PICTURE = '<img alt="a" src="data:image/png;base64,iVBORw0KGgo=">'


def spoken(english: str, chinese: str) -> str:
    """A markdown cell's source in both languages."""
    return f'<div lang="en">\n\n{english}\n\n</div>\n<div lang="zh">\n\n{chinese}\n\n</div>'


def notebook():
    """A small lecture as a run leaves it."""
    new = nbformat.v4
    shown = new.new_output("execute_result", data={"text/html": PICTURE, "text/plain": "Picture"}, execution_count=3)
    said = new.new_output("stream", name="stdout", text="forty-two </script> & more\n")
    return new.new_notebook(
        cells=[
            new.new_markdown_cell(spoken("# What is a kernel?\n\n**Question.** Which?", "# 什么是卷积核？")),
            new.new_code_cell("classes = 80", metadata={"tags": ["parameters"]}, execution_count=1),
            new.new_code_cell("import hidden_module", execution_count=2),
            new.new_markdown_cell("**Predict first.** How many? 有几个？"),
            new.new_code_cell("shown()", outputs=[shown, said], execution_count=3),
            new.new_markdown_cell("For the speaker.", metadata={"slideshow": {"slide_type": "notes"}}),
        ]
    )


@pytest.fixture(scope="module")
def deck():
    return slides.deck(notebook())


def test_a_deck_is_one_file_that_loads_nothing(deck):
    outside = re.sub(r"<script>.*?</script>", "", deck, flags=re.S)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", outside), "refers to another file"
    assert not re.search(r"@import|url\((?!data:)", outside)
    assert "<script src" not in deck and "sourceMappingURL" not in deck
    assert deck.startswith("<!DOCTYPE html>") and "<title>What is a kernel?</title>" in deck


def test_questions_come_before_results_and_the_machinery_is_left_out(deck):
    body = deck[deck.index('<div class="slides">') :]
    assert "hidden_module" not in body and "classes = 80" not in re.sub(r"<[^>]+>", "", body)
    question, result = body.index("Predict first"), body.index("data:image/png")
    assert "</section><section" in re.sub(r"\s", "", body[question:result]), "the result shows with its question"
    assert body.index('<aside class="notes">') > result and "有几个" in body


def test_a_deck_speaks_one_language(deck):
    chinese = slides.deck(notebook(), "zh")
    assert '<html lang="en">' in deck and "什么是卷积核" not in deck
    assert (
        '<html lang="zh">' in chinese
        and "What is a kernel" not in chinese
        and "<title>什么是卷积核？</title>" in chinese
    )


def test_what_long_code_gives_has_a_slide_of_its_own():
    held = notebook()
    held.cells[4].source = "a = 1\nb = 2\nc = 3\nshown(a + b + c)"
    body = slides.deck(held).partition('<div class="slides">')[2].partition("<script>")[0]
    code, result = body.index("shown"), body.index("data:image/png")
    assert "</section><section" in re.sub(r"\s", "", body[code:result]) and body.count("shown") == 1


def test_a_cell_s_own_type_wins():
    held = notebook()
    held.cells[2].metadata["slideshow"] = {"slide_type": "slide"}
    kinds = [cell.metadata["slideshow"]["slide_type"] for cell in slides.typed(held).cells]
    assert kinds == ["slide", "skip", "slide", "slide", "subslide", "notes"]


def test_it_opens_in_a_browser(deck, tmp_path):
    """reveal.js itself, started: it marks the page as ready and numbers the slides."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = tmp_path / "deck.html"
    page.write_text(deck)
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--dump-dom",
        page.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert re.search(r'<div class="reveal[^"]*\bready\b', shown), "reveal.js did not start"
    assert shown.count('class="stack') == 2 and 'class="slide-number"' in shown


@pytest.mark.parametrize("name", slides.LECTURES)
def test_every_lecture_has_questions_and_slides(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    held = nbformat.read(path, as_version=4)
    kinds = [cell.metadata["slideshow"]["slide_type"] for cell in slides.typed(held).cells]
    assert kinds.count("slide") >= 4 and kinds.count("subslide") >= 4 and kinds[0] == "slide"
    assert any("Predict first" in cell.source for cell in held.cells), "a lecture asks before it tells"


def test_executed_copies_serve_while_their_cells_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "ROOT", tmp_path)
    source, executed = tmp_path / "x.ipynb", tmp_path / "reports/quick/notebooks/m/torch/x.ipynb"
    executed.parent.mkdir(parents=True)
    nbformat.write(notebook(), source)
    ran = notebook()
    ran.cells.insert(2, nbformat.v4.new_code_cell("classes = 20", metadata={"tags": ["injected-parameters"]}))
    nbformat.write(ran, executed)
    monkeypatch.setattr(slides, "_run", lambda *_: pytest.fail("runs what was run"))
    assert slides.make({"x": source}, tmp_path / "out", "quick") == [tmp_path / "out" / "x.html"]
    changed = json.loads(source.read_text())
    changed["cells"][4]["source"] = ["other()"]
    source.write_text(json.dumps(changed))
    monkeypatch.setattr(slides, "_run", lambda notebook, out: notebook)
    slides.make({"x": source}, tmp_path / "out", "quick")
    assert "other" in (tmp_path / "out" / "x.html").read_text()


def test_a_lecture_that_reads_both_kernels_records_has_both(tmp_path, monkeypatch):
    """Jittor's probes run before PyTorch's, whose copy shows both; their records stay out of the reports."""
    ran = []
    monkeypatch.setattr(slides, "execute", lambda source, executed, kernel, values: ran.append((kernel, values)))
    monkeypatch.setattr(slides.environment, "location", lambda environment: tmp_path)
    assert (
        slides._run(ROOT / "notebooks" / "30_migration.ipynb", tmp_path)
        == tmp_path / ".executed" / "30_migration.ipynb"
    )
    records = {"records": str(tmp_path / ".executed" / "records")}
    assert ran == [("jittor", records), ("torch", records)]
    ran.clear()
    slides._run(ROOT / "notebooks" / "20_nanodet_plus.ipynb", tmp_path)
    assert ran == [("torch", {})]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """opened(notebook, script) -> what the script finds in the notebook's deck, in a window of a deck's own size."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = tmp_path_factory.mktemp("deck") / "deck.html"
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])

        def ask(held, script: str):
            page.write_text(slides.deck(held))
            shown = chromium.new_page(viewport={"width": 1120, "height": 700})
            shown.goto(page.as_uri())
            shown.wait_for_selector(".reveal.ready")
            return shown.evaluate(script)

        yield ask
        chromium.close()


def test_a_text_taller_than_its_slide_gets_smaller(opened):
    long = notebook()
    words = "Many words that go on for longer than a line of a slide is wide, and then on."
    long.cells[0].source = spoken("\n\n".join(["# Title", *[words] * 25]), "# 标题")
    zoom, bottom = opened(
        long,
        "[Reveal.getCurrentSlide().querySelector('.jp-Cell').style.zoom,"
        " Reveal.getCurrentSlide().getBoundingClientRect().bottom]",
    )
    assert 0.4 <= float(zoom) < 1 and bottom <= 700


def test_no_row_of_a_long_table_is_cut(opened):
    """It goes on, under the same head, on slides of its own; every row is on one of them, whole."""
    long = notebook()
    rows = "".join(f"<tr><td>{row}</td></tr>" for row in range(70))
    table = f"<table><thead><tr><th>number</th></tr></thead><tbody>{rows}</tbody></table>"
    long.cells[4].outputs = [nbformat.v4.new_output("display_data", data={"text/html": table})]
    pages = opened(
        long,
        """Array.from({length: Reveal.getTotalSlides()}, (_, step) => {
            if (step) Reveal.next();
            const slide = Reveal.getCurrentSlide();
            return [[...slide.querySelectorAll('td')].map(cell => Number(cell.textContent)),
                    slide.querySelectorAll('th').length, slide.getBoundingClientRect().bottom];
        })""",
    )
    tables = [page for page in pages if page[0]]
    assert sum((shown for shown, _, _ in tables), []) == list(range(70)) and len(tables) > 2
    assert all(heads == 1 and bottom <= 700 for _, heads, bottom in tables)


def test_without_reveal_there_is_one_line(monkeypatch, capsys, tmp_path):
    nbformat.write(notebook(), tmp_path / "x.ipynb")
    monkeypatch.setattr(slides.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(slides, "_run", lambda *_: pytest.fail("runs a notebook that can't become a deck"))
    with pytest.raises(UserError, match="sphinx-revealjs"):
        slides.reveal()
    assert command_line.main(["slides", str(tmp_path / "x.ipynb"), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
