"""The lock files: every package of an environment, with its version and the hashes of its files.

Runs with any python3 from 3.8 on and the standard library alone. `make` writes them from the yml files, with uv, which
needs the network; everything else only reads them. The CUDA libraries that the public index's build of torch asks for
have a file of their own: they are installed where the build of torch that was installed asks for them.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from lib.errors import UserError
from lib.machine import doctor
from lib.machine import environment as environments
from lib.machine.environment import JT, TORCH, Environment

UV = "uv==0.13.9"
HEADER = "# Made by `make locks` from {source}, with {uv}, for Python 3.11 on x86_64 Linux. Change that file.\n"
CPU = """\
# torch: the last hash is of {wheel},
# the build for CPUs, found on the maker's disk by pip's find-links. The others are the public index's builds, which on
# Linux need environment-torch-cuda.lock too.
"""
CUDA = "# What the public index's build of torch needs beyond its build for CPUs. Installed only with such a build.\n"
COMPILE = "pip compile - --quiet --generate-hashes --no-header --no-annotate --no-cache"
TARGET = "--python-version 3.11 --python-platform x86_64-manylinux_2_28"


def path(name: str) -> Path:
    """environment-<name>.lock: of an environment, of `torch-cuda`, or of `uv`."""
    return environments.ROOT / f"environment-{name}.lock"


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def entries(text: str) -> dict[str, str]:
    """Each package's own lines, `name==version` and its hashes, by its normalised name; comments left out."""
    lines = re.sub(r"^(#.*)?\n", "", text, flags=re.MULTILINE)
    blocks = [block.rstrip() for block in re.split(r"\n(?=\S)", lines) if block.strip()]
    return {normalised(block.split("==")[0]): block for block in blocks}


