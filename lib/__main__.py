"""The command line: python -m lib <verb>.

Exit code 0 only on success, 1 with one line on stderr for what a user can mend, 2 for a wrong command line, 130 after
Ctrl-C, 141 when nobody reads on. Frameworks are imported by the verbs that need one: run those in the environment of
the framework you want.
"""

import argparse
import sys
from importlib import import_module

# Any python3 reads this file as far as here; what it imports below, only 3.11 and later.
USE = "use envs/torch/bin/python or envs/jt/bin/python (made by `make envs`)"
if sys.version_info < (3, 11):
    sys.exit(f"error: this Python ({sys.executable}) is older than 3.11: {USE}")
from lib.errors import UserError, exit_code, silent_interrupts
from lib.machine import environment

if __name__ == "__main__":
    silent_interrupts()
    environment.adopt()
from lib.commands.arguments import AS_WRITTEN, verb

NAMES = "data convert train evaluate detect export curves benchmark compare exam forecast handin slides verify"
VERBS = tuple(import_module(f"lib.commands.{name}") for name in NAMES.split())


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    chosen = _parser().parse_args(arguments)

    def work() -> None:
        try:
            chosen.run(chosen)
        except ModuleNotFoundError as error:
            if str(error.name).split(".")[0] == "lib":
                raise
            raise UserError(f"this Python ({sys.executable}) has no {error.name}: {USE}") from error

    return exit_code(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib", description=__doc__, formatter_class=AS_WRITTEN)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for command in VERBS:
        own = verb(verbs, command.__name__.rpartition(".")[2], command.PURPOSE, command.EXAMPLES)
        own.set_defaults(run=getattr(command, "run", None))
        command.add(own)
    return parser


if __name__ == "__main__":
    sys.exit(main())
