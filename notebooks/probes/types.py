"""Types and scalars: what a number becomes when nobody asks."""

import numpy as np

from notebooks.probes.probe import ask, attempt, dtype, f32, given

from .process import child

TOPIC = "Types and scalars"
BIG = np.array([2**31 + 7, -3], np.int64)
TENTHS = np.array([1.0, 3.0, 7.0])
WHOLE = np.array([7, -7, 3], np.int32)
MASK = np.array([True, False, True])
PIXELS = np.full(300, 200, np.uint8)
# In a process of its own, where which type comes first is known; with the backend's flags, whose kernels it shares.
CHILD = """
from lib import backend
import jittor as jt
from notebooks.probes.types import shared
print(shared(lambda x: jt.array(x, dtype=str(x.dtype)), jt.sync_all))
"""


def shared(make, sync=lambda: None) -> str:
    """Whether a float64 is kept that four kernels share, after a float32 was shared so."""
    for kind, number in (("float32", 0.3), ("float64", 7.0)):
        tensors = [make(np.ones(shape, kind)) for shape in ((4,), (2, 3), (5,), (2, 2, 2))]
        sync()
        one = make(np.full(1, number, kind))
        products = [tensor * one for tensor in tensors]
        sync()
    return "kept" if all((product.numpy() == number).all() for product in products) else "changed"


