"""What the comparison must know of each family: how records call what its models give, the discrete choices on the way
to losses and detections, and how far each of them is from another (lib.alignment.margins).

Models, criteria and post-processing know nothing of this; their own functions, which a wrong port may have planted
otherwise, give the scores that are looked at here.

Letters: n images, t tokens of all levels, q queries, p cells of all levels, k classes, g boxes of an image, s of the
fullest one, v cells inside some box.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lib import postprocess
from lib.alignment.margins import (
    Margins,
    among,
    cheapest,
    cut,
    largest_noise,
    noise,
    of_images,
    settled_by,
    suppression,
    whole,
)
from lib.alignment.verdict import ROUNDING
from lib.backend import numpy
from lib.data import boxes
from lib.families import family
from lib.losses import gold_yolo, nanodet_plus, rt_detr
from lib.models.rt_detr import truths

Arrays = dict[str, np.ndarray]
Targets = Sequence[Mapping[str, np.ndarray]]

SELECTION = "selected_tokens"  # the name of RT-DETR's choice of queries
SCORES, SELECTED = "decoder.enc_score_head", "decoder.selected_tokens"  # among the features: by what, and which tokens
BY_QUERY = ("decoder.decoder.", "decoder.dec_", "decoder.init_", "decoder.enc_topk_")  # features with a row per query
SPARE = 20  # places behind the last one from which survivors may move up
AROUND = 0.1  # of IoU: whose noise is measured, on both sides of the limit


# -------------------------------------------------------------------------------------------------- names in records
def named(name: str, outputs, features: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays of what the model gives, in train() or in eval(), under names that records use, and its features under
    "features/<name>", everything in an order that does not depend on rounding: what RT-DETR has a row per query of is
    in the order of the queries' tokens, for near-ties leave the model's own order to rounding."""
    kind = family(name)
    if kind == "rt_detr":
        return _named_rt_detr(outputs, features)
    found = {f"features/{path}": array for path, array in features.items()}
    several = isinstance(outputs, (tuple, list))
    if kind == "nanodet_plus":
        heads = ("head_out", "aux_head_out") if several else ("preds",)
        return found | dict(zip(heads, map(numpy, outputs if several else (outputs,)), strict=True))
    if several:
        logits, distances = (numpy(output) for output in outputs[:2])
        return found | {"scores": boxes.sigmoid(logits), "distances": distances}
    rows = numpy(outputs)
    return found | {"boxes": rows[:, :, :4], "scores": rows[:, :, 5:]}


def _named_rt_detr(outputs: Mapping, features: Mapping[str, np.ndarray]) -> Arrays:
    """Predictions are final, aux_i and dn_i, each with /pred_logits and /pred_boxes."""
    order = np.argsort(numpy(outputs[SELECTION]) if SELECTION in outputs else features[SELECTED], 1)[:, :, None]
    found = {
        f"features/{path}": np.take_along_axis(array, order, 1) if path.startswith(BY_QUERY) else array
        for path, array in features.items()
        if path != SELECTED
    }
    for suffix, prediction in rt_detr.ordinary(outputs).items():
        for key in ("pred_logits", "pred_boxes"):
            found[f"{_label(suffix)}/{key}"] = np.take_along_axis(numpy(prediction[key]), order, 1)
    for index, prediction in enumerate(outputs.get("dn_aux_outputs", ())):
        found |= {f"dn_{index}/{key}": numpy(prediction[key]) for key in ("pred_logits", "pred_boxes")}
    return found


def _label(suffix: str) -> str:
    """The prediction's name in records."""
    return suffix.removeprefix("_") or "final"


# ------------------------------------------------------------------------------------------ choices behind the losses
def decisions(name: str, criterion, outputs, targets: Targets, image_size: tuple[int, int]) -> Arrays:
    """The discrete choices behind the losses.

    NanoDet-Plus, Gold-YOLO: gt_inds (n, p), 0 background, j the image's j-th box; of Gold-YOLO also target_labels (n,
    p), k for background. RT-DETR: selected_tokens (n, t), 1 where one became a query; and per prediction that is
    matched the token of each image's boxes (n, s), -1 for none.
    """
    kind = family(name)
    if kind == "rt_detr":
        return _matched_tokens(criterion, outputs, targets, image_size)
    if kind == "nanodet_plus":
        return {"gt_inds": criterion.assign(numpy(outputs[-1]), targets, image_size).box}
    box = criterion.assign([numpy(output) for output in outputs[:2]], targets, image_size).box
    labels = [_labels(criterion, t)[own] for t, own in zip(targets, box, strict=True)]
    return {"gt_inds": box, "target_labels": np.stack(labels)}


