"""Gold-YOLO's heads: the plain one, one with an anchor-based branch beside it, and the one that small sizes are distilled with.

Published as effidehead.py, effidehead_fuseab.py and effidehead_distill_ns.py; attribute names are the published ones.
Differences from the published code: see `gold_yolo.py`; and the anchor-based branch gives its boxes as distances from the
cell's centre, the form in which all losses compare them.
Letters: n images, c channels, p cells of all levels, k classes, b bins, a anchors of a cell.
"""

import numpy as np

from lib.backend import cat, nn, sigmoid, softmax, sum, tensor

from .gold_yolo_blocks import Conv, dtype_name

STRIDES = (8, 16, 32)
BINS = 17  # of a side's distribution over 0 … 16 strides, where there is one
# Width and height in pixels, by level.
ANCHORS = (((10, 13), (19, 19), (33, 23)), ((30, 61), (59, 59), (59, 119)), ((116, 90), (185, 185), (373, 326)))


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


def predictions(channels: tuple[int, ...], outputs: int) -> nn.ModuleList:
    """A 1 x 1 convolution per level."""
    return nn.ModuleList([nn.Conv2d(c, outputs, 1) for c in channels])


def flatten(x):
    """(n, c, h, w) -> (n, h * w, c)."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h * w).permute(0, 2, 1)


class Head(Tower):
    """Maps at strides 8, 16, 32 -> class logits (n, p, k) and distances (n, p, 4 * b); b is 1 without distributions.

    In eval() the sides (n, p, 4) that the distances stand for.
    """

    def __init__(self, channels: tuple[int, ...], num_classes: int, reg_max: int):
        super().__init__(channels)
        self.cls_preds = predictions(channels, num_classes)
        self.reg_preds = predictions(channels, 4 * (reg_max + 1))

    def level(self, i: int, x):
        logits = flatten(self.cls_preds[i](self.cls_convs[i](x)))
        distances = flatten(self.reg_preds[i](self.reg_convs[i](x)))
        return (logits, distances) if self.training else (logits, self.sides(distances))


class SidesHead(Head):
    """The head of a small student: Head, and plain sides beside the distributions, (n, p, 4), which eval() uses alone."""

    def __init__(self, channels: tuple[int, ...], num_classes: int, reg_max: int):
        super().__init__(channels, num_classes, reg_max)
        self.reg_preds_lrtb = predictions(channels, 4)

    def level(self, i: int, x):
        logits, boxes = flatten(self.cls_preds[i](self.cls_convs[i](x))), self.reg_convs[i](x)
        sides = flatten(self.reg_preds_lrtb[i](boxes))
        return (logits, flatten(self.reg_preds[i](boxes)), sides) if self.training else (logits, sides)


class AnchorHead(Tower):
    """The head of a teacher: as Head, and in train() a branch with 3 anchors per cell, logits (n, 3p, k) and sides (n, 3p, 4).

    Its rows are in order of level, anchor and row. eval() uses the part without anchors alone.
    """

    def __init__(self, channels: tuple[int, ...], num_classes: int, reg_max: int):
        super().__init__(channels)
        self.cls_preds_af = predictions(channels, num_classes)
        self.reg_preds_af = predictions(channels, 4 * (reg_max + 1))
        self.cls_preds_ab = predictions(channels, len(ANCHORS[0]) * num_classes)
        self.reg_preds_ab = predictions(channels, len(ANCHORS[0]) * 4)

    def level(self, i: int, x):
        classes, boxes = self.cls_convs[i](x), self.reg_convs[i](x)
        logits, distances = flatten(self.cls_preds_af[i](classes)), flatten(self.reg_preds_af[i](boxes))
        if not self.training:
            return logits, self.sides(distances)
        return (
            logits,
            distances,
            by_anchor(self.cls_preds_ab[i](classes)),
            anchor_sides(by_anchor(self.reg_preds_ab[i](boxes)), i),
        )


def by_anchor(x):
    """(n, a * c, h, w) -> (n, a * h * w, c)."""
    n, c, h, w = x.shape
    count = len(ANCHORS[0])
    return x.reshape(n, count, c // count, h * w).permute(0, 1, 3, 2).reshape(n, count * h * w, c // count)


def anchor_sides(x, level: int):
    """(n, a * h * w, 4) offsets of the box's centre, in strides, and its size as (2 sigmoid)^2 anchors -> its sides."""
    cells = x.shape[1] // len(ANCHORS[0])
    size = np.repeat(np.asarray(ANCHORS[level]) / STRIDES[level], cells, 0)[None].astype(dtype_name(x))
    factor = sigmoid(x[:, :, 2:]) * 2
    half = factor * factor * tensor(size) * 0.5
    return cat((half - x[:, :, :2], half + x[:, :, :2]), 2)
