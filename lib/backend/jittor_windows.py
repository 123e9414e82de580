"""C++ kernels over windows of an image for Jittor on the CPU: resizing, pooling, convolution.

Built as in `jittor_normalise.py`: each beside its `plain_…` rule, sizes as data, one compiled kernel per dtype.
"""

import numpy as np

from . import jittor_float64 as float64
from .jittor_import import jt

# Where output index i reads: pixel `low`, pixel `high`, and the share of `high`.
_TAPS = """
#include <algorithm>
#include <cmath>
#include <vector>
struct Taps { std::vector<int64_t> low, high; std::vector<double> share; };
static Taps taps(int64_t in, int64_t out, double ratio, bool bilinear, bool corners) {
    Taps t{std::vector<int64_t>(out), std::vector<int64_t>(out), std::vector<double>(out)};
    for (int64_t i = 0; i < out; i++) {
        double source = !bilinear ? std::floor(i * ratio) : corners ? i * ratio : std::max((i + 0.5) * ratio - 0.5, 0.);
        int64_t low = std::min<int64_t>(source, in - 1);
        t.low[i] = low;
        t.high[i] = bilinear ? std::min(low + 1, in - 1) : low;
        t.share[i] = bilinear ? source - low : 0.;
    }
    return t;
}
"""

_RESIZE = """
    // kernel: resize;
    const int64_t planes = in0_shape0 * in0_shape1, H = in0_shape2, W = in0_shape3, h = out_shape2, w = out_shape3;
    const Taps rows = taps(H, h, data["row_ratio"], data["bilinear"], data["corners"]);
    const Taps columns = taps(W, w, data["column_ratio"], data["bilinear"], data["corners"]);
    #pragma omp parallel
    {
        std::vector<in0_type> blend(W), share(columns.share.begin(), columns.share.end());
        #pragma omp for
        for (int64_t plane = 0; plane < planes; plane++)
            for (int64_t i = 0; i < h; i++) {
                const in0_type* low = in0_p + (plane * H + rows.low[i]) * W;
                const in0_type* high = in0_p + (plane * H + rows.high[i]) * W;
                const in0_type s = rows.share[i];
                for (int64_t j = 0; j < W; j++) blend[j] = low[j] * (1 - s) + high[j] * s;
                out_type* y = out_p + (plane * h + i) * w;
                for (int64_t j = 0; j < w; j++)
                    y[j] = blend[columns.low[j]] * (1 - share[j]) + blend[columns.high[j]] * share[j];
            }
    }
"""

_RESIZE_GRADIENT = """
    // kernel: resize, gradient;
    const int64_t planes = in0_shape0 * in0_shape1, h = in0_shape2, w = in0_shape3, H = out_shape2, W = out_shape3;
    const Taps rows = taps(H, h, data["row_ratio"], data["bilinear"], data["corners"]);
    const Taps columns = taps(W, w, data["column_ratio"], data["bilinear"], data["corners"]);
    #pragma omp parallel
    {
        std::vector<in0_type> blend(W);
        #pragma omp for
        for (int64_t plane = 0; plane < planes; plane++) {
            out_type* dx = out_p + plane * H * W;
            std::fill(dx, dx + H * W, 0);
            for (int64_t i = 0; i < h; i++) {
                const in0_type* dy = in0_p + (plane * h + i) * w;
                std::fill(blend.begin(), blend.end(), 0);
                for (int64_t j = 0; j < w; j++) {
                    blend[columns.low[j]] += dy[j] * in0_type(1 - columns.share[j]);
                    blend[columns.high[j]] += dy[j] * in0_type(columns.share[j]);
                }
                const in0_type s = rows.share[i];
                out_type* low = dx + rows.low[i] * W;
                out_type* high = dx + rows.high[i] * W;
                for (int64_t j = 0; j < W; j++) low[j] += blend[j] * (1 - s);
                for (int64_t j = 0; j < W; j++) high[j] += blend[j] * s;
            }
        }
    }
"""


