"""Many reports from one table: what a table may say, one plan for all, one page that links them. Torch only."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_records as synthetic
from bs4 import BeautifulSoup
from test_pipeline import project
from test_pipeline import report as made

from lib.alignment import questions
from lib.errors import UserError
from lib.machine import forecast, pipeline
from lib.machine.job import read_mark, write_mark
from lib.report import overview, verify
from lib.report.bound import badge_class
from lib.report.page import Page

pytest.importorskip("papermill", reason="the jt environment runs no reports")
ROOT = Path(__file__).resolve().parent.parent
COMMON = pipeline.Request("course", ("nanodet-plus-m_320",), "", 2)
__all__ = ["project"]


def of(text: str, name: str = "class.csv", encoding: str = "utf-8") -> list[pipeline.Request]:
    Path(name).write_bytes(text.encode(encoding))
    return pipeline.of_table(Path(name), COMMON)[0]


@pytest.mark.parametrize("separator", ",;\t")
def test_a_row_says_what_differs_and_the_rest_is_as_make_was_told(bare, separator):
    rows = "\ufeffname,model,seed\r\n李雷,gold-yolo-n rtdetr_r18vd,7\r\n\r\nhan.mei_2,,\r\n,,\r\n"
    first, second = of(rows.replace(",", separator))
    assert first == replace(COMMON, models=("gold-yolo-n", "rtdetr_r18vd"), seed=7, place="class/李雷")
    assert second == replace(COMMON, place="class/han.mei_2") and str(second.folder) == "reports/class/han.mei_2"


@pytest.mark.parametrize(
    "rows, said",
    [
        ("", "class.csv: row 1: has no column 'name'"),
        ("model,seed\n", "class.csv: row 1: has no column 'name': choose from name, model, seed"),
        ("name,sead\n", "class.csv: row 1: 'sead' is no column"),
        ("name,seed,seed\n", "class.csv: row 1: 'seed' is no column, or one twice"),
        ("name,seed\n", "class.csv: holds no report: write a row"),
        ("name,seed\na,1\nb,1,2\n", "class.csv: row 3: 3 cells for 2 columns"),
        ("name,seed\n\na,x\n", "class.csv: row 3: seed 'x' is no whole number"),
        ("name,seed\na,-1\n", "class.csv: row 2: seed '-1' is no whole number"),
        ("name\nLi Lei\n", "class.csv: row 2: 'Li Lei' can't be a folder's name: use letters"),
        ("name\nrecords\n", "class.csv: row 2: 'records' is not free in the folder of the reports: give"),
        ("name\nIndex.html\n", "class.csv: row 2: 'Index.html' is not free"),
        ("name\n../a\n", "class.csv: row 2: '../a' can't be"),
        ("name\n{a}\n", "class.csv: row 2: '{a}' can't be"),
        ("name,seed\n,1\n", "class.csv: row 2: '' can't be"),
        ("name\na\nb\na\n", "class.csv: row 4: 'a' is the name of row 2 too: give each"),
        ("name,model\na,yolo\n", "class.csv: row 2: model 'yolo' is unknown: choose one of"),
        ("name,data\na,nowhere\n", "class.csv: row 2: DATA=nowhere: no such file"),
        ("name,weights\na,no.pth\n", "class.csv: row 2: WEIGHTS=no.pth: no such file"),
    ],
)
def test_a_bad_table_is_one_line_with_file_row_and_remedy(bare, rows, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        of(rows)
    assert len(str(error.value).splitlines()) == 1


def test_a_table_that_is_none_or_whose_name_is_taken_is_refused(bare):
    with pytest.raises(UserError, match="TABLE=absent.csv: can't be read .*: give a CSV file"):
        pipeline.of_table(Path("absent.csv"), COMMON)
    with pytest.raises(UserError, match=r"class.csv: is not UTF-8 \(byte 5\): save it as CSV UTF-8"):
        of("name\n李雷\n", encoding="gbk")
    with pytest.raises(UserError, match="TABLE=quick.csv: reports/quick would not be its own"):
        of("name\na\n", "quick.csv")
    Path("reports/class/records").mkdir(parents=True)
    with pytest.raises(UserError, match="TABLE=class.csv: reports/class holds one report"):
        of("name\na\n")


def test_what_reports_share_is_made_by_the_first_and_the_others_wait(bare):
    """Kernels of a model and the data: never by forty at the same time; all else is each report's own."""
    jobs = pipeline.plan(*of("name,model,seed\na,,\nb,,3\nc,gold-yolo-n,3\nd,,0\n"))
    count = 4 * len(pipeline.plan(COMMON))
    assert len(jobs) == len({job.file for job in jobs}) == len({job.name for job in jobs}) == count
    waits = {job.name: sorted(set(job.after) - {str(other.done) for other in jobs if same(job, other)}) for job in jobs}
    kernels, data = "reports/class/{}/.done/nanodet-plus-m_320/jittor/kernels", "reports/class/{}/.done/all/none/data"
    assert {name: marks for name, marks in waits.items() if marks} == {
        "b_kernels_nanodet-plus-m_320_jittor": [kernels.format("a")],
        "d_kernels_nanodet-plus-m_320_jittor": [kernels.format("a")],
        **{f"{name}_data_all_none": [data.format("a")] for name in "bcd"},
    }
    seeds = {(job.stage.name, job.done.parents[3].name): given(job).get("seed") for job in jobs}
    assert [(seeds["data", name], seeds["train", name]) for name in "abcd"] == [(0, 0), (0, 3), (0, 3), (0, 0)]
    assert {given(job)["data"] for job in jobs if job.stage.name in ("data", "train")} == {"data/scenes-course"}
    assert not [job for job in jobs for mark in job.needs if not mark.startswith(f"{job.done.parents[3]}/")]


