"""Environments: the lists, the building and its interruptions, the variables. Standard library; both environments."""

import ast
import errno
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
import yaml

from lib.errors import UserError, of_a_user
from lib.machine import __main__ as commands
from lib.machine import doctor, environment, installation, locks
from lib.machine.environment import ENVIRONMENTS, JT, TORCH

ROOT = Path(__file__).resolve().parent.parent
ANY_PYTHON = ("__init__", "__main__", "doctor", "environment", "installation", "launcher", "locks")
PYTHON = doctor.Python("python3.11", "3.11.7", Path("/base/bin"), Path("/base/include"))


def script(path: Path, text: str = "") -> Path:
    """A program of the shell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty checkout with an ALIGN_HOME of its own; its packages are never installed."""
    monkeypatch.setattr(environment, "ROOT", tmp_path / "checkout")
    monkeypatch.setenv("ALIGN_HOME", str(tmp_path / "home"))
    for name in ("ALIGN_CONDA", "cc_path", "cc_flags"):  # Jittor's import sets the last two
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "checkout").mkdir()
    for path in [*ROOT.glob("environment-*.yml"), *ROOT.glob("environment-*.lock")]:
        shutil.copy(path, tmp_path / "checkout")
    return tmp_path


@pytest.fixture
def installed(monkeypatch):
    """Replace the installing by a note of its commands; what it leaves is what a venv, uv and the CPU build would."""
    commands = []

    def note(command, log, what, remedy, environ=None, progress=None):
        commands.append(command)
        if "venv" in command or "create" in command:
            folder = Path(command[-1] if "venv" in command else command[command.index("-p") + 1])
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "python").symlink_to(sys.executable)
            torch = folder / "lib/python3.11/site-packages/torch-2.13.0+cpu.dist-info"
            torch.mkdir(parents=True)
            (torch / "METADATA").write_text("Name: torch\nRequires-Dist: sympy>=1.13.3\nRequires-Dist: setuptools<90\n")
        if command[-1].endswith("environment-uv.lock"):
            (Path(command[0]).parent / "uv").touch()
        return "torch==2.13.0+cpu\n" if "compile" in command else ""

    monkeypatch.setattr(installation, "logged", note)
    return commands


def test_lists_are_what_a_yaml_parser_reads():
    for one in ENVIRONMENTS:
        path = ROOT / one.specification.name
        dependencies = yaml.safe_load(path.read_text())["dependencies"]
        (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
        assert locks.requirements(path) == pip
        assert locks.conda_requirements(path) == [entry for entry in dependencies if isinstance(entry, str)]


def test_shared_pins_are_equal_and_exact():
    lists = [
        dict(line.split("==") for line in locks.requirements(ROOT / one.specification.name)) for one in ENVIRONMENTS
    ]
    shared = lists[0].keys() & lists[1].keys()
    assert len(shared) > 10 and {name: lists[0][name] for name in shared} == {name: lists[1][name] for name in shared}
    assert not any("+" in version for pins in lists for version in pins.values())  # +cpu would exclude a GPU build


def test_locks_answer_to_the_lists_and_to_each_other(project):
    found = [locks.pins(one) for one in ENVIRONMENTS]  # every pin with its version, every entry with a hash
    shared = found[0].keys() & found[1].keys()
    assert len(shared) > 100 and [found[0][name] for name in shared] == [found[1][name] for name in shared]
    cuda = locks.read("torch-cuda")
    assert "triton" in cuda and not cuda.keys() & found[1].keys()
    assert not any("+" in locks.version(entry) for entry in found[1].values())


@pytest.mark.parametrize(
    "before, after, words",
    [
        ("numpy==1.26.4", "numpy==1.26.3", "does not answer to numpy==1.26.4"),
        ("\nnumpy==", "\nnumpi==", "does not answer to numpy"),
        ("numpy==1.26.4 \\\n    --hash=sha256:", "numpy==1.26.4 \\\n    --", "numpy has no version with a hash"),
    ],
)
def test_a_lock_that_was_edited_or_forgotten_is_refused(project, before, after, words):
    path = locks.path("jt")
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=words):
        installation.destination(JT, PYTHON)


