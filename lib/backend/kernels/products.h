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
    if (k == 0 && beta == 0) std::fill(C, C + m * n, 0);  // which oneDNN leaves as it is
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

/// A convolution 3 x 3 in tiles of 2 x 4 pixels (Winograd's; arXiv:1509.09308). A tile's 4 x 6 input pixels enter 24
/// points: down, the values of polynomials at 0, 1, -1 and infinity, across, at 0, a, -a, b, -b and infinity. At each
/// point all channels are one product of matrices; the 24 results leave as 2 x 4 pixels.
//// header tiles: product
struct Points {
    float a, b, aa, bb;
    Points(double a, double b) : a(a), b(b), aa(a * a), bb(b * b) {}

    // Four rows of `count` values, `step` apart, to as many.
    static void enter_down(int64_t count, const float* x, int64_t step, float* y, int64_t to) {
        #pragma omp simd
        for (int64_t t = 0; t < count; t++) {
            const float x1 = x[step + t], x2 = x[2 * step + t];
            y[t] = x2 - x[t];
            y[to + t] = x2 + x1;
            y[2 * to + t] = x2 - x1;
            y[3 * to + t] = x[3 * step + t] - x1;
        }
    }

    // Four rows to two.
    static void leave_down(int64_t count, const float* x, int64_t step, float* y, int64_t to) {
        #pragma omp simd
        for (int64_t t = 0; t < count; t++) {
            const float x1 = x[step + t], x2 = x[2 * step + t];
            y[t] = x[t] + x1 + x2;
            y[to + t] = x1 - x2 + x[3 * step + t];
        }
    }

    // Six rows to six.
    void enter_across(int64_t count, const float* x, int64_t step, float* y, int64_t to) const {
        #pragma omp simd
        for (int64_t t = 0; t < count; t++) {
            const float x1 = x[step + t], x2 = x[2 * step + t], x3 = x[3 * step + t], x4 = x[4 * step + t];
            const float even_a = x4 - bb * x2, odd_a = a * (x3 - bb * x1), even_b = x4 - aa * x2, odd_b = b * (x3 - aa * x1);
            y[t] = aa * bb * x[t] - (aa + bb) * x2 + x4;
            y[to + t] = even_a + odd_a;
            y[2 * to + t] = even_a - odd_a;
            y[3 * to + t] = even_b + odd_b;
            y[4 * to + t] = even_b - odd_b;
            y[5 * to + t] = aa * bb * x1 - (aa + bb) * x3 + x[5 * step + t];
        }
    }

    // Six rows to four.
    void leave_across(int64_t count, const float* x, int64_t step, float* y, int64_t to) const {
        #pragma omp simd
        for (int64_t t = 0; t < count; t++) {
            const float plus_a = x[step + t] + x[2 * step + t], minus_a = a * (x[step + t] - x[2 * step + t]);
            const float plus_b = x[3 * step + t] + x[4 * step + t], minus_b = b * (x[3 * step + t] - x[4 * step + t]);
            y[t] = x[t] + plus_a + plus_b;
            y[to + t] = minus_a + minus_b;
            y[2 * to + t] = aa * plus_a + bb * plus_b;
            y[3 * to + t] = aa * minus_a + bb * minus_b + x[5 * step + t];
        }
    }
};

