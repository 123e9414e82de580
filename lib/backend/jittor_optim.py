"""Optimisers for Jittor, fed with gradients, with PyTorch's groups and names of moments: one kernel a parameter.

Jittor's own step() runs the backward pass, counts its steps per backward, takes a dozen operators a parameter and has
its constants in float32 even for float64.
"""

from collections.abc import Iterator

import numpy as np

from .jittor_import import jt


class _Optimiser:
    """Parameters in groups, and what is kept of each.

    groups: dicts with "parameters", a list of (name, tensor), and any option of the optimiser.
    """

    def __init__(self, groups: list[dict], **options):
        self._groups = [{**options, **group} for group in groups]

    def set_lr(self, rates: list[float]) -> None:
        """One learning rate for each group."""
        for group, rate in zip(self._groups, rates, strict=True):
            group["lr"] = rate

    def _named(self) -> Iterator[tuple[dict, str, jt.Var]]:
        for group in self._groups:
            for name, parameter in group["parameters"]:
                yield group, name, parameter

    def _with_gradients(self, gradients: list[jt.Var]) -> Iterator[tuple[dict, str, jt.Var, jt.Var]]:
        count = sum(len(group["parameters"]) for group in self._groups)
        if count != len(gradients):
            raise ValueError(f"{len(gradients)} gradients for {count} parameters")
        return ((*entry, gradient) for entry, gradient in zip(self._named(), gradients))


_ADAMW_STEP = """
    // kernel: AdamW;
    const double t = data["step"], beta1 = data["beta1"], beta2 = data["beta2"];
    const in0_type keep = 1 - data["lr"] * data["weight_decay"], size = data["lr"] / (1 - std::pow(beta1, t));
    const in0_type root = std::sqrt(1 - std::pow(beta2, t)), eps = data["eps"];
    const in0_type b1 = beta1, c1 = 1 - beta1, b2 = beta2, c2 = 1 - beta2;
    const int64_t count = in0->num;
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type m = b1 * in2_p[i] + c1 * in1_p[i], v = b2 * in3_p[i] + c2 * in1_p[i] * in1_p[i];
        out1_p[i] = m;
        out2_p[i] = v;
        out0_p[i] = in0_p[i] * keep - size * m / (std::sqrt(v) / root + eps);
    }
"""


class _AdamW(_Optimiser):
    def __init__(self, groups, **options):
        super().__init__(groups, **options)
        self._moments = {
            name: (jt.zeros_like(t).stop_grad(), jt.zeros_like(t).stop_grad()) for _, name, t in self._named()
        }
        self._step = 0

    def step(self, gradients: list[jt.Var]) -> None:
        """Update every parameter in place from gradients in the order of the groups."""
        update = plain_adamw if jt.flags.use_cuda else adamw
        entries = self._with_gradients(gradients)
        self._step += 1
        for group, name, parameter, gradient in entries:
            data = {
                "step": self._step,
                "lr": group["lr"],
                "weight_decay": group["weight_decay"],
                "eps": group["eps"],
                "beta1": group["betas"][0],
                "beta2": group["betas"][1],
            }
            held = parameter, *self._moments[name]
            for old, new in zip(held, update(parameter, gradient, *self._moments[name], data)):
                old.update(new)

    def state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, under "<parameter>/<moment>"."""
        values = {}
        for name, (first, second) in self._moments.items():
            values |= {
                f"{name}/step": np.float32(self._step),
                f"{name}/exp_avg": first.numpy(),
                f"{name}/exp_avg_sq": second.numpy(),
            }
        return values

    def load_state(self, values: dict[str, np.ndarray]) -> None:
        """Continue from what `state` gave."""
        for name, moments in self._moments.items():
            self._step = int(values[f"{name}/step"])
            for moment, held in zip(("exp_avg", "exp_avg_sq"), moments):
                array = values[f"{name}/{moment}"]
                held.update(jt.array(array, dtype=str(array.dtype)).reshape(held.shape))


def adamw(parameter, gradient, first, second, data: dict[str, float]) -> list:
    """The parameter and its two moments after one step; data: step (from 1), lr, weight_decay, eps, beta1, beta2."""
    return jt.code(
        [parameter.shape] * 3,
        [parameter.dtype] * 3,
        [parameter, gradient, first, second],
        cpu_header="#include <cmath>",
        cpu_src=_ADAMW_STEP,
        data=data,
    )


def plain_adamw(parameter, gradient, first, second, data: dict[str, float]) -> list:
    """`adamw` in Jittor's own operators."""
    first = data["beta1"] * first + (1 - data["beta1"]) * gradient
    second = data["beta2"] * second + (1 - data["beta2"]) * gradient * gradient
    root = (1 - data["beta2"] ** data["step"]) ** 0.5
    size = data["lr"] / (1 - data["beta1"] ** data["step"])
    kept = parameter * (1 - data["lr"] * data["weight_decay"])
    return [kept - size * first / (jt.sqrt(second) / root + data["eps"]), first, second]


