"""Arithmetic: division, rounding, sums, and where numbers end."""
import math

import numpy as np

from ..child import child
from ..probe import Probe, attempt, f32, normal

TOPIC = "Arithmetic"
WHOLE, THREE = np.array([7, -7, 8, -8], np.int32), np.array([3, 3, -3, -3], np.int32)
HALVES, TWO = f32(7.5, -7.5, 0.5, -0.5), f32(2, 2, 2, 2)
ONES = np.ones(100_000, np.float32) / 10  # their naive float32 sum is a thousandth off
EMPTY = np.zeros(0, np.float32)
NONE, ZERO, COUNT = np.full(64, np.nan, np.float32), np.zeros(64, np.float32), np.arange(1, 65, dtype=np.float32)
ADDED_FLAGS = " -fno-finite-math-only -D__FAST_MATH__ "  # by lib.backend, after the import
SUBNORMAL = np.array([71362], np.int32)  # bits of 1e-40: as a number it would be zero on its way through Jittor's process


def stock(jt, function, x):
    """function(x), compiled with the flags that Jittor comes with.

    x should be long enough for the vectorised loop. It has rank 5 meanwhile: kernels are known by operator,
    type and rank, and this one must not meet the backend's.
    """
    x = x.reshape(1, 1, 1, 1, -1).clone()
    x.sync()
    with jt.flag_scope(cc_flags=jt.flags.cc_flags.replace(ADDED_FLAGS, "")):
        return function(x).numpy().ravel()


