"""The report shows what the records hold, binds every number to its field, and needs no network."""

import csv
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import in_process
import nbformat
import numpy as np
import pytest
import synthetic_records as synthetic
from bs4 import BeautifulSoup
from markupsafe import Markup

from lib import record, report
from lib.alignment import questions
from lib.errors import UserError
from lib.report import fragments, pdf, pictures, verify
from lib.report.page import Page, grouped
from lib.show import messages, tables
from notebooks.probes import PROBES, rosetta

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "90_compare.ipynb"


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = synthetic.write_all(tmp_path_factory.mktemp("judged"))
    questions.judge_records(folder, [synthetic.MODEL])
    return folder


def rendered(records, out, monkeypatch, models=(synthetic.MODEL,)) -> str:
    in_process.patch(monkeypatch)
    return in_process.made(out, list(models), records=records).read_text()


@pytest.fixture(scope="module")
def page(judged, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return rendered(judged, tmp_path_factory.mktemp("page"), patch)


class References(HTMLParser):
    """Collects what the page refers to."""

    def __init__(self):
        super().__init__()
        self.links, self.sources, self.headings = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes["href"]] if "href" in attributes else []
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.headings += [int(tag[1])] if re.fullmatch(r"h\d", tag) else []
        if tag == "img":
            assert attributes.get("alt"), "a figure without alternative text"


def parsed(page: str) -> References:
    found = References()
    found.feed(page)
    return found


def test_one_file_without_network(page, judged):
    found = parsed(page)
    outside = {link for link in found.links if not link.startswith(("#", "data:text/csv"))}
    assert all(link.startswith(f"../{judged.name}/") for link in outside), "leads out of the report and its records"
    assert all(source.startswith("data:") for source in found.sources)
    assert not re.search(r"https?://(?!www\.w3\.org)|<script |@import|url\(", page)
    anchors = set(re.findall(r' id="([^"]+)"', page))
    assert {link[1:] for link in found.links if link.startswith("#")} <= anchors
    assert len(re.findall(r' id="', page)) == len(anchors), "an id is used twice"


def test_figures_stand_in_the_report(page):
    drawn = re.findall(r'<figure data-figure="synthetic/([^"/]+)/', page)
    assert set(drawn) == set(pictures.QUESTIONS) and len(drawn) == len(parsed(page).sources)


def test_headings_leave_out_no_level(page):
    found = parsed(page).headings
    assert found[0] == 1 and found.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(found, found[1:]))


def test_the_page_is_what_the_cells_show_with_the_text_before_them(judged, page, tmp_path):
    """No code, no text whose cell shows nothing, and each part as JupyterLab shows it."""
    shown = Page(judged, tmp_path, [synthetic.MODEL], "quick")
    for question in ("losses", "divergence"):
        assert str(BeautifulSoup(shown.question(question).html, "html.parser")).strip() in page
    assert "import" not in re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.S) and "Time: half" not in page
    assert "Do all sides have the same entries" in page and '<div lang="' not in page


