"""Training recipes as data, and the curves they imply: learning rate and momentum per step, the average's weights.

Follows NanoDet-Plus be9b4a9 (nanodet/trainer/task.py, nanodet/model/weight_averager/ema.py,
config/nanodet-plus-m_*.yml), torch.optim.lr_scheduler.CosineAnnealingLR, Gold-YOLO 225ddd2e (yolov6/core/engine.py,
yolov6/solver/build.py, configs) and RT-DETR 068dfde (configs/rtdetr, src/optim).

Deliberate difference: a run shorter than the published one may scale constants that count steps, see `scaled`.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lib.errors import UserError
from lib.families import family, size_of
from lib.models.step import ParameterGroup

Groups = tuple[ParameterGroup, ...]

ONE_GROUP = (ParameterGroup(),)
WARMUP_SHARE = 0.05  # largest part of a run that warms up
AVERAGE_RUN = 100_000  # steps from which on the average's published constants hold; below they shrink in proportion
SIDE, STRIDE = 640, 32  # pixels: of the input around which `sides` are published, of which every side is a multiple


@dataclass(frozen=True)
class Recipe:
    """How to train, in plain values; here with a constant learning rate, as RT-DETR publishes it."""

    optimiser: str  # a name in lib.backend
    options: dict[str, Any]  # of that optimiser
    learning_rate: float  # after the warm-up, of a group with factor 1
    weight_decay: float  # of the groups that decay
    batch: int  # images per step
    epochs: int
    average_decay: float = 0.9999  # EMA: 1 - average_decay is what a new value weighs in the long run
    average_steps: int = 2000  # EMA: time constant of the ramp towards that
    average_start: int = 0  # EMA: what is added to the count of updates
    clip: float = math.inf  # largest global L2 norm of the gradient
    warmup_steps: int = 0
    nominal_batch: int = 0  # gradients of smaller batches are summed until as many images were seen; 0: never
    sides: tuple[int, ...] = ()  # of the square inputs of which the model draws one per step; none: as they come

    def learning_rates(self, steps: int, groups: Groups = ONE_GROUP) -> np.ndarray:
        """The learning rate of each step and group, float64 (epochs * steps, groups), for `steps` steps an epoch."""
        factors = np.array([group.learning_rate_factor for group in groups])
        return np.full((self.epochs * steps, 1), self.learning_rate) * factors

    def momenta(self, steps: int) -> np.ndarray | None:
        """The momentum of each step where it changes, float64 (epochs * steps,)."""
        return None

    def accumulations(self, steps: int) -> np.ndarray:
        """Of each step: after how many batches since the last update one is due, (epochs * steps,) int."""
        return np.full(self.epochs * steps, max(1, round(self.nominal_batch / self.batch)))

    def warmup(self, steps: int) -> int:
        """How many steps warm up."""
        return self.warmup_steps

    def average_weight(self, update: int) -> float:
        """What the new value weighs in the average at `update` (1 after the first optimiser step)."""
        ramp = math.exp(-(self.average_start + update) / self.average_steps)
        return self.average_decay * ramp + (1 - self.average_decay)


@dataclass(frozen=True)
class NanoDetPlus(Recipe):
    """Linear warm-up, then a cosine that is PyTorch's recursion on the current rate."""

    final_learning_rate: float = field(kw_only=True)  # where the cosine ends
    warmup_ratio: float = field(kw_only=True)  # the warm-up starts at this part of the rate

    def learning_rates(self, steps: int, groups: Groups = ONE_GROUP) -> np.ndarray:
        """One group. The warm-up overwrites the cosine's value while the global step is <= warmup_steps. The cosine is
        applied after the last step of an epoch: where the warm-up spans epochs it starts from the full rate afterwards
        and stays slightly above its closed form.
        """
        step = np.arange(self.epochs * steps)
        rates = np.empty(len(step))
        current = self.learning_rate
        for epoch in range(self.epochs):
            of_epoch = slice(epoch * steps, (epoch + 1) * steps)
            warming = step[of_epoch] <= self.warmup_steps
            missing = (1 - step[of_epoch] / self.warmup_steps) * (1 - self.warmup_ratio)
            rates[of_epoch] = np.where(warming, self.learning_rate * (1 - missing), current)
            # The last warm-up value stays in the optimiser until the cosine's next turn.
            if warming.any():
                rates[of_epoch][~warming] = rates[of_epoch][warming][-1]
            # PyTorch's recursive cosine annealing: the next epoch's rate from this one's.
            now, before = (1 + math.cos(math.pi * e / self.epochs) for e in (epoch + 1, epoch))
            last = rates[of_epoch][-1] - self.final_learning_rate
            current = now / before * last + self.final_learning_rate
        return rates[:, None]


