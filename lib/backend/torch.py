"""PyTorch under the backend's names: the few functions that PyTorch spells otherwise; all others are PyTorch's own.

Twin of `jittor.py`.
"""

import ctypes as _ctypes
import inspect as _inspect
import logging as _logging
import os as _os
import sys as _sys
import warnings as _warnings
from collections import Counter as _Counter
from collections.abc import Callable as _Callable
from datetime import timedelta as _timedelta

import numpy as _np
import torch as _torch
from torch import distributed as _distributed
from torch import nn
from torch.nn import functional as _functional

NAME, FRAMEWORK = "torch", _torch
VERSION = _torch.__version__
FLOAT64 = "full"
# Of these PyTorch has others in its first module, or none.
adaptive_avg_pool2d = _functional.adaptive_avg_pool2d
binary_cross_entropy_with_logits = _functional.binary_cross_entropy_with_logits
interpolate, linear, one_hot = _functional.interpolate, _functional.linear, _functional.one_hot
_device = "cpu"  # chosen by the variable ALIGN_DEVICE, at the end of this file


def device() -> str:
    """The device on which `tensor` puts arrays: "cpu" or "cuda"."""
    return _device


def set_device(name: str) -> None:
    """Choose "cpu" or "cuda" for everything made from here on; ValueError if there is no such device."""
    global _device
    if name not in ("cpu", "cuda") or (name == "cuda" and not _torch.cuda.is_available()):
        raise ValueError(f"device {name!r} is not available to PyTorch {VERSION} on this machine")
    if name != _device:  # a default device slows every call a little: none is set for the CPU alone
        _torch.set_default_device(name)
    _device = name


def set_threads(count: int) -> None:
    _torch.set_num_threads(count)


def cache_path() -> str | None:
    """Where compiled kernels live; PyTorch eager compiles none."""
    return None


def tensor(array: _np.ndarray) -> _torch.Tensor:
    """A tensor on the chosen device with the array's dtype and a copy of its values."""
    return _torch.tensor(_np.asarray(array), device=_device)


def constant(make: _Callable[..., _np.ndarray]) -> _Callable[..., _torch.Tensor]:
    """A function of sizes, and other plain values, that gives an array, as one that gives a tensor. What compiles a
    model takes the tensor for a constant, instead of looking for operators in how the array is made."""

    def given(*values) -> _torch.Tensor:
        table = tensor(make(*values))
        table._dynamo_static_indices = set(range(table.ndim))  # as mark_static: one of another size is another constant
        return table

    given._dynamo_marked_constant = True  # as torch.compiler.assume_constant_result, which imports all of it first: 2 s
    return given


def numpy(value: _torch.Tensor) -> _np.ndarray:
    """The tensor's values, without its graph; scalars have shape ()."""
    return value.detach().cpu().numpy()


def floats(scalars: list[_torch.Tensor]) -> list[float]:
    """The values of one-element tensors, read after one synchronisation."""
    return _torch.stack([s.detach().reshape(()) for s in scalars]).tolist()


def float64(model: nn.Module) -> nn.Module:
    """Make every floating parameter and buffer float64, in place."""
    return model.double()


def grad(scalar: _torch.Tensor, tensors: list[_torch.Tensor], retain_graph: bool = True) -> list[_torch.Tensor]:
    """d scalar / d tensor for each tensor, zeros where the scalar does not depend on it.

    retain_graph: the graph can be used again, as where a cell is run twice; else what it saved is freed on the way."""
    found = _torch.autograd.grad(scalar, tensors, retain_graph=retain_graph, allow_unused=True)
    return [_torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found)]


def mixed_precision() -> _torch.autocast:
    """A context in which products and convolutions are computed in float16, on a GPU; not measured: none at hand."""
    return _torch.autocast("cuda", dtype=_torch.float16)


def from_half(value):
    """A float16 tensor as float32; anything else as it is."""
    return value.float() if isinstance(value, _torch.Tensor) and value.dtype == _torch.float16 else value


def sync() -> None:
    """Return when all work issued so far is done: what must precede every reading of a clock."""
    if _device == "cuda":
        _torch.cuda.synchronize()


def named_state(model: nn.Module) -> list[tuple[str, _torch.Tensor]]:
    """Every parameter and buffer under its published name, in published order."""
    return list(model.state_dict().items())


def set_mode(model: nn.Module, training: bool) -> nn.Module:
    """Training or evaluation, here and below."""
    return model.train(training)


def load_state(model: nn.Module, values: dict[str, _np.ndarray]) -> None:
    """Overwrite the named entries, dtypes kept. KeyError on an unknown name, ValueError on another shape."""
    entries = model.state_dict()
    for name, value in values.items():
        if entries[name].shape != _np.shape(value):
            raise ValueError(f"{name}: shape {_np.shape(value)} given, {tuple(entries[name].shape)} expected")
    with _torch.no_grad():
        for name, value in values.items():
            entries[name].copy_(_torch.as_tensor(_np.asarray(value)))


