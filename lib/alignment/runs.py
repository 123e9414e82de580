"""What the judge asks of a training beside what it needs for itself: how far repeated ones lie apart."""

from dataclasses import replace
from typing import Any

from lib import convert
from lib.alignment.trajectory import perturbed
from lib.record import sha256
from lib.training import loop, runs
from lib.training.log import curves, read_log


def repeated(plan: runs.Training, own: loop.Outcome, count: int) -> list[dict[str, Any]]:
    """The training of a plan `count` times: its own, then in turn one whose first weights are moved by a rounding and
    one of another seed (other first weights, batches and augmentation). Both frameworks repeat the same ones.

    Each as the record holds it: seed, roundings (the draw that moved its weights; 0: none did), losses (of each step),
    AP (of the best epoch), weights_sha256.
    """
    found = [_kept(plan, 0, own)]
    for place in range(1, count):
        seed, draw = (plan.seed, (place + 1) // 2) if place % 2 else (plan.seed + place // 2, 0)
        other = replace(plan, seed=seed, folder=f"{plan.folder}/{runs.REPEATS}/{place}")
        first = convert.state(runs.network(other, runs.loader(other))[0]) if draw else None
        found.append(_kept(other, draw, runs.train(other, moved=first and perturbed(first, draw))))
    return found


def _kept(plan: runs.Training, draw: int, outcome: loop.Outcome) -> dict[str, Any]:
    losses_of_steps = curves(read_log(outcome.log))[0]["loss"]
    told = {
        "losses": losses_of_steps,
        "AP": outcome.best["evaluation"]["AP"],
        "weights_sha256": sha256(outcome.weights),
    }
    return {"seed": plan.seed, "roundings": draw, **told}
