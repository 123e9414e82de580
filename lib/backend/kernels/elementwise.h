/// Functions of one element, softmax and sums. Read by __init__.py, which says what its marks mean.

//// header maths
#include <algorithm>
#include <cmath>
template <class T> static inline T sigmoid(T x) {
    const T small = std::exp(-std::abs(x));
    return (x >= 0 ? T(1) : small) / (1 + small);
}
// In 16 lanes: without -ffinite-math-only the compiler keeps a plain maximum in one.
template <class T> static inline T maximum(int64_t count, const T* x) {
    T lanes[16];
    std::fill(lanes, lanes + 16, x[0]);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int j = 0; j < 16; j++) lanes[j] = lanes[j] < x[i + j] ? x[i + j] : lanes[j];
    for (; i < count; i++) lanes[0] = std::max(lanes[0], x[i]);
    return *std::max_element(lanes, lanes + 16);
}

/// VALUE is the function of x; a is a constant of the function.
//// kernel map: maths
    // kernel: NAME;
    const int64_t count = in0->num;
    const in0_type a = data["a"];
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type x = in0_p[i];
        out_p[i] = VALUE;
    }

/// SLOPE is the derivative from x or from the function's value y, whichever is KNOWN.
//// kernel map, gradient: maths
    // kernel: NAME, gradient;
    const int64_t count = in0->num;
    const in0_type a = data["a"];
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type dy = in0_p[i], KNOWN = in1_p[i];
        out_p[i] = SLOPE;
    }

/// log(1 + e), e in [0, 1], is 2 atanh(e / (2 + e)): the first term left out is (1/3)^17 in float32, (1/3)^35 in
/// float64.
//// kernel binary cross entropy: <algorithm>, <cmath>
    // kernel: binary cross entropy;
    const int64_t count = in0->num;
    constexpr int last = sizeof(in0_type) == 8 ? 33 : 15;
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type x = in0_p[i], small = std::exp(-std::abs(x)), z = small / (2 + small), square = z * z;
        in0_type series = 0;
        for (int power = last; power > 0; power -= 2) series = series * square + in0_type(1) / power;
        const in0_type t = in1_p[i];
        // not max(x, 0) - x * t + ...: what -Ofast makes of that loses small values beside x
        out_p[i] = (x >= 0 ? x * (1 - t) : -x * t) + 2 * z * series;
    }

/// Accumulated in twice the precision of its values, at least nearly.
//// kernel sum: <type_traits>
    // kernel: sum;
    std::conditional<sizeof(in0_type) == 8, long double, double>::type total = 0;
    for (int64_t i = 0; i < in0->num; i++) total += in0_p[i];
    out_p[0] = total;

//// kernel sum, gradient: <algorithm>
    // kernel: sum, gradient;
    std::fill(out_p, out_p + out->num, in0_p[0]);

//// kernel softmax: maths
    // kernel: softmax;
    const int64_t length = data["length"], rows = in0->num / length;
    #pragma omp parallel for if(rows * length > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const in0_type* x = in0_p + row * length;
        out_type* y = out_p + row * length;
        const in0_type largest = maximum(length, x);
        in0_type sum = 0;
        for (int64_t i = 0; i < length; i++) y[i] = std::exp(x[i] - largest);
        for (int64_t i = 0; i < length; i++) sum += y[i];
        const in0_type inverse = 1 / sum;
        for (int64_t i = 0; i < length; i++) y[i] *= inverse;
    }

//// kernel softmax, gradient: maths
    // kernel: softmax, gradient;
    const int64_t length = data["length"], rows = in0->num / length;
    #pragma omp parallel for if(rows * length > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const in0_type* dy = in0_p + row * length;
        const in1_type* y = in1_p + row * length;
        out_type* dx = out_p + row * length;
        in0_type product = 0;
        for (int64_t i = 0; i < length; i++) product += dy[i] * y[i];
        for (int64_t i = 0; i < length; i++) dx[i] = y[i] * (dy[i] - product);
    }
