"""The process of a notebook's kernel: where what it writes beside its cells goes, and how it ended where it died."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import UserError

# Else ipykernel reads file descriptors 1 and 2 through a pipe of its own, and what a dying process wrote last is lost in it.
ARGUMENTS = ["--IPKernelApp.capture_fd_output=False"]
LINES = 12  # of what a dead process wrote that are told; a failed notebook holds up to a hundred times as many
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
WIDTH = 300  # of each of these lines: mangled names of C++ are longer
LITTLE = 0.02  # share of the memory below which a process that was killed is said to have lacked it
# Jittor catches the signals of a crash and exits with 1: its words (src/utils/log.cc) and gdb's trace say that it was one.
CAUGHT = re.compile(r"^Caught segfault at address|jittor::segfault_sigaction|^Get signal (\d+), exit$", re.MULTILINE)
NAMES = {one.value: one.name for one in signal.Signals}
EXTENSIONS = "Extension modules: "  # Python's list of a hundred modules after a crash


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
        from jupyter_client import AsyncKernelManager

        watch = self

        class Manager(AsyncKernelManager):
            async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
                with open(watch.log, "wb") as log:
                    await super()._async_launch_kernel(kernel_cmd, stdout=log, stderr=log, **options)
                watch.running = self.provisioner.process

            async def _async_is_alive(self) -> bool:  # nbclient asks every second
                alive = await super()._async_is_alive()
                watch.left = memory_left() if alive else watch.left
                return alive

            is_alive = _async_is_alive

        return Manager

    def written(self) -> str:
        """What it wrote to its standard output and error, C++ included."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""

    def died(self, what: str) -> ProcessDied:
        """How it ended, for a process that has; `what` begins the sentence."""
        code, text = self.running.wait(), self.written()
        number = -code if code < 0 else None
        if code == 1 and (caught := list(CAUGHT.finditer(text))):
            number = int(caught[-1][1] or signal.SIGSEGV)
        how = f"signal {number} ({NAMES.get(number, 'of no name')})" if number else f"an exit with code {code}"
        memory = lack_of_memory(self._kills, kills(), self.left) if number == signal.SIGKILL else ""
        return ProcessDied(f"{what} died of {how}{memory}", number, last_lines(text))


def last_lines(text: str, count: int = LINES) -> list[str]:
    lines = (line.strip() for line in COLOURS.sub("", text).splitlines() if not line.startswith(EXTENSIONS))
    return [line[:WIDTH] for line in lines if line][-count:]


def lack_of_memory(before: dict[str, int], after: dict[str, int], left: float) -> str:
    """The evidence that a killed process lacked memory, or nothing."""
    counted = [name for name, count in after.items() if count > before.get(name, count)]
    if counted:
        return f", for lack of memory ({counted[0]} counts one more killed for it)"
    return f", probably for lack of memory ({left:.1%} of it was free)" if left < LITTLE else ""


def kills() -> dict[str, int]:
    """How many processes were killed for lack of memory so far, by who counts: this control group, the machine."""
    places = {"the control group": _groups(), "the machine": [Path("/proc/vmstat")]}
    return {name: count for name, paths in places.items() for path in paths if (count := _count(path)) is not None}


def _groups() -> list[Path]:
    """The files in which this process's control group counts, version 2 and 1."""
    own = Path("/proc/self/cgroup")
    found = []
    for line in own.read_text(encoding="utf-8").splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = Path("/sys/fs/cgroup", controllers)
            # In a container the path may be the host's, and the group's files lie at the top.
            name = "memory.oom_control" if controllers else "memory.events"
            found += [place for place in (top / path.lstrip("/") / name, top / name) if place.is_file()][:1]
    return found


def _count(path: Path) -> int | None:
    try:
        found = re.search(r"^oom_kill (\d+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # a system that doesn't count
        return None
    return int(found[1]) if found else None


def memory_left() -> float:
    """The share of the machine's memory that programs can still have."""
    import psutil

    memory = psutil.virtual_memory()
    return memory.available / memory.total