class _Resize(jt.Function):
    def __init__(self, size: tuple[int, int], data: dict[str, float]):
        self.size, self.data = size, data

    def execute(self, x):
        self.shape = x.shape
        return jt.code([*x.shape[:2], *self.size], x.dtype, [x], cpu_header=_TAPS, cpu_src=_RESIZE, data=self.data)

    def grad(self, dy):
        return jt.code(self.shape, dy.dtype, [dy], cpu_header=_TAPS, cpu_src=_RESIZE_GRADIENT, data=self.data)


def resize(x, size: tuple[int, int], ratios: tuple[float, float], mode: str, align_corners: bool):
    """x (n, c, h, w) sampled at `size` points; `ratios`: input pixels per output pixel, rows and columns."""
    if jt.flags.use_cuda:
        return plain_resize(x, size, mode, align_corners)
    data = dict(
        row_ratio=ratios[0], column_ratio=ratios[1], bilinear=float(mode == "bilinear"), corners=float(align_corners)
    )
    return _Resize(size, data)(x)


def plain_resize(x, size: tuple[int, int], mode: str, align_corners: bool):
    """`resize` by Jittor's own operator, whose ratios are always those of the sizes."""
    return jt.nn.interpolate(x, size=size, mode=mode, align_corners=align_corners)


_MAX_POOL = """
    // kernel: max pool;
    const int64_t planes = in0_shape0 * in0_shape1, H = in0_shape2, W = in0_shape3, h = out0_shape2, w = out0_shape3;
    const int64_t size = data["size"], stride = data["stride"], padding = data["padding"];
    #pragma omp parallel for
    for (int64_t plane = 0; plane < planes; plane++)
        for (int64_t i = 0; i < h; i++)
            for (int64_t j = 0; j < w; j++) {
                const int64_t top = std::max<int64_t>(i * stride - padding, 0);
                const int64_t left = std::max<int64_t>(j * stride - padding, 0);
                const int64_t bottom = std::min(i * stride - padding + size, H);
                const int64_t right = std::min(j * stride - padding + size, W);
                int64_t best = (plane * H + top) * W + left;
                for (int64_t y = top; y < bottom; y++)
                    for (int64_t x = left; x < right; x++) {
                        const int64_t here = (plane * H + y) * W + x;
                        if (in0_p[here] > in0_p[best] || in0_p[here] != in0_p[here]) best = here;
                    }
                out0_p[(plane * h + i) * w + j] = in0_p[best];
                out1_p[(plane * h + i) * w + j] = best - plane * H * W;
            }
"""

_MAX_POOL_GRADIENT = """
    // kernel: max pool, gradient;
    const int64_t planes = in0_shape0 * in0_shape1, inner = in0_shape2 * in0_shape3, outer = out_shape2 * out_shape3;
    #pragma omp parallel for
    for (int64_t plane = 0; plane < planes; plane++) {
        std::fill(out_p + plane * outer, out_p + (plane + 1) * outer, 0);
        for (int64_t i = plane * inner; i < (plane + 1) * inner; i++) out_p[plane * outer + in1_p[i]] += in0_p[i];
    }
"""


