"""Rules of the house that a machine can check: where frameworks may be named, what notebooks may hold, what a file may weigh."""

import ast
import json
import re
from pathlib import Path

import pytest

from lib.machine.pipeline import STAGES

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "lib").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHARED_SOURCE = sorted([*(ROOT / "lib" / "models").glob("*.py"), *(ROOT / "lib" / "losses").glob("*.py")])
# Methods that Jittor gives another meaning or accuracy: shared source uses the backend's functions instead.
UNSAFE_METHODS = {
    "sum",
    "mean",
    "max",
    "min",
    "argmax",
    "argmin",
    "squeeze",
    "transpose",
    "clamp",
    "norm",
    "std",
    "var",
}
FRAMEWORKS = {"torch", "jittor"}


def inside_backend(path):
    return (ROOT / "lib" / "backend") in path.parents


def imports(tree, nested=True):
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def asks_for_the_framework(tree):
    """Comparisons of anything with a framework's name or of a NAME."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(
                (isinstance(s, ast.Attribute) and s.attr == "NAME") or (isinstance(s, ast.Name) and s.id == "NAME")
                for s in sides
            ):
                yield node.lineno


def tensor_methods(tree):
    """Calls x.method() of UNSAFE_METHODS on what may be a tensor: NumPy arrays are excused where np made them plain, and
    so are a module's own parts (self.norm(x))."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        takes_arrays = any("ndarray" in ast.unparse(a.annotation) for a in function.args.args if a.annotation)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in UNSAFE_METHODS:
                if (
                    not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("np", "backend", "self"))
                    and not takes_arrays
                ):
                    yield f"{function.name}: {ast.unparse(node)[:60]}"


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if not inside_backend(p)],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_frameworks_live_in_the_backend(path):
    tree = ast.parse(path.read_text())
    assert not FRAMEWORKS & set(imports(tree)), "imports a framework"
    assert not list(asks_for_the_framework(tree)), "asks which framework runs"


def test_lib_reads_notebooks_only_when_asked():
    """Probes and faults are data that the engine looks up; importing the engine must not load them."""
    for path in SOURCES:
        assert "notebooks" not in set(imports(ast.parse(path.read_text()), nested=False)), path


def test_the_rules_see_a_breach():
    assert "torch" in imports(ast.parse("def f():\n    from torch import nn"))
    assert list(asks_for_the_framework(ast.parse("if backend.NAME == 'jittor': pass")))
    assert list(tensor_methods(ast.parse("def f(x):\n    return x.sum(1)")))


@pytest.mark.parametrize(
    "path", [p for p in SHARED_SOURCE if p.name != "__init__.py"], ids=lambda p: p.name + "/" + p.parent.name
)
def test_shared_source_calls_functions_of_the_backend(path):
    assert not list(tensor_methods(ast.parse(path.read_text())))


def test_files_stay_small():
    """A model or a criterion is one file, whatever its length."""
    short = [p for p in SOURCES if p.parent.name not in ("models", "losses")]
    long = {
        str(p.relative_to(ROOT)): n
        for p in [*short, *(ROOT / "tests").glob("*.py")]
        if (n := len(p.read_text().splitlines())) > 600
    }
    assert not long
    assert len((ROOT / "lib" / "backend" / "jittor.py").read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_narrative(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code), "holds outputs"
    sources = ["".join(cell["source"]) for cell in code]
    for source in sources:
        assert not re.search(r"^\s*(def |class |!|%|for |while )", source, re.M), (
            f"logic or shell in a cell: {source[:60]}"
        )
        assert not re.search(r"[\"'](/|~|[A-Z]:\\)", source), f"absolute path: {source[:60]}"
        assert len(source.splitlines()) <= 14, f"long cell: {source[:60]}"
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for line in "".join(tagged[0]["source"]).splitlines():
        name, _, value = line.partition("=")
        ast.literal_eval(value.split("#")[0].strip())
        assert name.strip().isidentifier()
    first = "".join(notebook["cells"][0]["source"])
    assert all(word in first for word in ("?", "Answer", "ime", "eads", "rites")), (
        "the first cell states question, answer, time, what it reads and writes"
    )


def test_every_stage_has_its_notebook_and_the_readme_maps_it():
    readme = (ROOT / "README.md").read_text()
    present = {path.stem for path in NOTEBOOKS}
    assert {stage.notebook for stage in STAGES if stage.notebook not in ("", "tour")} <= present
    assert not [name for name in present if f"`{name}`" not in readme], "a notebook is missing from the README's table"
