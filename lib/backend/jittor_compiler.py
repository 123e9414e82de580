"""How Jittor compiles a kernel here: three quarters of the time saved, and the reader of a notebook told what is left.

Jittor starts a Python process for each kernel, `utils/asm_tuner.py`, whose work is to rewrite assembly between the marks
@begin and @end of a source; few sources have such a mark. And each source parses Jittor's headers anew. Here a shell
script asks first whether there is a mark, and the headers are precompiled. The machine code is the same, byte for byte:
`tests/test_compiler.py` compares it.
"""
import ctypes
import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from .jittor_import import jt

# What nearly every kernel includes. Few: a name that a kernel did not ask for may clash with one of its own.
_HEADERS = """\
#define JIT 1
#define JIT_cpu 1
#include <algorithm>
#include <assert.h>
#include <cmath>
#include <limits>
#include "executor.h"
#include "fused_op.h"
#include "misc/cpu_math.h"
#include "misc/cuda_flags.h"
#include "op.h"
#include "ops/op_register.h"
#include "var.h"
"""

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
    """Let this process compile its kernels in the way described above; makes what that needs at the first time.

    Both files lie beside the kernels in a folder named by all that shapes them: the compiler, its flags, Jittor's headers.
    The folder's path is part of the command by which Jittor recognises a kernel, so other headers are other kernels.
    """
    if jt.flags.cc_type != "g++":
        return
    flags = shlex.split(jt.compiler.remove_flags(jt.flags.cc_flags, ["-l", "-L", "-Wl,", "-shared"]))
    sources = Path(jt.flags.jittor_path, "src")
    digest = hashlib.sha256(f"{_HEADERS}{_SCRIPT}{flags}{_identity(Path(jt.flags.cc_path))}".encode())
    for header in sorted(sources.rglob("*.h")):
        digest.update(header.read_bytes())
    folder = Path(jt.flags.cache_path, f"headers-{digest.hexdigest()[:10]}")
    header, script = folder / "kernel.h", folder / "compile"
    if not script.exists():  # written last
        folder.mkdir(exist_ok=True)
        _write(header, _HEADERS)
        _precompile(header, flags)
        home = Path(jt.compiler.jit_utils.home())
        _write(script, _SCRIPT.format(home=shlex.quote(str(home)), python=shlex.quote(jt.flags.python_path)))
    jt.flags.cc_flags += f' -include "{header}" '
    jt.flags.python_path = str(script)
    # As many at a time as there are cores: more only wait for each other, and hold memory.
    jt.flags.use_parallel_op_compiler = len(os.sched_getaffinity(0))


def _identity(program: Path) -> str:
    """What tells one build of a program from another, without running it."""
    found = program.resolve().stat()
    return f"{program.resolve()} {found.st_size} {found.st_mtime_ns}"


def _write(path: Path, text: str) -> None:
    """Written as a whole or not at all; executable."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.chmod(0o755)
    os.replace(fresh, path)


def _precompile(header: Path, flags: list[str]) -> None:
    """`<header>.gch` beside the header, which g++ takes in its place; RuntimeError with the compiler's last words."""
    fresh = header.with_name(f".{header.name}.{os.getpid()}.gch")
    command = [jt.flags.cc_path, "-x", "c++-header", *flags, str(header), "-o", str(fresh)]
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if made.returncode:
        raise RuntimeError(f"{header}: g++ can't precompile it (exit {made.returncode}): {made.stderr.strip()[-500:]}")
    os.replace(fresh, header.with_name(f"{header.name}.gch"))


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
