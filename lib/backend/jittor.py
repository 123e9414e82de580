"""Jittor 1.3.11 under PyTorch's names and with PyTorch's meaning: one short function per difference.

This file, `jittor_functions.py` and `jittor_nn.py` are the porting guide: every docstring states the rule that differs,
and `tests/test_backend*.py` shows each against NumPy in float64. Kernels that mend speed or accuracy stand in
`kernels/`, what the import does to the process in `jittor_import.py`. Twin of `torch.py`. What can't be mended:
* there are no 0-dimensional tensors: a scalar has shape [1]; `numpy` and `floats` give it back as a scalar;
* a Python number beside a float64 tensor is float32, and 0 + x is float32 as a whole: so is Python's sum() of scalars;
* subnormal float32 numbers flush to zero in the whole process (the kernels are linked with -Ofast).
"""

import ctypes as _ctypes
import os as _os
import re as _re
import shutil as _shutil
import subprocess as _subprocess
import sys as _sys
from collections.abc import Callable as _Callable

import numpy as _np

from lib.errors import UserError as _UserError

from . import jittor_nn as nn
from .jittor_compiler import compile_fast as _compile_fast
from .jittor_compiler import show_progress_in_notebooks as _show_progress_in_notebooks
from .jittor_functions import array as _array
from .jittor_functions import scalar as _scalar
from .jittor_import import jt as _jt
from .kernels import elementwise as _elementwise
from .kernels import optim as _optim
from .kernels import products as _products

NAME = "jittor"
VERSION = _jt.__version__
FLOAT64 = "full"
Tensor = _jt.Var
AdamW, SGD = _optim.AdamW, _optim.SGD
exp, log, sqrt, where = _jt.exp, _jt.log, _jt.sqrt, _jt.where  # mean the same
no_grad, ones_like, zeros_like = _jt.no_grad, _jt.ones_like, _jt.zeros_like


def device() -> str:
    """The device on which every operator runs: "cpu" or "cuda"."""
    return "cuda" if _jt.flags.use_cuda else "cpu"


def set_device(name: str) -> None:
    """Choose "cpu" or "cuda"; ValueError if there is no such device. Jittor looks for CUDA at import only if
    the variable ALIGN_DEVICE says so."""
    if name not in ("cpu", "cuda") or (name == "cuda" and not _jt.has_cuda):
        raise ValueError(f"device {name!r} is not available to Jittor {VERSION} on this machine")
    _jt.flags.use_cuda = int(name == "cuda")


def set_threads(count: int) -> None:
    """Let oneDNN and the kernels use `count` CPU threads; Jittor's own operators always use one."""
    _jt.code(
        [1],
        "int32",
        [],
        cpu_header="#include <omp.h>",
        data={"count": count},
        cpu_src='omp_set_num_threads(int(data["count"])); out_p[0] = 0;',
    ).sync()


def cache_path() -> str | None:
    return _jt.flags.cache_path


def tensor(array: _np.ndarray) -> Tensor:
    """A tensor with the array's dtype and a copy of its values."""
    array = _np.asarray(array)
    value = _array(array)
    value.is_scalar = array.ndim == 0
    return value


def constant(make: _Callable[..., _np.ndarray]) -> _Callable[..., Tensor]:
    """A function of sizes, and other plain values, that gives an array, as one that gives a tensor; Jittor compiles
    what a model runs and never looks at its source."""
    return lambda *values: tensor(make(*values))


def numpy(value: Tensor) -> _np.ndarray:
    """The tensor's values, without its graph; what stands for a scalar has shape ()."""
    array = value.numpy()
    return array.reshape(()) if getattr(value, "is_scalar", False) else array


def floats(scalars: list[Tensor]) -> list[float]:
    """The values of one-element tensors, read after one synchronisation."""
    sync()  # one run of the whole pending graph: reading one by one would fuse, and compile, other kernels
    return [s.item() for s in scalars]


def float64(model: nn.Module) -> nn.Module:
    """Make every floating parameter and buffer float64, in place."""
    for _, value in named_state(model):
        if value.dtype == "float32":
            value.assign(value.float64())
    return model


def grad(scalar: Tensor, tensors: list[Tensor], retain_graph: bool = True) -> list[Tensor]:
    """d scalar / d tensor for each tensor, zeros where the scalar does not depend on it; the gradients have no graph
    (Jittor's keep theirs: one that nobody uses would lead a later step back into this one).

    retain_graph: the graph can be used again; else a second gradient is zero."""
    return [
        _scalar(g.detach(), getattr(t, "is_scalar", False))
        for g, t in zip(_jt.grad(_elementwise.root(scalar), tensors, retain_graph), tensors)
    ]


def mixed_precision() -> _jt.flag_scope:
    """A context in which operators prefer float16, on a GPU; not measured: none was at hand. Jittor's level 4 keeps
    sums, exponentials and logarithms in float32, as PyTorch does, but not element-wise products. Our kernels know no
    float16; on a GPU their plain formulations run."""
    return _jt.flag_scope(auto_mixed_precision_level=4)


def from_half(value):
    """A float16 tensor as float32; anything else as it is."""
    return value.float32() if isinstance(value, Tensor) and value.dtype == "float16" else value


def sync() -> None:
    """Return when all work issued so far is done: execution is lazy, an unsynchronised clock measures nothing."""
    _jt.sync_all(True)