def margins(name: str, criterion, exact, rounded, targets: Targets, image_size: tuple[int, int]) -> dict[str, Margins]:
    """How far `decisions` are from others: `exact` outputs in float64, `rounded` ones for the noise."""
    of = {"nanodet_plus": _nanodet_plus_margins, "gold_yolo": _gold_yolo_margins, "rt_detr": _rt_detr_margins}
    return of[family(name)](criterion, exact, rounded, targets, image_size)


def _nanodet_plus_margins(criterion, exact, rounded, targets: Targets, image_size: tuple[int, int]):
    cells = boxes.priors(tuple(image_size), nanodet_plus.STRIDES)
    rows = zip(numpy(exact[-1]), numpy(rounded[-1]), targets, strict=True)
    return {"gt_inds": of_images([_dynamic_soft_label(heads, cells, t["boxes"], t["labels"]) for *heads, t in rows])}


def _dynamic_soft_label(
    heads: Sequence[np.ndarray], cells: np.ndarray, gt_boxes: np.ndarray, gt_labels: np.ndarray
) -> tuple[np.ndarray, dict[str, float]]:
    """One image's margins (p, 1 + g) of no box and of each, and the noise of its scores, from both runs' logits."""
    found = np.tile(np.append(0.0, np.full(len(gt_boxes), np.inf)), (len(cells), 1))
    valid = np.flatnonzero(nanodet_plus.inside(cells, gt_boxes).any(1))
    if valid.size == 0:
        return found, {}
    runs = (nanodet_plus.scored(logits[valid], cells[valid], gt_boxes, gt_labels) for logits in heads)
    (iou, cost), (other_iou, other_cost) = runs
    floor = noise(-cost.T, -other_cost.T, nanodet_plus.TOP_K)  # (g, 1)
    total = max(np.abs(nanodet_plus.best_ious(iou) - nanodet_plus.best_ious(other_iou)).max(), ROUNDING)
    found[valid] = dynamic_k(iou, cost, floor, total)
    return found, {"cost": float(floor.max()), "sum of IoUs": float(total)}


def dynamic_k(iou: np.ndarray, cost: np.ndarray, floor: np.ndarray, total: float) -> np.ndarray:
    """(v, 1 + g) margins of nanodet_plus.settled: floor (g, 1) of the boxes' costs, total of the sum of best IoUs.

    A box claims a cell if some number of cells is its own and the cell is among so many cheapest ones.
    """
    most = min(nanodet_plus.TOP_K, len(cost))
    claims = np.full((*cost.T.shape, 2), np.inf)  # (g, v, 2) not, and claimed
    for count, reached in enumerate(whole(nanodet_plus.best_ious(iou), total, most).T, 1):
        claims = np.minimum(claims, np.maximum(reached[:, None, None], among(-cost.T, floor, count)))
    return settled_by(claims.transpose(1, 0, 2), -cost, floor.T)


def _gold_yolo_margins(criterion, exact, rounded, targets: Targets, image_size: tuple[int, int]):
    runs = [numpy(output) for outputs in (exact, rounded) for output in outputs[:2]]
    cells = criterion.cells(image_size)
    images = [_task_aligned(criterion, rows[:2], rows[2:], t, cells) for *rows, t in zip(*runs, targets, strict=True)]
    kinds = np.unique(np.concatenate([_labels(criterion, t) for t in targets]))
    by_label = [
        np.stack([np.min(floors[:, : len(own)][:, own == label], 1, initial=np.inf) for label in kinds], 1)
        for (floors, _), own in zip(images, (_labels(criterion, t) for t in targets))
    ]
    by_box = of_images(images)
    return {"gt_inds": by_box, "target_labels": Margins(kinds, np.stack(by_label), by_box.noise)}


def _labels(criterion, target: Mapping[str, np.ndarray]) -> np.ndarray:
    """(1 + g,) the label of no box, which is k, and of each."""
    return np.append(criterion.num_classes, target["labels"])


