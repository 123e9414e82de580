"""Faults in convolutional layers, norms, activations, pooling and resizing."""

from lib import backend
from lib.alignment.exam.planting import Change, Fault, attribute, becomes, built
from lib.backend import cat, clamp, interpolate, nn, stack
from lib.models import gold_yolo, nanodet_plus, rt_detr

NANODET, GOLD, RT_DETR = "NanoDet-Plus", "Gold-YOLO N", "RT-DETR"
GHOST = r"(aux_)?fpn\.(top_down|bottom_up)_blocks\.\d\.blocks\.0\.ghost\d"


# ------------------------------------------------------------------------------------------------ ghost and shuffle
def _ghost_reversed(self, x):
    primary = self.primary_conv(x)
    return cat((self.cheap_operation(primary), primary), 1)


def _ghost_sliced(self, x):
    """The slice of the concatenation starts one channel late and is filled up with the first."""
    primary = self.primary_conv(x)
    both = cat((primary, self.cheap_operation(primary)), 1)
    return cat((both[:, 1:], both[:, :1]), 1)


def _unshuffled(self, x):
    if self.branch1 is None:
        half = x.shape[1] // 2
        return cat((x[:, :half], self.branch2(x[:, half:])), 1)
    return cat((self.branch1(x), self.branch2(x)), 1)


def _without_identity(self, x):
    return self.act(self.rbr_dense(x) + self.rbr_1x1(x))


# --------------------------------------------------------------------------------------------------------- resizing
def _legacy(x):
    """Twice the size, bilinearly, without half pixels: every other value is one of the input."""
    for axis in (2, 3):
        n, c, h, w = x.shape
        after = cat((x[:, :, 1:], x[:, :, -1:]), 2) if axis == 2 else cat((x[:, :, :, 1:], x[:, :, :, -1:]), 3)
        x = stack((x, (x + after) * 0.5), axis + 1).reshape(n, c, *((2 * h, w) if axis == 2 else (h, 2 * w)))
    return x


def _aligned_corners(x, size):
    if tuple(x.shape[2:]) == size:
        return x
    return interpolate(x, size=size, mode="bilinear", align_corners=True)


def _single_values(x, size):
    """Taking single values where means over windows are asked for."""
    return x if tuple(x.shape[2:]) == size else interpolate(x, size=size, mode="nearest")


# ---------------------------------------------------------------------------------------------------------- pooling
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


def bordered(x, axis, both=False):
    """One row (axis 2) or column (axis 3) of zeros behind x, or on both sides."""
    zeros = (x[:, :, :1] if axis == 2 else x[:, :, :, :1]) * 0.0
    return cat((zeros, x, zeros) if both else (x, zeros), axis)


def _strided_shortcut(self, x):
    return self.conv(x[:, :, ::2, ::2])


# ------------------------------------------------------------------------------------------------ layers of one place
def _padded_behind(original):
    """Convolutions of stride 2 pad the right and lower border only."""

    def forward(self, x):
        if tuple(self.stride) != (2, 2) or self.groups > 1:
            return original(self, x)
        self.padding = (0, 0)
        found = original(self, bordered(bordered(x, 2), 3))
        self.padding = (1, 1)
        return found

    return forward


def _default_slope(model):
    model.head.cls_convs[0][0].act = nn.LeakyReLU()


def _other_hard_sigmoid(self, x):
    return clamp(x * 0.2 + 0.5, min=0.0, max=1.0)


def _scaled_attention(self, x):
    """Queries divided by the root of their length, as everywhere else."""
    n, _, h, w = x.shape
    q = self.to_q(x).reshape(n, self.heads, self.key_dim, h * w).permute(0, 1, 3, 2) * self.key_dim**-0.5
    k = self.to_k(x).reshape(n, self.heads, self.key_dim, h * w)
    v = self.to_v(x).reshape(n, self.heads, self.value_dim, h * w).permute(0, 1, 3, 2)
    y = backend.matmul(backend.softmax(backend.matmul(q, k), -1), v)
    return self.proj(y.permute(0, 1, 3, 2).reshape(n, self.heads * self.value_dim, h, w))


