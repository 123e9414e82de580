"""The moving average of a model in training, whose values are evaluated (NanoDet-Plus be9b4a9, ema.py)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from lib import backend
from lib.training.schedule import Recipe


class Average:
    """The moving average of every parameter and buffer; integer entries are truncated, as published."""

    def __init__(self, model: backend.nn.Module, recipe: Recipe):
        self._model, self._recipe = model, recipe
        self.weight = 0.0  # of the values taken in last
        self.load_state({name: backend.numpy(value) for name, value in backend.named_state(model)})

    def update(self, count: int) -> None:
        """Take in the model's present values; `count` is the number of optimiser steps done (from 1)."""
        new = self.weight = self._recipe.average_weight(count)
        # As tensors, one pair for each kind of number: a Python number in Jittor would be float32 among float64.
        kinds = {str(held.dtype).rpartition(".")[2] for held in self._values.values()}
        shares = {kind: [backend.tensor(np.full(1, share, kind)) for share in (1 - new, new)] for kind in kinds}
        with backend.no_grad():
            for name, value in backend.named_state(self._model):
                if name in self._counters:
                    mixed = np.float32(self._counters[name]) * (1 - new) + np.float32(backend.numpy(value)) * new
                    self._counters[name] = np.trunc(mixed).astype(self._counters[name].dtype)
                else:
                    held = self._values[name]
                    kept, taken = shares[str(held.dtype).rpartition(".")[2]]
                    self._values[name] = held * kept + value * taken

    def state(self) -> dict[str, np.ndarray]:
        """The averaged entries under the model's names."""
        values = {name: backend.numpy(value).reshape(self._shapes[name]) for name, value in self._values.items()}
        return values | self._counters

    def load_state(self, values: Mapping[str, np.ndarray]) -> None:
        integer = [name for name, value in values.items() if value.dtype.kind in "iu"]
        self._shapes = {name: value.shape for name, value in values.items()}  # arithmetic may lose a scalar's shape ()
        self._counters = {name: values[name].copy() for name in integer}
        self._values = {name: backend.tensor(value) for name, value in values.items() if name not in integer}

    @contextmanager
    def in_use(self) -> Iterator[backend.nn.Module]:
        """Lend the model with the averaged values, in evaluation mode; afterwards it is as it was, in training mode."""
        own = {name: backend.numpy(value).copy() for name, value in backend.named_state(self._model)}
        backend.load_state(self._model, self.state())
        self._model.eval()
        try:
            yield self._model
        finally:
            backend.load_state(self._model, own)
            self._model.train()
