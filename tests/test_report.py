"""The report shows what the records hold, binds every number to its field, and needs no network."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic_records as synthetic

from lib import record, report
from lib.alignment import questions, rosetta
from lib.errors import UserError
from lib.report import pdf, pictures, verify
from lib.report.bound import SHARED, records
from lib.report.page import THEMES, Model, Section, grouped
from lib.show import messages, tables
from notebooks.probes import PROBES

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "90_compare.ipynb"


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = synthetic.write_all(tmp_path_factory.mktemp("judged"))
    questions.judge_records(folder, [synthetic.MODEL])
    return folder


def rendered(records, out, monkeypatch, models=(synthetic.MODEL,)) -> str:
    monkeypatch.setattr(pdf, "write", synthetic.printed)
    return report.render(records, out, "quick", models).html.read_text()


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


def test_one_file_without_network(page):
    found = parsed(page)
    outside = {link for link in found.links if not link.startswith(("#", "../judged0/"))}
    assert {Path(link).name for link in outside} <= {"30_migration.ipynb"}, "leads out of the report and its records"
    assert all(source.startswith("data:") for source in found.sources)
    assert not re.search(r"https?://(?!www\.w3\.org)|<script|@import|url\(", page)
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert {link[1:] for link in found.links if link.startswith("#")} <= anchors
    assert len(re.findall(r'id="', page)) == len(anchors), "an id is used twice"


def test_figures_stand_in_the_report(page):
    drawn = re.findall(r'<figure data-figure="synthetic/([^"/]+)/', page)
    assert set(drawn) == set(pictures.QUESTIONS) and len(drawn) == len(parsed(page).sources)


def test_headings_leave_out_no_level(page):
    found = parsed(page).headings
    assert found[0] == 1 and found.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(found, found[1:]))


def test_a_question_alone_is_what_stands_in_the_page(judged, page):
    """So a notebook can show it."""
    words = messages.Messages("en")
    shared, name = records(judged, SHARED, words), synthetic.MODEL
    for question in ("losses", "divergence"):
        section = Section(Model(judged, name, shared, words), question)
        assert report.fill("question.html.j2", section=section, t=words).strip() in page


def test_every_question_has_a_theme_and_words():
    assert set(questions.QUESTIONS) <= {question for members in THEMES.values() for question in members}
    shown = grouped(["speed", "forward", "losses"])
    assert shown == {"answers": ("forward",), "learning": ("losses",), "cost": ("speed",)}
    asked = {f"question.{question}{more}" for question in questions.QUESTIONS for more in ("", ".ask")}
    for language in messages.LANGUAGES:
        assert asked | {f"theme.{theme}" for theme in THEMES} <= set(messages.Messages(language).texts)


def test_text_can_be_read_on_every_ground():
    """WCAG's contrast of at least 4.5, in light and dark, of every colour of text on paper and panel."""
    css = (ROOT / "lib" / "report" / "templates" / "report.css").read_text()
    grounds = re.findall(r":root \{(.*?)\}", css, re.S)
    assert len(grounds) == 2
    for held in grounds:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", held))
        for name in ("ink", "quiet", "link", "pass", "fail", "not-run", "shown"):
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
    compared = questions.judge_records(folder, [synthetic.MODEL])
    flips = tables.flips(compared)
    assert flips["decision"].tolist() == [f"{synthetic.CHOICES[0]} at (1, 7)"] * 2 and flips["legal"].all()
    assert tables.nearness(compared)["flipped"].max() == 1
    monkeypatch.setattr(pdf, "write", synthetic.printed)
    monkeypatch.setattr(pictures, "draw", lambda *_: ())
    page = report.render(folder, tmp_path / "out", "quick", [synthetic.MODEL], language).html
    assert f"{synthetic.CHOICES[0]} at (1, 7)" in page.read_text() and said in page.read_text()
    assert not [
        fault for checked in verify.verify(tmp_path / "out") for fault in checked.faults if "figure" not in fault
    ]


def test_failures_and_gaps_are_on_the_first_page(judged, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(judged, tmp_path / "records"))
    (folder / synthetic.MODEL / "jittor" / "train.json").unlink()
    synthetic.edit(
        folder, "jittor", "loss", lambda fields, arrays: arrays.pop("float32/gradient/joint_epoch0/head.weight")
    )
    compared = questions.judge_records(folder, [synthetic.MODEL])
    assert tables.failures(compared) == [
        f"synthetic: gradients ({pair})" for pair in ("published-jittor", "torch-jittor")
    ] + [f"synthetic: step ({pair})" for pair in ("published-jittor", "torch-jittor")]
    page = rendered(folder, tmp_path / "out", monkeypatch)
    summary = page.split('id="how"')[0]
    assert summary.count('class="badge fail" data-ref') == 4 and summary.count('class="badge not-run" data-ref') == 1
    assert "head.weight</span>: <span" in page and ">missing</span>" in page and "synthetic/jittor/train" in page


