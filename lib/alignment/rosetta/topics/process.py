"""The process: what an import does, when work is done, what kills it, what is saved."""

import pickle
import tempfile
from pathlib import Path

import numpy as np

from ..child import child, with_import
from ..probe import Probe, attempt, f32

TOPIC = "Process"

EFFECTS = """
import random, ssl, sys
import numpy as np
np.random.seed(5); random.seed(5)
def look():
    return {"stream of NumPy": np.random.get_state()[1].tolist(), "stream of random": random.getstate(),
            "TLS verification": ssl._create_default_https_context, "sys.exit": sys.exit, "sys.excepthook": sys.excepthook}
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


PROBES = (
    Probe(
        topic=TOPIC,
        name="what the import changes",
        question="What of the process does the import change?",
        advice="Import through the backend, or put seeds, TLS verification, sys.exit and excepthook back after the import.",
        jittor=lambda jt: with_import(EFFECTS, "jittor"),
        torch=lambda torch: with_import(EFFECTS, "torch"),
        backend=lambda B: with_import(EFFECTS, "backend"),
        expected=lambda: "nothing",
    ),
    Probe(
        topic=TOPIC,
        name="Ctrl-C and finally",
        question="Does Ctrl-C run `finally` in a script?",
        advice="Set signal.default_int_handler again after the import, or files are left half written.",
        jittor=lambda jt: with_import(INTERRUPTED, "jittor"),
        torch=lambda torch: with_import(INTERRUPTED, "torch"),
        backend=lambda B: with_import(INTERRUPTED, "backend"),
        expected=lambda: "finally ran",
    ),
    Probe(
        topic=TOPIC,
        name="a killed child",
        question="Does a process outlive its killed child?",
        advice="Set SIGCHLD to its default after the import: subprocess timeouts kill the notebook otherwise.",
        jittor=lambda jt: with_import(BEREAVED, "jittor"),
        torch=lambda torch: with_import(BEREAVED, "torch"),
        backend=lambda B: with_import(BEREAVED, "backend"),
        expected=lambda: "parent lives",
    ),
    Probe(
        topic=TOPIC,
        name="sorting NaN",
        question="Does the process survive sorting 4096 values with NaN among them?",
        advice="It dies with Jittor's own compiler flags: append the backend's, and look for NaN before any sort or topk.",
        jittor=lambda jt: child(STOCK_SORT),
        torch=lambda torch: child(TORCH_SORT),
        backend=lambda B: child({"torch": TORCH_SORT, "jittor": MENDED_SORT}[B.NAME]),
        expected=lambda: "survived",
    ),
    Probe(
        topic=TOPIC,
        name="assignment to a list with a negative index",
        question="What is x after x[[0, -1]] = 9?",
        advice="Count from the front in lists and index tensors: Jittor writes outside the tensor.",
        jittor=lambda jt: child(THREE + ASSIGNED),
        torch=lambda torch: child("import torch; x = torch.tensor([1., 2., 3.]); " + ASSIGNED),
        expected=lambda: "[9.0, 2.0, 9.0]",
    ),
    Probe(
        topic=TOPIC,
        name="gradient of a list with a negative index",
        question="What is the gradient of 5 x[[0, -1]]?",
        advice="Count from the front in lists and index tensors: Jittor loses the gradient without a word.",
        jittor=lambda jt: child(THREE + LOST),
        torch=lambda torch: str(_last_and_first(torch)),
        expected=lambda: "[5.0, 0.0, 5.0]",
    ),
    Probe(
        topic=TOPIC,
        name="index out of range",
        question="What does x[5] give where x has three values and 5 is in an index tensor?",
        advice="Check indices in NumPy: Jittor reads beyond the tensor.",
        jittor=lambda jt, x: attempt(lambda: f"{jt.array([1.0, 2.0, 3.0])[x].numpy().size} value"),
        torch=lambda torch, x: attempt(lambda: torch.tensor([1.0, 2.0, 3.0])[x]),
        expected=lambda x: "raises",
        inputs=(np.array([5]),),
    ),
    Probe(
        topic=TOPIC,
        name="when work is done",
        question="Has an operator run before and after synchronising?",
        advice="Jittor is lazy: jt.sync_all(True) before every reading of a clock.",
        jittor=run_when,
        torch=run_at_once,
        expected=lambda: [1, 1],
    ),
    Probe(
        topic=TOPIC,
        name="random stream",
        question="Which numbers follow seed 0?",
        advice="Draw what matters in NumPy: equal seeds give unequal numbers.",
        jittor=lambda jt: seeded(jt, 0),
        torch=lambda torch: seeded(torch, 0),
        expected=lambda: first_draws(0, 4),
    ),
    Probe(
        topic=TOPIC,
        name="seeded twice",
        question="Does seeding again repeat the numbers?",
        advice="Each framework repeats itself.",
        jittor=lambda jt: seeded(jt, 3).numpy() - seeded(jt, 3).numpy(),
        torch=lambda torch: seeded(torch, 3) - seeded(torch, 3),
        expected=lambda: np.zeros(4),
    ),
    Probe(
        topic=TOPIC,
        name="format of save",
        question="What is a saved file?",
        advice="Exchange safetensors: jt.save writes a bare pickle.",
        jittor=lambda jt: first_bytes(lambda path: jt.save({"w": jt.array([1.0])}, path)),
        torch=lambda torch: first_bytes(lambda path: torch.save({"w": torch.tensor([1.0])}, path)),
        expected=lambda: "zip",
    ),
    Probe(
        topic=TOPIC,
        name="code in a checkpoint",
        question="What does load do with a pickle that holds code?",
        advice="Never jt.load what you didn't write: it runs the code.",
        jittor=lambda jt: loaded(jt.load),
        torch=lambda torch: loaded(torch.load),
        expected=lambda: "raises",
    ),
    Probe(
        topic=TOPIC,
        name="a tensor from an array that changes",
        question="Does a tensor keep the values that the array had?",
        advice="Both copy, though Jittor computes later.",
        jittor=lambda jt, x: _from_changed(jt.array),
        torch=lambda torch, x: _from_changed(torch.tensor),
        backend=lambda B, x: B.numpy(_from_changed(B.tensor)),
        expected=lambda x: x + 1,
        inputs=(f32(1, 2),),
    ),
)


def _from_changed(build):
    array = f32(1, 2)
    value = build(array) + 1
    array[:] = 50
    return value


def _last_and_first(torch):
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    return torch.autograd.grad((x[[0, -1]] * 5).sum(), [x])[0].tolist()
