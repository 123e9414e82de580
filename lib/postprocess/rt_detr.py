"""RT-DETR: the best (query, class) pairs are the detections; nothing is suppressed."""

import numpy as np

from lib.data import boxes
from lib.models.rt_detr_denoising import corners

SCORE_THRESHOLD, NMS_IOU, MAX_DETECTIONS = 0.0, 1.0, 300  # as published: no threshold, no suppression


def per_image(
    output: dict[str, np.ndarray], image_size: tuple[int, int], score_threshold: float, nms_iou: float, limit: int
) -> np.ndarray:
    """pred_logits (q, k), pred_boxes (q, 4) -> (m, 6) in input pixels, best first, neither clipped nor suppressed.

    The `limit` best are taken first; then those below the threshold are left out. nms_iou has no meaning here.
    """
    scores = boxes.sigmoid(output["pred_logits"])
    query, label = np.divmod(np.argsort(-scores, axis=None, kind="stable")[:limit], scores.shape[1])
    height, width = image_size
    extent = np.asarray([width, height, width, height], scores.dtype)
    found = np.concatenate(
        [corners(output["pred_boxes"][query]) * extent, scores[query, label][:, None], label[:, None]],
        1,
        dtype=scores.dtype,
    )
    return found[found[:, 4] >= score_threshold]
