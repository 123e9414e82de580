"""Alignment of detectors ported from PyTorch to Jittor: models, losses, data, evaluation, evidence, report."""

import sys

if sys.argv[:1] == ["-m"]:  # python -m, which still looks for the module to run: Ctrl-C while that one is imported
    sys.excepthook = lambda kind, *rest: (
        print("interrupted", file=sys.stderr) if kind is KeyboardInterrupt else sys.__excepthook__(kind, *rest)
    )
