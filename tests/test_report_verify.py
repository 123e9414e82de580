"""`python -m lib verify` believes a report that says what its records say, and finds one digit that does not."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import in_process
import numpy as np
import pytest
import synthetic_records as synthetic
from bs4 import BeautifulSoup

from lib import __main__ as command_line
from lib import record
from lib.alignment import questions, references
from lib.errors import UserError
from lib.report import pictures, verify
from lib.show import messages
from lib.show.messages import LANGUAGES, Messages

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMPARE = "synthetic/none/compare.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report in each language, with its records inside, made once and copied for each test."""
    folder = tmp_path_factory.mktemp("made")
    records = synthetic.write_all(folder / "en" / "records")
    questions.judge_records(records, [synthetic.MODEL])
    shutil.copytree(folder / "en", folder / "zh")
    with pytest.MonkeyPatch.context() as patch:
        in_process.patch(patch)
        for language in LANGUAGES:
            in_process.made(folder / language, [synthetic.MODEL], language)
    return folder


@pytest.fixture(scope="module", autouse=True)
def drawn_and_judged_once():
    """What the same records show, and the verdicts that they give, are the same in every copy: the first are kept."""
    kept, judge = {}, questions.answers

    def judged(evidence, partial=False):
        files = sorted((evidence.folder / evidence.model).glob("[!n]*/*"))
        key = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        if key not in kept:
            kept[key] = judge(evidence, partial)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", in_process.drawn_once)
        patch.setattr(questions, "answers", judged)
        yield


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made / "en", tmp_path / "quick"))


def faults(folder: Path) -> tuple[str, ...]:
    return verify.verify(folder)[0].faults


