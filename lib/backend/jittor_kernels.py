"""C++ kernels (`jt.code`) for what Jittor does slowly or inexactly on the CPU.

Each kernel is a `jt.Function` with its own gradient and stands beside `plain_…`, the same rule in Jittor's own
operators: what the kernel is tested against, and what runs on a GPU. Sizes reach the kernels as data, so that one
compiled kernel per dtype serves every layer (a compilation costs 1 to 4 s). The first line of each names it to the
profiler.
"""
from .jittor_import import jt

# Partial sums: at most 512 values in float32 vector lanes, then float64. As accurate as a float64 sum to 1e-7 and
# as fast as memory (PyTorch cascades for the same reason).
_PARTIAL_SUMS = """
#include <algorithm>
#include <cmath>
#include <vector>
template <class T, class F> static inline double total(int64_t count, F value) {
    double sum = 0;
    for (int64_t start = 0; start < count; start += 512) {
        T part = 0;
        int64_t stop = std::min<int64_t>(start + 512, count);
        for (int64_t i = start; i < stop; i++) part += value(i);
        sum += part;
    }
    return sum;
}
"""

# A group is `runs` stretches of `length` contiguous values that share one mean and variance; run k of group g starts
# at (g * a + k * b) * length and is scaled by weight[(g * p + k * q) % channels].
_GROUPS = """
    const int64_t groups = data["groups"], runs = data["runs"], length = data["length"], channels = data["channels"];
    const int64_t a = data["a"], b = data["b"], p = data["p"], q = data["q"];
    const double count = double(runs) * length;
    const bool large = count * groups > 16384;
"""

_NORMALISE = _GROUPS + """
    // kernel: normalise;
    #pragma omp parallel for if(large)
    for (int64_t g = 0; g < groups; g++) {
        double sum = 0, square = 0;
        for (int64_t k = 0; k < runs; k++) {
            const in0_type* x = in0_p + (g * a + k * b) * length;
            sum += total<in0_type>(length, [=](int64_t i) { return x[i]; });
        }
        const in0_type mean = sum / count;
        for (int64_t k = 0; k < runs; k++) {
            const in0_type* x = in0_p + (g * a + k * b) * length;
            square += total<in0_type>(length, [=](int64_t i) { in0_type d = x[i] - mean; return d * d; });
        }
        // mean was rounded to x's type: the exact variance is about the exact mean
        const double rest = sum / count - mean;
        const double variance = square / count - rest * rest;
        const in0_type inverse = 1.0 / std::sqrt(variance + data["eps"]);
        out1_p[g] = mean;
        out2_p[g] = variance;
        for (int64_t k = 0; k < runs; k++) {
            const int64_t start = (g * a + k * b) * length, c = (g * p + k * q) % channels;
            const in0_type* x = in0_p + start;
            out0_type* y = out0_p + start;
            const in0_type scale = inverse * in1_p[c], shift = in2_p[c];
            for (int64_t i = 0; i < length; i++) y[i] = (x[i] - mean) * scale + shift;
        }
    }
"""

_NORMALISE_GRADIENT = _GROUPS + """
    // kernel: normalise, gradient;
    // inputs: dy, x, weight, mean, variance; outputs: dx, d weight, d bias
    const int64_t rows = groups * runs;
    std::vector<double> sums(rows), products(rows);
    #pragma omp parallel for if(large)
    for (int64_t g = 0; g < groups; g++) {
        const in1_type mean = in3_p[g];
        const in1_type inverse = 1.0 / std::sqrt(double(in4_p[g]) + data["eps"]);
        double sum = 0, product = 0;
        for (int64_t k = 0; k < runs; k++) {
            const int64_t row = g * a + k * b, c = (g * p + k * q) % channels;
            const in0_type* dy = in0_p + row * length;
            const in1_type* x = in1_p + row * length;
            sums[row] = total<in0_type>(length, [=](int64_t i) { return dy[i]; });
            products[row] = total<in0_type>(length, [=](int64_t i) { return dy[i] * (x[i] - mean); }) * inverse;
            sum += sums[row] * in2_p[c];
            product += products[row] * in2_p[c];
        }
        const in1_type mean_dy = sum / count, slope = product / count * inverse;
        for (int64_t k = 0; k < runs; k++) {
            const int64_t row = g * a + k * b, c = (g * p + k * q) % channels;
            const in0_type* dy = in0_p + row * length;
            const in1_type* x = in1_p + row * length;
            out0_type* dx = out0_p + row * length;
            const in1_type weight = in2_p[c];
            for (int64_t i = 0; i < length; i++)
                dx[i] = (dy[i] * weight - mean_dy - (x[i] - mean) * slope) * inverse;
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        double product = 0, sum = 0;
        for (int64_t row = c; row < rows; row += channels) { product += products[row]; sum += sums[row]; }
        out1_p[c] = product;
        out2_p[c] = sum;
    }
"""


def _batch_layout(shape: list[int]) -> dict[str, int]:
    n, c = shape[:2]
    return dict(groups=c, runs=n, length=_product(shape[2:]), channels=c, a=1, b=c, p=1, q=0)


