"""Faults in RT-DETR's attention, selection, denoising and decoder."""

import numpy as np

from lib import backend
from lib.backend import cat, interpolate, nn, stack
from lib.models import rt_detr
from notebooks.exam.planting import Faults, attribute, becomes, built

FAULTS = Faults()
attention, layers, denoising, norms, resizing = (
    FAULTS.of(kind, "RT-DETR") for kind in ("attention", "layers", "denoising", "norms", "resizing and pooling")
)
SELF, CROSS = r"(encoder\.encoder|decoder\.decoder)\..*self_attn", r"decoder\.decoder\.layers\.\d\.cross_attn"
QUERIES = r"dn_\d.*|.*denoising.*"


@attention.code("position in the values", SELF, rt_detr.SelfAttention, "forward")
def _(original, self, x, position, mask=None):
    """add the position to queries, keys and values alike"""
    return original(self, x + position, position * 0.0, mask)


class TanhGELU(nn.Module):
    """The approximation by a hyperbolic tangent."""

    def forward(self, x):
        inner = (x + x * x * x * 0.044715) * (2 * (2 / np.pi) ** 0.5)
        return x * backend.sigmoid(inner)  # (1 + tanh(z)) / 2 is the sigmoid of 2 z


layers.add(
    "GELU by tanh",
    "use the approximation of GELU",
    r"encoder\.encoder\.0\.layers\.0\.act",
    built(lambda model: setattr(model.encoder.encoder[0].layers[0], "act", TanhGELU())),
)
norms.add(
    "layer norm eps",
    "give a layer norm eps 1e-6",
    r"decoder\.decoder\.layers\.0\.norm1",
    attribute("decoder.decoder.layers.0.norm1", "eps", 1e-6),
)


@attention.code("sampling with align_corners", CROSS, rt_detr, "grid_sample")
def _(original, plane, grid):
    """sample the memory with align_corners=True"""
    h, w = plane.shape[2], plane.shape[3]  # -1 and 1 are the centres of the outermost cells
    return original(plane, stack((grid[:, :, :, 0] * ((w - 1) / w), grid[:, :, :, 1] * ((h - 1) / h)), 3))


@attention.code("x and y of sampling points", CROSS, rt_detr, "grid_sample")
def _(original, plane, grid):
    """read sampling points as y, x"""
    return original(plane, stack((grid[:, :, :, 1], grid[:, :, :, 0]), 3))


@attention.code("anchors at corners", "decoder", rt_detr, "anchors")
def _(original, sizes):
    """forget the half cell in the anchors"""
    logits, valid = original(sizes)
    side = np.concatenate([np.tile([[1 / w, 1 / h, 0, 0]], (h * w, 1)) for h, w in sizes]) / 2
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        boxes = 1 / (1 + np.exp(-logits.astype(np.float64))) - side
        return np.where(valid, np.log(boxes / (1 - boxes)), np.inf).astype(np.float32), valid


@attention.code("interleaved embedding", "encoder", rt_detr, "position_embedding")
def _(original, height, width, channels):
    """interleave sine and cosine of the position embedding"""
    parts = np.split(original(height, width, channels), 4, 2)
    pairs = (np.stack(pair, 3) for pair in (parts[:2], parts[2:]))
    return np.concatenate([pair.reshape(*pair.shape[:2], -1) for pair in pairs], 2)


resizing.add(
    "bilinear for nearest",
    "upsample bilinearly where the nearest value is meant",
    "encoder",
    becomes(
        rt_detr.HybridEncoder,
        "_double",
        lambda x: interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    ),
)


@layers.code("fusion order", r"encoder\.(fpn|pan)_blocks\.\d", rt_detr.CSPRepLayer, "forward")
def _(original, self, x):
    """concatenate the fine map in front of the coarse one"""
    half = x.shape[1] // 2
    return original(self, cat((x[:, half:], x[:, :half]), 1))


@attention.code("max(dim) misuse", r"decoder\.selection", rt_detr, "amax")
def _(original, x, axis):
    """take the indices of max(dim) for its values"""
    return backend.argmax(x, axis) * 1.0


@denoising.code("denoising mask transposed", QUERIES, rt_detr.Denoising, "blocks")
def _(original, self, others):
    """let ordinary queries see the noised targets"""
    return original(self, others).T.copy()


denoising.add(
    "denoising groups",
    "divide the number of denoising queries by positives and negatives",
    QUERIES,
    becomes(rt_detr, "NOISED_QUERIES", 10),
)


@attention.code("boxes keep their history", "decoder", rt_detr.RTDETRTransformer, "_decode")
def _(original, self, x, boxes, memory, sizes, mask):
    """forget detach() between decoder layers"""
    predictions = []
    for index, (layer, box_head) in enumerate(zip(self.decoder.layers, self.dec_bbox_head)):
        x = layer(x, self.query_pos_head(boxes), boxes, memory, sizes, mask)
        boxes = backend.sigmoid(box_head(x) + rt_detr.inverse_sigmoid(boxes))
        predictions.append((self.dec_score_head[index](x), boxes))
    return predictions if self.training else [predictions[self.last]]
