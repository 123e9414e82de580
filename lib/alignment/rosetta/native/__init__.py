"""The framework itself, not the backend: what the probes' native code is given.

With `lib.backend` the only place that names a framework. Both modules define the names below.
"""

from importlib.util import find_spec

if find_spec("jittor"):
    from .jittor import framework, gradient, numpy, sync, tensor
else:
    from .torch import framework, gradient, numpy, sync, tensor

__all__ = ["framework", "gradient", "numpy", "sync", "tensor"]