def _task_aligned(
    criterion, exact: Sequence[np.ndarray], rounded: Sequence[np.ndarray], target: Mapping, cells: np.ndarray
) -> tuple[np.ndarray, dict[str, float]]:
    """One image's margins (p, 1 + g) of no box and of each, and the noise, from both runs' logits and distances."""
    gt_boxes, gt_labels = target["boxes"].astype(np.float64), target["labels"]
    if len(gt_boxes) == 0 or criterion.epoch < criterion.atss_epochs:  # no score decides: geometry, or nothing at all
        assigned = criterion.assign_image(*exact, target, cells).box
        return np.where(assigned[:, None] == np.arange(len(gt_boxes) + 1), 0.0, np.inf), {}
    count = criterion.top_k or gold_yolo.TAL_TOP_K
    inside = gold_yolo.contains(gt_boxes, gold_yolo.centres(cells))
    (overlap, metric), (other_overlap, other_metric) = (
        gold_yolo.aligned(boxes.sigmoid(logits), gold_yolo.predicted_boxes(distances, cells), gt_boxes, gt_labels)
        for logits, distances in (exact, rounded)
    )
    floor = noise(metric * inside, other_metric * inside, count), noise(overlap, other_overlap, count)  # (g, 1) each
    claims = np.where(inside[:, :, None], among(metric * inside, floor[0], count), [0.0, np.inf])  # (g, p, 2)
    found = settled_by(claims.transpose(1, 0, 2), overlap.T, floor[1].T)
    return found, {"alignment metric": float(floor[0].max()), "IoU": float(floor[1].max())}


def _matched_tokens(criterion, outputs: Mapping, targets: Targets, image_size: tuple[int, int]) -> Arrays:
    tokens = numpy(outputs[SELECTION])
    found = {SELECTION: _chosen(tokens, outputs["token_scores"].shape[1])}
    true = truths(targets, image_size, criterion.num_classes)
    for suffix, prediction in rt_detr.ordinary(outputs).items():
        table = np.full((len(true), _slots(targets)), -1)
        for row, own, matching in zip(table, tokens, rt_detr.match(prediction, true)):
            row[matching.boxes] = own[matching.queries]
        found[f"matched_tokens/{_label(suffix)}"] = table
    return found


def _rt_detr_margins(criterion, exact: Mapping, rounded: Mapping, targets: Targets, image_size: tuple[int, int]):
    true = truths(targets, image_size, criterion.num_classes)
    tokens, scores = ([numpy(outputs[key]) for outputs in (exact, rounded)] for key in (SELECTION, "token_scores"))
    found, count = {SELECTION: selected(*scores, tokens[0].shape[1])}, scores[0].shape[1]
    for suffix in rt_detr.ordinary(exact):
        costed = [
            [
                (own, rt_detr.costs(logits, predicted, t.labels, t.boxes))
                for own, logits, predicted, t in zip(
                    chosen, *rt_detr.values(rt_detr.ordinary(outputs)[suffix]), true, strict=True
                )
            ]
            for chosen, outputs in zip(tokens, (exact, rounded))
        ]
        floors, noises = zip(*(_matched(*pair, count, _slots(targets)) for pair in zip(*costed)))
        found[f"matched_tokens/{_label(suffix)}"] = Margins(
            np.arange(-1, count), np.stack(floors), largest_noise(noises), SELECTION
        )
    return found


