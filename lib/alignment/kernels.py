"""Compiles a model's kernels before the stages that need them: python -m lib.alignment.kernels --model NAME.

Jittor compiles what it meets. Stages that start side by side would compile side by side, more processes than there are
cores, and wait for each other's lock. A kernel is the same for every size of its input: here the stages' own functions
run on small ones. What is left, the layers one by one, compiles where it is met.
"""

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

from lib import backend
from lib.alignment import capture, references
from lib.alignment.references.case import Case
from lib.machine import notebook
from lib.record import ROOT, atomic

SIDE = 128  # of the small input: the smallest multiple of 32 whose smallest map every model's neck can pool


def small(case: Case) -> Case:
    """The case on a small input, its boxes with it."""
    factors = [SIDE / case.size[1], SIDE / case.size[0]] * 2
    targets = tuple({**target, "boxes": (target["boxes"] * factors).astype("float32")} for target in case.targets)
    return replace(case, file="", size=(SIDE, SIDE), targets=targets)


def sources(model: str) -> str:
    """A digest of the files that decide which kernels there are."""
    files = notebook.sources(Path(__file__).relative_to(ROOT), backend.NAME, (model,))
    total = hashlib.sha256(model.encode())
    for name in files:
        total.update((ROOT / name).read_bytes())
    return total.hexdigest()[:16]


def compile_kernels(model: str) -> None:
    """Compile, unless this was done for these sources before in the same cache."""
    if (cache := backend.cache_path()) is None:
        return
    mark = Path(cache) / "compiled" / f"{model}-{sources(model)}"
    if mark.is_file():
        return
    capture.forward(model, small(references.case(model, "forward")))
    capture.loss_and_gradient(model, small(references.case(model, "loss")))
    with atomic(mark) as temporary:
        temporary.touch()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.alignment.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    compile_kernels(parser.parse_args().model)


if __name__ == "__main__":
    main()