def named_state(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer under its published name, in published order; of a module that is Jittor's own, not
    `nn`'s, every tensor it keeps."""
    return list(model.named_state() if isinstance(model, nn.Module) else model.state_dict().items())


def set_mode(model: nn.Module, training: bool) -> nn.Module:
    """Training or evaluation, here and below; gradients flow on (the eval() of Jittor's own modules stops them)."""
    for module in model.modules():
        module.is_train = training
    return model


def load_state(model: nn.Module, values: dict[str, _np.ndarray]) -> None:
    """Overwrite the named entries, dtypes kept. KeyError on an unknown name, ValueError on another shape;
    Jittor's own `load_parameters` logs both and goes on."""
    entries = dict(named_state(model))
    for name, value in values.items():
        if (shape := numpy(entries[name]).shape) != _np.shape(value):
            raise ValueError(f"{name}: shape {_np.shape(value)} given, {shape} expected")
    for name, value in values.items():
        entry = entries[name]
        entry.update(tensor(_np.asarray(value, str(entry.dtype)).reshape(entry.shape)))
    sync()


def write_onnx(model: nn.Module, images: Tensor, outputs: tuple[str, ...], opset: int, path: str) -> None:
    """PyTorch alone writes ONNX files: Jittor has no exporter."""
    raise _UserError("ONNX files are written by PyTorch: use envs/torch/bin/python")


def tuned(model: nn.Module) -> nn.Module:
    """Make a model that nobody will train faster, in place: its convolutions take rules without a gradient, which hold
    for the weights as they are now. Images stay in PyTorch's layout, for Jittor's tensors have no strides."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            geometry = module.stride, module.padding, module.dilation, module.groups
            module.rule = _products.inference_rule(module.weight, module.bias, *geometry)
    return model


def profile(call) -> list[tuple[str, float, int]]:
    """(operator, own milliseconds, calls) of one `call()`, slowest first."""
    with _jt.profile_scope() as report:
        call()
        sync()
    head, *rows = report
    columns = [head.index(name) for name in ("Name", "TotalTime", "Count")]
    found = {}
    for name, nanoseconds, count in ([row[column] for column in columns] for row in rows):
        time, calls = found.get(_short(name), (0.0, 0))
        found[_short(name)] = time + float(nanoseconds) / 1e6, calls + int(count)
    return sorted(((name, *cost) for name, cost in found.items()), key=lambda row: -row[1])


def _short(name: str) -> str:
    """Jittor names a kernel by all that it was compiled from: its label, its operators joined, or the one operator."""
    if label := _re.search(r"kernel: ([^;]*)", name):
        return label[1]
    operators = _re.findall(r"opkey\d+:(\w+)[^\n]*?(?=«opkey|«JIT)", name)
    details = _re.findall(r"OP:(\w+)", name)
    return "fused " + "+".join(dict.fromkeys([*operators, *details])) if operators else name.split("«")[0]


def peak_device_memory() -> int | None:
    """Largest number of bytes the device allocator held so far; Jittor keeps no such number."""
    return None


def give_back() -> None:
    """Return to the system what this process has freed: Jittor's allocator keeps blocks for later, so does glibc."""
    _jt.gc()
    if hasattr(_ctypes.CDLL(None), "malloc_trim"):
        _ctypes.CDLL(None).malloc_trim(0)


# ------------------------------------------------------------------------------------------------ several processes
LAUNCHED = "OMPI_COMM_WORLD_SIZE"  # set in the processes that `launcher` starts
DIED = r"process rank (\d+) .*?exited on\s+signal (\d+)"  # a process and the signal, as the launcher says it


def launcher(processes: int) -> list[str]:
    """What starts the options behind it as so many Pythons: OpenMPI's mpirun. UserError where it, or what Jittor
    compiles its MPI operators with, is absent."""
    for tool in ("mpirun", "mpicc"):
        if not _shutil.which(tool):
            raise _UserError(
                f"training: several processes of Jittor need OpenMPI, and there is no {tool} on this machine: install "
                "it (Debian, Ubuntu: apt-get install openmpi-bin libopenmpi-dev), or leave --processes out"
            )
    version = _subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    if "Open MPI" not in version:
        raise _UserError(f"training: Jittor's processes need OpenMPI's mpirun first on PATH; here it is {version!r}")
    root = ["--allow-run-as-root"] if _os.geteuid() == 0 else []
    return ["mpirun", *root, "--bind-to", "none", "--oversubscribe", "-n", str(processes), _sys.executable]


def join() -> None:
    """Take this process's place among those that the launcher started: Jittor's import has done it."""


def world() -> int:
    """How many processes train together; 1 without the launcher."""
    return _jt.world_size


def rank() -> int:
    """Which of them this is, from 0."""
    return _jt.rank


def all_reduce(x: Tensor) -> Tensor:
    """The sum of x over all processes, x itself for one; so is its gradient. Floats alone: Jittor hands MPI an int64 as
    a pair of a double and an int, which have no sum, and MPI ends the processes."""
    return _scalar(x.mpi_all_reduce(), getattr(x, "is_scalar", False)) if world() > 1 else x


def all_reduce_each(tensors: list[Tensor]) -> list[Tensor]:
    """`all_reduce` of each."""
    return [all_reduce(t) for t in tensors]


def all_gather(numbers: list[float]) -> _np.ndarray:
    """The numbers of every process, float64 (processes, k), exact up to 2**53. All must ask, in the same order."""
    rows = _np.zeros((world(), len(numbers)))
    rows[rank()] = numbers
    return numpy(all_reduce(tensor(rows))) if world() > 1 else rows


def synchronise(model: nn.Module) -> None:
    """Let every batch norm in train() take its statistics over the images of all processes."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.synchronised = True


_compile_fast()
_show_progress_in_notebooks()
set_device(_os.environ.get("ALIGN_DEVICE", "cpu"))
