"""Faults in what a step of training does to weights and statistics."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lib import backend, models
from lib.alignment.exam.planting import Change, Fault, attribute, built
from lib.backend import nn
from lib.models.step import ParameterGroup
from lib.training import average, schedule
from lib.training import loop as training

NANODET, GOLD = "NanoDet-Plus", "Gold-YOLO N"
STATISTICS = r".*\.running_(mean|var)"


# ------------------------------------------------------------------------------------------------------- batch norm
def _biased(original):
    """The running variance takes in the biased one."""

    def forward(self, x):
        before = backend.numpy(self.running_var).astype(np.float64)
        found = original(self, x)
        if self.training:
            count = int(np.prod(x.shape)) // x.shape[1]
            kept = (1 - self.momentum) * before
            after = backend.numpy(self.running_var)
            wrong = (kept + (after - kept) * (count - 1) / count).astype(after.dtype)
            self.running_var = backend.tensor(wrong).detach()
        return found

    return forward


def _momenta(model):
    for _, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1 - module.momentum


# -------------------------------------------------------------------------------------------------------- optimiser
class Rewritten:
    """An optimiser whose parameters are set anew after each step by rule(before, moments, gradient, group, step)."""

    def __init__(self, sound: Any, model: nn.Module, named: list, settings: dict, rule: Callable):
        self._sound, self._model, self._settings, self._rule = sound, model, settings, rule
        self._names = [name for name, _ in named]
        self._rates: dict[str, float] = dict.fromkeys(self._names, settings["lr"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sound, name)

    def set_lr(self, rates: list[float]) -> None:
        self._rates = dict.fromkeys(self._names, rates[0])
        self._sound.set_lr(rates)

    def step(self, gradients: list) -> None:
        parameters = dict(self._model.named_parameters())
        before = {name: backend.numpy(parameters[name]).copy() for name in self._names}
        self._sound.step(gradients)
        state = self._sound.state()
        values = {}
        for name, old in before.items():
            first, second, count = (np.float64(state[f"{name}/{key}"]) for key in ("exp_avg", "exp_avg_sq", "step"))
            settings = {**self._settings, "lr": self._rates[name]}
            values[name] = self._rule(old, first, second, float(count), settings).astype(old.dtype)
        backend.load_state(self._model, values)


def _adamw_of(rule: Callable) -> Change:
    def make(original):
        def optimiser(model, groups, recipe, **changes):
            sound, named = original(model, groups, recipe, **changes)
            settings = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, **recipe.options, **changes}
            return Rewritten(sound, model, named, settings, rule), named

        return optimiser

    return Change(training, "optimiser", make)


def _corrected(first, second, count, settings):
    beta1, beta2 = settings["betas"]
    return first / (1 - beta1**count), second / (1 - beta2**count)


def _eps_inside(old, first, second, count, settings):
    mean, square = _corrected(first, second, count, settings)
    return old * (1 - settings["lr"] * settings["weight_decay"]) - settings["lr"] * mean / np.sqrt(
        square + settings["eps"]
    )


def _uncorrected(old, first, second, count, settings):
    return old * (1 - settings["lr"] * settings["weight_decay"]) - settings["lr"] * first / (
        np.sqrt(second) + settings["eps"]
    )


def _recipe(**changes: Any) -> Change:
    """An optimiser with other options."""

    def make(original):
        def optimiser(model, groups, recipe, **others):
            options = {name: value for name, value in changes.items() if name in recipe.options}
            plain = {name: value for name, value in changes.items() if name not in recipe.options}
            return original(model, groups, replace(recipe, options={**recipe.options, **options}, **plain), **others)

        return optimiser

    return Change(training, "optimiser", make)


def _undecayed(original):
    """Norms and biases in a group of their own without decay."""

    def groups(name, model):
        [whole] = original(name, model)
        shapes = {entry: value.shape for entry, value in model.named_parameters()}
        flat = tuple(entry for entry in whole.names if len(shapes[entry]) < 2)
        return (
            replace(whole, names=tuple(entry for entry in whole.names if entry not in flat)),
            ParameterGroup(flat, whole.learning_rate_factor, False, whole.warmup_from),
        )

    return groups


# --------------------------------------------------------------------------------------------------------- clipping
def _clipped_before_unscaling(original):
    """The gradients still carry mixed precision's factor when they are clipped."""

    def clip(gradients, limit):
        clipped, norm = original([gradient * 1024.0 for gradient in gradients], limit)
        return [gradient * (1 / 1024.0) for gradient in clipped], norm * (1 / 1024.0)

    return clip


def _clipped_one_by_one(original):
    """Every tensor has the limit for itself."""

    def clip(gradients, limit):
        return [original([gradient], limit)[0][0] for gradient in gradients], original(gradients, limit)[1]

    return clip


