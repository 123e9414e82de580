"""Training in several processes against training in one, and what ends it, in both environments."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import parallel_steps
import pytest

from lib import backend, losses
from lib.alignment import lockstep
from lib.alignment.seeded import seeded_input
from lib.data import scenes
from lib.errors import UserError
from lib.losses import gold_yolo, nanodet_plus, rt_detr
from lib.training import parallel

ROOT = Path(__file__).resolve().parents[1]
MPI = pytest.mark.skipif(not shutil.which("mpicc"), reason="no OpenMPI: apt-get install openmpi-bin libopenmpi-dev")
MODEL, SIZE, BATCH = parallel_steps.MODEL, 64, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    scenes.generate(folder, train=8, val=2, size=96)
    return folder


def command(data, folder, processes=2):
    plan = ["--size", SIZE, SIZE, "--batch", BATCH, "--epochs", 2, "--processes", processes]
    return [sys.executable, "-m", "lib", "train", MODEL, *map(str, (data, folder, *plan))]


def lines(text):
    """What is no bar's."""
    return [line for line in re.split(r"[\r\n]+", text) if line.strip() and "|" not in line and "\x1b" not in line]


# ------------------------------------------------------------------------------------------------ the same steps
@pytest.mark.skipif(backend.NAME == "jittor", reason="PyTorch's one process is the reference")
@pytest.mark.parametrize("side", ["torch", pytest.param("jt", marks=MPI)])
def test_two_processes_take_the_steps_of_one(data, tmp_path, side):
    """By the engine, in float64; each way to train wrongly is seen."""
    reference = parallel_steps.record(str(data), SIZE, BATCH)
    start = "import os, sys; from lib import backend; os.execvp((c := backend.launcher(2) + sys.argv[1:])[0], c)"
    script = [ROOT / "tests" / "parallel_steps.py", data, SIZE, BATCH, tmp_path]
    run = [sys.executable, "-m", "lib.machine", "run", side, "-c", start, *map(str, script)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("sound", *parallel_steps.WRONG):
        fields = json.loads((tmp_path / f"{name}.json").read_text())
        found = lockstep.side_by_side(reference, fields)
        assert not found.faults and {"loss", "gradient", "statistics"} <= {step.kind for step in found.steps}
        assert (found.first() is None) == (name == "sound"), (name, found.first())


def outputs_and_targets(name):
    """A batch of four images of 64 x 64 pixels in which the third and fourth have no box, and outputs for it."""
    boxes = np.array([[4, 4, 40, 44], [20, 8, 60, 50]], np.float32)
    targets = [{"boxes": boxes[:k], "labels": np.arange(k)} for k in (2, 1, 0, 0)]
    draw = {"nanodet": (85, 3 + 32), "gold": (84, 3), "rtdetr": (6, 3)}[name]
    logits = seeded_input(f"{name} logits", (4, *draw))
    if name == "nanodet":
        return (logits, logits[::-1].copy()), targets
    if name == "gold":
        return (logits, np.abs(seeded_input("sides", (4, 84, 4))) * 2), targets
    boxes = 1 / (1 + np.exp(-seeded_input("boxes", (4, 6, 4))))
    return {"pred_logits": logits, "pred_boxes": boxes}, targets


def part(held, rows):
    if isinstance(held, dict):
        return {key: part(value, rows) for key, value in held.items()}
    return type(held)(part(value, rows) for value in held) if isinstance(held, tuple) else backend.tensor(held[rows])


@pytest.mark.parametrize(
    "name, model, module",
    [
        ("nanodet", "nanodet-plus-m_320", nanodet_plus),
        ("gold", "gold-yolo-n", gold_yolo),
        ("rtdetr", "rtdetr_r18vd", rt_detr),
    ],
)
def test_the_losses_of_the_parts_are_the_loss_of_the_whole(monkeypatch, name, model, module):
    outputs, targets = outputs_and_targets(name)
    criterion, asked = losses.build(model, 3), []

    def loss(rows):
        found = criterion(part(outputs, rows), targets[rows], image_size=(64, 64))
        return dict(zip(found, backend.floats(list(found.values()))))

    whole = loss(slice(0, 4))
    monkeypatch.setattr(module, "all_gather", lambda numbers: asked.append(numbers) or np.array([numbers]))
    alone = [loss(rows) for rows in (slice(0, 2), slice(2, 4))]
    half = len(asked) // 2
    together = [np.array(both) for both in zip(asked[:half], asked[half:], strict=True)]
    parts = []
    for rows in (slice(0, 2), slice(2, 4)):
        given = iter(together)
        monkeypatch.setattr(module, "all_gather", lambda numbers, given=given: next(given))
        parts.append(loss(rows))
    for key, value in whole.items():
        assert parts[0][key] + parts[1][key] == pytest.approx(value, rel=2e-6, abs=1e-9), key
    assert sum(alone[0].values()) + sum(alone[1].values()) != pytest.approx(sum(whole.values()), rel=1e-3)


def test_a_process_draws_its_rows_of_the_whole_batch(monkeypatch):
    whole = np.random.default_rng(3)
    expected = whole.random((4, 3), np.float32), whole.integers(0, 9, (4, 2)), whole.integers(7), whole.random(4)
    monkeypatch.setattr(backend, "world", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(backend, "rank", lambda rank=rank: rank)
        rows, own = parallel.Rows(np.random.default_rng(3)), slice(2 * rank, 2 * rank + 2)
        drawn = rows.random((2, 3), np.float32), rows.integers(0, 9, (2, 2)), rows.integers(7), rows.random(2)
        for mine, all_of_it in zip(drawn, expected, strict=True):
            np.testing.assert_array_equal(mine, all_of_it[own] if np.ndim(all_of_it) else all_of_it)


# ------------------------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    "processes, batch, said",
    [
        (3, 8, "3 processes can't share a batch of 8 equally: give a multiple of --processes as --batch"),
        (4, 2, "4 processes can't share a batch of 2"),
        (0, 2, "0 processes can't share"),
    ],
)
def test_processes_share_a_batch_equally(processes, batch, said):
    with pytest.raises(UserError, match=re.escape(said)):
        parallel.check(processes, batch)
    parallel.check(4, 8)


@pytest.mark.skipif(backend.NAME == "torch", reason="torchrun comes with PyTorch")
def test_an_absent_mpirun_is_named_and_anothers(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="there is no mpirun .* apt-get install openmpi-bin"):
        backend.launcher(2)
    for tool in ("mpirun", "mpicc"):
        (tmp_path / tool).write_text("#!/bin/sh\necho HYDRA 4.2")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="need OpenMPI's mpirun first on PATH; here it is 'HYDRA 4.2'"):
        backend.launcher(2)


