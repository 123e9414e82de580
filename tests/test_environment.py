"""Environments: the lists, the building and its interruptions, the variables. Standard library only; both environments."""
import importlib.util
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from lib import doctor, environment, installation
from lib.environment import ENVIRONMENTS, JT, TORCH
from lib.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PYTHON = installation.Python("python3.11", "3.11.7", Path("/base/bin"), Path("/base/include"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty checkout with an ALIGN_HOME of its own; its packages are never installed."""
    monkeypatch.setattr(environment, "ROOT", tmp_path / "checkout")
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALIGN_CONDA", raising=False)
    (tmp_path / "checkout").mkdir()
    for one in ENVIRONMENTS:
        (tmp_path / "checkout" / one.specification.name).write_text((ROOT / one.specification.name).read_text())
    return tmp_path


@pytest.fixture
def installed(monkeypatch):
    """Replace the installing by a note of its commands; what it leaves is what a venv would."""
    commands = []

    def note(command, log, what, remedy, environ=None):
        commands.append(command)
        if "venv" in command or "-p" in command:
            folder = Path(command[-1] if "venv" in command else command[command.index("-p") + 1])
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "python").symlink_to(sys.executable)
        return ""

    monkeypatch.setattr(installation, "logged", note)
    return commands


def test_pip_list_is_what_a_yaml_parser_reads():
    for one in ENVIRONMENTS:
        path = ROOT / one.specification.name
        (pip,) = [entry["pip"] for entry in yaml.safe_load(path.read_text())["dependencies"] if isinstance(entry, dict)]
        assert installation.requirements(path) == pip


def test_shared_pins_are_equal_and_exact():
    lists = [dict(line.split("==") for line in installation.requirements(ROOT / one.specification.name)) for one in ENVIRONMENTS]
    shared = lists[0].keys() & lists[1].keys()
    assert len(shared) > 10 and {name: lists[0][name] for name in shared} == {name: lists[1][name] for name in shared}
    assert not any("+" in version for pins in lists for version in pins.values())  # +cpu would exclude a GPU build


def test_this_environment_is_the_list_and_imports():
    (one,) = [one for one in ENVIRONMENTS if importlib.util.find_spec(one.kernel)]
    modules = {name: module for module, names in importlib.metadata.packages_distributions().items() for name in names}
    for line in installation.requirements(ROOT / one.specification.name):
        name, version = line.split("==")
        assert importlib.metadata.version(name).split("+")[0] == version
        if name != one.kernel and "onednn" not in name:  # the frameworks are imported by every other test
            importlib.import_module({"pyyaml": "yaml", "opencv-python-headless": "cv2"}.get(name, modules.get(name, name)))


def test_no_pip_section_is_one_line(tmp_path):
    (tmp_path / "environment-x.yml").write_text("dependencies: [python=3.11]\n")
    with pytest.raises(UserError, match="environment-x.yml"):
        installation.requirements(tmp_path / "environment-x.yml")


def test_place_depends_on_pins_and_python_not_on_comments(project):
    first = installation.destination(JT, PYTHON)
    assert first.parent == project / "home" / ".cache" / "jittor" / "envs"
    text = JT.specification.read_text()
    JT.specification.write_text(text.replace("# tables", "# other words"))
    assert installation.destination(JT, PYTHON) == first
    JT.specification.write_text(text.replace("numpy==1.26.4", "numpy==1.26.3"))
    assert installation.destination(JT, PYTHON) != first
    JT.specification.write_text(text)
    assert installation.destination(JT, installation.Python("p", "3.11.9", Path(), Path())) != first


def test_a_half_built_environment_is_built_again_and_a_complete_one_is_kept(project, installed):
    folder = installation.destination(JT, PYTHON)
    (folder / "bin").mkdir(parents=True)
    (folder / "rubbish").touch()
    assert installation.build(JT, None, PYTHON) == folder
    assert not (folder / "rubbish").exists() and environment.location(JT) == folder
    assert [command[:3] for command in installed] == [["python3.11", "-m", "venv"], [f"{folder}/bin/python", "-m", "pip"]]
    installation.build(JT, None, PYTHON)
    assert len(installed) == 2
    (folder / "bin" / "python").unlink()  # the base Python was removed
    installation.build(JT, None, PYTHON)
    assert len(installed) == 4


def test_concurrent_builds_install_once(project, installed):
    builders = [threading.Thread(target=installation.build, args=(TORCH, None, PYTHON)) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(installed) == 2


def test_a_failed_install_leaves_no_environment(project, monkeypatch):
    def fail(folder, python, *_):
        return [[sys.executable, "-c", "print('no such pin'); raise SystemExit(3)"]]
    monkeypatch.setattr(installation, "install_commands", fail)
    with pytest.raises(UserError, match=r"exit 3[\s\S]*no such pin"):
        installation.build(JT, None, PYTHON)
    with pytest.raises(UserError, match="make envs"):
        environment.location(JT)


def test_conda_is_used_where_there_is_one(project, installed, monkeypatch):
    program = project / "programs" / "conda"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert installation.find_conda() == str(program)
    folder = installation.build(TORCH, installation.find_conda(), None)
    assert installed == [[str(program), "env", "create", "-p", str(folder), "-f", str(TORCH.specification)]]
    monkeypatch.setenv("ALIGN_CONDA", "no")
    assert installation.find_conda() is None


def wheel(folder: Path) -> Path:
    """What the oneDNN wheels leave in an environment."""
    for name, content in {"lib/libdnnl.so.2": "library", "include/dnnl.hpp": "", "include/oneapi/dnnl/dnnl.h": ""}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_onednn_repairs_broken_links_and_keeps_what_works(project):
    target = environment.cache() / "mkl" / installation.ONEDNN_FOLDERS[installation.platform.machine()]
    (target / "lib").mkdir(parents=True)
    (target / "lib" / "libmkldnn.so").symlink_to("/gone/libdnnl.so.2")
    (target / "include").symlink_to("/gone/include")
    installation.install_onednn(wheel(project / "env"))
    assert (target / "lib" / "libmkldnn.so").read_text() == "library"
    assert (target / "include" / "oneapi" / "dnnl" / "dnnl.h").is_file()
    assert [path.name for path in target.parent.iterdir()] == [target.name]  # Jittor takes the first dnnl* it finds
    (target / "lib" / "libdnnl.so.2").unlink()
    (target / "lib" / "libdnnl.so.2").write_text("the user's own")
    installation.install_onednn(project / "env")
    assert (target / "lib" / "libmkldnn.so").read_text() == "the user's own"


def test_jittor_home_of_the_user_is_respected(project):
    environment.cache().mkdir(parents=True)
    (environment.cache() / "config.json").write_text(json.dumps({"JITTOR_HOME": str(project / "elsewhere")}))
    installation.install_onednn(wheel(project / "env"))
    assert (project / "elsewhere" / ".cache" / "jittor" / "mkl").is_dir()
    assert "JITTOR_HOME" in str(doctor.jittor_home())


def test_an_import_that_ends_early_is_not_taken_for_ready(project):
    (project / "env" / "bin").mkdir(parents=True)
    program = project / "env" / "bin" / "python"
    program.write_text(f"#!/bin/sh\necho >> {project}/calls\n")  # exits 0 and prints nothing, as Jittor does
    program.chmod(0o755)
    with pytest.raises(UserError, match="ends before it is done"):
        installation.compile_core(project / "env")
    assert (project / "calls").read_text() == "\n\n"


def test_processes_see_their_own_settings_and_not_the_users_traps(project, monkeypatch):
    monkeypatch.setenv("JITTOR_HOME", "/trap")
    found = environment.process_environment(JT, project / "env")
    assert "JITTOR_HOME" not in found
    assert (found["HOME"], found["nvcc_path"], found["cache_name"]) == (str(project / "home"), "", "alignment")
    assert found["PATH"].startswith(f"{project}/env/bin:")
    assert "HOME" not in environment.variables(TORCH, project / "env")
    written = {value for key, value in found.items() if key.startswith(("JUPYTER", "IPYTHON", "MPL", "XDG_CACHE"))}
    assert written and all(value.startswith(str(environment.ROOT)) for value in written)


def test_kernels_start_in_the_root_through_the_resolved_path(project):
    installation.write_kernel(JT, project / "env")
    (file,) = (environment.ROOT / ".jupyter").rglob("kernel.json")
    spec = json.loads(file.read_text())
    assert file.parent.name == "jittor"
    assert spec["argv"][:3] == ["env", f"--chdir={environment.ROOT}", str(project / "env" / "bin" / "python")]
    assert spec["env"]["nvcc_path"] == ""


def test_doctor_names_what_is_missing_and_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert doctor.report() == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "C++ compiler" in line]
    assert line.startswith("MISSING") and "apt-get install g++" in line
    assert len(lines) == len(doctor.CHECKS)
    with pytest.raises(UserError, match="not ready"):
        doctor.require()


def test_system_installs_what_is_missing_and_goes_on_without_the_optional(monkeypatch, tmp_path, capsys):
    calls = []
    lacking = [doctor.Check("PDF", False, "none", "chromium", ("chromium",), required=False),
               doctor.Check("C++ compiler", False, "none", "g++", ("g++",))]
    monkeypatch.setattr(doctor, "missing", lambda: lacking)
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 0)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor, "apt", lambda arguments, *_: calls.append(arguments[-1]) or arguments[-1] != "chromium")
    assert doctor.install(if_possible=True) == 0  # an optional one failed
    assert calls == ["update", "chromium", "g++"] and "not installed: OPTIONAL PDF" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "apt", lambda arguments, *_: False)
    assert doctor.install(if_possible=True) == 1  # a required one failed
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    assert doctor.install(if_possible=True) == 0
    with pytest.raises(UserError, match="root"):
        doctor.install(if_possible=False)


def test_pytest_is_given_its_options_as_they_are(monkeypatch):
    given = []
    monkeypatch.setattr(environment, "test", lambda arguments: given.extend(arguments) or 0)
    monkeypatch.setattr("sys.argv", ["environment", "test", "-k", "a and b", "--durations=4"])
    assert environment.main() == 0 and given == ["-k", "a and b", "--durations=4"]


def test_users_mistakes_are_one_line():
    command = [sys.executable, "-m", "lib.environment", "run", "tensorflow"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
