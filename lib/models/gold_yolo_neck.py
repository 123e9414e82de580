"""Gold-YOLO's neck: gather features of all levels, fuse them once, distribute the result into every level.

Low levels are gathered by convolutions (low_FAM, low_IFM), high ones by attention (high_FAM, high_IFM); Inject_* and
Rep_* distribute. Attribute names are the published ones. Differences from the published code: see `gold_yolo.py`.
Letters: n images, c channels, h rows, w columns, a attention heads.
"""

from collections.abc import Callable

import numpy as np

from lib.backend import adaptive_avg_pool2d, cat, interpolate, matmul, nn, softmax, tensor

from .gold_yolo_blocks import Conv, dtype_name, synchronised_norm


def resize(x, size: tuple[int, int]):
    """Bilinear; x itself where it has that size already."""
    return x if tuple(x.shape[2:]) == size else interpolate(x, size=size, mode="bilinear", align_corners=False)


def shrink(x, size: tuple[int, int]):
    """Adaptive average pooling; x itself where it has that size already."""
    return x if tuple(x.shape[2:]) == size else adaptive_avg_pool2d(x, size)


def size_of(x) -> tuple[int, int]:
    """(h, w) of a map."""
    return tuple(x.shape[2:])


# ------------------------------------------------------------------------------------------------------- gathering
class LowFAM(nn.Module):
    """Strides 4, 8, 16, 32 at stride 16, one after the other."""

    def forward(self, c2, c3, c4, c5):
        size = size_of(c4)
        return cat((shrink(c2, size), shrink(c3, size), c4, resize(c5, size)), 1)


class HighFAM(nn.Module):
    """Maps of strides 8, 16, 32 at stride 64, one after the other."""

    def forward(self, p3, p4, c5):
        h, w = size_of(c5)
        size = (h - 1) // 2 + 1, (w - 1) // 2 + 1
        return cat([shrink(x, size) for x in (p3, p4, c5)], 1)


class SimFusion3In(nn.Module):
    """Three neighbouring levels at the middle one's size, fused by a 1 x 1 convolution."""

    def __init__(self, c_middle: int, c_out: int):
        super().__init__()
        self.cv1 = Conv(c_middle, c_out, 1, nn.ReLU)
        self.cv_fuse = Conv(3 * c_out, c_out, 1, nn.ReLU)

    def forward(self, larger, middle, smaller):
        size = size_of(middle)
        return self.cv_fuse(cat((shrink(larger, size), self.cv1(middle), resize(smaller, size)), 1))


class AdvPoolFusion(nn.Module):
    """Two neighbouring levels at the second one's size, one after the other."""

    def forward(self, larger, x):
        return cat((shrink(larger, size_of(x)), x), 1)


# ---------------------------------------------------------------------------------------------------- distribution
class ConvNorm(nn.Module):
    """1 x 1 convolution and synchronised norm."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn = synchronised_norm(c_out)

    def forward(self, x):
        return self.bn(self.conv(x))


class HardSigmoid(nn.Module):
    """A line from 0 at -3 to 1 at 3."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6()

    def forward(self, x):
        return self.relu(x + 3) / 6


class Inject(nn.Module):
    """A level's own map, gated by the fused map, plus the fused map; the fused map is never the larger one."""

    def __init__(self, c_local: int, c_global: int):
        super().__init__()
        self.local_embedding = ConvNorm(c_local, c_global)
        self.global_embedding = ConvNorm(c_global, c_global)
        self.global_act = ConvNorm(c_global, c_global)
        self.act = HardSigmoid()

    def forward(self, x, fused):
        local = self.local_embedding(x)
        gate = resize(self.act(self.global_act(fused)), size_of(x))
        return local * gate + resize(self.global_embedding(fused), size_of(x))


# ------------------------------------------------------------------------------------------------------- attention
class Conv2dBN(nn.Module):
    """1 x 1 convolution and synchronised norm under the transformer's names."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.c = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn = synchronised_norm(c_out)

    def forward(self, x):
        return self.bn(self.c(x))


class Attention(nn.Module):
    """Every pixel attends to every pixel. The products are not scaled by 1 / sqrt(key_dim): as published."""

    def __init__(self, channels: int, heads: int, key_dim: int, value_dim: int):
        super().__init__()
        self.heads, self.key_dim, self.value_dim = heads, key_dim, value_dim
        self.to_q = Conv2dBN(channels, heads * key_dim)
        self.to_k = Conv2dBN(channels, heads * key_dim)
        self.to_v = Conv2dBN(channels, heads * value_dim)
        self.proj = nn.Sequential(nn.ReLU6(), Conv2dBN(heads * value_dim, channels))

    def forward(self, x):
        n, _, h, w = x.shape
        q = self.to_q(x).reshape(n, self.heads, self.key_dim, h * w).permute(0, 1, 3, 2)  # (n, a, hw, d)
        k = self.to_k(x).reshape(n, self.heads, self.key_dim, h * w)  # (n, a, d, hw)
        v = self.to_v(x).reshape(n, self.heads, self.value_dim, h * w).permute(0, 1, 3, 2)  # (n, a, hw, e)
        y = matmul(softmax(matmul(q, k), -1), v)  # (n, a, hw, e)
        return self.proj(y.permute(0, 1, 3, 2).reshape(n, self.heads * self.value_dim, h, w))


class MLP(nn.Module):
    """Two 1 x 1 convolutions around a 3 x 3 depthwise one; all of them keep the number of channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = Conv2dBN(channels, channels)
        self.dwconv = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)
        self.act = nn.ReLU6()
        self.fc2 = Conv2dBN(channels, channels)

    def forward(self, x):
        return self.fc2(self.act(self.dwconv(self.fc1(x))))


