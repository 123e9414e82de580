"""The form in which a model is run where nothing is trained: the same function as in eval(), in fewer operators.

Every batch norm lies in the convolution before it, branches that `deploy` merges are one, what only training needs is
gone, and the backend has tuned what is left, which has no gradient then. The published tools do the same before they
measure or export: Gold-YOLO's and RT-DETR's `deploy`, and folding as in arXiv:1712.05877, section 3.2. Whether a form
is the same function is for those who run it to have judged.
"""

import copy
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from lib.backend import float64, load_state, nn, numpy, tuned
from lib.errors import UserError

# A convolution and the norm that alone sees its output, by their names in a module; in a Sequential, neighbours.
PAIRS = (("conv", "bn"), ("c", "bn"), ("conv", "norm"), ("depthwise", "dwnorm"), ("pointwise", "pwnorm"))


class Unfolded(ValueError):
    """A model has a batch norm that lies behind no convolution."""


def inference_form(model: nn.Module) -> nn.Module:
    """A new module with the outputs of `model`, a detector of lib.models in eval(), which stays as it is.

    UserError for a model in train(): there a norm takes the statistics of its batch, and nothing can hold them before.
    Unfolded for one with a norm that no convolution takes.
    """
    if model.training:
        raise UserError("inference form: the model is in train(); call model.eval() first, or use it as it is")
    form = copy.deepcopy(model).deploy()
    for module in list(form.modules()):
        for convolution, norm in list(_pairs(module)):
            setattr(module, convolution, merged((getattr(module, convolution), getattr(module, norm))))
            setattr(module, norm, nn.Identity())
    if left := [path for path, module in form.named_modules() if _is_norm(module)]:
        raise Unfolded(f"{left[0]}: a batch norm that no convolution takes; name the two in lib.models.inference.PAIRS")
    return tuned(form.eval())


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the module's convolutions that a batch norm follows, and of that."""
    children = dict(module.named_children())
    for convolution, norm in pairwise(children) if isinstance(module, nn.Sequential) else PAIRS:
        if isinstance(children.get(convolution), nn.Conv2d) and _is_norm(children.get(norm)):
            yield convolution, norm


def _is_norm(module: nn.Module | None) -> bool:
    """Whether the module is a batch norm, of any kind: it alone keeps statistics."""
    return hasattr(module, "running_var")


def merged(*branches: tuple[nn.Module | None, nn.Module]) -> nn.Module:
    """The convolution that gives what branches (convolution, norm) in eval() add up to; None: the input itself is
    normalised. Computed in float64, rounded once. The first convolution's kernel is the largest; all have its stride.
    """
    first = branches[0][0]
    kernels, biases = zip(*(_folded(numpy(first.weight).shape, *branch) for branch in branches))
    sizes = first.in_channels, first.out_channels, first.kernel_size, first.stride, first.padding, first.dilation
    whole = nn.Conv2d(*sizes, first.groups)
    if numpy(first.weight).dtype == np.float64:
        float64(whole)
    load_state(whole, {"weight": np.sum(kernels, 0), "bias": np.sum(biases, 0)})
    return whole


def _folded(shape: tuple[int, ...], convolution: nn.Module | None, norm: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """(kernel of this shape, bias), float64, of the one convolution that equals both in eval()."""
    mean, variance, weight, bias = (
        numpy(value).astype(np.float64) for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    factor = weight / np.sqrt(variance + norm.eps)
    kernel, (c_out, c_in, height, width) = np.zeros(shape), shape
    if convolution is None:
        kernel[np.arange(c_out), np.arange(c_out) % c_in, height // 2, width // 2] = 1  # in its group, its own channel
    else:
        own = numpy(convolution.weight)
        top, left = (height - own.shape[2]) // 2, (width - own.shape[3]) // 2
        kernel[:, :, top : top + own.shape[2], left : left + own.shape[3]] = own
        if convolution.bias is not None:
            mean = mean - numpy(convolution.bias)
    return kernel * factor[:, None, None, None], bias - mean * factor