def read(name: str) -> dict[str, str]:
    """The entries of environment-<name>.lock."""
    try:
        found = entries(path(name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path(name).name} is absent: restore it from git, or make it with `make locks`") from error
    for package, text in found.items():
        if not re.match(r"[\w.-]+==\S+ \\\n    --hash=sha256:", text):
            raise UserError(f"{path(name).name}: {package} has no version with a hash: run `make locks`")
    return found


def version(entry: str) -> str:
    return entry.split("==", 1)[1].split()[0]


def pins(environment: Environment) -> dict[str, str]:
    """The entries of this environment's lock, which must answer to its yml."""
    lock, specification, found = path(environment.name), environment.specification, read(environment.name)
    for line in requirements(specification):
        name, _, wanted = line.partition("==")
        if version(found.get(normalised(name), "==absent")) != wanted:
            raise UserError(f"{lock.name} does not answer to {line} of {specification.name}: run `make locks`")
    return found


def digest(environment: Environment) -> str:
    """Of all that an environment may be built from; comments don't count."""
    blocks = [*pins(environment).values(), *(read("torch-cuda").values() if environment is TORCH else ())]
    return hashlib.sha256("\n".join(sorted(blocks)).encode()).hexdigest()


def requirements(specification: Path) -> list[str]:
    """The packages that pip installs, without comments."""
    return _listed(specification)[1]


def conda_requirements(specification: Path) -> list[str]:
    """The other dependencies."""
    return _listed(specification)[0]


def _listed(specification: Path) -> list[list[str]]:
    """What conda and what pip installs. Reads the subset of YAML that these two files use: pip's list is the last."""
    _, _, dependencies = specification.read_text(encoding="utf-8").partition("\ndependencies:\n")
    conda, heading, pip = dependencies.partition("- pip:\n")
    if not heading:
        raise UserError(f"{specification.name}: no `- pip:` among its dependencies: restore the file from git")
    return [re.findall(r"^ +- (\S+)", part, flags=re.MULTILINE) for part in (conda, pip)]


# ----------------------------------------------------------------------------------------------- what the user has set


def pip_settings(python: Path) -> dict[str, str]:
    """pip's configuration as it holds for `install`, files and PIP_* variables, by option."""
    asked = [str(python), "-m", "pip", "config", "list"]
    said = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", errors="replace")
    found = {}
    for section in ("global.", "install.", ":env:."):  # a later one replaces
        for key, _, value in (line.partition("=") for line in said.stdout.splitlines()):
            if key.startswith(section):
                found[key[len(section) :]] = ast.literal_eval(value)
    return found


def uv_variables(pip: Mapping[str, str]) -> dict[str, str]:
    """The same for uv, which does not read pip's configuration; what the user has set for uv stands."""
    wanted = {
        "UV_DEFAULT_INDEX": pip.get("index-url"),
        "UV_INDEX": " ".join(pip.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(pip.get("find-links", "").split()),
        "UV_NO_INDEX": "1" if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else "",
        "UV_INSECURE_HOST": ",".join(pip.get("trusted-host", "").split()),
        "UV_HTTP_TIMEOUT": pip.get("default-timeout") or pip.get("timeout"),
        "SSL_CERT_FILE": pip.get("cert"),
        "ALL_PROXY": pip.get("proxy"),
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # as pip: any index may serve a file, its hash decides
        "UV_PYTHON_DOWNLOADS": "never",
    }
    return {key: value for key, value in wanted.items() if value and key not in os.environ}


# -------------------------------------------------------------------------------------------------- making the locks


def make() -> None:
    """Write all lock files. The index is the user's; find-links only say where the CPU build of torch lies."""
    python = doctor.find_python()
    if python is None:
        raise UserError("no Python 3.11 on PATH that has venv and ensurepip: run `make doctor`")
    with tempfile.TemporaryDirectory() as temporary:
        tools, known = Path(temporary) / "uv", Path(temporary) / "known.txt"
        pip_install = [str(tools / "bin" / "pip"), "install", "--quiet", UV]
        for command in ([python.program, "-m", "venv", str(tools)], pip_install):
            if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
                raise UserError(f"{UV} can't be had (see above): is a package registry reachable?")
        pip = pip_settings(tools / "bin" / "python")
        links = pip.pop("find-links", "").split()
        pip.pop("extra-index-url", None)  # a mirror beside the index may hold some of a version's files only
        environ = {key: value for key, value in {**os.environ, **uv_variables(pip)}.items() if key != "UV_FIND_LINKS"}

        def compiled(wanted: Sequence[str], *options: str) -> dict[str, str]:
            """What uv resolves these requirements to."""
            command = [str(tools / "bin" / "uv"), *COMPILE.split(), *TARGET.split(), *options]
            streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environ)
            result = subprocess.run(command, input="\n".join(wanted), **streams)
            if result.returncode:
                raise UserError(f"uv finds no versions that fit together: {' '.join(result.stderr.split())}")
            return entries(result.stdout)

        wanted = requirements(TORCH.specification)
        (pin,) = (line for line in wanted if line.startswith("torch=="))
        wheel, sha256 = cpu_wheel(links, pin)
        torch = compiled(wanted)
        known.write_text("\n".join(torch.values()) + "\n", encoding="utf-8")
        same = ["--constraints", str(known)]
        lean = compiled(wanted, *(f"--find-links={link}" for link in links), *same)
        torch["torch"] += f" \\\n    --hash=sha256:{sha256}"
        cuda = {name: torch.pop(name) for name in sorted(torch.keys() - lean.keys())}
        write("torch", TORCH.specification.name, torch, CPU.format(wheel=wheel))
        write("torch-cuda", TORCH.specification.name, cuda, CUDA)
        write("jt", JT.specification.name, compiled(requirements(JT.specification), *same))
        write("uv", "lib/machine/locks.py", compiled([UV]))


def cpu_wheel(links: Sequence[str], torch: str) -> tuple[str, str]:
    """(name, sha256) of the CPU build of this `torch==version` in pip's find-links folders."""
    pattern = f"torch-{torch.partition('==')[2]}+cpu-cp311-*.whl"
    for link in links:
        folder = Path(unquote(urlparse(link).path) if link.startswith("file:") else link)
        for wheel in sorted(folder.glob(pattern)):
            return wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest()
    raise UserError(
        f"no {pattern} in pip's find-links ({' '.join(links) or 'not set'}): its hash belongs into the lock. "
        "Put the wheel into a folder and set PIP_FIND_LINKS to it"
    )


def write(name: str, source: str, found: Mapping[str, str], note: str = "") -> None:
    head = HEADER.format(source=source, uv=UV.replace("==", " ")) + note
    path(name).write_text(head + "\n".join(found.values()) + "\n", encoding="utf-8")
    print(f"[locks] {path(name).name}: {len(found)} packages", flush=True)
