"""C++ kernels for element-wise functions of Jittor on the CPU, activations and their gradients, and for sums.

Built as in `jittor_normalise.py`: each beside its `plain_…` rule, one compiled kernel per dtype. A kernel of one's own
for each function, rather than Jittor's operators, because Jittor fuses those with their neighbours and compiles each
new combination anew.
"""

from .jittor_import import jt

# VALUE is the function of x, SLOPE its derivative from x and the function's value y; a is a constant of the function.
_MAP = """
    // kernel: NAME;
    const int64_t count = in0->num;
    const in0_type a = data["a"];
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type x = in0_p[i];
        out_p[i] = VALUE;
    }
"""

_MAP_GRADIENT = """
    // kernel: NAME, gradient;
    const int64_t count = in0->num;
    const in0_type a = data["a"];
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type dy = in0_p[i], KNOWN = in1_p[i];
        out_p[i] = SLOPE;
    }
"""

_MATHS = """
#include <algorithm>
#include <cmath>
template <class T> static inline T sigmoid(T x) {
    const T small = std::exp(-std::abs(x));
    return (x >= 0 ? T(1) : small) / (1 + small);
}
// In 16 lanes: without -ffinite-math-only the compiler keeps a plain maximum in one.
template <class T> static inline T maximum(int64_t count, const T* x) {
    T lanes[16];
    std::fill(lanes, lanes + 16, x[0]);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] = lanes[j] < x[i + j] ? x[i + j] : lanes[j];
    for (; i < count; i++) lanes[0] = std::max(lanes[0], x[i]);
    return *std::max_element(lanes, lanes + 16);
}
"""


class _Map(jt.Function):
    """An element-wise function as C++ text; its gradient knows "x", the argument, or "y", the value."""

    def __init__(self, name: str, value: str, known: str, gradient: str, a: float = 0.0):
        self.forward = _MAP.replace("NAME", name).replace("VALUE", value)
        self.backward = _MAP_GRADIENT.replace("NAME", name).replace("KNOWN", known).replace("SLOPE", gradient)
        self.known, self.data = known, {"a": a}

    def execute(self, x):
        y = jt.code(x.shape, x.dtype, [x], cpu_header=_MATHS, cpu_src=self.forward, data=self.data)
        self.saved = x if self.known == "x" else y
        return y

    def grad(self, dy):
        return jt.code(dy.shape, dy.dtype, [dy, self.saved], cpu_header=_MATHS, cpu_src=self.backward, data=self.data)


def relu(x):
    """x where positive, else 0 with gradient 0; NaN stays NaN."""
    if jt.flags.use_cuda:
        return plain_relu(x)
    return _Map("relu", "x <= 0 ? in0_type(0) : x", "y", "y <= 0 ? in0_type(0) : dy")(x)


def plain_relu(x):
    """`relu` by Jittor's own operator."""
    return jt.nn.relu(x)


def relu6(x):
    """x cut to 0..6, with gradient 0 at both ends as in PyTorch."""
    if jt.flags.use_cuda:
        return plain_relu6(x)
    return _Map("relu6", "x <= 0 ? in0_type(0) : x >= 6 ? in0_type(6) : x", "y", "y <= 0 || y >= 6 ? in0_type(0) : dy")(
        x
    )


def plain_relu6(x):
    """`relu6` by Jittor's own operator."""
    return jt.nn.relu6(x)


def leaky_relu(x, slope: float):
    """x where positive, else slope x."""
    if jt.flags.use_cuda:
        return plain_leaky_relu(x, slope)
    return _Map("leaky relu", "x > 0 ? x : x * a", "x", "x > 0 ? dy : dy * a", slope)(x)


def plain_leaky_relu(x, slope: float):
    """`leaky_relu` by Jittor's own operator."""
    return jt.nn.leaky_relu(x, slope)


def silu(x):
    """x sigmoid(x)."""
    if jt.flags.use_cuda:
        return plain_silu(x)
    return _Map("silu", "x * sigmoid(x)", "x", "dy * sigmoid(x) * (1 + x * (1 - sigmoid(x)))")(x)


def plain_silu(x):
    """`silu` in Jittor's own operators."""
    return x * plain_sigmoid(x)


def gelu(x):
    """x times the normal distribution function of x, by the error function and not by a tanh."""
    if jt.flags.use_cuda:
        return plain_gelu(x)
    share = "(1 + std::erf(x * in0_type(M_SQRT1_2))) / 2"
    density = "std::exp(-x * x / 2) * in0_type(M_2_SQRTPI * M_SQRT1_2 / 2)"
    return _Map("gelu", f"x * {share}", "x", f"dy * ({share} + x * {density})")(x)


def plain_gelu(x):
    """`gelu` in Jittor's own operators."""
    return x * (1 + jt.erf(x / 2**0.5)) / 2


def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow and without Jittor's clipping at -30."""
    if jt.flags.use_cuda:
        return plain_sigmoid(x)
    return _Map("sigmoid", "sigmoid(x)", "y", "dy * y * (1 - y)")(x)


def plain_sigmoid(x):
    """`sigmoid` in Jittor's own operators; a tanh neither overflows nor is clipped, but is 0 below -17."""
    return (jt.tanh(x / 2) + 1) / 2


