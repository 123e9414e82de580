"""NanoDet-Plus: ShuffleNetV2 backbone, GhostPAN neck, a light head, and a branch that exists only in training.

Follows github.com/RangiLyu/nanodet at commit be9b4a9 (there is no paper; the backbone is ShuffleNet V2,
arXiv:1807.11164, the neck's blocks are GhostNet's, arXiv:1911.11907). Deliberate differences:
* concatenating two branches and shuffling their channels is one stack: one copy of the map instead of two;
* the first weights have the published distributions but come from NumPy generators keyed by (seed, name),
  and ImageNet weights are never downloaded;
* in train() the model returns logits only: assignment and losses are lib.losses.nanodet_plus.

Letters: n images, c channels, h rows, w columns, p priors (cells of all levels), k classes.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from lib.backend import cat, interpolate, load_state, mul, nn, numpy, stack, tensor
from lib.models.step import ParameterGroup, Step

STRIDES = (8, 16, 32, 64)
REG_MAX = 7  # a distance is the mean of a distribution over 0 … 7 strides
BINS = 4 * (REG_MAX + 1)  # regression logits per prior: left, top, right, bottom
DETACH_EPOCH = 10  # from here on (counted from 0) the auxiliary branch no longer trains backbone and neck
SLOPE = 0.1  # of every LeakyReLU


# ------------------------------------------------------------------------------------------------ building blocks
def _activation() -> nn.Module:
    return nn.LeakyReLU(SLOPE)


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution in front of a normalisation, hence without bias; same size at stride 1."""
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)


def _conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    return _conv(c_in, c_out, kernel, stride, groups), nn.BatchNorm2d(c_out)


class ConvModule(nn.Module):
    """1 x 1 convolution, batch norm, activation."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = _conv(c_in, c_out, 1)
        self.bn = nn.BatchNorm2d(c_out)
        self.act = _activation()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class GroupNormConv(nn.Module):
    """3 x 3 convolution, group norm, activation: the auxiliary head's layer."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _conv(channels, channels, 3)
        self.gn = nn.GroupNorm(32, channels)
        self.act = _activation()

    def forward(self, x):
        return self.act(self.gn(self.conv(x)))


class DepthwiseConvModule(nn.Module):
    """5 x 5 depthwise and 1 x 1 convolution, each with batch norm and activation."""

    def __init__(self, channels: int, stride: int = 1):
        super().__init__()
        self.depthwise = _conv(channels, channels, 5, stride, channels)
        self.pointwise = _conv(channels, channels, 1)
        self.dwnorm = nn.BatchNorm2d(channels)
        self.pwnorm = nn.BatchNorm2d(channels)
        self.act = _activation()

    def forward(self, x):
        x = self.act(self.dwnorm(self.depthwise(x)))
        return self.act(self.pwnorm(self.pointwise(x)))


# ------------------------------------------------------------------------------------------------------- backbone
class ShuffleBlock(nn.Module):
    """ShuffleNetV2 block. Stride 1: half of the channels pass through; stride 2: both branches see all of them."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        half = c_out // 2
        entry = c_in if stride == 2 else half
        self.branch1 = None
        if stride == 2:
            self.branch1 = nn.Sequential(*_conv_norm(c_in, c_in, 3, 2, c_in), *_conv_norm(c_in, half, 1), _activation())
        middle = _conv_norm(half, half, 3, stride, half)
        self.branch2 = nn.Sequential(
            *_conv_norm(entry, half, 1), _activation(), *middle, *_conv_norm(half, half, 1), _activation()
        )

    def forward(self, x):
        if self.branch1 is None:
            half = x.shape[1] // 2
            first, second = x[:, :half], self.branch2(x[:, half:])
        else:
            first, second = self.branch1(x), self.branch2(x)
        n, half, h, w = second.shape
        return stack((first, second), 2).reshape(n, 2 * half, h, w)  # channel 2i + g is channel i of branch g


class ShuffleNetV2(nn.Module):
    """images (n, 3, h, w) -> features at strides 8, 16, 32."""

    def __init__(self, stages: tuple[int, int, int]):
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_norm(3, 24, 3, 2), _activation())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2 = self._stage(24, stages[0], 4)
        self.stage3 = self._stage(stages[0], stages[1], 8)
        self.stage4 = self._stage(stages[1], stages[2], 4)

    @staticmethod
    def _stage(c_in: int, c_out: int, blocks: int) -> nn.Module:
        return nn.Sequential(ShuffleBlock(c_in, c_out, 2), *(ShuffleBlock(c_out, c_out, 1) for _ in range(blocks - 1)))

    def forward(self, images):
        c3 = self.stage2(self.maxpool(self.conv1(images)))
        c4 = self.stage3(c3)
        return c3, c4, self.stage4(c4)


# ----------------------------------------------------------------------------------------------------------- neck
class GhostModule(nn.Module):
    """Half of the output from a 1 x 1 convolution, the other half from a cheap 3 x 3 depthwise one on the first."""

    def __init__(self, c_in: int, c_out: int, activate: bool):
        super().__init__()
        half = c_out // 2
        last = [_activation()] if activate else []
        self.primary_conv = nn.Sequential(*_conv_norm(c_in, half, 1), *last)
        self.cheap_operation = nn.Sequential(*_conv_norm(half, half, 3, 1, half), *last)

    def forward(self, x):
        primary = self.primary_conv(x)
        return cat((primary, self.cheap_operation(primary)), 1)


class GhostBottleneck(nn.Module):
    """Two ghost modules beside a depthwise-separable shortcut; the sum stays signed, no activation follows it."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.ghost1 = GhostModule(c_in, c_out, activate=True)
        self.ghost2 = GhostModule(c_out, c_out, activate=False)
        self.shortcut = nn.Sequential(*_conv_norm(c_in, c_in, 5, 1, c_in), *_conv_norm(c_in, c_out, 1))

    def forward(self, x):
        return self.ghost2(self.ghost1(x)) + self.shortcut(x)


