/// Reading an image between its pixels. Read by __init__.py, which says what its marks mean.

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
