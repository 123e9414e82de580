"""Import Jittor and undo what its import does to the process."""

import atexit
import contextlib
import fcntl
import os
import random
import signal
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lib.errors import UserError
from lib.machine import environment


def _import_jittor():
    """The module `jittor`, with the process as it was before.

    The import reseeds `random` and NumPy, turns TLS verification off, replaces `sys.exit` and `sys.excepthook`,
    raises the recursion limit, makes Ctrl-C end the process without `finally`, and makes a child that a signal
    killed kill its parent. Jittor keys its cache by the path of its package: links are resolved first, so that
    every checkout finds the same kernels. A terminal's Ctrl-C reaches the processes that the import forks to compile,
    too: one that died of it would hold the lock that this process waits for when it ends, so they are deaf to it.
    In a notebook Jittor hands what C++ prints to Python, from its compile threads too, which do not hold the
    interpreter's lock: the process dies (SIGSEGV below `system_popen`). It is told that this is none; what a
    notebook's reader sees instead, `jittor_compiler` says.
    """
    os.register_at_fork(after_in_child=_deaf_to_interrupts)
    sys.path[:] = [os.path.realpath(p) if "site-packages" in p else p for p in sys.path]
    os.environ.setdefault("cache_name", "alignment")
    os.environ.setdefault("log_silent", "1")
    # Its MPI operators only where mpirun started this process: else any import would compile and load them.
    os.environ["use_mpi"] = str(int("OMPI_COMM_WORLD_SIZE" in os.environ))
    if os.environ.get("ALIGN_DEVICE", "cpu") == "cpu":
        os.environ["nvcc_path"] = ""  # a broken CUDA toolkit must not stop a CPU run
    core = environment.header(Path(sys.prefix).resolve(), "core")
    if core.is_file():
        os.environ.setdefault("cc_flags", environment.include(core))
    for precision in (np.float32, np.float64):
        np.finfo(precision)  # NumPy keeps it; asked for the first time where Jittor flushes subnormals, it warns
    streams = random.getstate(), np.random.get_state()
    tls, hooks, limit = ssl._create_default_https_context, (sys.exit, sys.excepthook), sys.getrecursionlimit()
    with _home_of_this_environment():
        cache = Path.home() / ".cache" / "jittor"
        if cache.exists() and not os.access(cache, os.W_OK | os.X_OK):  # Jittor ends in a traceback of its lock
            raise UserError(f"{cache}: can't be written, and Jittor compiles there: set ALIGN_HOME to another folder")
        import jittor_utils

        jittor_utils.is_in_ipynb = False
        with _alone_while_the_core_compiles(Path(jittor_utils.cache_path)):
            try:
                import jittor
            except SystemExit:
                _start_again()
    _end_compile_pool(jittor_utils)
    random.setstate(streams[0])
    np.random.set_state(streams[1])
    ssl._create_default_https_context = tls
    sys.exit, sys.excepthook = hooks
    sys.setrecursionlimit(limit)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    jittor.flags.cc_flags = jittor.flags.cc_flags.replace(environment.include(core), "")  # a kernel has another
    # -Ofast alone makes NaN == NaN true and 1/0 NaN; the macro keeps the fast vector exp that -Ofast brings.
    jittor.flags.cc_flags += " -fno-finite-math-only -D__FAST_MATH__ "
    return jittor


def _deaf_to_interrupts() -> None:
    """In a child that is forked before the import is over."""
    if "jt" not in globals():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextlib.contextmanager
def _home_of_this_environment() -> Iterator[None]:
    """Jittor looks below $HOME for oneDNN and its kernels: those of an environment in `<home>/.cache/jittor/envs` lie
    in that home, whatever the variables of who started this process say."""
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(environment.home_of(Path(sys.prefix).resolve()))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("HOME", None)
        else:
            os.environ["HOME"] = before


@contextlib.contextmanager
def _alone_while_the_core_compiles(cache: Path) -> Iterator[None]:
    """Jittor takes a half-compiled core of another process for an outdated one, and ends."""
    ready = any(cache.glob("jittor_core*.key"))  # written last
    with open(cache.parent / "import.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH if ready else fcntl.LOCK_EX)
        yield


def _start_again() -> None:
    """Jittor has compiled an outdated part of its core anew and ended with exit code 0, its work not begun."""
    if "ipykernel" in sys.modules or os.environ.get("ALIGN_CORE_RENEWED"):
        raise RuntimeError(
            "Jittor has compiled an outdated part of its core anew: restart this process and run it again"
        )
    os.environ["ALIGN_CORE_RENEWED"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _end_compile_pool(jittor_utils) -> None:
    """Every import forks processes that compile the core, if only to find it compiled; they would stay, and a
    notebook's kernel would wait for them 2.4 s when it ends. Whoever compiles later gets new ones."""
    if jittor_utils.pool_size:
        atexit.unregister(jittor_utils.pool_cleanup)
        jittor_utils.pool_cleanup()
        jittor_utils.pool_size = 0


jt = _import_jittor()