class GhostBlocks(nn.Module):
    """Merges two maps of `width` channels into one. One bottleneck, but published names count blocks."""

    def __init__(self, width: int):
        super().__init__()
        self.blocks = nn.Sequential(GhostBottleneck(2 * width, width))

    def forward(self, first, second):
        return self.blocks(cat((first, second), 1))


class GhostPAN(nn.Module):
    """Features at strides 8, 16, 32 -> features of `width` channels at strides 8, 16, 32, 64."""

    def __init__(self, stages: tuple[int, int, int], width: int):
        super().__init__()
        self.reduce_layers = nn.ModuleList([ConvModule(channels, width) for channels in stages])
        self.top_down_blocks = nn.ModuleList([GhostBlocks(width) for _ in range(2)])
        self.downsamples = nn.ModuleList([DepthwiseConvModule(width, 2) for _ in range(2)])
        self.bottom_up_blocks = nn.ModuleList([GhostBlocks(width) for _ in range(2)])
        self.extra_lvl_in_conv = nn.ModuleList([DepthwiseConvModule(width, 2)])
        self.extra_lvl_out_conv = nn.ModuleList([DepthwiseConvModule(width, 2)])

    def forward(self, features):
        r3, r4, r5 = (layer(c) for layer, c in zip(self.reduce_layers, features))
        t4 = self.top_down_blocks[0](self._double(r5), r4)
        p3 = self.top_down_blocks[1](self._double(t4), r3)
        p4 = self.bottom_up_blocks[0](self.downsamples[0](p3), t4)
        p5 = self.bottom_up_blocks[1](self.downsamples[1](p4), r5)
        p6 = self.extra_lvl_in_conv[0](r5) + self.extra_lvl_out_conv[0](p5)
        return p3, p4, p5, p6

    @staticmethod
    def _double(x):
        return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


# ---------------------------------------------------------------------------------------------------------- heads
def _flatten_levels(maps: list):
    """Maps (n, c, h, w), one per level -> (n, p, c); a level's priors are row-major, y outside."""
    return cat([x.reshape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]) for x in maps], 2).permute(0, 2, 1)


class Integral(nn.Module):
    """Holds the published constant 0 … 7; decoding happens in lib.data.boxes and in the criterion."""

    def __init__(self):
        super().__init__()
        self.register_buffer("project", tensor(np.arange(REG_MAX + 1, dtype=np.float32)))


class Head(nn.Module):
    """Four maps of `width` channels -> logits (n, p, k + 32); each level has layers of its own."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.distribution_project = Integral()
        self.cls_convs = nn.ModuleList([nn.ModuleList([DepthwiseConvModule(width) for _ in range(2)]) for _ in STRIDES])
        self.gfl_cls = nn.ModuleList([nn.Conv2d(width, num_classes + BINS, 1) for _ in STRIDES])

    def forward(self, pyramid):
        return _flatten_levels(
            [last(tower[1](tower[0](x))) for x, tower, last in zip(pyramid, self.cls_convs, self.gfl_cls)]
        )


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(tensor(np.ones((), np.float32)))

    def forward(self, x):
        return mul(x, self.scale)


class AuxHead(nn.Module):
    """Four maps of `width` channels -> logits (n, p, k + 32); all levels share the layers, not the scale."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.cls_convs = nn.ModuleList([GroupNormConv(width) for _ in range(4)])
        self.reg_convs = nn.ModuleList([GroupNormConv(width) for _ in range(4)])
        self.gfl_cls = nn.Conv2d(width, num_classes, 3, padding=1)
        self.gfl_reg = nn.Conv2d(width, BINS, 3, padding=1)
        self.scales = nn.ModuleList([Scale() for _ in STRIDES])

    def forward(self, pyramid):
        return _flatten_levels([self._level(x, scale) for x, scale in zip(pyramid, self.scales)])

    def _level(self, x, scale):
        classes = distances = x
        for layer in self.cls_convs:
            classes = layer(classes)
        for layer in self.reg_convs:
            distances = layer(distances)
        return cat((self.gfl_cls(classes), scale(self.gfl_reg(distances))), 1)  # (n, k + 32, h, w)


