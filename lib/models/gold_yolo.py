"""Gold-YOLO N, S, M, L: a RepVGG or CSP backbone, a gather-and-distribute neck, a decoupled anchor-free head.

Follows github.com/huawei-noah/Efficient-Computing, Detection/Gold-YOLO at commit 225ddd2e (arXiv:2309.11331). The neck
gathers features of all levels, fuses them once and distributes the result into every level: low levels are gathered by
convolutions (low_FAM, low_IFM), high ones by attention (high_FAM, high_IFM); Inject_* and Rep_* distribute. The heads
are published as effidehead.py, effidehead_fuseab.py and effidehead_distill_ns.py. Deliberate differences:
* in train() the model returns class logits and raw distances only; published are the logits' sigmoids, and features
  that no loss reads;
* detect.proj and detect.proj_conv.weight are buffers; published as parameters that are not trained;
* a resize or pooling to the size a map already has is left out (equal to it to the bit);
* the neck has no branch for a fused map larger than the level it enters: multiples of 32 never have one;
* the anchor-based branch gives its boxes as distances from the cell's centre, the form that all losses compare;
* drop-path masks come from NumPy generators (`TopBasicLayer`), the first weights have the published distributions but
  come from NumPy generators keyed by (seed, name);
* merging RepVGG branches computes in float64 and keeps eval() as it was: published, it leaves norms in train().

Letters: n images, c channels, h rows, w columns, p cells of all levels, k classes, b bins of a side, a attention heads,
in the anchor-based branch the anchors of a cell.
"""

import operator
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lib.backend import (
    adaptive_avg_pool2d,
    cat,
    constant,
    interpolate,
    load_state,
    matmul,
    mul,
    named_state,
    nn,
    numpy,
    ones_like,
    sigmoid,
    softmax,
    sum,
    tensor,
)
from lib.data import boxes
from lib.errors import UserError
from lib.models.inference import merged
from lib.models.step import ParameterGroup, Step

STRIDES = (8, 16, 32)
BINS = 17  # of a side's distribution over 0 … 16 strides, where there is one
# Width and height in pixels, by level.
ANCHORS = (((10, 13), (19, 19), (33, 23)), ((30, 61), (59, 59), (59, 119)), ((116, 90), (185, 185), (373, 326)))
DROP_PATH = 0.1  # of the last transformer block


# ------------------------------------------------------------------------------------------------ building blocks
def dtype_name(x) -> str:
    return str(x.dtype).rsplit(".", 1)[-1]


def _batch_norm(channels: int) -> nn.Module:
    """Every norm but the neck's synchronised ones."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


def _synchronised_norm(channels: int) -> nn.Module:
    """Published as SyncBatchNorm, which on one device is batch norm, with its default settings."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)


class Conv(nn.Module):
    """Convolution, batch norm, activation; same size at stride 1."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, act: Callable[[], nn.Module], stride: int = 1, bias: bool = False
    ):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=bias)
        self.bn = _batch_norm(c_out)
        self.act = act()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class ConvBN(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, norm: Callable = _batch_norm):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = norm(c_out)

    def forward(self, x):
        return self.bn(self.conv(x))


class RepVGGBlock(nn.Module):
    """ReLU of a 3 x 3 and a 1 x 1 branch and, where shapes allow, the input, each with a batch norm of its own.

    After `deploy` it is one 3 x 3 convolution with bias, `rbr_reparam`, and ReLU: the same function as in eval().
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1):
        super().__init__()
        self.rbr_identity = _batch_norm(c_in) if c_in == c_out and stride == 1 else None
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
        branches = [(branch.conv, branch.bn) for branch in (self.rbr_dense, self.rbr_1x1)]
        if self.rbr_identity is not None:
            branches.append((None, self.rbr_identity))
        self.rbr_reparam = merged(*branches)
        self.rbr_identity = self.rbr_dense = self.rbr_1x1 = None


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
        return self.cv2(_pooled(self.cv1(x), self.m))


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
        context = _pooled(self.cv4(self.cv3(self.cv1(x))), self.m)
        return self.cv7(cat((self.cv2(x), self.cv6(self.cv5(context))), 1))


