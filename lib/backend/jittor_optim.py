"""Optimisers for Jittor, fed with gradients, with PyTorch's groups and names of moments."""
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


_ADAMW = """
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


class _AdamW:
    """AdamW as one kernel a parameter: Jittor's own takes a dozen, with its constants in float32 even for float64."""

    def __init__(self, groups, **options):
        self._groups = [{**options, **group} for group in groups]
        for group in self._groups:
            group["moments"] = [(jt.zeros_like(t).stop_grad(), jt.zeros_like(t).stop_grad()) for _, t in group["parameters"]]
        self._step = 0

    def set_lr(self, rates: list[float]) -> None:
        """One learning rate for each group."""
        for group, rate in zip(self._groups, rates, strict=True):
            group["lr"] = rate

    def step(self, gradients: list[jt.Var]) -> None:
        """Update every parameter in place from gradients in the order of the groups."""
        count = sum(len(group["parameters"]) for group in self._groups)
        if count != len(gradients):
            raise ValueError(f"{len(gradients)} gradients for {count} parameters")
        self._step += 1
        remaining = iter(gradients)
        for group in self._groups:
            data = {"step": self._step, "lr": group["lr"], "weight_decay": group["weight_decay"], "eps": group["eps"],
                    "beta1": group["betas"][0], "beta2": group["betas"][1]}
            update = plain_adamw if jt.flags.use_cuda else adamw
            for (_, parameter), (first, second) in zip(group["parameters"], group["moments"]):
                for old, new in zip((parameter, first, second), update(parameter, next(remaining), first, second, data)):
                    old.update(new)

    def state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs, under "<parameter>/<moment>"."""
        values = {}
        for group in self._groups:
            for (name, _), (first, second) in zip(group["parameters"], group["moments"]):
                values |= {f"{name}/step": np.float32(self._step), f"{name}/exp_avg": first.numpy(),
                           f"{name}/exp_avg_sq": second.numpy()}
        return values

    def load_state(self, values: dict[str, np.ndarray]) -> None:
        """Continue from what `state` gave."""
        for group in self._groups:
            for (name, _), moments in zip(group["parameters"], group["moments"]):
                self._step = int(values[f"{name}/step"])
                for moment, held in zip(("exp_avg", "exp_avg_sq"), moments):
                    array = values[f"{name}/{moment}"]
                    held.update(jt.array(array, dtype=str(array.dtype)).reshape(held.shape))


def adamw(parameter, gradient, first, second, data: dict[str, float]) -> list:
    """The parameter and its two moments after one step; data: step (from 1), lr, weight_decay, eps, beta1, beta2."""
    return jt.code([parameter.shape] * 3, [parameter.dtype] * 3, [parameter, gradient, first, second],
                   cpu_header="#include <cmath>", cpu_src=_ADAMW, data=data)


def plain_adamw(parameter, gradient, first, second, data: dict[str, float]) -> list:
    """`adamw` in Jittor's own operators."""
    first = data["beta1"] * first + (1 - data["beta1"]) * gradient
    second = data["beta2"] * second + (1 - data["beta2"]) * gradient * gradient
    root = (1 - data["beta2"] ** data["step"]) ** 0.5
    size = data["lr"] / (1 - data["beta1"] ** data["step"])
    kept = parameter * (1 - data["lr"] * data["weight_decay"])
    return [kept - size * first / (jt.sqrt(second) / root + data["eps"]), first, second]


def AdamW(groups: list[dict], lr: float, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01) -> _AdamW:
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019), operation by operation as torch.optim.AdamW."""
    return _AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def SGD(groups: list[dict], lr: float, momentum=0.0, nesterov=False, weight_decay=0.0) -> _Optimiser:
    """SGD with momentum; Jittor's equals PyTorch's to 2e-7 without dampening, which is not offered."""
    return _Optimiser(jt.optim.SGD, {"momentum_buffer": "values"}, groups, lr=lr, momentum=momentum,
                      nesterov=nesterov, weight_decay=weight_decay)
