"""Matrix products for Jittor on the CPU: batched and in linear layers, in float32 by oneDNN, in float64 by our own loops.

Built as in `jittor_normalise.py`. Jittor multiplies batches by a broadcast and a sum, as it does every float64 product;
oneDNN is in the process already for the convolutions, and its sgemm needs no more than a declaration.
"""
from .jittor_float64 import MULTIPLY
from .jittor_import import jt

# C (m, n) = A (m, k) B (k, n) + beta C, everything row by row; A is stored (k, m) if turned, B (n, k).
_PRODUCT_BY_TYPE = MULTIPLY + """
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
"""

_SIZES = """
    const int64_t batch = data["batch"], m = data["m"], n = data["n"], k = data["k"];
    const bool turn_a = data["turn_a"], turn_b = data["turn_b"];
"""

_PRODUCT = _SIZES + """
    // kernel: matrix product;
    if (batch == 1) {  // in a region of one thread too oneDNN would make and end a team of its own for each call
        product(turn_a, turn_b, m, n, k, in0_p, in1_p, 0, out_p);
    } else {
        #pragma omp parallel for
        for (int64_t i = 0; i < batch; i++)
            product(turn_a, turn_b, m, n, k, in0_p + i * m * k, in1_p + i * k * n, 0, out_p + i * m * n);
    }
"""

_LINEAR = _SIZES + """
    // kernel: linear layer;
    for (int64_t i = 0; i < m; i++) std::copy(in2_p, in2_p + n, out_p + i * n);
    product(turn_a, turn_b, m, n, k, in0_p, in1_p, 1, out_p);
"""

_COLUMN_SUMS = """
    // kernel: column sums;
    const int64_t columns = out->num, rows = in0->num / columns;
    std::vector<double> sums(columns);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) sums[j] += in0_p[i * columns + j];
    for (int64_t j = 0; j < columns; j++) out_p[j] = sums[j];
"""


def _product(shape, a, b, turn_a: bool, turn_b: bool, sizes: tuple[int, int, int, int]):
    """Products of a and b, which hold `sizes` = (batch, m, n, k), in the given shape."""
    data = dict(zip(("batch", "m", "n", "k"), sizes), turn_a=int(turn_a), turn_b=int(turn_b))
    return jt.code(shape, a.dtype, [a, b], cpu_header=_PRODUCT_BY_TYPE, cpu_src=_PRODUCT, data=data)


class _Matmul(jt.Function):
    def execute(self, a, b):
        self.saved = a, b
        *batch, m, k = a.shape
        n = b.shape[-1]
        self.sizes = a.numel() // (m * k), m, n, k
        return _product([*batch, m, n], a, b, False, False, self.sizes)

    def grad(self, dy):
        (a, b), (batch, m, n, k) = self.saved, self.sizes
        return (_product(a.shape, dy, b, False, True, (batch, m, k, n)),
                _product(b.shape, a, dy, True, False, (batch, k, n, m)))


def matmul(a, b):
    """a (…, m, k) times b (…, k, n) or (k, n); the batches are equal."""
    if b.ndim == 2 and a.ndim > 2:
        return matmul(a.reshape((-1, a.shape[-1])), b).reshape((*a.shape[:-1], b.shape[-1]))
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"no product of shapes {a.shape} and {b.shape}")
    if jt.flags.use_cuda:
        return plain_matmul(a, b)
    return _Matmul()(a, b)


def plain_matmul(a, b):
    """`matmul` by Jittor's own operator."""
    return jt.matmul(a, b)


class _Linear(jt.Function):
    def execute(self, x, weight, bias):
        self.saved = x, weight
        (n, k), m = weight.shape, x.numel() // weight.shape[1]
        data = dict(batch=1, m=m, n=n, k=k, turn_a=0, turn_b=1)
        return jt.code([*x.shape[:-1], n], x.dtype, [x, weight, bias], cpu_header=_PRODUCT_BY_TYPE, cpu_src=_LINEAR,
                       data=data)

    def grad(self, dy):
        x, weight = self.saved
        (n, k), m = weight.shape, x.numel() // weight.shape[1]
        return (_product(x.shape, dy, weight, False, False, (1, m, k, n)),
                _product(weight.shape, dy, x, True, False, (1, n, k, m)),
                jt.code([n], dy.dtype, [dy], cpu_header="#include <vector>", cpu_src=_COLUMN_SUMS))


def linear(x, weight, bias=None):
    """x (…, in) times weight (out, in) transposed, plus bias (out,)."""
    if jt.flags.use_cuda:
        return plain_linear(x, weight, bias)
    return _Linear()(x, weight, jt.zeros(weight.shape[:1], x.dtype) if bias is None else bias)


def plain_linear(x, weight, bias=None):
    """`linear` in Jittor's own operators."""
    y = jt.matmul(x, weight.transpose(1, 0))
    return y if bias is None else y + bias