def test_a_sentence_of_the_notebook_stands_in_the_report(judged, tmp_path, monkeypatch):
    """And who types a number into one is found out."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    sentence = "Does every parameter receive the same gradient?"
    for cell in notebook.cells:
        cell.source = cell.source.replace(sentence, f"{sentence} We looked at 4711 of them.")
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / NOTEBOOK.name)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    page = rendered(judged, tmp_path / "out", monkeypatch)
    assert "We looked at 4711 of them." in page
    (checked,) = verify.verify(tmp_path / "out")
    assert [fault.partition(": ")[2] for fault in checked.faults] == ["'4711' is bound to no record"]


def test_nbconvert_alone_makes_the_same_page(judged, tmp_path, monkeypatch):
    page = rendered(judged, tmp_path, monkeypatch)
    made = tmp_path / "notebooks" / "all" / "none" / NOTEBOOK.name
    template = ["--template", "lib/report/templates/report"]
    command = [sys.executable, "-m", "nbconvert", "--to", "html", *template, str(made), "--output", "by_hand.html"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert made.with_name("by_hand.html").read_text() == page


def test_questions_link_to_the_notebooks_that_measured_them(judged, tmp_path):
    for place in ("synthetic/torch/50_forward", "synthetic/jittor/50_forward", "other/torch/50_forward"):
        path = tmp_path / "notebooks" / f"{place}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = '<div lang="en">\n\n# Forward\n\n</div>\n<div lang="zh">\n\n# 前向\n\n</div>'
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), path)
    shown = Page(judged, tmp_path, [synthetic.MODEL], "quick").question("forward").html
    links = re.findall(r'href="(notebooks/[^"]+)"', shown)
    assert links == [f"notebooks/synthetic/{side}/50_forward.html" for side in ("jittor", "torch")]
    report.render_notebooks(tmp_path, "zh")
    said = (tmp_path / links[0]).read_text()
    assert "前向" in said and "Forward" not in said and 'href="../../../index.html"' in said
    before = (tmp_path / links[0]).stat().st_mtime_ns
    report.render_notebooks(tmp_path, "zh")
    assert (tmp_path / links[0]).stat().st_mtime_ns == before, "rendered again though nothing changed"
    report.render_notebooks(tmp_path, "en")
    assert "Forward" in (tmp_path / links[0]).read_text()
    for damaged in ('{"cells": [', "{}"):
        path.write_text(damaged)
        with pytest.raises(UserError, match="other/torch/50_forward.ipynb: damaged .*: remove it, and its job runs"):
            report.render_notebooks(tmp_path, "en")


def test_the_notebook_asks_every_question():
    source = NOTEBOOK.read_text()
    assert not [question for question in questions.QUESTIONS if f'page.question(\\"{question}\\")' not in source]
    assert {stem for question in questions.QUESTIONS.values() for stem in question.notebooks} <= {
        path.stem for path in NOTEBOOK.parent.iterdir()
    }


def test_a_table_is_also_a_file(page):
    table, link = re.search(r'(<table class="evidence">.*?</table>).*?href="(data:text/csv[^"]*)"', page, re.S).groups()
    lines = list(csv.reader(io.StringIO(unquote(link.partition(",")[2]))))
    assert lines[0][:3] == ["Tensor or number", "Compared", "Error"]
    value = re.search(r'<data [^>]*value="([^"]+)"', table)[1]
    assert any(value in line for line in lines), "a number as it stands in the record"


def test_every_question_has_a_theme_and_words():
    shown = grouped(["speed", "forward", "losses"])
    assert shown == {"answers": ("forward",), "learning": ("losses",), "cost": ("speed",)}
    asked = {f"question.{name}" for name in questions.QUESTIONS}
    asked |= {f"theme.{question.theme}" for question in questions.QUESTIONS.values()}
    for language in messages.LANGUAGES:
        assert asked <= set(messages.Messages(language).texts)


def test_text_can_be_read_on_every_ground():
    """WCAG's contrast of at least 4.5, in light and dark, of every colour of text on paper and panel."""
    css = fragments.STYLE.read_text()
    grounds = re.findall(r":root \{(.*?)\}", css, re.S)
    assert len(grounds) == 2
    for held in grounds:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", held))
        for name in ("ink", "quiet", "link", "pass", "fail", "not-run", "shown", "apart"):
            assert min(contrast(colours[name], colours[ground]) for ground in ("paper", "panel")) >= 4.5, name
    assert contrast("#ffffff", re.search(r"\.badge\.fail \{ color: #fff; background: (#\w{6})", css)[1]) >= 4.5


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return np.dot(
            [0.2126, 0.7152, 0.0722], [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        )

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("language, said", [("en", "flipped, none beyond rounding"), ("zh", "均在舍入范围之内")])
def test_a_flipped_decision_is_listed_with_its_margin(judged, tmp_path, monkeypatch, language, said):
    folder = Path(shutil.copytree(judged, tmp_path / "records"))

    def flip(fields, arrays):
        chosen = arrays[f"assignment/{synthetic.CHOICES[0]}"].copy()
        chosen[synthetic.NEAR] = 1 - chosen[synthetic.NEAR]
        arrays[f"assignment/{synthetic.CHOICES[0]}"] = chosen

    synthetic.edit(folder, "jittor", "loss", flip)
    questions.judge_records(folder, [synthetic.MODEL])
    in_process.patch(monkeypatch)
    monkeypatch.setattr(pictures, "draw", lambda *_: ())
    page = in_process.made(tmp_path / "out", [synthetic.MODEL], language, records=folder).read_text()
    assert page.replace("<wbr/>", "").count(f"{synthetic.CHOICES[0]} at (1, 7)</span></th>") == 2 and said in page
    assert not [
        fault for checked in verify.verify(tmp_path / "out") for fault in checked.faults if "figure" not in fault
    ]


def test_failures_and_gaps_are_on_the_first_page(judged, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(judged, tmp_path / "records"))
    (folder / synthetic.MODEL / "jittor" / "train.json").unlink()
    synthetic.edit(
        folder, "jittor", "loss", lambda fields, arrays: arrays.pop("float32/gradient/joint_epoch0/head.weight")
    )
    questions.judge_records(folder, [synthetic.MODEL])
    failed = Page(folder, tmp_path, [synthetic.MODEL], "quick").failures
    assert failed == [
        f"synthetic: {question} ({pair})"
        for question in ("gradients", "step")
        for pair in ("published-jittor", "torch-jittor")
    ]
    page = rendered(folder, tmp_path / "out", monkeypatch)
    summary = page.split("</header>")[0]
    assert summary.count('class="badge fail" data-ref') == 4 and summary.count('class="badge not-run" data-ref') == 2
    assert "head.<wbr/>weight</span>: <span" in page and ">missing</span>" in page
    assert "synthetic/<wbr/>jittor/<wbr/>train" in page


def test_a_model_without_records_is_not_run(tmp_path, monkeypatch):
    compared = questions.judge_records(tmp_path / "records", ["absent"])
    assert set(tables.verdict_matrix(compared).to_numpy().ravel()) - {""} == {"NOT RUN"}
    assert ">NOT RUN<" in rendered(tmp_path / "records", tmp_path / "out", monkeypatch, ["absent"])


def test_without_verdicts_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match="no verdicts"):
        Page(tmp_path / "records", tmp_path, [synthetic.MODEL], "quick")


