"""Arithmetic: division, rounding, sums, and where numbers end."""

import math

import numpy as np

from notebooks.probes.probe import ask, attempt, f32, given, normal

from .process import child

TOPIC = "Arithmetic"
WHOLE, THREE = np.array([7, -7, 8, -8], np.int32), np.array([3, 3, -3, -3], np.int32)
HALVES, TWO = f32(7.5, -7.5, 0.5, -0.5), f32(2, 2, 2, 2)
ONES = np.ones(100_000, np.float32) / 10  # their naive float32 sum is a thousandth off
EMPTY = np.zeros(0, np.float32)
NONE, ZERO, COUNT = np.full(64, np.nan, np.float32), np.zeros(64, np.float32), np.arange(1, 65, dtype=np.float32)
ADDED_FLAGS = " -fno-finite-math-only -D__FAST_MATH__ "  # by lib.backend, after the import
SUBNORMAL = np.array(
    [71362], np.int32
)  # bits of 1e-40: as a number it would be zero on its way through Jittor's process


def stock(jt, function, x):
    """function(x), compiled with the flags that Jittor comes with.

    x should be long enough for the vectorised loop. It has rank 5 meanwhile: kernels are known by operator,
    type and rank, and this one must not meet the backend's.
    """
    x = x.reshape(1, 1, 1, 1, -1).clone()
    x.sync()
    with jt.flag_scope(cc_flags=jt.flags.cc_flags.replace(ADDED_FLAGS, "")):
        return function(x).numpy().ravel()


