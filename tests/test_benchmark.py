"""Clocks that lie are caught, workers that fail get one line, and a real measurement is whole. Both environments."""

import json
import os
import shlex
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lib import backend, record
from lib.benchmark import (
    Bench,
    Case,
    Subject,
    Worker,
    _judgement,
    benchmark,
    clock_fault,
    deferred,
    ratio,
    run,
    spread,
    subject,
    summarise,
    times,
)
from lib.errors import UserError

CASE = Case("nanodet-plus-m_320", 2, "forward", 1, (64, 64), 0)
PAUSE = 0.1  # seconds, so long that a thread that starts late on a busy machine is no part of it


# ------------------------------------------------------------------------------------------------------------ clocks
class Toy:
    """Work of PAUSE seconds done at the call ("eager"), behind it ("asynchronous"), or when asked ("deferred")."""

    def __init__(self, kind):
        self._kind, self._todo = kind, []

    def call(self):
        if self._kind == "eager":
            time.sleep(PAUSE)
        elif self._kind == "deferred":
            self._todo.append(lambda: time.sleep(PAUSE))
        else:
            thread = threading.Thread(target=time.sleep, args=(PAUSE,))
            thread.start()
            self._todo.append(thread.join)

    def wait(self):
        while self._todo:
            self._todo.pop(0)()

    def subject(self, **changed):
        return Subject(**{"call": self.call, "wait": self.wait, "read": lambda result: self.wait(), **changed})


def fault_of(work: Subject, operation="forward"):
    unsynchronised, synchronised = np.median([times(work) for _ in range(3)], 0)
    return clock_fault(operation, deferred(work), unsynchronised, synchronised, PAUSE)


@pytest.mark.parametrize("kind, expected", [("eager", False), ("asynchronous", False), ("deferred", True)])
def test_deferred_work_is_recognised(kind, expected):
    assert deferred(Toy(kind).subject()) is expected


@pytest.mark.parametrize("kind", ["eager", "asynchronous", "deferred"])
def test_honest_clocks_pass(kind):
    assert fault_of(Toy(kind).subject()) is None


@pytest.mark.parametrize("kind", ["asynchronous", "deferred"])
def test_a_synchronisation_that_does_nothing_is_caught(kind):
    assert "does not wait for the work" in fault_of(Toy(kind).subject(wait=lambda: None))


def test_a_synchronisation_inside_the_call_is_caught():
    toy = Toy("deferred")
    # `deferred` is known from work beyond suspicion, as `hello` does it.
    assert deferred(toy.subject())
    medians = np.median([times(toy.subject(call=lambda: (toy.call(), toy.wait()))) for _ in range(3)], 0)
    assert "hides in the call" in clock_fault("forward", True, *medians, PAUSE)


def test_reads_that_another_process_made_long_accuse_no_clock():
    """Of all turns the least counts: a clock that does not wait finds every read long."""
    hello, prepared = {"name": "torch", "deferred": False}, {"first_seconds": 3.0, "read_seconds": [2.0, 2.0]}

    def summary(*reads):
        clocks = {clock: [0.1] for clock in ("unit", "unsynchronised", "synchronised", "others")}
        return summarise(CASE, hello, prepared, [{**clocks, "read": [read]} for read in reads])

    assert summary(2.0, 0.11)["read_ms"] == pytest.approx(110)
    with pytest.raises(UserError, match="does not wait for the work"):
        summary(2.0, 1.0)


def test_the_real_backend_without_its_synchronisation_is_caught_where_it_matters():
    real = subject(CASE)
    real.read(real.call())
    broken = Subject(real.call, lambda: None, real.read)
    read = min(times(Subject(lambda: real.read(real.call()), real.wait, real.read))[1] for _ in range(3))
    unsynchronised, synchronised = np.median([times(broken) for _ in range(3)], 0)
    backend.sync()
    matrix = backend.tensor(np.ones((1024, 1024), np.float32))
    defers = deferred(Subject(lambda: backend.matmul(matrix, matrix), backend.sync, backend.numpy))
    # An eager CPU has nothing left to wait for; a deferring framework must not pass.
    assert (clock_fault("forward", defers, unsynchronised, synchronised, read) is not None) is defers


def test_what_runs_beside_is_seen_and_own_work_is_not():
    bench = Bench(1)
    bench._subject = Toy("eager").subject()
    quiet = bench.sample(0.5)["others"][0]
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(0.2)
        busy = bench.sample(0.5)["others"][0]
        other.terminate()
    assert 0 <= quiet <= os.cpu_count() and busy > 0.3, (quiet, busy)
    bench._subject = Subject(lambda: sum(range(10**6)), lambda: None, lambda _: None)
    assert bench.sample(0.5)["others"][0] < quiet + 0.5


# ------------------------------------------------------------------------------------------------------------- workers
def fake_python(folder, script):
    path = folder / "bin" / "python"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def answering(answer):
    """A worker that gives this one answer and waits."""
    code = f"""pipe.recv_bytes(); pipe.send_bytes({json.dumps(answer).encode()!r}); pipe.recv_bytes()"""
    opened = "import sys; from multiprocessing.connection import Connection; pipe = Connection(int(sys.argv[1]))"
    return f"exec {sys.executable} -c {shlex.quote(f'{opened}; {code}')} $4"