PROBES = {
    "type of a float64 array": ask(
        "Which type has a tensor made from a float64 array?",
        "Pass the type: jt.array(a, dtype=str(a.dtype)).",
        jittor=lambda jt: dtype(jt.array(TENTHS)),
        torch=lambda torch: dtype(torch.tensor(TENTHS)),
        backend=lambda B: dtype(B.tensor(TENTHS)),
        expected=lambda: "float64",
    ),
    "type of an int64 array": ask(
        "Which type has a tensor made from an int64 array?",
        "Pass the type: labels and indices silently lose their upper half otherwise.",
        jittor=lambda jt: dtype(jt.array(BIG)),
        torch=lambda torch: dtype(torch.tensor(BIG)),
        backend=lambda B: dtype(B.tensor(BIG)),
        expected=lambda: "int64",
    ),
    "integers beyond 32 bits": ask(
        "What is 2**31 + 7 after becoming a tensor?",
        "Keep COCO image ids and hashes outside Jittor, or pass the type int64.",
        jittor=lambda jt: jt.array(BIG),
        torch=lambda torch: torch.tensor(BIG),
        backend=lambda B: B.tensor(BIG),
        expected=lambda: BIG,
    ),
    "a float64 that several kernels share": ask(
        "Does 7 in float64, multiplied into four tensors after 0.3 in float32 was, keep its value?",
        "Write jt.array(a, dtype=str(a.dtype)).sync() for one number of 8 bytes: Jittor may write 4 of them.",
        jittor=lambda jt: child(CHILD),
        torch=lambda torch: shared(torch.tensor),
        backend=lambda B: shared(B.tensor, B.sync),
        expected=lambda: "kept",
    ),
    "type of arange": ask(
        "Which type has arange(3)?",
        "Write jt.arange(n).int64() where the type is seen from outside.",
        every=lambda F: dtype(F.arange(3)),
        expected=lambda: "int64",
    ),
    "type of a literal list": ask(
        "Which type has a tensor made from [1, 2]?",
        "Integer literals are int32 in Jittor: pass the type.",
        jittor=lambda jt: dtype(jt.array([1, 2])),
        torch=lambda torch: dtype(torch.tensor([1, 2])),
        expected=lambda: "int64",
    ),
    "type of an argmax": given(f32(1, 3, 2)).ask(
        "Which type has the index that argmax gives?",
        "Cast indices to int64 where they meet PyTorch's in a record.",
        jittor=lambda jt, x: dtype(jt.argmax(x, 0)[0]),
        torch=lambda torch, x: dtype(torch.argmax(x, 0)),
        backend=lambda B, x: dtype(B.argmax(x, 0)),
        expected=lambda x: "int64",
    ),
    "sum of a mask": given(MASK).ask(
        "What is the sum of [true, false, true]?",
        "Cast a mask to a number before adding it up.",
        both=lambda F, mask: mask.sum(),
        backend=lambda B, mask: B.sum(mask),
        expected=lambda mask: mask.sum(),
    ),
    "type of a mask's sum": given(MASK).ask(
        "Which type has the sum of a mask?",
        "Cast counts to int64 where their type matters.",
        both=lambda F, mask: dtype(mask.sum()),
        backend=lambda B, mask: dtype(B.sum(mask)),
        expected=lambda mask: "int64",
    ),
    "sum of uint8": given(PIXELS).ask(
        "What is the sum of 300 pixels of value 200?",
        "Cast an image to a wide type before any sum: 8 bits wrap around.",
        both=lambda F, x: x.sum(),
        backend=lambda B, x: B.sum(x),
        expected=lambda x: x.sum(dtype=np.int64),
    ),
    "quotient of integers": given(WHOLE).ask(
        "What is 7 / 3 for integer tensors?",
        "/ gives a floating quotient in both.",
        jittor=lambda jt, x: x / jt.array([3, 3, 3]),
        torch=lambda torch, x: x / torch.tensor([3, 3, 3]),
        expected=lambda x: x / 3,
    ),
    "square of integers": given(WHOLE).ask(
        "Which type has the square of an int32 tensor?",
        "Write x * x for integers.",
        both=lambda F, x: dtype(x**2),
        expected=lambda x: "int32",
    ),
    "float32 times float64": given(f32(1, 2, 3), TENTHS).ask(
        "Which type has a float32 tensor times a float64 tensor?",
        "The wider type wins in both.",
        every=lambda F, x, y: dtype(x * y),
        expected=lambda x, y: "float64",
    ),
    "not of a mask": given(MASK).ask(
        "What is ~[true, false, true]?",
        "Write logical_not: Jittor's tensors have no ~.",
        jittor=lambda jt, mask: attempt(lambda: (~mask).numpy()),
        torch=lambda torch, mask: ~mask,
        expected=lambda mask: ~mask,
    ),
    "Python number in float64": given(TENTHS, precision=np.float64).ask(
        "How exact is x * 0.1 for a float64 x?",
        "Python numbers are float32 in Jittor: make a constant that float32 can't hold a float64 tensor.",
        both=lambda F, x: x * 0.1,
        backend=lambda B, x: x * B.tensor(np.array([0.1])),
        expected=lambda x: x * 0.1,
    ),
    "full in float64": given(TENTHS, precision=np.float64).ask(
        "How exact is full(2, 0.1) in float64?",
        "Make the constant from a float64 array.",
        both=lambda F, x: F.full_like(x, 0.1),
        backend=lambda B, x: B.full(x.shape, 0.1, dtype=x.dtype),
        expected=lambda x: np.full_like(x, 0.1),
    ),
    "shape of a full sum": given(f32(1, 3, 2)).ask(
        "Which shape has the sum over everything?",
        "Jittor has no 0-dimensional tensors: stack losses with concat, and reshape to () on the way out.",
        both=lambda F, x: str(x.sum().numpy().shape),
        backend=lambda B, x: str(B.numpy(B.sum(x)).shape),
        expected=lambda x: "()",
    ),
    "stack of scalars": given(f32(1, 3, 2)).ask(
        "Which shape has a stack of two full sums?",
        "Join full sums with concat: a stack of them is (k, 1) in Jittor.",
        both=lambda F, x: str(tuple(F.stack([x.sum(), x.sum()]).shape)),
        backend=lambda B, x: str(tuple(B.stack([B.sum(x), B.sum(x)]).shape)),
        expected=lambda x: "(2,)",
    ),
    "truth of several values": given(MASK).ask(
        "Does `if tensor:` refuse a tensor of several values?",
        "Compare with .all() or .any() before an if.",
        both=lambda F, mask: attempt(lambda: str(bool(mask))),
        expected=lambda mask: "raises",
    ),
    "printed tensor": ask(
        "What does print show for a tensor of 1?",
        "Compare numbers, never printed tensors: digits and wrapping differ.",
        jittor=lambda jt: str(jt.array([1.0])),
        torch=lambda torch: str(torch.tensor([1.0])),
        expected=lambda: "tensor([1.])",
    ),
    "tensor and its array": ask(
        "Does the array made by .numpy() change with the tensor?",
        "Copy before you keep: sharing is PyTorch's, and no port should lean on it.",
        jittor=lambda jt: _array_after_change(jt.array(TENTHS)),
        torch=lambda torch: _array_after_change(torch.tensor(TENTHS)),
        expected=lambda: TENTHS + 1,
    ),
}


def _array_after_change(x):
    array = x.numpy()
    x += 1
    x.numpy()
    return array.copy()
