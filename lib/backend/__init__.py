"""The only place that knows which framework runs: PyTorch's vocabulary on the framework of this environment.

Each environment holds exactly one framework: there is nothing to choose. `torch.py` has what PyTorch spells otherwise;
`jittor.py` and `jittor_functions.py` give Jittor the same names with the same meaning, and their docstrings are the
porting guide. Here belongs what differs between the frameworks, and nothing that knows of models or data.

`NAMES` are all that others use; what `torch.py` lacks of them is PyTorch's own.
"""

from importlib.util import find_spec

NAMES = [
    "DIED",
    "FLOAT64",
    "LAUNCHED",
    "NAME",
    "SGD",
    "VERSION",
    "AdamW",
    "abs",
    "adaptive_avg_pool2d",
    "all_gather",
    "all_reduce",
    "all_reduce_each",
    "amax",
    "arange",
    "argmax",
    "asin",
    "binary_cross_entropy_with_logits",
    "cache_path",
    "cat",
    "chunk",
    "clamp",
    "constant",
    "cos",
    "device",
    "exp",
    "float64",
    "floats",
    "floor_divide",
    "from_half",
    "full",
    "gather",
    "give_back",
    "grad",
    "grid_sample",
    "interpolate",
    "join",
    "launcher",
    "linear",
    "load_state",
    "log",
    "log_softmax",
    "matmul",
    "maximum",
    "mean",
    "minimum",
    "mixed_precision",
    "mul",
    "named_state",
    "nn",
    "no_grad",
    "numpy",
    "one_hot",
    "ones",
    "ones_like",
    "peak_device_memory",
    "profile",
    "rank",
    "remainder",
    "set_device",
    "set_mode",
    "set_threads",
    "sigmoid",
    "sin",
    "softmax",
    "split",
    "sqrt",
    "stack",
    "sum",
    "sync",
    "synchronise",
    "tensor",
    "topk",
    "tuned",
    "where",
    "world",
    "write_onnx",
    "zeros",
    "zeros_like",
]

if find_spec("jittor"):
    from . import jittor, jittor_functions

    _sources = jittor, jittor_functions
else:
    from . import torch

    _sources = torch, torch.FRAMEWORK
globals().update({name: next(vars(one)[name] for one in _sources if name in vars(one)) for name in NAMES})
