"""Gold-YOLO N, S, M, L: a RepVGG or CSP backbone, a gather-and-distribute neck, a decoupled anchor-free head.

Follows github.com/huawei-noah/Efficient-Computing, Detection/Gold-YOLO at commit 225ddd2e (arXiv:2309.11331). Blocks are in
`gold_yolo_blocks.py`, the neck in `gold_yolo_neck.py`, the heads in `gold_yolo_heads.py`. Deliberate differences:
* in train() the model returns class logits and raw distances only; published are the logits' sigmoids, and features that
  no loss reads;
* detect.proj and detect.proj_conv.weight are buffers; published as parameters that are not trained;
* a resize or pooling to the size a map already has is left out (equal to it to the bit);
* the neck has no branch for a fused map larger than the level it enters, which sizes that are multiples of 32 never have;
* drop-path masks come from NumPy generators (`TopBasicLayer`), the first weights have the published distributions but come
  from NumPy generators keyed by (seed, name);
* merging RepVGG branches computes in float64 and keeps eval() as it was: published, it leaves norms in train().

Letters: n images, p cells of all levels, k classes, b bins.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lib.backend import cat, load_state, named_state, nn, numpy, sigmoid, tensor
from lib.data import boxes
from lib.errors import UserError
from lib.models.step import ParameterGroup, Step

from .gold_yolo_blocks import SPPF, BepC3, ConvWrapper, RepBlock, RepVGGBlock, SimCSPSPPF, dtype_name
from .gold_yolo_heads import BINS, STRIDES, AnchorHead, Head, SidesHead
from .gold_yolo_neck import Neck

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
# The published training has two steps: with a second, anchor-based branch, then distilled from what that gave. Both need
# distributions; the students of sizes M and L are the plain models.
VARIANTS |= {
    f"{name}-fuse-ab": replace(variant, reg_max=BINS - 1, head="fuse-ab") for name, variant in VARIANTS.items()
} | {
    f"{name}-distill": replace(VARIANTS[name], reg_max=BINS - 1, head="distill")
    for name in ("gold-yolo-n", "gold-yolo-s")
}
DROP_PATH = 0.1  # of the last transformer block

# Features worth comparing, in order of execution: name -> (module path, which element of its output; None: all of it).
# The third transformer block of size L is left out: high_IFM is its output.
INTERMEDIATES = {
    name: (name, None)
    for name in (
        "backbone.stem",
        "backbone.ERBlock_2.0",
        "backbone.ERBlock_2.1",
        "backbone.ERBlock_3",
        "backbone.ERBlock_4",
        "backbone.ERBlock_5.0",
        "backbone.ERBlock_5.1",
        "backbone.ERBlock_5",
        "neck.low_FAM",
        *(f"neck.low_IFM.{i}" for i in range(5)),
        "neck.reduce_layer_c5",
        "neck.LAF_p4",
        "neck.Inject_p4.local_embedding",
        "neck.Inject_p4.global_act",
        "neck.Inject_p4.global_embedding",
        "neck.Inject_p4",
        "neck.Rep_p4",
        "neck.reduce_layer_p4",
        "neck.LAF_p3",
        "neck.Inject_p3",
        "neck.Rep_p3",
        "neck.high_FAM",
        *(f"neck.high_IFM.transformer_blocks.{i}{part}" for i in range(2) for part in (".attn", ".mlp", "")),
        "neck.high_IFM",
        "neck.conv_1x1_n",
        "neck.LAF_n4",
        "neck.Inject_n4",
        "neck.Rep_n4",
        "neck.LAF_n5",
        "neck.Inject_n5",
        "neck.Rep_n5",
        *(
            f"detect.{part}.{level}"
            for level in range(3)
            for part in ("stems", "cls_convs", "cls_preds", "reg_convs", "reg_preds")
        ),
    )
}


class Backbone(nn.Module):
    """images (n, 3, h, w) -> features at strides 4, 8, 16, 32 with 2, 4, 8, 16 times the stem's channels."""

    def __init__(self, variant: Variant, block: Callable, stage: Callable, act: Callable):
        super().__init__()
        widths = [variant.width * factor for factor in (1, 2, 4, 8, 16)]
        pooling = (SimCSPSPPF if variant.cross_pooling else SPPF)(widths[4], act)
        self.stem = block(3, widths[0], 2)
        self.ERBlock_2 = nn.Sequential(block(widths[0], widths[1], 2), stage(widths[1], variant.stages[0]))
        self.ERBlock_3 = nn.Sequential(block(widths[1], widths[2], 2), stage(widths[2], variant.stages[1]))
        self.ERBlock_4 = nn.Sequential(block(widths[2], widths[3], 2), stage(widths[3], variant.stages[2]))
        self.ERBlock_5 = nn.Sequential(block(widths[3], widths[4], 2), stage(widths[4], variant.stages[3]), pooling)

    def forward(self, images):
        c2 = self.ERBlock_2(self.stem(images))
        c3 = self.ERBlock_3(c2)
        c4 = self.ERBlock_4(c3)
        return c2, c3, c4, self.ERBlock_5(c4)


class GoldYolo(nn.Module):
    """images (n, 3, h, w), h and w multiples of 32, RGB in 0 … 1.

    train(): class logits (n, p, k), distances (n, p, 4 * b), left, top, right, bottom in strides, and what else its head has.
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
        self.neck = Neck(
            variant.width, variant.fused, block, stage, *variant.transformer, DROP_PATH, variant.n5_from_p4
        )
        self.detect = HEADS[variant.head](self.neck.channels, num_classes, variant.reg_max)

    def forward(self, images):
        if any(side % STRIDES[-1] or not side for side in images.shape[2:]):
            raise UserError(
                f"Gold-YOLO: the input is {images.shape[2]} x {images.shape[3]} pixels; give a size whose sides are "
                f"multiples of {STRIDES[-1]}"
            )
        maps = self.neck(*self.backbone(images), self.step.random if self.training else None)
        outputs = self.detect(maps)
        return outputs if self.training else self._decode(*outputs, tuple(images.shape[2:]))

    def _decode(self, logits, sides, image_size: tuple[int, int]):
        cells = boxes.priors(image_size, STRIDES).astype(dtype_name(logits))[None]
        points, stride = tensor(cells[..., :2] + cells[..., 2:] / 2), tensor(cells[..., 2:])  # (1, p, 2), (1, p, 1)
        low, high = sides[:, :, :2], sides[:, :, 2:]
        certain = tensor(np.ones((logits.shape[0], logits.shape[1], 1), cells.dtype))
        return cat((points + (high - low) / 2 * stride, (low + high) * stride, certain, sigmoid(logits)), 2)

    def deploy(self) -> nn.Module:
        """Merge the branches of every RepVGG block in place, with the statistics of eval(); returns the model."""
        for _, module in self.named_modules():
            if isinstance(module, RepVGGBlock):
                module.deploy()
        return self


def build(name: str, num_classes: int, seed: int) -> nn.Module:
    return build_variant(VARIANTS[name], num_classes, seed)


def build_variant(variant: Variant, num_classes: int, seed: int) -> nn.Module:
    """A model of any Variant, published under a name or not."""
    model = GoldYolo(variant, num_classes)
    shapes = {entry: numpy(value).shape for entry, value in named_state(model)}
    load_state(model, {entry: initial_value(entry, shapes, seed) for entry, _ in model.named_parameters()})
    return model


def initial_value(entry: str, shapes: dict[str, tuple[int, ...]], seed: int) -> np.ndarray:
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