class TransformerBlock(nn.Module):
    """Attention and MLP, each added to its input; there is no norm in front of them."""

    def __init__(self, channels: int, heads: int, drop: float):
        super().__init__()
        self.drop = drop
        self.attn = Attention(channels, heads, 8, 16)
        self.mlp = MLP(channels)

    def forward(self, x, random: np.random.Generator | None):
        x = x + self._drop_path(self.attn(x), random)
        return x + self._drop_path(self.mlp(x), random)

    def _drop_path(self, x, random: np.random.Generator | None):
        """x with a share `drop` of the images zeroed and the others scaled up; x itself without a generator."""
        if random is None or self.drop == 0:
            return x
        keep = 1 - self.drop
        mask = np.floor(keep + random.random(x.shape[0])) / keep
        return x * tensor(mask.astype(dtype_name(x)).reshape(-1, 1, 1, 1))


class TopBasicLayer(nn.Module):
    """Transformer blocks whose drop-path share grows linearly from 0 to `drop`.

    Random numbers are drawn per block in order: one for each image for the attention, then one each for the MLP;
    blocks with share 0 draw none.
    """

    def __init__(self, channels: int, depth: int, heads: int, drop: float):
        super().__init__()
        shares = np.linspace(0, drop, depth, dtype=np.float32)  # float32, as published: 1 - share is not exactly 0.9
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, float(share)) for share in shares])

    def forward(self, x, random: np.random.Generator | None):
        for block in self.transformer_blocks:
            x = block(x, random)
        return x


# ------------------------------------------------------------------------------------------------------------ neck
class Neck(nn.Module):
    """c2 … c5 at strides 4 … 32 with 2, 4, 8, 16 times `width` channels -> maps at strides 8, 16, 32 with 2, 4, 8 times.

    block(c_in, c_out) is the size's basic block, stage(channels) its stack of them. n5_from_p4: the last level takes
    the map of stride 16 from before its own distribution (size L only; by accident or not, as published).
    """

    def __init__(
        self,
        width: int,
        fused: int,
        block: Callable,
        stage: Callable,
        depth: int,
        heads: int,
        drop: float,
        n5_from_p4: bool,
    ):
        super().__init__()
        self.n5_from_p4 = n5_from_p4
        p3, p4, n5 = self.channels = 2 * width, 4 * width, 8 * width
        gathered = 22 * width  # p3, p4 and c5
        self.low_FAM = LowFAM()
        self.low_IFM = nn.Sequential(
            Conv(30 * width, fused, 1, nn.SiLU),
            *(block(fused, fused) for _ in range(3)),
            Conv(fused, p4 + p3, 1, nn.SiLU),
        )
        self.reduce_layer_c5 = Conv(16 * width, p4, 1, nn.ReLU)
        self.LAF_p4 = SimFusion3In(8 * width, p4)
        self.Inject_p4 = Inject(p4, p4)
        self.Rep_p4 = stage(p4)
        self.reduce_layer_p4 = Conv(p4, p3, 1, nn.ReLU)
        self.LAF_p3 = SimFusion3In(p4, p3)
        self.Inject_p3 = Inject(p3, p3)
        self.Rep_p3 = stage(p3)
        self.high_FAM = HighFAM()
        self.high_IFM = TopBasicLayer(gathered, depth, heads, drop)
        self.conv_1x1_n = nn.Conv2d(gathered, p4 + n5, 1)
        self.LAF_n4 = AdvPoolFusion()
        self.Inject_n4 = Inject(p4, p4)
        self.Rep_n4 = stage(p4)
        self.LAF_n5 = AdvPoolFusion()
        self.Inject_n5 = Inject(n5, n5)
        self.Rep_n5 = stage(n5)

    def forward(self, c2, c3, c4, c5, random: np.random.Generator | None):
        p4_width = self.channels[1]
        low = self.low_IFM(self.low_FAM(c2, c3, c4, c5))
        c5_half = self.reduce_layer_c5(c5)
        p4 = self.Rep_p4(self.Inject_p4(self.LAF_p4(c3, c4, c5_half), low[:, :p4_width]))
        p4_half = self.reduce_layer_p4(p4)
        p3 = self.Rep_p3(self.Inject_p3(self.LAF_p3(c2, c3, p4_half), low[:, p4_width:]))
        high = self.conv_1x1_n(self.high_IFM(self.high_FAM(p3, p4, c5), random))
        n4 = self.Rep_n4(self.Inject_n4(self.LAF_n4(p3, p4_half), high[:, :p4_width]))
        n5 = self.Rep_n5(self.Inject_n5(self.LAF_n5(p4 if self.n5_from_p4 else n4, c5_half), high[:, p4_width:]))
        return p3, n4, n5
