"""Element-wise functions for Jittor on the CPU, activations and their gradients; softmax, and sums."""

from collections.abc import Callable

from . import Function, jt, on_cpu, read

KERNELS = read("elementwise")


def _map(name: str, value: str, known: str, gradient: str, plain: Callable) -> Callable:
    """An element-wise function f(x), or f(x, a) with a constant, from C++: `value` of x and a; `gradient` of dy, a and
    what is known, "x" or the function's value "y"."""
    kernels = (
        KERNELS["map"].having(NAME=name, VALUE=value),
        KERNELS["map, gradient"].having(NAME=name, KNOWN=known, SLOPE=gradient),
    )

    @on_cpu(plain)
    def function(x, a: float = 0.0):
        return Function(*kernels, [x.shape], kept=["xy".index(known)], data={"a": a})(x)

    return function


def _plain_sigmoid(x):
    """A tanh neither overflows nor is clipped, but is 0 below -17."""
    return (jt.tanh(x / 2) + 1) / 2


# x where positive, else 0 with gradient 0; NaN stays NaN.
relu = _map("relu", "x <= 0 ? in0_type(0) : x", "y", "y <= 0 ? in0_type(0) : dy", jt.nn.relu)
# x cut to 0..6, with gradient 0 at both ends and at NaN, as in PyTorch (but for what does not fill its vectors).
relu6 = _map(
    "relu6",
    "x <= 0 ? in0_type(0) : x >= 6 ? in0_type(6) : x",
    "y",
    "y > 0 && y < 6 ? dy : in0_type(0)",
    jt.nn.relu6,
)
# x where positive, else a x.
leaky_relu = _map("leaky relu", "x > 0 ? x : x * a", "x", "x > 0 ? dy : dy * a", jt.nn.leaky_relu)
# 1 / (1 + exp(-x)) without overflow and without Jittor's clipping at -30.
sigmoid = _map("sigmoid", "sigmoid(x)", "y", "dy * y * (1 - y)", _plain_sigmoid)
silu = _map(
    "silu", "x * sigmoid(x)", "x", "dy * sigmoid(x) * (1 + x * (1 - sigmoid(x)))", lambda x: x * _plain_sigmoid(x)
)
# By the error function and not by a tanh.
_SHARE = "(1 + std::erf(x * in0_type(M_SQRT1_2))) / 2"
_DENSITY = "std::exp(-x * x / 2) * in0_type(M_2_SQRTPI * M_SQRT1_2 / 2)"
gelu = _map(
    "gelu", f"x * {_SHARE}", "x", f"dy * ({_SHARE} + x * {_DENSITY})", lambda x: x * (1 + jt.erf(x / 2**0.5)) / 2
)


class _BinaryCrossEntropy(jt.Function):
    def execute(self, x, target):
        self.saved = x, target
        return KERNELS["binary cross entropy"]([x, target], x.shape)[0]

    def grad(self, dy):
        x, target = self.saved
        return dy * (sigmoid(x) - target), -dy * x


@on_cpu(lambda x, target: jt.maximum(x, jt.zeros_like(x)) - x * target + jt.log(1 + jt.exp(-jt.abs(x))))
def binary_cross_entropy(x, target):
    """log(1 + exp(x)) - x target for each element; Jittor has no log1p, and log(1 + 1e-8) is 0 in float32."""
    return _BinaryCrossEntropy()(x, target)


class _Scale(jt.Function):
    def execute(self, x, factor):
        self.saved = x, factor
        return x * factor

    def grad(self, dy):
        x, factor = self.saved
        return dy * factor, (dy * x).float64().sum().cast(dy.dtype)


def scale(x, factor):
    """x times one trained number, whose gradient is a sum over all of x in float64; Jittor adds one by one."""
    return _Scale()(x, factor)


@on_cpu(lambda x: x.float64().sum().cast(x.dtype))
def total(x):
    """The sum of all floating values; Jittor's own adds them one by one."""
    return Function(KERNELS["sum"], KERNELS["sum, gradient"], [[1]])(x)


class _Root(jt.Function):
    def execute(self, x):
        return x.clone()

    def grad(self, dy):
        return jt.code(dy.shape, dy.dtype, [], cpu_src="out_p[0] = 1;")


@on_cpu(lambda x: x)
def root(x):
    """The scalar that gradients start from, where its own gradient, 1, is computed by a kernel. Jittor takes a
    constant, which it fuses with what is computed from it; where another kernel reads that constant in float64, nobody
    has written it."""
    return _Root()(x)


def _plain_softmax(x):
    share = jt.exp(x - jt.max(x, -1, keepdims=True).detach())
    return share / share.sum(-1, keepdims=True)


@on_cpu(_plain_softmax)
def softmax(x):
    """Shares of exp(x) along the last axis."""
    data = {"length": x.shape[-1]}
    return Function(KERNELS["softmax"], KERNELS["softmax, gradient"], [x.shape], kept=[1], data=data)(x)