# ------------------------------------------------------------------------------------------- average and schedules
def _started_early(original):
    return lambda self, update: original(self, update + 1)


def _before_the_step(original):
    """The average takes in the weights that the step replaces."""

    def update(self, gradients):
        take, self.average.update = self.average.update, lambda count: None
        take(self.updates + 1)
        original(self, gradients)
        self.average.update = take

    return update


def _parameters_only(original):
    """Buffers are copied, not averaged."""

    def update(self, count):
        original(self, count)
        trained = {name for name, _ in self._model.named_parameters()}
        for name, value in backend.named_state(self._model):
            if name not in trained and name in self._values:
                self._values[name] = value.detach() * 1.0

    return update


def _one_step_early(original):
    return lambda self, steps, groups=(ParameterGroup(),): np.roll(original(self, steps, groups), -1, 0)


def _one_percent_off(original):
    return lambda self, steps, groups=(ParameterGroup(),): original(self, steps, groups) * 1.01


def _no_bias_warmup(original):
    def rates(self, steps, groups=(ParameterGroup(),)):
        return original(self, steps, tuple(replace(group, warmup_from=0.0) for group in groups))

    return rates


FAULTS = (
    Fault(
        "biased running variance",
        "average the biased variance, as Jittor's own layer does",
        "norms",
        NANODET,
        r".*\.running_var",
        (Change(nn.BatchNorm2d, "forward", _biased),),
    ),
    Fault(
        "BN momentum",
        "read momentum as what is kept, as TensorFlow does",
        "norms",
        NANODET,
        STATISTICS,
        (built(_momenta),),
    ),
    Fault(
        "momentum of one norm",
        "build one norm with the default momentum 0.1 for 0.03",
        "norms",
        GOLD,
        r"backbone\.stem\.rbr_dense\.bn\.running_(mean|var)",
        (attribute("backbone.stem.rbr_dense.bn", "momentum", 0.1),),
    ),
    Fault(
        "Adam eps placement",
        "add Adam's eps inside the root",
        "optimiser",
        NANODET,
        r"optimiser|parameter",
        (_adamw_of(_eps_inside),),
    ),
    Fault(
        "no bias correction",
        "leave out Adam's bias correction",
        "optimiser",
        NANODET,
        r"optimiser|parameter",
        (_adamw_of(_uncorrected),),
    ),
    Fault(
        "second beta",
        "use Adam's beta2 0.99",
        "optimiser",
        NANODET,
        r"optimiser|exp_avg_sq",
        (_recipe(betas=(0.9, 0.99)),),
    ),
    Fault(
        "decay on the wrong group",
        "spare norms and biases from decay where the published recipe doesn't",
        "optimiser",
        NANODET,
        r"optimiser|parameter group",
        (Change(models, "parameter_groups", _undecayed),),
    ),
    Fault(
        "no Nesterov",
        "leave Nesterov's momentum out",
        "optimiser",
        GOLD,
        r"optimiser|parameter",
        (_recipe(nesterov=False),),
    ),
    Fault(
        "clipping before unscaling",
        "clip gradients that still carry the factor of mixed precision",
        "clipping",
        NANODET,
        r"clipped|optimiser",
        (Change(training, "clip", _clipped_before_unscaling),),
    ),
    Fault(
        "clipping one by one",
        "clip every tensor by its own norm",
        "clipping",
        NANODET,
        r"clipped|optimiser",
        (Change(training, "clip", _clipped_one_by_one),),
    ),
    Fault(
        "EMA off by one",
        "count updates of the average from 2",
        "average and schedule",
        NANODET,
        r"average",
        (Change(schedule.Recipe, "average_weight", _started_early),),
    ),
    Fault(
        "EMA before the step",
        "average the weights before they are updated",
        "average and schedule",
        NANODET,
        r"average",
        (Change(training.Trainer, "_update", _before_the_step),),
    ),
    Fault(
        "EMA without buffers",
        "copy running statistics instead of averaging them",
        "average and schedule",
        NANODET,
        r"average",
        (Change(average.Average, "update", _parameters_only),),
    ),
    Fault(
        "warm-up off by one",
        "set the rate of the next step",
        "average and schedule",
        NANODET,
        r"learning_rate",
        (Change(schedule.NanoDetPlus, "learning_rates", _one_step_early),),
    ),
    Fault(
        "learning rate 1 % off",
        "scale the rate by a batch that is 1 % larger",
        "average and schedule",
        NANODET,
        r"learning_rate",
        (Change(schedule.NanoDetPlus, "learning_rates", _one_percent_off),),
    ),
    Fault(
        "biases not warmed up",
        "start the biases' rate at 0 like the others'",
        "average and schedule",
        GOLD,
        r"learning_rate",
        (Change(schedule.GoldYolo, "learning_rates", _no_bias_warmup),),
    ),
)