def tuned(model: nn.Module) -> nn.Module:
    """Make a model that nobody will train faster, in place. Weights lie with channels innermost: every convolution then
    reads and writes images so, which oneDNN and cuDNN compute as they lie; others are reordered around each one.
    Activations overwrite what they are given, which none of our models reads again."""
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = True
    return model.to(memory_format=_torch.channels_last)


def grid_sample(x: _torch.Tensor, grid: _torch.Tensor) -> _torch.Tensor:
    """x (n, c, h, w) read between pixels at grid (n, i, j, 2), x and y in -1..1 from edge to edge; 0 outside."""
    return _functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def write_onnx(model: nn.Module, images: _torch.Tensor, outputs: tuple[str, ...], opset: int, path: str) -> None:
    """Write the model in evaluation as an ONNX file: "images" of this shape, any number of them, to what it gives, by
    these names. torch.export refuses a model that holds for one number of images alone. (Tracing takes a second instead
    of sixteen, but does not know the size of a map that Gold-YOLO pools to another.)"""
    _logging.getLogger("torch.onnx").setLevel(_logging.ERROR)  # it tells everybody that there is no torchvision
    with _warnings.catch_warnings():
        _warnings.simplefilter("ignore")  # of what it does itself
        program = _torch.onnx.export(
            model,
            (images,),
            input_names=["images"],
            output_names=list(outputs),
            opset_version=opset,
            dynamic_shapes=({0: _torch.export.Dim("n")},),
            verbose=False,
        )
    program.save(path)


def profile(call) -> list[tuple[str, float, int]]:
    """(operator, own milliseconds, calls) of one `call()`, slowest first."""
    # Not torch.profiler, which imports all of PyTorch's compiler first: 2 s.
    with _torch.autograd.profiler.profile(use_device=None if _device == "cpu" else _device) as run:
        call()
        sync()
    if _device == "cuda":
        rows = [(row.key, row.self_device_time_total / 1000, row.count) for row in run.key_averages()]
    else:
        rows = _own_times(run.kineto_results.events())
    return sorted(rows, key=lambda row: -row[1])


def _own_times(events: list) -> list[tuple[str, float, int]]:
    """What key_averages says of a CPU's events (operator, own milliseconds, calls), thirty times as fast: a training
    step has 50000. An operator that calls itself under its own name is one call."""
    own, calls = _Counter(), _Counter()
    outer: list[tuple[int, int, str]] = []  # thread, end, operator: those around the event
    for thread, start, end, name in sorted(
        ((event.start_thread_id(), event.start_ns(), event.end_ns(), event.name()) for event in events),
        key=lambda event: (event[0], event[1], -event[2]),
    ):
        while outer and (outer[-1][0] != thread or outer[-1][1] <= start):
            outer.pop()
        parent = outer[-1][2] if outer else ""
        own[parent] -= end - start
        own[name] += end - start
        calls[name] += name != parent
        outer.append((thread, end, name))
    return [(name, own[name] / 1e6, count) for name, count in calls.items()]


def peak_device_memory() -> int | None:
    """Largest number of bytes the device allocator held so far; None on the CPU."""
    return _torch.cuda.max_memory_allocated() if _device == "cuda" else None


def give_back() -> None:
    """Return to the system what this process has freed: glibc keeps it, in pieces between what is still used."""
    if hasattr(_ctypes.CDLL(None), "malloc_trim"):
        _ctypes.CDLL(None).malloc_trim(0)


def _uncompiled(kind: type) -> type:
    """PyTorch's optimiser without its guards against torch.compile, the first of which imports all of it: 2 s."""
    guarded = ("add_param_group", "step", "zero_grad")
    return type(kind.__name__, (kind,), {name: _inspect.unwrap(getattr(kind, name)) for name in guarded})


