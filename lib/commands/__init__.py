"""Verbs of the command line that are too long for `lib.__main__`; each imports what it needs when it runs."""