def test_three_models_stand_beside_each_other(judged, tmp_path, monkeypatch):
    """Each with its own verdicts, and a failure of one is said to be its own; a fourth begins another table."""
    folder = Path(shutil.copytree(judged, tmp_path / "records"))
    names = ["second", "third", "fourth"]
    for name in names:
        for path in Path(shutil.copytree(folder / synthetic.MODEL, folder / name)).glob("*/*.json"):
            path.write_text(path.read_text().replace(f'"{synthetic.MODEL}', f'"{name}'))
    (folder / "second" / "jittor" / "train.json").unlink()
    questions.judge_records(folder, ["second"])
    monkeypatch.setattr(in_process, "drawn_once", lambda *_: ())
    page = rendered(folder, tmp_path / "out", monkeypatch, [synthetic.MODEL, *names])
    first = page.split("</header>")[0]
    assert [table.count('scope="colgroup"') for table in first.split('<table class="matrix">')[1:]] == [3, 1]
    gap = 'class="badge not-run" data-ref'
    assert first.count(gap) == 2 and first.index('href="#second-schedule"') < first.index(gap)
    assert all(f'id="{name}-speed"' in page and "<h4><span data-ref=" in page for name in names)


def test_probes_of_the_operators_are_counted(judged, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(judged, tmp_path / "records"))
    monkeypatch.setattr(in_process, "drawn_once", lambda *_: ())
    assert "No record of the probes" in rendered(folder, tmp_path / "out", monkeypatch)
    native = [probe for probe in PROBES if probe.backend is None and np.asarray(probe.reference()).dtype.kind == "f"][
        :2
    ]
    for side, apart in (("torch", 0), ("jittor", 1)):
        right = (np.asarray(probe.reference()) + shift for probe, shift in zip(native, (0, apart)))
        answers = (
            {"kind": "numbers", "shape": list(values.shape), "values": values.ravel().tolist()} for values in right
        )
        probes = {
            probe.name: {"digest": probe.digest(), "native": answer, "backend": None, "seconds": 0.0}
            for probe, answer in zip(native, answers)
        }
        backend = SimpleNamespace(NAME=side, VERSION="0", device=lambda: "cpu", cache_path=lambda: None)
        with record.measure("rosetta", "all", folder, side=backend) as out:
            out.fields["probes"] = probes
    held = rosetta.count(folder).fields
    assert held["counts"] == {"same": 1, "mended": 0, "different": 1, "unknown": len(PROBES) - 2}
    for kind, number in held["counts"].items():
        assert sum(topic[kind] for topic in held["topics"]) == number
    page = rendered(folder, tmp_path / "out", monkeypatch)
    unknown = BeautifulSoup(page, "html.parser").select_one('data[data-ref="all/none/rosetta#/fields/counts/unknown"]')
    assert unknown.text == str(held["counts"]["unknown"])
    (folder / "all" / "torch" / "rosetta.json").unlink()
    (folder / "all" / "jittor" / "rosetta.json").unlink()
    assert rosetta.count(folder) is None
    assert not (folder / "all" / "none" / "rosetta.json").exists(), "counts outlive what they counted"


