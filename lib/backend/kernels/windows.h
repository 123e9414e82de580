/// Windows of an image: resizing, pooling, and reading between its pixels. Read by __init__.py, which says what its
/// marks mean.

/// Where output index i reads: pixel `low`, pixel `high`, and the share of `high`.
//// header taps
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

//// kernel resize: taps
    // kernel: resize;
    const int64_t planes = in0_shape0 * in0_shape1, H = in0_shape2, W = in0_shape3, h = out_shape2, w = out_shape3;
    const bool bilinear = data["bilinear"];  // else nothing is blended: a share of 0 of infinity would be NaN
    const Taps rows = taps(H, h, data["row_ratio"], bilinear, data["corners"]);
    const Taps columns = taps(W, w, data["column_ratio"], bilinear, data["corners"]);
    #pragma omp parallel
    {
        std::vector<in0_type> blend(W), share(columns.share.begin(), columns.share.end());
        #pragma omp for
        for (int64_t plane = 0; plane < planes; plane++)
            for (int64_t i = 0; i < h; i++) {
                const in0_type* low = in0_p + (plane * H + rows.low[i]) * W;
                const in0_type* high = in0_p + (plane * H + rows.high[i]) * W;
                const in0_type s = rows.share[i];
                out_type* y = out_p + (plane * h + i) * w;
                if (!bilinear) {
                    for (int64_t j = 0; j < w; j++) y[j] = low[columns.low[j]];
                    continue;
                }
                for (int64_t j = 0; j < W; j++) blend[j] = low[j] * (1 - s) + high[j] * s;
                for (int64_t j = 0; j < w; j++)
                    y[j] = blend[columns.low[j]] * (1 - share[j]) + blend[columns.high[j]] * share[j];
            }
    }

//// kernel resize, gradient: taps
    // kernel: resize, gradient;
    const int64_t planes = in0_shape0 * in0_shape1, h = in0_shape2, w = in0_shape3, H = out_shape2, W = out_shape3;
    const bool bilinear = data["bilinear"];
    const Taps rows = taps(H, h, data["row_ratio"], bilinear, data["corners"]);
    const Taps columns = taps(W, w, data["column_ratio"], bilinear, data["corners"]);
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
                if (!bilinear) {
                    for (int64_t j = 0; j < w; j++) blend[columns.low[j]] += dy[j];
                    for (int64_t j = 0; j < W; j++) dx[rows.low[i] * W + j] += blend[j];
                    continue;
                }
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

/// A row of outputs meets one pixel of each window at a time: what two branches in every window would prevent, the
/// compiler does in vectors.
//// kernel max pool: <algorithm>, <limits>, <vector>
    // kernel: max pool;
    const int64_t planes = in0_shape0 * in0_shape1, H = in0_shape2, W = in0_shape3, h = out0_shape2, w = out0_shape3;
    const int64_t size = data["size"], stride = data["stride"], padding = data["padding"];
    #pragma omp parallel
    {
        const in0_type least = -std::numeric_limits<in0_type>::infinity();
        std::vector<in0_type> line(W + 2 * padding, least), best(w);
        std::vector<int32_t> at(w);
        #pragma omp for
        for (int64_t row = 0; row < planes * h; row++) {
            const int64_t plane = row / h, first = row % h * stride - padding, top = std::max<int64_t>(first, 0);
            std::fill(best.begin(), best.end(), least);
            for (int64_t j = 0; j < w; j++) at[j] = top * W + std::max<int64_t>(j * stride - padding, 0);
            for (int64_t y = top; y < std::min(first + size, H); y++) {
                std::copy(in0_p + (plane * H + y) * W, in0_p + (plane * H + y + 1) * W, line.begin() + padding);
                for (int64_t s = 0; s < size; s++) {
                    const in0_type* from = &line[s];
                    const int32_t here = y * W + s - padding;
                    #pragma omp simd
                    for (int64_t j = 0; j < w; j++) {
                        const in0_type value = from[j * stride];
                        const bool wins = value > best[j] || value != value;  // the first of equals, the last NaN
                        best[j] = wins ? value : best[j];
                        at[j] = wins ? here + int32_t(j * stride) : at[j];
                    }
                }
            }
            std::copy(best.begin(), best.end(), out0_p + row * w);
            std::copy(at.begin(), at.end(), out1_p + row * w);
        }
    }

//// kernel max pool, gradient: <algorithm>
    // kernel: max pool, gradient;
    const int64_t planes = in0_shape0 * in0_shape1, inner = in0_shape2 * in0_shape3, outer = out_shape2 * out_shape3;
    #pragma omp parallel for
    for (int64_t plane = 0; plane < planes; plane++) {
        std::fill(out_p + plane * outer, out_p + (plane + 1) * outer, 0);
        for (int64_t i = plane * inner; i < (plane + 1) * inner; i++) out_p[plane * outer + in1_p[i]] += in0_p[i];
    }

