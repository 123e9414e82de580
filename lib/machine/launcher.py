"""Starts a kernel in the checkout that a notebook belongs to: launcher.py jt|torch CONNECTION_FILE [OPTIONS].

A copy lies in each environment beside the kernelspecs, because environments are shared by checkouts: it knows of them
only files at their root and what their Makefile calls. It looks for the checkout from where tools start a kernel (its
notebook's folder, or their own), else from what was typed.
"""

import os
import sys

MARKS = ("Makefile", "environment-jt.yml", "environment-torch.yml")


def checkout(path):
    """The checkout at or above this path, else None."""
    while path != os.path.dirname(path):
        if all(os.path.isfile(os.path.join(path, name)) for name in MARKS):
            return path
        path = os.path.dirname(path)
    return None


def candidates():
    """Where to look: the working directory, the notebook that a server names, what the parent was started with."""
    here, parent = os.getcwd(), f"/proc/{os.getppid()}"
    yield here
    yield os.path.join(here, os.environ.get("JPY_SESSION_NAME", ""))
    try:
        there = os.readlink(f"{parent}/cwd")
        with open(f"{parent}/cmdline", "rb") as file:
            words = os.fsdecode(file.read()).split("\0")
    except OSError:  # the parent is another user's, or gone
        return
    yield from (os.path.normpath(os.path.join(there, word)) for word in words if "/" in word)
    yield there


def main():
    root = next(filter(None, map(checkout, candidates())), None)
    if root is None:
        sys.exit(
            f"error: no checkout of this project at or above {os.getcwd()}: start from its root or a notebook's folder"
        )
    os.chdir(root)
    name, connection, *options = sys.argv[1:]
    # -E -S: whatever the user's variables say of Python. No warning about localhost for each notebook.
    command = [sys.executable, "-E", "-S", "-m", "lib.machine", "run", name, "-m", "ipykernel_launcher"]
    os.execv(command[0], [*command, "-f", connection, "--log-level=ERROR", *options])


if __name__ == "__main__":
    main()
