"""Rules of the house that a machine can check: how it is laid out, what lib may weigh, who may import whom, where
frameworks may be named, what notebooks may hold.
"""

import ast
import graphlib
import importlib.util
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import PLAIN

from lib.families import NAMES
from lib.machine import notebook
from lib.machine.pipeline import STAGES

ROOT = Path(__file__).resolve().parent.parent
# What lib may weigh at most. Who needs more says so here.
FILES, LINES, FILE_LINES, FLAT_MODULES = 164, 28741, 600, 6
SOURCES = sorted((ROOT / "lib").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHARED_SOURCE = sorted([*(ROOT / "lib" / "models").glob("*.py"), *(ROOT / "lib" / "losses").glob("*.py")])
JUDGED = ("models", "losses", "postprocess", "data", "training", "evaluation", "backend")  # what alignment looks at
# Methods that Jittor gives another meaning or accuracy: shared source uses the backend's functions instead.
UNSAFE_METHODS = {
    "argmax",
    "argmin",
    "clamp",
    "max",
    "mean",
    "min",
    "norm",
    "squeeze",
    "std",
    "sum",
    "transpose",
    "var",
}
FRAMEWORKS = {"torch", "jittor"}


# ------------------------------------------------------------------------------------------------- layout and size


def test_make_runs_every_test():
    """Each file's name begins with a letter of exactly one of the lanes that the Makefile runs beside each other."""
    lanes = re.findall(r"(?<= test-torch-)([a-z]-[a-z])\b", (ROOT / "Makefile").read_text(encoding="utf-8"))
    names = [path.name for path in (ROOT / "tests").glob("test_*.py")]
    assert {name: sum(fnmatch(name, f"test_[{lane}]*.py") for lane in lanes) for name in names} == dict.fromkeys(
        names, 1
    )


@pytest.mark.parametrize("command", [["check", "--output-format=concise"], ["format", "--check"]], ids=lambda c: c[0])
def test_ruff_finds_nothing(command):
    """What pyproject.toml configures, everywhere."""
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("only the torch environment has ruff")
    run = [sys.executable, "-m", "ruff", *command, "--no-cache", "--quiet", "."]
    result = subprocess.run(run, cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_lib_weighs_no_more_than_it_may():
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES]
    assert len(lines) <= FILES and sum(lines) <= LINES, f"{len(lines)} files, {sum(lines)} lines"
    flat = sorted(path.stem for path in (ROOT / "lib").glob("*.py") if not path.stem.startswith("__"))
    assert len(flat) <= FLAT_MODULES, flat


def test_files_stay_small():
    """A model or a criterion is one file, whatever its length."""
    short = [path for path in SOURCES if path.parent.name not in ("models", "losses")]
    lines = {path: len(path.read_text().splitlines()) for path in [*short, *(ROOT / "tests").glob("*.py")]}
    assert not {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > FILE_LINES}
    assert lines[ROOT / "lib" / "backend" / "jittor.py"] <= 300


def test_every_package_says_what_belongs_there():
    packages = [path for path in SOURCES if path.name == "__init__.py"]
    assert not [path for path in packages if not ast.get_docstring(ast.parse(path.read_text()))]


# ------------------------------------------------------------------------------------------------ who imports whom


def imports_of(path, names):
    """The modules among `names` that a file imports, in its functions too. That a module's package comes with it does
    not count."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            whole = (f"{base}.{alias.name}" for alias in node.names)
            yield from (name if name in names else base for name in whole)


def graph():
    """Each module of lib with those that it imports."""
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
    return {name: named.keys() & set(imports_of(path, named)) - {name} for name, path in named.items()}


def circle(modules):
    """A circle of imports, as names; nothing where there is none."""
    try:
        graphlib.TopologicalSorter(modules).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def looking_at_alignment(modules):
    """Of what alignment judges, the modules that import it."""
    judged = {name: found for name, found in modules.items() if name.split(".")[1:2] and name.split(".")[1] in JUDGED}
    return sorted(
        name for name, found in judged.items() if any(f"{one}.".startswith("lib.alignment.") for one in found)
    )


def test_imports_run_in_no_circle():
    found = circle(graph())
    assert not found


def test_what_is_judged_does_not_know_its_judge():
    found = looking_at_alignment(graph())
    assert not found


def test_what_builds_environments_needs_no_room_but_its_own():
    """It runs before there is any package."""
    modules = graph()
    waiting, seen = ["lib.machine.__main__", "lib.machine.launcher"], set()
    while waiting:
        seen.add(name := waiting.pop())
        waiting += modules[name] - seen
    assert all(name.startswith("lib.machine.") or name == "lib.errors" for name in seen), seen


# ------------------------------------------------------------------------------------------------ frameworks


def inside_backend(path):
    return (ROOT / "lib" / "backend") in path.parents


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def asks_for_the_framework(tree):
    """Comparisons of anything with a framework's name or of a NAME."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any("NAME" in (getattr(one, "attr", ""), getattr(one, "id", "")) for one in sides):
                yield node.lineno


def tensor_methods(tree):
    """Calls x.method() of UNSAFE_METHODS on what may be a tensor. Not in functions that take NumPy's arrays, nor of np,
    nor of a module's own parts (self.norm(x))."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        takes_arrays = any("ndarray" in ast.unparse(a.annotation) for a in function.args.args if a.annotation)
        calls = (node for node in ast.walk(function) if isinstance(node, ast.Call) and not takes_arrays)
        for call in (call for call in calls if getattr(call.func, "attr", "") in UNSAFE_METHODS):
            if getattr(call.func.value, "id", "") not in ("np", "backend", "self"):
                yield f"{function.name}: {ast.unparse(call)[:60]}"


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if not inside_backend(p)],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_frameworks_live_in_the_backend(path):
    tree = ast.parse(path.read_text())
    assert not FRAMEWORKS & set(imports(tree)), "imports a framework"
    assert not list(asks_for_the_framework(tree)), "asks which framework runs"


def test_lib_does_not_know_the_notebooks():
    """But for the command line of the exam, which plants the faults that lie beside them."""
    assert [path.stem for path in SOURCES if "notebooks" in imports(ast.parse(path.read_text()))] == ["exam"]


def test_jittor_is_imported_in_one_place_of_the_backend():
    """What its import does to the process is undone there; a formatter may sort any other import before that one."""
    backend = [path for path in SOURCES if inside_backend(path) and path.name != "jittor_import.py"]
    assert not [path.name for path in backend if "jittor" in imports(ast.parse(path.read_text()))]


def backend_files(name):
    """What the tests of a file, or lib on their behalf, import of the backend, in functions too."""
    return [file for file in notebook.sources(Path("tests", f"test_{name}.py"), "jittor", NAMES) if "/backend/" in file]


def test_what_is_tested_in_one_environment_alone_reaches_no_framework():
    assert not [name for name in PLAIN if backend_files(name)]


def test_the_rules_see_a_breach():
    assert backend_files("precision") and backend_files("curves")  # itself, and through what a command needs
    assert "torch" in imports(ast.parse("def f():\n    from torch import nn"))
    assert list(asks_for_the_framework(ast.parse("if backend.NAME == 'jittor': pass")))
    assert list(tensor_methods(ast.parse("def f(x):\n    return x.sum(1)")))
    assert circle({"lib.a": {"lib.b"}, "lib.b": {"lib.c"}, "lib.c": {"lib.a"}}) and not circle({"lib.a": {"lib.b"}})
    assert looking_at_alignment({"lib.losses.x": {"lib.alignment"}, "lib.show": {"lib.alignment"}}) == ["lib.losses.x"]


@pytest.mark.parametrize(
    "path", [p for p in SHARED_SOURCE if p.name != "__init__.py"], ids=lambda p: p.name + "/" + p.parent.name
)
def test_shared_source_calls_functions_of_the_backend(path):
    assert not list(tensor_methods(ast.parse(path.read_text())))


# ------------------------------------------------------------------------------------------------ notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_narrative(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code), "holds outputs"
    sources = ["".join(cell["source"]) for cell in code]
    for source in sources:
        assert not re.search(r"^\s*(class |!|%)", source, re.M), f"a class or shell in a cell: {source[:60]}"
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


def test_the_first_notebook_leads_to_every_other_in_both_languages():
    first, *others = NOTEBOOKS
    text = first.read_text(encoding="utf-8")
    assert not {path.name: text.count(f"({path.name})") for path in others if text.count(f"({path.name})") != 2}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_markdown_leaves_no_asterisk(path):
    """Emphasis that ends in a Chinese sign and is followed by a letter is none: **so**：, not **so：**."""
    rendered = pytest.importorskip("nbconvert.filters").markdown2html
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
    shown = "".join(rendered("".join(cell["source"])) for cell in cells)
    left = re.sub(r"<(code|pre)\b.*?</\1>|<[^>]+>", "", shown, flags=re.DOTALL)
    assert "*" not in left, left[max(0, left.index("*") - 30) :][:60]
