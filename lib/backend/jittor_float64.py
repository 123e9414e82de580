"""Convolution in float64 for Jittor on the CPU: what the noise of the float32 runs is measured against.

oneDNN has no float64, and Jittor's own loop nest takes minutes where these kernels take seconds. Images are unrolled
to columns (one per output pixel) and multiplied by the weights; a gradient is the same product the other way round.
"""

from .jittor_import import jt

MULTIPLY = """
#include <algorithm>
#include <cstdint>
#include <vector>
// C (m, n) += A (m, k) B (k, n); element (i, l) of A lies at i * ai + l * al. Blocks of 4 x 32 stay in registers.
static void multiply(int64_t m, int64_t n, int64_t k, const double* A, int64_t ai, int64_t al, const double* B, double* C) {
    for (int64_t j0 = 0; j0 < n; j0 += 32)
        for (int64_t i0 = 0; i0 < m; i0 += 4) {
            const int64_t rows = std::min<int64_t>(4, m - i0), columns = std::min<int64_t>(32, n - j0);
            double sums[4][32] = {};
            if (rows == 4 && columns == 32)
                for (int64_t l = 0; l < k; l++)
                    for (int i = 0; i < 4; i++)
                        for (int j = 0; j < 32; j++) sums[i][j] += A[(i0 + i) * ai + l * al] * B[l * n + j0 + j];
            else
                for (int64_t l = 0; l < k; l++)
                    for (int64_t i = 0; i < rows; i++)
                        for (int64_t j = 0; j < columns; j++) sums[i][j] += A[(i0 + i) * ai + l * al] * B[l * n + j0 + j];
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < columns; j++) C[(i0 + i) * n + j0 + j] += sums[i][j];
        }
}
"""

_PRODUCTS = (
    MULTIPLY
    + """
struct Geometry { int64_t C, H, W, r, s, h, w, sy, sx, py, px, dy, dx; };

// Calls visit(column entry, pixel) for each entry (channel, r, s) x (output pixel) that lies inside the image.
template <class F> static void unroll(const Geometry& g, F visit) {
    for (int64_t c = 0, entry = 0; c < g.C; c++)
        for (int64_t r = 0; r < g.r; r++)
            for (int64_t s = 0; s < g.s; s++, entry++)
                for (int64_t i = 0; i < g.h; i++) {
                    const int64_t y = i * g.sy - g.py + r * g.dy;
                    if (y < 0 || y >= g.H) continue;
                    for (int64_t j = 0; j < g.w; j++) {
                        const int64_t x = j * g.sx - g.px + s * g.dx;
                        if (x >= 0 && x < g.W) visit(entry, i * g.w + j, (c * g.H + y) * g.W + x);
                    }
                }
}
"""
)

# Sizes shared by the three kernels; the image has in_h x in_w pixels and C channels per group.
_GEOMETRY = """
    const int64_t N = data["n"], groups = data["groups"], O = data["out_channels"] / groups;
    const Geometry g{int64_t(data["in_channels"] / groups), int64_t(data["in_h"]), int64_t(data["in_w"]),
        int64_t(data["kernel_h"]), int64_t(data["kernel_w"]), int64_t(data["out_h"]), int64_t(data["out_w"]),
        int64_t(data["stride_h"]), int64_t(data["stride_w"]), int64_t(data["padding_h"]), int64_t(data["padding_w"]),
        int64_t(data["dilation_h"]), int64_t(data["dilation_w"])};
    const int64_t entries = g.C * g.r * g.s, pixels = g.h * g.w, image = g.C * g.H * g.W;
"""

_FORWARD = (
    _GEOMETRY
    + """
    // kernel: float64 convolution;
    #pragma omp parallel for
    for (int64_t job = 0; job < N * groups; job++) {
        const int64_t group = job % groups;
        std::vector<double> columns(entries * pixels);
        const double* x = in0_p + job * image;
        unroll(g, [&](int64_t e, int64_t p, int64_t at) { columns[e * pixels + p] = x[at]; });
        double* y = out_p + job * O * pixels;
        std::fill(y, y + O * pixels, 0);
        multiply(O, pixels, entries, in1_p + group * O * entries, entries, 1, columns.data(), y);
    }
"""
)

_INPUT_GRADIENT = (
    _GEOMETRY
    + """
    // kernel: float64 convolution, input gradient;
    #pragma omp parallel for
    for (int64_t job = 0; job < N * groups; job++) {
        const int64_t group = job % groups;
        std::vector<double> columns(entries * pixels);
        multiply(entries, pixels, O, in1_p + group * O * entries, 1, entries, in0_p + job * O * pixels, columns.data());
        double* dx = out_p + job * image;
        std::fill(dx, dx + image, 0);
        unroll(g, [&](int64_t e, int64_t p, int64_t at) { dx[at] += columns[e * pixels + p]; });
    }
"""
)

_WEIGHT_GRADIENT = (
    _GEOMETRY
    + """
    // kernel: float64 convolution, weight gradient;
    #pragma omp parallel for
    for (int64_t group = 0; group < groups; group++) {
        double* dw = out_p + group * O * entries;
        std::fill(dw, dw + O * entries, 0);
        for (int64_t n = 0; n < N; n++) {
            std::vector<double> columns(entries * pixels);
            const double* x = in1_p + (n * groups + group) * image;
            unroll(g, [&](int64_t e, int64_t p, int64_t at) { columns[p * entries + e] = x[at]; });
            multiply(O, entries, pixels, in0_p + (n * groups + group) * O * pixels, pixels, 1, columns.data(), dw);
        }
    }
"""
)


class Conv2d(jt.Function):
    """Convolution of x (n, c, h, w) float64 without bias, and its two gradients."""

    def __init__(self, stride, padding, dilation, groups):
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def execute(self, x, weight):
        n, channels, *size = x.shape
        kernel = weight.shape[2:]
        out = [
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in range(2)
        ]
        self.data = dict(n=n, groups=self.groups, in_channels=channels, out_channels=weight.shape[0])
        for name, (h, w) in dict(
            in_=size, out_=out, kernel_=kernel, stride_=self.stride, padding_=self.padding, dilation_=self.dilation
        ).items():
            self.data |= {f"{name}h": h, f"{name}w": w}
        self.saved = x, weight
        return jt.code(
            [n, weight.shape[0], *out], "float64", [x, weight], cpu_header=_PRODUCTS, cpu_src=_FORWARD, data=self.data
        )

    def grad(self, dy):
        x, weight = self.saved
        return tuple(
            jt.code(shape, "float64", [dy, other], cpu_header=_PRODUCTS, cpu_src=source, data=self.data)
            for shape, other, source in ((x.shape, weight, _INPUT_GRADIENT), (weight.shape, x, _WEIGHT_GRADIENT))
        )
