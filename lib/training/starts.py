"""The trainings that people set side by side: from a backbone of ImageNet and from a trained detector, before and after."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lib.training import runs
from lib.training.log import curves, read_log

IMAGENET, FINE_TUNED, FRESH = "ImageNet start", "fine-tuned", "fresh weights"


def plans(plan: runs.Training, weights: str = "", backbone: str = "") -> dict[str, runs.Training]:
    """The plan by how it starts; with weights and a backbone two, the second of which is in the plan's own folder.

    The last one's weights are those that later stages evaluate.
    """
    fine_tuned, imagenet = replace(plan, weights=weights or None), replace(plan, backbone=backbone or None)
    if weights and backbone:
        return {IMAGENET: replace(imagenet, folder=str(Path(plan.folder, "imagenet"))), FINE_TUNED: fine_tuned}
    return {FINE_TUNED: fine_tuned} if weights else {IMAGENET: imagenet} if backbone else {FRESH: plan}


def record(chosen: dict[str, runs.Training], overfit_steps: int = 0) -> runs.Fields:
    """Train each plan; what the training record holds of the last, and under "starts" the numbers of all."""
    outcomes = {name: runs.train(plan) for name, plan in chosen.items()}
    last = list(chosen)[-1]
    starts = {name: _numbers(outcome.log, outcome.best) for name, outcome in outcomes.items()}
    return runs.training_record(chosen[last], outcomes[last], overfit_steps) | {"starts": starts}


def _numbers(log: Path, best: dict[str, Any]) -> dict[str, Any]:
    """COCO's numbers before (None from fresh weights) and after, and of every evaluation; epoch -1 is before the first."""
    evaluations = curves(read_log(log))[1]
    before = next((numbers for numbers in evaluations if numbers["epoch"] < 0), None)
    return {"before": before, "after": {**best["evaluation"], "epoch": best["epoch"]}, "evaluations": evaluations}
