"""How a notebook's process ended: its signal or exit code, what it wrote last, memory only where there is evidence."""

import signal
import subprocess
import sys

import pytest

from lib.machine import notebook


def ended(tmp_path, code: str) -> notebook.ProcessDied:
    """How a Python process with this code ended."""
    log = tmp_path / "log"
    with open(log, "wb") as stream:
        process = notebook.Process(log, subprocess.Popen([sys.executable, "-c", code], stdout=stream, stderr=stream))
    return process.died("it")


@pytest.mark.parametrize(
    "code, number, said",
    [
        ("import os; os.write(2, b'terminate called\\n'); os.abort()", 6, "it died of signal 6 (SIGABRT)"),
        ("import os; os.kill(os.getpid(), 9)", 9, "it died of signal 9 (SIGKILL)"),
        ("import sys; sys.exit(3)", None, "it died of an exit with code 3"),
        # as Jittor ends: its handler of a crash exits with 1
        (
            "import os; os.write(2, b'Caught segfault at address 0x0, ...\\nSegfault, exit\\n'); os._exit(1)",
            signal.SIGSEGV,
            "it died of signal 11 (SIGSEGV)",
        ),
        (
            "import os; os.write(2, b'Caught segfault at address 0x0, ...\\nGet signal 8, exit\\n'); os._exit(1)",
            signal.SIGFPE,
            "it died of signal 8 (SIGFPE)",
        ),
        ("1 / 0", None, "it died of an exit with code 1"),
    ],
)
def test_a_death_says_its_signal_or_code(tmp_path, code, number, said):
    death = ended(tmp_path, code)
    assert (death.signal, str(death)) == (number, said)


def test_what_a_process_wrote_last_is_kept(tmp_path):
    lines, last = "print('\\n'.join(map(str, range(99))), flush=True)", "os.write(2, b'\\x1b[31m\\xffend\\x1b[m\\n')"
    death = ended(tmp_path, f"import os; {lines}; {last}; os.abort()")
    assert len(death.lines) == notebook.LINES and death.lines[-2:] == ["98", "\ufffdend"]


def test_memory_is_said_only_with_evidence(tmp_path, monkeypatch):
    before = {"the control group": 1, "the machine": 4}
    assert notebook.lack_of_memory(before, before, 0.5) == ""
    assert "the machine counts one more" in notebook.lack_of_memory(before, {**before, "the machine": 5}, 0.5)
    assert "the control group counts" in notebook.lack_of_memory(
        before, {"the control group": 2, "the machine": 5}, 0.5
    )
    assert "1.0% of it was free" in notebook.lack_of_memory({}, {}, 0.01)
    counts = iter([{"the machine": 4}, {"the machine": 5}] * 2)
    monkeypatch.setattr(notebook, "kills", lambda: next(counts))
    assert "memory" in str(ended(tmp_path, "import os; os.kill(os.getpid(), 9)"))
    assert "memory" not in str(ended(tmp_path, "import os; os.kill(os.getpid(), 11)"))  # a crash is no lack of memory


def test_kills_are_counted_where_the_system_counts_them(tmp_path):
    """Version 2 at the group's place, version 1 at the top as in a container, the machine; not what counts nothing."""
    for name, text in {
        "proc/self/cgroup": "9:memory:/host/path\n0::/user.slice\n",
        "proc/vmstat": "nr_free_pages 7\noom_kill 4\n",
        "sys/fs/cgroup/user.slice/memory.events": "low 0\noom 7\noom_kill 2\noom_group_kill 0\n",
        "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "sys/fs/cgroup/memory.events": "low 0\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sorted(notebook.kills(tmp_path).values()) == [2, 3, 4] and notebook.kills(tmp_path)["the machine"] == 4
    assert notebook.kills(tmp_path / "absent") == {} and all(count >= 0 for count in notebook.kills().values())
