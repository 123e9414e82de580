"""The two environments: where they live, how they are built, and how processes start in them.

Runs with any python3 from 3.8 on and the standard library alone, because nothing else is there at first.

Placement. Jittor keys its compiled kernels by the path of its own package, so an environment inside the checkout
would compile everything again for each clone. Environments therefore live beside Jittor's kernels, in
`$ALIGN_HOME/.cache/jittor/envs/<name>-<digest of the lock file and the Python>` (ALIGN_HOME: default $HOME, the one
setting for all that is written outside the checkout); `envs/<name>` is a symlink. Processes are started through
the resolved path, for the same reason.

`lib.installation` builds them, `lib.doctor` says what a machine lacks for that.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Sequence

from lib import headers
from lib.errors import UserError, of_a_place

ROOT = Path(__file__).resolve().parent.parent
STAMP = ".complete"


@dataclass(frozen=True)
class Environment:
    name: str    # environment-<name>.yml, envs/<name>
    kernel: str  # its Jupyter kernel, and the side it stands for in the records

    @property
    def specification(self) -> Path:
        return ROOT / f"environment-{self.name}.yml"

    @property
    def link(self) -> Path:
        return ROOT / "envs" / self.name

    @property
    def log(self) -> Path:
        return ROOT / "envs" / f"{self.name}.log"


JT = Environment("jt", "jittor")
TORCH = Environment("torch", "torch")
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


def location(environment: Environment) -> Path:
    """The built environment, by its resolved path."""
    if not complete(environment.link):
        raise UserError(f"{environment.link.relative_to(ROOT)}: the environment is absent: run `make envs`")
    return environment.link.resolve()


def interpreter(environment: Environment) -> Path:
    return location(environment) / "bin" / "python"


def complete(folder: Path) -> bool:
    return (folder / STAMP).is_file() and (folder / "bin" / "python").exists()


def variables(environment: Environment, folder: Path) -> Dict[str, str]:
    """What a process of this environment needs beyond the user's own variables."""
    jupyter = ROOT / ".jupyter"
    common = {
        "PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",                # LANG=C must not make notebooks unreadable
        # Bytecode of what is imported, once for all checkouts, and none beside sources: without it a process starts 5 s later.
        "PYTHONPYCACHEPREFIX": str(home_of(folder) / ".cache" / "jittor" / "bytecode"),
        "JUPYTER_DATA_DIR": str(jupyter / "data"), "JUPYTER_CONFIG_DIR": str(jupyter / "config"),
        "JUPYTER_RUNTIME_DIR": str(jupyter / "runtime"), "IPYTHONDIR": str(jupyter / "ipython"),
        "MPLCONFIGDIR": str(jupyter / "matplotlib"), "XDG_CACHE_HOME": str(jupyter / "cache"),
    }
    if environment is not JT:
        return common
    jittor = {
        "cache_name": "alignment",        # else the git branch around the package names the cache
        "log_silent": "1",
    }
    if os.environ.get("ALIGN_DEVICE", "cpu") == "cpu":
        jittor["nvcc_path"] = ""          # a broken CUDA toolkit must not stop a CPU run
    header = headers.header(folder, "core")
    if header.is_file() and "cc_flags" not in os.environ:
        jittor["cc_flags"] = headers.include(header)  # also where jittor is imported without lib.backend: one core for both
    # never JITTOR_HOME: Jittor would write it to the user's configuration for good
    place = home_of(folder)
    elsewhere = {} if place == Path.home() else {"HOME": str(place)}
    return {**common, **jittor, **elsewhere}


def process_environment(environment: Environment, folder: Path) -> Dict[str, str]:
    """All variables for a process of this environment."""
    traps = ("JITTOR_HOME", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    inherited = {key: value for key, value in os.environ.items() if key not in traps}
    path = f"{folder / 'bin'}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    return {**inherited, **variables(environment, folder), "PATH": path}


def start(environment: Environment, arguments: Sequence[str]) -> None:
    """Become this environment's Python with these arguments."""
    folder = location(environment)
    os.execve(folder / "bin" / "python", ["python", *arguments], process_environment(environment, folder))


def adopt() -> None:
    """For a process that was started by hand with an environment's Python: become what `run` would have started."""
    for environment in ENVIRONMENTS:
        if complete(environment.link) and environment.link.resolve() == Path(sys.prefix).resolve():
            wanted = variables(environment, environment.link.resolve())
            if any(os.environ.get(name) != value for name, value in wanted.items()):
                start(environment, sys.orig_argv[1:])


def test(arguments: Sequence[str]) -> int:
    """pytest in both environments at once, half of the cores each; their logs one after the other."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    running = []
    for environment in ENVIRONMENTS:
        folder = location(environment)
        log = ROOT / "envs" / f"test-{environment.name}.log"
        environ = {**process_environment(environment, folder), "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        command = [str(folder / "bin" / "python"), "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        with open(log, "w", encoding="utf-8") as file:
            running.append((environment, log, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environ)))
    codes = []
    for environment, log, process in running:
        codes.append(process.wait())
        print(f"\n=== tests in the {environment.name} environment ===", log.read_text(encoding="utf-8", errors="replace"), sep="\n", flush=True)
    return max(codes, key=abs)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lib.environment", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("envs", help="build both environments, Jittor's core and the kernels")
    verbs.add_parser("locks", help="write the lock files from the yml files (needs the network)")
    verbs.add_parser("doctor", help="say what this machine lacks and how to get it")
    system = verbs.add_parser("system", help="as root with apt-get: install what the machine lacks")
    system.add_argument("--if-possible", action="store_true", help="do nothing where apt-get or root is missing")
    runner = verbs.add_parser("run", help="run an environment's Python: run jt|torch ARGUMENTS")
    runner.add_argument("environment")
    runner.add_argument("arguments", nargs=argparse.REMAINDER)
    tests = verbs.add_parser("test", help="run pytest in both environments", prefix_chars="\0", add_help=False)  # pytest's are its own
    tests.add_argument("arguments", nargs="*")
    chosen = parser.parse_args()
    if chosen.verb == "envs":
        from lib import installation
        installation.make_environments()
    elif chosen.verb == "locks":
        from lib import installation
        installation.make_locks()
    elif chosen.verb == "run":
        start(named(chosen.environment), chosen.arguments)
    elif chosen.verb == "test":
        return test(chosen.arguments)
    else:
        from lib import doctor
        return doctor.report() if chosen.verb == "doctor" else doctor.install(chosen.if_possible)
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # LANG=C knows no "…"
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; what was complete is kept", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        said = of_a_place(error) if isinstance(error, OSError) else error
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(1)