def test_processes_that_see_other_data_are_told(monkeypatch):
    seen, array = [], np.arange(6.0)
    monkeypatch.setattr(backend, "all_gather", lambda numbers: seen.append(numbers) or np.array([*seen[-2:]]))
    parallel.agree([array], "sees …")
    parallel.agree([array.copy()], "sees …")
    with pytest.raises(UserError, match="training: process 1 sees …"):
        parallel.agree([np.nextafter(array, 9)], "sees …")


# ------------------------------------------------------------------------------------------------ what ends it
TORCHRUN = """\
Traceback (most recent call last):
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 7)
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 6)
  rank      : 2 (local_rank: 2)
  exitcode  : -15 (pid: 8)
"""
MPIRUN = """\
-----------------------
mpirun noticed that process rank 1 with PID 7 on node here exited on
signal 9 (Killed).
"""


def started(monkeypatch, script):
    monkeypatch.setattr(backend, "launcher", lambda processes: ["sh", "-c", f"{script}; exit 7"])
    return parallel.launch(3, [])


def test_one_line_says_what_ended_it(monkeypatch, capfd):
    said = {"torch": TORCHRUN, "jittor": MPIRUN}[backend.NAME]
    killed, own = "training: process 1 of 3 was ended by SIGKILL", "error: x.png: broken\nerror: y.png: broken\n"
    for script, expected in ((said, killed), (own + said, killed), (own + said.replace("9", "15"), "x.png: broken$")):
        with pytest.raises(UserError, match=f"^{expected}"):
            started(monkeypatch, f"echo '50 %'; printf '%s' '{script}' >&2; echo a note >&2")
    assert capfd.readouterr().err.strip() == ""
    with pytest.raises(UserError, match="ended with code 7"):
        started(monkeypatch, "true")


def test_a_warning_at_the_start_stops_no_bar(monkeypatch, capfd):
    with pytest.raises(UserError, match="^x.png: broken$"):
        started(monkeypatch, r"(echo -----; sleep .1; printf '\r50 %% |#'; sleep .1; echo error: x.png: broken) >&2")
    assert capfd.readouterr().err.strip() == "50 % |#"


def test_ctrl_c_ends_all(monkeypatch):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        started(monkeypatch, "exec sleep 60")
    assert time.monotonic() - begun < 30