def test_one_damaged_report_leaves_the_others_and_the_page_of_all(bare, monkeypatch, capsys):
    codes, asked, page = [0, 1], [], Path("reports/class/index.html")
    requests = of("name\na\nb\n")

    def render(folder, _language):
        if folder.name == "a":
            raise UserError("a notebook is damaged")

    monkeypatch.setattr(pipeline.pages, "render_notebooks", render)
    monkeypatch.setattr(pipeline, "report_with_gaps", lambda own, rest: asked.append((own, rest)))
    monkeypatch.setattr(pipeline, "wait", lambda *_: codes.pop(0))
    monkeypatch.setattr(pipeline.subprocess, "Popen", lambda *_, **__: None)
    assert pipeline.report(requests, page.parent, ["--dry-run"], Path("class.csv")) == 1 and not page.exists()
    assert pipeline.report(requests, page.parent, [], Path("class.csv")) == 1 and page.exists()
    assert capsys.readouterr().out.count("reports/class/a: a notebook is damaged") == 2
    ((own, rest),) = asked
    assert read_mark(Path("reports/class/.plan.json"))["plan"] == "reports/class/.plan.json"
    monkeypatch.setattr(pipeline, "TOLD", 2 * len(own) - 1)
    pipeline.begin(Path("plan"), jobs := pipeline.plan(*requests), jobs, 2, 1)
    assert read_mark(Path("plan"))["plan"] == ""  # its jobs would each read all of it
    assert {job.done.parents[3].name for job in own} == {"b"} and len(rest) == 2 * len(own)


def given(job: pipeline.Job) -> dict:
    return json.loads(job.file.read_text()).get("parameters", {})


def same(job: pipeline.Job, other: pipeline.Job) -> bool:
    return job.done.parents[3] == other.done.parents[3]


@pytest.mark.slow
def test_many_reports_are_one_plan_with_a_rule_per_stage(project):
    """Snakemake's time grew with the square of its rules: 10,000 jobs did not end."""
    names = [f"student{number}" for number in range(40)]
    (project / "class.csv").write_text("name\n" + "\n".join(names))
    code, printed, ran = made("--dry-run", table="class.csv")
    assert code == 0 and not ran and "to do, 160 of 160 jobs: student0_data_all_none, " in printed, printed
    assert dict(re.findall(r"^(\w+) +(\d+)$", printed, re.M)) == {
        "all": "1",
        **dict.fromkeys(("compare", "data"), "40"),
        "train": "80",
        "total": "161",
    }


# ------------------------------------------------------------------------------------------ how long many would take


