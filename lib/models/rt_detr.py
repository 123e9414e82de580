"""RT-DETR: ResNet-vd backbone, hybrid encoder, and a transformer decoder that needs no suppression (arXiv:2304.08069).

Follows github.com/lyuwenyu/RT-DETR, rtdetr_pytorch, at commit 068dfde. The backbone is ResNet-vd 18, 34, 50 or 101
(arXiv:1512.03385, variant d of arXiv:1812.01187); the encoder attends within the coarsest map (AIFI) and convolves
across the scales (CCFM); the decoder selects queries and refines boxes layer by layer with deformable attention
(arXiv:2010.04159); contrastive denoising (arXiv:2203.03605) adds noised copies of the targets that training must mend.
Deliberate differences:
* the encoder's box head runs on the selected tokens, the only ones whose boxes are used;
* a decoder box head runs once per layer and serves both of its predictions;
* position embedding and anchors belong to the map at hand, in eval() too: the published ones fit one size;
* an input with fewer tokens than queries makes every token a query;
* denoising is NumPy, for nothing of it has a gradient; its noise comes from `step`'s generator in the published order;
* a batch without boxes gives the denoising embedding the gradient 0, where the published code has none;
* the first weights have the published distributions but come from NumPy generators keyed by (seed, name), and ImageNet
  weights are never downloaded: a frozen stem without a checkpoint stays random.

Letters: n images, c channels, h rows, w columns, t or m tokens of all levels, d features of a token, a attention heads,
q queries, p points, k classes, g boxes of an image, s slots (the largest g of the batch).
"""

import operator
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lib.backend import (
    all_gather,
    amax,
    arange,
    cat,
    clamp,
    constant,
    full,
    grid_sample,
    interpolate,
    linear,
    load_state,
    log,
    matmul,
    nn,
    numpy,
    sigmoid,
    softmax,
    sqrt,
    sum,
    tensor,
    topk,
)
from lib.errors import UserError
from lib.models.inference import merged
from lib.models.step import ParameterGroup, Step

STRIDE = 32  # of the coarsest map
EPS = 1e-5  # inverse_sigmoid: how near to 0 and 1 a probability is taken
BLOCKED = -1e9  # added to an attention score that must not count: its share is exactly 0
PRIOR = -np.log(99)  # first bias of class logits: one query in a hundred is an object
# Backbone.
STEM = 64  # channels after the stem
STAGE_WIDTHS = (64, 128, 256, 512)  # of the four stages' 3 x 3 convolutions
EXPANSION = 4  # a bottleneck's output channels over its width
# Encoder.
TEMPERATURE = 10_000  # ratio of the longest to the shortest wavelength of the position embedding
REP_BLOCKS = 3  # RepVGG blocks of a fusion layer
# Decoder.
QUERIES = 300
WIDTH, HIDDEN, HEADS, POINTS, LEVELS = 256, 1024, 8, 4, 3  # the encoder has as many heads
ANCHOR = 0.05  # side of the anchors of the finest level, in parts of the image; it doubles with every level
MARGIN = 0.01  # a cell whose anchor's centre or side is nearer to 0 or 1 is never an object
LARGEST = 65504.0  # of float16; bounds a layer's output
# Denoising.
NOISED_QUERIES = 100  # about as many of each sign as this, if the boxes of an image fit
LABEL_NOISE = 0.5  # half of this share of the labels is drawn anew
BOX_NOISE = 1.0  # largest move of a side, in halves of the box's extent; a negative moves by one to two times that


# ------------------------------------------------------------------------------------------------ building blocks
def dtype_name(x) -> str:
    """The NumPy name of a tensor's dtype."""
    return str(x.dtype).rpartition(".")[2]


def size_of(x) -> tuple[int, int]:
    """(rows, columns) of a map: numbers also where a compiler of the model has symbols for them, for there are tables
    of each size."""
    return operator.index(x.shape[2]), operator.index(x.shape[3])


def number(value: float, like):
    """(1,) a number in the precision of `like`: a Python number in Jittor would be float32 among float64."""
    return full((1,), value, dtype=like.dtype)


def inverse_sigmoid(x):
    """log(x / (1 - x)) for x in [0, 1], bounded by EPS at both ends."""
    return log(clamp(x, min=EPS) / clamp(1.0 - x, min=EPS))


