"""C++ kernels (`jt.code`) for normalisations and what goes with them, which Jittor does slowly and inexactly on the CPU.

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

_NORMALISE = (
    _GROUPS
    + """
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
)

_NORMALISE_GRADIENT = (
    _GROUPS
    + """
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
)


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
        y, mean, variance = jt.code(
            [x.shape, groups, groups],
            [x.dtype] * 3,
            [x, weight, bias],
            cpu_header=_PARTIAL_SUMS,
            cpu_src=_NORMALISE,
            data=self.data,
        )
        self.saved = x, weight, mean, variance
        return y, mean, variance

    def grad(self, dy, _dmean, _dvariance):
        x, weight, mean, variance = self.saved
        channels = weight.shape
        return jt.code(
            [x.shape, channels, channels],
            [x.dtype] * 3,
            [dy, x, weight, mean, variance],
            cpu_header=_PARTIAL_SUMS,
            cpu_src=_NORMALISE_GRADIENT,
            data=self.data,
        )


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


_LAYER_NORM = """
    // kernel: layer norm;
    const int64_t length = in1->num, rows = in0->num / length;
    #pragma omp parallel for if(in0->num > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const in0_type* x = in0_p + row * length;
        out0_type* y = out0_p + row * length;
        const double sum = total<in0_type>(length, [=](int64_t i) { return x[i]; });
        const in0_type mean = sum / length;
        const double square = total<in0_type>(length, [=](int64_t i) { in0_type d = x[i] - mean; return d * d; });
        const double rest = sum / length - mean;
        const in0_type inverse = 1.0 / std::sqrt(square / length - rest * rest + data["eps"]);
        out1_p[row] = mean;
        out2_p[row] = inverse;
        for (int64_t i = 0; i < length; i++) y[i] = (x[i] - mean) * inverse * in1_p[i] + in2_p[i];
    }
"""

_LAYER_NORM_GRADIENT = """
    // kernel: layer norm, gradient;
    // inputs: dy, x, weight, mean, 1 / deviation; outputs: dx, d weight, d bias
    const int64_t length = in2->num, rows = in0->num / length;
    constexpr int64_t width = 64;
    #pragma omp parallel for if(in0->num > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const in0_type* dy = in0_p + row * length;
        const in1_type* x = in1_p + row * length;
        out0_type* dx = out0_p + row * length;
        const in1_type mean = in3_p[row], inverse = in4_p[row];
        const double sum = total<in0_type>(length, [=](int64_t i) { return dy[i] * in2_p[i]; });
        const double product = total<in0_type>(length, [=](int64_t i) { return dy[i] * in2_p[i] * (x[i] - mean); });
        const in1_type mean_dy = sum / length, slope = product / length * inverse * inverse;
        for (int64_t i = 0; i < length; i++) dx[i] = (dy[i] * in2_p[i] - mean_dy - (x[i] - mean) * slope) * inverse;
    }
    #pragma omp parallel for if(in0->num > 16384)
    for (int64_t first = 0; first < length; first += width) {
        const int64_t stop = std::min(first + width, length);
        double products[width] = {}, sums[width] = {};
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = first; i < stop; i++) {
                products[i - first] += in0_p[row * length + i] * ((in1_p[row * length + i] - in3_p[row]) * in4_p[row]);
                sums[i - first] += in0_p[row * length + i];
            }
        std::copy(products, products + stop - first, out1_p + first);
        std::copy(sums, sums + stop - first, out2_p + first);
    }
"""


class _LayerNorm(jt.Function):
    def __init__(self, eps: float):
        self.data = {"eps": eps}

    def execute(self, x, weight, bias):
        rows = (x.numel() // weight.numel(),)
        y, mean, inverse = jt.code(
            [x.shape, rows, rows],
            [x.dtype] * 3,
            [x, weight, bias],
            cpu_header=_PARTIAL_SUMS,
            cpu_src=_LAYER_NORM,
            data=self.data,
        )
        self.saved = x, weight, mean, inverse
        return y

    def grad(self, dy):
        x, weight, mean, inverse = self.saved
        return jt.code(
            [x.shape, weight.shape, weight.shape],
            [x.dtype] * 3,
            [dy, x, weight, mean, inverse],
            cpu_header=_PARTIAL_SUMS,
            cpu_src=_LAYER_NORM_GRADIENT,
        )


def layer_norm(x, weight, bias, eps):
    """x (…, c) normalised over its last axis, then times weight (c,) plus bias (c,)."""
    if jt.flags.use_cuda:
        return plain_layer_norm(x, weight, bias, eps)
    return _LayerNorm(eps)(x, weight, bias)


def plain_layer_norm(x, weight, bias, eps):
    """`layer_norm` in Jittor's own operators, two-pass."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / jt.sqrt((centred * centred).mean(-1, keepdims=True) + eps) * weight + bias


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
