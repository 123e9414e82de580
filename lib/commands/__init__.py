"""The verbs of `python -m lib`, a module each: PURPOSE and EXAMPLES for its help, `add` for its arguments, `run` for
what it does with them. Here belongs what a command line asks and prints, and nothing that computes.

A module imports what it needs when it runs: the command line is there at once, and the verbs that need no framework
import none.
"""
