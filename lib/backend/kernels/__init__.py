"""C++ for what Jittor does slowly or inexactly on the CPU: `<name>.h`, beside it `<name>.py`, which calls it.

Every kernel has its rule in Jittor's own operators, `plain`: what it is tested against, and what runs on a GPU. Sizes
reach kernels as data, so that one compiled kernel per dtype serves every layer (a compilation costs 1 to 4 s). Kernels
of our own rather than Jittor's operators: those it fuses with their neighbours, and compiles each combination anew.

A header file has parts. `//// header NAME` opens declarations, `//// opening NAME` the first lines of a body, `////
kernel NAME` a body; behind a colon stand the parts and the system's headers that it needs. Lines of `///` are for
readers alone: compiled kernels are kept by their text. A body's own first line names it to the profiler.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..jittor_import import jt

FOR_READERS = re.compile(r"^///(?!/).*\n", re.MULTILINE)
PART = re.compile(r"^//// (\w+) ([^:\n]+)(?:: ([^\n]*))?\n(.*?)(?=^////|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Kernel:
    """Text of C++ whose inputs, outputs and `data` have the names of `jt.code`."""

    header: str
    code: str

    def __call__(
        self, inputs: Sequence, *shapes: Sequence[int], dtypes: Sequence[str] | None = None, data=None
    ) -> list:
        """A tensor for each shape, of the first input's dtype where `dtypes` says no other."""
        kinds = list(dtypes or [inputs[0].dtype] * len(shapes))
        source = {"cpu_header": self.header, "cpu_src": self.code}
        return jt.code([list(shape) for shape in shapes], kinds, list(inputs), **source, data=data or {})

    def having(self, **texts: str) -> "Kernel":
        """The kernel with each NAME replaced by its text, one after the other."""
        code = self.code
        for name, text in texts.items():
            code = code.replace(name, text)
        return Kernel(self.header, code)


def read(name: str) -> dict[str, Kernel]:
    """The kernels of `<name>.h` by their names."""
    parts, kernels = {}, {}
    text = Path(__file__).with_name(f"{name}.h").read_text(encoding="utf-8")
    for kind, title, needs, body in PART.findall(FOR_READERS.sub("", text)):
        needed = needs.split(", ") if needs else []
        system = "\n".join(f"#include {need}" for need in needed if need.startswith("<"))
        found = {"header": system, "opening": ""}
        for at, part in (parts[need] for need in needed if need in parts):
            found[at] += part
        body = f"\n{body.strip(chr(10))}\n"
        if kind == "kernel":
            kernels[title] = Kernel(found["header"], found["opening"] + body)
        else:
            parts[title] = kind, found["header"] + body
    return kernels


class Function(jt.Function):
    """A kernel with its gradient.

    Called with tensors it gives the first `results` of the kernel's outputs, which have `shapes`. The gradient's kernel
    takes the first output's gradient and what is `kept`, by number among the inputs and then the outputs; it gives one
    for each input.
    """

    def __init__(
        self,
        kernel: Kernel,
        gradient: Kernel,
        shapes: Sequence[Sequence[int]],
        kept: Sequence[int] = (),
        data: dict[str, float] | None = None,
        dtypes: Sequence[str] | None = None,
        results: int = 1,
    ):
        self.kernel, self.gradient, self.shapes, self.kept = kernel, gradient, shapes, kept
        self.data, self.dtypes, self.results = data, dtypes, results

    def execute(self, *inputs):
        self.like = [(x.shape, x.dtype) for x in inputs]
        outputs = self.kernel(inputs, *self.shapes, dtypes=self.dtypes, data=self.data)
        self.saved = [(*inputs, *outputs)[index] for index in self.kept]
        return outputs[0] if self.results == 1 else outputs[: self.results]

    def grad(self, dy, *_):
        # An input's own dtype: what is float32 behind a float64 function hands a float32 gradient back.
        shapes, dtypes = zip(*self.like)
        return self.gradient([dy, *self.saved], *shapes, dtypes=dtypes, data=self.data)


def on_cpu(plain: Callable) -> Callable:
    """A decorator: the function on the CPU; on a GPU `plain`, the same rule in Jittor's own operators."""

    def decorated(function: Callable) -> Callable:
        @functools.wraps(function)
        def chosen(*arguments, **named):
            return (plain if jt.flags.use_cuda else function)(*arguments, **named)

        chosen.plain = plain
        return chosen

    return decorated
