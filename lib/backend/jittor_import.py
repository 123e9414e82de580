"""Import Jittor and undo what its import does to the process."""
import os
import random
import signal
import ssl
import sys
import threading

import numpy as np


def _import_jittor():
    """The module `jittor`, with the process as it was before.

    The import reseeds `random` and NumPy, turns TLS verification off, replaces `sys.exit` and `sys.excepthook`,
    raises the recursion limit, makes Ctrl-C end the process without `finally`, and makes a child that a signal
    killed kill its parent. Jittor keys its cache by the path of its package: links are resolved first, so that
    every checkout finds the same kernels. A terminal's Ctrl-C reaches the processes that the import forks to compile,
    too: one that died of it would hold the lock that this process waits for when it ends, so they are deaf to it.
    """
    os.register_at_fork(after_in_child=_deaf_to_interrupts)
    sys.path[:] = [os.path.realpath(p) if "site-packages" in p else p for p in sys.path]
    os.environ.setdefault("cache_name", "alignment")
    os.environ.setdefault("log_silent", "1")
    if os.environ.get("ALIGN_DEVICE", "cpu") == "cpu":
        os.environ["nvcc_path"] = ""  # a broken CUDA toolkit must not stop a CPU run
    streams = random.getstate(), np.random.get_state()
    tls, hooks, limit = ssl._create_default_https_context, (sys.exit, sys.excepthook), sys.getrecursionlimit()
    import jittor
    random.setstate(streams[0])
    np.random.set_state(streams[1])
    ssl._create_default_https_context = tls
    sys.exit, sys.excepthook = hooks
    sys.setrecursionlimit(limit)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # -Ofast alone makes NaN == NaN true and 1/0 NaN; the macro keeps the fast vector exp that -Ofast brings.
    jittor.flags.cc_flags += " -fno-finite-math-only -D__FAST_MATH__ "
    return jittor


def _deaf_to_interrupts() -> None:
    """In a child that is forked before the import is over."""
    if "jt" not in globals():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


jt = _import_jittor()
