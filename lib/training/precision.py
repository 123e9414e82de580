"""Mixed precision: a forward pass in float16 where that pays, and the scale that keeps small gradients from vanishing.

Weights, losses, the optimiser and the average stay float32. As torch.amp.GradScaler has it, and with it the published
training of Gold-YOLO and RT-DETR: the loss is multiplied, gradients are divided before they are clipped, and an update
of which a gradient is not finite is left out. Only for a GPU; not measured: none was at hand.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lib import backend
from lib.errors import UserError

PRECISIONS = ("float32", "mixed")
START, LARGER, SMALLER, STEADY = 2.0**16, 2.0, 0.5, 2000  # STEADY: updates without overflow after which it grows


@dataclass
class LossScale:
    """What the loss is multiplied by; powers of two, which round nothing."""

    value: float = START
    steady: int = 0  # updates since the last change

    def update(self, finite: bool) -> None:
        """Take note of an update that was done (`finite`) or left out."""
        if not finite:
            self.value, self.steady = self.value * SMALLER, 0
        elif self.steady + 1 == STEADY:
            self.value, self.steady = self.value * LARGER, 0
        else:
            self.steady += 1

    def state(self) -> dict[str, np.ndarray]:
        return {"value": np.array(self.value), "steady": np.array(self.steady, np.int64)}

    def load_state(self, values: dict[str, np.ndarray]) -> None:
        self.value, self.steady = float(values["value"]), int(values["steady"])


def check_available(precision: str) -> None:
    """UserError if the device has no such precision."""
    if precision not in PRECISIONS:
        raise UserError(f"precision: '{precision}' is unknown; choose one of {', '.join(PRECISIONS)}")
    if precision == "mixed" and backend.device() == "cpu":
        raise UserError(
            "precision: mixed is not available on the CPU; leave it out, or add --device cuda on a machine with a GPU"
        )


def mixed_forward(model: backend.nn.Module, images: Any) -> Any:
    """The model's outputs as float32 from a forward pass in mixed precision."""

    def float32(outputs: Any) -> Any:
        if isinstance(outputs, dict):
            return {name: float32(value) for name, value in outputs.items()}
        if isinstance(outputs, list | tuple):
            return type(outputs)([float32(value) for value in outputs])
        return backend.from_half(outputs)

    with backend.mixed_precision():
        return float32(model(images))
