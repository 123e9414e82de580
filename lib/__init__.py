"""Alignment of detectors ported from PyTorch to Jittor: models, losses, data, evaluation, evidence, report."""

import sys


def _in_a_line(kind, error, trace) -> None:
    if kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # python -m, which still looks for the module to run: Ctrl-C while that one is imported
    sys.excepthook = _in_a_line