# --------------------------------------------------------------------------------------------- model and variants
@dataclass(frozen=True)
class Variant:
    input_size: tuple[int, int]  # height, width of the published weights; any multiple of 32 works
    stages: tuple[int, int, int]  # channels at strides 8, 16, 32: the capacity of the backbone
    width: int  # channels of neck and head; the auxiliary branch has twice as many


VARIANTS = {
    "nanodet-plus-m_320": Variant((320, 320), (116, 232, 464), 96),
    "nanodet-plus-m_416": Variant((416, 416), (116, 232, 464), 96),
    "nanodet-plus-m-1.5x_320": Variant((320, 320), (176, 352, 704), 128),
    "nanodet-plus-m-1.5x_416": Variant((416, 416), (176, 352, 704), 128),
}

# Features worth comparing, in order of execution: name -> (module path, which element of its output; None: all of it).
INTERMEDIATES = {
    **{
        f"{part}.{path}": (f"{part}.{path}", None)
        for part, paths in (
            ("backbone", ("conv1", "maxpool", "stage2", "stage3", "stage4")),
            ("fpn", (*(f"reduce_layers.{i}" for i in range(3)), "top_down_blocks.0", "top_down_blocks.1")),
            ("fpn", (f"{name}.{i}" for i in range(2) for name in ("downsamples", "bottom_up_blocks"))),
            ("fpn", ("extra_lvl_in_conv.0", "extra_lvl_out_conv.0")),
        )
        for path in paths
    },
    **{f"fpn.out{level}": ("fpn", level) for level in range(len(STRIDES))},
    **{
        f"head.{path}": (f"head.{path}", None)
        for level in range(len(STRIDES))
        for path in (f"cls_convs.{level}.0", f"cls_convs.{level}.1", f"gfl_cls.{level}")
    },
}


class NanoDetPlus(nn.Module):
    """images (n, 3, h, w), h and w multiples of 32 -> logits (n, p, k + 32) in eval(), (head's, aux head's) in train().

    A prior's row: k class logits, then 8 logits for each of left, top, right, bottom.
    `step.epoch` is set by the training loop: see DETACH_EPOCH.
    """

    def __init__(self, variant: Variant, num_classes: int):
        super().__init__()
        self.step = Step()
        self.backbone = ShuffleNetV2(variant.stages)
        self.fpn = GhostPAN(variant.stages, variant.width)
        self.head = Head(variant.width, num_classes)
        self.aux_fpn = GhostPAN(variant.stages, variant.width)
        self.aux_head = AuxHead(2 * variant.width, num_classes)

    def forward(self, images):
        features = self.backbone(images)
        pyramid = self.fpn(features)
        logits = self.head(pyramid)
        if not self.training:
            return logits
        if self.step.epoch >= DETACH_EPOCH:
            features, pyramid = [x.detach() for x in features], [x.detach() for x in pyramid]
        aux_pyramid = self.aux_fpn(features)
        return logits, self.aux_head([cat(pair, 1) for pair in zip(pyramid, aux_pyramid)])

    def deploy(self) -> nn.Module:
        """Drop the branch that exists only in training; returns the model, which can only be run in eval() then."""
        self.aux_fpn = self.aux_head = None
        return self


def build(name: str, num_classes: int, seed: int | None) -> nn.Module:
    model = NanoDetPlus(VARIANTS[name], num_classes)
    if seed is not None:
        shapes = {entry: numpy(value).shape for entry, value in model.named_parameters()}
        load_state(model, {entry: _initial_value(entry, shape, seed) for entry, shape in shapes.items()})
    return model


def _initial_value(entry: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The parameter's first value, float32, in the published distribution.

    aux_fpn starts as a copy of fpn. The backbone's depthwise filters really start with a standard deviation of 1.
    """
    part, kind = entry.split(".", 1)[0], entry.rsplit(".", 1)[-1]
    if len(shape) < 4:
        return np.full(tuple(shape), _constant(entry, part, kind), np.float32)
    rng = np.random.default_rng((seed, zlib.crc32(entry.removeprefix("aux_").encode())))
    c_out, c_in, height, width = shape
    if part in ("fpn", "aux_fpn") and ".blocks." in entry:
        bound = (c_in * height * width) ** -0.5
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    deviation = {"backbone": 1 / c_in, "head": 0.01, "aux_head": 0.01}.get(part, (2 / (c_out * height * width)) ** 0.5)
    return (deviation * rng.standard_normal(shape)).astype(np.float32)


def _constant(entry: str, part: str, kind: str) -> float:
    if kind in ("weight", "scale"):
        return 1.0
    if ".gfl_cls." in entry:
        return -4.595  # sigmoid: one prior in a hundred is an object; the main head's box bins get it too
    return 1e-4 if part == "backbone" else 0.0


def parameter_groups(model: nn.Module) -> tuple[ParameterGroup, ...]:
    """One group: the published optimiser decays norm layers and biases too."""
    return (ParameterGroup(tuple(name for name, _ in model.named_parameters())),)
