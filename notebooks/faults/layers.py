"""Faults in convolutional layers, norms, activations, pooling and resizing."""

from lib import backend
from lib.backend import cat, clamp, interpolate, nn, stack
from lib.models import gold_yolo, nanodet_plus, rt_detr
from notebooks.exam.planting import Faults, attribute, becomes, built

FAULTS = Faults()
layers, norms, resizing = (FAULTS.of(kind, "NanoDet-Plus") for kind in ("layers", "norms", "resizing and pooling"))
gold_layers, gold_resizing, gold_attention = (
    FAULTS.of(kind, "Gold-YOLO N") for kind in ("layers", "resizing and pooling", "attention")
)
rt_detr_resizing = FAULTS.of("resizing and pooling", "RT-DETR")
GHOST = r"(aux_)?fpn\.(top_down|bottom_up)_blocks\.\d\.blocks\.0\.ghost\d"
FPN, MAXPOOL = r"(aux_)?fpn", r"backbone\.maxpool"
NORM, GROUP_NORM = "backbone.stage3.2.branch2.4", "aux_head.cls_convs.0.gn"


@layers.code("ghost concat order", GHOST, nanodet_plus.GhostModule, "forward")
def _(original, self, x):
    """concatenate the cheap half first"""
    primary = self.primary_conv(x)
    return cat((self.cheap_operation(primary), primary), 1)


@layers.code("ghost slice", GHOST, nanodet_plus.GhostModule, "forward")
def _(original, self, x):
    """slice the ghost module's channels from 1 on"""
    both = original(self, x)
    return cat((both[:, 1:], both[:, :1]), 1)  # filled up with the first


resizing.add(
    "upsample mode",
    "upsample by the nearest value instead of bilinearly",
    FPN,
    becomes(nanodet_plus.GhostPAN, "_double", lambda x: interpolate(x, scale_factor=2, mode="nearest")),
)


@resizing.code("upsampling without half pixels", FPN, nanodet_plus.GhostPAN, "_double")
def _(original, x):
    """upsample as TensorFlow 1 does"""
    for axis in (2, 3):  # every other value is one of the input
        n, c, h, w = x.shape
        after = cat((x[:, :, 1:], x[:, :, -1:]), 2) if axis == 2 else cat((x[:, :, :, 1:], x[:, :, :, -1:]), 3)
        x = stack((x, (x + after) * 0.5), axis + 1).reshape(n, c, *((2 * h, w) if axis == 2 else (h, 2 * w)))
    return x


@layers.code("channels not shuffled", r"backbone\.stage\d\.\d", nanodet_plus.ShuffleBlock, "forward")
def _(original, self, x):
    """concatenate two branches and forget to shuffle"""
    if self.branch1 is None:
        half = x.shape[1] // 2
        return cat((x[:, :half], self.branch2(x[:, half:])), 1)
    return cat((self.branch1(x), self.branch2(x)), 1)


def bordered(x, axis, both=False):
    """One row (axis 2) or column (axis 3) of zeros behind x, or on both sides."""
    zeros = (x[:, :, :1] if axis == 2 else x[:, :, :, :1]) * 0.0
    return cat((zeros, x, zeros) if both else (x, zeros), axis)


@layers.code("padding behind", r"backbone\.conv1\.0", nn.Conv2d, "forward")
def _(original, self, x):
    """pad a stride-2 convolution at the right and below only"""
    if tuple(self.stride) != (2, 2) or self.groups > 1:
        return original(self, x)
    self.padding = (0, 0)
    found = original(self, bordered(bordered(x, 2), 3))
    self.padding = (1, 1)
    return found


layers.add(
    "default slope",
    "leave LeakyReLU's slope at 0.01",
    r"head\.cls_convs\.0\.0\.act",
    built(lambda model: setattr(model.head.cls_convs[0][0], "act", nn.LeakyReLU())),
)
norms.add(
    "BN eps",
    "give a batch norm another framework's eps, 1e-3",
    r"backbone\.stage3\.2\.branch2\.4",
    attribute(NORM, "eps", 1e-3),
)
norms.add(
    "group norm eps",
    "give a group norm eps 1e-6",
    r"aux_head\.cls_convs\.0\.gn",
    attribute(GROUP_NORM, "eps", 1e-6),
)