def _pooled(x, pool: nn.Module):
    """(n, 4c, h, w): x and its maxima after one, two and three poolings."""
    first = pool(x)
    second = pool(first)
    return cat((x, first, second, pool(second)), 1)


# ------------------------------------------------------------------------------------------------------- backbone
class Backbone(nn.Module):
    """images (n, 3, h, w) -> features at strides 4, 8, 16, 32 with 2, 4, 8, 16 times the stem's channels."""

    def __init__(self, variant: "Variant", block: Callable, stage: Callable, act: Callable):
        super().__init__()
        width, stages = variant.width, variant.stages
        pooling = (SimCSPSPPF if variant.cross_pooling else SPPF)(16 * width, act)
        self.stem = block(3, width, 2)
        self.ERBlock_2 = nn.Sequential(block(width, 2 * width, 2), stage(2 * width, stages[0]))
        self.ERBlock_3 = nn.Sequential(block(2 * width, 4 * width, 2), stage(4 * width, stages[1]))
        self.ERBlock_4 = nn.Sequential(block(4 * width, 8 * width, 2), stage(8 * width, stages[2]))
        self.ERBlock_5 = nn.Sequential(block(8 * width, 16 * width, 2), stage(16 * width, stages[3]), pooling)

    def forward(self, images):
        c2 = self.ERBlock_2(self.stem(images))
        c3 = self.ERBlock_3(c2)
        c4 = self.ERBlock_4(c3)
        return c2, c3, c4, self.ERBlock_5(c4)


# ------------------------------------------------------------------------------------------------ neck: gathering
def resize(x, size: tuple[int, int]):
    """Bilinear; x itself where it has that size already."""
    return x if tuple(x.shape[2:]) == size else interpolate(x, size=size, mode="bilinear", align_corners=False)


def shrink(x, size: tuple[int, int]):
    """Adaptive average pooling; x itself where it has that size already."""
    return x if tuple(x.shape[2:]) == size else adaptive_avg_pool2d(x, size)


def _size_of(x) -> tuple[int, int]:
    """Numbers also where a compiler of the model has symbols for them, for there is a table of cells of each size."""
    return operator.index(x.shape[2]), operator.index(x.shape[3])


class LowFAM(nn.Module):
    """Strides 4, 8, 16, 32 at stride 16, one after the other."""

    def forward(self, c2, c3, c4, c5):
        size = _size_of(c4)
        return cat((shrink(c2, size), shrink(c3, size), c4, resize(c5, size)), 1)


class HighFAM(nn.Module):
    """Maps of strides 8, 16, 32 at stride 64, one after the other."""

    def forward(self, p3, p4, c5):
        h, w = _size_of(c5)
        size = (h - 1) // 2 + 1, (w - 1) // 2 + 1
        return cat([shrink(x, size) for x in (p3, p4, c5)], 1)


class SimFusion3In(nn.Module):
    """Three neighbouring levels at the middle one's size, fused by a 1 x 1 convolution."""

    def __init__(self, c_middle: int, c_out: int):
        super().__init__()
        self.cv1 = Conv(c_middle, c_out, 1, nn.ReLU)
        self.cv_fuse = Conv(3 * c_out, c_out, 1, nn.ReLU)

    def forward(self, larger, middle, smaller):
        size = _size_of(middle)
        return self.cv_fuse(cat((shrink(larger, size), self.cv1(middle), resize(smaller, size)), 1))


class AdvPoolFusion(nn.Module):
    """Two neighbouring levels at the second one's size, one after the other."""

    def forward(self, larger, x):
        return cat((shrink(larger, _size_of(x)), x), 1)


# --------------------------------------------------------------------------------------------- neck: distribution
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
        self.local_embedding = ConvBN(c_local, c_global, norm=_synchronised_norm)
        self.global_embedding = ConvBN(c_global, c_global, norm=_synchronised_norm)
        self.global_act = ConvBN(c_global, c_global, norm=_synchronised_norm)
        self.act = HardSigmoid()

    def forward(self, x, fused):
        local = self.local_embedding(x)
        gate = resize(self.act(self.global_act(fused)), _size_of(x))
        return local * gate + resize(self.global_embedding(fused), _size_of(x))


