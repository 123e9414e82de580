"""The two environments: where they live, and how processes start in them.

Runs with any python3 from 3.8 on and the standard library alone, because nothing else is there at first.

Placement. Jittor keys its compiled kernels by the path of its own package, so an environment inside the checkout
would compile everything again for each clone. Environments therefore live beside Jittor's kernels, in
`$ALIGN_HOME/.cache/jittor/envs/<name>-<digest of the lock file and the Python>` (ALIGN_HOME: default $HOME, the one
setting for all that is written outside the checkout); `envs/<name>` is a symlink. Processes are started through
the resolved path, for the same reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
STAMP = ".complete"


@dataclass(frozen=True)
class Environment:
    name: str  # environment-<name>.yml, envs/<name>
    kernel: str  # its Jupyter kernel, and the side it stands for in the records
    title: str  # of the kernel, in Jupyter

    @property
    def specification(self) -> Path:
        return ROOT / f"environment-{self.name}.yml"

    @property
    def link(self) -> Path:
        return ROOT / "envs" / self.name

    @property
    def log(self) -> Path:
        return ROOT / "envs" / f"{self.name}.log"


JT = Environment("jt", "jittor", "Jittor")
TORCH = Environment("torch", "torch", "PyTorch")
ENVIRONMENTS = (JT, TORCH)


def home() -> Path:
    """Where all that is written outside the checkout goes, below `.cache/jittor`."""
    return Path(os.environ.get("ALIGN_HOME") or Path.home()).expanduser().resolve()


def cache() -> Path:
    return home() / ".cache" / "jittor"


def home_of(folder: Path) -> Path:
    """The home that an environment was built in: its kernels lie beside it, whatever ALIGN_HOME says in this shell."""
    return folder.parents[3] if folder.parts[-4:-1] == (".cache", "jittor", "envs") else home()


def jittor_home() -> Path:
    """Where Jittor writes: `home()`, unless its configuration names another place (a setting of the user's)."""
    configuration = cache() / "config.json"
    if configuration.is_file():
        return Path(json.loads(configuration.read_text(encoding="utf-8")).get("JITTOR_HOME", home()))
    return home()


def named(name: str) -> Environment:
    """The environment with this name or this kernel."""
    for environment in ENVIRONMENTS:
        if name in (environment.name, environment.kernel):
            return environment
    raise UserError(f"no environment is called '{name}': choose jt or torch")


def complete(folder: Path) -> bool:
    return (folder / STAMP).is_file() and (folder / "bin" / "python").exists()


def location(environment: Environment) -> Path:
    """The built environment, by its resolved path."""
    if not complete(environment.link):
        raise UserError(f"{environment.link.relative_to(ROOT)}: the environment is absent: run `make envs`")
    return environment.link.resolve()


def interpreter(environment: Environment) -> Path:
    return location(environment) / "bin" / "python"


def header(folder: Path, name: str) -> Path:
    """The precompiled header of Jittor's `core` or of its `kernel`s, to be included before all else; absent where `make
    envs` has not made it. Jittor hashes it like any other file that a source includes: another text compiles anew."""
    return folder / "include" / "precompiled" / f"{name}.h"


def compile_script(folder: Path) -> Path:
    """What compiles a kernel without a Python process."""
    return folder / "bin" / "jittor-compile"


def include(path: Path) -> str:
    return f'-include "{path}"'


def variables(environment: Environment, folder: Path) -> dict[str, str]:
    """What a process of this environment needs beyond the user's own variables."""
    place, jupyter = home_of(folder), ROOT / ".jupyter"
    common = {
        "PYTHONPATH": str(ROOT),
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",  # LANG=C must not make notebooks unreadable
        # Bytecode of what is imported, once for all checkouts, none beside sources: without it a start takes 5 s more.
        "PYTHONPYCACHEPREFIX": str(place / ".cache" / "jittor" / "bytecode"),
        "JUPYTER_DATA_DIR": str(jupyter / "data"),
        "JUPYTER_CONFIG_DIR": str(jupyter / "config"),
        "JUPYTER_RUNTIME_DIR": str(jupyter / "runtime"),
        "IPYTHONDIR": str(jupyter / "ipython"),
        "MPLCONFIGDIR": str(jupyter / "matplotlib"),
        "XDG_CACHE_HOME": str(jupyter / "cache"),
    }
    if environment is not JT:
        return common
    jittor = {
        "cache_name": "alignment",  # else the git branch around the package names the cache
        "log_silent": "1",
    }
    if os.environ.get("ALIGN_DEVICE", "cpu") == "cpu":
        jittor["nvcc_path"] = ""  # a broken CUDA toolkit must not stop a CPU run
    core = header(folder, "core")
    if core.is_file() and "cc_flags" not in os.environ:
        jittor["cc_flags"] = include(core)  # also where lib.backend does not import jittor: one core for both
    if place != Path.home():
        jittor["HOME"] = str(place)  # never JITTOR_HOME: Jittor would write it to the user's configuration for good
    return {**common, **jittor}


def process_environment(environment: Environment, folder: Path) -> dict[str, str]:
    """All variables for a process of this environment."""
    traps = ("JITTOR_HOME", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    inherited = {key: value for key, value in os.environ.items() if key not in traps}
    path = f"{folder / 'bin'}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    return {**inherited, **variables(environment, folder), "PATH": path}


def start(environment: Environment, arguments: Sequence[str]) -> None:
    """Become this environment's Python with these arguments."""
    folder = location(environment)
    os.execve(folder / "bin" / "python", ["python", *arguments], process_environment(environment, folder))


def work(environment: Environment, arguments: Sequence[str], what: str) -> None:
    """Run this environment's Python to its end, with modules of the user's folder. UserError where it fails: the one
    line that it has for its user, or how `what` ended."""
    folder = location(environment)
    variables = process_environment(environment, folder)
    variables["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], os.getcwd()])
    # -P: a folder `lib` where the user works must not stand in for ours.
    command = [str(folder / "bin" / "python"), "-P", *arguments]
    ran = subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or ["it said nothing"]
        said = [line[len("error: ") :] for line in lines if line.startswith("error: ")]
        raise UserError(said[-1] if said else f"{what}: its process ended with code {ran.returncode}: {lines[-1]}")


def adopt() -> None:
    """For a process that was started by hand with an environment's Python: become what `run` would have started."""
    for environment in ENVIRONMENTS:
        if complete(environment.link) and environment.link.resolve() == Path(sys.prefix).resolve():
            wanted = variables(environment, environment.link.resolve())
            if any(os.environ.get(name) != value for name, value in wanted.items()):
                start(environment, sys.orig_argv[1:])
