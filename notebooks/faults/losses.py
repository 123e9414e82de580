"""Faults in criteria: values, averages, and gradients that values don't show."""

from dataclasses import replace

import numpy as np

from lib.backend import abs, binary_cross_entropy_with_logits, exp, maximum, sigmoid, sum, tensor
from lib.losses import gold_yolo, nanodet_plus, rt_detr
from lib.models import gold_yolo as gold
from lib.models import nanodet_plus as nanodet
from notebooks.exam.planting import Faults, becomes

FAULTS = Faults()
of_nanodet, of_gold, of_distributions, of_rt_detr = (
    FAULTS.of("losses", subject) for subject in ("NanoDet-Plus", "Gold-YOLO N", "Gold-YOLO S", "RT-DETR")
)
gradients = FAULTS.of("gradients", "NanoDet-Plus")
QUALITY = r"(aux_)?loss_qfl"


@of_nanodet.code("loss averaging", QUALITY, nanodet_plus, "quality_focal")
def _(original, logits, qualities):
    """average over the batch what is divided by the positives already"""
    return original(logits, qualities) / logits.shape[0]


@of_nanodet.code("distribution target off by one", r"(aux_)?loss_dfl", nanodet_plus, "_distance_shares")
def _(original, positives):
    """count the bins of a side from 1 in its loss"""
    return np.roll(original(positives), 1, 2)


@of_nanodet.code("labels off by one", QUALITY, nanodet_plus.Criterion, "positives")
def _(original, self, *arguments):
    """train on labels that count the background"""
    found = original(self, *arguments)
    return replace(found, labels=(found.labels + 1) % self.num_classes)


@gradients.code("focal factor detached", "criterion", nanodet_plus, "quality_focal")
def _(original, logits, qualities):
    """let no gradient flow through the focal factor"""
    distance = (qualities - sigmoid(logits)).detach()
    return sum(binary_cross_entropy_with_logits(logits, qualities, reduction="none") * distance * distance)


gradients.add(
    "detached an epoch late",
    "cut the auxiliary branch off one epoch late",
    r"\(the model itself\)",
    becomes(nanodet, "DETACH_EPOCH", 11),
)


@of_distributions.code("IoU for GIoU", "loss_iou", gold_yolo, "giou_loss")
def _(original, predicted, target):
    """leave the hull out of GIoU"""
    return 1 - gold_yolo._compared(predicted, target)[0]


of_distributions.add(
    "distribution weight",
    "weigh the distribution loss by 1.5, as YOLOv8 does",
    "loss_dfl",
    becomes(gold_yolo, "DFL_WEIGHT", 1.5),
)


@of_gold.code("SIoU without its angle", "loss_iou", gold_yolo, "siou_loss")
def _(original, predicted, target):
    """leave the angle out of SIoU"""
    iou, _, hull, own, other = gold_yolo._compared(predicted, target)
    difference = predicted - tensor(target)
    offset = (difference[:, 2:] - difference[:, :2]) * 0.5
    distance = 2 - sum(exp((offset * offset) / (hull * hull) * -2.0), 1)
    mismatch = 1 - exp(-(abs(own - other) / maximum(own, other)))
    square = mismatch * mismatch
    return 1 - iou + (distance + sum(square * square, 1)) * 0.5


BLOCK = r"neck\.high_IFM\.transformer_blocks\.1"


@of_gold.code("drop path unscaled", BLOCK, gold.TransformerBlock, "_drop_path")
def _(original, self, x, random):
    """drop paths and forget to scale what is kept"""
    found = original(self, x, random)
    return found if random is None or self.drop == 0 else found * (1 - self.drop)


of_rt_detr.add(
    "varifocal weight",
    "use focal loss's 0.25 for varifocal loss's 0.75",
    r"loss_vfl(_(aux|dn)_\d)?",
    becomes(rt_detr, "ALPHA", 0.25),
)
of_rt_detr.add(
    "box weight",
    "weigh the L1 loss by 2 instead of 5",
    r"loss_bbox(_(aux|dn)_\d)?",
    becomes(rt_detr, "BOX_WEIGHT", 2.0),
)
denoising = FAULTS.of("denoising", "RT-DETR")


@denoising.code("denoising group", r"loss_(vfl|bbox|giou)_dn_\d", rt_detr, "denoised")
def _(original, meta, true):
    """divide the denoising losses by the boxes of one group"""
    found = original(meta, true)
    return replace(found, weight=found.weight * meta["dn_num_group"])


@of_rt_detr.code("no loss of the encoder", r"loss_(vfl|bbox|giou)_aux_2", rt_detr.Criterion, "__call__")
def _(original, self, outputs, targets, **options):
    """forget the encoder's own predictions"""
    found = original(self, outputs, targets, **options)
    last = max(name.rsplit("_", 1)[1] for name in found if "_aux_" in name)
    return {name: value for name, value in found.items() if not name.endswith(f"_aux_{last}")}
