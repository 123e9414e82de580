"""What a user can mend, as one line, and how a command line ends. Any Python 3 from 3.8 on reads this."""

from __future__ import annotations

import errno
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable

SHOWN = 6  # names that a message lists
EXHAUSTED = ("out of memory", "allocate memory", "bad_alloc", "memory is overflow")  # what allocators say
PLACES = {  # errors of the machine's disks rather than of the project
    errno.ENOSPC: "free some room on that disk",
    errno.EDQUOT: "free some room within your quota",
    errno.EACCES: "see who may read and write there",
    errno.EPERM: "see who may read and write there",
    errno.EROFS: "choose a place that can be written",
    errno.ENOTDIR: "move away the file in its place",
    errno.EEXIST: "move away the file in its place",
}


def visible(text: object) -> str:
    """With what a terminal would obey, in a file's name for example, written out; words keep their spaces and joiners
    of any script."""
    return "".join(
        part
        if part.isprintable() or part in "\n\u200c\u200d" or unicodedata.category(part) == "Zs"
        else repr(part)[1:-1]
        for part in str(text)
    )


class UserError(Exception):
    """A user's mistake: one line that names the file, the entry and the remedy; shown without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(visible(message))


def of_a_user(error: Exception) -> UserError | None:
    """An error that a user can mend: their own mistake, or what a disk or a folder refuses. None for any other."""
    if isinstance(error, UserError):
        return error
    if not isinstance(error, OSError) or error.errno not in PLACES:
        return None
    place = error.filename2 or error.filename  # of a link: itself, not what it points to
    where = f"{place}: " if place else ""
    elsewhere = "; ALIGN_HOME places environments and kernels elsewhere" if ".cache/jittor" in where else ""
    return UserError(f"{where}{error.strerror}: {PLACES[error.errno]}{elsewhere}")


def is_memory(error: Exception) -> bool:
    """Whether an error of Python, PyTorch or Jittor says that memory ran out, of the machine or of a device."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(x in said for x in EXHAUSTED))


def some(names: Iterable[str]) -> str:
    """The names, or the first few where they are many."""
    names = list(names)
    rest = len(names) - SHOWN
    return ", ".join(names) if rest <= 0 else f"{', '.join(names[:SHOWN])} and {rest} more"


def exit_code(work: Callable[[], int | None], interrupted: str = "interrupted; what was complete is kept") -> int:
    """Do a command's work. Its own exit code, or 1 with one line on stderr for what a user can mend, 130 after Ctrl-C,
    141 when nobody reads on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):  # LANG=C: a terminal that can't show a name still gets the line
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = work()
        sys.stdout.flush()
        return code or 0
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads our output, as head does, has enough; Python would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError) as error:
        said = of_a_user(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 1


def silent_interrupts() -> None:
    """Until `exit_code` Ctrl-C ends the process at once, without a traceback of what was being imported."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
