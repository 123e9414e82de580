"""How Jittor compiles kernels here: without a Python process for each, with a precompiled header, and telling a
notebook's reader how many are left. The machine code is the same, byte for byte: `tests/test_compiler.py` compares it.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np

from lib.machine import environment
from lib.record import threads

from .jittor_import import jt
from .kernels import read


def compile_fast() -> None:
    """Let this process compile its kernels with the environment's precompiled header and script, where it has them."""
    prefix = Path(sys.prefix).resolve()
    header, script = environment.header(prefix, "kernel"), environment.compile_script(prefix)
    if jt.flags.cc_type == "g++" and header.is_file() and script.is_file():
        jt.flags.cc_flags += f" {environment.include(header)} "
        jt.flags.python_path = str(script)
    # As many at a time as this process was given cores. Beside others more would only wait, and with one the main
    # thread compiles by itself: a compile thread was once seen to abort, in a thousand tests, for a reason not found.
    jt.flags.use_parallel_op_compiler = threads()


class _Progress:
    """One line below the cell that waits for kernels."""

    def __init__(self) -> None:
        self.cell, self.line, self.compiled = None, None, 0
        self.called_by_c = ctypes.PYFUNCTYPE(None, ctypes.c_int, ctypes.c_int)(self.show)

    def show(self, done: int, total: int) -> None:
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython().execution_count != self.cell:
            self.cell, self.line, self.compiled = get_ipython().execution_count, None, 0
        text = f"Jittor compiles kernels: {total - done} of {total} left"
        if done == total:
            self.compiled += total
            text = f"Jittor compiled {self.compiled} kernels, and keeps them"
        content = {"text/plain": text}
        if self.line is None:
            self.line = display(content, raw=True, display_id=True)
        else:
            self.line.update(content, raw=True)
        sys.stdout.flush()  # waits for the thread that talks to the reader: else it would not run, C++ holds the lock


_progress = None  # C++ calls it until the process ends


def show_progress_in_notebooks() -> None:
    """In a notebook's kernel, one line says how many kernels are left while they compile."""
    global _progress
    if _progress or not jt.compiler.jit_utils.in_ipynb():
        return
    _progress = _Progress()
    address = ctypes.cast(_progress.called_by_c, ctypes.c_void_p).value
    read("notebook")["redirect"]([jt.array(np.array([address]), dtype="int64")], [1], dtypes=["int32"])[0].sync()
