"""Building the two environments: conda or venv, oneDNN where Jittor looks, Jittor's core, the kernels.

Runs with any python3 from 3.8 on and the standard library alone. An environment is complete when its stamp file
exists, which is written last; one without stamp is removed and built again. A lock file makes concurrent builds wait
for each other.
"""
from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence

from lib import environment as environments
from lib.environment import ENVIRONMENTS, JT, STAMP, TORCH, Environment, cache, complete, process_environment, variables
from lib.errors import UserError

CONDA_PROGRAMS = ("micromamba", "mamba", "conda")
# Jittor looks for this folder below .cache/jittor/mkl and downloads it where it is missing
ONEDNN_FOLDERS = {"x86_64": "dnnl_lnx_2.2.0_cpu_gomp", "aarch64": "dnnl_lnx_2.2.0_cpu_gomp_aarch64"}
PROBE = ("import sys, venv, ensurepip, sysconfig, platform; assert sys.version_info[:2] == (3, 11); "
         "print(platform.python_version(), sysconfig.get_config_var('BINDIR'), sysconfig.get_path('include'))")


@dataclass(frozen=True)
class Python:
    program: str     # what to start
    version: str     # such as 3.11.7
    scripts: Path    # folder of its python3.11-config
    headers: Path    # folder of Python.h


def requirements(specification: Path) -> List[str]:
    """The pip section of a conda file, without comments. Reads the subset of YAML that these two files use."""
    found: List[str] = []
    section: Optional[int] = None
    for line in specification.read_text().splitlines():
        text = line.split("#")[0].rstrip()
        depth = len(text) - len(text.lstrip())
        if text.strip() == "- pip:":
            section = depth
        elif text and section is not None:
            if depth <= section:
                break
            found.append(text.strip()[2:].strip())
    if not found:
        raise UserError(f"{specification.name}: no `- pip:` section: restore the file from git")
    return found


def find_conda() -> Optional[str]:
    """micromamba, mamba or conda from PATH; ALIGN_CONDA=no says to use venvs all the same."""
    if os.environ.get("ALIGN_CONDA") == "no":
        return None
    return next(filter(None, map(shutil.which, CONDA_PROGRAMS)), None)


