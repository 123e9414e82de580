"""RT-DETR's hybrid encoder: attention within the coarsest map (AIFI), convolutions across the scales (CCFM)."""

from functools import lru_cache

import numpy as np

from lib.backend import cat, interpolate, nn, numpy, tensor
from lib.models.rt_detr_layers import ConvNorm, SelfAttention, precision

HEADS = 8
TEMPERATURE = 10_000  # ratio of the longest to the shortest wavelength of the position embedding
REP_BLOCKS = 3  # RepVGG blocks of a fusion layer


@lru_cache(maxsize=32)
def position_embedding(height: int, width: int, channels: int) -> np.ndarray:
    """(1, height * width, channels) float32, read-only: sine and cosine of two coordinates at channels / 4 frequencies.

    Row t holds those of t // height and t % height, as published: for a square map the row and the column of token t,
    for any other map a scrambled order, since the tokens are row-major.
    """
    rates = 1 / np.float32(TEMPERATURE) ** (np.arange(channels // 4, dtype=np.float32) / np.float32(channels // 4))
    token = np.arange(height * width)
    first, second = (
        (coordinate[:, None] * rates).astype(np.float32) for coordinate in (token // height, token % height)
    )
    embedding = np.concatenate([np.sin(first), np.cos(first), np.sin(second), np.cos(second)], 1)[None]
    embedding.setflags(write=False)
    return embedding


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron over tokens (n, t, d), each added to its input and normalised."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.self_attn = SelfAttention(width, HEADS)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.act = nn.GELU()

    def forward(self, x, position):
        x = self.norm1(x + self.self_attn(x, position))
        return self.norm2(x + self.linear2(self.act(self.linear1(x))))


class Encoder(nn.Module):
    """One layer, in a list as the published names have it."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(width, hidden)])

    def forward(self, x, position):
        return self.layers[0](x, position)


class RepVggBlock(nn.Module):
    """SiLU of the sum of a 3 x 3 and a 1 x 1 convolution; `deploy` makes them one."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.act = nn.SiLU()
        self.conv = None

    def forward(self, x):
        return self.act(self.conv1(x) + self.conv2(x) if self.conv is None else self.conv(x))

    def deploy(self) -> None:
        """Replace both convolutions and their norms, as they are in eval(), by one 3 x 3 convolution with bias."""
        (kernel, bias), (centre, other) = folded(self.conv1), folded(self.conv2)
        kernel[:, :, 1:2, 1:2] += centre
        kind, channels = precision(self.conv1.conv.weight), len(bias)
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv.weight = nn.Parameter(tensor(kernel.astype(kind)))
        self.conv.bias = nn.Parameter(tensor((bias + other).astype(kind)))
        self.conv1 = self.conv2 = None


def folded(layer: ConvNorm) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias, float64, of the one convolution that equals `layer` in eval() without its activation."""
    norm = layer.norm
    weight, bias, mean, variance = (
        numpy(x).astype(np.float64) for x in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight / np.sqrt(variance + norm.eps)
    return numpy(layer.conv.weight) * scale[:, None, None, None], bias - mean * scale


class CSPRepLayer(nn.Module):
    """Two maps of `width` channels, concatenated -> one of `width`; `hidden` channels inside."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.conv1 = ConvNorm(2 * width, hidden, 1, activation=nn.SiLU())
        self.conv2 = ConvNorm(2 * width, hidden, 1, activation=nn.SiLU())
        self.bottlenecks = nn.Sequential(*(RepVggBlock(hidden) for _ in range(REP_BLOCKS)))
        self.conv3 = ConvNorm(hidden, width, 1, activation=nn.SiLU()) if hidden != width else nn.Identity()

    def forward(self, x):
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))


class HybridEncoder(nn.Module):
    """Backbone features at strides 8, 16, 32 -> as many maps of `width` channels at the same strides."""

    def __init__(self, channels: tuple[int, int, int], width: int, hidden: int, fusion: int):
        super().__init__()
        self.input_proj = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width)) for c in channels]
        )
        self.encoder = nn.ModuleList([Encoder(width, hidden)])
        self.lateral_convs = nn.ModuleList([ConvNorm(width, width, 1, activation=nn.SiLU()) for _ in range(2)])
        self.fpn_blocks = nn.ModuleList([CSPRepLayer(width, fusion) for _ in range(2)])
        self.downsample_convs = nn.ModuleList([ConvNorm(width, width, 3, 2, nn.SiLU()) for _ in range(2)])
        self.pan_blocks = nn.ModuleList([CSPRepLayer(width, fusion) for _ in range(2)])

    def forward(self, features):
        f3, f4, f5 = (layer(c) for layer, c in zip(self.input_proj, features))
        p5 = self.lateral_convs[0](self._attend(f5))
        p4 = self.lateral_convs[1](self.fpn_blocks[0](cat((self._double(p5), f4), 1)))
        n3 = self.fpn_blocks[1](cat((self._double(p4), f3), 1))
        n4 = self.pan_blocks[0](cat((self.downsample_convs[0](n3), p4), 1))
        n5 = self.pan_blocks[1](cat((self.downsample_convs[1](n4), p5), 1))
        return n3, n4, n5

    def _attend(self, x):
        n, c, h, w = x.shape
        position = tensor(position_embedding(h, w, c).astype(precision(x)))  # (1, h * w, c)
        tokens = self.encoder[0](x.reshape(n, c, h * w).permute(0, 2, 1), position)  # (n, h * w, c)
        return tokens.permute(0, 2, 1).reshape(n, c, h, w)

    @staticmethod
    def _double(x):
        return interpolate(x, scale_factor=2, mode="nearest")