def edit(folder: Path, pattern: str, replacement: str) -> None:
    page = folder / "index.html"
    text, count = re.subn(pattern, replacement, page.read_text(), count=1)
    assert count == 1, f"nothing to edit: {pattern}"
    page.write_text(text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_report_as_rendered_is_believed(made, language):
    (checked,) = verify.verify(made / language)
    assert checked.faults == ()
    assert checked.numbers > 200 and checked.names > 100 and checked.figures >= 7
    assert checked.records == len(list((made / language / "records").rglob("*.json")))


def test_both_languages_show_the_same_numbers(made):
    """The same references with the same values, in whatever order a sentence has them; each was judged on its own."""

    def numbers(language: str) -> list[tuple[str, str]]:
        held = BeautifulSoup((made / language / "index.html").read_text(), "html.parser").select("data")
        found = ((one["data-ref"], one["value"]) for one in held)
        return sorted(one for one in found if not re.match(r"synthetic/(none|published)/\w+#/provenance", one[0]))

    assert numbers("en") == numbers("zh")


@pytest.mark.parametrize(
    "planted, pattern, replacement, seen",
    [
        (
            "a digit of a shown number",
            r'(data-ref="[^"]*/error" value="[^"]*">\d*\.?\d*)\d(\D)',
            r"\g<1>7777\2",
            "the page says",
        ),
        ("the value behind a shown number", r'(data-ref="[^"]*/error" value=")\d', r"\g<1>77", "the value of"),
        ("a count of verdicts", r'(data-count="PASS"[^>]*>)\d+', r"\g<1>99", "the page says '99'"),
        ("a reference to another field", r'data-ref="([^"]*/rows/\d+)/3"', r'data-ref="\1/4"', "leads to"),
        ("a moment", r'(/started">20)\d\d', r"\g<1>99", "the page says '2099"),
        ("a commit", r'(versions/published">)\w', r"\1#", "the page says"),
        ("a name", r'(rows/\d+/0">)(\w)', r"\1x\2", "the page says"),
        ("a verdict's word", r'(class="badge pass" data-ref="[^"]*">)PASS', r"\1FAIL", "says 'PASS'"),
        ("a verdict's look", r'class="badge pass"', r'class="badge fail"', "looks like another verdict"),
        (
            "a number in a sentence",
            r"<p>A port passes",
            "<p>On 42 machines a port passes",
            "'42' is bound to no record",
        ),
        ("a number beside a bound one", r"(</data></a>)", r"\g<1>5", "is bound to no record"),
        (
            "a number bound to nothing",
            r'<data data-ref="[^"]*" value="(\d+)"',
            r'<data value="\1"',
            "is bound to no record",
        ),
        (
            "a record that is not there",
            r'data-ref="synthetic/torch/',
            'data-ref="other/torch/',
            "the record is missing",
        ),
        ("a field that is not there", r'(data-ref="synthetic/torch/[^"]*)"', r'\1/more"', "no field"),
        ("a link to another record", r'(class="ref" href="#record-synthetic-)none', r"\1torch", "leads to"),
        ("a figure", r"(data:image/svg\+xml;base64,.{2000})\w", r"\1A", "not what the records draw"),
        ("what stands for a figure", r'(<img alt=")', r"\1No. ", "not what the records draw"),
        ("a figure of no question", r'data-figure="', 'data-figure="other-', "figure"),
        ("a script", r"</main>", "<script>1</script></main>", "runs a script"),
        ("the project's own script", r"(const links)", r"document.title = ''; \1", "runs a script"),
        ("a style", r"</main>", "<style>b:after { content: 'x' }</style></main>", "runs a style"),
        (
            "a verdict that is hidden",
            r'class="badge pass"',
            'hidden class="badge pass"',
            "a style or script of its own",
        ),
        ("a picture", r'(<circle cx=")\d', r"\g<1>9", "not the project's own"),
        ("a number in a table's file", r"(data:text/csv[^\"]*%0A[^\"]*?)\d", r"\g<1>77", "does not hold the table"),
    ],
)
def test_one_edit_is_found(copy, planted, pattern, replacement, seen):
    edit(copy, pattern, replacement)
    found = faults(copy)
    assert found and any(seen in fault for fault in found), planted


def test_a_verdict_that_is_left_out_is_found(copy):
    page = copy / "index.html"
    verdicts = record.read(copy / "records" / COMPARE).fields["verdicts"]
    left_out = next(i for i, verdict in enumerate(verdicts) if verdict["question"] == "forward")
    page.write_text(
        re.sub(
            rf'<span class="badge \w+" data-ref="[^"]*/verdicts/{left_out}/verdict">\w+</span>', "", page.read_text()
        )
    )
    assert any("leaves out the verdict on forward" in fault for fault in faults(copy))


@pytest.mark.parametrize("name", ["jittor/train", "torch/speed", "none/compare", "published/forward"])
def test_a_missing_record_is_found(copy, name):
    (copy / "records" / synthetic.MODEL / f"{name}.json").unlink()
    assert any(f"synthetic/{name}" in fault and "missing" in fault for fault in faults(copy))


def test_a_record_that_was_edited_later_is_found_though_nothing_of_it_is_shown(copy):
    synthetic.edit(copy / "records", "jittor", "train", lambda fields, arrays: fields.update(batches_sha256="c" * 64))
    assert faults(copy) == (
        "synthetic/jittor/train: the record changed after synthetic/none/compare was made from it; compare again",
        "synthetic/none/compare: says PASS of training (torch-jittor), where its records give FAIL; compare again",
    )


def test_swapped_folders_are_found_without_a_traceback(copy):
    place = copy / "records" / synthetic.MODEL
    for before, after in (("torch", "other"), ("jittor", "torch"), ("other", "jittor")):
        (place / before).rename(place / after)
    assert any("torch/convert.json: is the record synthetic/jittor/convert: put it back" in one for one in faults(copy))


def test_arrays_that_are_not_their_record_s_are_found(copy):
    path = copy / "records" / synthetic.MODEL / "jittor" / "forward.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert any("forward.safetensors" in fault for fault in faults(copy))


def test_arrays_left_behind_are_told_and_missed_where_a_figure_needs_them(copy, capsys):
    (copy / "records" / synthetic.MODEL / "jittor" / "loss.safetensors").unlink()
    assert command_line.main(["verify", str(copy)]) == 0
    assert "the arrays of 1 records are not here" in capsys.readouterr().out


def test_a_verdict_edited_in_its_record_is_found(copy):
    path = copy / "records" / COMPARE
    held = json.loads(path.read_text())
    held["fields"]["verdicts"][0]["verdict"] = "FAIL"
    path.write_text(json.dumps(held))
    found = faults(copy)
    assert any("says 'FAIL'" in fault for fault in found) and any("leaves out FAIL" in fault for fault in found)


def test_verdicts_are_those_that_the_records_give(copy):
    """Whoever edits the verdicts and renders them again has a page that agrees with them."""
    records = copy / "records"
    synthetic.edit(
        records, "jittor", "loss", lambda fields, arrays: arrays.update({"bn/body.1.num_batches_tracked": np.array(2)})
    )
    (compared,) = questions.judge_records(records, [synthetic.MODEL])
    assert not verify.Judged.of(records, synthetic.MODEL).faults
    verdicts = compared.fields["verdicts"]
    at = next(i for i, one in enumerate(verdicts) if (one["verdict"], one["pair"]) == ("FAIL", "torch-jittor"))
    before, fail, after = verdicts[:at], verdicts[at], verdicts[at + 1 :]
    first, *rest = fail["rows"]
    forgeries = {
        "says PASS of batch_norm (torch-jittor), where": [fail | {"verdict": "PASS", "reason": "identical"}],
        "says nothing of batch_norm (torch-jittor), where": [],
        "says FAIL of batch_norm (torch-jittor), where": [fail | {"rows": [[*first[:2], first[2] * 0.99], *rest]}],
        "answers beauty (torch-jittor), which nobody asks": [fail, fail | {"question": "beauty"}],
        "answers poison (torch-jittor), which nobody asks": [fail, fail | {"question": "poison"}],
    }
    for said, forged in forgeries.items():
        changed = compared.fields | {"verdicts": [*before, *forged, *after]}
        record.write(records, compared.model_copy(update={"fields": changed}), {})
        (found,) = verify.Judged.of(records, synthetic.MODEL).faults
        assert said in found


def test_a_published_number_is_what_the_golden_files_hold(tmp_path):
    model = "nanodet-plus-m_320"
    references.write(tmp_path, model)
    assert references.forged(tmp_path, model) == []
    for stage, change in {
        "forward": lambda fields, arrays: arrays.update({"float64/preds": arrays["float64/preds"] * (1 + 1e-9)}),
        "convert": lambda fields, arrays: fields.update(parameters=1),
    }.items():
        path = tmp_path / model / "published" / f"{stage}.json"
        held, arrays = record.read(path), record.load_arrays(path)
        change(held.fields, arrays)
        record.write(tmp_path, held, arrays)
        assert path in references.forged(tmp_path, model)


def test_the_command_line_says_where(copy, capsys):
    assert command_line.main(["verify", str(copy)]) == 0
    assert "all as recorded" in capsys.readouterr().out
    edit(copy, r'(data-count="PASS"[^>]*>)\d+', r"\g<1>99")
    assert command_line.main(["verify", str(copy)]) == 1
    printed = capsys.readouterr()
    assert "#summary: the page says '99'" in printed.out and printed.err.count("\n") == 1


def test_an_example_is_verified_as_its_own_page_says(copy, tmp_path, capsys):
    """With its records, but not their arrays, of which a figure is drawn."""
    from lib.report import readme

    (tmp_path / "example").mkdir()
    (tmp_path / "example" / "old.html").write_text("of an earlier report")
    readme.copy(copy, tmp_path / "example")
    assert not list((tmp_path / "example").rglob("*.safetensors")) and not (tmp_path / "example" / "old.html").exists()
    assert command_line.main(["verify", str(tmp_path / "example")]) == 0
    assert "figures need them" in capsys.readouterr().out


def test_an_example_that_is_not_as_recorded_is_not_made(copy, tmp_path):
    from lib.report import readme

    edit(copy, r'(data-count="PASS"[^>]*>)\d+', r"\g<1>99")
    with pytest.raises(UserError, match="not as recorded"):
        readme.copy(copy, tmp_path / "example")
    assert not (tmp_path / "example").exists()


def test_a_page_without_its_records_is_one_line(copy, capsys):
    shutil.rmtree(copy / "records")
    assert command_line.main(["verify", str(copy)]) == 1
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count("\n") == 1 and "holds no records" in printed.err


def test_a_folder_without_a_report_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="make report"):
        verify.verify(tmp_path)