class CeilMode(nn.Module):
    """Windows of 3 from the border on, the last one cut off, instead of a column of padding on each side."""

    def __init__(self):
        super().__init__()
        self.pool = [nn.MaxPool2d(3, 2, 0)]  # in a list: a part of its own would be another name in the model

    def forward(self, x):
        x = cat((x, x[:, :, -1:]), 2)
        return self.pool[0](cat((x, x[:, :, :, -1:]), 3))


class ZeroPadded(CeilMode):
    """Pads with zeros, which beat negative values."""

    def forward(self, x):
        return self.pool[0](bordered(bordered(x, 2, both=True), 3, both=True))


resizing.add(
    "ceil-mode pooling",
    "pool with ceil mode and without padding: as many cells, shifted",
    MAXPOOL,
    built(lambda model: setattr(model.backbone, "maxpool", CeilMode())),
)
resizing.add(
    "pooling pads zeros",
    "pad a maximum with zeros instead of the least number",
    MAXPOOL,
    built(lambda model: setattr(model.backbone, "maxpool", ZeroPadded())),
)


@gold_resizing.code("align_corners", r"neck\.(low_FAM|LAF_\w+|Inject_\w+)", gold_yolo, "resize")
def _(original, x, size):
    """resize bilinearly with align_corners=True"""
    return x if tuple(x.shape[2:]) == size else interpolate(x, size=size, mode="bilinear", align_corners=True)


@gold_resizing.code("subsampling for pooling", r"neck\.(low_FAM|high_FAM|LAF_\w+)", gold_yolo, "shrink")
def _(original, x, size):
    """take single values where means over windows are meant"""
    return x if tuple(x.shape[2:]) == size else interpolate(x, size=size, mode="nearest")


@gold_layers.code("another hard sigmoid", r"neck\.Inject_\w\d\.act(\.relu)?", gold_yolo.HardSigmoid, "forward")
def _(original, self, x):
    """use clip(0.2 x + 0.5) for ReLU6(x + 3) / 6"""
    return clamp(x * 0.2 + 0.5, min=0.0, max=1.0)


REP = r"backbone\.ERBlock_\d\.1\..*|neck\.(Rep_\w\d|low_IFM)\..*"


@gold_layers.code("no identity branch", REP, gold_yolo.RepVGGBlock, "forward")
def _(original, self, x):
    """forget the third branch of a RepVGG block"""
    return self.act(self.rbr_dense(x) + self.rbr_1x1(x))


ATTENTION = r"neck\.high_IFM\.transformer_blocks\.\d\.attn"


@gold_attention.code("attention scaled", ATTENTION, gold_yolo.Attention, "forward")
def _(original, self, x):
    """divide by the root of the key's length where the published code doesn't"""
    n, _, h, w = x.shape
    q = self.to_q(x).reshape(n, self.heads, self.key_dim, h * w).permute(0, 1, 3, 2) * self.key_dim**-0.5
    k = self.to_k(x).reshape(n, self.heads, self.key_dim, h * w)
    v = self.to_v(x).reshape(n, self.heads, self.value_dim, h * w).permute(0, 1, 3, 2)
    y = backend.matmul(backend.softmax(backend.matmul(q, k), -1), v)
    return self.proj(y.permute(0, 1, 3, 2).reshape(n, self.heads * self.value_dim, h, w))


SHORTCUT = r"backbone\.res_layers\.\d\.blocks\.0\.short(\.pool)?"


@rt_detr_resizing.code("shortcut without pooling", SHORTCUT, rt_detr.PooledShortcut, "forward")
def _(original, self, x):
    """build ResNet's shortcut where ResNet-vd pools first"""
    return self.conv(x[:, :, ::2, ::2])