class _MaxPool(jt.Function):
    def __init__(self, size: int, stride: int, padding: int):
        self.data = dict(size=size, stride=stride, padding=padding)

    def execute(self, x):
        self.shape = x.shape
        shape = [
            *x.shape[:2],
            *((s + 2 * self.data["padding"] - self.data["size"]) // self.data["stride"] + 1 for s in x.shape[2:]),
        ]
        y, self.places = jt.code(
            [shape, shape],
            [x.dtype, "int32"],
            [x],
            cpu_header="#include <algorithm>",
            cpu_src=_MAX_POOL,
            data=self.data,
        )
        return y

    def grad(self, dy):
        return jt.code(
            self.shape, dy.dtype, [dy, self.places], cpu_header="#include <algorithm>", cpu_src=_MAX_POOL_GRADIENT
        )


def max_pool(x, size: int, stride: int, padding: int):
    """Largest value of each window of x (n, c, h, w); the first of equals takes the gradient, as in PyTorch."""
    if jt.flags.use_cuda:
        return plain_max_pool(x, size, stride, padding)
    return _MaxPool(size, stride, padding)(x)


def plain_max_pool(x, size: int, stride: int, padding: int):
    """`max_pool` by Jittor's own operator, which refuses maps no larger than the window."""
    return jt.nn.max_pool2d(x, size, stride, padding)


# What output i averages of `in` values: a window cut at the end, or, with size 0, its part of all of them.
_STRETCH = """
#include <algorithm>
#include <vector>
struct Stretch {
    int64_t in, out, size, stride;
    Stretch(int64_t in, int64_t out, int64_t size, int64_t stride) : in(in), out(out), size(size), stride(stride) {}
    int64_t start(int64_t i) const { return size ? i * stride : i * in / out; }
    int64_t stop(int64_t i) const { return size ? std::min(i * stride + size, in) : ((i + 1) * in + out - 1) / out; }
    int64_t count(int64_t i) const { return stop(i) - start(i); }
};
"""

_AVERAGE_POOL = """
    // kernel: average pool;
    const int64_t planes = in0_shape0 * in0_shape1, H = in0_shape2, W = in0_shape3, h = out_shape2, w = out_shape3;
    const Stretch rows(H, h, data["size"], data["stride"]), columns(W, w, data["size"], data["stride"]);
    #pragma omp parallel
    {
        std::vector<double> sums(W);  // of a window's rows
        #pragma omp for
        for (int64_t plane = 0; plane < planes; plane++)
            for (int64_t i = 0; i < h; i++) {
                std::fill(sums.begin(), sums.end(), 0);
                for (int64_t y = rows.start(i); y < rows.stop(i); y++)
                    for (int64_t x = 0; x < W; x++) sums[x] += in0_p[(plane * H + y) * W + x];
                for (int64_t j = 0; j < w; j++) {
                    double sum = 0;
                    for (int64_t x = columns.start(j); x < columns.stop(j); x++) sum += sums[x];
                    out_p[(plane * h + i) * w + j] = sum / (rows.count(i) * columns.count(j));
                }
            }
    }
"""

_AVERAGE_POOL_GRADIENT = """
    // kernel: average pool, gradient;
    const int64_t planes = in0_shape0 * in0_shape1, h = in0_shape2, w = in0_shape3, H = out_shape2, W = out_shape3;
    const Stretch rows(H, h, data["size"], data["stride"]), columns(W, w, data["size"], data["stride"]);
    #pragma omp parallel
    {
        std::vector<in0_type> shares(W);  // what each column of a window's rows gets
        #pragma omp for
        for (int64_t plane = 0; plane < planes; plane++) {
            std::fill(out_p + plane * H * W, out_p + (plane + 1) * H * W, 0);
            for (int64_t i = 0; i < h; i++) {
                std::fill(shares.begin(), shares.end(), 0);
                for (int64_t j = 0; j < w; j++) {
                    const in0_type share = in0_p[(plane * h + i) * w + j] / (rows.count(i) * columns.count(j));
                    for (int64_t x = columns.start(j); x < columns.stop(j); x++) shares[x] += share;
                }
                for (int64_t y = rows.start(i); y < rows.stop(i); y++)
                    for (int64_t x = 0; x < W; x++) out_p[(plane * H + y) * W + x] += shares[x];
            }
        }
    }
"""


class _AveragePool(jt.Function):
    def __init__(self, shape: tuple[int, int], size: int, stride: int):
        self.out, self.data = shape, dict(size=size, stride=stride)

    def execute(self, x):
        self.shape = x.shape
        return jt.code(
            [*x.shape[:2], *self.out], x.dtype, [x], cpu_header=_STRETCH, cpu_src=_AVERAGE_POOL, data=self.data
        )

    def grad(self, dy):
        return jt.code(self.shape, dy.dtype, [dy], cpu_header=_STRETCH, cpu_src=_AVERAGE_POOL_GRADIENT, data=self.data)


def adaptive_avg_pool(x, size: tuple[int, int]):
    """Means of x (n, c, h, w) over `size` windows that cover it, overlapping where sizes do not divide."""
    if jt.flags.use_cuda:
        return plain_adaptive_avg_pool(x, size)
    return _AveragePool(size, 0, 0)(x)


def plain_adaptive_avg_pool(x, size: tuple[int, int]):
    """`adaptive_avg_pool` in Jittor's own operators."""
    return _plain_means(
        x, [[(i * s // out, -(-(i + 1) * s // out)) for i in range(out)] for s, out in zip(x.shape[2:], size)]
    )


def avg_pool(x, size: int, stride: int, ceil_mode: bool):
    """Means of x (n, c, h, w) over windows; with `ceil_mode` also over what is left at the end, by its own count."""
    if jt.flags.use_cuda:
        return plain_avg_pool(x, size, stride, ceil_mode)
    return _AveragePool(tuple(len(_spans(s, size, stride, ceil_mode)) for s in x.shape[2:]), size, stride)(x)


def plain_avg_pool(x, size: int, stride: int, ceil_mode: bool):
    """`avg_pool` in Jittor's own operators."""
    return _plain_means(x, [_spans(s, size, stride, ceil_mode) for s in x.shape[2:]])


def _spans(length: int, size: int, stride: int, ceil_mode: bool) -> list[tuple[int, int]]:
    """(start, stop) of the windows over `length` values; with `ceil_mode` the last may reach out and is cut, never start out."""
    count = (length - size + (stride - 1 if ceil_mode else 0)) // stride + 1
    starts = [i * stride for i in range(count) if i * stride < length]
    return [(start, min(start + size, length)) for start in starts]


def _plain_means(x, spans: list[list[tuple[int, int]]]):
    """Means of x (n, c, h, w) over spans of rows and of columns: a product with a matrix of shares per axis."""
    for axis_spans in reversed(spans):
        shares = np.zeros((x.shape[3], len(axis_spans)))
        for i, (start, stop) in enumerate(axis_spans):
            shares[start:stop, i] = 1 / (stop - start)
        x = jt.matmul(x, jt.array(shares, dtype=str(x.dtype))).permute(0, 1, 3, 2)
    return x


class _Conv2d(jt.Function):
    """Convolution by oneDNN's three primitives, called directly; see `conv2d`."""

    def __init__(self, stride, padding, dilation, groups):
        self.geometry = (*stride, *padding, *dilation, groups)

    def execute(self, x, weight):
        self.saved = x, weight
        return jt.mkl_ops.mkl_conv(x, weight, *self.geometry, "abcd", "oihw")

    def grad(self, dy):
        x, weight = self.saved
        return (
            jt.mkl_ops.mkl_conv_backward_x(weight, dy, *x.shape[2:], *self.geometry, "abcd", "oihw", "abcd"),
            jt.mkl_ops.mkl_conv_backward_w(x, dy, *weight.shape[2:], *self.geometry, "abcd", "oihw", "abcd"),
        )


def conv2d(x, weight, stride, padding, dilation, groups):
    """Convolution of x (n, c, h, w) without bias.

    Jittor's own `nn.Conv` writes a loop nest for its tuner to recognise, one kernel per group count; oneDNN's
    primitives called directly are three kernels for every convolution of a model. oneDNN has no float64.
    """
    if jt.flags.use_cuda:
        return plain_conv2d(x, weight, stride, padding, dilation, groups)
    return (float64.Conv2d if x.dtype == "float64" else _Conv2d)(stride, padding, dilation, groups)(x, weight)


def plain_conv2d(x, weight, stride, padding, dilation, groups):
    """`conv2d` by Jittor's own operator."""
    return jt.nn.conv2d(x, weight, None, stride, padding, dilation, groups)
