"""The process: what an import does, when work is done, what kills it, what is saved."""

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from lib.record import ROOT
from notebooks.probes.probe import ask, attempt, f32, given

TOPIC = "Process"
SECONDS = 120  # of a child: Jittor's import, and a kernel at most
NOTEBOOK = "JPY_PARENT_PID"  # where it is set Jittor leaves Ctrl-C alone; a child asks as a script would
LOG = "\x1b"  # Jittor's own lines on stdout begin with a colour

EFFECTS = """
import random, ssl, sys
import numpy as np
np.random.seed(5); random.seed(5)
def look():
    return {"stream of NumPy": np.random.get_state()[1].tolist(), "stream of random": random.getstate(),
            "TLS verification": ssl._create_default_https_context,
            "sys.exit": sys.exit, "sys.excepthook": sys.excepthook}
before = look()
IMPORT
after = look()
print(", ".join(name for name in before if before[name] != after[name]) or "nothing")
"""
INTERRUPTED = """
import os, signal, time
IMPORT
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(2)
except KeyboardInterrupt:
    pass
finally:
    print("finally ran", flush=True)
"""
BEREAVED = """
import signal, subprocess, sys, time
IMPORT
subprocess.run([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
time.sleep(0.5)
print("parent lives", flush=True)
"""
NAN_SORT = """
import numpy as np
x = np.random.default_rng(0).random(4096).astype(np.float32)
x[::3] = np.nan
"""
# Rank 5 for Jittor's own flags: kernels are known by operator, type and rank, and these must not meet the backend's.
STOCK_SORT = (
    NAN_SORT + "import jittor as jt; jt.argsort(jt.array(x.reshape(1, 1, 1, 1, -1)), -1)[0].numpy(); print('survived')"
)
MENDED_SORT = (
    NAN_SORT + "from lib import backend; import jittor as jt; jt.argsort(jt.array(x))[0].numpy(); print('survived')"
)
TORCH_SORT = NAN_SORT + "import torch; torch.argsort(torch.tensor(x)); print('survived')"
ASSIGNED = "x[[0, -1]] = 9; print(x.tolist())"
LOST = "print(jt.grad((x[[0, -1]] * 5).sum(), x).numpy().tolist())"
THREE = "from lib import backend; import jittor as jt; x = jt.array([1., 2., 3.]); "


@lru_cache
def child(code: str, framework=None) -> str:
    """The last line that `code` prints in a Python process of its own: for imports, and for what may end the process.

    Else the exception's or the signal's name, or "ended without a word". IMPORT stands for the import of the framework.
    """
    surroundings = {name: value for name, value in os.environ.items() if name != NOTEBOOK}
    command = [sys.executable, "-c", code.replace("IMPORT", f"import {framework.__name__}" if framework else "")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=surroundings, timeout=SECONDS)
    if ended.returncode < 0:
        return f"killed by {signal.Signals(-ended.returncode).name}"
    if ended.returncode:
        raised = re.search(r"^([A-Za-z.]+(Error|Exception|Interrupt))\b", ended.stderr, re.M)
        return raised[1] if raised else f"exit code {ended.returncode}"
    lines = [line for line in ended.stdout.splitlines() if line.strip() and not line.startswith(LOG)]
    return lines[-1] if lines else "ended without a word"


def first_bytes(save) -> str:
    """How a saved file begins."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved.pkl")
        save(str(path))
        return "zip" if path.read_bytes().startswith(b"PK") else "pickle"


class Trap:
    """Unpickled, it runs a function of the sender's choice; here a harmless one."""

    def __reduce__(self):
        return str.upper, ("code ran",)


def loaded(load) -> str:
    """What a loader does with a pickle that holds code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.pkl")
        path.write_bytes(pickle.dumps(Trap(), 2))
        return attempt(lambda: str(load(str(path))))


def run_when(jt) -> list[int]:
    """How often a Python operator has run before and after synchronising."""
    calls: list[int] = []
    y = jt.numpy_code(
        [1], "float32", [jt.array([1.0])], lambda _, data: calls.append(1) or data["outputs"][0].fill(2.0)
    )
    before = len(calls)
    y.sync()
    return [before, len(calls)]


def run_at_once(torch) -> list[int]:
    """The same for PyTorch."""
    calls: list[int] = []

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            calls.append(1)
            return x * 2

    Twice.apply(torch.ones(1))
    return [len(calls), len(calls)]


def first_draws(seed: int, count: int) -> np.ndarray:
    """PyTorch's CPU stream: the low 24 bits of each word of a Mersenne twister."""
    words = np.random.RandomState(seed).randint(0, 2**32, count, np.uint32)
    return (words & 0xFFFFFF) / 2.0**24


