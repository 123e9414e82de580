"""RT-DETR 068dfde: its golden cases, and how their records read. 80 classes, 320 x 320.

Queries stand in the order of their tokens, not of their scores: near-ties leave that order to rounding.
"""

import re
from collections.abc import Mapping
from functools import cache, partial

import numpy as np

from lib.alignment.references import case as golden
from lib.alignment.references.case import GOLDEN, Arrays, Case, Found, Phase, Update
from lib.models.step import Step

COMMIT = "068dfde"
FLOAT64 = "float32 constants"  # position embedding and anchors stay as float32 rounds them
SIZE = 320
STRIDES = (8, 16, 32)  # of the levels that tokens come from
STEP = "clip0.1_lr1e-4"
# Targets of the training case, per image: label, then centre x, centre y, width, height as parts of the image.
ROWS = (
    ((17, 0.45, 0.55, 0.4, 0.5),),
    (
        (0, 0.2, 0.3, 0.2, 0.4),
        (0, 0.7, 0.25, 0.12, 0.2),
        (2, 0.5, 0.75, 0.6, 0.3),
        (56, 0.88, 0.8, 0.1, 0.14),
        (79, 0.32, 0.62, 0.05, 0.06),
    ),
)
# Modules that ours runs on other tokens, or more than once under one name.
OTHERWISE = ("decoder.enc_bbox_head", "decoder.query_pos_head", "decoder.dec_score_head")
# What keeps the decoder from amplifying rounding: (pattern of the entry, factor, summand).
GENTLE = (
    (r"sampling_offsets\.weight$", 0.1, 0.0),
    (r"bbox_head.*layers\.2\.weight$", 0.1, 0.0),
    (r"self_attn\.in_proj_weight$", 0.5, 0.0),
    (r"score_head.*bias$", 1.0, -4.6),
)


def case(model: str, stage: str) -> Case:
    """As the golden files of R18; the other variants have none for training and inference, and measure the same way."""
    name = model.removeprefix("rtdetr_")
    match stage:
        case "forward":
            image = "image14" if name == "r18vd" else "image"
            return Case(f"{name}_{SIZE}", f"rt_detr/forward_{name}_{SIZE}.json", size=(SIZE, SIZE), images=image)
        case "loss":
            boxes = golden.pixels(ROWS, SIZE)
            phases = {"dn": Phase(Step(random=Recorded(), targets=boxes)), "nodn": Phase(Step(targets=boxes))}
            return Case(
                f"{name}_gentle",
                f"rt_detr/train_{name}_gentle.json",
                size=(SIZE, SIZE),
                images="train_images",
                batch=2,
                adjust=partial(golden.scaled, rules=GENTLE),
                targets=boxes,
                phases=phases,
                update=Update(STEP, "dn", 1e-4, 0.1),
            )
        case "speed":
            return Case(f"{name}_timing", "rt_detr/timings.json")
        case _:
            return Case(f"{name}_spec", f"rt_detr/spec_{name}.json")


