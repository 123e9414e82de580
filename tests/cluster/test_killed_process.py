"""One of several training processes is killed: four trainings in several processes, minutes together."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from test_parallel import MPI, ROOT, command, data, lines

from lib import backend

__all__ = ["data"]


@pytest.mark.skipif(backend.NAME == "jittor" and not shutil.which("mpicc"), reason=MPI.kwargs["reason"])
def test_a_killed_process_ends_the_run_which_continues_bit_for_bit(data, tmp_path):
    def run(folder, **options):
        return subprocess.run(command(data, folder, **options), cwd=ROOT, capture_output=True, text=True, timeout=200)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole).returncode == 0
    child = subprocess.Popen(command(data, killed), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    waited = time.monotonic()
    while not (killed / "checkpoint.safetensors").exists():  # of the first epoch
        assert child.poll() is None and time.monotonic() - waited < 100
        time.sleep(0.01)
    os.kill(process_of(killed, "1"), signal.SIGKILL)
    _, said = child.communicate(timeout=60)
    expected = "error: training: process 1 of 2 was ended by SIGKILL, and the others with it"
    assert child.returncode == 1 and len(lines(said)) == 1 and expected in lines(said)[0], said
    other = run(killed, processes=1)
    assert other.returncode == 1 and "another run (of another processes)" in lines(other.stderr)[-1]
    assert run(killed).returncode == 0
    for name in ("checkpoint", "weights", "last"):
        first, second = (load_file(folder / f"{name}.safetensors") for folder in (whole, killed))
        assert first.keys() == second.keys() and not [
            key for key in first if first[key].tobytes() != second[key].tobytes()
        ]
    # Beside them may lie what the killed process was writing.
    assert sorted(p.name for p in killed.glob("[!.e]*")) == sorted(p.name for p in whole.glob("[!.e]*"))


def process_of(folder, rank):
    """The id of a process of the training in this folder."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = (path / "cmdline").read_text(), (path / "environ").read_text().split("\0")
        except OSError:  # it ended meanwhile
            continue
        if str(folder) in words and {f"RANK={rank}", f"OMPI_COMM_WORLD_RANK={rank}"} & {*variables}:
            return int(path.name)
    raise AssertionError("no such process")