/// What output i averages of `in` values: a window cut at the end, or, with size 0, its part of all of them.
//// header stretch
#include <algorithm>
#include <vector>
struct Stretch {
    int64_t in, out, size, stride;
    Stretch(int64_t in, int64_t out, int64_t size, int64_t stride) : in(in), out(out), size(size), stride(stride) {}
    int64_t start(int64_t i) const { return size ? i * stride : i * in / out; }
    int64_t stop(int64_t i) const { return size ? std::min(i * stride + size, in) : ((i + 1) * in + out - 1) / out; }
    int64_t count(int64_t i) const { return stop(i) - start(i); }
};

//// kernel average pool: stretch
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

//// kernel average pool, gradient: stretch
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

/// A point lies among four pixels: top left, top right, bottom left, bottom right. Points far outside are moved near
/// the edge first: they read nothing there either. Images are turned to have the channels of a pixel side by side, so
/// that all channels of a point are read, and in the gradient written, at once.
//// header points
#include <algorithm>
#include <cmath>
#include <vector>
template <class T> struct Point {
    int64_t at[4];  // the pixels, -1 where there is none
    T right, below;
    Point(int64_t H, int64_t W, const T* place) {
        const T x = std::min(std::max(((place[0] + 1) * W - 1) / 2, T(-2)), T(W + 1));
        const T y = std::min(std::max(((place[1] + 1) * H - 1) / 2, T(-2)), T(H + 1));
        right = x - std::floor(x);
        below = y - std::floor(y);
        for (int tap = 0; tap < 4; tap++) {
            const int64_t column = int64_t(std::floor(x)) + tap % 2, row = int64_t(std::floor(y)) + tap / 2;
            at[tap] = column >= 0 && column < W && row >= 0 && row < H ? row * W + column : -1;
        }
    }
    T weight(int tap) const { return (tap % 2 ? right : 1 - right) * (tap / 2 ? below : 1 - below); }
};

// to (columns, rows) = from (rows, columns)
template <class T> static void turn(int64_t rows, int64_t columns, const T* from, T* to) {
    for (int64_t j0 = 0; j0 < columns; j0 += 16)
        for (int64_t i0 = 0; i0 < rows; i0 += 16)
            for (int64_t j = j0; j < std::min(j0 + 16, columns); j++)
                for (int64_t i = i0; i < std::min(i0 + 16, rows); i++) to[j * rows + i] = from[i * columns + j];
}

//// kernel grid sample: points
    // kernel: grid sample;
    const int64_t n = in0_shape0, c = in0_shape1, H = in0_shape2, W = in0_shape3, count = out_shape2 * out_shape3;
    #pragma omp parallel
    {
        std::vector<in0_type> pixels(H * W * c), values(count * c);
        #pragma omp for
        for (int64_t image = 0; image < n; image++) {
            turn(c, H * W, in0_p + image * c * H * W, pixels.data());
            std::fill(values.begin(), values.end(), 0);
            for (int64_t i = 0; i < count; i++) {
                const Point<in0_type> point(H, W, in1_p + (image * count + i) * 2);
                in0_type* y = &values[i * c];
                for (int tap = 0; tap < 4; tap++) {
                    if (point.at[tap] < 0) continue;
                    const in0_type* x = &pixels[point.at[tap] * c];
                    const in0_type weight = point.weight(tap);
                    for (int64_t k = 0; k < c; k++) y[k] += x[k] * weight;
                }
            }
            turn(count, c, values.data(), out_p + image * c * count);
        }
    }

//// kernel grid sample, gradient: points
    // kernel: grid sample, gradient;
    // inputs: dy, x, grid; outputs: dx, d grid
    const int64_t n = in1_shape0, c = in1_shape1, H = in1_shape2, W = in1_shape3, count = in0_shape2 * in0_shape3;
    #pragma omp parallel
    {
        std::vector<in0_type> pixels(H * W * c), d_pixels(H * W * c), d_values(count * c);
        #pragma omp for
        for (int64_t image = 0; image < n; image++) {
            turn(c, H * W, in1_p + image * c * H * W, pixels.data());
            turn(c, count, in0_p + image * c * count, d_values.data());
            std::fill(d_pixels.begin(), d_pixels.end(), 0);
            for (int64_t i = 0; i < count; i++) {
                const Point<in0_type> point(H, W, in2_p + (image * count + i) * 2);
                const in0_type* dy = &d_values[i * c];
                in0_type slopes[4] = {};  // sums over channels of dy times a pixel
                for (int tap = 0; tap < 4; tap++) {
                    if (point.at[tap] < 0) continue;
                    const in0_type* x = &pixels[point.at[tap] * c];
                    in0_type* dx = &d_pixels[point.at[tap] * c];
                    const in0_type weight = point.weight(tap);
                    for (int64_t k = 0; k < c; k++) slopes[tap] += dy[k] * x[k];
                    for (int64_t k = 0; k < c; k++) dx[k] += dy[k] * weight;
                }
                const in0_type right = point.right, below = point.below;
                out1_type* d_place = out1_p + (image * count + i) * 2;
                d_place[0] = ((slopes[1] - slopes[0]) * (1 - below) + (slopes[3] - slopes[2]) * below) * W / 2;
                d_place[1] = ((slopes[2] - slopes[0]) * (1 - right) + (slopes[3] - slopes[1]) * right) * H / 2;
            }
            turn(H * W, c, d_pixels.data(), out0_p + image * c * H * W);
        }
    }
