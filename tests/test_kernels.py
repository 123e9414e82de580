"""The kernels as a user's tools start them: by papermill and nbconvert as typed, from any folder, without a setting of
the project's in the environment. Both environments.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lib.machine import environment, installation, launcher
from lib.machine.environment import ENVIRONMENTS, JT, TORCH

ROOT = Path(__file__).resolve().parents[1]
TELLS = """\
import json, os, sys
import lib.machine.environment
print(json.dumps({"cwd": os.getcwd(), "prefix": sys.prefix, **os.environ}))
"""
FOUND = """\
import os, sys
print(__file__, os.getcwd(), *sys.argv[1:3], sys.argv[6])
"""


@pytest.fixture
def bare(tmp_path) -> dict:
    """The variables of a shell that knows nothing of the project."""
    return {"PATH": os.defpath, "HOME": str(tmp_path), "LANG": "C"}


@pytest.fixture
def tiny(tmp_path):
    """A notebook in the project's notebooks/ that tells where its kernel runs, and with what."""
    path = ROOT / "notebooks" / f".tiny-{os.getpid()}.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[
                nbformat.v4.new_code_cell("which = 1", metadata={"tags": ["parameters"]}),
                nbformat.v4.new_code_cell(TELLS),
            ],
            metadata={"kernelspec": {"name": "torch", "display_name": "PyTorch", "language": "python"}},
        ),
        path,
    )
    yield path
    path.unlink()


def told(output: Path) -> dict:
    return json.loads(nbformat.read(output, 4).cells[-1].outputs[0].text)


def check(found: dict, one: environment.Environment) -> None:
    """The kernel ran in the root, in this environment, with every variable of a process that the project starts."""
    folder = one.link.resolve()
    assert (found["cwd"], found["prefix"]) == (str(ROOT), str(folder))
    assert found["PATH"].startswith(f"{folder}/bin{os.pathsep}")
    wanted = environment.variables(one, folder)
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "here, kernel, one", [(".", "jittor", JT), ("notebooks", "python3", TORCH), ("/", "jittor", JT)]
)
def test_papermill_as_typed(tmp_path, bare, tiny, here, kernel, one):
    """From the root and notebooks/ with relative paths; from elsewhere with whole ones; -k over its own."""
    folder = ROOT / here
    paths = [str(ROOT / "envs/torch/bin/papermill"), str(tiny)]
    typed = paths if here == "/" else [os.path.relpath(path, folder) for path in paths]
    command = [*typed, str(tmp_path / "out.ipynb"), "-k", kernel, "-p", "which", "2"]
    result = subprocess.run(command, cwd=folder, env=bare, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    check(told(tmp_path / "out.ipynb"), one)


def test_nbconvert_in_the_other_environment_as_typed(tmp_path, bare, tiny):
    command = [str(JT.link / "bin" / "jupyter"), "nbconvert", "--execute", "--to", "notebook"]
    command += [str(tiny.relative_to(ROOT)), "--output-dir", str(tmp_path), "--output", "out.ipynb"]
    result = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    check(told(tmp_path / "out.ipynb"), TORCH)


def test_both_environments_show_both_kernels(bare):
    for one in ENVIRONMENTS:
        command = [str(one.link / "bin" / "jupyter"), "kernelspec", "list", "--json"]
        listed = subprocess.run(command, env=bare, capture_output=True, text=True)
        specs = json.loads(listed.stdout)["kernelspecs"]
        assert {"jittor", "torch"} <= specs.keys()
        assert specs["jittor"]["resource_dir"].startswith(str(one.link.resolve()))


# ------------------------------------------------------------------------------------------------------- the launcher


@pytest.fixture
def places(tmp_path):
    """Two checkouts that tell who was asked to start what, and a folder outside, by the names a, b, out."""
    for name in ("a", "b"):
        (tmp_path / name / "lib" / "machine").mkdir(parents=True)
        (tmp_path / name / "notebooks").mkdir()
        (tmp_path / name / "lib" / "machine" / "__main__.py").write_text(FOUND)
        for mark in launcher.MARKS:
            (tmp_path / name / mark).touch()
    (tmp_path / "out").mkdir()
    shutil.copy(ROOT / "lib" / "machine" / "launcher.py", tmp_path / "launcher.py")  # outside, as in an environment
    return tmp_path


def launched(places: Path, cwd: str, parent: str, words=(), session="") -> subprocess.CompletedProcess:
    """Start the launcher in `cwd` by a process that was started in `parent` with these words."""
    started = "[sys.executable, '-I', '-S', sys.argv[1], 'jt', 'connection']"
    program = f"import subprocess, sys; sys.exit(subprocess.run({started}, cwd=sys.argv[2]).returncode)"
    command = [sys.executable, "-c", program, str(places / "launcher.py"), str(places / cwd), *words]
    environ = {**os.environ, "JPY_SESSION_NAME": session}
    return subprocess.run(command, cwd=places / parent, env=environ, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "cwd, parent, words, session, found",
    [
        ("a", "out", [], "", "a"),
        ("a/notebooks", "b", ["{}/b/x.ipynb"], "{}/b/x.ipynb", "a"),  # the notebook's folder goes before all else
        ("out", "out", ["{}/b/x.ipynb"], "{}/a/notebooks/x.ipynb", "a"),  # what the server says before what was typed
        ("out", "out", ["{}/b/envs/torch/bin/papermill", "y.ipynb"], "", "b"),
        ("out", "a", ["notebooks/x.ipynb"], "", "a"),  # papermill --cwd elsewhere
        ("out", "b", [], "", "b"),  # a server of the project on other folders
    ],
)
def test_the_launcher_finds_the_checkout(places, cwd, parent, words, session, found):
    result = launched(places, cwd, parent, [word.format(places) for word in words], session.format(places))
    root = f"{places}/{found}"
    assert result.stdout.split() == [f"{root}/lib/machine/__main__.py", root, "run", "jt", "connection"], result.stderr


def test_outside_of_any_checkout_there_is_one_line(places):
    (places / "a" / "environment-jt.yml").unlink()  # no longer a checkout
    result = launched(places, "a", "out")
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.startswith("error: no checkout") and len(result.stderr.splitlines()) == 1


def test_kernelspecs_name_no_checkout_and_are_written_once(tmp_path):
    installation.write_kernels(TORCH, tmp_path)
    files = sorted((tmp_path / "share").rglob("*.*"))
    assert len(files) == 6 and not any(str(ROOT) in file.read_text() for file in files)
    before = [file.stat().st_ino for file in files]
    installation.write_kernels(TORCH, tmp_path)
    assert [file.stat().st_ino for file in files] == before
    files[0].write_text("{}")
    installation.write_kernels(TORCH, tmp_path)
    assert "launcher.py" in files[0].read_text()
