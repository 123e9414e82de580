"""Precompiled headers: what Jittor's sources include is parsed once for each machine instead of once for each file.

They lie in the Jittor environment, `include/precompiled/`, with the script that compiles a kernel, `bin/jittor-compile`.
g++ takes, of the files in `<header>.gch/`, the one that was made by itself with the same flags, and where there is none
it parses the header: right, but slower. Each machine that shares an environment adds its own. Jittor hashes the header like
any other file that a source includes, so another text compiles anew.

Runs with any python3 from 3.8 on and the standard library alone.
"""

from __future__ import annotations

import platform
from pathlib import Path

# What most files of Jittor's core include.
CORE = """\
#include <algorithm>
#include <cmath>
#include <functional>
#include <sstream>
#include "common.h"
#include "executor.h"
#include "fused_op.h"
#include "op.h"
#include "op_compiler.h"
#include "ops/op_register.h"
#include "pyjt/numpy.h"
#include "pyjt/py_arg_printer.h"
#include "pyjt/py_converter.h"
#include "pyjt/py_obj_holder.h"
#include "var.h"
#include "var_holder.h"
"""
# What nearly every kernel includes. Few: a name that a kernel did not ask for may clash with one of its own.
KERNEL = """\
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
# The flags of Jittor 1.3.11 that shape code. Of kernels with what lib/backend/jittor_import.py adds.
FLAGS = ["-std=c++14", "-fPIC", *(["-march=native"] if platform.machine() == "x86_64" else [])]
HEADERS = {
    "core": (CORE, ["-O2"]),
    "kernel": (KERNEL, ["-Ofast", "-fopenmp", "-fno-finite-math-only", "-D__FAST_MATH__"]),
}
# Jittor starts Python for each kernel: a tuner, --cc_path=COMPILER, the source, what else the compiler is told. The tuner
# rewrites assembly between the marks @begin and @end of a source; few sources have any, the others need no Python.
SCRIPT = """\
#!/bin/sh
case "$1" in */asm_tuner.py)
    if ! grep -q @begin "$3"; then
        compiler="${2#--cc_path=}"
        shift 2
        exec "$compiler" "$@"
    fi
esac
here=$(dirname "$0")
HOME=$(cd "$here/../../../../.." && pwd) exec "$here/python" "$@"
"""


def header(environment: Path, name: str) -> Path:
    """Of the `core` or of the `kernel`s, to be included before all else; absent where `make envs` has not made it."""
    return environment / "include" / "precompiled" / f"{name}.h"


def script(environment: Path) -> Path:
    return environment / "bin" / "jittor-compile"


def include(path: Path) -> str:
    return f'-include "{path}"'


def texts(environment: Path) -> dict[Path, str]:
    """The files of an environment that are the same on every machine."""
    return {script(environment): SCRIPT, **{header(environment, name): text for name, (text, _) in HEADERS.items()}}


def command(environment: Path, name: str, compiler: str, python: list[str], target: Path) -> list[str]:
    """Precompile a header to `target`; `python`: the compiler's flags for Python's own headers."""
    package = environment / "lib" / "python3.11" / "site-packages" / "jittor"
    flags = [*FLAGS, *HEADERS[name][1], f"-I{package / 'src'}", f"-I{package / 'extern'}", *python]
    return [compiler, "-x", "c++-header", *flags, str(header(environment, name)), "-o", str(target)]


def precompiled(environment: Path, name: str, machine: str) -> Path:
    """The compiled form for one machine."""
    return Path(f"{header(environment, name)}.gch", machine)
