"""What a machine lacks, in plain words, and how to get it.

Runs with any python3 from 3.8 on and the standard library alone, before any environment exists.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Tuple

from lib.errors import UserError
from lib.machine import environment, installation

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
GIB = 2**30
DISK = 8  # GiB that both environments and their kernels take, with room for records
MEMORY = 6  # GiB: the peak of a quick report, see README


@dataclass(frozen=True)
class Check:
    subject: str
    ok: bool
    found: str  # what is there, or what its absence means
    remedy: str = ""  # how to get it
    packages: Tuple[str, ...] = ()  # Debian packages that mend it
    required: bool = True

    def __str__(self) -> str:
        if self.ok:
            return f"OK       {self.subject}: {self.found}"
        word = "MISSING " if self.required else "OPTIONAL"
        return f"{word} {self.subject}: {self.found}. To get it: {self.remedy}"


def printed(*command: str) -> str:
    """The first line a command prints, empty where it is absent or fails."""
    if not shutil.which(command[0]):
        return ""
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    return (result.stdout.strip() or "yes").splitlines()[0] if result.returncode == 0 else ""


def compiler() -> Check:
    """A compiler that finds the headers of C++ and OpenMP, which Jittor's sources include."""
    version = printed("g++", "--version")
    command = ["g++", "-fopenmp", "-fsyntax-only", "-x", "c++", "-"]
    ok = (
        bool(version)
        and subprocess.run(
            command,
            input="#include <vector>\n#include <omp.h>\n",
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).returncode
        == 0
    )
    lacking = "g++ is there without the headers of C++ or OpenMP" if version else "no g++"
    return Check(
        "C++ compiler",
        ok,
        version if ok else f"{lacking}; Jittor compiles every operator with it",
        "apt-get install g++, or conda install -c conda-forge gxx",
        ("g++",),
    )


def python() -> Check:
    conda, found = installation.find_conda(), installation.find_python()
    if conda:
        return Check("Python 3.11", True, f"conda environments by {conda}")
    text = (
        f"{found.version} ({found.program}) with venv"
        if found
        else "no Python 3.11 on PATH that has venv and ensurepip"
    )
    return Check(
        "Python 3.11",
        found is not None,
        text,
        "apt-get install python3.11 python3.11-venv, or install micromamba",
        ("python3.11", "python3.11-venv"),
    )


def headers() -> Check:
    if installation.find_conda():
        return Check("Python headers", True, "conda brings them")
    found = installation.find_python()
    ok = (
        found is not None and (found.headers / "Python.h").is_file() and (found.scripts / "python3.11-config").is_file()
    )
    return Check(
        "Python headers",
        ok,
        str(found.headers) if ok else "no Python.h or no python3.11-config; Jittor compiles against them",
        "apt-get install python3.11-dev",
        ("python3.11-dev",),
    )


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return path if path.exists() else existing(path.parent)


def disk() -> Check:
    folder = existing(environment.home())
    free = shutil.disk_usage(folder).free / GIB
    built = all(environment.complete(one.link) for one in environment.ENVIRONMENTS)
    needed = 1 if built else DISK
    return Check(
        "disk",
        free >= needed,
        f"{free:.0f} GiB free at {folder}, {needed} needed",
        "free some, or set ALIGN_HOME to a folder on a larger disk",
    )


def writable() -> Check:
    """Jittor compiles whenever it meets a new operator: environments in a home of another user's won't do."""
    places = [environment.ROOT, environment.cache(), environment.ROOT / "reports"]
    refused = [str(place) for place in places if not os.access(existing(place), os.W_OK | os.X_OK)]
    found = f"{', '.join(refused)} can't be written" if refused else f"{places[0]}, {places[1]}"
    return Check(
        "places", not refused, found, "make them yours, or clone into a folder of your own and set ALIGN_HOME to one"
    )