_SGD_STEP = """
    // kernel: SGD;
    const in0_type momentum = data["momentum"], decay = data["weight_decay"], lr = data["lr"];
    const bool nesterov = data["nesterov"], first = data["first"];
    const int64_t count = in0->num;
    #pragma omp parallel for if(count > 16384)
    for (int64_t i = 0; i < count; i++) {
        const in0_type g = in1_p[i] + decay * in0_p[i], v = first ? g : momentum * in2_p[i] + g;
        out1_p[i] = v;
        out0_p[i] = in0_p[i] - lr * (nesterov ? g + momentum * v : v);
    }
"""


class _SGD(_Optimiser):
    def __init__(self, groups, **options):
        super().__init__(groups, **options)
        self._velocities = {}  # by name; made by the first step with momentum, as in PyTorch

    def set_momentum(self, value: float) -> None:
        """One momentum for every group."""
        for group in self._groups:
            group["momentum"] = value

    def step(self, gradients: list[jt.Var]) -> None:
        """Update every parameter in place from gradients in the order of the groups."""
        update = plain_sgd if jt.flags.use_cuda else sgd
        for group, name, parameter, gradient in self._with_gradients(gradients):
            held = self._velocities.get(name)
            data = {
                "lr": group["lr"],
                "momentum": group["momentum"],
                "weight_decay": group["weight_decay"],
                "nesterov": int(group["nesterov"]),
                "first": int(held is None),
            }
            moved, velocity = update(parameter, gradient, gradient if held is None else held, data)
            parameter.update(moved)
            if group["momentum"]:
                self._velocities.setdefault(name, jt.zeros_like(velocity).stop_grad()).update(velocity)

    def state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, under "<parameter>/momentum_buffer"; nothing before the first step."""
        return {f"{name}/momentum_buffer": velocity.numpy() for name, velocity in self._velocities.items()}

    def load_state(self, values: dict[str, np.ndarray]) -> None:
        """Continue from what `state` gave."""
        shapes = {name: parameter.shape for _, name, parameter in self._named()}
        self._velocities = {
            name: jt.array(array, dtype=str(array.dtype)).reshape(shapes[name]).stop_grad()
            for name, array in ((key.rsplit("/", 1)[0], array) for key, array in values.items())
        }


def sgd(parameter, gradient, velocity, data: dict[str, float]) -> list:
    """The parameter and its velocity after one step; data: lr, momentum, weight_decay, nesterov, first (0 or 1)."""
    return jt.code(
        [parameter.shape] * 2, [parameter.dtype] * 2, [parameter, gradient, velocity], cpu_src=_SGD_STEP, data=data
    )


def plain_sgd(parameter, gradient, velocity, data: dict[str, float]) -> list:
    """`sgd` in Jittor's own operators."""
    gradient = gradient + data["weight_decay"] * parameter
    velocity = gradient if data["first"] else data["momentum"] * velocity + gradient
    step = gradient + data["momentum"] * velocity if data["nesterov"] else velocity
    return [parameter - data["lr"] * step, velocity]


def AdamW(groups: list[dict], lr: float, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01) -> _AdamW:
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019), operation by operation as torch.optim.AdamW."""
    return _AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def SGD(groups: list[dict], lr: float, momentum=0.0, nesterov=False, weight_decay=0.0) -> _SGD:
    """SGD with momentum, whose first velocity is the gradient; operation by operation as torch.optim.SGD."""
    return _SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
