"""RT-DETR's criterion: varifocal loss, L1 and GIoU of matched queries, for every decoder layer, the encoder's selection
and the denoising queries.

Follows github.com/lyuwenyu/RT-DETR, rtdetr_pytorch, at commit 068dfde (varifocal loss: arXiv:2008.13367).
Deliberate differences:
* matching and everything without a gradient (targets, IoUs, weights) is NumPy;
* normalisers and loss weights are part of the NumPy weights;
* a batch without a pair keeps one at weight 0, which gives the published zero loss and zero gradient;
* two boxes without area have IoU 0, where the published code divides 0 by 0.

Letters: n images, t tokens of all levels, q queries, k classes, g boxes of an image, s of the fullest one, m pairs of the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.alignment.margins import Margins, among, largest_noise, noise
from lib.backend import abs, binary_cross_entropy_with_logits, clamp, maximum, minimum, numpy, sum, sync, tensor
from lib.data import boxes as geometry
from lib.losses.rt_detr_matcher import TINY, Matching, costs, iou, match, matched, second_best_gap
from lib.models.rt_detr_denoising import Truth, corners, truths

ALPHA = 0.75  # varifocal weight of what is no object
BOX_WEIGHT, GIOU_WEIGHT = 5.0, 2.0


@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch (at least one row): a query, and the label and box it stands for."""

    image: np.ndarray  # (m,) int64
    query: np.ndarray  # (m,) int64
    labels: np.ndarray  # (m,) int64
    boxes: np.ndarray  # (m, 4) centre, width, height as parts of the image
    weight: float  # of each pair, 1 over the number of boxes; 0: there are no pairs, the one row stands for nothing


