"""One notebook: its parameters, the files its numbers depend on, its execution, and how its kernel's process ended."""

import ast
import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.families import FAMILIES, family
from lib.machine import doctor, environment

# A stage's numbers do not depend on how it shows them, nor on how environments are built: a new table must not train
# again. What shapes a record takes nothing from these (tests/test_pipeline.py).
ASIDE = (
    *("lib.show", "lib.report", "lib.machine.installation", "lib.machine.locks", "lib.machine.doctor"),
    *("notebooks.probes.sheet", "notebooks.stages.panel"),
)
BOTH = ("torch", "jittor")
BACKENDS = {"torch": "torch", "jittor": ("jittor", "kernels")}  # how the names of their modules begin
PACKAGES = ("lib", "notebooks")  # whose modules a record may depend on
# Else ipykernel reads file descriptors 1 and 2 through a pipe, and what a dying process wrote last is lost in it.
ARGUMENTS = ["--IPKernelApp.capture_fd_output=False"]
NOTEBOOKS = 64  # read once for all jobs of a plan, which share them
LINES = 12  # of what a dead process wrote that are told; a failed notebook holds up to a hundred times as many
WIDTH = 300  # of each of these lines: mangled names of C++ are longer
LITTLE = 0.02  # share of the memory below which a process that was killed is said to have lacked it
# Jittor catches a crash's signal and exits with 1: its words (src/utils/log.cc) and gdb's trace say that it was one.
CAUGHT = re.compile(r"^Caught segfault at address|jittor::segfault_sigaction|^Get signal (\d+), exit$", re.MULTILINE)
# Colours, and Python's list of a hundred modules after a crash.
NOISE = re.compile(r"\x1b\[[0-9;]*m|^Extension modules: .*$", re.MULTILINE)


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells, each with its source joined to one string."""
    try:
        return _cells(notebook.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{notebook}: not a readable notebook ({error}): restore it from git") from error


@lru_cache(NOTEBOOKS)
def _cells(text: str) -> list[dict[str, Any]]:
    content = json.loads(text)["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in content if cell["cell_type"] == "code"]


def declared(notebook: Path) -> dict[str, Any]:
    """Names and defaults in the cell tagged `parameters`, which holds literals only."""
    tagged = [cell for cell in cells(notebook) if "parameters" in cell.get("metadata", {}).get("tags", [])]
    return _declared(tagged[0]["source"], notebook.name) if tagged else {}


@lru_cache(NOTEBOOKS)
def _declared(code: str, where: str) -> dict[str, Any]:
    found = {}
    for statement in ast.parse(code).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise UserError(f"{where}: the parameters cell holds more than `name = literal` (line {statement.lineno})")
        found[statement.targets[0].id] = ast.literal_eval(statement.value)
    return found


def parameters(notebook: Path, section: Mapping[str, Any], offered: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the notebook gets: all of its profile section, and of what is offered to every notebook what it declares."""
    defaults = declared(notebook)
    for name, value in section.items():
        if name not in defaults:
            known = ", ".join(sorted(defaults))
            raise UserError(f"{where}.{name}: {notebook.name} has no such parameter: it has {known}")
        if isinstance(value, str) and isinstance(defaults[name], (int, float)):
            raise UserError(f"{where}.{name}: '{value}' is text to YAML: write it as a number, 1.0e-3 rather than 1e-3")
    return {name: value for name, value in {**offered, **section}.items() if name in defaults}


# ------------------------------------------------------------------------------------------- what its numbers depend on


def imported(code: str, package: str, where: Path) -> Iterator[str]:
    """The names below PACKAGES that Python code imports, the names taken from modules included."""
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        raise UserError(f"{where}: line {error.lineno}: {error.msg} in {(error.text or '').strip()!r}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parts, *filter(None, [node.module])])
            if module.split(".")[0] in PACKAGES:
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)


