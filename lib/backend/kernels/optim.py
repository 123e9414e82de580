"""Optimisers for Jittor, fed with gradients, with PyTorch's groups and names of moments: one kernel a parameter.

Jittor's own step() runs the backward pass, counts its steps per backward, takes a dozen operators a parameter and has
its constants in float32 even for float64.
"""

import numpy as np

from . import jt, on_cpu, read

KERNELS = read("optim")


class _Optimiser:
    """Parameters in groups, and what is kept of each.

    groups: dicts with "parameters", a list of (name, tensor), and any option of the optimiser.
    """

    def __init__(self, groups: list[dict], **options):
        self.groups = [{**options, **group} for group in groups]  # whose options the next step takes
        self._parameters = {name: (group, t) for group in self.groups for name, t in group["parameters"]}
        self._moments: dict[str, dict[str, jt.Var]] = {}  # of each parameter, by PyTorch's names

    def set_lr(self, rates: list[float]) -> None:
        """One learning rate for each group."""
        for group, rate in zip(self.groups, rates, strict=True):
            group["lr"] = rate

    def counts(self) -> set[float]:
        """How many steps the parameters have taken, where the rule counts them: one number, as all take the same."""
        return set()

    def step(self, gradients: list[jt.Var]) -> None:
        """Update every parameter in place from gradients in the order of the groups."""
        if len(gradients) != len(self._parameters):
            raise ValueError(f"{len(gradients)} gradients for {len(self._parameters)} parameters")
        self._begin()
        for (name, (group, parameter)), gradient in zip(self._parameters.items(), gradients):
            self._update(name, group, parameter, gradient)

    def _begin(self) -> None:
        """Before the updates of a step."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, under "<parameter>/<moment>"."""
        return {f"{name}/{moment}": t.numpy() for name, held in self._moments.items() for moment, t in held.items()}

    def load_state(self, values: dict[str, np.ndarray]) -> None:
        self._moments = {}
        for key, array in values.items():
            name, moment = key.rsplit("/", 1)
            held = jt.array(array, dtype=str(array.dtype)).reshape(self._parameters[name][1].shape).stop_grad()
            self._moments.setdefault(name, {})[moment] = held


MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


class _AdamW(_Optimiser):
    def __init__(self, groups, **options):
        super().__init__(groups, **options)
        self._steps = 0
        for name, (_, t) in self._parameters.items():
            self._moments[name] = {key: jt.zeros_like(t).stop_grad() for key in MOMENTS}

    def _begin(self) -> None:
        self._steps += 1

    def counts(self) -> set[float]:
        return {float(self._steps)}

    def _update(self, name: str, group: dict, parameter: jt.Var, gradient: jt.Var) -> None:
        beta1, beta2 = group["betas"]
        data = {"step": self._steps, "beta1": beta1, "beta2": beta2}
        data |= {option: group[option] for option in ("lr", "weight_decay", "eps")}
        held = parameter, *(self._moments[name][moment] for moment in MOMENTS)
        for old, new in zip(held, adamw(parameter, gradient, *held[1:], data)):
            old.update(new)

    def state(self) -> dict[str, np.ndarray]:
        """With the number of steps of each parameter, as PyTorch keeps it."""
        return {f"{name}/step": np.float32(self._steps) for name in self._moments} | super().state()

    def load_state(self, values: dict[str, np.ndarray]) -> None:
        self._steps = max(int(values[f"{name}/step"]) for name in self._parameters)
        kept = [f"{name}/{moment}" for name in self._parameters for moment in MOMENTS]
        super().load_state({key: values[key] for key in kept})


def _plain_adamw(parameter, gradient, first, second, data: dict[str, float]) -> list:
    first = data["beta1"] * first + (1 - data["beta1"]) * gradient
    second = data["beta2"] * second + (1 - data["beta2"]) * gradient * gradient
    root = (1 - data["beta2"] ** data["step"]) ** 0.5
    size = data["lr"] / (1 - data["beta1"] ** data["step"])
    kept = parameter * (1 - data["lr"] * data["weight_decay"])
    return [kept - size * first / (jt.sqrt(second) / root + data["eps"]), first, second]


@on_cpu(_plain_adamw)
def adamw(parameter, gradient, first, second, data: dict[str, float]) -> list:
    """The parameter and its two moments after one step; data: step (from 1), lr, weight_decay, eps, beta1, beta2."""
    return KERNELS["AdamW"]([parameter, gradient, first, second], *[parameter.shape] * 3, data=data)


class _SGD(_Optimiser):
    """Velocities are made by the first step with momentum, as in PyTorch."""

    def set_momentum(self, value: float) -> None:
        for group in self.groups:
            group["momentum"] = value

    def _update(self, name: str, group: dict, parameter: jt.Var, gradient: jt.Var) -> None:
        held = self._moments.get(name)
        data = {option: group[option] for option in ("lr", "momentum", "weight_decay")}
        data |= {"nesterov": int(group["nesterov"]), "first": int(held is None)}
        moved, velocity = sgd(parameter, gradient, held["momentum_buffer"] if held else gradient, data)
        parameter.update(moved)
        if group["momentum"]:
            held = self._moments.setdefault(name, {"momentum_buffer": jt.zeros_like(velocity).stop_grad()})
            held["momentum_buffer"].update(velocity)


def _plain_sgd(parameter, gradient, velocity, data: dict[str, float]) -> list:
    gradient = gradient + data["weight_decay"] * parameter
    velocity = gradient if data["first"] else data["momentum"] * velocity + gradient
    step = gradient + data["momentum"] * velocity if data["nesterov"] else velocity
    return [parameter - data["lr"] * step, velocity]


@on_cpu(_plain_sgd)
def sgd(parameter, gradient, velocity, data: dict[str, float]) -> list:
    """The parameter and its velocity after one step; data: lr, momentum, weight_decay, nesterov, first (0 or 1)."""
    return KERNELS["SGD"]([parameter, gradient, velocity], *[parameter.shape] * 2, data=data)


def AdamW(groups: list[dict], lr: float, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01) -> _AdamW:
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019), operation by operation as torch.optim.AdamW."""
    return _AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def SGD(groups: list[dict], lr: float, momentum=0.0, nesterov=False, weight_decay=0.0) -> _SGD:
    """SGD with momentum, whose first velocity is the gradient; operation by operation as torch.optim.SGD."""
    return _SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