@pytest.fixture
def measured(bare):
    """A quick report in which every job took 10 s, of which training's loop 8; convert, the start of a process, 2."""
    for job in pipeline.plan(replace(COMMON, profile="quick")):
        seconds = 2.0 if job.stage.name == "convert" else 10.0
        write_mark(job.done, inputs="", results={}, seconds=seconds)
        if job.stage.name == "train":
            write_mark(Path(job.results[1]), fields={"seconds": 8.0})
        if job.stage.name == "data":
            write_mark(Path(job.results[1]), fields={"splits": {"train": {"images": 160}, "val": {"images": 40}}})
    return forecast.measured(Path("reports/quick"))


def seconds_of(measured: forecast.Measured, profile: str, cores: int = 2, **load: int) -> float:
    return forecast.forecast(measured, profile, forecast.Load(**load), cores)[1]


def test_what_was_measured_is_foretold_and_grows_where_its_stage_says(measured):
    """By hand, on two cores: data, then six jobs of a side beside six of the other, Jittor's after its kernels ..."""
    work = 14 * 10 + 2 * 2  # seconds of core: data, kernels, six stages a side, of which convert takes two; not speed
    assert work / 2 + 10 + 10 <= seconds_of(measured, "quick") <= work / 2 + 40  # and speed alone, and compare
    job = next(one for one in pipeline.plan(replace(COMMON, profile="quick")) if one.stage.name == "train")
    sizes = dict(measured.sizes["train", "torch"])
    assert measured.of(job, sizes) == 10 and measured.of(job, {**sizes, "train_images": 320}) == 18
    assert measured.of(job, {**sizes, "input_size": 192, "epochs": 10}) == 10 + 7 * 8
    assert measured.of(job, {**sizes, "repeats": 3}) == 10 + 2 * 8
    for said, wrong in ((0, {"epochs": 0}), (None, {"epochs": None}), (r"\[\]", {"epochs": []})):
        with pytest.raises(UserError, match=f"train: epochs: {said}: .*: give the profile, and the report, a number"):
            measured.of(job, {**sizes, **wrong})
    data = Path("reports/quick/records/all/none/data.json")  # of DATA=…: its images count, no parameter does
    write_mark(data, fields={"splits": {"train": {"images": 320}, "val": {"images": 40}}})
    assert forecast.measured(Path("reports/quick")).of(job, sizes) == 10 - 4


def test_more_nodes_take_what_more_reports_add(measured):
    one = seconds_of(measured, "quick")
    many = seconds_of(measured, "quick", seeds=8)
    assert 7 * one < many + 7 * 10 and many <= 8 * one
    assert seconds_of(measured, "quick", seeds=8, nodes=8) < one + 30  # kernels are compiled once
    assert seconds_of(measured, "quick", images=10) > one + 9 * 8 and seconds_of(measured, "quick", models=3) > 2 * one
    with pytest.raises(UserError, match="5 models: the family of nanodet-plus-m_320 has 4: ask for fewer"):
        seconds_of(measured, "quick", models=5)
    with pytest.raises(UserError, match="nodes=0.*each is at least 1"):
        seconds_of(measured, "quick", nodes=0)


def test_a_stage_that_runs_alone_has_a_node_to_itself(measured):
    jobs = [job for job in pipeline.plan(replace(COMMON, profile="quick")) if job.stage.name in ("speed", "convert")]
    timed = [(replace(job, needs=(), after=()), 10.0) for job in jobs]  # both sides' convert, and speed, which is last
    assert (
        forecast.played(timed, 1, 2) == 20 and forecast.played(timed, 2, 2) == 10 and forecast.played(timed, 1, 4) == 20
    )


def test_without_a_report_there_is_no_forecast(bare):
    with pytest.raises(UserError, match="reports/quick: holds no times of jobs: give the folder of a report"):
        forecast.measured(Path("reports/quick"))


# ------------------------------------------------------------------------------------------ the page that links them


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    questions.judge_records(synthetic.write_all(folder / "records"), [synthetic.MODEL])
    (folder / "index.html").write_text('<html lang="en"><header data-records="records"></header></html>')
    return folder


@pytest.fixture
def written(judged, tmp_path):
    """The page of two reports and of one that was not made."""
    (tmp_path / "class").mkdir()
    for name in ("li-lei2", "mei"):
        (tmp_path / "class" / name).symlink_to(judged)
    models = dict.fromkeys(("li-lei2", "mei", "late"), (synthetic.MODEL,))
    return lambda language="en": overview.write(tmp_path / "class", {**models, "late": ("gold-yolo-n",)}, language)