@cache
def module(root: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """The file of a dotted name, relative to root, and the names that it imports; "" where the name is no module.

    Read once: the jobs of a report share their files, and parsing them for each took half of `make report`'s time.
    """
    path = root.joinpath(*name.split("."))
    whole = path.is_dir()
    file = path / "__init__.py" if whole else path.with_suffix(".py")
    if not file.is_file():
        return "", ()
    package = name if whole else name.rpartition(".")[0]
    return str(file.relative_to(root)), (*imported(file.read_text(encoding="utf-8"), package, file), package)


def sources(start: Path, side: str, models: Iterable[str], display: bool = False) -> list[str]:
    """The project's files that the numbers of a notebook, or of a module of the project, depend on: what it imports,
    directly or not.

    Left out: the other side's backend, the other families' models, and what stands aside (unless `display`).
    """
    others = frozenset(FAMILIES) - {family(model) for model in models}
    if start.suffix == ".py":
        names = (".".join(start.with_suffix("").parts),)
    else:
        names = _named(tuple(cell["source"] for cell in cells(start)), start)
    return list(_reached(environment.ROOT, names, str(start), side, others, display))


@lru_cache(NOTEBOOKS)
def _named(code: tuple[str, ...], where: Path) -> tuple[str, ...]:
    return tuple(name for cell in code for name in imported(cell, "", where))


@cache
def _reached(
    root: Path, names: tuple[str, ...], first: str, side: str, others: frozenset[str], display: bool
) -> list[str]:
    """The files of these names and of what they import; `others` are the families left out, unless one is `first`."""
    waiting, found, seen = list(names), set(), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        file, imports = module(root, name)
        stem = Path(file).stem
        elsewhere = (
            name.startswith("lib.backend.") and side in BOTH and not name.split(".")[2].startswith(BACKENDS[side])
        )
        left_out = stem in others or elsewhere or (name.startswith(ASIDE) and not display)
        if file and (not left_out or file == first):
            found.add(file)
            headers = root.joinpath(file).parent.glob("*.h")
            found.update(str(header.relative_to(root)) for header in headers)
            waiting += imports
    return sorted(found)


# ------------------------------------------------------------------------------------------------------- its execution


class ProcessDied(UserError):
    """A kernel, or the process of a command, that ended by itself.

    signal: its number, None where it was an exit of its own. lines: what it wrote last.
    """

    def __init__(self, message: str, number: int | None, lines: list[str]):
        super().__init__(message)
        self.signal, self.lines = number, lines


@dataclass
class Process:
    """A process and the file that its output goes to; begins counting when it is made."""

    log: Path
    running: Any = None  # subprocess.Popen
    left: float = 1.0  # share of the memory that was free when it was last seen alive

    def __post_init__(self) -> None:
        self._kills = kills()

    def manager(self) -> type:
        """A kernel manager for nbclient whose kernel is this process."""
        import psutil
        from jupyter_client import AsyncKernelManager

        watch = self

        class Manager(AsyncKernelManager):
            async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
                with open(watch.log, "wb") as log:
                    await super()._async_launch_kernel(kernel_cmd, stdout=log, stderr=log, **options)
                watch.running = self.provisioner.process

            async def _async_is_alive(self) -> bool:  # nbclient asks every second
                if alive := await super()._async_is_alive():
                    memory = psutil.virtual_memory()
                    watch.left = memory.available / memory.total
                return alive

            is_alive = _async_is_alive

        return Manager

    def lines(self, count: int = LINES) -> list[str]:
        """What it wrote last to its standard output and error, C++ included."""
        lines = (line.strip()[:WIDTH] for line in NOISE.sub("", self._written()).splitlines())
        return [line for line in lines if line][-count:]

    def died(self, what: str) -> ProcessDied:
        """How it ended, for a process that has; `what` begins the sentence."""
        code = self.running.wait()
        number = -code if code < 0 else None
        if code == 1 and (caught := list(CAUGHT.finditer(self._written()))):
            number = int(caught[-1][1] or signal.SIGSEGV)
        names = {one.value: one.name for one in signal.Signals}
        how = f"signal {number} ({names.get(number, 'of no name')})" if number else f"an exit with code {code}"
        memory = lack_of_memory(self._kills, kills(), self.left) if number == signal.SIGKILL else ""
        return ProcessDied(f"{what} died of {how}{memory}", number, self.lines())

    def _written(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""


def lack_of_memory(before: Mapping[str, int], after: Mapping[str, int], left: float) -> str:
    """The evidence that a killed process lacked memory, or nothing."""
    if counted := [name for name, count in after.items() if count > before.get(name, count)]:
        return f", for lack of memory ({counted[0]} counts one more killed for it)"
    return f", probably for lack of memory ({left:.1%} of it was free)" if left < LITTLE else ""


def kills(system: Path = Path("/")) -> dict[str, int]:
    """How many processes were killed for lack of memory so far, by who counts: control groups of version 2 and 1, the
    machine. In a container a group's path may be the host's: then its files lie at the top."""
    found = {}
    own = _text(system / "proc/self/cgroup")
    groups = {line.split(":", 2)[2].strip("/") for line in own.splitlines()} | {""}
    files = [*(f"sys/fs/cgroup/{group}/memory.events" for group in groups)]
    files += [f"sys/fs/cgroup/memory/{group}/memory.oom_control" for group in groups]
    for file in (*files, "proc/vmstat"):
        if counted := re.search(r"^oom_kill (\d+)$", _text(system / file), re.MULTILINE):
            name = "the machine" if file == "proc/vmstat" else f"the control group ({file})"
            found[name] = int(counted[1])
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # a system that doesn't count
        return ""


def execute(notebook: Path, output: Path, kernel: str, values: Mapping[str, Any]) -> None:
    """Run a notebook; `output` appears only when every cell ran. What a failed run left is `<name>.failed.ipynb`.

    ProcessDied where the kernel's process ended by itself, UserError for any other failure. papermill's own record of
    what ran is not used: after a killed kernel it says "completed" for every cell.
    """
    doctor.require([doctor.loopback()])
    # jsonschema would compile a grammar of international addresses, longer than all else here takes to start, for a
    # format that no notebook's schema has; it does without where the package can't be imported.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import NBClientEngine, papermill_engines

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, managed: Any, *arguments: Any, **options: Any) -> None:
            # All is written once, at its end, however that was: papermill would write it before and after each cell.
            write, managed.save = managed.save, lambda: None
            try:
                super().execute_managed_notebook(managed, *arguments, **options)
            finally:
                managed.save = write

    failed, partial = failed_copy(output), output.with_name(f".{output.stem}.partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    process = Process(partial.with_suffix(".log"))
    problem: UserError | None = None
    papermill_engines.register("written once", Engine)
    try:
        papermill.execute_notebook(
            notebook,
            partial,
            engine_name="written once",
            parameters=dict(values),
            kernel_name=kernel,
            language="python",
            progress_bar=False,
            log_output=False,
            cwd=environment.ROOT,
            kernel_manager_class=process.manager(),
            shutdown_kernel="immediate",  # all that it wrote is on the disk, and to take itself apart takes it a second
            extra_arguments=ARGUMENTS,
        )
        skipped = [cell for cell in cells(partial) if cell["source"].strip() and cell["execution_count"] is None]
        problem = UserError(f"{notebook}: {len(skipped)} cells did not run") if skipped else None
    except papermill.PapermillExecutionError as error:
        first = error.source.strip().splitlines()[0]
        raised = f"raised {error.ename}: {' '.join(str(error.evalue).split())}"
        problem = UserError(f"{notebook}: code cell {error.exec_count} ({first!r}) {raised}")
    except NoSuchKernel as error:
        raise UserError(f"{notebook}: the kernel {kernel} is absent: run `make envs`") from error
    except (DeadKernelError, RuntimeError) as error:  # the latter where it dies before its first cell
        if process.running is None or process.running.poll() is None:
            raise
        problem = process.died(f"{notebook}: {last_started(partial)}: the kernel")
        problem.__cause__ = error
    except BaseException:  # Ctrl-C, or a scheduler's SIGTERM: half a run is of no use to anybody
        partial.unlink(missing_ok=True)
        raise
    finally:
        said = process.lines(100 * LINES)
        process.log.unlink(missing_ok=True)
    if problem is None:
        os.replace(partial, output)
        failed.unlink(missing_ok=True)
        return
    if partial.is_file():
        add_output(partial, said)
        os.replace(partial, failed)
    raise problem


def failed_copy(output: Path) -> Path:
    """Where what a failed run left is kept."""
    return output.with_name(f"{output.stem}.failed.ipynb")


def begun(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The code cells that papermill began (a kernel that died sent no count)."""
    code = (cell for cell in content["cells"] if cell["cell_type"] == "code")
    return [cell for cell in code if cell["metadata"].get("papermill", {}).get("start_time")]


def add_output(notebook: Path, lines: list[str]) -> None:
    """Put what the kernel's process wrote beside its cells below the cell that failed, where its reader looks."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    if lines and (run := begun(content)):
        text = "".join(f"{line}\n" for line in lines)
        run[-1]["outputs"].append({"output_type": "stream", "name": "stderr", "text": text})
        notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def last_started(notebook: Path) -> str:
    """The code cell that was running when the kernel went."""
    run = begun(json.loads(notebook.read_text(encoding="utf-8"))) if notebook.is_file() else []
    return (
        f"code cell {len(run)} ({''.join(run[-1]['source']).strip().splitlines()[0]!r})"
        if run
        else "before the first cell"
    )