def test_a_model_without_records_is_not_run(tmp_path, monkeypatch):
    compared = questions.judge_records(tmp_path / "records", ["absent"])
    assert set(tables.verdict_matrix(compared).to_numpy().ravel()) - {""} == {"NOT RUN"}
    assert ">NOT RUN<" in rendered(tmp_path / "records", tmp_path / "out", monkeypatch, ["absent"])


def test_without_verdicts_there_is_no_report(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no verdicts"):
        rendered(tmp_path / "records", tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out").exists()


def test_three_models_stand_beside_each_other(judged, tmp_path, monkeypatch):
    """Each with its own verdicts, and a failure of one is said to be its own; a fourth begins another table."""
    folder = Path(shutil.copytree(judged, tmp_path / "records"))
    names = ["second", "third", "fourth"]
    for name in names:
        for path in Path(shutil.copytree(folder / synthetic.MODEL, folder / name)).glob("*/*.json"):
            path.write_text(path.read_text().replace(f'"{synthetic.MODEL}', f'"{name}'))
    (folder / "second" / "jittor" / "train.json").unlink()
    questions.judge_records(folder, ["second"])
    monkeypatch.setattr(pictures, "draw", lambda *_: ())
    page = rendered(folder, tmp_path / "out", monkeypatch, [synthetic.MODEL, *names])
    first = page.split('id="how"')[0]
    assert [table.count('scope="colgroup"') for table in first.split('<table class="matrix">')[1:]] == [3, 1]
    gap = 'class="badge not-run" data-ref'
    assert first.count(gap) == 1 and first.index('href="#second-training"') < first.index(gap)
    assert all(f'id="{name}-theme_cost"' in page for name in names)


def test_probes_of_the_operators_are_counted(judged, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(judged, tmp_path / "records"))
    monkeypatch.setattr(pictures, "draw", lambda *_: ())
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
    assert f'data-ref="all/none/rosetta#/fields/counts/unknown">{held["counts"]["unknown"]}<' in page
    (folder / "all" / "torch" / "rosetta.json").unlink()
    (folder / "all" / "jittor" / "rosetta.json").unlink()
    assert rosetta.count(folder) is None
    assert not (folder / "all" / "none" / "rosetta.json").exists(), "counts outlive what they counted"


def test_an_unknown_language_is_a_clear_error():
    with pytest.raises(UserError, match="choose from en"):
        messages.Messages("xx")


def test_the_same_records_give_the_same_page(judged, page, tmp_path, monkeypatch):
    assert rendered(judged, tmp_path, monkeypatch) == page


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


def test_a_pdf_is_printed(judged, tmp_path):
    if not any(map(shutil.which, pdf.BROWSERS)) and not pdf.importlib.util.find_spec("weasyprint"):
        pytest.skip("neither Chromium nor WeasyPrint is on this machine")
    made = report.render(judged, tmp_path, "quick", [synthetic.MODEL])
    assert made.pdf.read_bytes()[:5] == b"%PDF-"


def test_tables_against_numpy():
    arrays = {"p/one/body.a": np.array([3.0]), "p/one/body.b": np.array([4.0]), "p/two/head.a": np.array([2.0])}
    norms = tables.gradient_norms(arrays, "p/")
    assert norms.loc["body", "one"] == 5.0 and norms.loc["head", "two"] == 2.0 and np.isnan(norms.loc["head", "one"])
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
    fields = {
        "state": [
            ["body.w", [2, 3], "float32", "param", ""],
            ["body.m", [3], "float32", "buffer", ""],
            ["head.w", [], "float32", "param", ""],
        ]
    }
    assert tables.state(fields).loc["body", ["entries", "param", "buffer"]].tolist() == [2, 6, 3]
    assert tables.state(fields).loc["head", ["entries", "param", "buffer"]].tolist() == [1, 1, 0]
    assert tables.text(4330904) == "4\u2009330\u2009904" and tables.text(0.000123456) == "0.0001235"


def test_both_environments_pin_the_same_numpy():
    assert len(set(tables.environments().loc["numpy"])) == 1


# --------------------------------------------------------------------------------------------------------- notebook


def run_notebook(records: Path, out: Path) -> dict:
    """Execute the code cells of 90_compare in this process with the parameters replaced."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names |= {"models": [synthetic.MODEL], "records": str(records), "report": str(out)}
    return names


def test_the_notebook_renders_and_goes_red_on_a_fail(judged, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pdf, "write", synthetic.printed)
    folder = Path(shutil.copytree(judged, tmp_path / "records"))
    assert run_notebook(folder, tmp_path / "green")["failed"] == []
    said = capsys.readouterr().out
    assert said.startswith("PASS ") and "FAIL" not in said and "NOT RUN" not in said
    synthetic.edit(
        folder,
        "jittor",
        "loss",
        lambda fields, arrays: fields["losses"]["joint_epoch0"]["float32"].update(loss_bbox=2.0),
    )
    with pytest.raises(AssertionError, match=r"losses \(torch-jittor\)"):
        run_notebook(folder, tmp_path / "red")
    assert (tmp_path / "red" / "index.html").exists(), "the report is there before the batch run goes red"
    assert record.read(folder / synthetic.MODEL / "none" / "compare.json").fields["verdicts"]


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
