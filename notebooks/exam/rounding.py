"""What rounding may do: a right candidate that rounds otherwise, and how far it carries a subject's tensors.

Such a candidate is the same function with sums in another order.
Convolutions and linear layers add up their inputs in two parts, drawn from the seed. In exact arithmetic nothing
changes; in float32 and in float64 every output and every gradient is rounded otherwise, as in another framework.
"""

import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lib.alignment import capture
from lib.alignment.evidence import REFERENCE
from lib.backend import nn, tensor
from lib.errors import UserError
from lib.machine import environment
from notebooks.exam.planting import Change, planted
from notebooks.exam.subjects import SUBJECTS, Subject


def otherwise_rounded(seed: int) -> tuple[Change, ...]:
    """Changes that make a candidate round otherwise."""

    def of(axis: int) -> Callable[[Callable], Callable]:
        return lambda original: lambda self, x: _in_parts(original, self, x, axis, seed)

    return Change(nn.Conv2d, "forward", of(1)), Change(nn.Linear, "forward", of(-1))


def _in_parts(original: Callable, layer: nn.Module, x: Any, axis: int, seed: int) -> Any:
    """layer(x) as the sum over two parts of the inputs' features; the bias, which is in both, is taken away once."""
    length = x.shape[axis]
    rng = np.random.default_rng((seed, zlib.crc32(str(tuple(layer.weight.shape)).encode())))
    mask = (rng.random(length) < 0.5).astype(str(x.dtype).rpartition(".")[2])
    mask = mask.reshape([length if i == axis % len(x.shape) else 1 for i in range(len(x.shape))])
    found = original(layer, x * tensor(mask)) + original(layer, x * tensor(1 - mask))
    if layer.bias is None:
        return found
    return found - layer.bias.reshape(*[-1 if i == axis % len(found.shape) else 1 for i in range(len(found.shape))])


MEASURED = {
    "forward": lambda subject: capture.forward(subject.model, subject.forward),
    "loss": lambda subject: capture.loss_and_gradient(subject.model, subject.training),
}


def reach(subject: Subject, stage: str) -> dict[str, list[float]]:
    """How far rounding carries a stage's tensors where the exam runs in Jittor: a process of PyTorch measures it.

    UserError where PyTorch's process fails."""
    name = next(name for name, of in SUBJECTS.items() if of(subject.seed).model == subject.model)
    chosen = environment.named(REFERENCE)
    folder = environment.location(chosen)
    command = [str(folder / "bin" / "python"), "-m", __spec__.name, name, str(subject.seed), stage]
    settings = environment.process_environment(chosen, folder)
    ran = subprocess.run(command, env=settings, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ran.returncode:
        said = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"exam of {name}: PyTorch's process, which measures what rounding may do, failed: {said}")
    return json.loads(ran.stdout.splitlines()[-1])


if __name__ == "__main__":
    name, seed, stage = sys.argv[1:]
    subject = SUBJECTS[name](int(seed))
    with planted(subject.settings):
        print(json.dumps(MEASURED[stage](subject)[0]["reach"]))