# -------------------------------------------------------------------------------------------------------- languages


NAMES = {  # the same in every language
    "AP",
    "AP50",
    "join.pair",
    "side.torch",
    "side.jittor",
    "fact.frameworks.absent",
    "number.coco",
    "handin.line.python",
    "handin.line.numpy",
}


def placeholders(text: str) -> list[str]:
    return sorted(set(re.findall(r"\{(\w+)\}", text)))


def test_the_catalogues_have_the_same_keys_and_placeholders():
    english, chinese = (Messages(name) for name in ("en", "zh"))
    assert english.texts.keys() == chinese.texts.keys() and set(english.terms) <= set(chinese.terms)
    assert english.counts.keys() == chinese.counts.keys()
    for one in (english.texts, english.terms):
        other = chinese.texts if one is english.texts else chinese.terms
        assert not [key for key in one if placeholders(one[key]) != placeholders(other[key])]
    for words in (english, chinese):  # a form and what it becomes have the same parts
        assert not [text for text, form in words.terms.items() if placeholders(text) != placeholders(form)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated_and_an_unknown_key_is_an_error(language):
    catalogue = [one for path in (messages.TEXTS / language).glob("*.po") for one in messages.entries(path)]
    assert not [one.id for one in catalogue if not one.string or one.fuzzy]
    words = Messages(language)
    known = sum(map(len, (words.texts, words.terms, words.counts)))
    assert len(catalogue) == known, "a text has an unknown context, or stands there twice"
    with pytest.raises(KeyError):
        words("question.nobody_asks")
    with pytest.raises(KeyError):
        words.say("headline.pass", others=1)


def test_one_thing_is_not_many():
    english, chinese = (Messages(language) for language in ("en", "zh"))
    for things in english.counts:
        one, many = (english.count(things.removeprefix("count."), number) for number in (1, 0))
        assert one[0] == "1" and many == f"0 {things.removeprefix('count.')}" != one.replace("1", "0")
        assert chinese.count(things.removeprefix("count."), 1, "2") == chinese.count(things.removeprefix("count."), 2)


def test_the_shell_says_the_language():
    assert messages.spoken({"LANG": "zh_CN.UTF-8"}) == messages.spoken({"LANG": "de_DE", "LC_ALL": "zh"}) == "zh"
    assert (
        messages.spoken({}) == messages.spoken({"LANG": "C"}) == messages.spoken({"LANG": "zh", "LC_ALL": "C"}) == "en"
    )


@pytest.mark.parametrize("said", [{"LANG": "zh_CN"}, {"LANG": "zh", "LC_ALL": "C"}, {"LANG": "C", "LC_MESSAGES": "zh"}])
def test_make_asks_for_the_language_that_notebooks_speak(said):
    quiet = {name: text for name, text in os.environ.items() if name != "LANG" and not name.startswith(("LC_", "MAKE"))}
    done = subprocess.run(["make", "-n", "handin"], cwd=ROOT, env=quiet | said, capture_output=True, text=True)
    assert f"--language {messages.spoken(said)}" in done.stdout, done.stderr


def test_chinese_texts_have_chinese_letters_and_signs():
    """Names and code stay as they are; 噪声底 is the word for a noise floor."""
    words = Messages("zh")
    for key, text in {**words.texts, **words.terms}.items():
        text = re.sub("`[^`]*`", "", text)
        assert not re.search(r"[\u4e00-\u9fff] *[,;:()?!]|[,;:()?!] *[\u4e00-\u9fff]|底噪", text), (key, text)
    english = Messages("en").texts
    same = {key for key, text in words.texts.items() if text == english[key]}
    assert same <= NAMES, same - NAMES


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_number_is_typed_into_a_catalogue(language):
    """Only names have digits in a page's texts: a bare number would be one that no record holds."""
    tokens = verify.digits(language)
    assert all(re.search(r"[A-Za-z]", token) for token in tokens), tokens


def test_the_chinese_page_is_chinese(made):
    page = (made / "zh" / "index.html").read_text()
    assert '<html lang="zh">' in page and "对齐报告" in page and ">通过<" in page and ">PASS<" not in page
    said = " ".join(text for _, text in verify.Content(page).free())
    assert not re.findall(r"\b(?:the|and|with|numbers|their)\b", said), "English sentences in the Chinese page"


def test_terms_of_records_are_translated_and_others_stay():
    words = Messages("zh")
    assert words.term("every element") == "逐元素" and words.term("worst at (1, 2)") == "最差处 (1, 2)"
    assert words.term("window around last step, step 9: x") == "最后一步前后的窗口，第 9 步：x"
    assert words.term("body.0.weight") == "body.0.weight" and Messages("en").term("every element") == "every element"


def test_records_named_by_hand_do_not_lead_out_of_the_folder(made):
    from lib.report.bound import Fields

    with pytest.raises(UserError, match="missing"):
        Fields(made / "en" / "records")["../../secret#/fields/x"]
    assert (
        record.read(made / "en" / "records" / COMPARE).fields["k"]
        == Fields(made / "en" / "records")[f"{COMPARE[:-5]}#/fields/k"]
    )


GAPS = [
    {
        "stage": "train",
        "model": "m",
        "side": "jittor",
        "why": "code cell 5 ('x = 3'): the kernel died of signal 9 (SIGKILL)",
        "see": "notebooks/m/jittor/60_train.failed.ipynb",
        "waits_for": "",
    },
    {"stage": "evaluate", "model": "m", "side": "torch", "why": "", "see": "", "waits_for": "m/jittor/train"},
    {"stage": "loss", "model": "m", "side": "torch", "why": "", "see": "", "waits_for": ""},
]


@pytest.mark.parametrize("language", LANGUAGES)
def test_gaps_and_restarts_are_said_and_held_against_their_record(made, tmp_path, monkeypatch, language):
    folder = Path(shutil.copytree(made / language, tmp_path / "quick"))
    in_process.patch(monkeypatch)
    monkeypatch.setenv(record.RESTARTS, json.dumps(["the kernel died of signal 11 (SIGSEGV)"]))
    with record.measure("gaps", "all", folder / "records") as measured:
        measured.fields["gaps"] = GAPS
    synthetic.forge(folder / "records", "jittor", "train", sources={}, git_commit="f" * 40)  # said with both values
    in_process.made(folder, [synthetic.MODEL], language)
    assert faults(folder) == ()
    said = (folder / "index.html").read_text(encoding="utf-8")
    assert f'<a href="{GAPS[0]["see"]}"><span data-ref="all/none/gaps#/fields/gaps/0/see">' in said
    assert 'class="badge not-comparable"' in said and ">" + "f" * 40 in said
    assert "signal 9 (SIGKILL)" in said and "m/<wbr/>jittor/<wbr/>train" in said and "signal 11 (SIGSEGV)" in said
    edit(folder, "signal 9 ", "signal 8 ")
    assert [fault for fault in faults(folder) if "signal 8" in fault]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_report_s_own_words_hold_no_number(language):
    """Also those of questions that are asked on request alone: a number typed into them is bound to no record."""
    cells = json.loads((ROOT / "notebooks" / "90_compare.ipynb").read_text(encoding="utf-8"))["cells"]
    source = "".join(line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"])
    said = "\n".join(div.get_text() for div in BeautifulSoup(source, "html.parser").select(f"div[lang={language}]"))
    assert said and not set(verify._tokens(said)) - verify.digits(language) - {path.stem for path in NOTEBOOKS}