def test_what_is_installed_is_the_lock():
    (one,) = [one for one in ENVIRONMENTS if importlib.util.find_spec(one.kernel)]
    wanted = {name: locks.version(entry) for name, entry in locks.pins(one).items()}
    here = Path(sysconfig.get_path("purelib"))
    found = {
        locks.normalised(dist.metadata["Name"]): dist.version.split("+")[0]
        for dist in importlib.metadata.distributions(path=[str(here)])
    }
    if "triton" in found:
        wanted |= {name: locks.version(entry) for name, entry in locks.read("torch-cuda").items()}
    if sys.prefix == sys.base_prefix:  # conda's Python brings packages of its own
        found = {name: version for name, version in found.items() if name in wanted}
    assert found == wanted


def test_settings_of_pip_are_passed_on_to_uv_and_those_of_uv_stand(monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text(
        "[global]\nfind-links = /a /b\nextra-index-url = file:///more\n[install]\nfind-links = /c\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS", "UV_INDEX", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    found = locks.uv_variables(locks.pip_settings(Path(sys.executable)))
    names = ("UV_FIND_LINKS", "UV_INDEX", "UV_DEFAULT_INDEX")
    assert [found[name] for name in names] == ["/c", "file:///more", "https://mirror.example/simple"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/d /e")
    assert locks.uv_variables(locks.pip_settings(Path(sys.executable)))["UV_FIND_LINKS"] == "/d,/e"
    monkeypatch.setenv("UV_FIND_LINKS", "/mine")
    assert "UV_FIND_LINKS" not in locks.uv_variables(locks.pip_settings(Path(sys.executable)))


def test_the_list_imports():
    (one,) = [one for one in ENVIRONMENTS if importlib.util.find_spec(one.kernel)]
    modules = {name: module for module, names in importlib.metadata.packages_distributions().items() for name in names}
    for line in locks.requirements(ROOT / one.specification.name):
        name = line.split("==")[0]
        if name not in (one.kernel, "setuptools") and "onednn" not in name:  # every other test imports the frameworks
            known = {"pyyaml": "yaml", "opencv-python-headless": "cv2"}
            importlib.import_module(known.get(name, modules.get(name, name)))


def test_no_pip_section_is_one_line(tmp_path):
    (tmp_path / "environment-x.yml").write_text("dependencies: [python=3.11]\n")
    with pytest.raises(UserError, match="environment-x.yml"):
        locks.requirements(tmp_path / "environment-x.yml")


def test_place_depends_on_packages_and_python_not_on_comments(project):
    first = installation.destination(TORCH, PYTHON)
    assert first.parent == project / "home" / ".cache" / "jittor" / "envs"
    for path in (locks.path("torch"), TORCH.specification):
        path.write_text("# other words\n" + path.read_text())
    assert installation.destination(TORCH, PYTHON) == first
    assert installation.destination(TORCH, doctor.Python("p", "3.11.9", Path(), Path())) != first
    for name, package in (("torch", "\nattrs=="), ("torch-cuda", "\ntriton==")):
        text = locks.path(name).read_text()
        locks.path(name).write_text(text.replace(package, f"{package}1"))
        assert installation.destination(TORCH, PYTHON) != first
        locks.path(name).write_text(text)


def build(one, conda=None):
    return installation.build(one, conda, None if conda else PYTHON, environment.cache() / "packages")


def test_a_half_built_environment_is_built_again_and_a_complete_one_is_kept(project, installed):
    folder = installation.destination(JT, PYTHON)
    (folder / "bin").mkdir(parents=True)
    (folder / "rubbish").touch()
    assert build(JT) == folder and environment.complete(folder)
    assert not (folder / "rubbish").exists()
    assert installed[0] == ["python3.11", "-m", "venv", "--without-pip", str(folder)]
    assert [Path(command[0]).name for command in installed] == ["python3.11", "python3.11", "python", "uv", "uv"]
    assert all("--require-hashes" in command for command in installed[2:])
    assert (folder / "build.lock").read_text().startswith("setuptools==")
    count = len(installed)
    build(JT)
    assert len(installed) == count
    (folder / "bin" / "python").unlink()  # the base Python was removed
    build(JT)
    assert len(installed) > count


def test_without_uv_pip_installs_the_same_files(project, installed, monkeypatch, capsys):
    note = installation.logged

    def no_uv(command, *rest, **options):
        if command[-1].endswith("environment-uv.lock"):
            raise UserError("installer: uv failed (exit 1); pip is used instead. It ended with\n    no such package")
        return note(command, *rest, **options)

    monkeypatch.setattr(installation, "logged", no_uv)
    build(TORCH)
    assert installed[-1][1:3] == ["-m", "pip"] and "--require-hashes" in installed[-1]
    assert installed[-1][-1] == str(locks.path("torch"))
    assert "pip is used instead" in capsys.readouterr().out


def test_uv_is_given_the_build_of_torch_that_the_users_indexes_offer(project, installed):
    folder = build(TORCH)
    assert installed[-1][-1] == str(folder / "torch.lock")
    changed = set((folder / "torch.lock").read_text().splitlines()) ^ set(locks.path("torch").read_text().splitlines())
    assert {line.split()[0] for line in changed} == {"torch==2.13.0", "torch==2.13.0+cpu"}


def test_cuda_libraries_come_with_a_build_of_torch_that_asks_for_them(project, installed):
    folder = build(TORCH)
    assert not any(command[-1].endswith("torch-cuda.lock") for command in installed)
    (metadata,) = folder.glob("lib/python3.11/site-packages/torch-*/METADATA")
    metadata.write_text(metadata.read_text() + 'Requires-Dist: nvidia_cublas[all]==1; platform_system == "Linux"\n')
    assert installation.wants_cuda(folder)


def test_concurrent_builds_install_once(project, installed, monkeypatch):
    monkeypatch.setattr(doctor, "find_python", lambda: PYTHON)
    monkeypatch.setattr(doctor, "require", lambda: None)
    monkeypatch.setattr(installation, "install_onednn", lambda folder: None)
    monkeypatch.setattr(installation, "compile_core", lambda folder: None)
    monkeypatch.setenv("ALIGN_CONDA", "no")
    builders = [threading.Thread(target=installation.make_environments) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len([command for command in installed if "--without-pip" in command]) == 2
    assert all(environment.location(one).is_dir() for one in ENVIRONMENTS)
    assert not (environment.cache() / "envs" / "packages").exists()


def test_a_failed_install_leaves_no_environment_and_says_why(project, monkeypatch):
    def fail(words):
        return lambda *_: [sys.executable, "-c", f"print({words!r}); raise SystemExit(3)"]

    monkeypatch.setattr(installation, "make_python", fail("no such pin"))
    with pytest.raises(UserError, match=r"exit 3[\s\S]*no such pin"):
        build(JT)
    with pytest.raises(UserError, match="make envs"):
        environment.location(JT)
    monkeypatch.setattr(installation, "make_python", fail("x.so: No space left on device (os error 28)"))
    with pytest.raises(UserError, match="no room on the disk at .*home: free some"):
        build(JT)


def test_conda_is_used_where_there_is_one(project, installed, monkeypatch):
    program = script(project / "programs" / "conda")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert doctor.find_conda() == str(program)
    folder = build(TORCH, str(program))
    wanted = ["-c", "conda-forge", "python=3.11", "pip>=24"]
    assert installed[0] == [str(program), "create", "-y", "-p", str(folder), *wanted]
    assert installed[1][:3] == [str(folder / "bin" / "python"), "-m", "venv"]  # the installer, by conda's Python
    assert installed[-1][-1] == str(folder / "torch.lock")
    monkeypatch.setenv("ALIGN_CONDA", "no")
    assert doctor.find_conda() is None


def wheel(folder: Path) -> Path:
    """What the oneDNN wheels leave in an environment."""
    for name in ("lib/libdnnl.so.2", "include/dnnl.hpp", "include/oneapi/dnnl/dnnl.h", "include/python3.11/other.h"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("library")
    return folder


def test_onednn_repairs_broken_links_and_keeps_what_works(project):
    target = environment.cache() / "mkl" / installation.ONEDNN_FOLDERS[installation.platform.machine()]
    (target / "lib").mkdir(parents=True)
    (target / "lib" / "libmkldnn.so").symlink_to("/gone/libdnnl.so.2")
    (target / "include").symlink_to("/gone/include")
    installation.install_onednn(wheel(project / "env"))
    assert (target / "lib" / "libmkldnn.so").read_text() == "library"
    assert (target / "include" / "oneapi" / "dnnl" / "dnnl.h").is_file()
    assert not (target / "include" / "python3.11").exists()
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


@pytest.fixture
def core(project, monkeypatch):
    """An environment whose Python notes each start and prints what is in `answer`; it has no headers to precompile."""
    monkeypatch.setattr(installation, "precompile_headers", lambda *_: None)
    (project / "answer").touch()
    script(project / "env" / "bin" / "python", f"echo >> {project}/calls\ncat {project}/answer\n")
    return project


def test_an_import_that_ends_early_is_not_taken_for_ready(core):
    with pytest.raises(UserError, match="ends before it is done"):  # it exits 0 and prints nothing, as Jittor does
        installation.compile_core(core / "env")
    assert (core / "calls").read_text() == "\n\n"


def test_the_core_is_compiled_again_only_for_another_machine_or_without_its_libraries(core, monkeypatch):
    def starts() -> int:
        installation.compile_core(core / "env")
        return len((core / "calls").read_text())

    library = core / "jittor_core.so"
    library.touch()
    (core / "answer").write_text(f"jittor is ready:{library}\n")
    assert starts() == 1 and starts() == 1
    library.unlink()
    assert starts() == 2
    library.touch()
    assert starts() == 2
    compiler = script(core / "compiler" / "g++", "echo g++ 99\n")
    monkeypatch.setenv("PATH", f"{compiler.parent}:{os.environ['PATH']}")
    assert starts() == 3 and starts() == 3
    monkeypatch.setattr(installation.platform, "node", lambda: "another-host")
    assert starts() == 4


def test_processes_see_their_own_settings_and_not_the_users_traps(project, monkeypatch):
    monkeypatch.setenv("JITTOR_HOME", "/trap")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    folder = environment.cache() / "envs" / "jt-0"
    monkeypatch.delenv("ALIGN_HOME")  # a shell that does not know where the environments were built
    found = environment.process_environment(JT, folder)
    assert "JITTOR_HOME" not in found
    assert (found["HOME"], found["nvcc_path"], found["cache_name"]) == (str(project / "home"), "", "alignment")
    assert found["PATH"].startswith(f"{folder}/bin:")
    assert "HOME" not in environment.variables(TORCH, folder)
    assert found["PYTHONPYCACHEPREFIX"].startswith(str(project / "home")) and "PYTHONDONTWRITEBYTECODE" not in found
    written = {value for key, value in found.items() if key.startswith(("JUPYTER", "IPYTHON", "MPL", "XDG_CACHE"))}
    assert written and all(value.startswith(str(environment.ROOT)) for value in written)


def test_every_process_takes_the_precompiled_core_unless_the_user_has_flags_of_his_own(project, monkeypatch):
    folder = environment.cache() / "envs" / "jt-0"
    assert "cc_flags" not in environment.variables(JT, folder)
    header = environment.header(folder, "core")
    header.parent.mkdir(parents=True)
    header.touch()
    assert environment.variables(JT, folder)["cc_flags"] == f'-include "{header}"'
    monkeypatch.setenv("cc_flags", "-g")
    assert environment.process_environment(JT, folder)["cc_flags"] == "-g"


def test_headers_are_precompiled_for_this_machine_and_a_failure_is_one_line(project, monkeypatch):
    folder, ran = project / "env", []
    script(folder / "bin" / "python3.11-config", "echo -I/python\n")

    def compile(command, *_):
        ran.append(command)
        Path(command[-1]).write_text("")
        return ""

    monkeypatch.setattr(installation, "logged", compile)
    installation.precompile_headers(folder, project / "log")
    assert [Path(command[-3]).name for command in ran] == ["core.h", "kernel.h"] and "-I/python" in ran[0]
    for name in installation.HEADERS:
        assert Path(f"{environment.header(folder, name)}.gch", installation.core_key(folder)).is_file()
    assert os.access(environment.compile_script(folder), os.X_OK)
    monkeypatch.setenv("cc_path", "clang++")  # Jittor takes it, but it has other headers
    installation.precompile_headers(folder, project / "log")
    assert len(ran) == 2


def test_doctor_names_what_is_missing_and_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert doctor.report() == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "C++ compiler" in line]
    assert line.startswith("MISSING") and "apt-get install g++" in line
    assert len(lines) == len(doctor.CHECKS)
    with pytest.raises(UserError, match="not ready"):
        doctor.require()


def test_doctor_sees_a_compiler_without_headers(monkeypatch, tmp_path):
    assert doctor.compiler().ok
    script(tmp_path / "g++", '[ "$1" = --version ] && echo g++ 12\n')  # 1 for all else
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not doctor.compiler().ok and "without the headers" in str(doctor.compiler())


def test_doctor_sees_no_loopback_and_places_that_cannot_be_written(monkeypatch, project):
    assert doctor.loopback().ok and doctor.writable().ok

    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(doctor.socket, "create_connection", refuse)
    monkeypatch.setattr(doctor.os, "access", lambda path, _: not str(path).endswith("home"))
    assert "Network is unreachable" in str(doctor.loopback()) and str(environment.cache()) in str(doctor.writable())
    monkeypatch.setattr(doctor, "missing", lambda: [doctor.loopback(), doctor.writable()])
    with pytest.raises(UserError, match="not ready: MISSING  loopback"):  # no package mends it: before a report starts
        doctor.install(if_possible=True)


def test_environments_of_another_home_save_no_room_in_this_one(project, monkeypatch):
    for one in ENVIRONMENTS:
        folder = project / "elsewhere" / ".cache" / "jittor" / "envs" / f"{one.name}-0"
        script(folder / "bin" / "python")
        (folder / environment.STAMP).touch()
        one.link.parent.mkdir(exist_ok=True)
        one.link.symlink_to(folder)
    assert f"{doctor.DISK} needed" in doctor.disk().found
    monkeypatch.setenv("ALIGN_HOME", str(project / "elsewhere"))
    assert "1 needed" in doctor.disk().found


def test_system_installs_what_is_missing_and_goes_on_without_the_optional(monkeypatch, tmp_path, capsys):
    calls = []
    lacking = [
        doctor.Check("PDF", False, "none", "chromium", ("chromium",), required=False),
        doctor.Check("C++ compiler", False, "none", "g++", ("g++",)),
    ]
    monkeypatch.setattr(doctor, "missing", lambda: lacking)
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 0)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor, "apt", lambda *arguments: calls.append(arguments[-1]) or arguments[-1] != "chromium")
    assert doctor.install(if_possible=True) == 0  # an optional one failed
    assert calls == ["update", "chromium", "g++"] and "not installed: OPTIONAL PDF" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "apt", lambda *_: False)
    assert doctor.install(if_possible=True) == 1  # a required one failed
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    assert doctor.install(if_possible=True) == 0
    with pytest.raises(UserError, match="root"):
        doctor.install(if_possible=False)


def test_a_program_is_given_its_options_as_they_are(monkeypatch):
    given = []
    monkeypatch.setattr(environment, "start", lambda *arguments: given.extend(arguments))
    options = ["-m", "pytest", "-k", "a and b", "--durations=4", "--help"]
    monkeypatch.setattr("sys.argv", ["lib.machine", "run", "jt", *options])
    assert not commands.main() and given == [JT, options]


def test_users_mistakes_are_one_line():
    command = [sys.executable, "-m", "lib.machine", "run", "tensorflow"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def refused(command: list, **options) -> str:
    """The one line that a command ends with, on stderr and with exit code 1."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", **options)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


def test_make_takes_the_first_python_that_runs(tmp_path):
    script(tmp_path / "python3", "exit 127\n")  # another's, behind a name that is on PATH
    script(tmp_path / "python3.11")
    make = [shutil.which("make"), "-n", "envs"]
    ran = subprocess.run(make, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert ran.stdout == "python3.11 -m lib.machine envs\n"
    (tmp_path / "python3.11").unlink()
    ran = subprocess.run(make, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert ran.returncode == 2 and "no Python of 3.8 or later" in ran.stderr


def test_a_python_without_the_packages_says_which_to_use():
    assert "envs/torch/bin/python" in refused([sys.executable, "-S", "-m", "lib", "data", "scenes", "/nonexistent/x"])
    old = "import sys, runpy; sys.version_info = (3, 9, 18); runpy.run_module('lib', run_name='__main__')"
    assert "older than 3.11" in refused([sys.executable, "-c", old])


@pytest.mark.parametrize(
    "name",
    ["errors", "__main__", *(f"machine/{one}" for one in ANY_PYTHON)],
)
def test_what_any_python_reads_has_no_newer_syntax(name):
    ast.parse((ROOT / "lib" / f"{name}.py").read_text(encoding="utf-8"), feature_version=(3, 8))


def test_a_full_disk_and_a_read_only_place_are_one_line():
    program = "import os\n{}\nimport runpy; runpy.run_module('lib.machine', run_name='__main__')"
    places = {errno.ENOSPC: "free some room", errno.EROFS: "choose a place", errno.EACCES: "who may read"}
    for number, words in places.items():
        full = f"def full(): raise OSError({number}, os.strerror({number}), '/there')"
        plant = f"from lib.machine import installation\n{full}\ninstallation.make_environments = full"
        line = refused([sys.executable, "-W", "ignore", "-c", program.format(plant), "envs"])
        assert line.startswith("error: /there: ") and words in line
    for number in (errno.ENOENT, errno.EIO):  # a fault of ours, or of the disk
        assert of_a_user(OSError(number, os.strerror(number))) is None


def test_in_the_c_locale_a_process_reads_utf8_and_the_builder_prints():
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = (
        "from lib.machine import installation\ninstallation.make_environments = lambda: installation.say('\\u2026')\n"
        "import runpy; runpy.run_module('lib.machine', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, "envs"], cwd=ROOT, env=plain, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, "[envs] \\u2026\n"), result.stderr
    assert all(environment.variables(one, Path("/e"))["PYTHONUTF8"] == "1" for one in ENVIRONMENTS)


@pytest.mark.parametrize(
    "name",
    [
        "2024_05",
        "a #2",
        "1e3",
        "{v1}",
        "US$",
        "$(error a function)",
        "${HOME}",
        "it's",
        'a"b',
        "a\\b",
        "-x",
        "~",
        "螺栓",
    ],
)
def test_make_hands_on_names_as_they_were_typed(tmp_path, name):
    """make takes a `$` for a variable, a shell a quote for the end of a word, argparse a dash for an option."""
    python = script(tmp_path / "python", f'printf "%s\\n" "$@" >> {tmp_path}/typed')
    typed = [f"{variable}={name}" for variable in ("DATA", "WEIGHTS", "BACKBONE")]
    result = subprocess.run(["make", "report", f"PYTHON={python}", *typed], cwd=ROOT, capture_output=True, text=True)
    given = (tmp_path / "typed").read_text().splitlines()
    assert (
        result.returncode == 0
        and [f"--{what}={name}" in given for what in ("data", "weights", "backbone")] == [True] * 3
    )


@pytest.mark.skipif(not shutil.which("localedef"), reason="no localedef here")
@pytest.mark.parametrize("language, charset", [("zh_CN", "GBK"), ("en_US", "ISO-8859-1")])
def test_names_are_utf8_in_any_locale(tmp_path, language, charset):
    made = ["localedef", "-i", language, "-f", charset, str(tmp_path / "there")]
    if subprocess.run(made, capture_output=True).returncode:
        pytest.skip(f"no sources of {language} here")
    (one,) = [one for one in ENVIRONMENTS if importlib.util.find_spec(one.kernel)]
    folder = tmp_path / "螺栓"
    folder.mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "螺母"}]}
    (folder / "val.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    command = [str(one.link / "bin" / "python"), "-m", "lib", "data", "verify", str(folder)]
    plain = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LOCPATH": str(tmp_path), "LC_ALL": "there"}
    result = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, encoding="utf-8")
    assert f"{folder}/val.json: its list 'images' is empty" in result.stdout, result.stderr


def test_a_python_of_an_environment_typed_by_hand_has_its_settings():
    (one,) = [one for one in ENVIRONMENTS if importlib.util.find_spec(one.kernel)]
    bare = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    told = "import os, json; print(json.dumps(dict(os.environ)))"
    command = [
        str(one.link / "bin" / "python"),
        "-c",
        f"from lib.machine import environment; environment.adopt(); {told}",
    ]
    result = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True)
    found = json.loads(result.stdout)
    assert found["PATH"].startswith(f"{one.link.resolve()}/bin:") and found["PYTHONPATH"] == str(ROOT)
    assert found.get("cache_name") == ("alignment" if one is JT else None)
    assert one is TORCH or found["HOME"] == str(environment.home_of(one.link.resolve()))
