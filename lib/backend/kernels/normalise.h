/// Normalisations and what goes with them. Read by __init__.py, which says what its marks mean.

/// Partial sums: at most 512 values in float32 vector lanes, then float64. As accurate as a float64 sum to 1e-7 and as
/// fast as memory (PyTorch cascades for the same reason).
//// header partial sums
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

/// A group is `runs` stretches of `length` contiguous values that share one mean and variance; run k of group g starts
/// at (g * a + k * b) * length and is scaled by weight[(g * p + k * q) % channels].
//// opening groups
    const int64_t groups = data["groups"], runs = data["runs"], length = data["length"], channels = data["channels"];
    const int64_t a = data["a"], b = data["b"], p = data["p"], q = data["q"];
    const double count = double(runs) * length;
    const bool large = count * groups > 16384;

//// kernel normalise: partial sums, groups
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

//// kernel normalise, gradient: partial sums, groups
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

//// kernel layer norm: partial sums
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

//// kernel layer norm, gradient: partial sums
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

//// kernel affine
    // kernel: affine;
    const int64_t channels = in0_shape1, length = in0_shape2 * in0_shape3, planes = in0_shape0 * channels;
    #pragma omp parallel for if(planes * length > 16384)
    for (int64_t plane = 0; plane < planes; plane++) {
        const in0_type* x = in0_p + plane * length;
        out_type* y = out_p + plane * length;
        const in0_type scale = in1_p[plane % channels], shift = in2_p[plane % channels];
        for (int64_t i = 0; i < length; i++) y[i] = x[i] * scale + shift;
    }

//// kernel channel sums: partial sums
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

//// kernel blend
    // kernel: blend;
    for (int64_t i = 0; i < in0->num; i++) out_p[i] = in0_p[i] * (1 - data["share"]) + in1_p[i] * data["share"] * data["factor"];
