"""Executable Rosetta: every known difference between Jittor and PyTorch as a probe that runs on the installed versions.

A probe asks one question of both frameworks' own operators, of the backend, and of a formula in float64. Each side
answers in its own environment and writes a record (`measure.run`); `sheet.Sheet` reads both and gives a verdict per probe:
same, mended by the backend, different, unknown.
"""
