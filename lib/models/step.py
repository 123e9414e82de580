"""What a training forward depends on beside the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Step:
    """Set as `model.step` before each training forward; the default is the first epoch, without anything random."""

    epoch: int = 0  # from 0
    random: np.random.Generator | None = None  # drop-path masks and denoising noise, a row an image; None: neither
    targets: Sequence[Mapping[str, np.ndarray]] = ()  # per image boxes (k, 4) xyxy in input pixels and labels (k,)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that an optimiser treats alike. What is in no group has gradients and is not updated."""

    names: tuple[str, ...] = ()
    learning_rate_factor: float = 1.0  # of the recipe's rate
    decays: bool = True  # whether the recipe's weight decay applies
    warmup_from: float = 0.0  # the rate at which a warm-up starts
