/// Matrix products, and convolution in float64 as products of unrolled images. Read by __init__.py, which says what its
/// marks mean.

//// header multiply
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

/// C (m, n) = A (m, k) B (k, n) + beta C, everything row by row; A is stored (k, m) if turned, B (n, k).
//// header product: multiply
extern "C" int dnnl_sgemm(char, char, int64_t m, int64_t n, int64_t k, float alpha, const float* A, int64_t a_row,
                          const float* B, int64_t b_row, float beta, float* C, int64_t c_row);

static void product(bool turn_a, bool turn_b, int64_t m, int64_t n, int64_t k, const float* A, const float* B, float beta,
                    float* C) {
    dnnl_sgemm(turn_a ? 'T' : 'N', turn_b ? 'T' : 'N', m, n, k, 1, A, turn_a ? m : k, B, turn_b ? k : n, beta, C, n);
}

static void product(bool turn_a, bool turn_b, int64_t m, int64_t n, int64_t k, const double* A, const double* B, double beta,
                    double* C) {
    std::vector<double> turned(turn_b ? k * n : 0);
    if (turn_b)
        for (int64_t l = 0; l < k; l++)
            for (int64_t j = 0; j < n; j++) turned[l * n + j] = B[j * k + l];
    if (beta == 0) std::fill(C, C + m * n, 0);
    multiply(m, n, k, A, turn_a ? 1 : k, turn_a ? m : 1, turn_b ? turned.data() : B, C);
}

//// opening sizes
    const int64_t batch = data["batch"], m = data["m"], n = data["n"], k = data["k"];
    const bool turn_a = data["turn_a"], turn_b = data["turn_b"];

//// kernel matrix product: product, sizes
    // kernel: matrix product;
    if (batch == 1) {  // in a region of one thread too oneDNN would make and end a team of its own for each call
        product(turn_a, turn_b, m, n, k, in0_p, in1_p, 0, out_p);
    } else {
        #pragma omp parallel for
        for (int64_t i = 0; i < batch; i++)
            product(turn_a, turn_b, m, n, k, in0_p + i * m * k, in1_p + i * k * n, 0, out_p + i * m * n);
    }

//// kernel linear layer: product, sizes
    // kernel: linear layer;
    for (int64_t i = 0; i < m; i++) std::copy(in2_p, in2_p + n, out_p + i * n);
    product(turn_a, turn_b, m, n, k, in0_p, in1_p, 1, out_p);

//// kernel column sums: <vector>
    // kernel: column sums;
    const int64_t columns = out->num, rows = in0->num / columns;
    std::vector<double> sums(columns);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) sums[j] += in0_p[i * columns + j];
    for (int64_t j = 0; j < columns; j++) out_p[j] = sums[j];

//// header unroll: multiply
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

/// Sizes shared by the three kernels; the image has in_h x in_w pixels and C channels per group.
//// opening geometry
    const int64_t N = data["n"], groups = data["groups"], O = data["out_channels"] / groups;
    const Geometry g{int64_t(data["in_channels"] / groups), int64_t(data["in_h"]), int64_t(data["in_w"]),
        int64_t(data["kernel_h"]), int64_t(data["kernel_w"]), int64_t(data["out_h"]), int64_t(data["out_w"]),
        int64_t(data["stride_h"]), int64_t(data["stride_w"]), int64_t(data["padding_h"]), int64_t(data["padding_w"]),
        int64_t(data["dilation_h"]), int64_t(data["dilation_w"])};
    const int64_t entries = g.C * g.r * g.s, pixels = g.h * g.w, image = g.C * g.H * g.W;

//// kernel float64 convolution: unroll, geometry
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

//// kernel float64 convolution, input gradient: unroll, geometry
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

//// kernel float64 convolution, weight gradient: unroll, geometry
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

/// Of a 1 x 1 convolution every image (c, pixels) is one product with the weights (o, c).
//// kernel pointwise convolution: product, <algorithm>
    // kernel: pointwise convolution;
    const int64_t c = in0_shape1, o = out_shape1, pixels = in0_shape2 * in0_shape3;
    for (int64_t n = 0; n < in0_shape0; n++) {
        out_type* y = out_p + n * o * pixels;
        #pragma omp parallel for if(o * pixels > 16384)
        for (int64_t k = 0; k < o; k++) std::fill(y + k * pixels, y + (k + 1) * pixels, in2_p[k]);
        product(false, false, o, pixels, c, in1_p, in0_p + n * c * pixels, 1, y);
    }
