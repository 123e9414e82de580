"""Building the two environments: conda or venv, the packages of the lock files, oneDNN where Jittor looks, Jittor's
core, the kernels.

Runs with any python3 from 3.8 on and the standard library alone. An environment is complete when its stamp file
exists, which is written last; one without stamp is removed and built again. A lock makes concurrent builds wait for
each other. Packages come by uv, where it can't be had by pip; both take only files whose hashes the lock files know.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError
from lib.machine import doctor, locks
from lib.machine import environment as environments
from lib.machine.doctor import Python
from lib.machine.environment import ENVIRONMENTS, JT, STAMP, TORCH, Environment, cache, complete

# Jittor looks for this folder below .cache/jittor/mkl and downloads it where it is missing
ONEDNN_FOLDERS = {"x86_64": "dnnl_lnx_2.2.0_cpu_gomp", "aarch64": "dnnl_lnx_2.2.0_cpu_gomp_aarch64"}
CORE = """\
import lib.backend, sys
for name in ("jittor_core", "jit_utils_core"):
    print(f"jittor is ready:{sys.modules[name].__file__}")
"""
GENERATED = 24  # object files of sources that Jittor 1.3.11 writes itself
# What Jittor's sources include is parsed once for each machine instead of once for each file, with the flags of Jittor
# 1.3.11 that shape code; those of kernels with what lib/backend/jittor_import.py adds. A kernel's header has little: a
# name that a kernel did not ask for may clash with one of its own.
FLAGS = ["-std=c++14", "-fPIC", *(["-march=native"] if platform.machine() == "x86_64" else [])]
HEADERS = {"core": ["-O2"], "kernel": ["-Ofast", "-fopenmp", "-fno-finite-math-only", "-D__FAST_MATH__"]}
# pip's own cache would double the gigabytes, in a place the user did not choose.
EXACTLY = ["--no-deps", "--require-hashes"]
PIP_INSTALL = ["install", "--no-cache-dir", "--disable-pip-version-check", "--no-input", *EXACTLY]
OWN = Path(__file__).parent  # what environments get copies of: the launcher, precompiled/
REGISTRY = "see whether the package registry can be reached"
COMPILER = "`make doctor` checks the compiler and the headers"


@dataclass(frozen=True)
class Installer:
    """What puts packages into an environment: a folder with pip and, where it can be had, uv."""

    folder: Path
    environ: dict[str, str]  # of its processes: the user's, and for uv what the user has set for pip

    @property
    def uv(self) -> Path:
        return self.folder / "bin" / "uv"

    def command(self, folder: Path, lock: Path) -> list[str]:
        """Install exactly what a lock file lists: no other version, no other file, nothing beyond it."""
        python, rest = str(folder / "bin" / "python"), ["--no-build-isolation", "-r", str(lock)]
        if self.uv.exists():
            return [str(self.uv), "pip", "install", *EXACTLY, "--python", python, *rest]
        return [str(self.folder / "bin" / "python"), "-m", "pip", "--python", python, *PIP_INSTALL, *rest]


def destination(environment: Environment, python: Python | None) -> Path:
    """Where these packages on this Python belong (`python` None: conda brings its own)."""
    text = "\n".join([locks.digest(environment), python.version if python else "conda", platform.machine()])
    return cache() / "envs" / f"{environment.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def say(text: str) -> None:
    print(f"[envs] {text}", flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; it goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that builds {path.stem}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def logged(
    command: Sequence[str],
    log: Path,
    what: str,
    remedy: str,
    environ: dict[str, str] | None = None,
    progress: Callable[[], str] = lambda: "",
) -> str:
    """Run, append the output to `log`, say every 20 s how far it is; returns what this command printed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        before = file.tell()
        streams = dict(stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        process = subprocess.Popen(command, env=environ, **streams)
        while True:
            try:
                code = process.wait(timeout=20)
                break
            except subprocess.TimeoutExpired:
                say(f"{what}, {time.monotonic() - started:.0f} s{progress()}")
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(before)
        printed = file.read()
    if code:
        if os.strerror(errno.ENOSPC) in printed:
            remedy = f"no room on the disk at {environments.home()}: free some, or set ALIGN_HOME to a larger disk"
        lines = "\n    ".join(printed.strip().splitlines()[-5:])
        raise UserError(f"{what} failed (exit {code}), see {log}; {remedy}. It ended with\n    {lines}")
    return printed


def headline(error: UserError) -> str:
    """What failed, without the lines that it ended with."""
    return str(error).partition(". It ended with")[0]


def make_installer(python: str, packages: Path) -> Installer:
    """pip and uv in a folder of their own, made by this Python 3.11; `packages` is where uv unpacks."""
    key = hashlib.sha256("\n".join([*locks.read("uv").values(), python]).encode()).hexdigest()[:10]
    folder, log = cache() / "envs" / f"installer-{key}", environments.ROOT / "envs" / "installer.log"
    own = str(folder / "bin" / "python")
    if not complete(folder):
        shutil.rmtree(folder, ignore_errors=True)
        logged([python, "-m", "venv", str(folder)], log, "installer: making a venv", "`make doctor` checks Python")
        try:
            uv = [own, "-m", "pip", *PIP_INSTALL, "-r", str(locks.path("uv"))]
            logged(uv, log, "installer: uv", "pip is used instead")
            (folder / STAMP).touch()
        except UserError as error:  # no stamp: the next build asks for uv again
            say(headline(error))
    variables = locks.uv_variables(locks.pip_settings(Path(own)))
    return Installer(folder, {**os.environ, **variables, "UV_CACHE_DIR": str(packages)})


def make_python(environment: Environment, folder: Path, conda: str | None, python: Python | None) -> list[str]:
    """The command that makes the environment's Python, without packages."""
    if conda:
        wanted = locks.conda_requirements(environment.specification)
        return [conda, "create", "-y", "-p", str(folder), "-c", "conda-forge", *wanted]
    return [python.program, "-m", "venv", "--without-pip", str(folder)]


def wants_cuda(folder: Path) -> bool:
    """Does the build of torch that was installed ask for the CUDA libraries?"""
    (metadata,) = folder.glob("lib/python3.11/site-packages/torch-*.dist-info/METADATA")
    asked = re.findall(r"^Requires-Dist: ([\w.-]+)", metadata.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return not locks.read("torch-cuda").keys().isdisjoint(map(locks.normalised, asked))


def with_local_build(folder: Path, installer: Installer) -> Path:
    """The torch lock for uv, which knows a hash by the full version only: with the build, such as 2.13.0+cpu, that the
    user's indexes and folders offer. (pip takes 2.13.0+cpu for 2.13.0.)
    """
    pin = f"torch=={locks.version(locks.read('torch')['torch'])}"
    asked, named = folder / "torch.in", folder / "torch.lock"
    asked.write_text(pin + "\n", encoding="utf-8")
    options = ["--quiet", "--no-deps", "--no-header", "--no-annotate", "--python", str(folder / "bin" / "python")]
    command = [str(installer.uv), "pip", "compile", str(asked), *options]
    offered = logged(command, TORCH.log, f"torch: looking for {pin}", REGISTRY, installer.environ)
    (build,) = (line.strip() for line in offered.splitlines() if line.startswith(pin))
    text = locks.path("torch").read_text(encoding="utf-8")
    named.write_text(text.replace(f"\n{pin} ", f"\n{build} "), encoding="utf-8")
    return named


def install(environment: Environment, folder: Path, installer: Installer) -> None:
    """The packages of the lock files."""

    def run(lock: Path) -> None:
        what = f"{environment.name}: installing"
        logged(installer.command(folder, lock), environment.log, what, REGISTRY, installer.environ)

    first = folder / "build.lock"  # builds the packages that have no wheel, in this version rather than the newest
    first.write_text(locks.read(environment.name)["setuptools"] + "\n", encoding="utf-8")
    run(first)
    named = environment is TORCH and installer.uv.exists()
    run(with_local_build(folder, installer) if named else locks.path(environment.name))
    if environment is TORCH and wants_cuda(folder):
        say("torch: this build needs the CUDA libraries, gigabytes of them; README says how to do without")
        run(locks.path("torch-cuda"))


def build(environment: Environment, conda: str | None, python: Python | None, packages: Path) -> Path:
    """Build the environment unless it is complete."""
    folder = destination(environment, python)
    if not complete(folder):
        if folder.exists():
            say(f"{environment.name}: an interrupted build is removed")
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        count = len(locks.pins(environment))
        say(f"{environment.name}: installing {count} packages (log: envs/{environment.name}.log)")
        started = time.monotonic()
        remedy = "ALIGN_CONDA=no builds a venv instead of a conda environment"
        command = make_python(environment, folder, conda, python)
        logged(command, environment.log, f"{environment.name}: making its Python", remedy)
        with locked(cache() / "envs" / "installer.lock"):
            installer = make_installer(python.program if python else str(folder / "bin" / "python"), packages)
        install(environment, folder, installer)
        if python:
            link_headers(folder, python)
        (folder / STAMP).touch()
        say(f"{environment.name}: installed in {time.monotonic() - started:.0f} s")
    return folder


def link_headers(folder: Path, python: Python) -> None:
    """Jittor asks `python3.11-config` beside the interpreter for the headers; a venv has none of its own."""
    script = f'#!/bin/sh\nexec "{python.scripts / "python3.11-config"}" "$@"\n'
    write(folder / "bin" / "python3.11-config", script, mode=0o755)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place for what takes this one when it is ready. (Not called dnnl*: Jittor takes any folder of that name.)"""
    fresh = path.with_name(f".new-{path.name}.{uuid.uuid4().hex[:8]}")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    yield fresh
    os.replace(fresh, path)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a small file, unless it holds this text."""
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        with replacing(path) as fresh:
            fresh.write_text(text, encoding="utf-8")
            fresh.chmod(mode)


def replace_link(link: Path, target: Path) -> None:
    """Point `link` to `target`."""
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link}: a folder stands where a link belongs: move it away")
    if not link.is_symlink() or os.readlink(link) != str(target):
        with replacing(link) as fresh:
            fresh.symlink_to(target)


def install_onednn(environment: Path) -> None:
    """Put oneDNN from the pip wheels where Jittor looks, so that it downloads nothing.

    Hard links where the file system has them: they outlive the environment. What stands there and works is kept.
    """
    machine = platform.machine()
    if machine not in ONEDNN_FOLDERS:
        raise UserError(f"Jittor has no oneDNN for {machine} processors: use x86_64 or aarch64")
    target = environments.jittor_home() / ".cache" / "jittor" / "mkl" / ONEDNN_FOLDERS[machine]
    if (target / "lib" / "libmkldnn.so").is_file() and (target / "include" / "dnnl.hpp").is_file():
        return
    include = environment / "include"
    found = [*include.glob("dnnl*.h*"), *include.glob("oneapi/**/*.h*")]
    files = {file.relative_to(environment): file for file in found}
    files[Path("lib", "libdnnl.so.2")] = (environment / "lib" / "libdnnl.so.2").resolve(strict=True)
    with locked(cache() / "envs" / "onednn.lock"), replacing(target) as fresh:
        for name, file in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, fresh / name)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(file, fresh / name)
        for name in ("libdnnl.so", "libmkldnn.so"):
            (fresh / "lib" / name).symlink_to("libdnnl.so.2")
        if target.is_symlink():
            target.unlink()
        elif target.exists():
            shutil.rmtree(target)


