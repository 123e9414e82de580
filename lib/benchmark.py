"""Speed and memory of one model, measured in several environments side by side.

Each case (operation, batch) starts one fresh worker process per environment and asks them in turn, A B A B: what
disturbs the machine disturbs both. All clocks are read in the worker. A worker is `python -m lib.benchmark THREADS
PIPE`, commanded by JSON on an inherited pipe.

Inference is timed in the form in which models are run (`lib.models.inference`), judged in the same process once the
clocks have stopped; `--form training` times the model as it is trained. Each turn says what the machine's other
processes took meanwhile, and multiplies matrices as the models do, on their threads, to have a unit.

Three clocks, so that the harness can doubt itself: *unsynchronised* stops when the call returns, *synchronised* after
`backend.sync()`, *read* when the result's values have arrived, which no framework can do before the work is done.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lib import backend, losses, models, record
from lib.errors import UserError
from lib.machine import environment
from lib.models.inference import inference_form
from lib.training.loop import Trainer
from lib.training.schedule import recipe

UNIT = 1024  # side of the float32 matrix product that makes times of two machines comparable
BOXES = 5  # per image of a training step
STEPS = 1000  # an epoch's length, which only sets the learning rate
SLOWEST = 10  # operators listed
PATIENCE = 900.0  # seconds for an answer: a cold compilation is the longest
EQUAL = 0.9  # a ratio above this is "equal", half of it below is "far less"


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    model: str
    classes: int
    operation: str  # "forward": inference on a batch; "train": one step, from images to averaged weights
    batch: int
    size: tuple[int, int]  # height, width
    seed: int
    form: str = "inference"  # of a model whose inference is timed: "inference" or "training"


# ----------------------------------------------------------------------------------------------- inside a worker
@dataclass(frozen=True)
class Subject:
    """Work whose time is taken: `call` asks for it, `wait` returns when it is done, `read` fetches call's result."""

    call: Callable[[], Any]
    wait: Callable[[], None]
    read: Callable[[Any], Any]


def subject(case: Case) -> Subject:
    """The case's work, on seeded images and boxes."""
    draw = np.random.Generator(np.random.PCG64(case.seed))
    height, width = case.size
    images = draw.standard_normal((case.batch, 3, height, width), np.float32)
    model = models.build(case.model, case.classes, case.seed)
    if case.operation == "forward":
        if case.form == "inference":
            model = inference_form(model.eval())
        model.eval()
        given = backend.tensor(images)

        def forward():
            with backend.no_grad():
                return model(given)

        return Subject(forward, backend.sync, _arrays)
    targets = [_target(draw, case) for _ in range(case.batch)]
    criterion = losses.build(case.model, case.classes)
    groups = models.parameter_groups(case.model, model)
    trainer = Trainer(model, criterion, recipe(case.model), STEPS, groups, case.seed)
    return Subject(
        partial(trainer.issue, images, targets), backend.sync, lambda asked: backend.floats([*asked.values()])
    )


def _arrays(outputs: Any) -> list[np.ndarray]:
    """The values of what a model gives in eval(): a tensor or a dict of them."""
    return [backend.numpy(value) for value in (outputs.values() if isinstance(outputs, dict) else [outputs])]


def _target(draw: np.random.Generator, case: Case) -> dict[str, np.ndarray]:
    corner, extent = draw.random((2, BOXES, 2), np.float32) * 0.5 * np.float32(case.size[::-1])
    boxes = np.concatenate([corner, corner + extent], 1)  # (BOXES, 4)
    return {"boxes": boxes, "labels": draw.integers(0, case.classes, BOXES)}


def times(measured: Subject) -> tuple[float, float]:
    """(unsynchronised, synchronised) seconds of one call that starts with nothing pending."""
    measured.wait()
    start = time.perf_counter()
    result = measured.call()
    returned = time.perf_counter()
    measured.wait()
    done = time.perf_counter()
    del result
    return returned - start, done - start


def read_time(measured: Subject) -> float:
    """Seconds of one call until its values have arrived."""
    measured.wait()
    start = time.perf_counter()
    measured.read(measured.call())
    return time.perf_counter() - start