def seeded(framework, seed: int):
    """Four uniform numbers after seeding."""
    seeding = framework.manual_seed if hasattr(framework, "manual_seed") else framework.set_global_seed
    seeding(seed)
    return framework.rand(4)


PROBES = {
    "what the import changes": ask(
        "What of the process does the import change?",
        "Import through the backend, or put seeds, TLS verification, sys.exit and excepthook back after the import.",
        every=lambda F: child(EFFECTS, F),
        expected=lambda: "nothing",
    ),
    "Ctrl-C and finally": ask(
        "Does Ctrl-C run `finally` in a script?",
        "Set signal.default_int_handler again after the import, or files are left half written.",
        every=lambda F: child(INTERRUPTED, F),
        expected=lambda: "finally ran",
    ),
    "a killed child": ask(
        "Does a process outlive its killed child?",
        "Set SIGCHLD to its default after the import: subprocess timeouts kill the notebook otherwise.",
        every=lambda F: child(BEREAVED, F),
        expected=lambda: "parent lives",
    ),
    "sorting NaN": ask(
        "Does the process survive sorting 4096 values with NaN among them?",
        "It dies with Jittor's own compiler flags: append the backend's, and look for NaN before any sort or topk.",
        jittor=lambda jt: child(STOCK_SORT),
        torch=lambda torch: child(TORCH_SORT),
        backend=lambda B: child({"torch": TORCH_SORT, "jittor": MENDED_SORT}[B.NAME]),
        expected=lambda: "survived",
    ),
    "assignment to a list with a negative index": ask(
        "What is x after x[[0, -1]] = 9?",
        "Count from the front in lists and index tensors: Jittor writes outside the tensor.",
        jittor=lambda jt: child(THREE + ASSIGNED),
        torch=lambda torch: child("import torch; x = torch.tensor([1., 2., 3.]); " + ASSIGNED),
        expected=lambda: "[9.0, 2.0, 9.0]",
    ),
    "gradient of a list with a negative index": ask(
        "What is the gradient of 5 x[[0, -1]]?",
        "Count from the front in lists and index tensors: Jittor loses the gradient without a word.",
        jittor=lambda jt: child(THREE + LOST),
        torch=lambda torch: str(_last_and_first(torch)),
        expected=lambda: "[5.0, 0.0, 5.0]",
    ),
    "index out of range": given(np.array([5])).ask(
        "What does x[5] give where x has three values and 5 is in an index tensor?",
        "Check indices in NumPy: Jittor reads beyond the tensor.",
        jittor=lambda jt, x: attempt(lambda: f"{jt.array([1.0, 2.0, 3.0])[x].numpy().size} value"),
        torch=lambda torch, x: attempt(lambda: torch.tensor([1.0, 2.0, 3.0])[x]),
        expected=lambda x: "raises",
    ),
    "when work is done": ask(
        "Has an operator run before and after synchronising?",
        "Jittor is lazy: jt.sync_all(True) before every reading of a clock.",
        jittor=run_when,
        torch=run_at_once,
        expected=lambda: [1, 1],
    ),
    "random stream": ask(
        "Which numbers follow seed 0?",
        "Draw what matters in NumPy: equal seeds give unequal numbers.",
        both=lambda F: seeded(F, 0),
        expected=lambda: first_draws(0, 4),
    ),
    "seeded twice": ask(
        "Does seeding again repeat the numbers?",
        "Each framework repeats itself.",
        both=lambda F: seeded(F, 3).numpy() - seeded(F, 3).numpy(),
        expected=lambda: np.zeros(4),
    ),
    "format of save": ask(
        "What is a saved file?",
        "Exchange safetensors: jt.save writes a bare pickle.",
        jittor=lambda jt: first_bytes(lambda path: jt.save({"w": jt.array([1.0])}, path)),
        torch=lambda torch: first_bytes(lambda path: torch.save({"w": torch.tensor([1.0])}, path)),
        expected=lambda: "zip",
    ),
    "code in a checkpoint": ask(
        "What does load do with a pickle that holds code?",
        "Never jt.load what you didn't write: it runs the code.",
        both=lambda F: loaded(F.load),
        expected=lambda: "raises",
    ),
    "a tensor from an array that changes": given(f32(1, 2)).ask(
        "Does a tensor keep the values that the array had?",
        "Both copy, though Jittor computes later.",
        jittor=lambda jt, x: _from_changed(jt.array),
        torch=lambda torch, x: _from_changed(torch.tensor),
        backend=lambda B, x: B.numpy(_from_changed(B.tensor)),
        expected=lambda x: x + 1,
    ),
}


def _from_changed(build):
    array = f32(1, 2)
    value = build(array) + 1
    array[:] = 50
    return value


def _last_and_first(torch):
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    return torch.autograd.grad((x[[0, -1]] * 5).sum(), [x])[0].tolist()