def core_key(environment: Path) -> str:
    """A digest of what Jittor keys its core by (jittor_utils.find_cache_path), and of the place of its cache."""
    compilers = [os.environ.get("cc_path") or "g++"]
    if os.environ.get("ALIGN_DEVICE", "cpu") != "cpu":
        compilers.append("nvcc")
    asked = dict(stdout=subprocess.PIPE, encoding="utf-8", errors="replace")
    versions = [subprocess.run([name, "--version"], **asked).stdout for name in compilers if shutil.which(name)]
    cpu = next((line for line in read_lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    facts = [str(environment), str(environments.jittor_home()), platform.platform(), platform.node(), cpu, *versions]
    return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:10]


def read_lines(path: str | Path) -> list[str]:
    return Path(path).read_text(encoding="utf-8", errors="replace").splitlines() if os.path.exists(path) else []


def core_note(environment: Path) -> Path:
    """The file in the environment that names the libraries of the core that was compiled for this machine as it is."""
    return environment / f"core-{core_key(environment)}"


def core_is_there(environment: Path) -> bool:
    libraries = read_lines(core_note(environment))
    return bool(libraries) and all(map(os.path.isfile, libraries))


def compile_core(environment: Path) -> None:
    """Import Jittor once: a cold cache compiles its core, and such an import may exit 0 without having run."""
    if core_is_there(environment):
        return
    started = time.time()
    log = environments.ROOT / "envs" / "jittor.log"
    precompile_headers(environment, log)
    command = [str(environment / "bin" / "python"), "-c", CORE]
    sources = sum(1 for _ in environment.glob("lib/python3.11/site-packages/jittor/src/**/*.cc"))
    objects = f"{environments.jittor_home()}/.cache/jittor/jt*/**/obj_files/*.o"

    def progress() -> str:
        done = sum(os.path.getmtime(path) > started for path in glob.iglob(objects, recursive=True))
        return f", {done} of about {sources + GENERATED} object files"

    for _ in range(2):
        environ = environments.process_environment(JT, environment)
        printed = logged(command, log, "jittor: compiling its core", COMPILER, environ, progress)
        libraries = [line.partition(":")[2] for line in printed.splitlines() if line.startswith("jittor is ready:")]
        if libraries:
            break
    else:
        remedy = f"see {log}; remove {cache()}/jt* and try again"
        raise UserError(f"jittor: its import ends before it is done, twice, {remedy}")
    write(core_note(environment), "\n".join(libraries) + "\n")
    if time.time() - started > 10:
        say(f"jittor: core compiled in {time.time() - started:.0f} s")


def precompile_headers(environment: Path, log: Path) -> None:
    """The headers and the script that compiles a kernel, for this machine. Jittor takes no other compiler than g++ so.

    g++ takes, of the files in `<header>.gch/`, the one that was made by itself with the same flags, and where there is
    none it parses the header: right, but slower. Each machine that shares an environment adds its own.
    """
    compiler = shutil.which(os.environ.get("cc_path") or "g++")
    if compiler is None or "g++" not in os.path.basename(compiler):
        return
    script = environments.compile_script(environment)
    write(script, (OWN / "precompiled" / script.name).read_text(encoding="utf-8"), mode=0o755)
    config = [str(environment / "bin" / "python3.11-config"), "--includes"]
    includes = subprocess.run(config, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout.split()
    package = environment / "lib" / "python3.11" / "site-packages" / "jittor"
    places = [f"-I{package / 'src'}", f"-I{package / 'extern'}", *includes]
    for name, flags in HEADERS.items():
        header = environments.header(environment, name)
        write(header, (OWN / "precompiled" / header.name).read_text(encoding="utf-8"))
        with replacing(Path(f"{header}.gch", core_key(environment))) as fresh:
            command = [compiler, "-x", "c++-header", *FLAGS, *flags, *places, str(header), "-o", str(fresh)]
            logged(command, log, f"jittor: precompiling the headers of its {name}", COMPILER)


def write_kernels(own: Environment, folder: Path) -> None:
    """Both kernelspecs, in an environment's own share/jupyter: what is started there by any tool finds them; `python3`,
    which tools take by default, is the environment's own.

    They name no checkout, since environments are shared: the launcher finds it when a kernel starts.
    """
    launcher = (OWN / "launcher.py").read_text(encoding="utf-8")
    for name, environment in {**{one.kernel: one for one in ENVIRONMENTS}, "python3": own}.items():
        target = folder / "share" / "jupyter" / "kernels" / name
        write(target / "launcher.py", launcher)
        started = [str(folder / "bin" / "python"), "-I", "-S", str(target / "launcher.py")]
        specification = {
            "argv": [*started, environment.name, "{connection_file}"],
            "display_name": environment.title if name == environment.kernel else f"Python 3: {environment.title}",
            "language": "python",
            "metadata": {"debugger": True},
        }
        write(target / "kernel.json", json.dumps(specification, indent=1) + "\n")


def make_environments() -> None:
    """Both environments, oneDNN, Jittor's core and the kernels; quick where all is there."""
    conda = doctor.find_conda()
    python = None if conda else doctor.find_python()
    folders = [destination(environment, python) for environment in ENVIRONMENTS]
    if not (all(map(complete, folders)) and core_is_there(folders[0])):
        doctor.require()
        with locked(cache() / "envs" / "build.lock"):
            build_all(conda, python)
    for environment, folder in zip(ENVIRONMENTS, folders):
        replace_link(environment.link, folder)
        write_kernels(environment, folder)


def build_all(conda: str | None, python: Python | None) -> None:
    """What is not there yet: Jittor's core compiles while the other environment still installs."""
    packages = cache() / "envs" / "packages"

    def jittor() -> None:
        folder = build(JT, conda, python, packages)
        install_onednn(folder)
        compile_core(folder)  # what else Jittor needs compiled goes after it

    def torch() -> None:
        build(TORCH, conda, python, packages)

    def told(work: Callable[[], None]) -> None:
        try:
            work()
        except UserError as error:  # at once: the other environment may take minutes
            say(headline(error))
            raise

    shutil.rmtree(packages, ignore_errors=True)  # of a build that was killed
    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            tasks = [pool.submit(told, work) for work in (jittor, torch)]
    finally:
        # Not kept: environments are hard links into it, so that who edits a package in one would edit it in the next.
        shutil.rmtree(packages, ignore_errors=True)
    for task in tasks:
        task.result()
