"""Faults in criteria: values, averages, and gradients that values don't show."""

from dataclasses import replace

import numpy as np

from lib.alignment.exam.planting import Change, Fault, becomes
from lib.backend import abs, binary_cross_entropy_with_logits, exp, maximum, sigmoid, sum, tensor
from lib.losses import gold_yolo, nanodet_plus, rt_detr
from lib.models import gold_yolo as gold
from lib.models import nanodet_plus as nanodet

NANODET, GOLD, DISTRIBUTIONS, RT_DETR, KIND = "NanoDet-Plus", "Gold-YOLO N", "Gold-YOLO S", "RT-DETR", "losses"
ROOT = r"\(the model itself\)"


def _averaged(original):
    """By the images of the batch, beside the positives."""
    return lambda logits, qualities: original(logits, qualities) / logits.shape[0]


def _detached_factor(logits, qualities):
    distance = (qualities - sigmoid(logits)).detach()
    return sum(binary_cross_entropy_with_logits(logits, qualities, reduction="none") * distance * distance)


def _bins_off_by_one(original):
    """The right neighbour's share goes to the bin after it."""
    return lambda positives: np.roll(original(positives), 1, 2)


def _next_class(original):
    def positives(self, *arguments):
        found = original(self, *arguments)
        return replace(found, labels=(found.labels + 1) % self.num_classes)

    return positives


def _without_hull(original):
    """IoU's loss under GIoU's name: the hull as large as the union."""

    def loss(predicted, target):
        iou, _, _, _, _ = gold_yolo._compared(predicted, target)
        return 1 - iou

    return loss


def _without_angle(predicted, target):
    """SIoU without its angle."""
    iou, _, hull, own, other = gold_yolo._compared(predicted, target)
    difference = predicted - tensor(target)
    offset = (difference[:, 2:] - difference[:, :2]) * 0.5
    distance = 2 - sum(exp((offset * offset) / (hull * hull) * -2.0), 1)
    mismatch = 1 - exp(-(abs(own - other) / maximum(own, other)))
    square = mismatch * mismatch
    return 1 - iou + (distance + sum(square * square, 1)) * 0.5


def _one_group(original):
    """Divided by the boxes, not by the boxes of all groups."""

    def denoised(meta, true):
        found = original(meta, true)
        return replace(found, weight=found.weight * meta["dn_num_group"])

    return denoised


def _without_encoder(original):
    def call(self, outputs, targets, **options):
        found = original(self, outputs, targets, **options)
        last = max((name for name in found if "_aux_" in name), key=lambda name: name.rsplit("_", 1)[1]).rsplit("_", 1)[
            1
        ]
        return {name: value for name, value in found.items() if not name.endswith(f"_aux_{last}")}

    return call


def _kept_unscaled(original):
    """What is kept is not scaled up."""

    def drop(self, x, random):
        found = original(self, x, random)
        return found if random is None or self.drop == 0 else found * (1 - self.drop)

    return drop


FAULTS = (
    Fault(
        "loss averaging",
        "average over the batch what is divided by the positives already",
        KIND,
        NANODET,
        r"(aux_)?loss_qfl",
        (Change(nanodet_plus, "quality_focal", _averaged),),
    ),
    Fault(
        "distribution target off by one",
        "count the bins of a side from 1 in its loss",
        KIND,
        NANODET,
        r"(aux_)?loss_dfl",
        (Change(nanodet_plus, "_distance_shares", _bins_off_by_one),),
    ),
    Fault(
        "labels off by one",
        "train on labels that count the background",
        KIND,
        NANODET,
        r"(aux_)?loss_qfl",
        (Change(nanodet_plus.Criterion, "positives", _next_class),),
    ),
    Fault(
        "focal factor detached",
        "let no gradient flow through the focal factor",
        "gradients",
        NANODET,
        r"criterion",
        (becomes(nanodet_plus, "quality_focal", _detached_factor),),
    ),
    Fault(
        "detached an epoch late",
        "cut the auxiliary branch off one epoch late",
        "gradients",
        NANODET,
        ROOT,
        (becomes(nanodet, "DETACH_EPOCH", 11),),
    ),
    Fault(
        "IoU for GIoU",
        "leave the hull out of GIoU",
        KIND,
        DISTRIBUTIONS,
        r"loss_iou",
        (Change(gold_yolo, "giou_loss", _without_hull),),
    ),
    Fault(
        "distribution weight",
        "weigh the distribution loss by 1.5, as YOLOv8 does",
        KIND,
        DISTRIBUTIONS,
        r"loss_dfl",
        (becomes(gold_yolo, "DFL_WEIGHT", 1.5),),
    ),
    Fault(
        "SIoU without its angle",
        "leave the angle out of SIoU",
        KIND,
        GOLD,
        r"loss_iou",
        (becomes(gold_yolo, "siou_loss", _without_angle),),
    ),
    Fault(
        "drop path unscaled",
        "drop paths and forget to scale what is kept",
        KIND,
        GOLD,
        r"neck\.high_IFM\.transformer_blocks\.1",
        (Change(gold.TransformerBlock, "_drop_path", _kept_unscaled),),
    ),
    Fault(
        "varifocal weight",
        "use focal loss's 0.25 for varifocal loss's 0.75",
        KIND,
        RT_DETR,
        r"loss_vfl(_(aux|dn)_\d)?",
        (becomes(rt_detr, "ALPHA", 0.25),),
    ),
    Fault(
        "box weight",
        "weigh the L1 loss by 2 instead of 5",
        KIND,
        RT_DETR,
        r"loss_bbox(_(aux|dn)_\d)?",
        (becomes(rt_detr, "BOX_WEIGHT", 2.0),),
    ),
    Fault(
        "denoising group",
        "divide the denoising losses by the boxes of one group",
        "denoising",
        RT_DETR,
        r"loss_(vfl|bbox|giou)_dn_\d",
        (Change(rt_detr, "denoised", _one_group),),
    ),
    Fault(
        "no loss of the encoder",
        "forget the encoder's own predictions",
        KIND,
        RT_DETR,
        r"loss_(vfl|bbox|giou)_aux_2",
        (Change(rt_detr.Criterion, "__call__", _without_encoder),),
    ),
)