def loopback() -> Check:
    """Whether two sockets of this machine reach each other: so a notebook talks to its kernel."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        found = f"127.0.0.1 does not answer ({error.strerror or error}); notebooks reach their kernels by it"
        return Check("loopback", False, found, "ip link set lo up, or start the container with a network")
    return Check("loopback", True, "127.0.0.1 answers")


def memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return Check(
        "memory",
        total >= MEMORY,
        f"{total:.0f} GiB, {MEMORY} needed",
        "close other programs, or run with J=1",
        required=False,
    )


def fonts() -> Check:
    font = printed("fc-list", ":lang=zh", "family")
    ok = font not in ("", "yes")
    return Check(
        "Chinese fonts",
        ok,
        font if ok else "Chinese text in the PDF will print as boxes",
        "apt-get install fonts-noto-cjk fontconfig",
        ("fonts-noto-cjk", "fontconfig"),
        required=False,
    )


def pdf() -> Check:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser:
        return Check("PDF", True, browser)
    if ctypes.util.find_library("pango-1.0"):
        return Check("PDF", True, "WeasyPrint with the system's pango (a browser is faster)")
    return Check(
        "PDF",
        False,
        "neither Chromium nor pango; the report will be HTML only",
        "apt-get install chromium, or apt-get install libpango-1.0-0 libpangoft2-1.0-0",
        ("chromium",),
        required=False,
    )


def git() -> Check:
    version = printed("git", "--version")
    return Check(
        "git",
        bool(version),
        version or "records will not say which commit made them",
        "apt-get install git",
        ("git",),
        required=False,
    )


def jittor_home() -> Check:
    """Jittor keeps JITTOR_HOME for good once it was set, and every later process of the user follows it."""
    place, configuration = environment.jittor_home(), environment.cache() / "config.json"
    if place == environment.home():
        return Check("Jittor's cache", True, str(environment.cache()))
    return Check(
        "Jittor's cache",
        True,
        f"{place}/.cache/jittor, because {configuration} says JITTOR_HOME (respected; "
        "delete that entry to return to the default)",
    )


def cuda() -> Check:
    nvcc = shutil.which("nvcc")
    if not nvcc:
        return Check("CUDA", True, "no nvcc; everything runs on the CPU")
    text = f"{nvcc} is there" if printed(nvcc, "--version") else f"{nvcc} is broken"
    return Check("CUDA", True, f"{text}; Jittor is told not to use it")


CHECKS: Tuple[Callable[[], Check], ...] = (
    compiler,
    python,
    headers,
    writable,
    disk,
    loopback,
    memory,
    fonts,
    pdf,
    git,
    jittor_home,
    cuda,
)


def missing() -> List[Check]:
    return [check for check in (make() for make in CHECKS) if not check.ok]


def report() -> int:
    """Print every check; 1 if something required is missing."""
    checks = [make() for make in CHECKS]
    for check in checks:
        print(check)
    return int(any(check.required and not check.ok for check in checks))


def require() -> None:
    """Raise UserError where something required is missing."""
    refuse([check for check in missing() if check.required])


def refuse(checks: List[Check]) -> None:
    lacking = list(map(str, checks))
    if lacking:
        raise UserError("this machine is not ready: " + "\n".join(lacking))


def install(if_possible: bool) -> int:
    """Install what is missing with apt-get, as root; an optional package that can't be had does not stop anything.

    What no package mends, such as a full disk, is refused here, before a report or the tests start.
    """
    found = missing()
    refuse([check for check in found if check.required and not check.packages])
    lacking = [check for check in found if check.packages]
    able = os.geteuid() == 0 and shutil.which("apt-get")
    if not lacking or (if_possible and not able):
        return 0
    if not able:
        raise UserError(
            "installing needs root and apt-get; " + "; ".join(f"{check.subject}: {check.remedy}" for check in lacking)
        )
    log = environment.ROOT / "envs" / "system.log"
    failed = False
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt(["update"], log, environ)
    for check in lacking:
        print(f"[system] installing {' '.join(check.packages)} ({check.subject}; log: envs/system.log)", flush=True)
        if not apt(["install", "-y", "--no-install-recommends", *check.packages], log, environ):
            print(f"[system] not installed: {check}", flush=True)
            failed = failed or check.required
    return int(failed)


def apt(arguments: List[str], log: Path, environ: dict) -> bool:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        return (
            subprocess.run(
                ["apt-get", "-q", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environ,
            ).returncode
            == 0
        )