def find_python() -> Optional[Python]:
    """The first Python 3.11 on PATH that can make a venv."""
    for program in filter(None, (shutil.which("python3.11"), shutil.which("python3"), sys.executable)):
        probe = subprocess.run([program, "-I", "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if probe.returncode == 0:
            version, scripts, headers = probe.stdout.split()
            return Python(program, version, Path(scripts), Path(headers))
    return None


def destination(environment: Environment, python: Optional[Python]) -> Path:
    """Where this list of packages on this Python belongs (`python` None: conda brings its own)."""
    base = python.version if python else "conda"
    text = "\n".join([*sorted(requirements(environment.specification)), base, platform.machine()])
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


def logged(command: Sequence[str], log: Path, what: str, remedy: str, environ: Optional[Dict[str, str]] = None) -> str:
    """Run, append the output to `log`, say every 20 s that it still runs; returns what this command printed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with open(log, "a") as file:
        before = file.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environ)
        while True:
            try:
                code = process.wait(timeout=20)
                break
            except subprocess.TimeoutExpired:
                say(f"{what} … {time.monotonic() - started:.0f} s")
    with open(log, errors="replace") as file:
        file.seek(before)
        printed = file.read()
    if code:
        lines = "\n    ".join(printed.strip().splitlines()[-5:])
        raise UserError(f"{what} failed (exit {code}), see {log}; {remedy}. It ended with\n    {lines}")
    return printed


def install_commands(environment: Environment, folder: Path, conda: Optional[str], python: Optional[Python]) -> List[List[str]]:
    if conda:
        make = [conda, "create", "-y"] if Path(conda).name == "micromamba" else [conda, "env", "create"]
        return [[*make, "-p", str(folder), "-f", str(environment.specification)]]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    # pip's own cache would double the gigabytes, in a place the user did not choose
    return [[python.program, "-m", "venv", str(folder)],
            [*pip, "--no-cache-dir", *requirements(environment.specification)]]


def build(environment: Environment, conda: Optional[str], python: Optional[Python]) -> Path:
    """Build the environment unless it is complete; point envs/<name> to it."""
    folder = destination(environment, python)
    with locked(folder.parent / f"{folder.name}.lock"):
        if not complete(folder):
            if folder.exists():
                say(f"{environment.name}: an interrupted build is removed")
                shutil.rmtree(folder)
            packages = requirements(environment.specification)
            say(f"{environment.name}: installing {len(packages)} packages (log: envs/{environment.name}.log)")
            started = time.monotonic()
            environ = {**os.environ, "CONDA_ALWAYS_YES": "true", "MAMBA_ALWAYS_YES": "true"}
            for command in install_commands(environment, folder, conda, python):
                logged(command, environment.log, f"{environment.name}: installing",
                       "is a package registry reachable? ALIGN_CONDA=no builds a venv instead of a conda environment",
                       environ)
            if python:
                link_headers(folder, python)
            (folder / STAMP).write_text("\n".join(packages) + "\n")
            say(f"{environment.name}: installed in {time.monotonic() - started:.0f} s")
    replace_link(environment.link, folder)
    return folder


def link_headers(folder: Path, python: Python) -> None:
    """Jittor asks `python3.11-config` beside the interpreter for the headers; a venv has none of its own."""
    script = folder / "bin" / "python3.11-config"
    script.write_text(f'#!/bin/sh\nexec "{python.scripts / "python3.11-config"}" "$@"\n')
    script.chmod(0o755)


def replace_link(link: Path, target: Path) -> None:
    """Point `link` to `target` in one step."""
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link}: a folder stands where a link belongs: move it away")
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.symlink_to(target)
    os.replace(fresh, link)


def install_onednn(environment: Path) -> None:
    """Put oneDNN from the pip wheels where Jittor looks, so that it downloads nothing.

    Hard links where the file system has them: they outlive the environment. What stands there and works is kept.
    """
    machine = platform.machine()
    if machine not in ONEDNN_FOLDERS:
        raise UserError(f"Jittor has no oneDNN for {machine} processors: use x86_64 or aarch64")
    target = environments.jittor_home() / ".cache" / "jittor" / "mkl" / ONEDNN_FOLDERS[machine]
    with locked(cache() / "envs" / "onednn.lock"):
        if (target / "lib" / "libmkldnn.so").is_file() and (target / "include" / "dnnl.hpp").is_file():
            return
        # not called dnnl*: Jittor takes the first folder of that name
        fresh = target.with_name(f".new-{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        (fresh / "lib").mkdir(parents=True)
        library = (environment / "lib" / "libdnnl.so.2").resolve(strict=True)
        copy(library, fresh / "lib" / "libdnnl.so.2")
        for name in ("libdnnl.so", "libmkldnn.so"):
            (fresh / "lib" / name).symlink_to("libdnnl.so.2")
        headers = environment / "include"
        for header in [*headers.glob("dnnl*.h*"), *headers.glob("oneapi/**/*.h*")]:
            place = fresh / "include" / header.relative_to(headers)
            place.parent.mkdir(parents=True, exist_ok=True)
            copy(header, place)
        if target.is_symlink():
            target.unlink()
        elif target.exists():
            shutil.rmtree(target)
        os.replace(fresh, target)


def copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def compile_core(environment: Path) -> None:
    """Import Jittor once: a cold cache compiles its core, and such an import may exit 0 without having run."""
    started = time.monotonic()
    log = environments.ROOT / "envs" / "jittor.log"
    command = [str(environment / "bin" / "python"), "-c", "import jittor; print('jittor is ready')"]
    for _ in range(2):
        printed = logged(command, log, "jittor: compiling its core", "`make doctor` checks the compiler and the headers",
                         process_environment(JT, environment))
        if "jittor is ready" in printed:
            break
    else:
        raise UserError(f"jittor: its import ends before it is done, twice, see {log}; remove {cache()}/jt* and try again")
    if time.monotonic() - started > 10:
        say(f"jittor: core compiled in {time.monotonic() - started:.0f} s")


def write_kernel(environment: Environment, folder: Path) -> None:
    """The kernelspec inside the project; its processes run in the project's root wherever the notebook lies."""
    target = environments.ROOT / ".jupyter" / "data" / "kernels" / environment.kernel / "kernel.json"
    text = json.dumps({
        # ERROR: not a warning about localhost for each notebook
        "argv": ["env", f"--chdir={environments.ROOT}", str(folder / "bin" / "python"), "-m", "ipykernel_launcher",
                 "-f", "{connection_file}", "--log-level=ERROR"],
        "display_name": {"jittor": "Jittor", "torch": "PyTorch"}[environment.kernel],
        "language": "python",
        "metadata": {"debugger": True},
        "env": {**variables(environment, folder), "PATH": f"{folder / 'bin'}{os.pathsep}${{PATH}}"},
    }, indent=1)
    if target.is_file() and target.read_text() == text:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".kernel.{os.getpid()}")
    fresh.write_text(text)
    os.replace(fresh, target)


def make_environments() -> None:
    """Both environments, oneDNN, Jittor's core and the kernels; quick where all is there."""
    conda = find_conda()
    python = None if conda else find_python()
    if not all(complete(destination(environment, python)) for environment in ENVIRONMENTS):
        from lib import doctor
        doctor.require()

    def jittor() -> Path:
        folder = build(JT, conda, python)
        install_onednn(folder)
        compile_core(folder)  # while the other environment still installs
        return folder

    with concurrent.futures.ThreadPoolExecutor() as pool:
        tasks = [pool.submit(jittor), pool.submit(build, TORCH, conda, python)]
    for environment, task in zip(ENVIRONMENTS, tasks):
        write_kernel(environment, task.result())
