"""The document to hand in: every item from records or NOT RUN, for the suite's models and for a port of the user's."""

import re
import shutil
from pathlib import Path

import in_process
import pytest
import synthetic_records as synthetic
from bs4 import BeautifulSoup

from lib import __main__ as command_line
from lib.alignment import questions
from lib.errors import UserError
from lib.record import measure, read
from lib.report import handin, verify
from lib.report.beside import REPORTED
from lib.report.handin import CHECKLIST, DATA, ENVIRONMENT, TESTING, TRAINING, Told
from lib.show.messages import LANGUAGES, Messages

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "95_handin.ipynb"


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch):
    in_process.patch(monkeypatch)


def rendered(folder, models=(), language="en") -> str:
    return in_process.made(folder, list(models), language, "95_handin").read_text()


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A report folder with the records of a model, of a data set, and of a port that only ran forward."""
    folder = tmp_path_factory.mktemp("held")
    records = synthetic.write_all(folder / "records")
    questions.judge_records(records, [synthetic.MODEL])
    split = {"images": 8, "boxes": 31, "images_sha256": "e" * 64}
    with measure("data", "all", records) as out:
        out.fields |= {"name": "drawn", "splits": {"train": split, "val": {**split, "boxes": 29}}}
    for name in ("json", "safetensors"):
        target = records / "my_port" / "jittor" / f"forward.{name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(records / synthetic.MODEL / "jittor" / f"forward.{name}", target)
    path = records / "my_port" / "jittor" / "forward.json"
    path.write_text(path.read_text().replace('"synthetic', '"my_port'))
    return folder


@pytest.fixture
def folder(held, tmp_path):
    return Path(shutil.copytree(held, tmp_path / "quick"))


def part(page: str, anchor: str) -> str:
    """The text of a section, tags left out."""
    return " ".join(BeautifulSoup(page, "html.parser").find(id=anchor).get_text(" ").split())


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_item_is_there_and_believed(folder, language):
    page = rendered(folder, language=language)
    items = list(handin.Document(folder / "records", folder).ports[0].items)
    assert re.findall(r'document.item\(\\"(\w+)', NOTEBOOK.read_text()) == items and len(items) == 9
    for port in ("my-port", "synthetic"):
        assert all(part(page, f"{port}-{item}") for item in (*items, "checklist"))
    (checked,) = verify.verify(folder)
    assert checked.faults == () and checked.numbers > 60 and checked.figures == 3


def test_items_hold_what_the_records_hold(folder):
    page = rendered(folder)
    assert "NOT RUN" not in part(page, "synthetic-test_script") + part(page, "synthetic-data")
    assert "drawn" in part(page, "synthetic-data") and "29" in part(page, "synthetic-data")
    assert "d" * 64 in part(page, "synthetic-training_script")
    assert "pytest" in part(page, "synthetic-environment") or "0.0-synthetic" in part(page, "synthetic-environment")
    assert "training step" in part(page, "synthetic-performance")
    verdicts = read(folder / "records" / synthetic.MODEL / "none" / "compare.json").fields["verdicts"]
    assert f"PASS {sum(v['verdict'] == 'PASS' for v in verdicts)} FAIL 0" in part(page, "synthetic-alignment")


def test_what_was_not_run_says_so(folder):
    page = rendered(folder, ["my_port"])
    assert 'id="synthetic"' not in page
    for item in ("data", "alignment", "performance", "training_log", "curves", "results"):
        assert "NOT RUN" in part(page, f"my-port-{item}"), item
    assert "drawn" not in part(page, "my-port-data"), "a data set that the port has not seen"
    for demand in ("settings", "assumptions"):
        assert f"{Messages('en')(f'checklist.{demand}')} NOT RUN" in part(page, "my-port-checklist")
    assert part(page, "my-port-training_script").count("NOT RUN") == 2 * len(TRAINING)
    assert "1.3" not in part(page, "my-port-environment") and part(page, "my-port-environment").count("NOT RUN") == len(
        ENVIRONMENT
    )


def test_a_gap_on_one_side_is_a_gap(folder):
    (folder / "records" / synthetic.MODEL / "jittor" / "train.json").unlink()
    page = rendered(folder, [synthetic.MODEL])
    assert part(page, "synthetic-training_script").count("NOT RUN") == len(TRAINING) + len(REPORTED)
    assert "NOT RUN" in part(page, "synthetic-checklist")


def test_variation_over_runs_is_not_claimed_from_one_run(folder):
    checklist = part(rendered(folder, [synthetic.MODEL]), "synthetic-checklist")
    assert re.search(r"Variation over repeated runs is reported NOT RUN", checklist)


def test_all_lines_have_their_words():
    told = {f"checklist.{key}.answer" for key, asks in CHECKLIST.items() if isinstance(asks, Told)}
    listed = (asks for asks in CHECKLIST.values() if not isinstance(asks, Told))
    labels = {ask.label for asks in (ENVIRONMENT, DATA, TRAINING, TESTING, *listed) for ask in asks}
    for language in LANGUAGES:
        assert labels | told | {f"checklist.{key}" for key in CHECKLIST} <= set(Messages(language).texts)


def test_users_mistakes_are_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="no records"):
        handin.known(tmp_path / "nothing" / "records", [])
    with pytest.raises(UserError, match="there are my_port, synthetic"):
        handin.known(folder / "records", ["other"])


def test_the_command_line_writes_it(folder, capsys):
    assert command_line.main(["handin", str(folder), "my_port"]) == 0
    assert "handin.html" in capsys.readouterr().out
    assert command_line.main(["handin", str(folder), "--language", "xx"]) == 1