def deferred(work: Subject) -> bool:
    """Whether `work` waits until its result is wanted, instead of running at the call or behind it.

    After the call it gets three times the time it needs; what is left to do then was not begun. Known by the read
    clock alone, so that a broken `wait` can't hide it.
    """
    read_time(work)
    whole = min(read_time(work) for _ in range(3))
    left = []
    for _ in range(3):
        result = work.call()
        time.sleep(3 * whole)
        start = time.perf_counter()
        work.read(result)
        left.append(time.perf_counter() - start)
    return min(left) > whole / 2


def clock_fault(
    operation: str, is_deferred: bool, unsynchronised: float, synchronised: float, read: float
) -> str | None:
    """Why these times (seconds) can't be true, or None.

    synchronised, unsynchronised: medians; read: the least of a few.
    """
    if synchronised < EQUAL / 2 * read:
        return (
            f"{operation}: the synchronised clock stops after {1e3 * synchronised:.3f} ms, but the result takes "
            f"{1e3 * read:.3f} ms to arrive: it does not wait for the work"
        )
    if is_deferred and unsynchronised > EQUAL * synchronised:
        return (
            f"{operation}: unsynchronised {1e3 * unsynchronised:.3f} ms equals synchronised {1e3 * synchronised:.3f} "
            "ms, though this framework begins nothing before it is asked to: a synchronisation hides in the call"
        )
    return None


class Bench:
    """Answers the parent's requests, one method per request."""

    def __init__(self, threads: int):
        backend.set_threads(threads)
        self._idle = memory("VmRSS")  # the framework imported, nothing computed
        matrix = backend.tensor(np.ones((UNIT, UNIT), np.float32))
        self._unit = Subject(lambda: backend.matmul(matrix, matrix), backend.sync, backend.numpy)
        read_time(self._unit)

    def hello(self) -> dict[str, Any]:
        """Who answers, and whether it defers work."""
        return {
            "name": backend.NAME,
            "version": backend.VERSION,
            "device": backend.device(),
            "cache": backend.cache_path(),
            "deferred": deferred(self._unit),
        }

    def prepare(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Build the case; time its first call, which compiles and allocates; warm it by two calls that are read."""
        self._case = Case(**{**case, "size": tuple(case["size"])})
        self._subject = subject(self._case)
        first = times(self._subject)[1]
        return {"first_seconds": first, "read_seconds": [read_time(self._subject) for _ in range(2)]}

    def sample(self, seconds: float) -> dict[str, list[float]]:
        """Calls one after another until `seconds` have passed, at least one; a unit product and a read beside them."""
        busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
        unit = times(self._unit)[1]
        pairs = [times(self._subject)]
        while time.perf_counter() - start < seconds:
            pairs.append(times(self._subject))
        unsynchronised, synchronised = map(list, zip(*pairs))
        read = read_time(self._subject)
        others = busy_seconds() - busy - (time.process_time() - own)
        return {
            "unit": [unit],
            "unsynchronised": unsynchronised,
            "synchronised": synchronised,
            "read": [read],
            "others": [max(others, 0.0) / (time.perf_counter() - start)],
        }

    def memory(self) -> dict[str, Any]:
        """The largest memory so far: of the process by the kernel's own meter, and of the device's allocator."""
        device = backend.peak_device_memory()
        return {"idle_mib": self._idle, "peak_mib": memory("VmHWM"), "device_peak_mib": device and device / 2**20}

    def judge(self) -> dict[str, Any] | None:
        """Whether the form that was timed is the same function: see `judged`; None where it is the model itself."""
        timed = self._case.operation == "forward" and self._case.form == "inference"
        return judged(self._case.model) if timed else None

    def profile(self) -> list[tuple[str, float, int]]:
        """The slowest operators of one call: name, own milliseconds, calls."""
        kept = []  # a result nobody holds is never computed where work is deferred
        return backend.profile(lambda: kept.append(self._subject.call()))[:SLOWEST]


def judged(name: str) -> dict[str, Any]:
    """What the gate says of the inference form of the model with seeded weights: the worst row, of how many."""
    from lib.alignment import capture, form, references  # once memory is known: this is the judge's own

    rows = form.judged(name, capture.seeded_model(name, references.case(name, "forward")).eval())
    worst = max(rows, key=lambda row: row.ratio)
    return {"worst": asdict(worst), "rows": len(rows)}


def busy_seconds() -> float:
    """What all processors of the machine have worked so far, for anybody, by /proc/stat."""
    ticks = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # but idle and waiting for a disk


def memory(meter: str) -> float:
    """MiB that /proc states for this process: VmRSS (now) or VmHWM (largest since its start)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{meter}:")) / 1024


def serve(threads: int, pipe: Connection) -> None:
    """Answer requests until the process is ended."""
    bench = Bench(threads)
    while True:
        request = json.loads(pipe.recv_bytes())
        try:
            answer = {"answer": getattr(bench, request.pop("do"))(**request)}
        except UserError as error:
            answer = {"error": str(error)}
        pipe.send_bytes(json.dumps(answer).encode())


# ------------------------------------------------------------------------------------------------ in the parent
class Worker:
    """A worker process; a context manager, which ends it."""

    def __init__(self, side: str, python: str | Path, threads: int, patience: float = PATIENCE):
        self.side, self._patience = side, patience
        self._stack = ExitStack()
        self._said = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - __exit__ closes it
        self._pipe, theirs = map(self._stack.enter_context, Pipe())
        command = [str(python), "-m", "lib.benchmark", str(threads), str(theirs.fileno())]
        streams = {"stdin": subprocess.DEVNULL, "stdout": self._said, "stderr": self._said}
        variables, handed = _variables(side, python, threads), [theirs.fileno()]
        try:
            started = subprocess.Popen(command, cwd=record.ROOT, env=variables, pass_fds=handed, **streams)
            self._process = self._stack.enter_context(started)
        except OSError as error:
            self._stack.close()
            raise UserError(f"{python}: the {side} worker can't start ({error.strerror}); run `make envs`") from error
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # TERM and no other signal: Jittor takes any other for its own end
        self._stack.close()

    def ask(self, do: str, **request: Any) -> Any:
        """The worker's answer; UserError if it reports one, ends, or is silent for longer than patience."""
        try:
            self._pipe.send_bytes(json.dumps({"do": do, **request}).encode())
            if not self._pipe.poll(self._patience):
                raise UserError(f"{self.side} worker: no answer to {do} in {self._patience:g} s; stopped")
            answer = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            status = self._process.wait()
            self._said.seek(0)
            said = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
            last = said[-1] if said else "no message"
            raise UserError(f"{self.side} worker: ended with status {status} during {do}: {last}") from None
        if "error" in answer:
            raise UserError(f"{self.side} worker: {answer['error']}")
        return answer["answer"]


def _variables(side: str, python: str | Path, threads: int) -> dict[str, str]:
    """The environment's own variables, the same number of threads for every worker; they wait as this process does."""
    folder = Path(python).parent.parent
    alike = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**environment.process_environment(environment.named(side), folder), **alike}