@dataclass(frozen=True)
class GoldYolo(Recipe):
    """Linear warm-up of rate, momentum and accumulation, each group's rate from its own start; a cosine per epoch."""

    final_ratio: float = field(kw_only=True)  # the cosine ends at this part of the rate
    warmup_epochs: int = field(kw_only=True)  # warm up at least this long, and at least warmup_steps
    warmup_momentum: float = field(kw_only=True)

    def learning_rates(self, steps: int, groups: Groups = ONE_GROUP) -> np.ndarray:
        cosine = (1 - np.cos(np.pi * np.arange(self.epochs) / self.epochs)) / 2 * (self.final_ratio - 1) + 1
        cosine = np.repeat(cosine, steps)
        starts = np.array([group.warmup_from for group in groups])
        target = self.learning_rate * cosine[:, None] * np.array([group.learning_rate_factor for group in groups])
        return starts + (target - starts) * self._warmth(steps)[:, None]

    def momenta(self, steps: int) -> np.ndarray:
        return self.warmup_momentum + (self.options["momentum"] - self.warmup_momentum) * self._warmth(steps)

    def accumulations(self, steps: int) -> np.ndarray:
        full = self.nominal_batch / self.batch
        return np.maximum(np.round(1 + (full - 1) * self._warmth(steps)), 1).astype(int)

    def warmup(self, steps: int) -> int:
        return max(round(self.warmup_epochs * steps), self.warmup_steps)

    def _warmth(self, steps: int) -> np.ndarray:
        """Of each step: the part of the warm-up that lies behind it."""
        return np.minimum(np.arange(self.epochs * steps) / max(self.warmup(steps), 1), 1.0)


ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}
RECIPES = {  # by family
    "nanodet_plus": NanoDetPlus(
        "AdamW",
        ADAM,
        learning_rate=1e-3,
        final_learning_rate=5e-5,
        weight_decay=0.05,
        batch=96,
        epochs=300,
        average_decay=0.9998,
        average_start=1,
        clip=35.0,
        warmup_steps=500,
        warmup_ratio=1e-4,
    ),
    "gold_yolo": GoldYolo(  # one device with 32 images; rate and decay follow the batch, see `scaled`
        "SGD",
        {"momentum": 0.937, "nesterov": True},
        learning_rate=0.01,
        final_ratio=0.01,
        weight_decay=5e-4,
        batch=32,
        epochs=300,
        warmup_steps=1000,
        warmup_epochs=3,
        warmup_momentum=0.8,
        nominal_batch=64,
    ),
    "rt_detr": Recipe(
        "AdamW",
        ADAM,
        learning_rate=1e-4,
        weight_decay=1e-4,
        batch=16,
        epochs=72,
        clip=0.1,
        sides=(480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800),
    ),
}
OF_SIZE = {"gold-yolo-n": replace(RECIPES["gold_yolo"], learning_rate=0.02)}  # whose recipe is not its family's


def recipe(model: str) -> Recipe:
    """The published recipe of the model."""
    return OF_SIZE.get(size_of(model), RECIPES[family(model)])


def scaled(
    recipe: Recipe, images: int, *, batch: int, epochs: int, rate: float = 1.0, size: tuple[int, int] = (SIDE, SIDE)
) -> Recipe:
    """The recipe for a run over `images` training images with its own batch, epochs and input (height, width).

    Constants that count steps are the published ones in a run of AVERAGE_RUN steps or more. In a shorter one the
    warm-up is at most WARMUP_SHARE of the steps, every batch is followed by an update, and the average's ramp (2,000
    steps) and window (1 / 0.0002 = 5,000 steps) are the same parts of the run as there, or the average would still hold
    the first weights at its end. `rate` multiplies the learning rate. As published, Gold-YOLO's rate is proportional to
    the batch, its decay to the images per update. `sides` keep their proportion to a square input; another has none.
    """
    steps = epochs * steps_per_epoch(images, batch)
    part = min(1.0, steps / AVERAGE_RUN)
    changes: dict[str, Any] = {"learning_rate": recipe.learning_rate * rate}
    if isinstance(recipe, NanoDetPlus):
        changes["final_learning_rate"] = recipe.final_learning_rate * rate
    if isinstance(recipe, GoldYolo):
        together = batch if part < 1 else recipe.nominal_batch
        per_update = batch * max(1, round(together / batch))
        changes |= {
            "learning_rate": changes["learning_rate"] * batch / recipe.batch,
            "nominal_batch": together,
            "weight_decay": recipe.weight_decay * per_update / recipe.nominal_batch,
        }
        if part < 1:
            changes["warmup_epochs"] = 0
    strides = [math.floor(side * size[0] / SIDE / STRIDE + 0.5) for side in recipe.sides if size[0] == size[1]]
    return replace(
        recipe,
        **changes,
        sides=tuple(STRIDE * max(1, count) for count in strides),
        batch=batch,
        epochs=epochs,
        warmup_steps=min(recipe.warmup_steps, math.ceil(WARMUP_SHARE * steps)),
        average_steps=max(1, round(recipe.average_steps * part)),
        average_decay=recipe.average_decay if part == 1 else 1 - min(1.0, (1 - recipe.average_decay) / part),
    )


def steps_per_epoch(images: int, batch: int) -> int:
    """Whole batches in an epoch (the last, smaller one is dropped); UserError if there is none."""
    if images < batch:
        raise UserError(
            f"training: a batch of {batch} needs as many images, the data set has {images}; set a smaller batch"
        )
    return images // batch