def test_an_unknown_language_is_a_clear_error():
    with pytest.raises(UserError, match="choose from en"):
        messages.Messages("xx")


def test_the_same_records_give_the_same_page(judged, page, tmp_path, monkeypatch):
    """But for the lines of the records that judging writes anew."""
    written = r'<tr id="record-synthetic-(none|published)-.*?</tr>'
    pages = (re.sub(written, "", one, flags=re.S) for one in (page, rendered(judged, tmp_path, monkeypatch)))
    assert len(set(pages)) == 1


def test_no_printer_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    monkeypatch.setattr(pdf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="install Debian's chromium, or pip install weasyprint"):
        pdf.write(tmp_path / "index.html", tmp_path / "report.pdf")


def test_a_browser_that_fails_gives_way_and_is_named(tmp_path, monkeypatch):
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho 'no display' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(pdf.shutil, "which", lambda name: str(broken))
    monkeypatch.setattr(pdf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="chromium: no display"):
        pdf.write(tmp_path / "index.html", tmp_path / "report.pdf")


def test_a_pdf_is_printed(page, tmp_path):
    if not any(map(shutil.which, pdf.BROWSERS)) and not pdf.importlib.util.find_spec("weasyprint"):
        pytest.skip("neither Chromium nor WeasyPrint is on this machine")
    (tmp_path / "page.html").write_text(page)
    pdf.write(tmp_path / "page.html", tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes()[:5] == b"%PDF-"


def test_tables_against_numpy():
    held = {"assignment/joint/box": np.array([0, 0, 2, 2, 0, 1]), "option/joint/box": np.arange(3), "bn/x": np.zeros(3)}
    held["margin/joint/box"] = np.where(
        held["assignment/joint/box"][:, None] == np.arange(3), 0, np.array([40, 3, 40.0])
    )
    found = tables.decisions(held, {"joint/box": {"cost": 1e-6}})
    assert found.loc[("joint", "box")].to_dict() == {
        "places": 6,
        "chosen": 3,
        "values": 3,
        "nearest, floors": 3,
        "below the gate": 5,
        "floors of": "cost 1e-06",
    }
    assert tables.text(4330904) == "4\u2009330\u2009904" and [
        tables.text(one) for one in (1.2e-5, 0.0005 / 3, 0.76003)
    ] == ["1.2e-05", "1.667e-04", "0.7600"]


@pytest.mark.parametrize(
    "language, words", [("en", ("reach of rounding", "yes", "PASS")), ("zh", ("舍入可达", "是", "通过"))]
)
def test_a_notebook_s_table_speaks_the_reader_s_language_in_one_notation(monkeypatch, language, words):
    monkeypatch.setattr(tables, "words", lambda: messages.Messages(language))
    held = {
        "reach": [1.23456e-7, np.nan],
        "values": np.array([4330904, 2]),
        "what": ["a<b", "PASS"],
        "same": [True, None],
    }
    frame = tables.Frame(held, index=["torch", "body.0"])
    shown = frame.head(2).join(tables.values({"torch": 1}, "own"))._repr_html_()
    assert all(
        f">{text}<" in shown for text in (*words, "1.235e-07", "4\u2009330\u2009904", "PyTorch", "body.0", "a&lt;b")
    )
    assert "nan" not in shown and "None" not in shown and shown.count("text-align: left") == 3, (
        "rows, their name, a column"
    )


# --------------------------------------------------------------------------------------------------------- notebook


def test_the_report_is_there_before_the_run_goes_red(judged, tmp_path, monkeypatch):
    in_process.patch(monkeypatch)
    folder = Path(shutil.copytree(judged, tmp_path / "records"))
    synthetic.edit(
        folder,
        "jittor",
        "loss",
        lambda fields, arrays: fields["losses"]["joint_epoch0"]["float32"].update(loss_bbox=2.0),
    )
    values = {"models": [synthetic.MODEL], "records": str(folder), "report": str(tmp_path / "red")}
    made = report.make("90_compare", {**values, "profile": "quick", "language": "en"})
    assert "losses (torch-jittor)" in str(made.failure) and "AssertionError" not in made.html.read_text()
    assert not [one for checked in verify.verify(tmp_path / "red") for one in checked.faults]
    assert record.read(folder / synthetic.MODEL / "none" / "compare.json").fields["verdicts"]


def test_a_notebook_that_stops_early_makes_no_page(judged, tmp_path, monkeypatch):
    in_process.patch(monkeypatch)

    def stops(page, question):
        raise AssertionError("no such part")

    monkeypatch.setattr(Page, "question", stops)
    with pytest.raises(UserError, match="no such part"):
        in_process.made(tmp_path, [synthetic.MODEL], records=judged)
    assert not (tmp_path / "index.html").exists()


def test_a_space_goes_between_chinese_texts_and_stays_inside_a_name():
    words = messages.Messages("zh")
    assert words.beside("数据", Markup("<b>行人 车辆</b>"), "图像") == "数据<b>行人 车辆</b>图像"
    assert words.beside("数据", "COCO", "图像") == "数据 COCO 图像"


def test_the_readme_block_needs_its_marks_and_its_records(tmp_path):
    from lib.report import readme

    page = tmp_path / "README.md"
    page.write_text("no marks")
    with pytest.raises(UserError, match="marks"):
        readme.write(tmp_path, page)
    page.write_text(f"before {readme.START} old {readme.END} after")
    with pytest.raises(UserError, match="make report"):
        readme.write(tmp_path, page)
    assert page.read_text() == f"before {readme.START} old {readme.END} after"


def test_the_readme_block_holds_the_numbers_of_the_records(tmp_path):
    from lib.report import readme

    records = synthetic.write_all(tmp_path / "records")
    questions.judge_records(records, [synthetic.MODEL])
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.START}{readme.END}\nafter")
    readme.write(tmp_path, page)
    text = page.read_text()
    found = record.read(records / synthetic.MODEL / "jittor" / "evaluate.json").fields["own"]["AP50"]
    assert text.startswith("before") and text.endswith("after") and f"{found:.3f}" in text and "| PASS |" in text