class _Optimiser:
    """A PyTorch optimiser fed with gradients, whose state has names.

    groups: dicts with "parameters", a list of (name, tensor), and any option of the optimiser.
    """

    def __init__(self, kind, groups, **options):
        self._names = [name for group in groups for name, _ in group["parameters"]]
        self._optimiser = _uncompiled(kind)(
            [{**group, "params": [t for _, t in group["parameters"]]} for group in groups], **options
        )
        for group in self._optimiser.param_groups:
            del group["parameters"]
        self._tensors = [t for group in self._optimiser.param_groups for t in group["params"]]

    def set_lr(self, rates: list[float]) -> None:
        """One learning rate for each group."""
        for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
            group["lr"] = rate

    @property
    def groups(self) -> list[dict]:
        """The options that the next step takes, by group."""
        return self._optimiser.param_groups

    def counts(self) -> set[float]:
        """How many steps the parameters have taken, where the rule counts them: one number, as all take the same."""
        return {float(held["step"]) for held in self._optimiser.state.values() if "step" in held}

    def step(self, gradients: list[_torch.Tensor]) -> None:
        """Update every parameter in place from gradients in the order of the groups."""
        for parameter, gradient in zip(self._tensors, gradients, strict=True):
            parameter.grad = gradient
        with _torch.no_grad():
            self._optimiser.step()
        self._optimiser.zero_grad()

    def state(self) -> dict[str, _np.ndarray]:
        """Everything a resumed run needs, under "<parameter>/<moment>"."""
        state = self._optimiser.state
        return {
            f"{name}/{key}": numpy(_torch.as_tensor(value))
            for name, t in zip(self._names, self._tensors)
            for key, value in state[t].items()
            if value is not None
        }

    def load_state(self, values: dict[str, _np.ndarray]) -> None:
        named = dict(zip(self._names, self._tensors))
        for key, value in values.items():
            name, moment = key.rsplit("/", 1)
            self._optimiser.state[named[name]][moment] = _torch.tensor(value) if moment == "step" else tensor(value)


class _SGD(_Optimiser):
    def set_momentum(self, value: float) -> None:
        for group in self._optimiser.param_groups:
            group["momentum"] = value


def AdamW(groups: list[dict], lr: float, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01) -> _Optimiser:
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019), as torch.optim.AdamW."""
    return _Optimiser(_torch.optim.AdamW, groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def SGD(groups: list[dict], lr: float, momentum=0.0, nesterov=False, weight_decay=0.0) -> _SGD:
    """SGD with momentum, as torch.optim.SGD."""
    return _SGD(_torch.optim.SGD, groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


# ------------------------------------------------------------------------------------------------ several processes
LAUNCHED = "TORCHELASTIC_RUN_ID"  # set in the processes that `launcher` starts
DIED = r"rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: -(\d+)"  # a process and the signal, as the launcher says it


def launcher(processes: int) -> list[str]:
    """What starts the options behind it as so many Pythons: torchrun."""
    return [_sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def join() -> None:
    """Take this process's place among those that the launcher started. They may wait for one another for days: who
    dies ends the others through the launcher."""
    if _device == "cuda":
        _torch.cuda.set_device(int(_os.environ["LOCAL_RANK"]))
    _distributed.init_process_group("nccl" if _device == "cuda" else "gloo", timeout=_timedelta(days=30))


def world() -> int:
    """How many processes train together."""
    return _distributed.get_world_size() if _distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return _distributed.get_rank() if _distributed.is_initialized() else 0


class _AllReduce(_torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        total = x.clone(memory_format=_torch.contiguous_format)
        try:
            _distributed.all_reduce(total)
        except RuntimeError as error:
            raise ConnectionError("another process of this training is gone") from error
        return total

    @staticmethod
    def backward(_, gradient):
        return _AllReduce.apply(gradient)


def all_reduce(x: _torch.Tensor) -> _torch.Tensor:
    """The sum of x over all processes, x itself for one; so is its gradient. ConnectionError where another is gone."""
    return _AllReduce.apply(x) if world() > 1 else x


def all_reduce_each(tensors: list[_torch.Tensor]) -> list[_torch.Tensor]:
    """`all_reduce` of each, without a graph, in one message: each waits for all processes."""
    if world() == 1:
        return tensors
    with _torch.no_grad():
        parts = all_reduce(_torch.cat([t.reshape(-1) for t in tensors])).split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors)]


def all_gather(numbers: list[float]) -> _np.ndarray:
    """The numbers of every process, float64 (processes, k), exact up to 2**53. All must ask, in the same order."""
    rows = _np.zeros((world(), len(numbers)))
    rows[rank()] = numbers
    return numpy(all_reduce(tensor(rows))) if world() > 1 else rows


class _SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """PyTorch's own needs a GPU."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        count, shape = world() * x.numel() // x.shape[1], (1, -1, 1, 1)
        mean = all_reduce(x.sum((0, 2, 3), keepdim=True)) / count
        centred = x - mean
        variance = all_reduce((centred * centred).sum((0, 2, 3), keepdim=True)) / count
        self.running_mean.lerp_(mean.detach().flatten(), self.momentum)
        self.running_var.lerp_(variance.detach().flatten() * (count / (count - 1)), self.momentum)
        self.num_batches_tracked.add_(1)
        scale = self.weight.reshape(shape) / (variance + self.eps).sqrt()
        return centred * scale + self.bias.reshape(shape)


def synchronise(model: nn.Module) -> None:
    """Let every batch norm in train() take its statistics over the images of all processes."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SynchronisedBatchNorm2d


set_device(_os.environ.get("ALIGN_DEVICE", "cpu"))