def _matched(
    exact: tuple[np.ndarray, np.ndarray], rounded: tuple[np.ndarray, np.ndarray], count: int, slots: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Margins (slots, 1 + count) of an image's boxes to be given no token and each of all, and the noise of the costs.

    exact, rounded: which tokens the queries are (q,), and costs (q, g), g <= q. Tokens that are no queries can't be
    given. Slots beyond the boxes are given none.
    """
    (tokens, cost), (others, other) = exact, rounded
    held = cost.shape[1]
    found = np.full((slots, 1 + count), np.inf)
    found[held:, 0] = 0
    if not held:
        return found, {}
    _, ours, theirs = np.intersect1d(tokens, others, return_indices=True)
    floor = noise(-cost[ours].T, -other[theirs].T, held)
    found[:held, 1 + tokens] = cheapest(cost.T, np.broadcast_to(floor, cost.T.shape))
    return found, {"cost": float(floor.max())}


def _slots(targets: Targets) -> int:
    """Places for the boxes of the fullest image."""
    return max((len(t["labels"]) for t in targets), default=0)


# --------------------------------------------------------------------------------------- choices on the way to
# detections
def selection(features: Mapping[str, np.ndarray]) -> Arrays:
    """The discrete choices that inference takes on its way, from its features: RT-DETR's queries alone."""
    if SELECTED not in features:
        return {}
    return {SELECTION: _chosen(features[SELECTED], features[SCORES].shape[1])}


def selection_margins(exact: Mapping[str, np.ndarray], rounded: Mapping[str, np.ndarray]) -> dict[str, Margins]:
    """How far these choices are from others: `exact` features in float64, `rounded` ones for the noise."""
    if SELECTED not in exact:
        return {}
    scores = (np.max(features[SCORES], 2) for features in (exact, rounded))
    return {SELECTION: selected(*scores, exact[SELECTED].shape[1])}


def _chosen(tokens: np.ndarray, count: int) -> np.ndarray:
    """(n, t) 1 where one of so many tokens is among the selected ones (n, q), 0 elsewhere."""
    found = np.zeros((len(tokens), count), np.int64)
    np.put_along_axis(found, tokens, 1, 1)
    return found


def selected(exact: np.ndarray, rounded: np.ndarray, count: int) -> Margins:
    """How far the choice of the `count` tokens of largest scores (n, t) is from others."""
    floor = noise(exact, rounded, count)
    return Margins(np.arange(2), among(exact, floor, count), {"class logit": float(np.max(floor))})


def near_misses(
    name: str, exact, rounded, image_size: tuple[int, int], most: float
) -> tuple[np.ndarray, dict[str, float]]:
    """Of one image what suppression and the last place might decide otherwise: (k, 7) x1, y1, x2, y2, score, label,
    margin of candidates at most so many floors from their other fate, and the floors.

    exact, rounded: outputs in float64, and in float32 for the noise of IoUs and scores. Nothing where nothing is
    suppressed: there scores alone decide.
    """
    if (compete := postprocess.CANDIDATES.get(family(name))) is None:
        return np.zeros((0, 7)), {}
    published = postprocess.settings(name)
    runs = (
        compete(postprocess.images(outputs)[0], image_size, published.score_threshold) for outputs in (exact, rounded)
    )
    return other_fates(*runs, published.nms_iou, published.max_detections, most)


def other_fates(
    exact: postprocess.Candidates, rounded: postprocess.Candidates, nms_iou: float, limit: int, most: float
) -> tuple[np.ndarray, dict[str, float]]:
    """The near misses among these candidates."""
    kept = boxes.nms(exact.moved, exact.scores, exact.labels, nms_iou, limit + SPARE)
    order = np.argsort(-exact.scores, kind="stable")
    if len(kept) == limit + SPARE:  # what is behind all of them decides nothing
        order = order[exact.scores[order] >= exact.scores[kept].min()]
    moved, scores, labels = exact.moved[order], exact.scores[order], exact.labels[order]
    other = {key: index for index, key in enumerate(zip(rounded.place.tolist(), rounded.labels.tolist()))}
    keys = zip(exact.place[order].tolist(), labels.tolist())  # what tells one from the others, in any run
    pairs = np.array([(index, other[key]) for index, key in enumerate(keys) if key in other], np.int64).reshape(-1, 2)
    score = max(float(np.abs(scores[pairs[:, 0]] - rounded.scores[pairs[:, 1]]).max(initial=0.0)), ROUNDING)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    iou = ROUNDING  # the largest error of a float32 IoU near the limit, among one class
    for of in members:
        ours, theirs = pairs[np.isin(pairs[:, 0], of)].T
        overlap, again = (boxes.iou(rows, rows) for rows in (moved[ours], rounded.moved[theirs]))
        iou = max(iou, float(np.abs(overlap - again)[np.abs(overlap - nms_iou) < AROUND].max(initial=0.0)))
    survival = np.zeros((len(scores), 2))
    for of in members:
        survival[of] = suppression(boxes.iou(moved[of], moved[of]), scores[of], nms_iou, (iou, score))
    found = cut(survival, scores, score, limit).max(1)  # of its own fate it is 0
    near = np.flatnonzero(found <= most)
    return np.column_stack([exact.rows(order[near]), found[near]]), {"IoU": iou, "score": score}
