"""Exercises check themselves, can be solved, and are not solved as they are handed out. The block needs Jittor."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from lib import backend
from lib.errors import UserError
from notebooks.exercises import fault, mend

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
PAGES = sorted([*FOLDER.glob("exercises/*.ipynb"), *FOLDER.glob("solutions/*.ipynb")])
in_jittor = pytest.mark.skipif(
    importlib.util.find_spec("jittor") is None, reason="the block is native Jittor: jt environment"
)


def walk(number: int) -> str:
    """From the outside in, always into the first part that is wrong: what a student does."""
    inside = ""
    while True:
        table = fault.errors(number, inside)
        first = fault.wrong(table)[0]
        if table.loc[first, "parts"] == 0:
            return first
        inside = first


@pytest.mark.slow
@pytest.mark.parametrize("number", fault.FAULTS)
def test_a_fault_can_be_found_by_looking(number):
    assert fault.check(number, walk(number)).startswith(f"RIGHT: {fault.FAULTS[number].layer}")


def test_a_sound_model_shows_nothing(monkeypatch):
    monkeypatch.setitem(fault.FAULTS, 1, fault.Fault("backbone"))
    table = fault.errors(1)
    assert fault.wrong(table) == [] and list(table.index) == ["backbone", "fpn", "head"]


@pytest.mark.parametrize(
    "answer, hint",
    [
        ("", "no answer"),
        ("backbone.stage3.2", "go deeper"),
        ("backbone.nothing", "no module"),
        ("fpn", "passes on"),
    ],
)
def test_a_wrong_answer_is_told_where_to_look(answer, hint):
    assert re.match(rf"NOT YET: .*{hint}", fault.check(1, answer))


def test_unknown_numbers_and_modules_are_one_line():
    with pytest.raises(UserError, match="choose from 1, 2, 3"):
        fault.errors(9)
    with pytest.raises(UserError, match="no module 'neck'"):
        fault.errors(1, "neck")


@in_jittor
def test_the_block_as_handed_out_is_wrong_in_three_ways():
    verdicts = mend.check(FOLDER / "exercises" / "block.py")["verdict"]
    assert verdicts.to_dict() == {
        "output": "NOT YET",
        "running_mean": "RIGHT",
        "running_var": "NOT YET",
        "trained scalars": "NOT YET",
    }


@in_jittor
def test_the_solution_is_right():
    table = mend.check(FOLDER / "solutions" / "block.py")
    assert set(table["verdict"]) == {"RIGHT"} and (table["error"] < mend.GATE / 10).all()


@in_jittor
@pytest.mark.parametrize(
    "undone, row",
    [
        (', mode="nearest"', "output"),
        (".stop_grad()", "trained scalars"),
        (" * (count / (count - 1))", "running_var"),
    ],
)
def test_each_mend_is_needed(undone, row, tmp_path):
    source = (FOLDER / "solutions" / "block.py").read_text()
    assert undone in source
    (tmp_path / "block.py").write_text(source.replace(undone, ""))
    table = mend.check(tmp_path / "block.py")
    assert list(table.index[table["verdict"] != "RIGHT"]) == [row]


@in_jittor
def test_another_shape_is_said(tmp_path):
    source = (FOLDER / "solutions" / "block.py").read_text().replace(".sum(1)", "")
    (tmp_path / "block.py").write_text(source)
    assert "shape (2, 5, 6, 6)" in mend.check(tmp_path / "block.py").loc["output", "verdict"]


def test_the_expected_values_follow_from_their_definitions():
    """The same rule through the backend, which is tested against NumPy layer by layer."""
    nn, weights, truth = backend.nn, mend._weights(), mend.expected()
    conv, norm = nn.Conv2d(mend.CHANNELS, mend.CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(mend.CHANNELS)
    backend.load_state(conv, {"weight": weights["conv.weight"]})
    y = conv(backend.tensor(mend.seeded_input("block", mend.INPUT)))
    norm.train()
    norm(y)
    assert np.allclose(backend.numpy(norm.running_var), truth["running_var"], rtol=1e-5)
    assert truth["output"].shape == (2, 6, 6) and truth["output"].min() > 0 and truth["output"].max() < mend.BINS - 1


# --------------------------------------------------------------------------------------------------------- the pages


def code(path: Path) -> list[dict]:
    return [
        {**cell, "source": "".join(cell["source"])}
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_pages_are_narrative(path):
    held = code(path)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in held)
    assert not [cell for cell in held if re.search(r"^\s*(class |!|%)", cell["source"], re.M)]
    tagged = [cell for cell in held if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1 and all(
        isinstance(ast.literal_eval(node.value), str | int) for node in ast.parse(tagged[0]["source"]).body
    )
    first = "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert all(word in first for word in ("**Question.**", "**Answer.**", "Time:", "Kernel:", "Reads:", "Writes:"))
    assert all(word in first for word in ("**问题。**", "**答案。**", "时间：", "内核：", "读取：", "写入："))


@pytest.mark.parametrize(
    "path", [page for page in PAGES if page.stem.startswith("1")], ids=lambda path: path.parent.name
)
def test_the_search_runs_and_only_the_solution_is_right(path, capsys):
    names = {}
    for cell in code(path):
        exec(compile(cell["source"], str(path), "exec"), names)
    assert capsys.readouterr().out.startswith("RIGHT" if path.parent.name == "solutions" else "NOT YET")


def test_every_exercise_has_a_solution():
    names = {
        folder: {path.name for path in PAGES if path.parent.name == folder} for folder in ("exercises", "solutions")
    }
    assert names["exercises"] == names["solutions"] and names["exercises"]


def test_the_teaching_path_has_six_lessons_and_leads_to_what_exists():
    text = (FOLDER / "README.md").read_text()
    lessons = re.split(r"^## (?=\d)", text, flags=re.M)[1:]
    assert [lesson[0] for lesson in lessons] == list("123456")
    assert all(f"* **{word}**" in lesson for lesson in lessons for word in ("Predict", "Run", "Change"))
    named = set(re.findall(r"`((?:exercises/|solutions/)?\d+_\w+)`", text)) | set(
        re.findall(r"`((?:exercises|solutions)/\w+)", text)
    )
    assert {name for name in named if not (FOLDER / f"{name}.ipynb").is_file()} == set()
    stages = {path.stem for path in FOLDER.glob("[1-9]*.ipynb")}
    assert stages <= named | {"31_fault_gallery", "32_port_your_own"}, "a notebook is in no lesson"