def benchmark(
    model: str,
    executables: Mapping[str, str | Path],
    folder: str | Path,
    *,
    classes: int = 80,
    size: tuple[int, int] | None = None,
    train_size: tuple[int, int] | None = None,
    batches: Sequence[int] = (1, 8),
    train_batches: Sequence[int] = (8,),
    rounds: int = 5,
    seconds: float = 0.5,
    threads: int = 1,
    seed: int = 0,
    form: str = "inference",
) -> list[Path]:
    """Measure inference and training steps in every environment and write one record per side (stage "speed").

    executables: side ("jittor", "torch") -> its Python. size, train_size: of the input in
        inference and in training steps, by default the published one.
    form: in which inference is timed, "inference" or "training"; a step knows one alone.
    seconds: how long one environment is asked before it is the other's turn; a round is one turn of each.
    Returns the records' paths in the order of the executables.
    """
    sizes = {"forward": size or models.input_size(model), "train": train_size or models.input_size(model)}
    plan = [("forward", batch) for batch in batches] + [("train", batch) for batch in train_batches]
    sides = {side: SimpleNamespace() for side in executables}  # what a worker says of itself, as `lib.backend` does
    with ExitStack() as stack:
        records = {
            name: stack.enter_context(record.measure("speed", model, folder, seed=seed, side=side))
            for name, side in sides.items()
        }
        for number, (operation, batch) in enumerate(plan):
            case = Case(
                model, classes, operation, batch, sizes[operation], seed, form if operation == "forward" else "training"
            )
            for side, (hello, result) in run(case, executables, rounds, seconds, threads, judge=number == 0).items():
                sides[side].NAME, sides[side].VERSION = hello["name"], hello["version"]
                sides[side].device, sides[side].cache_path = partial(hello.get, "device"), partial(hello.get, "cache")
                fields = records[side].fields
                fields.update(threads=threads, rounds=rounds, seconds_per_turn=seconds, deferred=hello["deferred"])
                fields.setdefault("cases", []).append(result)
    return [records[side].path for side in sides]


