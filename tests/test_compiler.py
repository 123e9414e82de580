"""Kernels that Jittor compiles in a notebook, from an empty cache: what killed notebooks, what their reader sees, and
that the faster way gives the same machine code. In the Jittor environment."""

import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

if (
    importlib.util.find_spec("jittor") is None
):  # not imported here: Jittor's own import would die with a kernel that dies
    pytest.skip("only Jittor compiles", allow_module_level=True)
from jupyter_client.manager import start_new_kernel

from lib.machine import environment

ROOT = Path(__file__).resolve().parent.parent
EMPTY_CACHE = """
import os
import numpy as np
from lib import backend
from lib.backend.jittor_import import jt
folder = {folder!r}
for name in ("jit", "obj_files"):
    os.makedirs(os.path.join(folder, name), exist_ok=True)
jt.flags.cache_path = folder  # of what compiles from here on; the core stays where it is
"""
# All of them wait until the end and compile together, and the compiler has something to say of each ("has no effect"):
# what it says is what Jittor's compile threads handed to Python.
FORTY_KERNELS = """
x = jt.array(np.arange(8, dtype="float32"))
source = "{0}; for (int i = 0; i < in0_shape0; i++) out_p[i] = in0_p[i] + {0};"
values = [jt.code(x.shape, "float32", [x], cpu_src=source.format(count)) for count in range(42)]
jt.sync(values)
assert all((value.numpy() == x.numpy() + count).all() for count, value in enumerate(values))
"""


class Kernel:
    """A real notebook kernel of this environment, as a user opens it: with all cores."""

    def __init__(self):
        # Below pytest ipykernel does not show what is written to file descriptors.
        left_out = ("OMP_NUM_THREADS", "PYTEST_CURRENT_TEST")
        environ = {name: value for name, value in os.environ.items() if name not in left_out}
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(ROOT), env=environ)

    def run(self, code: str) -> list[dict]:
        """What the cell gave, message by message; fails if the kernel dies."""
        self.client.execute(code)
        found = []
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                assert self.manager.is_alive(), "the kernel died"
                continue
            found.append(message["content"] | {"kind": message["msg_type"]})
            if found[-1].get("execution_state") == "idle":
                return found

    def close(self):
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel():
    opened = Kernel()
    yield opened
    opened.close()


def of(kind: str, messages: list[dict]) -> list[dict]:
    return [message for message in messages if message["kind"] == kind]


