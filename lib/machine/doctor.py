"""What a machine has and lacks, in plain words, and how to get it.

Runs with any python3 from 3.8 on and the standard library alone, before any environment exists.
"""

from __future__ import annotations

import ctypes.util
import functools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError
from lib.machine import environment

CONDA_PROGRAMS = ("micromamba", "mamba", "conda")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
GIB = 2**30
DISK = 8  # GiB that both environments and their kernels take, with room for records
MEMORY = 6  # GiB: the peak of a quick report, see README
PROBE = (
    "import sys, venv, ensurepip, sysconfig, platform; assert sys.version_info[:2] == (3, 11); "
    "print(platform.python_version(), sysconfig.get_config_var('BINDIR'), sysconfig.get_path('include'))"
)


@dataclass(frozen=True)
class Python:
    program: str  # what to start
    version: str  # such as 3.11.7
    scripts: Path  # folder of its python3.11-config
    headers: Path  # folder of Python.h


@dataclass(frozen=True)
class Check:
    subject: str
    ok: bool
    found: str  # what is there, or what its absence means
    remedy: str = ""  # how to get it
    packages: tuple[str, ...] = ()  # Debian packages that mend it
    required: bool = True

    def __str__(self) -> str:
        if self.ok:
            return f"OK       {self.subject}: {self.found}"
        word = "MISSING " if self.required else "OPTIONAL"
        return f"{word} {self.subject}: {self.found}. To get it: {self.remedy}"


CHECKS: list[Callable[[], Check]] = []


def check(subject: str, remedy: str = "", *packages: str, required: bool = True) -> Callable:
    """Of a function that says whether all is well and what it found, make one of the checks."""

    def register(look: Callable[[], tuple[bool, str]]) -> Callable[[], Check]:
        @functools.wraps(look)
        def made() -> Check:
            return Check(subject, *look(), remedy, packages, required)

        CHECKS.append(made)
        return made

    return register


def find_conda() -> str | None:
    """micromamba, mamba or conda from PATH; ALIGN_CONDA=no says to use venvs all the same."""
    if os.environ.get("ALIGN_CONDA") == "no":
        return None
    return next(filter(None, map(shutil.which, CONDA_PROGRAMS)), None)


def find_python() -> Python | None:
    """The first Python 3.11 on PATH that can make a venv."""
    programs = (shutil.which("python3.11"), shutil.which("python3"), sys.executable)
    return next(filter(None, map(probed, filter(None, programs))), None)


