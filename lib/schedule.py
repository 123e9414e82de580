"""Training recipes as data, and the two curves they imply: learning rate per step, weight of a new value in the average.

Follows NanoDet-Plus be9b4a9 (nanodet/trainer/task.py, nanodet/model/weight_averager/ema.py, config/nanodet-plus-m_*.yml)
and torch.optim.lr_scheduler.CosineAnnealingLR.

Deliberate difference: a run shorter than the published one may scale two constants that count steps, see `scaled`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from lib.errors import UserError

WARMUP_SHARE = 0.05  # largest part of a run that warms up
AVERAGE_RUN = 100_000  # steps from which on the average's published constants hold; below they shrink in proportion


@dataclass(frozen=True)
class Recipe:
    """How to train, in plain values."""

    optimiser: str  # a name in lib.backend
    learning_rate: float  # at the end of the warm-up
    final_learning_rate: float  # where the cosine ends
    weight_decay: float  # of every parameter, also norm layers and biases
    betas: tuple[float, float]
    epsilon: float
    clip: float  # largest global L2 norm of the gradient
    batch: int  # images per step
    epochs: int
    warmup_steps: int  # linear, from warmup_ratio * learning_rate
    warmup_ratio: float
    average_decay: float  # EMA: 1 - average_decay is what a new value weighs in the long run
    average_steps: int  # EMA: time constant of the ramp towards that


# By model family.
RECIPES = {
    "nanodet_plus": Recipe(
        optimiser="AdamW", learning_rate=1e-3, final_learning_rate=5e-5, weight_decay=0.05, betas=(0.9, 0.999),
        epsilon=1e-8, clip=35.0, batch=96, epochs=300, warmup_steps=500, warmup_ratio=1e-4,
        average_decay=0.9998, average_steps=2000,
    ),
}  # fmt: skip


def scaled(recipe: Recipe, images: int, *, batch: int, epochs: int, learning_rate: float | None = None) -> Recipe:
    """The recipe for a run over `images` training images with its own batch and number of epochs.

    Constants that count steps are the published ones in a run of AVERAGE_RUN steps or more. In a shorter one the warm-up
    is at most WARMUP_SHARE of the steps, and the average's ramp (2,000 steps) and window (1 / 0.0002 = 5,000 steps) are
    the same parts of the run as there, or the average would still hold the first weights at its end. `learning_rate`
    replaces the published one and scales its final value alike.
    """
    steps = epochs * steps_per_epoch(images, batch)
    part = min(1.0, steps / AVERAGE_RUN)
    factor = 1.0 if learning_rate is None else learning_rate / recipe.learning_rate
    return replace(
        recipe,
        batch=batch,
        epochs=epochs,
        learning_rate=recipe.learning_rate * factor,
        final_learning_rate=recipe.final_learning_rate * factor,
        warmup_steps=min(recipe.warmup_steps, math.ceil(WARMUP_SHARE * steps)),
        average_steps=max(1, round(recipe.average_steps * part)),
        average_decay=recipe.average_decay if part == 1 else 1 - min(1.0, (1 - recipe.average_decay) / part),
    )


def steps_per_epoch(images: int, batch: int) -> int:
    """Whole batches in an epoch (the last, smaller one is dropped); UserError if there is none."""
    if images < batch:
        raise UserError(f"training: a batch of {batch} needs as many images, the data set has {images}; set a smaller batch")
    return images // batch


def learning_rates(recipe: Recipe, steps: int) -> np.ndarray:
    """The learning rate of each step of the run, float64 (epochs * steps,), for `steps` steps an epoch.

    The warm-up overwrites the cosine's value while the global step is <= warmup_steps. The cosine is PyTorch's recursion
    on the *current* rate, applied after the last step of an epoch: where the warm-up spans epochs the cosine starts from
    the full rate afterwards and stays slightly above its closed form.
    """
    step = np.arange(recipe.epochs * steps)
    rates = np.empty(len(step))
    current = recipe.learning_rate
    for epoch in range(recipe.epochs):
        of_epoch = slice(epoch * steps, (epoch + 1) * steps)
        warming = step[of_epoch] <= recipe.warmup_steps
        missing = (1 - step[of_epoch] / recipe.warmup_steps) * (1 - recipe.warmup_ratio)
        rates[of_epoch] = np.where(warming, recipe.learning_rate * (1 - missing), current)
        # The last warm-up value stays in the optimiser until the cosine's next turn.
        if warming.any():
            rates[of_epoch][~warming] = rates[of_epoch][warming][-1]
        current = _next_cosine(recipe, epoch + 1, rates[of_epoch][-1])
    return rates


def _next_cosine(recipe: Recipe, epoch: int, rate: float) -> float:
    """PyTorch's recursive cosine annealing: the rate of `epoch` (>= 1) from that of the epoch before."""
    now, before = (1 + math.cos(math.pi * e / recipe.epochs) for e in (epoch, epoch - 1))
    return now / before * (rate - recipe.final_learning_rate) + recipe.final_learning_rate


def average_weight(recipe: Recipe, update: int) -> float:
    """What the new value weighs in the average at `update` (1 after the first optimiser step).

    The published `decay` is the weight of the *new* value: near 1 at first, 1 - average_decay in the end.
    """
    return recipe.average_decay * math.exp(-(1 + update) / recipe.average_steps) + (1 - recipe.average_decay)