FAULTS = (
    Fault(
        "ghost concat order",
        "concatenate the cheap half first",
        "layers",
        NANODET,
        GHOST,
        (becomes(nanodet_plus.GhostModule, "forward", _ghost_reversed),),
    ),
    Fault(
        "ghost slice",
        "slice the ghost module's channels from 1 on",
        "layers",
        NANODET,
        GHOST,
        (becomes(nanodet_plus.GhostModule, "forward", _ghost_sliced),),
    ),
    Fault(
        "upsample mode",
        "upsample by the nearest value instead of bilinearly",
        "resizing and pooling",
        NANODET,
        r"(aux_)?fpn",
        (becomes(nanodet_plus.GhostPAN, "_double", lambda x: interpolate(x, scale_factor=2, mode="nearest")),),
    ),
    Fault(
        "upsampling without half pixels",
        "upsample as TensorFlow 1 does",
        "resizing and pooling",
        NANODET,
        r"(aux_)?fpn",
        (becomes(nanodet_plus.GhostPAN, "_double", _legacy),),
    ),
    Fault(
        "channels not shuffled",
        "concatenate two branches and forget to shuffle",
        "layers",
        NANODET,
        r"backbone\.stage\d\.\d",
        (becomes(nanodet_plus.ShuffleBlock, "forward", _unshuffled),),
    ),
    Fault(
        "padding behind",
        "pad a stride-2 convolution at the right and below only",
        "layers",
        NANODET,
        r"backbone\.conv1\.0",
        (Change(nn.Conv2d, "forward", _padded_behind),),
    ),
    Fault(
        "default slope",
        "leave LeakyReLU's slope at 0.01",
        "layers",
        NANODET,
        r"head\.cls_convs\.0\.0\.act",
        (built(_default_slope),),
    ),
    Fault(
        "BN eps",
        "give a batch norm another framework's eps, 1e-3",
        "norms",
        NANODET,
        r"backbone\.stage3\.2\.branch2\.4",
        (attribute("backbone.stage3.2.branch2.4", "eps", 1e-3),),
    ),
    Fault(
        "group norm eps",
        "give a group norm eps 1e-6",
        "norms",
        NANODET,
        r"aux_head\.cls_convs\.0\.gn",
        (attribute("aux_head.cls_convs.0.gn", "eps", 1e-6),),
    ),
    Fault(
        "ceil-mode pooling",
        "pool with ceil mode and without padding: as many cells, shifted",
        "resizing and pooling",
        NANODET,
        r"backbone\.maxpool",
        (built(lambda model: setattr(model.backbone, "maxpool", CeilMode())),),
    ),
    Fault(
        "pooling pads zeros",
        "pad a maximum with zeros instead of the least number",
        "resizing and pooling",
        NANODET,
        r"backbone\.maxpool",
        (built(lambda model: setattr(model.backbone, "maxpool", ZeroPadded())),),
    ),
    Fault(
        "align_corners",
        "resize bilinearly with align_corners=True",
        "resizing and pooling",
        GOLD,
        r"neck\.(low_FAM|LAF_\w+|Inject_\w+)",
        (becomes(gold_yolo, "resize", _aligned_corners),),
    ),
    Fault(
        "subsampling for pooling",
        "take single values where means over windows are meant",
        "resizing and pooling",
        GOLD,
        r"neck\.(low_FAM|high_FAM|LAF_\w+)",
        (becomes(gold_yolo, "shrink", _single_values),),
    ),
    Fault(
        "another hard sigmoid",
        "use clip(0.2 x + 0.5) for ReLU6(x + 3) / 6",
        "layers",
        GOLD,
        r"neck\.Inject_\w\d\.act(\.relu)?",
        (becomes(gold_yolo.HardSigmoid, "forward", _other_hard_sigmoid),),
    ),
    Fault(
        "no identity branch",
        "forget the third branch of a RepVGG block",
        "layers",
        GOLD,
        r"backbone\.ERBlock_\d\.1\..*|neck\.(Rep_\w\d|low_IFM)\..*",
        (Change(gold_yolo.RepVGGBlock, "forward", lambda original: _without_identity),),
    ),
    Fault(
        "attention scaled",
        "divide by the root of the key's length where the published code doesn't",
        "attention",
        GOLD,
        r"neck\.high_IFM\.transformer_blocks\.\d\.attn",
        (becomes(gold_yolo.Attention, "forward", _scaled_attention),),
    ),
    Fault(
        "shortcut without pooling",
        "build ResNet's shortcut where ResNet-vd pools first",
        "resizing and pooling",
        RT_DETR,
        r"backbone\.res_layers\.\d\.blocks\.0\.short(\.pool)?",
        (becomes(rt_detr.PooledShortcut, "forward", _strided_shortcut),),
    ),
)
