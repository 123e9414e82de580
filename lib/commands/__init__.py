"""The verbs of `python -m lib`, a module each: PURPOSE and EXAMPLES for its help, `add` for its arguments.

`add` sets `run`, what the verb does with the arguments. A module imports what it needs when it runs: the command line is
there at once, and the verbs that need no framework import none.
"""
