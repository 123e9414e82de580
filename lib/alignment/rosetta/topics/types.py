"""Types and scalars: what a number becomes when nobody asks."""
import numpy as np

from ..probe import Probe, attempt, dtype, f32

TOPIC = "Types and scalars"
BIG = np.array([2**31 + 7, -3], np.int64)
TENTHS = np.array([1.0, 3.0, 7.0])
WHOLE = np.array([7, -7, 3], np.int32)
MASK = np.array([True, False, True])
PIXELS = np.full(300, 200, np.uint8)

PROBES = (
    Probe(
        topic=TOPIC, name="type of a float64 array",
        question="Which type has a tensor made from a float64 array?",
        advice="Pass the type: jt.array(a, dtype=str(a.dtype)).",
        jittor=lambda jt: dtype(jt.array(TENTHS)),
        torch=lambda torch: dtype(torch.tensor(TENTHS)),
        backend=lambda B: dtype(B.tensor(TENTHS)),
        expected=lambda: "float64",
    ),
    Probe(
        topic=TOPIC, name="type of an int64 array",
        question="Which type has a tensor made from an int64 array?",
        advice="Pass the type: labels and indices silently lose their upper half otherwise.",
        jittor=lambda jt: dtype(jt.array(BIG)),
        torch=lambda torch: dtype(torch.tensor(BIG)),
        backend=lambda B: dtype(B.tensor(BIG)),
        expected=lambda: "int64",
    ),
    Probe(
        topic=TOPIC, name="integers beyond 32 bits",
        question="What is 2**31 + 7 after becoming a tensor?",
        advice="Keep COCO image ids and hashes outside Jittor, or pass the type int64.",
        jittor=lambda jt: jt.array(BIG),
        torch=lambda torch: torch.tensor(BIG),
        backend=lambda B: B.tensor(BIG),
        expected=lambda: BIG,
    ),
    Probe(
        topic=TOPIC, name="type of arange",
        question="Which type has arange(3)?",
        advice="Write jt.arange(n).int64() where the type is seen from outside.",
        jittor=lambda jt: dtype(jt.arange(3)),
        torch=lambda torch: dtype(torch.arange(3)),
        backend=lambda B: dtype(B.arange(3)),
        expected=lambda: "int64",
    ),
    Probe(
        topic=TOPIC, name="type of a literal list",
        question="Which type has a tensor made from [1, 2]?",
        advice="Integer literals are int32 in Jittor: pass the type.",
        jittor=lambda jt: dtype(jt.array([1, 2])),
        torch=lambda torch: dtype(torch.tensor([1, 2])),
        expected=lambda: "int64",
    ),
    Probe(
        topic=TOPIC, name="type of an argmax",
        question="Which type has the index that argmax gives?",
        advice="Cast indices to int64 where they meet PyTorch's in a record.",
        jittor=lambda jt, x: dtype(jt.argmax(x, 0)[0]),
        torch=lambda torch, x: dtype(torch.argmax(x, 0)),
        backend=lambda B, x: dtype(B.argmax(x, 0)),
        expected=lambda x: "int64", inputs=(f32(1, 3, 2),),
    ),
    Probe(
        topic=TOPIC, name="sum of a mask",
        question="What is the sum of [true, false, true]?",
        advice="Cast a mask to a number before adding it up.",
        jittor=lambda jt, mask: mask.sum(),
        torch=lambda torch, mask: mask.sum(),
        backend=lambda B, mask: B.sum(mask),
        expected=lambda mask: mask.sum(), inputs=(MASK,),
    ),
    Probe(
        topic=TOPIC, name="type of a mask's sum",
        question="Which type has the sum of a mask?",
        advice="Cast counts to int64 where their type matters.",
        jittor=lambda jt, mask: dtype(mask.sum()),
        torch=lambda torch, mask: dtype(mask.sum()),
        backend=lambda B, mask: dtype(B.sum(mask)),
        expected=lambda mask: "int64", inputs=(MASK,),
    ),
    Probe(
        topic=TOPIC, name="sum of uint8",
        question="What is the sum of 300 pixels of value 200?",
        advice="Cast an image to a wide type before any sum: 8 bits wrap around.",
        jittor=lambda jt, x: x.sum(),
        torch=lambda torch, x: x.sum(),
        backend=lambda B, x: B.sum(x),
        expected=lambda x: x.sum(dtype=np.int64), inputs=(PIXELS,),
    ),
    Probe(
        topic=TOPIC, name="quotient of integers",
        question="What is 7 / 3 for integer tensors?",
        advice="/ gives a floating quotient in both.",
        jittor=lambda jt, x: x / jt.array([3, 3, 3]),
        torch=lambda torch, x: x / torch.tensor([3, 3, 3]),
        expected=lambda x: x / 3, inputs=(WHOLE,),
    ),
    Probe(
        topic=TOPIC, name="square of integers",
        question="Which type has the square of an int32 tensor?",
        advice="Write x * x for integers.",
        jittor=lambda jt, x: dtype(x**2),
        torch=lambda torch, x: dtype(x**2),
        expected=lambda x: "int32", inputs=(WHOLE,),
    ),
    Probe(
        topic=TOPIC, name="float32 times float64",
        question="Which type has a float32 tensor times a float64 tensor?",
        advice="The wider type wins in both.",
        jittor=lambda jt, x, y: dtype(x * y),
        torch=lambda torch, x, y: dtype(x * y),
        backend=lambda B, x, y: dtype(x * y),
        expected=lambda x, y: "float64", inputs=(f32(1, 2, 3), TENTHS),
    ),
    Probe(
        topic=TOPIC, name="not of a mask",
        question="What is ~[true, false, true]?",
        advice="Write logical_not: Jittor's tensors have no ~.",
        jittor=lambda jt, mask: attempt(lambda: (~mask).numpy()),
        torch=lambda torch, mask: ~mask,
        expected=lambda mask: ~mask, inputs=(MASK,),
    ),
    Probe(
        topic=TOPIC, name="Python number in float64",
        question="How exact is x * 0.1 for a float64 x?",
        advice="Python numbers are float32 in Jittor: make a constant that float32 can't hold a float64 tensor.",
        jittor=lambda jt, x: x * 0.1,
        torch=lambda torch, x: x * 0.1,
        backend=lambda B, x: x * B.tensor(np.array([0.1])),
        expected=lambda x: x * 0.1, inputs=(TENTHS,), precision=np.float64,
    ),
    Probe(
        topic=TOPIC, name="full in float64",
        question="How exact is full(2, 0.1) in float64?",
        advice="Make the constant from a float64 array.",
        jittor=lambda jt, x: jt.full_like(x, 0.1),
        torch=lambda torch, x: torch.full_like(x, 0.1),
        backend=lambda B, x: B.full(x.shape, 0.1, dtype=x.dtype),
        expected=lambda x: np.full_like(x, 0.1), inputs=(TENTHS,), precision=np.float64,
    ),
    Probe(
        topic=TOPIC, name="shape of a full sum",
        question="Which shape has the sum over everything?",
        advice="Jittor has no 0-dimensional tensors: stack losses with concat, and reshape to () on the way out.",
        jittor=lambda jt, x: str(x.sum().numpy().shape),
        torch=lambda torch, x: str(x.sum().numpy().shape),
        backend=lambda B, x: str(B.numpy(B.sum(x)).shape),
        expected=lambda x: "()", inputs=(f32(1, 3, 2),),
    ),
    Probe(
        topic=TOPIC, name="stack of scalars",
        question="Which shape has a stack of two full sums?",
        advice="Join full sums with concat: a stack of them is (k, 1) in Jittor.",
        jittor=lambda jt, x: str(tuple(jt.stack([x.sum(), x.sum()]).shape)),
        torch=lambda torch, x: str(tuple(torch.stack([x.sum(), x.sum()]).shape)),
        backend=lambda B, x: str(tuple(B.stack([B.sum(x), B.sum(x)]).shape)),
        expected=lambda x: "(2,)", inputs=(f32(1, 3, 2),),
    ),
    Probe(
        topic=TOPIC, name="truth of several values",
        question="Does `if tensor:` refuse a tensor of several values?",
        advice="Compare with .all() or .any() before an if.",
        jittor=lambda jt, mask: attempt(lambda: str(bool(mask))),
        torch=lambda torch, mask: attempt(lambda: str(bool(mask))),
        expected=lambda mask: "raises", inputs=(MASK,),
    ),
    Probe(
        topic=TOPIC, name="printed tensor",
        question="What does print show for a tensor of 1?",
        advice="Compare numbers, never printed tensors: digits and wrapping differ.",
        jittor=lambda jt: str(jt.array([1.0])),
        torch=lambda torch: str(torch.tensor([1.0])),
        expected=lambda: "tensor([1.])",
    ),
    Probe(
        topic=TOPIC, name="tensor and its array",
        question="Does the array made by .numpy() change with the tensor?",
        advice="Copy before you keep: sharing is PyTorch's, and no port should lean on it.",
        jittor=lambda jt: _array_after_change(jt.array(TENTHS)),
        torch=lambda torch: _array_after_change(torch.tensor(TENTHS)),
        expected=lambda: TENTHS + 1,
    ),
)


def _array_after_change(x):
    array = x.numpy()
    x += 1
    x.numpy()
    return array.copy()