PROBES = {
    "floor division of integers": given(WHOLE, THREE).ask(
        "What is x // 3 for negative integers?",
        "Jittor cuts off as C does: divide in float64 and floor.",
        both=lambda F, a, b: a // b,
        backend=lambda B, a, b: B.floor_divide(a, b),
        expected=lambda a, b: a // b,
    ),
    "remainder of integers": given(WHOLE, THREE).ask(
        "What is x % 3 for negative integers?",
        "Jittor's remainder has the dividend's sign: use a - floor_divide(a, b) * b.",
        both=lambda F, a, b: a % b,
        backend=lambda B, a, b: B.remainder(a, b),
        expected=lambda a, b: a % b,
    ),
    "floor division of floats": given(HALVES, TWO).ask(
        "What is x // 2 for floats?",
        "Use floor(a / b): Jittor's // of floats cuts off.",
        both=lambda F, a, b: a // b,
        backend=lambda B, a, b: B.floor_divide(a, b),
        expected=lambda a, b: a // b,
    ),
    "type of a float floor division": given(HALVES, TWO).ask(
        "Which type has x // 2 for floats?",
        "Use floor(a / b): Jittor's // gives int32.",
        jittor=lambda jt, a, b: str((a // b).dtype),
        torch=lambda torch, a, b: str((a // b).dtype).removeprefix("torch."),
        backend=lambda B, a, b: str(B.floor_divide(a, b).dtype).removeprefix("torch."),
        expected=lambda a, b: "float32",
    ),
    "remainder of floats": given(HALVES, TWO).ask(
        "What is x % 2 for negative floats?",
        "Equal: only integers differ.",
        both=lambda F, a, b: a % b,
        backend=lambda B, a, b: B.remainder(a, b),
        expected=lambda a, b: a % b,
    ),
    "integer division by zero": ask(
        "What happens at 1 // 0 with integers?",
        "Guard integer divisors: the process dies without a traceback.",
        jittor=lambda jt: child(
            "from lib import backend; import jittor as jt; print((jt.array([1]) // jt.array([0])).numpy())"
        ),
        torch=lambda torch: child("import torch; print(torch.tensor([1]) // torch.tensor([0]))"),
        expected=lambda: "RuntimeError",
    ),
    "rounding of halves": given(f32(-1.5, -0.5, 0.5, 1.5, 2.5)).ask(
        "Where do -1.5, -0.5, 0.5, 1.5, 2.5 round to?",
        "Jittor rounds halves away from zero: assigners that round centres need floor(x + 0.5) in both.",
        both=lambda F, x: F.round(x),
        expected=lambda x: np.round(x),
    ),
    "one over zero, Jittor's own flags": given(ZERO).ask(
        "What is 1 / 0 in kernels compiled as Jittor compiles them?",
        "Append -fno-finite-math-only -D__FAST_MATH__ to cc_flags after the import.",
        jittor=lambda jt, x: stock(jt, lambda x: 1 / x, x),
        torch=lambda torch, x: 1 / x,
        backend=lambda B, x: 1 / x,
        expected=lambda x: np.full_like(x, np.inf),
    ),
    "x / x, Jittor's own flags": given(COUNT, precision=np.float64).ask(
        "Is x / x exactly 1 for 1 to 64 in kernels compiled as Jittor compiles them?",
        "Append the flags where exact quotients matter.",
        jittor=lambda jt, x: stock(jt, lambda x: x / (x + 0), x),
        torch=lambda torch, x: x / x,
        backend=lambda B, x: x / x,
        expected=lambda x: x / x,
    ),
    "NaN equals NaN, Jittor's own flags": given(NONE).ask(
        "Is NaN equal to itself in kernels compiled as Jittor compiles them?",
        "Append the flags: no check of a loss for NaN works without them.",
        jittor=lambda jt, x: stock(jt, lambda x: x == x, x),
        torch=lambda torch, x: x == x,
        backend=lambda B, x: x == x,
        expected=lambda x: np.zeros(x.shape),
    ),
    "isnan, Jittor's own flags": given(NONE).ask(
        "Does isnan find a NaN in kernels compiled as Jittor compiles them?",
        "isnan works even so; comparing with == doesn't.",
        jittor=lambda jt, x: stock(jt, jt.isnan, x),
        torch=lambda torch, x: torch.isnan(x),
        expected=lambda x: np.ones(x.shape),
    ),
    "subnormal numbers": given(SUBNORMAL).ask(
        "Which bits has 1e-40 times 1?",
        "Numbers below 1.2e-38 are zero in Jittor's process: no threshold may lie there.",
        jittor=lambda jt, bits: (jt.array(bits.numpy().view(np.float32)) * 1.0).numpy().view(np.int32),
        torch=lambda torch, bits: (torch.tensor(bits.numpy().view(np.float32)) * 1.0).numpy().view(np.int32),
        backend=lambda B, bits: B.numpy(B.tensor(B.numpy(bits).view(np.float32)) * 1.0).view(np.int32),
        expected=lambda bits: bits,
    ),
    "logarithm of zero": given(f32(0, 1)).ask(
        "What is log(0)?",
        "Both give minus infinity, with the flags appended.",
        every=lambda F, x: F.log(x),
        expected=lambda x: np.array([-np.inf, 0.0]),
    ),
    "overflow of exp": given(f32(100, 1)).ask(
        "What is exp(100) in float32?",
        "Both give infinity, with the flags appended.",
        every=lambda F, x: F.exp(x),
        expected=lambda x: np.array([np.inf, math.e]),
    ),
    "root of a negative number": given(f32(-1, 4)).ask(
        "What is sqrt(-1)?",
        "Both give NaN, with the flags appended.",
        every=lambda F, x: F.sqrt(x),
        expected=lambda x: np.array([np.nan, 2.0]),
    ),
    "power of a negative base": given(f32(-2, 3)).ask(
        "What is (-2) ** 3 for floats?",
        "Whole exponents of negative bases work in both.",
        both=lambda F, x: x**3,
        expected=lambda x: x**3,
    ),
    "precision of a sum": given(ONES).ask(
        "What is the sum of 100,000 times 0.1?",
        "Add up in float64: Jittor adds float32 one by one, which ruins the loss of a large map.",
        both=lambda F, x: x.sum(),
        backend=lambda B, x: B.sum(x),
        expected=lambda x: x.sum(),
    ),
    "precision of a mean": given(ONES).ask(
        "What is the mean of 100,000 times 0.1?",
        "Use x.float64().sum() / n: exact, and faster than Jittor's mean.",
        both=lambda F, x: x.mean(),
        backend=lambda B, x: B.mean(x),
        expected=lambda x: x.mean(),
    ),
    "mean of nothing": given(EMPTY).ask(
        "What is the mean of an empty tensor?",
        "Jittor gives 0 where PyTorch gives NaN: an image without boxes hides a fault.",
        both=lambda F, x: x.mean(),
        backend=lambda B, x: B.mean(x),
        expected=lambda x: np.nan,
    ),
    "sum of nothing": given(EMPTY).ask(
        "What is the sum of an empty tensor?",
        "Both give 0.",
        both=lambda F, x: x.sum(),
        backend=lambda B, x: B.sum(x),
        expected=lambda x: 0.0,
    ),
    "variance by default": given(f32(1, 2, 3, 4)).ask(
        "What is var() of 1, 2, 3, 4?",
        "Jittor's var is biased: pass unbiased=True where PyTorch's default was meant.",
        both=lambda F, x: x.var(),
        expected=lambda x: x.var(ddof=1),
    ),
    "deviation by default": given(f32(1, 2, 3, 4)).ask(
        "What is std() of 1, 2, 3, 4?",
        "std is unbiased in both, unlike Jittor's var.",
        both=lambda F, x: x.std(),
        expected=lambda x: x.std(ddof=1),
    ),
    "deviation of a constant": given(f32(3, 3, 3, 3)).ask(
        "What is std() of equal values?",
        "Jittor's std never falls below 1e-3: take the root of var.",
        both=lambda F, x: x.std(),
        expected=lambda x: 0.0,
    ),
    "norm by default": given(f32([3, 4], [0, 12])).ask(
        "What is norm() of a 2 x 2 tensor?",
        "Jittor's norm runs along the last axis: flatten first.",
        both=lambda F, x: x.norm(),
        expected=lambda x: np.linalg.norm(x),
    ),
    "norm of order 3": given(f32(3, 4, 5)).ask(
        "Does norm know orders other than 1 and 2?",
        "Write (x.abs() ** p).sum() ** (1 / p).",
        both=lambda F, x: attempt(lambda: x.norm(3).numpy()),
        expected=lambda x: np.linalg.norm(x, 3),
    ),
    "running sum": given(f32([1, 2, 3], [4, 5, 6])).ask(
        "What is cumsum along the last axis?",
        "Equal.",
        both=lambda F, x: F.cumsum(x, 1),
        expected=lambda x: x.cumsum(1),
    ),
    "median of an even count": given(f32(4, 1, 3, 2)).ask(
        "What is the median of 1, 2, 3, 4?",
        "The lower of the two middle values in both.",
        both=lambda F, x: F.median(x),
        expected=lambda x: 2.0,
    ),
    "numbers on a line": ask(
        "What is linspace(0, 1, 5)?",
        "Equal.",
        both=lambda F: F.linspace(0, 1, 5),
        expected=lambda: np.linspace(0, 1, 5),
    ),
    "matrix product": given(normal(2, 5), normal(5, 3), cancels=True).ask(
        "What is a @ b for two matrices?",
        "Equal up to the order of summation.",
        both=lambda F, a, b: a @ b,
        backend=lambda B, a, b: B.matmul(a, b),
        expected=lambda a, b: a @ b,
    ),
}
