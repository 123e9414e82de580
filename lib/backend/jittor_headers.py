"""Precompiled headers: what Jittor's sources include is parsed once for each machine instead of once for each file.

A header lies in a folder named by all that shapes it: its text, the compiler, its flags, Jittor's own headers. The folder's
path is part of the commands by which Jittor recognises what it has compiled, so another header compiles anew.
"""
import hashlib
import os
import subprocess
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


def precompiled(text: str, cache: Path, sources: Path, compiler: str, flags: list[str]) -> Path:
    """`include.h` with this text, its compiled form beside it, which g++ takes in its place where the flags are the same.

    cache: where its folder belongs. sources: Jittor's headers. RuntimeError with the compiler's last words.
    """
    program = Path(compiler).resolve()
    digest = hashlib.sha256(f"{text}{flags}{program}{program.stat().st_size}{program.stat().st_mtime_ns}".encode())
    for header in sorted(sources.rglob("*.h")):
        digest.update(header.read_bytes())
    header = cache / f"headers-{digest.hexdigest()[:10]}" / "include.h"
    compiled = header.with_name("include.h.gch")
    if not compiled.exists():
        header.parent.mkdir(parents=True, exist_ok=True)
        write(header, text)
        fresh = compiled.with_name(f".{os.getpid()}.gch")
        command = [compiler, "-x", "c++-header", *flags, str(header), "-o", str(fresh)]
        made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        if made.returncode:
            raise RuntimeError(f"{header}: g++ can't precompile it (exit {made.returncode}): {made.stderr.strip()[-500:]}")
        os.replace(fresh, compiled)
    return header


def write(path: Path, text: str) -> None:
    """As a whole or not at all, executable."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.chmod(0o755)
    os.replace(fresh, path)
