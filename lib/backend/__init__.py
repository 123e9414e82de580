"""The only place that knows which framework runs: PyTorch's vocabulary on the framework of this environment.

Each environment holds exactly one framework, so there is nothing to choose. `torch.py` re-exports PyTorch;
`jittor.py` gives Jittor the same names with the same meaning, and its docstrings are the porting guide.
Both modules define the names of `torch.py`'s `__all__`, in the same order.
"""

from importlib.util import find_spec

if find_spec("jittor"):
    from .jittor import *
    from .jittor import __all__
else:
    from .torch import *
    from .torch import __all__
