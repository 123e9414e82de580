"""RT-DETR's backbone: ResNet-vd 18, 34, 50 or 101 (arXiv:1512.03385, variant d of arXiv:1812.01187)."""

import numpy as np

from lib.backend import nn, sqrt, tensor
from lib.models.rt_detr_layers import ConvNorm, constant

STEM = 64  # channels after the stem
WIDTHS = (64, 128, 256, 512)  # of the four stages' 3 x 3 convolutions
EXPANSION = 4  # a bottleneck's output channels over its width


class FrozenBatchNorm2d(nn.Module):
    """A batch norm that is never trained: its affine values are buffers and its statistics stay."""

    def __init__(self, channels: int):
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, tensor(np.full(channels, value, np.float32)))

    def forward(self, x):
        scale = self.weight / sqrt(self.running_var + constant(1e-5, x))
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, x.shape[1], 1, 1) + shift.reshape(1, x.shape[1], 1, 1)


class Stem(nn.Module):
    """images (n, 3, h, w) -> (n, 64, h / 2, w / 2)."""

    def __init__(self, norm: type):
        super().__init__()
        self.conv1_1 = ConvNorm(3, STEM // 2, 3, 2, nn.ReLU(), norm)
        self.conv1_2 = ConvNorm(STEM // 2, STEM // 2, 3, 1, nn.ReLU(), norm)
        self.conv1_3 = ConvNorm(STEM // 2, STEM, 3, 1, nn.ReLU(), norm)

    def forward(self, images):
        return self.conv1_3(self.conv1_2(self.conv1_1(images)))


class PooledShortcut(nn.Module):
    """The shortcut of a block with stride 2: an average of 2 x 2 cells, then a 1 x 1 convolution."""

    def __init__(self, c_in: int, c_out: int, norm: type):
        super().__init__()
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True)
        self.conv = ConvNorm(c_in, c_out, 1, norm=norm)

    def forward(self, x):
        return self.conv(self.pool(x))


def shortcut(c_in: int, c_out: int, stride: int, norm: type) -> nn.Module:
    return PooledShortcut(c_in, c_out, norm) if stride == 2 else ConvNorm(c_in, c_out, 1, norm=norm)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a projection in the first block of every stage."""

    def __init__(self, c_in: int, width: int, stride: int, first: bool, norm: type):
        super().__init__()
        self.short = shortcut(c_in, width, stride, norm) if first else nn.Identity()
        self.branch2a = ConvNorm(c_in, width, 3, stride, nn.ReLU(), norm)
        self.branch2b = ConvNorm(width, width, 3, norm=norm)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.branch2b(self.branch2a(x)) + self.short(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (which has the stride) and 1 x 1 convolutions beside a shortcut as in BasicBlock."""

    def __init__(self, c_in: int, width: int, stride: int, first: bool, norm: type):
        super().__init__()
        self.branch2a = ConvNorm(c_in, width, 1, activation=nn.ReLU(), norm=norm)
        self.branch2b = ConvNorm(width, width, 3, stride, nn.ReLU(), norm)
        self.branch2c = ConvNorm(width, EXPANSION * width, 1, norm=norm)
        self.short = shortcut(c_in, EXPANSION * width, stride, norm) if first else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.branch2c(self.branch2b(self.branch2a(x))) + self.short(x))


class Stage(nn.Module):
    """`count` blocks, the first of which changes the number of channels and, after stage 0, halves the size."""

    def __init__(self, kind: type, c_in: int, width: int, count: int, stride: int, norm: type):
        super().__init__()
        c_out = width * (EXPANSION if kind is Bottleneck else 1)
        self.blocks = nn.ModuleList(
            [kind(c_out if i else c_in, width, 1 if i else stride, i == 0, norm) for i in range(count)]
        )

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class PResNet(nn.Module):
    """images (n, 3, h, w) -> features at strides 8, 16, 32.

    frozen: every batch norm is a FrozenBatchNorm2d and the stem learns nothing.
    """

    def __init__(self, blocks: tuple[int, int, int, int], bottleneck: bool, frozen: bool):
        super().__init__()
        kind, norm = Bottleneck if bottleneck else BasicBlock, FrozenBatchNorm2d if frozen else nn.BatchNorm2d
        growth = EXPANSION if bottleneck else 1
        inputs = STEM, *(growth * width for width in WIDTHS)
        self.frozen = frozen
        self.conv1 = Stem(norm)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.res_layers = nn.ModuleList(
            [
                Stage(kind, c_in, width, count, 2 if i else 1, norm)
                for i, (c_in, width, count) in enumerate(zip(inputs, WIDTHS, blocks))
            ]
        )
        self.channels = inputs[2:]

    def forward(self, images):
        x = self.conv1(images)
        x = self.pool(x.detach() if self.frozen else x)
        features = []
        for stage in self.res_layers:
            x = stage(x)
            features.append(x)
        return features[1:]
