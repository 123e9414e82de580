"""The Makefile's command line: python3 -m lib.machine <verb>, with any python3 from 3.8 on and the standard library."""

from __future__ import annotations

from lib.errors import exit_code, silent_interrupts

if __name__ == "__main__":
    silent_interrupts()
import argparse
import sys

from lib.machine import doctor, environment, installation, locks


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
    chosen = parser.parse_args()
    if chosen.verb == "run":
        return environment.start(environment.named(chosen.environment), chosen.arguments)
    if chosen.verb == "system":
        return doctor.install(chosen.if_possible)
    return {"envs": installation.make_environments, "locks": locks.make, "doctor": doctor.report}[chosen.verb]()


if __name__ == "__main__":
    sys.exit(exit_code(main))