class Recorded:
    """Stands for the generator that the denoising draws from, and gives the numbers of the published run again."""

    def random(self, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        """[0, 1): for the labels (n, q) or for the boxes (n, q, 4)."""
        return _draws()["dn_label_uniform" if len(shape) == 2 else "dn_box_uniform"].astype(dtype)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """New labels (n, q) or signs (n, q, 4)."""
        return _draws()["dn_new_label" if len(shape) == 2 else "dn_sign01"].astype(np.int64)


@cache
def _draws() -> Arrays:
    return golden.arrays_of(GOLDEN / "rt_detr" / "train_r18vd_gentle.json")


# ---------------------------------------------------------------------------------------------------- the records
def _convert(content: Mapping, stored: Arrays, case: Case) -> Found:
    frozen = bool(content["not_trainable"])  # with the stem go all norms of the backbone
    norms = sum(name.endswith("num_batches_tracked") for name, _, _ in content["state_dict"])

    def fixed(name: str) -> bool:
        return frozen and re.match(r"backbone\..*\.norm\.(weight|bias)$", name) is not None

    return golden.spec(case, content["state_dict"], fixed, content["params_total"], norms)


def _by_token(array: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(n, q, c) with the queries in the order of their tokens (n, q)."""
    return np.take_along_axis(array, np.argsort(tokens, 1)[:, :, None], 1)


def _forward(content: Mapping, stored: Arrays, case: Case) -> Found:
    tokens = stored["topk_ind"][None]
    arrays: Arrays = {"assignment/selected_tokens": _selection(tokens)}
    for run, suffix in (("float32", ""), ("float64", "_f64")):
        for name in ("pred_logits", "pred_boxes"):
            chosen = stored[f"topk_ind{suffix}"][None]
            arrays[f"{run}/final/{name}"] = _by_token(stored[name + suffix], chosen)
    # The published detections are in the pixels of an image of another size.
    width, height = content["post"]["orig_size_wh"]
    found = stored["post_boxes"] * np.tile(np.float32([SIZE / width, SIZE / height]), 2)
    detections = np.column_stack([found, stored["post_scores"], stored["post_labels"]])
    arrays["float32/detections"] = detections.astype(np.float32)
    for name, array in golden.renamed(stored, {r"full/(.+)": r"\1"}).items():
        by_query = name.startswith("decoder.decoder.")
        arrays[f"float32/features/{name}"] = _by_token(array, tokens) if by_query else array
    statistics = golden.features(
        content["intermediates"], lambda name: name.startswith(OTHERWISE) or f"full/{name}" in stored
    )
    return {"depth": [entry["name"] for entry in content["intermediates"]], "statistics": statistics}, arrays


RULES = {
    r"dn/(\w+)/(pred_logits|pred_boxes)": r"float32/output/\1/\2",
    r"(\w+)/grad/(.+)": r"float32/gradient/\1/\2",
    r"(\w+)/grad64/(.+)": r"float64/gradient/\1/\2",
    r"dn/(bn)/(.+)": r"float32/\1/\2",
    r"dn/(bn)64/(.+)": r"float64/\1/\2",
    r"dn/step/(.+)": rf"float32/step/{STEP}/\1",
    r"dn/step64/(.+)": rf"float64/step/{STEP}/\1",
}


def _loss(content: Mapping, stored: Arrays, case: Case) -> Found:
    runs, settings = content["variants"], content["optimizer"]
    spec = golden.content_of(GOLDEN / f"rt_detr/spec_{content['config']}.json")
    shapes = {name: shape for name, shape, _ in spec["state_dict"]}
    rate, decay = (max(group[key] for group in settings["groups"]) for key in ("lr", "weight_decay"))
    members: list[list[str]] = [[] for _ in settings["groups"]]
    for name, entry in runs["dn"]["params"].items():
        members[entry["group"]].append(name)
    arrays = golden.renamed(stored, RULES)
    for name in arrays:
        if name.startswith("float32/output/") and not name.startswith("float32/output/dn_"):
            arrays[name] = _by_token(arrays[name], stored["dn/topk_ind"])
    changed = {name: array.shape for name, array in golden.renamed(stored, {r"dn/step/(.+)": r"\1"}).items()}
    arrays |= {f"weights/{name}": array for name, array in case.weights(changed).items()}
    for phase, run in runs.items():
        arrays |= {f"assignment/{phase}/matched_tokens/{name}": array for name, array in _matched(run).items()}
    arrays["assignment/dn/selected_tokens"] = _selection(stored["dn/topk_ind"])
    return {
        "losses": {
            phase: {
                "float32": {"loss_total": run["total"], **run["losses"]},
                "float64": {"loss_total": run["total_f64"], **run["losses_f64"]},
            }
            for phase, run in runs.items()
        },
        "statistics": {
            f"gradient/{phase}/{name}": {
                "shape": shapes[name],
                "l2": entry["grad_l2_f64"],
                "mean": entry["grad_mean_f64"],
            }
            for phase, run in runs.items()
            for name, entry in run["params"].items()
            if "grad_l2_f64" in entry
        },
        "optimiser": {
            STEP: {
                "rule": "AdamW",
                "phase": "dn",
                "lr": rate,
                "weight_decay": decay,
                "clip": settings["clip_max_norm"],
                "options": {"betas": settings["betas"], "eps": settings["eps"]},
                "groups": [
                    {"names": names, "factor": group["lr"] / rate, "decays": group["weight_decay"] > 0}
                    for names, group in zip(members, settings["groups"], strict=True)
                ],
                "grad_norm": {
                    "float32": runs["dn"]["total_grad_norm_before_clip"],
                    "float64": runs["dn"]["total_grad_norm_before_clip_f64"],
                },
            }
        },
        "step_norms": {
            STEP: {
                name: {"float32": entry["step_l2"], "float64": entry["step_l2_f64"]}
                for name, entry in runs["dn"]["params"].items()
            }
        },
    }, arrays


def _selection(tokens: np.ndarray) -> np.ndarray:
    """(n, t) 1 where a token is among the selected ones (n, q), 0 elsewhere."""
    found = np.zeros((len(tokens), sum((SIZE // stride) ** 2 for stride in STRIDES)), np.int64)
    np.put_along_axis(found, tokens, 1, 1)
    return found


def _matched(run: Mapping) -> Arrays:
    """Per prediction (n, s): the token that each image's boxes were given, -1 for none."""
    found = {}
    names = ("final", *(f"aux_{index}" for index in range(len(run["matches"]) - 1)))
    for name, matching in zip(names, run["matches"], strict=True):
        found[name] = np.full((len(ROWS), max(map(len, ROWS))), -1)
        for row, pairs in zip(found[name], matching["tokens"], strict=True):
            for token, box in pairs:
                row[box] = token
    return found


TIMED = {"inference_r18_640_b1": ("forward", 1, 640), "train_step_r18_320_b2": ("train", 2, 320)}


def _speed(content: list[Mapping], stored: Arrays, case: Case) -> Found:
    quiet = next(entry for entry in content if entry["quiet"])
    return golden.timed(
        (*work, quiet[name]["median_ratio_to_matmul"], quiet[name]["median_s"])
        for name, work in TIMED.items()
        if case.name == "r18vd_timing"
    )


STAGES = {"convert": _convert, "forward": _forward, "loss": _loss, "speed": _speed}
