"""What stands beside the verdicts is bound to its records, or says that it was not run; the first page counts truly."""

import re
import shutil
from pathlib import Path

import in_process
import pytest
import synthetic_records as synthetic
from bs4 import BeautifulSoup
from markupsafe import Markup

from lib.alignment import questions
from lib.errors import UserError
from lib.record import measure
from lib.report import beside, pictures, verify
from lib.report.bound import SHARED, records
from lib.report.page import Page, worst
from lib.show.messages import LANGUAGES, Messages
from lib.training import runs as starts

FOUR = {
    "ImageNet start": ({"AP": 0.01, "AP50": 0.02}, {"AP": 0.31, "AP50": 0.52}),
    "fine-tuned": ({"AP": 0.03, "AP50": 0.04}, {"AP": 0.33, "AP50": 0.54}),
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = synthetic.write_all(tmp_path_factory.mktemp("held") / "quick" / "records")
    questions.judge_records(folder, [synthetic.MODEL])
    return folder.parent


@pytest.fixture
def folder(judged, tmp_path, monkeypatch):
    """A report folder; nothing is printed or drawn."""
    in_process.patch(monkeypatch)
    monkeypatch.setattr(pictures, "draw", lambda *_: ())
    return Path(shutil.copytree(judged, tmp_path / "quick"))


def rendered(folder: Path, language: str = "en") -> str:
    return in_process.made(folder, [synthetic.MODEL], language).read_text()


def section(page: str, question: str) -> str:
    """The HTML of a question's section."""
    return str(BeautifulSoup(page, "html.parser").find(id=f"synthetic-{question}"))


def plain(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", markup).split())


def held(folder: Path, question: str, language: str = "en", model: str = synthetic.MODEL) -> list[beside.Table]:
    words = Messages(language)
    own, shared = (records(folder / "records", name, words) for name in (model, SHARED))
    return beside.tables(question, model, own, shared, words)


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_stands_there_and_is_believed(folder, language):
    page, words = rendered(folder, language), Messages(language)
    training, speed, divergence = (section(page, question) for question in ("training", "speed", "divergence"))
    assert 'data-ref="synthetic/jittor/train#/fields/starts/fresh weights/after/AP50"' in training
    assert 'data-ref="synthetic/torch/train#/fields/waiting_share"' in speed
    for name in beside.COST:
        assert f'data-ref="synthetic/jittor/divergence#/fields/cost/{name}"' in divergence
    assert words("starts") in training and words("loader") in speed and words("engine") in divergence
    (checked,) = verify.verify(folder)
    assert checked.faults == ()


def test_a_number_beside_can_not_be_edited(folder):
    page, path = rendered(folder), folder / "index.html"
    ref = "synthetic/jittor/divergence#/fields/cost/times_plain"
    cell = re.search(rf'<data data-ref="{ref}" value="2.0">2</data>', section(page, "divergence"))[0]
    path.write_text(page.replace(cell, cell.replace(">2<", ">1<")))
    (checked,) = verify.verify(folder)
    assert any("times_plain says '2'" in fault for fault in checked.faults)


def test_starts_are_called_as_the_training_calls_them():
    assert beside.STARTS == (starts.FRESH, starts.IMAGENET, starts.FINE_TUNED)


def test_what_was_not_trained_is_said_in_one_line(folder):
    (table,) = held(folder, "training")
    assert len(table.rows) == 2 and plain(table.rows[1][0]) == "fresh weights, after"
    assert table.gap.startswith("ImageNet start, fine-tuned.") and "0.2550" in plain(table.rows[1][1])
    assert held(folder, "training", "zh")[0].gap.startswith("ImageNet 起点、微调。")
    for side in ("torch", "jittor"):
        (folder / "records" / synthetic.MODEL / side / "train.json").unlink()
    (table,) = held(folder, "training")
    assert table.rows == [] and table.gap.startswith("fresh weights, ImageNet start, fine-tuned.")


def test_the_four_runs_stand_side_by_side(folder):
    """Before and after from both starts; what one framework has not run is said in its cells."""
    numbers = {name: {"before": before, "after": after, "evaluations": []} for name, (before, after) in FOUR.items()}
    synthetic.edit(folder / "records", "torch", "train", lambda fields, arrays: fields["starts"].update(numbers))
    (table,) = held(folder, "training")
    assert table.gap is None and len(table.rows) == 1 + 1 + 4
    cells = {plain(name): [plain(cell) for cell in row] for name, *row in table.rows}
    assert cells["ImageNet start, before"] == ["0.0100", "0.0200", "NOT RUN", "NOT RUN"]
    assert cells["fine-tuned, after"][:2] == ["0.3300", "0.5400"]


def test_the_loader_is_told_for_the_recipe_of_the_model(folder):
    """The data stage measures a rate per family; of a model without one it says that nothing was measured."""
    rates = {"rt_detr": 195.5, "gold_yolo": 445.3}
    with measure("data", "all", folder / "records") as out:
        out.fields["loader_images_per_second"] = rates
    shutil.copytree(folder / "records" / synthetic.MODEL, folder / "records" / "gold-yolo-n")
    (loader,) = held(folder, "speed", model="gold-yolo-n")
    assert (
        "445.3" in plain(loader.lead)
        and 'data-ref="all/none/data#/fields/loader_images_per_second/gold_yolo"' in loader.lead
    )
    assert "was not measured" in held(folder, "speed")[0].lead and "未测量" in held(folder, "speed", "zh")[0].lead
    assert [plain(row[1]) for row in loader.rows[1:]] == ["5.1", "0.5", "0.007519"]


def test_without_records_nothing_is_claimed(folder):
    for stage in ("train", "divergence"):
        (folder / "records" / synthetic.MODEL / "jittor" / f"{stage}.json").unlink()
    (loader,), (engine,) = (held(folder, question) for question in ("speed", "divergence"))
    assert [plain(row[2]) for row in (*loader.rows[1:], *engine.rows[1:])] == ["NOT RUN"] * 5
    (folder / "records" / synthetic.MODEL / "torch" / "divergence.json").unlink()
    (engine,) = held(folder, "divergence")
    assert engine.rows == [] and engine.gap == "no record."


def test_the_hand_in_holds_them_too(folder):
    page = in_process.made(folder, [], name="95_handin").read_text()
    assert "fields/starts/fresh weights/after/AP" in section(page, "training_script")
    assert "cost/plain_seconds" in section(page, "performance") and "waiting_share" in section(page, "performance")


def headline(page: str) -> str:
    return plain(re.search(r'<p class="headline.*?<span class="profile">', page, re.S)[0])


@pytest.mark.parametrize("size, said", [([96, 128], "96 × 128 px"), ([96, 96], "96 px"), (None, "")])
def test_an_ap_says_what_it_is_of(folder, size, said):
    """The set, the epochs, the size of the images, each bound; a record of before holds no size."""
    with measure("data", "all", folder / "records") as out:
        out.fields |= {"name": "scenes-quick", "splits": {split: {"images": 4} for split in ("train", "val")}}
    synthetic.edit(folder / "records", "torch", "train", lambda fields, _: fields.update(input_size=size))
    line = Page(folder / "records", folder, [synthetic.MODEL], "quick").models[0].highlights["final_map"]
    assert line.striptags().endswith(", ".join(filter(None, ("; drawn scenes (quick)", "4 epochs", said))))
    assert not re.search(r"\d", Markup(re.sub(r"<data [^>]*data-ref.*?</data>", "", line)).striptags()), (
        "bound to nothing"
    )


def test_the_headline_counts_only_what_there_is(folder):
    """No zero stands on the first page; a gap and a failure each appear with their number."""
    page = rendered(folder)
    assert re.fullmatch(r"Aligned as far as it was asked: \d+ PASS", headline(page))
    assert "legend" in page and ">beyond its gate<" not in page and ">measured, not judged<" in page
    assert re.fullmatch(r"所查各项均已对齐： *\d+ 项通过", headline(rendered(folder, "zh")))
    (folder / "records" / synthetic.MODEL / "jittor" / "train.json").unlink()
    questions.judge_records(folder / "records", [synthetic.MODEL])
    assert re.fullmatch(r"Incomplete: \d+ PASS, 2 NOT RUN", headline(rendered(folder)))
    synthetic.edit(folder / "records", "jittor", "convert", lambda fields, arrays: fields.update(parameters=1))
    questions.judge_records(folder / "records", [synthetic.MODEL])
    page = rendered(folder)
    assert re.fullmatch(r"Not aligned: [1-9] FAIL, \d+ PASS, 2 NOT RUN", headline(page)) and ">beyond its gate<" in page
    total = plain(re.search(r'<tr class="total">.*?</tr>', page, re.S)[0])
    assert not re.search(r"(?<!\d)0 ", total)


def test_a_port_of_the_user_has_no_columns_of_a_published_side(folder):
    """Nobody published it: only PyTorch ↔ Jittor is asked, and what was not trained or timed says so."""
    for side in ("torch", "jittor"):
        for stage in ("forward", "divergence"):
            for source in (folder / "records" / synthetic.MODEL / side).glob(f"{stage}.*"):
                target = folder / "records" / "mine" / side / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
            path = target.with_suffix(".json")
            path.write_text(path.read_text().replace(f'"{synthetic.MODEL}', '"mine'))
    questions.judge_records(folder / "records", ["mine"])
    page = in_process.made(folder, ["mine"]).read_text().split("</header>")[0]
    table = plain(re.search(r'<table class="matrix">.*?</table>', page, re.S)[0])
    assert "PyTorch ↔ Jittor" in table and "Published" not in table
    assert (
        "AP, each its own training PyTorch NOT RUN , Jittor NOT RUN" in table
        and "Time, Jittor / PyTorch NOT RUN" in table
    )


def test_a_count_can_not_be_left_out(folder):
    """Of a report with a failure: who strikes the failures from the first line is found out."""
    synthetic.edit(folder / "records", "jittor", "convert", lambda fields, arrays: fields.update(parameters=1))
    questions.judge_records(folder / "records", [synthetic.MODEL])
    page, path = rendered(folder), folder / "index.html"
    assert verify.verify(folder)[0].faults == ()
    path.write_text(re.sub(r'<data [^>]*data-count="FAIL"[^>]*>\d+</data> FAIL, ', "", page))
    assert any("leaves out FAIL" in fault for fault in verify.verify(folder)[0].faults)


def test_a_quoted_target_counts_only_what_there_is(folder):
    said = plain(section(rendered(folder), "losses"))
    assert re.search(r"Quoted target 0.001 relative: met by \d+ *\.", said) and "none" not in said


def test_rows_that_are_not_judged_make_way_for_those_that_are():
    def row(what: str, ratio: float, passed: bool | None) -> dict:
        return {"what": what, "ratio": ratio, "passed": passed}

    rows = [
        row("a", 0.9, None),
        row("a", 0.2, True),
        row("a", 0.1, True),
        row("b", 0.5, None),
        row("b", 0.4, None),
        row("c", 2.0, False),
        row("c", 3.0, False),
        row("c", 0.1, True),
    ]
    assert [index for index, _ in worst(list(enumerate(rows)))] == [6, 5, 1, 3]


def test_composed_texts_are_translated_and_names_are_not():
    term = Messages("zh").term
    assert term("norm of the exp avg sq, float32") == "二阶矩的范数，单精度"
    assert term("fed, step 1: norm of the gradient, float64") == "喂入相同梯度，第 1 步：梯度的范数，双精度"
    assert term("output, worst at (0, 76, 0, 0)") == "输出，最差处 (0, 76, 0, 0)"
    assert term("EQUIVALENT: the interval lies inside the margin") == "等价：区间在界限之内"
    assert term("backbone.stage2.0.branch2.1") == "backbone.stage2.0.branch2.1"
    assert Messages("en").term("norm of the exp avg sq, float32") == "norm of the exp avg sq, float32"
    assert Messages("en").term("train, batch 8") == "training step, batch 8"


def test_a_record_of_another_version_is_one_line(tmp_path):
    with measure("compare", "m", tmp_path) as measured:
        measured.fields["verdicts"] = [{"verdict": "MAYBE"}]
    (held,) = records(tmp_path, "m", Messages("en")).values()
    assert held.find("fields", "gone", 0) is None
    with pytest.raises(UserError, match="^m/none/compare: the record has no field /fields/gone/0; run its stage again"):
        held("fields", "gone", 0)
    with pytest.raises(UserError, match="verdicts/0/verdict: 'MAYBE' is no verdict"):
        held.badge("fields", "verdicts", 0, "verdict")