# log(1 + e), e in [0, 1], is 2 atanh(e / (2 + e)): the first term left out is (1/3)^17 in float32, (1/3)^35 in float64.
_BINARY_CROSS_ENTROPY = """
    // kernel: binary cross entropy;
    const int64_t count = in0->num;
    constexpr int last = sizeof(in0_type) == 8 ? 33 : 15;
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type x = in0_p[i], small = std::exp(-std::abs(x)), z = small / (2 + small), square = z * z;
        in0_type series = 0;
        for (int power = last; power > 0; power -= 2) series = series * square + in0_type(1) / power;
        const in0_type t = in1_p[i];
        // not max(x, 0) - x * t + ...: what -Ofast makes of that loses small values beside x
        out_p[i] = (x >= 0 ? x * (1 - t) : -x * t) + 2 * z * series;
    }
"""


class _BinaryCrossEntropy(jt.Function):
    def execute(self, x, target):
        self.saved = x, target
        return jt.code(
            x.shape,
            x.dtype,
            [x, target],
            cpu_header="#include <algorithm>\n#include <cmath>",
            cpu_src=_BINARY_CROSS_ENTROPY,
        )

    def grad(self, dy):
        x, target = self.saved
        return dy * (sigmoid(x) - target), -dy * x


def binary_cross_entropy(x, target):
    """log(1 + exp(x)) - x target for each element; Jittor has no log1p, and log(1 + 1e-8) is 0 in float32."""
    if jt.flags.use_cuda:
        return plain_binary_cross_entropy(x, target)
    return _BinaryCrossEntropy()(x, target)


def plain_binary_cross_entropy(x, target):
    """`binary_cross_entropy` in Jittor's own operators."""
    return jt.maximum(x, jt.zeros_like(x)) - x * target + jt.log(1 + jt.exp(-jt.abs(x)))


class _Scale(jt.Function):
    def execute(self, x, factor):
        self.saved = x, factor
        return x * factor

    def grad(self, dy):
        x, factor = self.saved
        return dy * factor, (dy * x).float64().sum().cast(dy.dtype)


def scale(x, factor):
    """x times one trained number, whose gradient, a sum over all of x, is accumulated in float64."""
    return _Scale()(x, factor)


def plain_scale(x, factor):
    """`scale` by Jittor's own operators."""
    return x * factor


# Accumulated in twice the precision of its values, at least nearly.
_TOTAL = """
    // kernel: sum;
    std::conditional<sizeof(in0_type) == 8, long double, double>::type total = 0;
    for (int64_t i = 0; i < in0->num; i++) total += in0_p[i];
    out_p[0] = total;
"""

_TOTAL_GRADIENT = """
    // kernel: sum, gradient;
    std::fill(out_p, out_p + out->num, in0_p[0]);
"""


class _Total(jt.Function):
    def execute(self, x):
        self.of = x.shape, x.dtype
        return jt.code([1], x.dtype, [x], cpu_header="#include <type_traits>", cpu_src=_TOTAL)

    def grad(self, dy):
        # A number that is float32 behind a float64 sum hands a float32 gradient back.
        return jt.code(*self.of, [dy], cpu_header="#include <algorithm>", cpu_src=_TOTAL_GRADIENT)


def total(x):
    """The sum of all floating values; Jittor's own adds them one by one."""
    if jt.flags.use_cuda:
        return plain_total(x)
    return _Total()(x)


def plain_total(x):
    """`total` by Jittor's own operators."""
    return x.float64().sum().cast(x.dtype)


class _Root(jt.Function):
    def execute(self, x):
        return x.clone()

    def grad(self, dy):
        return jt.code(dy.shape, dy.dtype, [], cpu_src="out_p[0] = 1;")


def root(x):
    """The scalar that gradients start from, where its own gradient, 1, is computed by a kernel. Jittor takes a constant,
    which it fuses with what is computed from it; where another kernel reads that constant in float64, nobody has written it."""
    return x if jt.flags.use_cuda else _Root()(x)


_SOFTMAX = """
    // kernel: softmax;
    const int64_t length = data["length"], rows = in0->num / length;
    #pragma omp parallel for if(rows * length > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const in0_type* x = in0_p + row * length;
        out_type* y = out_p + row * length;
        const in0_type largest = maximum(length, x);
        in0_type sum = 0;
        for (int64_t i = 0; i < length; i++) y[i] = std::exp(x[i] - largest);
        for (int64_t i = 0; i < length; i++) sum += y[i];
        const in0_type inverse = 1 / sum;
        for (int64_t i = 0; i < length; i++) y[i] *= inverse;
    }
"""

_SOFTMAX_GRADIENT = """
    // kernel: softmax, gradient;
    const int64_t length = data["length"], rows = in0->num / length;
    #pragma omp parallel for if(rows * length > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const in0_type* dy = in0_p + row * length;
        const in1_type* y = in1_p + row * length;
        out_type* dx = out_p + row * length;
        in0_type product = 0;
        for (int64_t i = 0; i < length; i++) product += dy[i] * y[i];
        for (int64_t i = 0; i < length; i++) dx[i] = y[i] * (dy[i] - product);
    }
"""


class _Softmax(jt.Function):
    def execute(self, x):
        self.data = {"length": x.shape[-1]}
        self.y = jt.code(x.shape, x.dtype, [x], cpu_header=_MATHS, cpu_src=_SOFTMAX, data=self.data)
        return self.y

    def grad(self, dy):
        return jt.code(dy.shape, dy.dtype, [dy, self.y], cpu_header=_MATHS, cpu_src=_SOFTMAX_GRADIENT, data=self.data)


def softmax(x):
    """Shares of exp(x) along the last axis."""
    if jt.flags.use_cuda:
        return plain_softmax(x)
    return _Softmax()(x)


def plain_softmax(x):
    """`softmax` in Jittor's own operators."""
    share = jt.exp(x - jt.max(x, -1, keepdims=True).detach())
    return share / share.sum(-1, keepdims=True)
