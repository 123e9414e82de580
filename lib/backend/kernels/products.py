"""Products for Jittor on the CPU: of matrices, in linear layers and in convolutions.

Jittor multiplies batches by a broadcast and a sum, as it does every float64 product. oneDNN is in the process already
for convolutions, and its sgemm needs no more than a declaration. It has no float64: those products, which the noise of
float32 runs is measured against, are loops of our own, and a float64 convolution unrolls images to columns (one per
output pixel) and multiplies them by the weights; a gradient is the same product the other way round. Jittor's own loop
nest takes minutes where these take seconds.
"""

from . import jt, on_cpu, read

KERNELS = read("products")


def _product(shape, a, b, turn_a: bool, turn_b: bool, sizes: tuple[int, int, int, int]):
    """Products of a and b, which hold `sizes` = (batch, m, n, k), in the given shape."""
    data = dict(zip(("batch", "m", "n", "k"), sizes), turn_a=int(turn_a), turn_b=int(turn_b))
    return KERNELS["matrix product"]([a, b], shape, data=data)[0]


class _Matmul(jt.Function):
    def execute(self, a, b):
        self.saved = a, b
        *batch, m, k = a.shape
        n = b.shape[-1]
        self.sizes = a.numel() // (m * k), m, n, k
        return _product([*batch, m, n], a, b, False, False, self.sizes)

    def grad(self, dy):
        (a, b), (batch, m, n, k) = self.saved, self.sizes
        return (
            _product(a.shape, dy, b, False, True, (batch, m, k, n)),
            _product(b.shape, a, dy, True, False, (batch, k, n, m)),
        )


@on_cpu(jt.matmul)
def matmul(a, b):
    """a (…, m, k) times b (…, k, n) or (k, n); the batches are equal. The gradient of Jittor's takes 25 times PyTorch's
    time."""
    if b.ndim == 2 and a.ndim > 2:
        return matmul(a.reshape((-1, a.shape[-1])), b).reshape((*a.shape[:-1], b.shape[-1]))
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"no product of shapes {a.shape} and {b.shape}")
    return _Matmul()(a, b)


class _Linear(jt.Function):
    def execute(self, x, weight, bias):
        self.saved = x, weight
        (n, k), m = weight.shape, x.numel() // weight.shape[1]
        data = {"batch": 1, "m": m, "n": n, "k": k, "turn_a": 0, "turn_b": 1}
        return KERNELS["linear layer"]([x, weight, bias], [*x.shape[:-1], n], data=data)[0]

    def grad(self, dy):
        x, weight = self.saved
        (n, k), m = weight.shape, x.numel() // weight.shape[1]
        return (
            _product(x.shape, dy, weight, False, False, (1, m, k, n)),
            _product(weight.shape, dy, x, True, False, (1, n, k, m)),
            KERNELS["column sums"]([dy], [n])[0],
        )


def _plain_linear(x, weight, bias=None):
    y = jt.matmul(x, weight.transpose(1, 0))
    return y if bias is None else y + bias


@on_cpu(_plain_linear)
def linear(x, weight, bias=None):
    """x (…, in) times weight (out, in) transposed, plus bias (out,); Jittor multiplies float64 in a loop nest."""
    return _Linear()(x, weight, jt.zeros(weight.shape[:1], x.dtype) if bias is None else bias)


class _Convolution(jt.Function):
    """By oneDNN's three primitives, called directly; in float64 by three kernels of ours."""

    def __init__(self, stride, padding, dilation, groups):
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def execute(self, x, weight):
        self.saved = x, weight
        if x.dtype != "float64":
            self.geometry = (*self.stride, *self.padding, *self.dilation, self.groups)
            return jt.mkl_ops.mkl_conv(x, weight, *self.geometry, "abcd", "oihw")
        (n, channels, *size), (out_channels, _, *kernel) = x.shape, weight.shape
        out = [
            (size[i] + 2 * self.padding[i] - self.dilation[i] * (kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in range(2)
        ]
        self.data = {"n": n, "groups": self.groups, "in_channels": channels, "out_channels": out_channels}
        for name in ("stride", "padding", "dilation"):
            self.data |= {f"{name}_{axis}": value for axis, value in zip("hw", getattr(self, name))}
        for name, sizes in (("in", size), ("out", out), ("kernel", kernel)):
            self.data |= {f"{name}_{axis}": value for axis, value in zip("hw", sizes)}
        return KERNELS["float64 convolution"]([x, weight], [n, out_channels, *out], data=self.data)[0]

    def grad(self, dy):
        x, weight = self.saved
        if x.dtype != "float64":
            backward_x, backward_w = jt.mkl_ops.mkl_conv_backward_x, jt.mkl_ops.mkl_conv_backward_w
            return (
                backward_x(weight, dy, *x.shape[2:], *self.geometry, "abcd", "oihw", "abcd"),
                backward_w(x, dy, *weight.shape[2:], *self.geometry, "abcd", "oihw", "abcd"),
            )
        name = "float64 convolution, {} gradient"
        return (
            KERNELS[name.format("input")]([dy, weight], x.shape, data=self.data)[0],
            KERNELS[name.format("weight")]([dy, x], weight.shape, data=self.data)[0],
        )


@on_cpu(lambda x, weight, *geometry: jt.nn.conv2d(x, weight, None, *geometry))
def conv2d(x, weight, stride, padding, dilation, groups):
    """Convolution of x (n, c, h, w) without bias.

    Jittor's own `nn.Conv` writes a loop nest for its tuner to recognise, one kernel per group count; oneDNN's
    primitives called directly are three kernels for every convolution of a model.
    """
    return _Convolution(stride, padding, dilation, groups)(x, weight)


@on_cpu(lambda x, weight, bias: jt.nn.conv2d(x, weight, bias))
def pointwise(x, weight, bias):
    """1 x 1 convolution of x (n, c, h, w) with a bias, without a gradient: a product of matrices as they lie. oneDNN's
    convolution reorders images before and after, which takes as long again."""
    return KERNELS["pointwise convolution"]([x, weight, bias], [x.shape[0], weight.shape[0], *x.shape[2:]])[0]