# ------------------------------------------------------------------------------------------------ neck: attention
class Conv2dBN(nn.Module):
    """1 x 1 convolution and synchronised norm under the transformer's names."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.c = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn = _synchronised_norm(c_out)

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
    """Transformer blocks whose drop-path share grows linearly from 0 to DROP_PATH.

    Random numbers are drawn per block in order: one for each image for the attention, then one each for the MLP;
    blocks with share 0 draw none.
    """

    def __init__(self, channels: int, depth: int, heads: int):
        super().__init__()
        shares = np.linspace(
            0, DROP_PATH, depth, dtype=np.float32
        )  # float32, as published: 1 - share is not exactly 0.9
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, float(share)) for share in shares])

    def forward(self, x, random: np.random.Generator | None):
        for block in self.transformer_blocks:
            x = block(x, random)
        return x


# --------------------------------------------------------------------------------------------------- neck: as one
class Neck(nn.Module):
    """c2 … c5 at strides 4 … 32, 2, 4, 8, 16 times `width` channels -> maps at strides 8, 16, 32, 2, 4, 8 times.

    block(c_in, c_out) is the size's basic block, stage(channels) its stack of them. With n5_from_p4 the last level
    takes the map of stride 16 from before its own distribution (size L only; by accident or not, as published).
    """

    def __init__(self, variant: "Variant", block: Callable, stage: Callable):
        super().__init__()
        width, fused = variant.width, variant.fused
        self.n5_from_p4 = variant.n5_from_p4
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
        self.high_IFM = TopBasicLayer(gathered, *variant.transformer)
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


# ---------------------------------------------------------------------------------------------------------- heads
class Projection(nn.Module):
    """Holds the published constant 0 … 16 under the name of a convolution's weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", tensor(np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1)))


