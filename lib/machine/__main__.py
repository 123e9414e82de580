"""The Makefile's command line: python3 -m lib.machine <verb>, with any python3 from 3.8 on and the standard library."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from lib.errors import exit_code
from lib.machine import doctor, installation, locks
from lib.machine.environment import ENVIRONMENTS, ROOT, location, named, process_environment, start


def test(arguments: Sequence[str]) -> int:
    """pytest in both environments at once, half of the cores each; their logs one after the other."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    running = []
    for environment in ENVIRONMENTS:
        folder, log = location(environment), ROOT / "envs" / f"test-{environment.name}.log"
        environ = {**process_environment(environment, folder), "OMP_NUM_THREADS": threads}
        command = [str(folder / "bin" / "python"), "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environ)
        running.append((environment, log, process))
    codes = []
    for environment, log, process in running:
        codes.append(process.wait())
        print(f"\n=== tests in the {environment.name} environment ===")
        print(log.read_text(encoding="utf-8", errors="replace"), flush=True)
    return max(codes, key=abs)


def main() -> int | None:
    parser = argparse.ArgumentParser(prog="python3 -m lib.machine", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("envs", help="build both environments, Jittor's core and the kernels")
    verbs.add_parser("locks", help="write the lock files from the yml files (needs the network)")
    verbs.add_parser("doctor", help="say what this machine lacks and how to get it")
    system = verbs.add_parser("system", help="as root with apt-get: install what the machine lacks")
    system.add_argument("--if-possible", action="store_true", help="do nothing where apt-get or root is missing")
    runner = verbs.add_parser("run", help="run an environment's Python: run jt|torch ARGUMENTS")
    runner.add_argument("environment")
    runner.add_argument("arguments", nargs=argparse.REMAINDER)
    pytest = verbs.add_parser("test", help="run pytest in both environments", prefix_chars="\0", add_help=False)
    pytest.add_argument("arguments", nargs="*")  # pytest's own, options too
    chosen = parser.parse_args()
    if chosen.verb == "run":
        return start(named(chosen.environment), chosen.arguments)
    if chosen.verb == "test":
        return test(chosen.arguments)
    if chosen.verb == "system":
        return doctor.install(chosen.if_possible)
    return {"envs": installation.make_environments, "locks": locks.make, "doctor": doctor.report}[chosen.verb]()


if __name__ == "__main__":
    sys.exit(exit_code(main))
