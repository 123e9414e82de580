"""Jittor's optimisers fed with gradients, with PyTorch's groups and names of moments."""
import numpy as np

from .jittor_import import jt


class _Optimiser:
    """A Jittor optimiser that takes gradients and whose state has names.

    Jittor's own step() runs the backward pass, and counts its steps per backward.
    groups: dicts with "parameters", a list of (name, tensor), and any option of the optimiser.
    """

    def __init__(self, kind, moments: dict[str, str], groups, **options):
        self._names = [[name for name, _ in group["parameters"]] for group in groups]
        self._optimiser = kind([{**{key: value for key, value in group.items() if key != "parameters"},
                                 "params": [t for _, t in group["parameters"]]} for group in groups], **options)
        self._moments = moments  # PyTorch's name of a moment -> Jittor's

    def set_lr(self, rates: list[float]) -> None:
        """One learning rate for each group."""
        for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
            group["lr"] = rate

    def step(self, gradients: list[jt.Var]) -> None:
        """Update every parameter in place from gradients in the order of the groups."""
        start = 0
        for group in self._optimiser.param_groups:
            group["grads"] = gradients[start:start + len(group["params"])]
            start += len(group["params"])
        if start != len(gradients):
            raise ValueError(f"{len(gradients)} gradients for {start} parameters")
        self._optimiser.n_step += 1
        self._optimiser.step()

    def state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, under "<parameter>/<moment>"."""
        values = {}
        for names, group in zip(self._names, self._optimiser.param_groups):
            for i, name in enumerate(names):
                values[f"{name}/step"] = np.float32(self._optimiser.n_step)
                values.update({f"{name}/{theirs}": group[ours][i].numpy() for theirs, ours in self._moments.items()})
        return values

    def load_state(self, values: dict[str, np.ndarray]) -> None:
        """Continue from what `state` gave."""
        for names, group in zip(self._names, self._optimiser.param_groups):
            for i, name in enumerate(names):
                self._optimiser.n_step = int(values[f"{name}/step"])
                for theirs, ours in self._moments.items():
                    group[ours][i].update(jt.array(values[f"{name}/{theirs}"]).reshape(group[ours][i].shape))


def AdamW(groups: list[dict], lr: float, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01) -> _Optimiser:
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019); Jittor's equals PyTorch's to 1e-7."""
    return _Optimiser(jt.optim.AdamW, {"exp_avg": "m", "exp_avg_sq": "values"}, groups, lr=lr, betas=betas, eps=eps,
                      weight_decay=weight_decay)


def SGD(groups: list[dict], lr: float, momentum=0.0, nesterov=False, weight_decay=0.0) -> _Optimiser:
    """SGD with momentum; Jittor's equals PyTorch's to 2e-7 without dampening, which is not offered."""
    return _Optimiser(jt.optim.SGD, {"momentum_buffer": "values"}, groups, lr=lr, momentum=momentum,
                      nesterov=nesterov, weight_decay=weight_decay)