@functools.lru_cache(maxsize=None)
def probed(program: str) -> Python | None:
    probe = subprocess.run([program, "-I", "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if probe.returncode:
        return None
    version, scripts, headers = probe.stdout.split()
    return Python(program, version, Path(scripts), Path(headers))


def printed(*command: str, stdin: str = "") -> str:
    """The first line a command prints, "yes" for none, empty where it is absent or fails."""
    if not shutil.which(command[0]):
        return ""
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
    result = subprocess.run(command, input=stdin, **streams)
    return (result.stdout.strip() or "yes").splitlines()[0] if result.returncode == 0 else ""


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return path if path.exists() else existing(path.parent)


@check("C++ compiler", "apt-get install g++, or conda install -c conda-forge gxx", "g++")
def compiler() -> tuple[bool, str]:
    """A compiler that finds the headers of C++ and OpenMP, which Jittor's sources include."""
    version, source = printed("g++", "--version"), "#include <vector>\n#include <omp.h>\n"
    if printed("g++", "-fopenmp", "-fsyntax-only", "-x", "c++", "-", stdin=source):
        return True, version
    lacking = "g++ is there without the headers of C++ or OpenMP" if version else "no g++"
    return False, f"{lacking}; Jittor compiles every operator with it"


@check(
    "Python 3.11",
    "apt-get install python3.11 python3.11-venv, or install micromamba",
    "python3.11",
    "python3.11-venv",
)
def python() -> tuple[bool, str]:
    if conda := find_conda():
        return True, f"conda environments by {conda}"
    if found := find_python():
        return True, f"{found.version} ({found.program}) with venv"
    return False, "no Python 3.11 on PATH that has venv and ensurepip"


@check("Python headers", "apt-get install python3.11-dev", "python3.11-dev")
def headers() -> tuple[bool, str]:
    if find_conda():
        return True, "conda brings them"
    found = find_python()
    if found and (found.headers / "Python.h").is_file() and (found.scripts / "python3.11-config").is_file():
        return True, str(found.headers)
    return False, "no Python.h or no python3.11-config; Jittor compiles against them"


@check("places", "make them yours, or clone into a folder of your own and set ALIGN_HOME to one")
def writable() -> tuple[bool, str]:
    """Jittor compiles whenever it meets a new operator: environments in a home of another user's won't do."""
    places = [environment.ROOT, environment.cache(), environment.ROOT / "reports"]
    refused = [str(place) for place in places if not os.access(existing(place), os.W_OK | os.X_OK)]
    return not refused, f"{', '.join(refused)} can't be written" if refused else f"{places[0]}, {places[1]}"


@check("disk", "free some, or set ALIGN_HOME to a folder on a larger disk")
def disk() -> tuple[bool, str]:
    folder = existing(environment.home())
    free = shutil.disk_usage(folder).free / GIB
    links = [one.link for one in environment.ENVIRONMENTS]
    built = all(environment.complete(link) and environment.home() in link.resolve().parents for link in links)
    needed = 1 if built else DISK
    return free >= needed, f"{free:.0f} GiB free at {folder}, {needed} needed"


@check("loopback", "ip link set lo up, or start the container with a network")
def loopback() -> tuple[bool, str]:
    """Whether two sockets of this machine reach each other: so a notebook talks to its kernel."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        return False, f"127.0.0.1 does not answer ({error.strerror or error}); notebooks reach their kernels by it"
    return True, "127.0.0.1 answers"


@check("memory", "close other programs, or run with J=1", required=False)
def memory() -> tuple[bool, str]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return total >= MEMORY, f"{total:.0f} GiB, {MEMORY} needed"


@check("Chinese fonts", "apt-get install fonts-noto-cjk fontconfig", "fonts-noto-cjk", "fontconfig", required=False)
def fonts() -> tuple[bool, str]:
    font = printed("fc-list", ":lang=zh", "family")
    return (False, "Chinese text in the PDF will print as boxes") if font in ("", "yes") else (True, font)


@check("PDF", "apt-get install chromium, or libpango-1.0-0 and libpangoft2-1.0-0", "chromium", required=False)
def pdf() -> tuple[bool, str]:
    if browser := next(filter(None, map(shutil.which, BROWSERS)), None):
        return True, browser
    if ctypes.util.find_library("pango-1.0"):
        return True, "WeasyPrint with the system's pango (a browser is faster)"
    return False, "neither Chromium nor pango; the report will be HTML only"


@check("git", "apt-get install git", "git", required=False)
def git() -> tuple[bool, str]:
    version = printed("git", "--version")
    return bool(version), version or "records will not say which commit made them"


@check("Jittor's cache")
def jittor_home() -> tuple[bool, str]:
    """Jittor keeps JITTOR_HOME for good once it was set, and every later process of the user follows it."""
    place, configuration = environment.jittor_home(), environment.cache() / "config.json"
    if place == environment.home():
        return True, str(environment.cache())
    kept = f"because {configuration} says JITTOR_HOME (respected; delete that entry to return to the default)"
    return True, f"{place}/.cache/jittor, {kept}"


def missing() -> list[Check]:
    return [one for one in (make() for make in CHECKS) if not one.ok]


def report() -> int:
    """Print every check; 1 if something required is missing."""
    checks = [make() for make in CHECKS]
    print(*checks, sep="\n")
    return int(any(one.required and not one.ok for one in checks))


def require(checks: list[Check] | None = None) -> None:
    """UserError where something required is missing, of these checks or of all."""
    lacking = [str(one) for one in (missing() if checks is None else checks) if one.required and not one.ok]
    if lacking:
        raise UserError("this machine is not ready: " + "\n".join(lacking))


def install(if_possible: bool) -> int:
    """Install what is missing with apt-get, as root; an optional package that can't be had does not stop anything.

    What no package mends, such as a full disk, is refused here, before a report or the tests start.
    """
    found = missing()
    require([one for one in found if not one.packages])
    lacking = [one for one in found if one.packages]
    able = os.geteuid() == 0 and shutil.which("apt-get")
    if not lacking or (if_possible and not able):
        return 0
    if not able:
        remedies = "; ".join(f"{one.subject}: {one.remedy}" for one in lacking)
        raise UserError(f"installing needs root and apt-get; {remedies}")
    failed = False
    apt("update")
    for one in lacking:
        print(f"[system] installing {' '.join(one.packages)} ({one.subject}; log: envs/system.log)", flush=True)
        if not apt("install", "-y", "--no-install-recommends", *one.packages):
            print(f"[system] not installed: {one}", flush=True)
            failed = failed or one.required
    return int(failed)


def apt(*arguments: str) -> bool:
    log = environment.ROOT / "envs" / "system.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with open(log, "a", encoding="utf-8") as file:
        streams = dict(stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environ)
        return subprocess.run(["apt-get", "-q", *arguments], **streams).returncode == 0