class Tower(nn.Module):
    """What the heads share: a stem per level, one convolution for classes, one for boxes, and constants.

    A head has level(i, x): of the stem's map at level i the outputs, each (n, cells, …), in order of row.
    """

    def __init__(self, channels: tuple[int, ...]):
        super().__init__()
        self.register_buffer("proj", tensor(np.arange(BINS, dtype=np.float32)))
        self.proj_conv = Projection()  # 17 bins even where reg_max is 0, as published
        self.stems = nn.ModuleList([Conv(c, c, 1, nn.SiLU) for c in channels])
        self.cls_convs = nn.ModuleList([Conv(c, c, 3, nn.SiLU) for c in channels])
        self.reg_convs = nn.ModuleList([Conv(c, c, 3, nn.SiLU) for c in channels])

    def forward(self, maps):
        levels = [self.level(i, stem(x)) for i, (stem, x) in enumerate(zip(self.stems, maps))]
        return tuple(cat(part, 1) for part in zip(*levels))

    def sides(self, distances):
        """Distances (n, p, 4 * b) -> (n, p, 4): left, top, right, bottom in strides from the cell's centre."""
        n, p, width = distances.shape
        if width == 4:
            return distances
        shares = softmax(distances.reshape(n, p, 4, width // 4), 3)
        return sum(shares * self.proj_conv.weight.reshape(1, 1, 1, width // 4), 3)


def _predictions(channels: tuple[int, ...], outputs: int) -> nn.ModuleList:
    """A 1 x 1 convolution per level."""
    return nn.ModuleList([nn.Conv2d(c, outputs, 1) for c in channels])


def _flatten(x):
    """(n, c, h, w) -> (n, h * w, c)."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h * w).permute(0, 2, 1)


class Head(Tower):
    """Maps at strides 8, 16, 32 -> class logits (n, p, k) and distances (n, p, 4 * b); b is 1 without distributions.

    In eval() the sides (n, p, 4) that the distances stand for.
    """

    def __init__(self, channels: tuple[int, ...], num_classes: int, reg_max: int):
        super().__init__(channels)
        self.cls_preds = _predictions(channels, num_classes)
        self.reg_preds = _predictions(channels, 4 * (reg_max + 1))

    def level(self, i: int, x):
        logits = _flatten(self.cls_preds[i](self.cls_convs[i](x)))
        distances = _flatten(self.reg_preds[i](self.reg_convs[i](x)))
        return (logits, distances) if self.training else (logits, self.sides(distances))


class SidesHead(Head):
    """The head of a small student: Head, and beside the distributions plain sides (n, p, 4), all that eval() uses."""

    def __init__(self, channels: tuple[int, ...], num_classes: int, reg_max: int):
        super().__init__(channels, num_classes, reg_max)
        self.reg_preds_lrtb = _predictions(channels, 4)

    def level(self, i: int, x):
        logits, boxes = _flatten(self.cls_preds[i](self.cls_convs[i](x))), self.reg_convs[i](x)
        sides = _flatten(self.reg_preds_lrtb[i](boxes))
        return (logits, _flatten(self.reg_preds[i](boxes)), sides) if self.training else (logits, sides)


class AnchorHead(Tower):
    """The head of a teacher: Head, and in train() a branch with 3 anchors per cell.

    That gives logits (n, 3p, k) and sides (n, 3p, 4); its rows are in order of level, anchor and row. eval() uses the
    part without anchors alone.
    """

    def __init__(self, channels: tuple[int, ...], num_classes: int, reg_max: int):
        super().__init__(channels)
        self.cls_preds_af = _predictions(channels, num_classes)
        self.reg_preds_af = _predictions(channels, 4 * (reg_max + 1))
        self.cls_preds_ab = _predictions(channels, len(ANCHORS[0]) * num_classes)
        self.reg_preds_ab = _predictions(channels, len(ANCHORS[0]) * 4)

    def level(self, i: int, x):
        classes, boxes = self.cls_convs[i](x), self.reg_convs[i](x)
        logits, distances = _flatten(self.cls_preds_af[i](classes)), _flatten(self.reg_preds_af[i](boxes))
        if not self.training:
            return logits, self.sides(distances)
        return (
            logits,
            distances,
            _by_anchor(self.cls_preds_ab[i](classes)),
            _anchor_sides(_by_anchor(self.reg_preds_ab[i](boxes)), i),
        )


def _by_anchor(x):
    """(n, a * c, h, w) -> (n, a * h * w, c)."""
    n, c, h, w = x.shape
    count = len(ANCHORS[0])
    return x.reshape(n, count, c // count, h * w).permute(0, 1, 3, 2).reshape(n, count * h * w, c // count)


def _anchor_sides(x, level: int):
    """(n, a * h * w, 4) offsets of the box's centre, in strides, and its size as (2 sigmoid)^2 anchors -> its sides."""
    factor = sigmoid(x[:, :, 2:]) * 2
    half = factor * factor * _anchor_sizes(level, operator.index(x.shape[1]) // len(ANCHORS[0]), dtype_name(x)) * 0.5
    return cat((half - x[:, :, :2], half + x[:, :, :2]), 2)


@constant
def _anchor_sizes(level: int, cells: int, dtype: str) -> np.ndarray:
    """(1, a * cells, 2) width and height in strides."""
    return np.repeat(np.asarray(ANCHORS[level]) / STRIDES[level], cells, 0)[None].astype(dtype)


# --------------------------------------------------------------------------------------------- model and variants
HEADS = {"plain": Head, "fuse-ab": AnchorHead, "distill": SidesHead}


@dataclass(frozen=True)
class Variant:
    input_size: tuple[int, int]  # height, width of the published weights; any multiple of 32 works
    width: int  # channels of the stem; every other number of channels follows from it
    stages: tuple[int, ...]  # RepVGG blocks, or BottleReps of a CSP stage, at strides 4, 8, 16, 32
    neck_stage: int  # the same for each of the neck's four
    fused: int  # channels in which low levels are fused
    expansion: float | None  # part of the channels that a CSP stage works on; None: plain stages
    cross_pooling: bool  # SimCSPSPPF instead of SPPF
    silu: bool  # convolutions with SiLU as basic blocks instead of RepVGG with ReLU
    transformer: tuple[int, int]  # blocks, heads
    n5_from_p4: bool  # see Neck
    reg_max: int  # a side is the mean of a distribution over 0 … reg_max strides; 0: a plain number
    iou: str  # box loss: "siou" or "giou"
    head: str = "plain"  # one of HEADS


VARIANTS = {
    "gold-yolo-n": Variant((640, 640), 16, (2, 4, 6, 2), 4, 96, None, True, False, (2, 4), False, 0, "siou"),
    "gold-yolo-s": Variant((640, 640), 32, (2, 4, 6, 2), 4, 128, None, True, False, (2, 4), False, 16, "giou"),
    "gold-yolo-m": Variant((640, 640), 48, (2, 3, 5, 2), 3, 192, 2 / 3, False, False, (2, 4), False, 16, "giou"),
    "gold-yolo-l": Variant((640, 640), 64, (3, 6, 9, 3), 6, 192, 1 / 2, False, True, (3, 8), True, 16, "giou"),
}
# The published training has two steps: with a second, anchor-based branch, then distilled from what that gave. Both
# need distributions; the students of sizes M and L are the plain models.
VARIANTS |= {
    f"{name}-fuse-ab": replace(variant, reg_max=BINS - 1, head="fuse-ab") for name, variant in VARIANTS.items()
} | {
    f"{name}-distill": replace(VARIANTS[name], reg_max=BINS - 1, head="distill")
    for name in ("gold-yolo-n", "gold-yolo-s")
}

# Features worth comparing, in order of execution: name -> (module path, which element of its output; None: all of it).
# The third transformer block of size L is left out: high_IFM is its output.
INTERMEDIATES = {
    f"{part}.{path}": (f"{part}.{path}", None)
    for part, paths in (
        ("backbone", ("stem", "ERBlock_2.0", "ERBlock_2.1", "ERBlock_3", "ERBlock_4")),
        ("backbone", ("ERBlock_5.0", "ERBlock_5.1", "ERBlock_5")),
        ("neck", ("low_FAM", *(f"low_IFM.{i}" for i in range(5)), "reduce_layer_c5", "LAF_p4")),
        ("neck", tuple(f"Inject_p4{part}" for part in (".local_embedding", ".global_act", ".global_embedding", ""))),
        ("neck", ("Rep_p4", "reduce_layer_p4", "LAF_p3", "Inject_p3", "Rep_p3", "high_FAM")),
        ("neck.high_IFM.transformer_blocks", ("0.attn", "0.mlp", "0", "1.attn", "1.mlp", "1")),
        ("neck", ("high_IFM", "conv_1x1_n", "LAF_n4", "Inject_n4", "Rep_n4", "LAF_n5", "Inject_n5", "Rep_n5")),
        *(
            (f"detect.{part}", (level,))
            for level in range(3)
            for part in ("stems", "cls_convs", "cls_preds", "reg_convs", "reg_preds")
        ),
    )
    for path in paths
}


@constant
def _cells(image_size: tuple[int, int], dtype: str) -> np.ndarray:
    """(1, p, 3) x and y of every cell's centre and its stride, in pixels."""
    corner, stride = np.split(boxes.priors(image_size, STRIDES), [2], 1)
    return np.concatenate([corner + stride / 2, stride], 1)[None].astype(dtype)


class GoldYolo(nn.Module):
    """images (n, 3, h, w), h and w multiples of 32, RGB in 0 … 1.

    train(): class logits (n, p, k), distances (n, p, 4 * b): left, top, right, bottom in strides; what its head adds.
    eval(): (n, p, 5 + k): the box's centre x, y, width and height in input pixels, the constant 1, class scores.
    Cells are in order of level and row. `step.random`, set by the training loop, decides what drop path drops.
    """

    def __init__(self, variant: Variant, num_classes: int):
        super().__init__()
        self.step = Step()
        block, act = (ConvWrapper, nn.SiLU) if variant.silu else (RepVGGBlock, nn.ReLU)

        def stage(channels: int, count: int = variant.neck_stage) -> nn.Module:
            if variant.expansion is None:
                return RepBlock(count, lambda: block(channels, channels))
            return BepC3(channels, count, variant.expansion, block, act)

        self.backbone = Backbone(variant, block, stage, act)
        self.neck = Neck(variant, block, stage)
        self.detect = HEADS[variant.head](self.neck.channels, num_classes, variant.reg_max)

    def forward(self, images):
        if any(side % STRIDES[-1] or not side for side in images.shape[2:]):
            raise UserError(
                f"Gold-YOLO: the input is {images.shape[2]} x {images.shape[3]} pixels; give a size whose sides are "
                f"multiples of {STRIDES[-1]}"
            )
        maps = self.neck(*self.backbone(images), self.step.random if self.training else None)
        outputs = self.detect(maps)
        return outputs if self.training else self._decode(*outputs, _size_of(images))

    def _decode(self, logits, sides, image_size: tuple[int, int]):
        cells = _cells(image_size, dtype_name(logits))
        points, stride = cells[:, :, :2], cells[:, :, 2:]  # (1, p, 2), (1, p, 1)
        low, high = sides[:, :, :2], sides[:, :, 2:]
        certain = ones_like(low[:, :, :1])
        return cat((points + (high - low) / 2 * stride, (low + high) * stride, certain, sigmoid(logits)), 2)

    def deploy(self) -> nn.Module:
        """Merge the branches of every RepVGG block in place, with the statistics of eval(); returns the model."""
        for _, module in self.named_modules():
            if isinstance(module, RepVGGBlock):
                module.deploy()
        return self


def build(name: str, num_classes: int, seed: int | None) -> nn.Module:
    return build_variant(VARIANTS[name], num_classes, seed)


def build_variant(variant: Variant, num_classes: int, seed: int | None) -> nn.Module:
    """A model of any Variant, published under a name or not."""
    model = GoldYolo(variant, num_classes)
    if seed is not None:
        shapes = {entry: numpy(value).shape for entry, value in named_state(model)}
        load_state(model, {entry: _initial_value(entry, shapes, seed) for entry, _ in model.named_parameters()})
    return model


def _initial_value(entry: str, shapes: dict[str, tuple[int, ...]], seed: int) -> np.ndarray:
    """The parameter's first value, float32, in the published distribution.

    Kaiming normal over the outputs for the convolutions of Inject_*, PyTorch's default for all others and their biases,
    and predictions that start with no weights. The attention's last norm starts with gain 0.
    """
    shape, kind = shapes[entry], entry.rsplit(".", 1)[-1]
    weight = shapes.get(entry.removesuffix(kind) + "weight", ())
    if "_preds" in entry:
        return np.full(shape, 0 if kind == "weight" else 1 if "reg_" in entry else -np.log(99), np.float32)
    if len(weight) < 4:  # of a norm, or a shortcut's factor
        return np.full(shape, 0 if kind == "bias" or ".proj.1.bn." in entry else 1, np.float32)
    rng = np.random.default_rng((seed, zlib.crc32(entry.encode())))
    c_out, c_in, height, width = weight
    if ".Inject_" in entry:
        return ((2 / (c_out * height * width)) ** 0.5 * rng.standard_normal(shape)).astype(np.float32)
    bound = (c_in * height * width) ** -0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def parameter_groups(model: nn.Module) -> tuple[ParameterGroup, ...]:
    """Norms' gains, other weights (the only ones that decay), biases; the factors `alpha` of shortcuts are in no group.

    Those have gradients and are never updated: as published, presumably by accident.
    """
    names = [name for name, _ in model.named_parameters()]
    norms = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    return (
        ParameterGroup(tuple(name for name in names if name in norms), decays=False),
        ParameterGroup(tuple(name for name in names if name.endswith(".weight") and name not in norms)),
        ParameterGroup(tuple(name for name in names if name.endswith(".bias")), decays=False, warmup_from=0.1),
    )
