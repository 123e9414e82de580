"""Faults in RT-DETR's attention, selection, denoising and decoder."""

import numpy as np

from lib import backend
from lib.alignment.exam.planting import Change, Fault, attribute, becomes, built
from lib.backend import cat, interpolate, nn, stack
from lib.models import rt_detr

RT_DETR = "RT-DETR"
ATTENTION, SELF = r"decoder\.decoder\.layers\.\d\.cross_attn", r"(encoder\.encoder|decoder\.decoder)\..*self_attn"


def _values_with_position(original):
    """The position is added to what values come from too."""
    return lambda self, x, position, mask=None: original(self, x + position, position * 0.0, mask)


class TanhGELU(nn.Module):
    """The approximation by a hyperbolic tangent."""

    def forward(self, x):
        inner = (x + x * x * x * 0.044715) * (2 * (2 / np.pi) ** 0.5)
        return x * backend.sigmoid(inner)  # (1 + tanh(z)) / 2 is the sigmoid of 2 z


def _tanh_gelu(model):
    model.encoder.encoder[0].layers[0].act = TanhGELU()


def _corners_aligned(original):
    """-1 and 1 are the centres of the outermost cells."""

    def sample(plane, grid):
        h, w = plane.shape[2], plane.shape[3]
        x, y = grid[:, :, :, 0] * ((w - 1) / w), grid[:, :, :, 1] * ((h - 1) / h)
        return original(plane, stack((x, y), 3))

    return sample


def _rows_for_columns(original):
    return lambda plane, grid: original(plane, stack((grid[:, :, :, 1], grid[:, :, :, 0]), 3))


def _anchors_at_corners(original):
    """Cells' corners for their centres."""

    def anchors(sizes):
        logits, valid = original(sizes)
        side = np.concatenate([np.tile([[1 / w, 1 / h, 0, 0]], (h * w, 1)) for h, w in sizes]) / 2
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            boxes = 1 / (1 + np.exp(-logits.astype(np.float64))) - side
            moved = np.where(valid, np.log(boxes / (1 - boxes)), np.inf).astype(np.float32)
        return moved, valid

    return anchors


def _interleaved(original):
    """Sine and cosine of each frequency side by side."""

    def embedding(height, width, channels):
        parts = np.split(original(height, width, channels), 4, 2)
        return np.concatenate(
            [np.stack(pair, 3).reshape(*parts[0].shape[:2], -1) for pair in (parts[:2], parts[2:])], 2
        )

    return embedding


def _indices_for_values(original):
    """`max(dim)` gives values and indices; the second part is taken."""
    return lambda x, axis: backend.argmax(x, axis) * 1.0


def _fusion_reversed(original):
    """The coarse map behind the fine one."""

    def forward(self, x):
        half = x.shape[1] // 2
        return original(self, cat((x[:, half:], x[:, :half]), 1))

    return forward


def _seen_the_wrong_way(original):
    return lambda self, others: original(self, others).T.copy()


def _refined_with_history(original):
    """The boxes that a layer starts from keep their history."""

    def decode(self, x, boxes, memory, sizes, mask):
        predictions = []
        for index, (layer, box_head) in enumerate(zip(self.decoder.layers, self.dec_bbox_head)):
            x = layer(x, self.query_pos_head(boxes), boxes, memory, sizes, mask)
            boxes = backend.sigmoid(box_head(x) + rt_detr.inverse_sigmoid(boxes))
            predictions.append((self.dec_score_head[index](x), boxes))
        return predictions if self.training else [predictions[self.last]]

    return decode


FAULTS = (
    Fault(
        "position in the values",
        "add the position to queries, keys and values alike",
        "attention",
        RT_DETR,
        SELF,
        (Change(rt_detr.SelfAttention, "forward", _values_with_position),),
    ),
    Fault(
        "GELU by tanh",
        "use the approximation of GELU",
        "layers",
        RT_DETR,
        r"encoder\.encoder\.0\.layers\.0\.act",
        (built(_tanh_gelu),),
    ),
    Fault(
        "layer norm eps",
        "give a layer norm eps 1e-6",
        "norms",
        RT_DETR,
        r"decoder\.decoder\.layers\.0\.norm1",
        (attribute("decoder.decoder.layers.0.norm1", "eps", 1e-6),),
    ),
    Fault(
        "sampling with align_corners",
        "sample the memory with align_corners=True",
        "attention",
        RT_DETR,
        ATTENTION,
        (Change(rt_detr, "grid_sample", _corners_aligned),),
    ),
    Fault(
        "x and y of sampling points",
        "read sampling points as y, x",
        "attention",
        RT_DETR,
        ATTENTION,
        (Change(rt_detr, "grid_sample", _rows_for_columns),),
    ),
    Fault(
        "anchors at corners",
        "forget the half cell in the anchors",
        "attention",
        RT_DETR,
        r"decoder",
        (Change(rt_detr, "anchors", _anchors_at_corners),),
    ),
    Fault(
        "interleaved embedding",
        "interleave sine and cosine of the position embedding",
        "attention",
        RT_DETR,
        r"encoder",
        (Change(rt_detr, "position_embedding", _interleaved),),
    ),
    Fault(
        "bilinear for nearest",
        "upsample bilinearly where the nearest value is meant",
        "resizing and pooling",
        RT_DETR,
        r"encoder",
        (
            becomes(
                rt_detr.HybridEncoder,
                "_double",
                lambda x: interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
            ),
        ),
    ),
    Fault(
        "fusion order",
        "concatenate the fine map in front of the coarse one",
        "layers",
        RT_DETR,
        r"encoder\.(fpn|pan)_blocks\.\d",
        (Change(rt_detr.CSPRepLayer, "forward", _fusion_reversed),),
    ),
    Fault(
        "max(dim) misuse",
        "take the indices of max(dim) for its values",
        "attention",
        RT_DETR,
        r"decoder\.selection",
        (Change(rt_detr, "amax", _indices_for_values),),
    ),
    Fault(
        "denoising mask transposed",
        "let ordinary queries see the noised targets",
        "denoising",
        RT_DETR,
        r"dn_\d.*|.*denoising.*",
        (Change(rt_detr.Denoising, "blocks", _seen_the_wrong_way),),
    ),
    Fault(
        "denoising groups",
        "divide the number of denoising queries by positives and negatives",
        "denoising",
        RT_DETR,
        r"dn_\d.*|.*denoising.*",
        (becomes(rt_detr, "NOISED_QUERIES", 10),),
    ),
    Fault(
        "boxes keep their history",
        "forget detach() between decoder layers",
        "attention",
        RT_DETR,
        r"decoder",
        (Change(rt_detr.RTDETRTransformer, "_decode", _refined_with_history),),
    ),
)