PROBES = (
    Probe(
        topic=TOPIC, name="floor division of integers",
        question="What is x // 3 for negative integers?",
        advice="Jittor cuts off as C does: divide in float64 and floor.",
        jittor=lambda jt, a, b: a // b,
        torch=lambda torch, a, b: a // b,
        backend=lambda B, a, b: B.floor_divide(a, b),
        expected=lambda a, b: a // b, inputs=(WHOLE, THREE),
    ),
    Probe(
        topic=TOPIC, name="remainder of integers",
        question="What is x % 3 for negative integers?",
        advice="Jittor's remainder has the dividend's sign: use a - floor_divide(a, b) * b.",
        jittor=lambda jt, a, b: a % b,
        torch=lambda torch, a, b: a % b,
        backend=lambda B, a, b: B.remainder(a, b),
        expected=lambda a, b: a % b, inputs=(WHOLE, THREE),
    ),
    Probe(
        topic=TOPIC, name="floor division of floats",
        question="What is x // 2 for floats?",
        advice="Use floor(a / b): Jittor's // of floats cuts off.",
        jittor=lambda jt, a, b: a // b,
        torch=lambda torch, a, b: a // b,
        backend=lambda B, a, b: B.floor_divide(a, b),
        expected=lambda a, b: a // b, inputs=(HALVES, TWO),
    ),
    Probe(
        topic=TOPIC, name="type of a float floor division",
        question="Which type has x // 2 for floats?",
        advice="Use floor(a / b): Jittor's // gives int32.",
        jittor=lambda jt, a, b: str((a // b).dtype),
        torch=lambda torch, a, b: str((a // b).dtype).removeprefix("torch."),
        backend=lambda B, a, b: str(B.floor_divide(a, b).dtype).removeprefix("torch."),
        expected=lambda a, b: "float32", inputs=(HALVES, TWO),
    ),
    Probe(
        topic=TOPIC, name="remainder of floats",
        question="What is x % 2 for negative floats?",
        advice="Equal: only integers differ.",
        jittor=lambda jt, a, b: a % b,
        torch=lambda torch, a, b: a % b,
        backend=lambda B, a, b: B.remainder(a, b),
        expected=lambda a, b: a % b, inputs=(HALVES, TWO),
    ),
    Probe(
        topic=TOPIC, name="integer division by zero",
        question="What happens at 1 // 0 with integers?",
        advice="Guard integer divisors: the process dies without a traceback.",
        jittor=lambda jt: child("from lib import backend; import jittor as jt; print((jt.array([1]) // jt.array([0])).numpy())"),
        torch=lambda torch: child("import torch; print(torch.tensor([1]) // torch.tensor([0]))"),
        expected=lambda: "RuntimeError",
    ),
    Probe(
        topic=TOPIC, name="rounding of halves",
        question="Where do -1.5, -0.5, 0.5, 1.5, 2.5 round to?",
        advice="Jittor rounds halves away from zero: assigners that round centres need floor(x + 0.5) in both.",
        jittor=lambda jt, x: jt.round(x),
        torch=lambda torch, x: torch.round(x),
        expected=lambda x: np.round(x), inputs=(f32(-1.5, -0.5, 0.5, 1.5, 2.5),),
    ),
    Probe(
        topic=TOPIC, name="one over zero, Jittor's own flags",
        question="What is 1 / 0 in kernels compiled as Jittor compiles them?",
        advice="Append -fno-finite-math-only -D__FAST_MATH__ to cc_flags after the import.",
        jittor=lambda jt, x: stock(jt, lambda x: 1 / x, x),
        torch=lambda torch, x: 1 / x,
        backend=lambda B, x: 1 / x,
        expected=lambda x: np.full_like(x, np.inf), inputs=(ZERO,),
    ),
    Probe(
        topic=TOPIC, name="x / x, Jittor's own flags",
        question="Is x / x exactly 1 for 1 to 64 in kernels compiled as Jittor compiles them?",
        advice="Append the flags where exact quotients matter.",
        jittor=lambda jt, x: stock(jt, lambda x: x / (x + 0), x),
        torch=lambda torch, x: x / x,
        backend=lambda B, x: x / x,
        expected=lambda x: x / x, inputs=(COUNT,), precision=np.float64,
    ),
    Probe(
        topic=TOPIC, name="NaN equals NaN, Jittor's own flags",
        question="Is NaN equal to itself in kernels compiled as Jittor compiles them?",
        advice="Append the flags: no check of a loss for NaN works without them.",
        jittor=lambda jt, x: stock(jt, lambda x: x == x, x),
        torch=lambda torch, x: x == x,
        backend=lambda B, x: x == x,
        expected=lambda x: np.zeros(x.shape), inputs=(NONE,),
    ),
    Probe(
        topic=TOPIC, name="isnan, Jittor's own flags",
        question="Does isnan find a NaN in kernels compiled as Jittor compiles them?",
        advice="isnan works even so; comparing with == doesn't.",
        jittor=lambda jt, x: stock(jt, jt.isnan, x),
        torch=lambda torch, x: torch.isnan(x),
        expected=lambda x: np.ones(x.shape), inputs=(NONE,),
    ),
    Probe(
        topic=TOPIC, name="subnormal numbers",
        question="Which bits has 1e-40 times 1?",
        advice="Numbers below 1.2e-38 are zero in Jittor's process: no threshold may lie there.",
        jittor=lambda jt, bits: (jt.array(bits.numpy().view(np.float32)) * 1.0).numpy().view(np.int32),
        torch=lambda torch, bits: (torch.tensor(bits.numpy().view(np.float32)) * 1.0).numpy().view(np.int32),
        backend=lambda B, bits: B.numpy(B.tensor(B.numpy(bits).view(np.float32)) * 1.0).view(np.int32),
        expected=lambda bits: bits, inputs=(SUBNORMAL,),
    ),
    Probe(
        topic=TOPIC, name="logarithm of zero",
        question="What is log(0)?",
        advice="Both give minus infinity, with the flags appended.",
        jittor=lambda jt, x: jt.log(x),
        torch=lambda torch, x: torch.log(x),
        backend=lambda B, x: B.log(x),
        expected=lambda x: np.array([-np.inf, 0.0]), inputs=(f32(0, 1),),
    ),
    Probe(
        topic=TOPIC, name="overflow of exp",
        question="What is exp(100) in float32?",
        advice="Both give infinity, with the flags appended.",
        jittor=lambda jt, x: jt.exp(x),
        torch=lambda torch, x: torch.exp(x),
        backend=lambda B, x: B.exp(x),
        expected=lambda x: np.array([np.inf, math.e]), inputs=(f32(100, 1),),
    ),
    Probe(
        topic=TOPIC, name="root of a negative number",
        question="What is sqrt(-1)?",
        advice="Both give NaN, with the flags appended.",
        jittor=lambda jt, x: jt.sqrt(x),
        torch=lambda torch, x: torch.sqrt(x),
        backend=lambda B, x: B.sqrt(x),
        expected=lambda x: np.array([np.nan, 2.0]), inputs=(f32(-1, 4),),
    ),
    Probe(
        topic=TOPIC, name="power of a negative base",
        question="What is (-2) ** 3 for floats?",
        advice="Whole exponents of negative bases work in both.",
        jittor=lambda jt, x: x**3,
        torch=lambda torch, x: x**3,
        expected=lambda x: x**3, inputs=(f32(-2, 3),),
    ),
    Probe(
        topic=TOPIC, name="precision of a sum",
        question="What is the sum of 100,000 times 0.1?",
        advice="Add up in float64: Jittor adds float32 one by one, which ruins the loss of a large map.",
        jittor=lambda jt, x: x.sum(),
        torch=lambda torch, x: x.sum(),
        backend=lambda B, x: B.sum(x),
        expected=lambda x: x.sum(), inputs=(ONES,),
    ),
    Probe(
        topic=TOPIC, name="precision of a mean",
        question="What is the mean of 100,000 times 0.1?",
        advice="Use x.float64().sum() / n: exact, and faster than Jittor's mean.",
        jittor=lambda jt, x: x.mean(),
        torch=lambda torch, x: x.mean(),
        backend=lambda B, x: B.mean(x),
        expected=lambda x: x.mean(), inputs=(ONES,),
    ),
    Probe(
        topic=TOPIC, name="mean of nothing",
        question="What is the mean of an empty tensor?",
        advice="Jittor gives 0 where PyTorch gives NaN: an image without boxes hides a fault.",
        jittor=lambda jt, x: x.mean(),
        torch=lambda torch, x: x.mean(),
        backend=lambda B, x: B.mean(x),
        expected=lambda x: np.nan, inputs=(EMPTY,),
    ),
    Probe(
        topic=TOPIC, name="sum of nothing",
        question="What is the sum of an empty tensor?",
        advice="Both give 0.",
        jittor=lambda jt, x: x.sum(),
        torch=lambda torch, x: x.sum(),
        backend=lambda B, x: B.sum(x),
        expected=lambda x: 0.0, inputs=(EMPTY,),
    ),
    Probe(
        topic=TOPIC, name="variance by default",
        question="What is var() of 1, 2, 3, 4?",
        advice="Jittor's var is biased: pass unbiased=True where PyTorch's default was meant.",
        jittor=lambda jt, x: x.var(),
        torch=lambda torch, x: x.var(),
        expected=lambda x: x.var(ddof=1), inputs=(f32(1, 2, 3, 4),),
    ),
    Probe(
        topic=TOPIC, name="deviation by default",
        question="What is std() of 1, 2, 3, 4?",
        advice="std is unbiased in both, unlike Jittor's var.",
        jittor=lambda jt, x: x.std(),
        torch=lambda torch, x: x.std(),
        expected=lambda x: x.std(ddof=1), inputs=(f32(1, 2, 3, 4),),
    ),
    Probe(
        topic=TOPIC, name="deviation of a constant",
        question="What is std() of equal values?",
        advice="Jittor's std never falls below 1e-3: take the root of var.",
        jittor=lambda jt, x: x.std(),
        torch=lambda torch, x: x.std(),
        expected=lambda x: 0.0, inputs=(f32(3, 3, 3, 3),),
    ),
    Probe(
        topic=TOPIC, name="norm by default",
        question="What is norm() of a 2 x 2 tensor?",
        advice="Jittor's norm runs along the last axis: flatten first.",
        jittor=lambda jt, x: x.norm(),
        torch=lambda torch, x: x.norm(),
        expected=lambda x: np.linalg.norm(x), inputs=(f32([3, 4], [0, 12]),),
    ),
    Probe(
        topic=TOPIC, name="norm of order 3",
        question="Does norm know orders other than 1 and 2?",
        advice="Write (x.abs() ** p).sum() ** (1 / p).",
        jittor=lambda jt, x: attempt(lambda: x.norm(3).numpy()),
        torch=lambda torch, x: x.norm(3),
        expected=lambda x: np.linalg.norm(x, 3), inputs=(f32(3, 4, 5),),
    ),
    Probe(
        topic=TOPIC, name="running sum",
        question="What is cumsum along the last axis?",
        advice="Equal.",
        jittor=lambda jt, x: jt.cumsum(x, 1),
        torch=lambda torch, x: torch.cumsum(x, 1),
        expected=lambda x: x.cumsum(1), inputs=(f32([1, 2, 3], [4, 5, 6]),),
    ),
    Probe(
        topic=TOPIC, name="median of an even count",
        question="What is the median of 1, 2, 3, 4?",
        advice="The lower of the two middle values in both.",
        jittor=lambda jt, x: jt.median(x),
        torch=lambda torch, x: torch.median(x),
        expected=lambda x: 2.0, inputs=(f32(4, 1, 3, 2),),
    ),
    Probe(
        topic=TOPIC, name="numbers on a line",
        question="What is linspace(0, 1, 5)?",
        advice="Equal.",
        jittor=lambda jt: jt.linspace(0, 1, 5),
        torch=lambda torch: torch.linspace(0, 1, 5),
        expected=lambda: np.linspace(0, 1, 5),
    ),
    Probe(
        topic=TOPIC, name="matrix product",
        question="What is a @ b for two matrices?",
        advice="Equal up to the order of summation.",
        jittor=lambda jt, a, b: a @ b,
        torch=lambda torch, a, b: a @ b,
        backend=lambda B, a, b: B.matmul(a, b),
        expected=lambda a, b: a @ b, inputs=(normal(2, 5), normal(5, 3)), cancels=True,
    ),
)