@pytest.mark.parametrize(
    "script, message",
    [
        ("echo 'no module here' >&2; exit 3", "ended with status 3 during hello: no module here"),
        ("kill -9 $$", "ended with status -9 during hello: no message"),
        ("exec sleep 60", "no answer to hello in 0.5 s; stopped"),
        (answering({"error": "model x is unknown"}), "model x is unknown"),
        (answering({"answer": {"name": "other"}}), "this Python runs other"),
    ],
)
def test_a_worker_that_fails_gets_one_line(tmp_path, script, message):
    with pytest.raises(UserError, match=message) as caught:
        run(CASE, {backend.NAME: fake_python(tmp_path, script)}, rounds=1, seconds=0, threads=1, patience=0.5)
    assert "\n" not in str(caught.value)


def test_a_missing_environment_is_named(tmp_path):
    with pytest.raises(UserError, match="python: the .* worker can't start .*make envs"):
        run(CASE, {backend.NAME: tmp_path / "bin" / "python"}, rounds=1, seconds=0, threads=1)


def test_a_silent_worker_is_gone_afterwards(tmp_path):
    with Worker(backend.NAME, fake_python(tmp_path, "exec sleep 60"), 1, patience=0.1) as worker:
        process = worker._process.pid
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_form_that_cannot_be_judged_loses_no_times():
    with Worker(backend.NAME, sys.executable, 1) as worker:  # it has prepared nothing: an error that ends it
        assert "ended with status 1 during judge: AttributeError" in _judgement(worker)["unable"]


def test_a_user_error_inside_a_worker_comes_back(tmp_path):
    with Worker(backend.NAME, sys.executable, 1) as worker:
        with pytest.raises(UserError, match="model 'none' is unknown"):
            worker.ask("prepare", case={**CASE.__dict__, "model": "none"})
        assert worker.ask("hello")["name"] == backend.NAME  # and it goes on


# ------------------------------------------------------------------------------------------------------------- results
def test_spread_and_ratio():
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "samples": 5}
    own = [{"synchronised": [2.0, 2.0]}, {"synchronised": [30.0]}]
    other = [{"synchronised": [1.0]}, {"synchronised": [10.0, 10.0, 99.0]}]
    assert ratio(own, other) == {"median": 2.5, "q1": 2.25, "q3": 2.75, "samples": 2}  # turn by turn: 2 and 3


def test_a_measurement_is_whole(tmp_path):
    paths = benchmark(
        CASE.model,
        {backend.NAME: sys.executable},
        tmp_path,
        classes=2,
        size=(64, 64),
        batches=(1,),
        train_batches=(2,),
        rounds=2,
        seconds=0.0,
    )
    written = record.read(paths[0])
    assert written.side == written.provenance.framework == backend.NAME and written.stage == "speed"
    assert written.provenance.versions[backend.NAME] == backend.VERSION
    forward, train = written.fields["cases"]
    assert [forward["operation"], train["operation"]] == ["forward", "train"]
    assert [forward["form"], train["form"], train["form_judged"]] == ["inference", "training", None]
    assert forward["form_judged"]["worst"]["passed"] and forward["form_judged"]["rows"] > 50
    assert all(len(case["others_cores"]) == 2 and min(case["others_cores"]) >= 0 for case in (forward, train))
    for case in (forward, train):
        clock, units = case["synchronised_ms"], case["units"]
        assert (
            clock["q1"] <= clock["median"] <= clock["q3"] and clock["samples"] == sum(map(len, case["turns_ms"])) >= 2
        )
        assert case["images_per_second"] == pytest.approx(1e3 * case["batch"] / clock["median"])
        assert units == pytest.approx(clock["median"] / case["unit_ms"]["median"])
        assert case["unsynchronised_ms"]["median"] <= clock["median"] and case["first_call_seconds"] > 0
        assert case["memory"]["idle_mib"] < case["memory"]["peak_mib"]
        operators = case["slowest_operators"]
        assert 0 < len(operators) <= 10 and operators == sorted(operators, key=lambda row: -row[1])
    assert forward["synchronised_ms"]["median"] < train["synchronised_ms"]["median"]
    assert forward["memory"]["peak_mib"] < train["memory"]["peak_mib"]


@pytest.mark.skipif(backend.NAME != "torch", reason="Jittor reports own times itself")
def test_own_times_are_those_of_pytorchs_table():
    import torch

    from lib.backend.torch import _own_times

    start = torch.ones(64, 64, requires_grad=True)
    with torch.autograd.profiler.profile(use_device=None) as run:
        torch.autograd.grad(torch.softmax(start @ start, 1).sum(), [start])
    found = {name: (own, calls) for name, own, calls in _own_times(run.kineto_results.events())}
    table = {row.key: (row.self_cpu_time_total / 1e3, row.count) for row in run.key_averages()}
    assert len(table) > 10 and found.keys() == table.keys()
    for name, (own, calls) in table.items():
        assert found[name] == (pytest.approx(own, abs=1e-6), calls), name
