"""How Jittor compiles a kernel here: three quarters of the time saved, and the reader of a notebook told what is left.

Jittor starts a Python process for each kernel, `utils/asm_tuner.py`, whose work is to rewrite assembly between the marks
@begin and @end of a source; few sources have such a mark. And each source parses Jittor's headers anew. Here a shell
script asks first whether there is a mark, and the headers are precompiled. The machine code is the same, byte for byte:
`tests/test_compiler.py` compares it.
"""
import ctypes
import os
import shlex
import sys
from pathlib import Path

import numpy as np

from .jittor_headers import KERNEL, precompiled, write
from .jittor_import import jt

# Arguments: the tuner, --cc_path=COMPILER, the source, what else the compiler is to be told.
_SCRIPT = """\
#!/bin/sh
case "$1" in */asm_tuner.py)
    if ! grep -q @begin "$3"; then
        compiler="${{2#--cc_path=}}"
        shift 2
        exec "$compiler" "$@"
    fi
esac
HOME={home} exec {python} "$@"
"""


def compile_fast() -> None:
    """Let this process compile its kernels in the way described above; makes what that needs at the first time."""
    if jt.flags.cc_type != "g++":
        return
    flags = shlex.split(jt.compiler.remove_flags(jt.flags.cc_flags, ["-l", "-L", "-Wl,", "-shared"]))
    header = precompiled(KERNEL, Path(jt.flags.cache_path), Path(jt.flags.jittor_path, "src"), jt.flags.cc_path, flags)
    script = header.with_name("compile")
    text = _SCRIPT.format(home=shlex.quote(jt.compiler.jit_utils.home()), python=shlex.quote(jt.flags.python_path))
    if not script.exists() or script.read_text() != text:
        write(script, text)
    jt.flags.cc_flags += f' -include "{header}" '
    jt.flags.python_path = str(script)
    # As many at a time as there are cores: more only wait for each other, and hold memory.
    jt.flags.use_parallel_op_compiler = len(os.sched_getaffinity(0))


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
