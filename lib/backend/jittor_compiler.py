"""How Jittor compiles kernels here: without a Python process for each, with a precompiled header, and telling the reader of a
notebook how many are left. The machine code is the same, byte for byte: `tests/test_compiler.py` compares it.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np

from lib.machine import environment
from lib.record import threads

from .jittor_import import jt


def compile_fast() -> None:
    """Let this process compile its kernels with the environment's precompiled header and script, where it has them."""
    prefix = Path(sys.prefix).resolve()
    header, script = environment.header(prefix, "kernel"), environment.compile_script(prefix)
    if jt.flags.cc_type == "g++" and header.is_file() and script.is_file():
        jt.flags.cc_flags += f" {environment.include(header)} "
        jt.flags.python_path = str(script)
    # As many at a time as this process was given cores. Beside others more would only wait, and with one the main thread
    # compiles by itself: a compile thread was once seen to abort, in a thousand tests, for a reason that was not found.
    jt.flags.use_parallel_op_compiler = threads()


# C++'s stderr in a notebook. While kernels compile, the thread that waits for them prints how many are done; it holds the
# interpreter's lock and can tell Python. All else, and all other threads, write to the file descriptor, which the notebook's
# kernel shows as soon as it runs Python again. Text is kept until its line ends: Jittor prints a line piece by piece.
_STDERR = """
#include <cstdio>
#include <iostream>
#include <streambuf>
#include <string>
#include <unistd.h>
extern "C" int PyGILState_Check();
struct NotebookStderr : std::streambuf {
    void (*progress)(int, int);
    explicit NotebookStderr(void (*progress)(int, int)) : progress(progress) {}
    std::string& text() { static thread_local std::string held; return held; }
    int overflow(int c) override {
        text() += char(c);
        return c == '\\n' || c == '\\r' ? sync() : c;
    }
    int sync() override {
        std::string line;
        line.swap(text());
        int done, all;
        if (sscanf(line.c_str(), "Compiling Operators(%d/%d)", &done, &all) == 2 && PyGILState_Check()) progress(done, all);
        else if (line != "\\n" && ::write(2, line.data(), line.size()) < 0) return -1;  // empty lines surround the count
        return 0;
    }
};
"""
_REDIRECT = """
    std::cerr.rdbuf(new NotebookStderr((void (*)(int, int)) in0_p[0]));
    std::cerr.unsetf(std::ios::unitbuf);  // else every piece is flushed
    out_p[0] = 0;
"""


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
        sys.stdout.flush()  # waits for the thread that talks to the reader, which else would not run: C++ holds the lock


_progress = None  # C++ calls it until the process ends


def show_progress_in_notebooks() -> None:
    """In a notebook's kernel, one line says how many kernels are left while they compile."""
    global _progress
    if _progress or not jt.compiler.jit_utils.in_ipynb():
        return
    _progress = _Progress()
    address = ctypes.cast(_progress.called_by_c, ctypes.c_void_p).value
    jt.code([1], "int32", [jt.array(np.array([address]), dtype="int64")], cpu_header=_STDERR, cpu_src=_REDIRECT).sync()
