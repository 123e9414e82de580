"""Training in several processes, each with its part of every batch, as one process would train on the whole.

The processes are one: gradients and losses are sums over them, batch norms take the statistics of all their images,
normalisers count all their boxes, and what is drawn at random is drawn for the whole batch. So it is the recipe of one
device with that batch, which is what NanoDet-Plus publishes (its code for several devices has neither). RT-DETR and
Gold-YOLO publish several with synchronised batch norms; where they divide otherwise, `lib.losses` says so. Gold-YOLO
then also has its rate divided, and its gradient multiplied, by the number of processes: ours is the recipe's for the
whole batch, and the decay and the warm-up of biases, which that product does not reach, are those of one device.

The launchers are the frameworks': torchrun and mpirun. Process 0 alone writes and evaluates; the others wait.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import IO, Any

import numpy as np

from lib import backend
from lib.errors import UserError, of_a_user
from lib.record import threads

ERROR = "error: "
# Where passing on stops: an error of a process, or what a launcher says of its end.
LAST_WORDS = re.compile(rf"{ERROR}|Traceback|-----|[EW]\d{{4}} \d\d:")
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "OMPI_MCA_mpi_yield_when_idle": "1"}


def check(processes: int, batch: int) -> None:
    """UserError unless so many processes can have equal parts of a batch."""
    if processes < 1 or batch % processes:
        raise UserError(
            f"training: {processes} processes can't share a batch of {batch} equally: give a multiple of "
            "--processes as --batch"
        )


def launched() -> bool:
    """Whether this is one of several processes."""
    return backend.LAUNCHED in os.environ


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `python -m lib` with these arguments in so many processes, until all have ended.

    UserError with one line of the process that failed first, or that was killed.
    """
    command = [*backend.launcher(processes), "-m", "lib", *arguments]
    cores = {"OMP_NUM_THREADS": str(max(1, threads() // processes))}
    variables = {**cores, **QUIET, **os.environ}
    # A session of its own: Ctrl-C reaches this process alone, which ends the others.
    child = subprocess.Popen(
        command, env=variables, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    with _ended_with_this(child):
        said = _relayed(child.stderr)
        code = child.wait()
    if code:
        raise UserError(_reason(said, processes) or f"a process of the training ended with code {code}:\n{said}")
    print(said, end="", file=sys.stderr)


@contextmanager
def _ended_with_this(child: subprocess.Popen) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    except BaseException:
        print(file=sys.stderr)  # ends the line of a bar
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        child.terminate()  # torchrun and mpirun pass it on, and kill what does not end
        child.wait()


def _relayed(stream: IO[bytes]) -> str:
    """Pass on what is written up to the first of the last words; give back these, and all that follows. Those that come
    before a bar has begun may be a launcher's warning: they are kept, and do not end the bar."""
    pieces = iter(lambda: os.read(stream.fileno(), 1 << 16).decode(errors="replace"), "")
    early, begun = "", False
    for piece in pieces:
        found, begun = LAST_WORDS.search(piece), begun or "\r" in piece
        if found and begun:
            print(piece[: found.start()], file=sys.stderr)  # and so ends the line of a bar
            return early + piece[found.start() :] + "".join(pieces)
        if found or (early and not begun):
            early += piece
        else:
            print(piece, end="", file=sys.stderr, flush=True)
    return early


def _reason(said: str, processes: int) -> str:
    """The line of what ended the training; empty where nobody says it."""
    died = [(int(rank), signal.Signals(int(number))) for rank, number in re.findall(backend.DIED, said, re.DOTALL)]
    died.sort(key=lambda one: one[1] == signal.SIGTERM)  # which launchers send to the others
    errors = re.findall(f"{ERROR}(.*)", said)
    if died and (died[0][1] != signal.SIGTERM or not errors):
        rank, number = died[0]
        return (
            f"training: process {rank} of {processes} was ended by {number.name}, and the others with it; the same "
            "command continues from the last checkpoint"
        )
    return errors[0] if errors else ""


@contextmanager
def member(processes: int) -> Iterator[None]:
    """This process's part of what `launch` started; it ends here if it fails."""
    try:
        with ExitStack() as quiet:
            backend.join()
            if backend.world() != processes:
                raise UserError(
                    f"training: --processes {processes} in one of {backend.world()} processes: make them one"
                )
            if backend.rank():
                nowhere = quiet.enter_context(open(os.devnull, "w"))
                quiet.enter_context(redirect_stdout(nowhere))
                quiet.enter_context(redirect_stderr(nowhere))
            yield
    except ConnectionError:  # the launcher knows whose fault it is
        os._exit(1)
    except Exception as error:
        said = of_a_user(error)
        if said is None:
            print(f"process {backend.rank()}: {traceback.format_exc()}", file=sys.stderr)
        print(f"{ERROR}{said or f'process {backend.rank()} failed as shown above'}", file=sys.stderr, flush=True)
        os._exit(1)  # at Python's own end MPI would wait for the others, who wait for this one


class Rows:
    """The numbers that a generator draws for the whole batch, row by row of this process."""

    def __init__(self, generator: np.random.Generator):
        self._generator = generator

    def random(self, shape: int | tuple[int, ...], dtype: type = np.float64) -> np.ndarray:
        return self._own(self._generator.random(self._whole(shape), dtype))

    def integers(self, low: int, high: int | None = None, shape: tuple[int, ...] | None = None) -> Any:
        """Without a shape one number for all."""
        if shape is None:
            return self._generator.integers(low, high)
        return self._own(self._generator.integers(low, high, self._whole(shape)))

    def _whole(self, shape: int | tuple[int, ...]) -> tuple[int, ...]:
        rows, *others = (shape,) if isinstance(shape, int) else shape
        return rows * backend.world(), *others

    def _own(self, drawn: np.ndarray) -> np.ndarray:
        return np.split(drawn, backend.world())[backend.rank()]


def agree(arrays: Iterable[np.ndarray], otherwise: str) -> None:
    """UserError unless every process has the same arrays; all must ask."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array))
    column = backend.all_gather([int.from_bytes(found.digest()[:6], "big")])[:, 0]
    if others := np.flatnonzero(column != column[0]).tolist():
        raise UserError(f"training: process {others[0]} {otherwise}")