class Criterion:
    """outputs of RTDETR -> its losses under their published names, weights inside: their plain sum is minimised.

    loss_vfl, loss_bbox and loss_giou of the last layer; with the suffix _aux_i of an earlier layer and, the last i, of
    the encoder's selection; with _dn_i of layer i's denoising queries. Each but the last has a matching of its own.
    targets: per image a dict with boxes (g, 4) xyxy in input pixels and labels (g,), arrays.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, outputs: Mapping, targets: Sequence[Mapping], *, image_size: tuple[int, int]) -> dict:
        true, losses = truths(targets, image_size, self.num_classes), {}
        sync()  # one run of the pending graph: reading the predictions one by one would compile other kernels
        for suffix, prediction in ordinary(outputs).items():
            logits, boxes = values(prediction)
            matchings = [match(*rows, t.labels, t.boxes) for *rows, t in zip(logits, boxes, true, strict=True)]
            losses |= self._losses(suffix, prediction, pairs(matchings, true, 1))
        for index, prediction in enumerate(outputs.get("dn_aux_outputs", ())):
            losses |= self._losses(f"_dn_{index}", prediction, denoised(outputs["dn_meta"], true))
        return losses

    def match(
        self, outputs: Mapping, targets: Sequence[Mapping], image_size: tuple[int, int]
    ) -> dict[str, list[tuple]]:
        """Per ordinary prediction, by its losses' suffix, and image: (Matching, what the second cheapest would cost more)."""
        true, found = truths(targets, image_size, self.num_classes), {}
        for suffix, prediction in ordinary(outputs).items():
            rows = zip(*values(prediction), true, strict=True)
            found[suffix] = [
                (match(logits, boxes, t.labels, t.boxes), second_best_gap(costs(logits, boxes, t.labels, t.boxes)))
                for logits, boxes, t in rows
            ]
        return found

    def decisions(
        self, outputs: Mapping, targets: Sequence[Mapping], image_size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """The discrete choices behind the losses: which tokens became queries (n, t), 1 where one did; and per ordinary
        prediction the token of each image's boxes (n, s), -1 for none."""
        tokens = numpy(outputs[SELECTION])
        slots, found = _slots(targets), {SELECTION: chosen(tokens, outputs["token_scores"].shape[1])}
        for suffix, images in self.match(outputs, targets, image_size).items():
            table = np.full((len(images), slots), -1)
            for row, own, (matching, _) in zip(table, tokens, images):
                row[matching.boxes] = own[matching.queries]
            found[f"matched_tokens/{label(suffix)}"] = table
        return found

    def margins(
        self, exact: Mapping, rounded: Mapping, targets: Sequence[Mapping], image_size: tuple[int, int]
    ) -> dict[str, Margins]:
        """How far `decisions` are from others: `exact` outputs in float64, `rounded` ones for the noise."""
        true = truths(targets, image_size, self.num_classes)
        tokens, scores = ([numpy(outputs[key]) for outputs in (exact, rounded)] for key in (SELECTION, "token_scores"))
        found, count = {SELECTION: selected(*scores, tokens[0].shape[1])}, scores[0].shape[1]
        for suffix, prediction in ordinary(exact).items():
            sides = zip(tokens[0], *values(prediction)), zip(tokens[1], *values(ordinary(rounded)[suffix]))
            costed = [
                [
                    (own, costs(logits, boxes, t.labels, t.boxes))
                    for (own, logits, boxes), t in zip(side, true, strict=True)
                ]
                for side in sides
            ]
            images = [matched(*pair, count, _slots(targets)) for pair in zip(*costed)]
            floors, noises = zip(*images)
            found[f"matched_tokens/{label(suffix)}"] = Margins(
                np.arange(-1, count), np.stack(floors), largest_noise(noises), SELECTION
            )
        return found

    def _losses(self, suffix: str, prediction: Mapping, paired: Pairs) -> dict:
        logits, boxes = values(prediction)
        n, q, _ = boxes.shape
        own = boxes[paired.image, paired.query]  # (m, 4)
        rows = prediction["pred_boxes"].reshape(n * q, 4)[tensor(paired.image * q + paired.query)]
        true = paired.boxes.astype(boxes.dtype)
        shares, weights = varifocal_targets(logits, paired, iou(own, true))
        l1 = abs(rows - tensor(true)) * tensor(np.full_like(own, BOX_WEIGHT * paired.weight))
        giou = giou_loss(rows, true) * tensor(np.full_like(own[:, 0], GIOU_WEIGHT * paired.weight))
        entropy = binary_cross_entropy_with_logits(prediction["pred_logits"], tensor(shares), reduction="none")
        return {
            f"loss_vfl{suffix}": sum(entropy * tensor(weights)),
            f"loss_bbox{suffix}": sum(l1),
            f"loss_giou{suffix}": sum(giou),
        }


def ordinary(outputs: Mapping) -> dict[str, Mapping]:
    """Suffix of the losses' names -> prediction, for all that is matched; denoising queries are in none of them."""
    return {"": outputs, **{f"_aux_{index}": aux for index, aux in enumerate(outputs.get("aux_outputs", ()))}}


def _slots(targets: Sequence[Mapping]) -> int:
    """Places for the boxes of the fullest image."""
    return max((len(t["labels"]) for t in targets), default=0)


def label(suffix: str) -> str:
    """The prediction's name in records."""
    return suffix.removeprefix("_") or "final"


def values(prediction: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Class logits (n, q, k) and boxes (n, q, 4) as arrays."""
    return numpy(prediction["pred_logits"]), numpy(prediction["pred_boxes"])


def pairs(matchings: Sequence[Matching], true: Sequence[Truth], groups: int) -> Pairs:
    """The images' pairs in one list; their losses are shared by `groups` times as many as the batch has boxes."""
    image = np.repeat(np.arange(len(matchings)), [len(m.queries) for m in matchings])
    count = groups * len(np.concatenate([t.labels for t in true]))
    if image.size == 0:
        return Pairs(np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), np.zeros((1, 4)), 0.0)
    return Pairs(
        image,
        np.concatenate([m.queries for m in matchings]),
        np.concatenate([t.labels[m.boxes] for m, t in zip(matchings, true)]),
        np.concatenate([t.boxes[m.boxes] for m, t in zip(matchings, true)]),
        1 / count,
    )


def denoised(meta: Mapping, true: Sequence[Truth]) -> Pairs:
    """The fixed pairs of the denoising queries: in each group the positives stand for the image's boxes, in order."""
    groups = meta["dn_num_group"]
    fixed = [
        Matching(queries, np.tile(np.arange(len(t.labels)), groups))
        for queries, t in zip(meta["dn_positive_idx"], true, strict=True)
    ]
    return pairs(fixed, true, groups)


def varifocal_targets(logits: np.ndarray, paired: Pairs, quality: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, q, k) targets and weights of the entropy: at a pair's label its IoU is both, elsewhere there is no object.

    The weights hold 1 over the number of boxes, which is 1 for a batch without boxes.
    """
    share = paired.weight or 1.0
    targets, weights = np.zeros_like(logits), geometry.sigmoid(logits) ** 2 * (ALPHA * share)
    if paired.weight:
        at = paired.image, paired.query, paired.labels
        targets[at], weights[at] = quality, quality * share
    return targets, weights


def giou_loss(predicted, true: np.ndarray):
    """(m,) 1 - GIoU of boxes (m, 4), centre, width, height."""
    true = corners(true)
    true_low, true_high = tensor(true[:, :2]), tensor(true[:, 2:])
    half = predicted[:, 2:] * 0.5
    low, high = predicted[:, :2] - half, predicted[:, :2] + half
    overlap = _area(clamp(minimum(high, true_high) - maximum(low, true_low), min=0.0))
    hull = clamp(_area(maximum(high, true_high) - minimum(low, true_low)), min=TINY)
    union = clamp(_area(high - low) + _area(true_high - true_low) - overlap, min=TINY)
    return 2.0 - overlap / union - union / hull


def _area(extent):
    return extent[:, 0] * extent[:, 1]


def build(name: str, num_classes: int) -> Criterion:
    """One criterion for all variants."""
    return Criterion(num_classes)


def named(outputs: Mapping, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The predictions under names that records use: final, aux_i and dn_i, each with /pred_logits, /pred_boxes; features.

    What has a row per query is in the order of the queries' tokens: near-ties leave the model's own order to rounding.
    """
    tokens = numpy(outputs["selected_tokens"]) if "selected_tokens" in outputs else features[SELECTED]
    order = np.argsort(tokens, 1)
    found = {
        f"features/{name}": _ordered(array, order) if name.startswith(BY_QUERY) else array
        for name, array in features.items()
        if name != SELECTED
    }
    for suffix, prediction in ordinary(outputs).items():
        for key, array in zip(("pred_logits", "pred_boxes"), values(prediction)):
            found[f"{label(suffix)}/{key}"] = _ordered(array, order)
    for index, prediction in enumerate(outputs.get("dn_aux_outputs", ())):
        found |= {f"dn_{index}/{key}": array for key, array in zip(("pred_logits", "pred_boxes"), values(prediction))}
    return found


def chosen(tokens: np.ndarray, count: int) -> np.ndarray:
    """(n, t) 1 where one of so many tokens is among the selected ones (n, q), 0 elsewhere."""
    found = np.zeros((len(tokens), count), np.int64)
    np.put_along_axis(found, tokens, 1, 1)
    return found


def selected(exact: np.ndarray, rounded: np.ndarray, count: int) -> Margins:
    """How far the choice of the `count` tokens of largest scores (n, t) is from others."""
    floor = noise(exact, rounded, count)
    return Margins(np.arange(2), among(exact, floor, count), {"class logit": float(np.max(floor))})


def selection(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """That choice in inference, from named features."""
    return {SELECTION: chosen(features[SELECTED], features[SCORES].shape[1])}


def selection_margins(exact: Mapping[str, np.ndarray], rounded: Mapping[str, np.ndarray]) -> dict[str, Margins]:
    """How far it is from others."""
    scores = (np.max(features[SCORES], 2) for features in (exact, rounded))
    return {SELECTION: selected(*scores, exact[SELECTED].shape[1])}


SELECTION = "selected_tokens"  # the name of the choice
SCORES = "decoder.enc_score_head"  # among the features: by what tokens are selected
SELECTED = "decoder.selected_tokens"  # among the features: which tokens the queries are
BY_QUERY = ("decoder.decoder.", "decoder.dec_", "decoder.init_", "decoder.enc_topk_")  # features with a row per query


def _ordered(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    return np.take_along_axis(array, order[:, :, None], 1)