def _group_layout(shape: list[int], groups: int) -> dict[str, int]:
    n, c = shape[:2]
    runs = c // groups
    return dict(groups=n * groups, runs=runs, length=_product(shape[2:]), channels=c, a=runs, b=1, p=runs, q=1)


def _product(sizes: list[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


class _Normalise(jt.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias over each group, two-pass; see `_GROUPS`."""

    def __init__(self, layout: dict[str, int], eps: float):
        self.data = {**layout, "eps": eps}

    def execute(self, x, weight, bias):
        groups = (self.data["groups"],)
        y, mean, variance = jt.code([x.shape, groups, groups], [x.dtype] * 3, [x, weight, bias],
                                    cpu_header=_PARTIAL_SUMS, cpu_src=_NORMALISE, data=self.data)
        self.saved = x, weight, mean, variance
        return y, mean, variance

    def grad(self, dy, _dmean, _dvariance):
        x, weight, mean, variance = self.saved
        channels = weight.shape
        return jt.code([x.shape, channels, channels], [x.dtype] * 3, [dy, x, weight, mean, variance],
                       cpu_header=_PARTIAL_SUMS, cpu_src=_NORMALISE_GRADIENT, data=self.data)


def batch_norm(x, weight, bias, eps):
    """(y, mean, biased variance) of x (n, c, …) normalised over every axis but c."""
    if jt.flags.use_cuda:
        return plain_batch_norm(x, weight, bias, eps)
    y, mean, variance = _Normalise(_batch_layout(x.shape), eps)(x, weight, bias)
    return y, mean.detach(), variance.detach()


def plain_batch_norm(x, weight, bias, eps):
    """`batch_norm` in Jittor's own operators, two-pass: the mean first, then the variance of what is left."""
    axes = [0] + list(range(2, x.ndim))
    mean = x.mean(axes, keepdims=True)
    centred = x - mean
    variance = (centred * centred).mean(axes, keepdims=True)
    scale = weight.broadcast(x.shape, axes) / jt.sqrt(variance + eps)
    return centred * scale + bias.broadcast(x.shape, axes), mean.flatten().detach(), variance.flatten().detach()


def group_norm(x, groups, weight, bias, eps):
    """x (n, c, …) normalised over each of `groups` equal stretches of channels."""
    if jt.flags.use_cuda:
        return plain_group_norm(x, groups, weight, bias, eps)
    return _Normalise(_group_layout(x.shape, groups), eps)(x, weight, bias)[0]


def plain_group_norm(x, groups, weight, bias, eps):
    """`group_norm` in Jittor's own operators, two-pass."""
    grouped = x.reshape((x.shape[0], groups, -1))
    centred = grouped - grouped.mean(2, keepdims=True)
    normal = centred / jt.sqrt((centred * centred).mean(2, keepdims=True) + eps)
    axes = [0] + list(range(2, x.ndim))
    return normal.reshape(x.shape) * weight.broadcast(x.shape, axes) + bias.broadcast(x.shape, axes)


_AFFINE = """
    // kernel: affine;
    const int64_t channels = in0_shape1, length = in0_shape2 * in0_shape3, planes = in0_shape0 * channels;
    #pragma omp parallel for if(planes * length > 16384)
    for (int64_t plane = 0; plane < planes; plane++) {
        const in0_type* x = in0_p + plane * length;
        out_type* y = out_p + plane * length;
        const in0_type scale = in1_p[plane % channels], shift = in2_p[plane % channels];
        for (int64_t i = 0; i < length; i++) y[i] = x[i] * scale + shift;
    }
"""


_CHANNEL_SUMS = """
    // kernel: channel sums;
    // per channel of dy (n, c, h, w): the sum of dy, and of dy * x
    const int64_t channels = in0_shape1, length = in0_shape2 * in0_shape3, n = in0_shape0;
    #pragma omp parallel for if(n * channels * length > 16384)
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, product = 0;
        for (int64_t i = 0; i < n; i++) {
            const in0_type* dy = in0_p + (i * channels + c) * length;
            const in1_type* x = in1_p + (i * channels + c) * length;
            sum += total<in0_type>(length, [=](int64_t k) { return dy[k]; });
            product += total<in0_type>(length, [=](int64_t k) { return dy[k] * x[k]; });
        }
        out0_p[c] = sum;
        out1_p[c] = product;
    }
"""


def _channel_sums(dy, x):
    channels = (dy.shape[1],)
    return jt.code([channels, channels], [dy.dtype] * 2, [dy, x], cpu_header=_PARTIAL_SUMS, cpu_src=_CHANNEL_SUMS)


class _Affine(jt.Function):
    def execute(self, x, scale, shift):
        self.saved = x, scale
        return jt.code(x.shape, x.dtype, [x, scale, shift], cpu_src=_AFFINE)

    def grad(self, dy):
        x, scale = self.saved
        sums, products = _channel_sums(dy, x)
        return dy * scale.broadcast(dy.shape, [0, 2, 3]), products, sums


class _Bias(jt.Function):
    def execute(self, x, bias):
        return jt.code(x.shape, x.dtype, [x, jt.ones_like(bias), bias], cpu_src=_AFFINE)

    def grad(self, dy):
        return dy, _channel_sums(dy, dy)[0]


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


def add_bias(x, bias):
    """x (n, c, h, w) plus bias (c,), whose gradient is accumulated like every sum here."""
    if jt.flags.use_cuda:
        return plain_add_bias(x, bias)
    return _Bias()(x, bias)


def plain_add_bias(x, bias):
    """`add_bias` in Jittor's own operators."""
    return x + bias.broadcast(x.shape, [0, 2, 3])


def affine(x, scale, shift):
    """x (n, c, h, w) times scale (c,) plus shift (c,): batch norm in evaluation."""
    if jt.flags.use_cuda:
        return plain_affine(x, scale, shift)
    return _Affine()(x, scale, shift)


def plain_affine(x, scale, shift):
    """`affine` in Jittor's own operators."""
    return x * scale.broadcast(x.shape, [0, 2, 3]) + shift.broadcast(x.shape, [0, 2, 3])


_BLEND = """
    // kernel: blend;
    for (int64_t i = 0; i < in0->num; i++) out_p[i] = in0_p[i] * (1 - data["share"]) + in1_p[i] * data["share"] * data["factor"];
"""


def blend(old, new, share: float, factor: float = 1.0):
    """old (c,) moved towards factor * new by `share`, with the share in float64: a Python number would be float32."""
    if jt.flags.use_cuda:
        return plain_blend(old, new, share, factor)
    return jt.code(old.shape, old.dtype, [old, new], cpu_src=_BLEND, data=dict(share=share, factor=factor))


def plain_blend(old, new, share: float, factor: float = 1.0):
    """`blend` in Jittor's own operators."""
    return old * (1 - share) + new * (share * factor)


_SIGMOID = """
    // kernel: sigmoid;
    const int64_t count = in0->num;
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type x = in0_p[i], small = std::exp(-std::abs(x));
        out_p[i] = (x >= 0 ? in0_type(1) : small) / (1 + small);
    }
"""

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
        out_p[i] = std::max(x, in0_type(0)) - x * in1_p[i] + 2 * z * series;
    }
"""


class _Sigmoid(jt.Function):
    def execute(self, x):
        self.value = jt.code(x.shape, x.dtype, [x], cpu_header="#include <cmath>", cpu_src=_SIGMOID)
        return self.value

    def grad(self, dy):
        return dy * self.value * (1 - self.value)


def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow and without Jittor's clipping at -30."""
    if jt.flags.use_cuda:
        return plain_sigmoid(x)
    return _Sigmoid()(x)


def plain_sigmoid(x):
    """`sigmoid` in Jittor's own operators; a tanh neither overflows nor is clipped, but is 0 below -17."""
    return (jt.tanh(x / 2) + 1) / 2


class _BinaryCrossEntropy(jt.Function):
    def execute(self, x, target):
        self.saved = x, target
        return jt.code(x.shape, x.dtype, [x, target], cpu_header="#include <algorithm>\n#include <cmath>",
                       cpu_src=_BINARY_CROSS_ENTROPY)

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


_LEAKY_RELU = """
    // kernel: leaky relu;
    const int64_t count = in0->num;
    const in0_type slope = data["slope"];
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) out_p[i] = in0_p[i] > 0 ? in0_p[i] : in0_p[i] * slope;
"""

_LEAKY_RELU_GRADIENT = """
    // kernel: leaky relu, gradient;
    const int64_t count = in0->num;
    const in0_type slope = data["slope"];
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) out_p[i] = in1_p[i] > 0 ? in0_p[i] : in0_p[i] * slope;
"""


class _LeakyReLU(jt.Function):
    def __init__(self, slope: float):
        self.data = dict(slope=slope)

    def execute(self, x):
        self.x = x
        return jt.code(x.shape, x.dtype, [x], cpu_src=_LEAKY_RELU, data=self.data)

    def grad(self, dy):
        return jt.code(dy.shape, dy.dtype, [dy, self.x], cpu_src=_LEAKY_RELU_GRADIENT, data=self.data)


def leaky_relu(x, slope: float):
    """x where positive, else slope x. Jittor's own is compiled anew for every neighbour it is fused with."""
    if jt.flags.use_cuda:
        return plain_leaky_relu(x, slope)
    return _LeakyReLU(slope)(x)


def plain_leaky_relu(x, slope: float):
    """`leaky_relu` by Jittor's own operator."""
    return jt.nn.leaky_relu(x, slope)


def set_threads(count: int) -> None:
    """Let OpenMP, and with it oneDNN and every kernel here, use `count` threads."""
    jt.code([1], "int32", [], cpu_header="#include <omp.h>", data={"count": count},
            cpu_src='omp_set_num_threads(int(data["count"])); out_p[0] = 0;').sync()