//// kernel convolution in tiles: tiles, <algorithm>, <cstring>, <memory>
    // kernel: convolution in tiles;
    const int64_t N = in0_shape0, C = in0_shape1, H = in0_shape2, W = in0_shape3, O = out_shape1;
    const int64_t rows = (H + 1) / 2, columns = (W + 3) / 4, most = data["band"];  // tiles
    const int64_t band = std::max<int64_t>(1, std::min(N * rows, most / (24 * (C + O) * columns)));  // rows of tiles
    const int64_t space = band * columns, width = 4 * columns + 2;
    const std::unique_ptr<float[]> entered(new float[24 * C * space]), products(new float[24 * O * space]);
    const Points points(data["near"], data["far"]);
    #pragma omp parallel
    {
        const std::unique_ptr<float[]> tile(new float[24 * space]), half(new float[24 * space]), line(new float[width]);
        for (int64_t first = 0; first < N * rows; first += band) {
            const int64_t here = std::min(band, N * rows - first), T = here * columns;
            #pragma omp for
            for (int64_t c = 0; c < C; c++) {
                for (int64_t r = 0; r < here; r++) {
                    const int64_t n = (first + r) / rows, top = (first + r) % rows * 2 - 1;
                    for (int64_t i = 0; i < 4; i++) {
                        std::fill(line.get(), line.get() + width, 0);
                        if (top + i >= 0 && top + i < H)
                            std::memcpy(line.get() + 1, in0_p + ((n * C + c) * H + top + i) * W, W * sizeof(float));
                        for (int64_t j = 0; j < 6; j++)
                            for (int64_t t = 0; t < columns; t++)
                                tile[(i * 6 + j) * T + r * columns + t] = line[4 * t + j];
                    }
                }
                for (int64_t j = 0; j < 6; j++) points.enter_down(T, &tile[j * T], 6 * T, &half[j * T], 6 * T);
                for (int64_t i = 0; i < 4; i++) points.enter_across(T, &half[i * 6 * T], T, &entered[(i * 6 * C + c) * T], C * T);
            }
            #pragma omp for
            for (int64_t k = 0; k < 24; k++)
                product(false, false, O, T, C, in1_p + k * O * C, &entered[k * C * T], 0, &products[k * O * T]);
            #pragma omp for
            for (int64_t o = 0; o < O; o++) {
                for (int64_t j = 0; j < 6; j++)
                    points.leave_down(T, &products[(j * O + o) * T], 6 * O * T, &half[j * T], 6 * T);
                for (int64_t i = 0; i < 2; i++) points.leave_across(T, &half[i * 6 * T], T, &tile[i * 4 * T], T);
                for (int64_t r = 0; r < here; r++) {
                    const int64_t n = (first + r) / rows, top = (first + r) % rows * 2;
                    for (int64_t i = 0; i < std::min<int64_t>(2, H - top); i++) {
                        for (int64_t j = 0; j < 4; j++)
                            for (int64_t t = 0; t < columns; t++)
                                line[4 * t + j] = tile[(i * 4 + j) * T + r * columns + t] + in2_p[o];
                        std::memcpy(out_p + ((n * O + o) * H + top + i) * W, line.get(), W * sizeof(float));
                    }
                }
            }
        }
    }

/// Every channel has its own weights (size x size). A row's pixels lie by their remainder of the stride: what one weight
/// meets in neighbouring outputs are neighbours.
//// kernel depthwise convolution: <algorithm>, <vector>
    // kernel: depthwise convolution;
    constexpr int lanes = 16;
    typedef in0_type Lanes __attribute__((vector_size(lanes * sizeof(in0_type)), aligned(sizeof(in0_type))));
    const int64_t C = in0_shape1, planes = in0_shape0 * C, H = in0_shape2, W = in0_shape3, h = out_shape2, w = out_shape3;
    const int64_t size = in1_shape2, stride = data["stride"], padding = data["padding"];
    const int64_t width = (std::max(w * stride, W + 2 * padding) + size) / stride + lanes;
    std::vector<int64_t> met(size * size);  // by each weight, from the first output's first pixel on
    for (int64_t e = 0; e < size * size; e++)
        met[e] = (e / size * stride + e % size % stride) * width + e % size / stride;
    #pragma omp parallel
    {
        std::vector<in0_type> image((H + 2 * padding) * stride * width);
        #pragma omp for
        for (int64_t plane = 0; plane < planes; plane++) {
            const in1_type* weights = in1_p + plane % C * size * size;
            for (int64_t y = 0; y < H; y++)
                for (int64_t start = 0; start < stride; start++) {
                    const int64_t left = (start + stride - padding % stride) % stride;  // the first pixel of this remainder
                    const in0_type* from = in0_p + (plane * H + y) * W + left;
                    in0_type* to = &image[((y + padding) * stride + start) * width + (left + padding) / stride];
                    for (int64_t x = 0; left + x * stride < W; x++) to[x] = from[x * stride];
                }
            for (int64_t i = 0; i < h; i++)
                for (int64_t j = 0; j < w; j += lanes) {
                    const in0_type* from = &image[i * stride * stride * width + j];
                    Lanes sums = in2_p[plane % C] - Lanes{};
                    for (int64_t e = 0; e < size * size; e++) sums += weights[e] * *(const Lanes*)(from + met[e]);
                    std::copy_n((const in0_type*)&sums, std::min<int64_t>(lanes, w - j), out_p + (plane * h + i) * w + j);
                }
        }
    }