class ConvNorm(nn.Module):
    """Convolution without bias, a normalisation, and an activation where one is given; same size at stride 1."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, act=nn.Identity, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.norm = norm(c_out)
        self.act = act()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


class MLP(nn.Module):
    """Linear layers of the given widths with ReLU between them."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(d_in, d_out) for d_in, d_out in zip(widths, widths[1:])])
        self.act = nn.ReLU()

    def forward(self, x):
        first, *others = self.layers
        x = first(x)
        for layer in others:
            x = layer(self.act(x))
        return x


class SelfAttention(nn.Module):
    """x, position (n, t, d) -> (n, t, d): queries and keys from x + position, values from x.

    `mask` (t, t), if there is one, is added to the scores: 0 or BLOCKED.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(tensor(np.zeros((3 * width, width), np.float32)))  # query, key, value
        self.in_proj_bias = nn.Parameter(tensor(np.zeros(3 * width, np.float32)))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, position, mask=None):
        n, t, d = x.shape
        query_key = linear(x + position, self.in_proj_weight[: 2 * d], self.in_proj_bias[: 2 * d])
        value = self._heads(linear(x, self.in_proj_weight[2 * d :], self.in_proj_bias[2 * d :]))  # (n * a, t, d / a)
        query = self._heads(query_key[:, :, :d]) * number((d // self.heads) ** -0.5, x)
        scores = matmul(query, self._heads(query_key[:, :, d:]).permute(0, 2, 1))  # (n * a, t, t)
        shares = softmax(scores if mask is None else scores + mask.unsqueeze(0), 2)
        mixed = matmul(shares, value).reshape(n, self.heads, t, d // self.heads)
        return self.out_proj(mixed.permute(0, 2, 1, 3).reshape(n, t, d))

    def _heads(self, x):
        """(n, t, d) -> (n * a, t, d / a)."""
        (n, t, d), a = x.shape, self.heads
        return x.reshape(n, t, a, d // a).permute(0, 2, 1, 3).reshape(n * a, t, d // a)


# ------------------------------------------------------------------------------------------------------- backbone
class FrozenBatchNorm2d(nn.Module):
    """A batch norm that is never trained: its affine values are buffers and its statistics stay."""

    eps = 1e-5

    def __init__(self, channels: int):
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, tensor(np.full(channels, value, np.float32)))

    def forward(self, x):
        scale = self.weight / sqrt(self.running_var + number(self.eps, x))
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, x.shape[1], 1, 1) + shift.reshape(1, x.shape[1], 1, 1)


class Stem(nn.Module):
    """images (n, 3, h, w) -> (n, 64, h / 2, w / 2)."""

    def __init__(self, norm: type):
        super().__init__()
        self.conv1_1 = ConvNorm(3, STEM // 2, 3, 2, nn.ReLU, norm)
        self.conv1_2 = ConvNorm(STEM // 2, STEM // 2, 3, 1, nn.ReLU, norm)
        self.conv1_3 = ConvNorm(STEM // 2, STEM, 3, 1, nn.ReLU, norm)

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


def _shortcut(c_in: int, c_out: int, stride: int, norm: type) -> nn.Module:
    return PooledShortcut(c_in, c_out, norm) if stride == 2 else ConvNorm(c_in, c_out, 1, norm=norm)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a projection in the first block of every stage."""

    def __init__(self, c_in: int, width: int, stride: int, first: bool, norm: type):
        super().__init__()
        self.short = _shortcut(c_in, width, stride, norm) if first else nn.Identity()
        self.branch2a = ConvNorm(c_in, width, 3, stride, nn.ReLU, norm)
        self.branch2b = ConvNorm(width, width, 3, norm=norm)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.branch2b(self.branch2a(x)) + self.short(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (which has the stride) and 1 x 1 convolutions beside a shortcut as in BasicBlock."""

    def __init__(self, c_in: int, width: int, stride: int, first: bool, norm: type):
        super().__init__()
        self.branch2a = ConvNorm(c_in, width, 1, act=nn.ReLU, norm=norm)
        self.branch2b = ConvNorm(width, width, 3, stride, nn.ReLU, norm)
        self.branch2c = ConvNorm(width, EXPANSION * width, 1, norm=norm)
        self.short = _shortcut(c_in, EXPANSION * width, stride, norm) if first else nn.Identity()
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
        inputs = STEM, *(growth * width for width in STAGE_WIDTHS)
        self.frozen = frozen
        self.conv1 = Stem(norm)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.res_layers = nn.ModuleList(
            [
                Stage(kind, c_in, width, count, 2 if i else 1, norm)
                for i, (c_in, width, count) in enumerate(zip(inputs, STAGE_WIDTHS, blocks))
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


# -------------------------------------------------------------------------------------------------------- encoder
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


@constant
def _position(height: int, width: int, channels: int, dtype: str) -> np.ndarray:
    return position_embedding(height, width, channels).astype(dtype)


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
        self.conv = merged(*((layer.conv, layer.norm) for layer in (self.conv1, self.conv2)))
        self.conv1 = self.conv2 = None


class CSPRepLayer(nn.Module):
    """Two maps of `width` channels, concatenated -> one of `width`; `hidden` channels inside."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.conv1 = ConvNorm(2 * width, hidden, 1, act=nn.SiLU)
        self.conv2 = ConvNorm(2 * width, hidden, 1, act=nn.SiLU)
        self.bottlenecks = nn.Sequential(*(RepVggBlock(hidden) for _ in range(REP_BLOCKS)))
        self.conv3 = ConvNorm(hidden, width, 1, act=nn.SiLU) if hidden != width else nn.Identity()

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
        self.lateral_convs = nn.ModuleList([ConvNorm(width, width, 1, act=nn.SiLU) for _ in range(2)])
        self.fpn_blocks = nn.ModuleList([CSPRepLayer(width, fusion) for _ in range(2)])
        self.downsample_convs = nn.ModuleList([ConvNorm(width, width, 3, 2, nn.SiLU) for _ in range(2)])
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
        (n, c, *_), (h, w) = x.shape, size_of(x)
        position = _position(h, w, operator.index(c), dtype_name(x))  # (1, h * w, c)
        tokens = self.encoder[0](x.reshape(n, c, h * w).permute(0, 2, 1), position)  # (n, h * w, c)
        return tokens.permute(0, 2, 1).reshape(n, c, h, w)

    @staticmethod
    def _double(x):
        return interpolate(x, scale_factor=2, mode="nearest")


# ------------------------------------------------------------------------------------------ targets and denoising
@dataclass(frozen=True)
class Truth:
    """An image's targets in the form that losses and denoising use."""

    labels: np.ndarray  # (g,) int64
    boxes: np.ndarray  # (g, 4) float64: centre, width and height in parts of the image


@dataclass(frozen=True)
class Denoising:
    """The denoising queries of a batch: `groups` times s positives and s negatives, which come before all others."""

    labels: np.ndarray  # (n, 2 s groups) int64 after noise; k where an image has fewer than s boxes
    boxes: np.ndarray  # (n, 2 s groups, 4) float64 after noise, logits of centre, width, height
    positives: tuple[np.ndarray, ...]  # per image (g * groups,) places of its positives, in order of the boxes
    groups: int

    def blocks(self, others: int) -> np.ndarray:
        """(t, t) what is added to attention scores of the t queries, `others` of them ordinary: 0 or BLOCKED.

        An ordinary query sees no denoising query, and those see only their own group and the ordinary ones.
        """
        count = self.labels.shape[1]
        group = np.concatenate([np.repeat(np.arange(self.groups), count // self.groups), np.full(others, -1)])
        return np.where((group[None] >= 0) & (group[:, None] != group[None]), BLOCKED, 0.0)

    def meta(self, others: int) -> dict:
        """The published description of the denoising queries in front of `others` ordinary ones."""
        return {
            "dn_positive_idx": self.positives,
            "dn_num_group": self.groups,
            "dn_num_split": (self.labels.shape[1], others),
        }


def corners(boxes: np.ndarray) -> np.ndarray:
    """Centre, width, height (…, 4) -> x1, y1, x2, y2."""
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def truths(targets: Sequence[Mapping[str, np.ndarray]], image_size: tuple[int, int], num_classes: int) -> list[Truth]:
    """Targets with boxes xyxy in pixels of the network input (height, width) -> Truth per image.

    A box may reach out of the image and may have no area. UserError for one that is turned round or not finite, and
    for a label that is no class.
    """
    found, (height, width) = [], image_size
    for index, target in enumerate(targets):
        boxes, labels = np.asarray(target["boxes"], np.float64).reshape(-1, 4), np.asarray(target["labels"], np.int64)
        bad = ~(np.isfinite(boxes).all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1))
        if bad.any():
            raise UserError(
                f"targets: image {index} of the batch has the box {boxes[bad][0].tolist()}, which is not "
                "x1 <= x2, y1 <= y2 in finite numbers; correct or remove it in the annotations"
            )
        if ((labels < 0) | (labels >= num_classes)).any():
            raise UserError(
                f"targets: image {index} of the batch has labels {sorted(set(labels.tolist()))}, the model knows "
                f"0 to {num_classes - 1}; build it with as many classes as the data set has"
            )
        centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        found.append(Truth(labels, centred / np.asarray([width, height, width, height], np.float64)))
    return found


def denoising(targets: list[Truth], num_classes: int, random: np.random.Generator | None) -> Denoising | None:
    """The denoising queries of a batch; None without a generator or without any box.

    Drawn from `random` in this order: one number in [0, 1) per query for whether its label changes, its new label,
    four signs per query, four numbers in [0, 1) per query for the size of the moves.
    """
    slots = int(np.max(all_gather([max((len(truth.labels) for truth in targets), default=0)])))  # of all processes
    if random is None or slots == 0:
        return None
    groups = max(1, NOISED_QUERIES // slots)
    labels, boxes = np.full((len(targets), slots), num_classes), np.zeros((len(targets), slots, 4))
    for image, truth in enumerate(targets):
        labels[image, : len(truth.labels)], boxes[image, : len(truth.labels)] = truth.labels, truth.boxes
    labels, boxes = np.tile(labels, (1, 2 * groups)), np.tile(boxes, (1, 2 * groups, 1))
    negative = np.tile(np.repeat([False, True], slots), groups)
    return Denoising(
        _noised_labels(labels, num_classes, random),
        _noised_boxes(boxes, negative, random),
        tuple(np.flatnonzero((row < num_classes) & ~negative) for row in labels),
        groups,
    )


def _noised_labels(labels: np.ndarray, num_classes: int, random: np.random.Generator) -> np.ndarray:
    changes = random.random(labels.shape, np.float32) < LABEL_NOISE / 2
    new = random.integers(0, num_classes, labels.shape)
    return np.where(changes & (labels < num_classes), new, labels)


def _noised_boxes(boxes: np.ndarray, negative: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each corner moved by up to half the extent, for a negative by half to all of it; clipped to the image; logits."""
    signs = 2.0 * random.integers(0, 2, boxes.shape) - 1
    reach = random.random(boxes.shape, np.float32).astype(np.float64) + negative[None, :, None]
    moved = corners(boxes) + BOX_NOISE * signs * reach * np.tile(boxes[:, :, 2:] / 2, 2)
    low, high = np.split(np.clip(moved, 0, 1), 2, 2)
    noised = np.clip(np.concatenate([(low + high) / 2, high - low], 2), 0, 1)
    return np.log(np.maximum(noised, EPS) / np.maximum(1 - noised, EPS))


# -------------------------------------------------------------------------------------------------------- decoder
@lru_cache(maxsize=32)
def anchors(sizes: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Of each cell of levels of (rows, columns) logits (m, 4) of centre, width, height, and (m, 1) whether it is valid.

    float32 and bool, read-only; +inf in the rows of invalid cells.
    """
    levels = []
    for level, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width].astype(np.float32)
        centre = (np.stack([x, y], 2) + np.float32(0.5)) / np.asarray([width, height], np.float32)
        side = np.full_like(centre, ANCHOR * 2**level)
        levels.append(np.concatenate([centre, side], 2).reshape(-1, 4))
    boxes = np.concatenate(levels)
    valid = ((boxes > MARGIN) & (boxes < 1 - MARGIN)).all(1, keepdims=True)
    logits = np.where(valid, np.log(boxes / (1 - boxes)), np.float32(np.inf))
    for array in (logits, valid):
        array.setflags(write=False)
    return logits, valid


@constant
def _anchor_logits(sizes: tuple[tuple[int, int], ...], dtype: str) -> np.ndarray:
    return anchors(sizes)[0].astype(dtype)


@constant
def _valid(sizes: tuple[tuple[int, int], ...], dtype: str) -> np.ndarray:
    """(1, m, 1) 1 or 0."""
    return anchors(sizes)[1][None].astype(dtype)


class DeformableAttention(nn.Module):
    """Each query reads the memory at points around its box.

    query (n, q, d), boxes (n, q, 4) as parts of the image, memory (n, m, d), sizes of its levels -> (n, q, d).
    """

    def __init__(self):
        super().__init__()
        self.sampling_offsets = nn.Linear(WIDTH, HEADS * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(WIDTH, HEADS * LEVELS * POINTS)
        self.value_proj = nn.Linear(WIDTH, WIDTH)
        self.output_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, query, boxes, memory, sizes):
        n, q, d = query.shape
        grid = self._grid(query, boxes)  # (n * a, q, levels * p, 2)
        shares = softmax(self._per_head(self.attention_weights(query)), 2).unsqueeze(1)  # (n * a, 1, q, levels * p)
        value, samples, start = self.value_proj(memory), [], 0
        for level, (height, width) in enumerate(sizes):
            end = start + height * width
            plane = value[:, start:end].permute(0, 2, 1).reshape(n * HEADS, d // HEADS, height, width)
            samples.append(grid_sample(plane, grid[:, :, level * POINTS : (level + 1) * POINTS]))
            start = end
        read = sum(cat(samples, 3) * shares, 3)  # (n * a, d / a, q)
        return self.output_proj(read.reshape(n, d, q).permute(0, 2, 1))

    def _grid(self, query, boxes):
        """Where to read, in -1 … 1: the box's centre, moved by offsets in units of an eighth of its extent."""
        n, q, _ = query.shape
        offsets = self.sampling_offsets(query).reshape(n, q, HEADS * LEVELS * POINTS, 2)
        centre, extent = boxes[:, :, :2].unsqueeze(2), boxes[:, :, 2:].unsqueeze(2)
        places = (centre + offsets * (extent * (0.5 / POINTS))) * 2.0 - 1.0
        return self._per_head(places.reshape(n, q, -1)).reshape(n * HEADS, q, LEVELS * POINTS, 2)

    @staticmethod
    def _per_head(x):
        """(n, q, a * c) -> (n * a, q, c)."""
        n, q, width = x.shape
        return x.reshape(n, q, HEADS, width // HEADS).permute(0, 2, 1, 3).reshape(n * HEADS, q, width // HEADS)


class DecoderLayer(nn.Module):
    """Self-attention among the queries, deformable attention to the memory, a perceptron; each added and normalised."""

    def __init__(self):
        super().__init__()
        self.self_attn = SelfAttention(WIDTH, HEADS)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.cross_attn = DeformableAttention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.linear1 = nn.Linear(WIDTH, HIDDEN)
        self.linear2 = nn.Linear(HIDDEN, WIDTH)
        self.norm3 = nn.LayerNorm(WIDTH)
        self.act = nn.ReLU()

    def forward(self, x, position, boxes, memory, sizes, mask):
        x = self.norm1(x + self.self_attn(x, position, mask))
        x = self.norm2(x + self.cross_attn(x + position, boxes, memory, sizes))
        x = x + self.linear2(self.act(self.linear1(x)))
        return self.norm3(clamp(x, min=-LARGEST, max=LARGEST))


class DecoderLayers(nn.Module):
    """The layers under their published name; RTDETRTransformer runs them."""

    def __init__(self, count: int):
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer() for _ in range(count)])


class Selection(nn.Module):
    """The tokens that become queries: those with the largest class logit, in falling order.

    features (n, m, d), class logits (n, m, k), anchors' logits (m, 4), the module that predicts boxes ->
    features, boxes' logits, boxes, class logits of the q chosen tokens, which they are (n, q), and by what (n, m).
    """

    def forward(self, features, logits, anchor_logits, box_head):
        n, m, k = logits.shape
        q = min(QUERIES, m)
        scores = amax(logits.detach(), 2)
        _, tokens = topk(scores, q, 1)
        rows = (tokens + (arange(n) * m).reshape(n, 1)).reshape(n * q)
        chosen = features.reshape(n * m, features.shape[2])[rows].reshape(n, q, features.shape[2])
        box_logits = box_head(chosen) + anchor_logits[tokens.reshape(n * q)].reshape(n, q, 4)
        return chosen, box_logits, sigmoid(box_logits), logits.reshape(n * m, k)[rows].reshape(n, q, k), tokens, scores


class RTDETRTransformer(nn.Module):
    """Encoder maps -> per layer class logits (n, q, k), boxes (n, q, 4): centre, width, height as parts of the image.

    In eval() the layers end with number `last`, and only its predictions are made.
    """

    def __init__(self, channels: int, num_classes: int, layers: int, last: int):
        super().__init__()
        self.last = last
        self.num_classes = num_classes
        self.input_proj = nn.ModuleList([ConvNorm(channels, WIDTH, 1) for _ in range(LEVELS)])
        self.decoder = DecoderLayers(layers)
        self.denoising_class_embed = nn.Embedding(num_classes + 1, WIDTH)  # its last row stands for no box
        self.query_pos_head = MLP(4, 2 * WIDTH, WIDTH)
        self.enc_output = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.enc_score_head = nn.Linear(WIDTH, num_classes)
        self.enc_bbox_head = MLP(WIDTH, WIDTH, WIDTH, 4)
        self.dec_score_head = nn.ModuleList([nn.Linear(WIDTH, num_classes) for _ in range(layers)])
        self.dec_bbox_head = nn.ModuleList([MLP(WIDTH, WIDTH, WIDTH, 4) for _ in range(layers)])
        self.selection = Selection()

    def forward(self, maps, noised: Denoising | None):
        """-> (predictions per layer, the selection's own, its tokens and all tokens' scores).

        A prediction is (class logits, boxes). `noised` puts denoising queries in front of the others.
        """
        maps = [layer(x) for layer, x in zip(self.input_proj, maps)]
        sizes = tuple(map(size_of, maps))
        memory = cat([x.reshape(x.shape[0], WIDTH, h * w) for x, (h, w) in zip(maps, sizes)], 2).permute(0, 2, 1)
        content, reference, boxes, logits, tokens, scores = self._select(memory, sizes)
        content, reference, mask = content.detach(), reference.detach(), None
        if noised is not None:
            mask = tensor(noised.blocks(content.shape[1]).astype(dtype_name(memory)))
            content = cat((self._noised_content(noised), content), 1)
            reference = cat((tensor(noised.boxes.astype(dtype_name(memory))), reference), 1)
        return self._decode(content, sigmoid(reference), memory, sizes, mask), (logits, boxes), (tokens, scores)

    def _select(self, memory, sizes):
        dtype = dtype_name(memory)
        features = self.enc_output(memory * _valid(sizes, dtype))
        anchor_logits = _anchor_logits(sizes, dtype)
        return self.selection(features, self.enc_score_head(features), anchor_logits, self.enc_bbox_head)

    def _noised_content(self, noised: Denoising):
        """(n, q, d) the embeddings of the noised labels; the row that stands for no box learns nothing."""
        n, q = noised.labels.shape
        table = self.denoising_class_embed.weight
        table = cat((table[: self.num_classes], table[self.num_classes :].detach()), 0)
        return table[tensor(noised.labels.reshape(-1))].reshape(n, q, WIDTH)

    def _decode(self, x, boxes, memory, sizes, mask) -> list:
        """Each layer sees the boxes of the one before without their history. In training its own boxes are predicted
        once more from those with theirs: their loss reaches the layer before too ("look forward twice")."""
        predictions, before = [], None
        for index, (layer, box_head) in enumerate(zip(self.decoder.layers, self.dec_bbox_head)):
            x = layer(x, self.query_pos_head(boxes), boxes, memory, sizes, mask)
            change = box_head(x)
            refined = sigmoid(change + inverse_sigmoid(boxes))
            if self.training:
                ahead = refined if before is None else sigmoid(change + inverse_sigmoid(before))
                predictions.append((self.dec_score_head[index](x), ahead))
            elif index == self.last:
                return [(self.dec_score_head[index](x), refined)]
            before, boxes = refined, refined.detach()
        return predictions


# --------------------------------------------------------------------------------------------- model and variants
# How the optimiser divides the parameters: (pattern, factor of the learning rate, whether weights decay); a parameter
# belongs to the first pattern found in its name. By text alone a norm that is a numbered child decays, as published.
_DECAY_FREE = (
    (r"^backbone\..*norm", 0.1, False),
    (r"^backbone", 0.1, True),
    (r"norm|bias", 1.0, False),
    (r"", 1.0, True),
)
_FROZEN_NORM = (
    (r"^backbone", 0.1, True),
    (r"^encoder\..*(bias|norm.*weight)", 1.0, False),
    (r"^decoder\..*(bias|norm.*weight)", 1.0, False),
    (r"", 1.0, True),
)
_TWO_RATES = ((r"^backbone", 0.01, True), (r"", 1.0, True))


@dataclass(frozen=True)
class Variant:
    blocks: tuple[int, int, int, int]  # of the backbone's stages
    layers: int  # of the decoder
    last: int  # the decoder layer after which inference stops
    bottleneck: bool = True  # kind of the backbone's blocks
    frozen: bool = True  # the backbone's norms and stem are not trained
    width: int = 256  # channels of the encoder
    hidden: int = 1024  # of the encoder's perceptron
    fusion: int = 256  # channels inside the encoder's fusion layers
    groups: tuple[tuple[str, float, bool], ...] = _FROZEN_NORM
    input_size: tuple[int, int] = (640, 640)  # height, width of the published weights; any multiple of 32 works


VARIANTS = {
    "rtdetr_r18vd": Variant((2, 2, 2, 2), 3, 2, bottleneck=False, frozen=False, fusion=128, groups=_DECAY_FREE),
    "rtdetr_r34vd": Variant((3, 4, 6, 3), 4, 3, bottleneck=False, frozen=False, fusion=128, groups=_DECAY_FREE),
    "rtdetr_r50vd_m": Variant((3, 4, 6, 3), 6, 2, fusion=128),
    "rtdetr_r50vd": Variant((3, 4, 6, 3), 6, 5),
    "rtdetr_r101vd": Variant((3, 4, 23, 3), 6, 5, width=384, hidden=2048, fusion=384, groups=_TWO_RATES),
}

# Features worth comparing, in order of execution: name -> (module path, which element of its output; None: all of it).
INTERMEDIATES = {
    **{
        f"{part}.{path}": (f"{part}.{path}", None)
        for part, paths in (
            ("backbone", ("conv1", *(f"res_layers.{i}" for i in range(4)))),
            ("encoder", (*(f"input_proj.{i}" for i in range(3)), "encoder.0")),
            ("encoder", (f"{name}.{i}" for i in range(2) for name in ("lateral_convs", "fpn_blocks"))),
            ("encoder", (f"{name}.{i}" for i in range(2) for name in ("downsample_convs", "pan_blocks"))),
            ("decoder", (*(f"input_proj.{i}" for i in range(3)), "enc_output", "enc_score_head")),
        )
        for path in paths
    },
    **{
        f"decoder.{name}": ("decoder.selection", element)
        for element, name in enumerate(
            ("init_target", "init_ref_points_unact", "enc_topk_bboxes", "enc_topk_logits", "selected_tokens")
        )
    },
    **{
        f"decoder.{path}": (f"decoder.{path}", None)
        for layer in range(3)  # every variant runs three layers, if not more
        for path in (
            *(f"decoder.layers.{layer}{part}" for part in (".norm1", ".cross_attn", ".norm2", "")),
            f"dec_bbox_head.{layer}",
        )
    },
}


class RTDETR(nn.Module):
    """images (n, 3, h, w), h and w multiples of 32, values 0 … 1 -> {"pred_logits" (n, q, k), "pred_boxes" (n, q, 4)}.

    Boxes are centre, width, height as parts of the image. In train() also "aux_outputs", those of the earlier layers
    and of the encoder, and with denoising "dn_aux_outputs", those of all layers for the denoising queries, and
    "dn_meta"; "selected_tokens" (n, q) says which tokens the queries are, to tell queries apart whose order is nearly a
    tie, and "token_scores" (n, m) by what they were chosen.
    `step` says what training draws from and what it denoises; `multi_scale` holds sides, one of which each training
    batch is resized to, drawn first from `step.random`; none: no resizing.
    """

    def __init__(self, variant: Variant, num_classes: int):
        super().__init__()
        self.step = Step()
        self.multi_scale: tuple[int, ...] = ()
        self.variant, self.num_classes = variant, num_classes
        self.backbone = PResNet(variant.blocks, variant.bottleneck, variant.frozen)
        self.decoder = RTDETRTransformer(variant.width, num_classes, variant.layers, variant.last)
        self.encoder = HybridEncoder(self.backbone.channels, variant.width, variant.hidden, variant.fusion)

    @property
    def frozen_names(self) -> tuple[str, ...]:
        """Parameters that training leaves as they are; their gradient is 0."""
        return tuple(
            name for name, _ in self.named_parameters() if self.variant.frozen and name.startswith("backbone.conv1.")
        )

    def forward(self, images):
        if images.shape[2] % STRIDE or images.shape[3] % STRIDE:
            raise UserError(
                f"RT-DETR: images of {images.shape[2]} x {images.shape[3]} pixels; choose a size of which both "
                f"sides are multiples of {STRIDE}"
            )
        if not self.training:
            ((logits, boxes),) = self._predict(images, None)[0]
            return {"pred_logits": logits, "pred_boxes": boxes}
        random = self.step.random
        size = images.shape[2:]
        if self.multi_scale and random is not None:
            side = self.multi_scale[int(random.integers(len(self.multi_scale)))]
            images = interpolate(images, size=(side, side), mode="nearest")
        noised = denoising(truths(self.step.targets, size, self.num_classes), self.num_classes, random)
        layers, encoder, (tokens, scores) = self._predict(images, noised)
        count = 0 if noised is None else noised.labels.shape[1]
        *aux, last = [_form(logits[:, count:], boxes[:, count:]) for logits, boxes in layers]
        outputs = {**last, "aux_outputs": [*aux, _form(*encoder)], "selected_tokens": tokens, "token_scores": scores}
        if noised is not None:
            outputs["dn_aux_outputs"] = [_form(logits[:, :count], boxes[:, :count]) for logits, boxes in layers]
            outputs["dn_meta"] = noised.meta(last["pred_logits"].shape[1])
        return outputs

    def _predict(self, images, noised):
        return self.decoder(self.encoder(self.backbone(images)), noised)

    def deploy(self) -> "RTDETR":
        """Re-parameterise in place for inference: every RepVGG block becomes one convolution."""
        for module in list(self.modules()):
            if isinstance(module, RepVggBlock):
                module.deploy()
        return self


def _form(logits, boxes) -> dict:
    return {"pred_logits": logits, "pred_boxes": boxes}


def parameter_groups(model: nn.Module) -> tuple[ParameterGroup, ...]:
    """The published optimiser's groups, in its order; frozen parameters are in none."""
    rules = model.variant.groups
    found, frozen = {pattern: [] for pattern, _, _ in rules}, model.frozen_names
    for name, _ in model.named_parameters():
        if name not in frozen:
            found[next(pattern for pattern in found if re.search(pattern, name))].append(name)
    return tuple(ParameterGroup(tuple(found[pattern]), factor, decays) for pattern, factor, decays in rules)


def build(name: str, num_classes: int, seed: int | None) -> nn.Module:
    model = RTDETR(VARIANTS[name], num_classes)
    if seed is not None:
        shapes = {entry: numpy(value).shape for entry, value in model.named_parameters()}
        load_state(model, {entry: _initial_value(entry, shapes, seed) for entry in shapes})
    return model


# -------------------------------------------------------------------------------------------------- first weights
def _initial_value(entry: str, shapes: dict[str, tuple[int, ...]], seed: int) -> np.ndarray:
    """The parameter's first value, float32, in the published distribution."""
    shape, owner = shapes[entry], shapes.get(entry.removesuffix("bias") + "weight", ())
    rng = np.random.default_rng((seed, zlib.crc32(entry.encode())))
    if entry.endswith("sampling_offsets.bias"):
        return _directions()
    if (value := _constant(entry, shape, owner)) is not None:
        return np.full(shape, value, np.float32)
    if entry.endswith("denoising_class_embed.weight"):
        return np.concatenate([rng.standard_normal((shape[0] - 1, shape[1])), np.zeros((1, shape[1]))]).astype(
            np.float32
        )
    fan_in = int(np.prod((shape if entry.endswith("weight") else owner)[1:]))
    xavier = re.search(
        r"in_proj_weight|(value_proj|output_proj|enc_output\.0|query_pos_head\.layers\.\d)\.weight", entry
    )
    bound = (6 / (shape[0] + fan_in)) ** 0.5 if xavier else fan_in**-0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def _constant(entry: str, shape: tuple[int, ...], owner: tuple[int, ...]) -> float | None:
    """The value of a parameter that starts as one number; `owner` is the shape of the weight beside a bias."""
    if re.search(r"score_head.*bias", entry):
        return PRIOR
    if entry.endswith("bias") and (len(owner) == 1 or re.search(r"in_proj_|(out|value|output)_proj\.", entry)):
        return 0.0
    if re.search(r"sampling_offsets|attention_weights|bbox_head.*layers\.2\.", entry):
        return 0.0
    return 1.0 if len(shape) == 1 and entry.endswith("weight") else None


def _directions() -> np.ndarray:
    """First sampling offsets: each head looks along its own direction, its points at distances 1, 2, …"""
    angles = 2 * np.pi * np.arange(HEADS) / HEADS
    rays = np.stack([np.cos(angles), np.sin(angles)], 1)
    rays /= np.amax(np.abs(rays), 1, keepdims=True)
    steps = np.arange(1, POINTS + 1)[:, None]
    return np.tile((rays[:, None, None] * steps), (1, LEVELS, 1, 1)).reshape(-1).astype(np.float32)
