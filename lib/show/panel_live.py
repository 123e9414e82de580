"""Detection while one looks: a model of this kernel's framework joins the panel of 71_detect as one more side."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import backend, convert, models
from lib.errors import UserError
from lib.evaluation import inference
from lib.show.panel import Panel

FILE = "weights.safetensors"  # what a training leaves; those of PyTorch are the "common" ones of evaluation records
SIDE = f"{backend.NAME}, live"


@dataclass(frozen=True)
class Live:
    """What can be run: every model, with the weights that trainings left under `runs` or any other file."""

    runs: str | Path  # <runs>/<model>/<side>/weights.safetensors
    size: tuple[int, int] | None = None  # network input, height and width; the published by default

    def models(self) -> list[str]:
        """All names; those that have trained weights here come first."""
        return sorted(models.NAMES, key=lambda name: not self.weights(name))

    def weights(self, model: str) -> list[str]:
        """Files that trainings of the model left."""
        return [str(path) for path in sorted(Path(self.runs, model).glob(f"*/{FILE}"))]

    def join(self, panel: Panel, model: str, path: str) -> dict[str, str]:
        """Load the weights and let the panel ask them; returns what of its choice shows them. UserError if they don't fit.

        Under "common" where they are, so that they stand beside what the records say of them, else under their path.
        """
        if model not in models.NAMES:
            raise UserError(f"model: '{model}' is unknown; choose one of {', '.join(models.NAMES)}")
        if not Path(path).is_file():
            raise UserError(f"{path or 'weights'}: no such file; choose weights of {model}")
        common = Path(path).resolve() == Path(self.runs, model, "torch", FILE).resolve()
        weights = "common" if common and (model, "common") in panel.found else str(path)
        panel.add_live(model, weights, SIDE, self.detector(model, path, len(panel.names())))
        return {"model": model, "weights": weights, "right": SIDE}

    def detector(self, model: str, path: str | Path, classes: int) -> Callable[[np.ndarray], np.ndarray]:
        """image (h, w, 3) uint8 BGR -> (m, 6) x1, y1, x2, y2, score, label in its pixels."""
        network = models.build(model, classes)
        convert.load(network, path)
        return lambda image: inference.detect_image(network, model, image, self.size)