@pytest.mark.parametrize("language, words", [("en", "Reports · class"), ("zh", "报告汇总 · class")])
def test_each_row_holds_its_report_s_verdict_and_numbers_and_leads_there(written, language, words):
    path = written(language)
    page = BeautifulSoup(path.read_text(), "html.parser")
    assert page.h1.text == words and page.html["lang"] == language
    first, second, late = page.select("tbody")
    assert first.select_one("th a")["href"] == "li-lei2/index.html" and not late.select("a")
    assert first.select_one(".verdict .badge")["class"] == ["badge", "pass"]
    assert late.select_one(".verdict .badge")["class"] == ["badge", "not-run"]
    assert {link["href"].partition("#")[0] for link in second.select("a")} == {"mei/index.html"}
    assert [(one["data-rows"], one.text) for one in page.select("[data-rows]")] == [("NOT RUN", "1"), ("PASS", "2")]
    checked = verify.verify(path.parent)[0]
    assert not checked.faults and checked.numbers > 4


@pytest.mark.parametrize(
    "pattern, replacement, seen",
    [
        (r'(<data value=")\d+("[^>]*data-count="PASS")', r"\g<1>99\2", "the value of"),
        (r'badge pass" data-ref', 'badge fail" data-ref', "looks like another verdict"),
        (r'<a href="li-lei2/index.html"', '<a href="mei/index.html"', "leads to another report"),
        (r'(data-rows="PASS">)2', r"\g<1>3", "is not how many rows say PASS: 2"),
        (r'(verdicts/)\d+(/verdict">PASS)', r"\g<1>999\2", "no field"),
        (r"</h1>", " 100</h1>", "'100' is bound to no record"),
        (r"</h1>", '</h1><data value="9">9</data>', "is not how many rows say None"),
    ],
)
def test_one_edit_of_it_is_found(written, pattern, replacement, seen):
    path = written()
    text, count = re.subn(pattern, replacement, path.read_text(), count=1)
    path.write_text(text)
    faults = verify.verify(path.parent)[0].faults
    assert count == 1 and any(seen in fault for fault in faults), faults


def test_a_row_can_not_show_a_better_verdict_than_its_worst(written, judged, tmp_path):
    worse = tmp_path / "class" / "mei"
    worse.unlink()
    shutil.copytree(judged, worse)
    compared = worse / "records" / synthetic.MODEL / "none" / "compare.json"
    compared.write_text(compared.read_text().replace('"verdict": "PASS"', '"verdict": "FAIL"', 1))
    path = written()
    page = path.read_text()
    good, bad, _ = re.findall(r'<td class="verdict">(.*?)</td>', page)
    assert "FAIL" in bad and not verify.verify(path.parent)[0].faults
    path.write_text(
        page.replace(bad, re.sub(r"verdicts/0/", "verdicts/1/", bad.replace("FAIL", "PASS").replace("fail", "pass")))
    )
    assert any("its verdicts together are FAIL" in fault for fault in verify.verify(path.parent)[0].faults)


@pytest.mark.parametrize(
    "verdicts, said",
    [
        (["UNDERPOWERED", "SHOWN", "PASS"], "pass"),
        (["UNDERPOWERED"], "not-run"),
        (["NOT COMPARABLE", "PASS"], "not-run"),
        ([], "not-run"),
    ],
)
def test_a_row_and_its_report_s_own_page_say_the_same(written, judged, tmp_path, verdicts, said):
    other = tmp_path / "class" / "mei"
    other.unlink()
    shutil.copytree(judged, other)
    compared = other / "records" / synthetic.MODEL / "none" / "compare.json"
    content = json.loads(compared.read_text())
    first = content["fields"]["verdicts"][0]
    content["fields"]["verdicts"] = [{**first, "verdict": verdict} for verdict in verdicts]
    compared.write_text(json.dumps(content))
    path, own = written(), Page(other / "records", other, [synthetic.MODEL], "quick").verdict
    row = BeautifulSoup(path.read_text(), "html.parser").select("tbody")[1]
    assert row.select_one(".verdict .badge")["class"] == ["badge", said] == ["badge", badge_class(own)]
    assert not verify.verify(path.parent)[0].faults
