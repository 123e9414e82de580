"""Jittor modules with the constructors, names and meaning of `torch.nn`.

Every class is a real `jittor.nn.Module`; `Module` mends what the base class does differently, the others say their
own differences. Only what the models use is here.
"""

import copy

import numpy as np

from .jittor_functions import array
from .jittor_import import jt
from .kernels import elementwise, normalise, products, windows

Tensor = jt.Var


def Parameter(value: Tensor) -> Tensor:
    """Mark a tensor as trained; in Jittor every tensor attribute of a module is, buffers and constants too."""
    value.is_parameter = True
    return value.start_grad()


class Module(jt.nn.Module):
    """`forward` instead of `execute`; parameters are what `Parameter` marked; state as PyTorch orders it."""

    is_train = True

    def execute(self, *inputs):
        return self.forward(*inputs)

    def __call__(self, *inputs):
        output = self.execute(*inputs)
        for hook in list(self.__dict__.get("_hooks", {}).values()):
            hook(self, inputs, output)
        return output

    def __deepcopy__(self, memo):
        """A copy whose tensors are what they were; Jittor's copies are neither parameters nor scalars."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        for name, value in vars(self).items():
            vars(twin)[name] = copied = copy.deepcopy(value, memo)
            if isinstance(value, Tensor):
                for mark in ("is_parameter", "is_scalar"):
                    setattr(copied, mark, getattr(value, mark, False))
        return twin

    def register_forward_hook(self, hook) -> "HookHandle":
        """Call hook(module, inputs, output) after every forward; Jittor keeps one hook a module."""
        return HookHandle(self.__dict__.setdefault("_hooks", {}), hook)

    def eval(self):
        """Evaluation mode; gradients keep flowing (Jittor's eval() stops them at every parameter)."""
        return self.train(False)

    def train(self, mode: bool = True):
        """Training mode on or off, here and below."""
        for module in self.modules():
            module.is_train = mode
        return self

    def register_buffer(self, name: str, value: Tensor) -> None:
        """State that is saved and not trained."""
        setattr(self, name, value.stop_grad())
        self.__dict__.setdefault("_buffer_names", []).append(name)

    def named_children(self) -> list[tuple[str, "Module"]]:
        """Direct children in order of registration."""
        return [(name, value) for name, value in self.__dict__.items() if isinstance(value, Module)]

    def children(self) -> list["Module"]:
        return [child for _, child in self.named_children()]

    def named_modules(self, prefix: str = ""):
        """This module and all below, outermost first, under their dotted paths."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> list["Module"]:
        return [module for _, module in self.named_modules()]

    def _own_state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        own = self.__dict__
        return (
            {name: value for name, value in own.items() if getattr(value, "is_parameter", False)},
            {name: own[name] for name in own.get("_buffer_names", [])},
        )

    def _named(self, kinds: tuple[int, ...]):
        for path, module in self.named_modules():
            state = module._own_state()
            for kind in kinds:
                for name, value in state[kind].items():
                    yield f"{path}.{name}" if path else name, value

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """What is trained; Jittor's list has the buffers too."""
        return list(self._named((0,)))

    def parameters(self) -> list[Tensor]:
        return [value for _, value in self.named_parameters()]

    def named_buffers(self) -> list[tuple[str, Tensor]]:
        return list(self._named((1,)))

    def named_state(self):
        """Per module its parameters, then its buffers, then its children: PyTorch's order of a state dict."""
        return self._named((0, 1))


class HookHandle:
    def __init__(self, hooks: dict, hook):
        self.hooks = hooks
        hooks[self] = hook  # by the handle itself: the id of one that nobody keeps would serve again

    def remove(self) -> None:
        del self.hooks[self]


class ModuleList(Module):
    """Children under "0", "1", …"""

    def __init__(self, modules=()):
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> None:
        """Add a child under the next number."""
        setattr(self, str(len(self)), module)

    def __len__(self):
        return len(self.named_children())

    def __iter__(self):
        return iter(self.children())

    def __getitem__(self, index):
        return self.children()[index]


class Sequential(ModuleList):
    def __init__(self, *modules):
        super().__init__(modules)

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


class Identity(Module):
    def forward(self, x):
        return x


def _pair(value) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


class Conv2d(Module):
    """Convolution by oneDNN's primitives (`products.conv2d`). Weights start as zeros: models fill them."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True):
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.weight = Parameter(jt.zeros((out_channels, in_channels // groups, *self.kernel_size)))
        self.bias = Parameter(jt.zeros((out_channels,))) if bias else None
        self.rule = None  # a faster one: see `tuned`

    def forward(self, x):
        if self.rule:
            return self.rule(x)
        y = products.conv2d(x, self.weight, self.stride, self.padding, self.dilation, self.groups)
        return y if self.bias is None else normalise.add_bias(y, self.bias)


class BatchNorm2d(Module):
    """Two-pass statistics, and a running variance of the unbiased ones: Jittor computes E[x²] - E[x]² (9e-4 off at
    mean / std = 10) and averages the biased variance. Has `num_batches_tracked`, as published checkpoints do."""

    synchronised = False  # whether the statistics are those of all processes' images

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(jt.ones((num_features,)))
        self.bias = Parameter(jt.zeros((num_features,)))
        self.register_buffer("running_mean", jt.zeros((num_features,)))
        self.register_buffer("running_var", jt.ones((num_features,)))
        batches = array(np.zeros(1, np.int64))
        batches.is_scalar = True
        self.register_buffer("num_batches_tracked", batches)

    def forward(self, x):
        if not self.is_train:
            # A Python number would be float32 even among float64 values.
            eps = array(np.array([self.eps], str(self.running_var.dtype)))
            scale = self.weight / jt.sqrt(self.running_var + eps)
            shift = self.bias - self.running_mean * scale
            return normalise.affine(x, scale, shift)
        rule = normalise.synchronised_batch_norm if self.synchronised else normalise.batch_norm
        y, mean, variance = rule(x, self.weight, self.bias, self.eps)
        count = x.numel() // x.shape[1] * (jt.world_size if self.synchronised else 1)
        if count == 1:
            raise ValueError(f"batch norm needs more than one value per channel in training, got shape {x.shape}")
        if count:  # nothing has no mean: as in PyTorch, only the batch is counted
            self.running_mean.update(normalise.blend(self.running_mean, mean, self.momentum))
            self.running_var.update(normalise.blend(self.running_var, variance, self.momentum, count / (count - 1)))
        self.num_batches_tracked.update(self.num_batches_tracked + 1)
        return y


class GroupNorm(Module):
    """Two-pass statistics; Jittor's one-pass ones are off by 74 at offset 1e3 and deviation 0.1."""

    def __init__(self, num_groups, num_channels, eps=1e-5):
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = Parameter(jt.ones((num_channels,)))
        self.bias = Parameter(jt.zeros((num_channels,)))

    def forward(self, x):
        return normalise.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class LayerNorm(Module):
    """Over the last axis, two-pass; Jittor's one-pass statistics are off by 71 at offset 1e3 and deviation 0.1."""

    def __init__(self, normalized_shape: int, eps=1e-5):
        self.normalized_shape, self.eps = normalized_shape, eps
        self.weight = Parameter(jt.ones((normalized_shape,)))
        self.bias = Parameter(jt.zeros((normalized_shape,)))

    def forward(self, x):
        return normalise.layer_norm(x, self.weight, self.bias, self.eps)


class Linear(Module):
    """x (…, in) times weight (out, in) transposed, plus bias. Weights start as zeros: models fill them."""

    def __init__(self, in_features, out_features, bias=True):
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(jt.zeros((out_features, in_features)))
        self.bias = Parameter(jt.zeros((out_features,))) if bias else None

    def forward(self, x):
        return products.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of weight (num, dim) by int64 labels; no gradient reaches row `padding_idx`, which Jittor's module doesn't
    know. Weights start as zeros: models fill them."""

    def __init__(self, num_embeddings, embedding_dim, padding_idx: int | None = None):
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.weight = Parameter(jt.zeros((num_embeddings, embedding_dim)))

    def forward(self, labels):
        rows = self.weight[labels]
        if self.padding_idx is None:
            return rows
        return jt.where((labels != self.padding_idx).unsqueeze(-1).broadcast(rows.shape), rows, rows.detach())


class ReLU(Module):
    def forward(self, x):
        return elementwise.relu(x)


class ReLU6(Module):
    """x cut to 0..6; the gradient is 0 at both bounds (that of `clamp` is 1)."""

    def forward(self, x):
        return elementwise.relu6(x)


class SiLU(Module):
    def forward(self, x):
        return elementwise.silu(x)


class GELU(Module):
    """By the error function, as PyTorch's default."""

    def forward(self, x):
        return elementwise.gelu(x)


class LeakyReLU(Module):
    def __init__(self, negative_slope=0.01):
        self.negative_slope = negative_slope

    def forward(self, x):
        return elementwise.leaky_relu(x, self.negative_slope)


class MaxPool2d(Module):
    """Maxima over windows; where a map is not larger than the window Jittor raises, PyTorch gives one value."""

    def __init__(self, kernel_size, stride=None, padding=0):
        self.kernel_size, self.stride, self.padding = kernel_size, stride or kernel_size, padding

    def forward(self, x):
        return windows.max_pool(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(Module):
    """Means over windows; one cut off at the end by `ceil_mode` divides by its own count."""

    def __init__(self, kernel_size, stride=None, ceil_mode=False):
        self.kernel_size, self.stride, self.ceil_mode = kernel_size, stride or kernel_size, ceil_mode

    def forward(self, x):
        return windows.avg_pool(x, self.kernel_size, self.stride, self.ceil_mode)