def input_sizes(sides: Sequence[int]) -> dict[str, tuple[int, int]]:
    """`benchmark`'s size and train_size from the sides of square inputs; none for the published ones."""
    return {name: (side, side) for name, side in zip(("size", "train_size"), sides)}


def run(
    case: Case,
    executables: Mapping[str, str | Path],
    rounds: int,
    seconds: float,
    threads: int,
    patience: float = PATIENCE,
    judge: bool = True,
) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Measure one case: side -> (what the worker says about itself, plain values for the record).

    judge: whether the form that is timed is judged, which takes longer than its times and is the same for every batch.

    UserError where a worker fails or its clocks contradict each other.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(side, python, threads, patience)) for side, python in executables.items()]
        hellos = {worker.side: worker.ask("hello") for worker in workers}
        for side, hello in hellos.items():
            if hello["name"] != side:
                raise UserError(f"executables: {side}: this Python runs {hello['name']}; name the right environment")
        prepared = {worker.side: worker.ask("prepare", case=asdict(case)) for worker in workers}
        turns: dict[str, list[dict[str, list[float]]]] = {worker.side: [] for worker in workers}
        for _ in range(rounds):
            for worker in workers:
                turns[worker.side].append(worker.ask("sample", seconds=seconds))
        # Memory first: profiling takes some for itself.
        ends = {
            worker.side: {
                "memory": worker.ask("memory"),
                "slowest_operators": worker.ask("profile"),
                "form_judged": _judgement(worker) if judge else None,
            }
            for worker in workers
        }
    found = {}
    for side, hello in hellos.items():
        ratios = {other: ratio(turns[side], turns[other]) for other in hellos if other != side}
        found[side] = hello, summarise(case, hello, prepared[side], turns[side]) | ends[side] | {"ratio_to": ratios}
    return found


def _judgement(worker: Worker) -> dict[str, Any] | None:
    """As `Bench.judge` gives it, or why it couldn't: the times are measured by then and are kept."""
    try:
        return worker.ask("judge")
    except UserError as error:
        return {"unable": str(error)}


def summarise(case: Case, hello: Mapping, prepared: Mapping, turns: Sequence[Mapping]) -> dict[str, Any]:
    """Medians, spreads and every sample of one side's turns; UserError where the clocks contradict each other."""
    clocks = {clock: [value for turn in turns for value in turn[clock]] for clock in turns[0]}
    medians = {clock: statistics.median(values) for clock, values in clocks.items()}
    # The least of all turns: another process can make the reads of one moment long, and none can make them short.
    read, others = min([*prepared["read_seconds"], *clocks.pop("read")]), clocks.pop("others")
    fault = clock_fault(case.operation, hello["deferred"], medians["unsynchronised"], medians["synchronised"], read)
    if fault:
        raise UserError(f"benchmark: {hello['name']}, batch {case.batch}: {fault}")
    return {
        "operation": case.operation,
        "batch": case.batch,
        "size": list(case.size),
        "form": case.form,
        "classes": case.classes,
        "first_call_seconds": prepared["first_seconds"],
        **{f"{clock}_ms": spread([1e3 * value for value in values]) for clock, values in clocks.items()},
        "read_ms": 1e3 * read,
        "images_per_second": case.batch / medians["synchronised"],
        "units": medians["synchronised"] / medians["unit"],
        "others_cores": others,
        "turns_ms": [[1e3 * value for value in turn["synchronised"]] for turn in turns],
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": float(middle), "q1": float(low), "q3": float(high), "samples": len(values)}


def ratio(own: Sequence[Mapping], other: Sequence[Mapping]) -> dict[str, float]:
    """Own synchronised time over the other's, from the medians of the turns that lie side by side."""
    medians = ([statistics.median(turn["synchronised"]) for turn in turns] for turns in (own, other))
    return spread([a / b for a, b in zip(*medians, strict=True)])


if __name__ == "__main__":
    serve(int(sys.argv[1]), Connection(int(sys.argv[2])))
