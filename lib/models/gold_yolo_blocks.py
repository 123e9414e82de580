"""Gold-YOLO's building blocks: convolutions with batch norm, re-parameterisable blocks, CSP stages, pooling pyramids.

Attribute names are the published ones. Differences from the published code: see `gold_yolo.py`.
Letters: n images, c channels, h rows, w columns.
"""

from collections.abc import Callable

import numpy as np

from lib.backend import cat, float64, load_state, mul, nn, numpy, tensor


def dtype_name(x) -> str:
    """NumPy's name of a tensor's dtype."""
    return str(x.dtype).rsplit(".", 1)[-1]


def batch_norm(channels: int) -> nn.Module:
    """Every norm but the neck's synchronised ones."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


def synchronised_norm(channels: int) -> nn.Module:
    """Published as SyncBatchNorm, which on one device is batch norm, with its default settings."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)


class Conv(nn.Module):
    """Convolution, batch norm, activation; same size at stride 1."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, act: Callable[[], nn.Module], stride: int = 1, bias: bool = False
    ):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=bias)
        self.bn = batch_norm(c_out)
        self.act = act()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class ConvBN(nn.Module):
    """Convolution and batch norm: a branch of RepVGGBlock."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = batch_norm(c_out)

    def forward(self, x):
        return self.bn(self.conv(x))


class RepVGGBlock(nn.Module):
    """ReLU of a 3 x 3 and a 1 x 1 branch and, where shapes allow, the input, each with a batch norm of its own.

    After `deploy` it is one 3 x 3 convolution with bias, `rbr_reparam`, and ReLU: the same function as in eval().
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.rbr_identity = batch_norm(c_in) if c_in == c_out and stride == 1 else None
        self.rbr_dense = ConvBN(c_in, c_out, 3, stride)
        self.rbr_1x1 = ConvBN(c_in, c_out, 1, stride)
        self.rbr_reparam = None
        self.act = nn.ReLU()

    def forward(self, x):
        if self.rbr_reparam is not None:
            return self.act(self.rbr_reparam(x))
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return self.act(y if self.rbr_identity is None else y + self.rbr_identity(x))

    def deploy(self) -> None:
        """Merge the branches into `rbr_reparam`, in float64 rounded once; nothing happens the second time."""
        if self.rbr_reparam is not None:
            return
        dense = self.rbr_dense.conv
        weight = numpy(dense.weight)
        c_out, c_in = weight.shape[:2]
        centre = np.zeros((c_out, c_in, 3, 3))
        centre[:, :, 1, 1] = numpy(self.rbr_1x1.conv.weight)[:, :, 0, 0]
        branches = [(weight, self.rbr_dense.bn), (centre, self.rbr_1x1.bn)]
        if self.rbr_identity is not None:
            unit = np.zeros((c_out, c_in, 3, 3))
            unit[:, :, 1, 1] = np.eye(c_out)
            branches.append((unit, self.rbr_identity))
        folded = [_fold(kernel, norm) for kernel, norm in branches]
        merged = nn.Conv2d(c_in, c_out, 3, dense.stride[0], 1)
        if weight.dtype == np.float64:
            float64(merged)
        load_state(merged, {"weight": sum(kernel for kernel, _ in folded), "bias": sum(bias for _, bias in folded)})
        self.rbr_identity = self.rbr_dense = self.rbr_1x1 = None
        self.rbr_reparam = merged


def _fold(kernel: np.ndarray, norm: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """The convolution (kernel, bias), float64, that equals the kernel followed by the norm in eval()."""
    mean, variance, weight, bias = (
        numpy(value).astype(np.float64) for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    factor = weight / np.sqrt(variance + norm.eps)
    return kernel * factor[:, None, None, None], bias - mean * factor


class ConvWrapper(nn.Module):
    """The basic block of size L: a 3 x 3 convolution, with a bias although batch norm follows, and SiLU."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.block = Conv(c_in, c_out, 3, nn.SiLU, stride, bias=True)

    def forward(self, x):
        return self.block(x)


class BottleRep(nn.Module):
    """Two basic blocks and a shortcut with a learnt factor."""

    def __init__(self, channels: int, block: Callable):
        super().__init__()
        self.conv1 = block(channels, channels)
        self.conv2 = block(channels, channels)
        self.alpha = nn.Parameter(tensor(np.ones(1, np.float32)))

    def forward(self, x):
        return self.conv2(self.conv1(x)) + mul(x, self.alpha)


class RepBlock(nn.Module):
    """`count` modules of make() one after the other; published names single out the first."""

    def __init__(self, count: int, make: Callable[[], nn.Module]):
        super().__init__()
        self.conv1 = make()
        self.block = nn.Sequential(*(make() for _ in range(count - 1))) if count > 1 else None

    def forward(self, x):
        x = self.conv1(x)
        return x if self.block is None else self.block(x)


class BepC3(nn.Module):
    """CSP stage: `count` BottleReps on one part of the channels beside an untouched part; `expansion` of them each."""

    def __init__(self, channels: int, count: int, expansion: float, block: Callable, act: Callable):
        super().__init__()
        hidden = int(channels * expansion)
        self.cv1 = Conv(channels, hidden, 1, act)
        self.cv2 = Conv(channels, hidden, 1, act)
        self.cv3 = Conv(2 * hidden, channels, 1, act)
        self.m = RepBlock(count, lambda: BottleRep(hidden, block))

    def forward(self, x):
        return self.cv3(cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    """Four scales of context by three successive 5 x 5 maxima."""

    def __init__(self, channels: int, act: Callable):
        super().__init__()
        half = channels // 2
        self.cv1 = Conv(channels, half, 1, act)
        self.cv2 = Conv(4 * half, channels, 1, act)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        return self.cv2(pooled(self.cv1(x), self.m))


class SimCSPSPPF(nn.Module):
    """SPPF on one half of the channels, with convolutions around it, beside the other half; ReLU."""

    def __init__(self, channels: int, act: Callable):
        super().__init__()
        half = channels // 2
        self.cv1 = Conv(channels, half, 1, act)
        self.cv2 = Conv(channels, half, 1, act)
        self.cv3 = Conv(half, half, 3, act)
        self.cv4 = Conv(half, half, 1, act)
        self.m = nn.MaxPool2d(5, 1, 2)
        self.cv5 = Conv(4 * half, half, 1, act)
        self.cv6 = Conv(half, half, 3, act)
        self.cv7 = Conv(2 * half, channels, 1, act)

    def forward(self, x):
        context = pooled(self.cv4(self.cv3(self.cv1(x))), self.m)
        return self.cv7(cat((self.cv2(x), self.cv6(self.cv5(context))), 1))


def pooled(x, pool: nn.Module):
    """(n, 4c, h, w): x and its maxima after one, two and three poolings."""
    first = pool(x)
    second = pool(first)
    return cat((x, first, second, pool(second)), 1)
