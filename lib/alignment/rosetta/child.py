"""Code in a Python process of its own: for imports, and for what may end the process."""

import os
import re
import signal
import subprocess
import sys
from functools import lru_cache

from lib.record import ROOT

IMPORTS = {"jittor": "import jittor", "torch": "import torch", "backend": "from lib import backend"}
SECONDS = 120  # Jittor's import, and a kernel at most
NOTEBOOK = "JPY_PARENT_PID"  # where it is set Jittor leaves Ctrl-C alone; a child asks as a script would
LOG = "\x1b"  # Jittor's own lines on stdout begin with a colour


@lru_cache
def child(code: str) -> str:
    """The last line that `code` prints; else the exception's or the signal's name, or "ended without a word"."""
    surroundings = {name: value for name, value in os.environ.items() if name != NOTEBOOK}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=surroundings, timeout=SECONDS)
    if ended.returncode < 0:
        return f"killed by {signal.Signals(-ended.returncode).name}"
    if ended.returncode:
        raised = re.search(r"^([A-Za-z.]+(Error|Exception|Interrupt))\b", ended.stderr, re.M)
        return raised[1] if raised else f"exit code {ended.returncode}"
    lines = [line for line in ended.stdout.splitlines() if line.strip() and not line.startswith(LOG)]
    return lines[-1] if lines else "ended without a word"


def with_import(code: str, what: str) -> str:
    """The child's answer where the line IMPORT stands for the import of "jittor", "torch" or "backend"."""
    return child(code.replace("IMPORT", IMPORTS[what]))