def texts(messages: list[dict]) -> list[str]:
    """What a display of the cell said, in order."""
    return [
        message["data"]["text/plain"]
        for message in messages
        if message["kind"] in ("display_data", "update_display_data")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("time", range(3))
def test_a_notebook_compiles_forty_kernels_in_an_empty_cache_and_its_reader_sees_how_many_are_left(
    kernel, tmp_path, time
):
    """Jittor's redirection of C++'s streams killed the kernel here, nearly each time."""
    opened = kernel.run(EMPTY_CACHE.format(folder=str(tmp_path)))
    assert not of("stream", opened) and not of("error", opened), "a notebook opens without red lines"
    ran = kernel.run(FORTY_KERNELS)
    assert not of("error", ran) and not of("stream", ran)
    assert len(list(tmp_path.glob("jit/*.so"))) >= 40
    said = texts(ran)
    assert len(of("display_data", ran)) == 1, "one line, which changes"
    left = [int(text.split()[3]) for text in said[:-1]]
    assert len(left) > 2 and left == sorted(left, reverse=True) and left[0] > left[-1]
    assert "left" not in said[-1]


def test_a_compile_error_reaches_the_notebook_and_the_import_leaves_no_process_to_wait_for(kernel, tmp_path):
    kernel.run(EMPTY_CACHE.format(folder=str(tmp_path)))
    ran = kernel.run("import psutil\nprint(psutil.Process().children())")
    assert of("stream", ran)[0]["text"] == "[]\n"
    ran = kernel.run('jt.code([1], "float32", [], cpu_src="no_such_name(1);").sync()')
    ran += kernel.run("1")  # C++ holds the interpreter's lock to the end of its cell
    assert of("error", ran)
    assert "no_such_name" in "".join(message["text"] for message in of("stream", ran))


def test_processes_that_meet_an_empty_cache_together_compile_each_kernel_once(tmp_path):
    """As reports side by side do, and checkouts that share a cache: who waited for the other takes its kernels."""
    log, script = tmp_path / "log", tmp_path / "compile"
    own = environment.compile_script(Path(sys.prefix).resolve())
    script.write_text(f'#!/bin/sh\necho "$3" >> {log}\nexec {own} "$@"\n')  # $3: the source
    script.chmod(0o755)
    together = f"""
import time
from pathlib import Path
jt.flags.python_path = {str(script)!r}
Path({str(tmp_path)!r}, f"ready{{os.getpid()}}").touch()
while len(list(Path({str(tmp_path)!r}).glob("ready*"))) < 2:
    time.sleep(0.01)
"""
    code = EMPTY_CACHE.format(folder=str(tmp_path)) + together + FORTY_KERNELS.replace("range(42)", "range(6)")
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    sources = log.read_text().split()
    assert len(sources) == len(set(sources)) >= 6


def compiled(tmp_path: Path, before: str, values: str) -> dict[str, bytes]:
    """The machine code and constants of these values' kernels, compiled in an empty cache after `before`, by their
    names."""
    code = (
        EMPTY_CACHE.format(folder=str(tmp_path))
        + before
        + f"""
x = jt.array(np.arange(24, dtype="float32").reshape(2, 3, 4)) + 0.5
x.sync()  # else it is part of some of their kernels
jt.sync([{values}])
"""
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    sections = ["objcopy", "-O", "binary", "-j", ".text", "-j", ".rodata"]
    found = {}
    for library in sorted(tmp_path.glob("jit/*.so")):
        subprocess.run([*sections, str(library), str(tmp_path / "code")], check=True)
        found[library.name] = (tmp_path / "code").read_bytes()
    return found


def test_the_fast_way_gives_the_same_machine_code(tmp_path):
    stock = f"""
import sys
jt.flags.python_path = {json.dumps(sys.executable)}
jt.flags.cc_flags = jt.flags.cc_flags.split(" -include ")[0]
"""
    one = "jt.sigmoid(x).sum(2)"
    values = f"""{one}, (x.reshape(6, 4) ** 2).max(1), x.transpose(2, 0, 1) * 3, x[:, 1], jt.floor(x).int32(),
          backend.softmax(x, -1), jt.full((64, 32), 1.5)"""  # the last has a mark @begin
    fast, slow = compiled(tmp_path / "fast", "", values), compiled(tmp_path / "slow", stock, values)
    assert len(fast) >= 7 and fast == slow
    assert any(b"@begin" in source.read_bytes() for source in tmp_path.glob("fast/jit/*.cc"))
    other = compiled(tmp_path / "other", 'jt.flags.cc_flags += " -O0 "', one)
    assert other and all(code != slow[name] for name, code in other.items()), "other code is seen"


def test_the_precompiled_header_is_taken(tmp_path):
    """A header that g++ passes over, for flags that are not its own, gives a warning; then kernels parse all again."""
    code = (
        EMPTY_CACHE.format(folder=str(tmp_path))
        + """
jt.flags.cc_flags += " -Winvalid-pch -Werror=invalid-pch -H "
jt.flags.log_v = 1
(jt.array([1.0, 2.0]) * 3).sync()
"""
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and "! " in ran.stderr and "kernel.h.gch" in ran.stderr, ran.stderr[-2000:]


def test_a_process_whose_core_was_outdated_starts_again_once(monkeypatch):
    """Jittor compiles it anew and ends the process with exit code 0, its work not begun."""
    from lib.backend import jittor_import

    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append([program, *words[1:]]))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "lib", "train"])
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.delenv("ALIGN_CORE_RENEWED", raising=False)
    jittor_import._start_again()
    assert started == [[sys.executable, "-m", "lib", "train"]]
    with pytest.raises(RuntimeError, match="run it again"):  # never twice
        jittor_import._start_again()
    monkeypatch.delenv("ALIGN_CORE_RENEWED")
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # a notebook's connection would not survive it
    with pytest.raises(RuntimeError, match="restart this process"):
        jittor_import._start_again()
    assert len(started) == 1


def test_one_process_at_a_time_compiles_the_core_and_imports_of_a_ready_one_run_together(tmp_path):
    from lib.backend.jittor_import import _alone_while_the_core_compiles

    cache = tmp_path / "cache"
    cache.mkdir()
    second = threading.Event()

    def enter() -> None:
        with _alone_while_the_core_compiles(cache):
            second.set()

    other = threading.Thread(target=enter)
    with _alone_while_the_core_compiles(cache):
        other.start()
        assert not second.wait(0.3)
        (cache / "jittor_core.so.key").touch()
    other.join()
    assert second.is_set()
    with _alone_while_the_core_compiles(cache):
        enter()  # would wait for ever
