"""RT-DETR: ResNet-vd backbone, hybrid encoder, and a transformer decoder that needs no suppression (arXiv:2304.08069).

Follows github.com/lyuwenyu/RT-DETR, rtdetr_pytorch, at commit 068dfde. The parts are rt_detr_backbone, rt_detr_encoder,
rt_detr_decoder and rt_detr_denoising. Deliberate differences:
* the encoder's box head runs on the selected tokens, the only ones whose boxes are used;
* a decoder box head runs once per layer and serves both of its predictions;
* position embedding and anchors belong to the map at hand, in eval() too: the published ones fit one size;
* an input with fewer tokens than queries makes every token a query;
* denoising noise comes from the NumPy generator of `step`, in the published order of draws;
* a batch without boxes gives the denoising embedding the gradient 0, where the published code has none;
* the first weights have the published distributions but come from NumPy generators keyed by (seed, name), and ImageNet
  weights are never downloaded: a frozen stem without a checkpoint stays random.
"""

import re
import zlib
from dataclasses import dataclass

import numpy as np

from lib.backend import interpolate, load_state, nn, numpy
from lib.errors import UserError
from lib.models.rt_detr_backbone import PResNet
from lib.models.rt_detr_decoder import HEADS, LEVELS, POINTS, RTDETRTransformer
from lib.models.rt_detr_denoising import denoising, truths
from lib.models.rt_detr_encoder import HybridEncoder, RepVggBlock
from lib.models.step import ParameterGroup, Step

STRIDE = 32  # of the coarsest map
PRIOR = -np.log(99)  # first bias of class logits: one query in a hundred is an object

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
        name: (name, None)
        for name in (
            "backbone.conv1",
            *(f"backbone.res_layers.{i}" for i in range(4)),
            *(f"encoder.input_proj.{i}" for i in range(3)),
            "encoder.encoder.0",
            "encoder.lateral_convs.0",
            "encoder.fpn_blocks.0",
            "encoder.lateral_convs.1",
            "encoder.fpn_blocks.1",
            "encoder.downsample_convs.0",
            "encoder.pan_blocks.0",
            "encoder.downsample_convs.1",
            "encoder.pan_blocks.1",
            *(f"decoder.input_proj.{i}" for i in range(3)),
            "decoder.enc_output",
            "decoder.enc_score_head",
        )
    },
    **{
        f"decoder.{name}": ("decoder.selection", element)
        for element, name in enumerate(
            ("init_target", "init_ref_points_unact", "enc_topk_bboxes", "enc_topk_logits", "selected_tokens")
        )
    },
    **{
        name: (name, None)
        for i in range(3)
        for name in (  # every variant runs three layers, if not more
            f"decoder.decoder.layers.{i}.norm1",
            f"decoder.decoder.layers.{i}.cross_attn",
            f"decoder.decoder.layers.{i}.norm2",
            f"decoder.decoder.layers.{i}",
            f"decoder.dec_bbox_head.{i}",
        )
    },
}


class RTDETR(nn.Module):
    """images (n, 3, h, w), h and w multiples of 32, values 0 … 1 -> {"pred_logits" (n, q, k), "pred_boxes" (n, q, 4)}.

    Boxes are centre, width, height as parts of the image. In train() also "aux_outputs", those of the earlier layers and
    of the encoder, and with denoising "dn_aux_outputs", those of all layers for the denoising queries, and "dn_meta";
    "selected_tokens" (n, q) says which tokens the queries are, to tell queries apart whose order is nearly a tie, and
    "token_scores" (n, m) by what they were chosen.
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
    found = {pattern: [] for pattern, _, _ in rules}
    for name, _ in model.named_parameters():
        if name not in model.frozen_names:
            found[next(pattern for pattern in found if re.search(pattern, name))].append(name)
    return tuple(ParameterGroup(tuple(found[pattern]), factor, decays) for pattern, factor, decays in rules)


def build(name: str, num_classes: int, seed: int) -> nn.Module:
    model = RTDETR(VARIANTS[name], num_classes)
    shapes = {entry: numpy(value).shape for entry, value in model.named_parameters()}
    load_state(model, {entry: initial_value(entry, shapes, seed) for entry in shapes})
    return model


# ------------------------------------------------------------------------------------------------- first weights
def initial_value(entry: str, shapes: dict[str, tuple[int, ...]], seed: int) -> np.ndarray:
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
    if re.search(r"sampling_offsets|attention_weights|bbox_head.*layers\.2\.", entry):
        return 0.0
    if re.search(r"score_head.*bias", entry):
        return PRIOR
    if re.search(r"in_proj_bias|(out_proj|value_proj|output_proj)\.bias", entry) or (
        len(owner) == 1 and entry.endswith("bias")
    ):
        return 0.0
    return 1.0 if len(shape) == 1 and entry.endswith("weight") else None


def _directions() -> np.ndarray:
    """First sampling offsets: each head looks along its own direction, its points at distances 1, 2, …"""
    angles = 2 * np.pi * np.arange(HEADS) / HEADS
    rays = np.stack([np.cos(angles), np.sin(angles)], 1)
    rays /= np.amax(np.abs(rays), 1, keepdims=True)
    steps = np.arange(1, POINTS + 1)[:, None]
    return np.tile((rays[:, None, None] * steps), (1, LEVELS, 1, 1)).reshape(-1).astype(np.float32)
