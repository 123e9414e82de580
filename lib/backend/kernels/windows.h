/// Windows of an image: resizing and pooling. Read by __init__.py, which says what its marks mean.

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

//// kernel resize, gradient: taps
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

//// kernel max pool: <algorithm>
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
