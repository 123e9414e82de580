"""Faults in what a step of training does to weights and statistics."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lib import backend, models
from lib.backend import nn
from lib.models.step import ParameterGroup
from lib.training import average, schedule
from lib.training import loop as training
from notebooks.exam.planting import Change, Faults, attribute, built

FAULTS = Faults()
norms, optimiser, clipping, averages = (
    FAULTS.of(kind, "NanoDet-Plus") for kind in ("norms", "optimiser", "clipping", "average and schedule")
)
gold_norms, gold_optimiser, gold_schedule = (
    FAULTS.of(kind, "Gold-YOLO N") for kind in ("norms", "optimiser", "average and schedule")
)
UPDATE, CLIPPED, RATE = r"optimiser|parameter", r"clipped|optimiser", "learning_rate"
WHOLE = (ParameterGroup(),)


# ------------------------------------------------------------------------------------------------------- batch norm
@norms.code("biased running variance", r".*\.running_var", nn.BatchNorm2d, "forward")
def _(original, self, x):
    """average the biased variance, as Jittor's own layer does"""
    before = backend.numpy(self.running_var).astype(np.float64)
    found = original(self, x)
    if self.training:
        count = int(np.prod(x.shape)) // x.shape[1]
        kept = (1 - self.momentum) * before
        after = backend.numpy(self.running_var)
        wrong = (kept + (after - kept) * (count - 1) / count).astype(after.dtype)
        self.running_var = backend.tensor(wrong).detach()
    return found


def _momenta(model):
    for _, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1 - module.momentum


norms.add(
    "BN momentum", "read momentum as what is kept, as TensorFlow does", r".*\.running_(mean|var)", built(_momenta)
)
gold_norms.add(
    "momentum of one norm",
    "build one norm with the default momentum 0.1 for 0.03",
    r"backbone\.stem\.rbr_dense\.bn\.running_(mean|var)",
    attribute("backbone.stem.rbr_dense.bn", "momentum", 0.1),
)


# -------------------------------------------------------------------------------------------------------- optimiser
class Rewritten:
    """An optimiser whose parameters are set anew after each step by rule(before, moments, corrections, settings)."""

    def __init__(self, sound: Any, model: nn.Module, named: list, settings: dict, rule: Callable):
        self._sound, self._model, self._settings, self._rule = sound, model, settings, rule
        self._names = [name for name, _ in named]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sound, name)

    def set_lr(self, rates: list[float]) -> None:
        self._settings["lr"] = rates[0]
        self._sound.set_lr(rates)

    def step(self, gradients: list) -> None:
        parameters = dict(self._model.named_parameters())
        before = {name: backend.numpy(parameters[name]).copy() for name in self._names}
        self._sound.step(gradients)
        state, settings, values = self._sound.state(), self._settings, {}
        for name, old in before.items():
            first, second, count = (np.float64(state[f"{name}/{key}"]) for key in ("exp_avg", "exp_avg_sq", "step"))
            corrections = (1 - beta ** float(count) for beta in settings["betas"])
            moved = self._rule(first, second, *corrections, settings["eps"])
            decayed = old * (1 - settings["lr"] * settings["weight_decay"])
            values[name] = (decayed - settings["lr"] * moved).astype(old.dtype)
        backend.load_state(self._model, values)


def _adamw(rule: Callable) -> Change:
    """AdamW whose change, over the rate, is rule(first, second moment, their bias corrections, eps)."""

    def build(original, model, groups, recipe, **changes):
        sound, named = original(model, groups, recipe, **changes)
        settings = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, **recipe.options, **changes}
        return Rewritten(sound, model, named, settings, rule), named

    return Change(training, "optimiser", lambda original: partial(build, original))


optimiser.add(
    "Adam eps placement",
    "add Adam's eps inside the root",
    UPDATE,
    _adamw(lambda first, second, one, two, eps: first / one / np.sqrt(second / two + eps)),
)
optimiser.add(
    "no bias correction",
    "leave out Adam's bias correction",
    UPDATE,
    _adamw(lambda first, second, one, two, eps: first / (np.sqrt(second) + eps)),
)


def _options(**changes: Any) -> Change:
    """An optimiser with other options of its recipe."""

    def build(original, model, groups, recipe, **others):
        return original(model, groups, replace(recipe, options={**recipe.options, **changes}), **others)

    return Change(training, "optimiser", lambda original: partial(build, original))


optimiser.add("second beta", "use Adam's beta2 0.99", r"optimiser|exp_avg_sq", _options(betas=(0.9, 0.99)))


@optimiser.code("decay on the wrong group", r"optimiser|parameter group", models, "parameter_groups")
def _(original, name, model):
    """spare norms and biases from decay where the published recipe doesn't"""
    [whole] = original(name, model)
    shapes = {entry: value.shape for entry, value in model.named_parameters()}
    flat = tuple(entry for entry in whole.names if len(shapes[entry]) < 2)
    return (
        replace(whole, names=tuple(entry for entry in whole.names if entry not in flat)),
        ParameterGroup(flat, whole.learning_rate_factor, False, whole.warmup_from),
    )


class Forgetful:
    """AdamW whose second moment decays otherwise from the fourth step on, though its options say nothing of it."""

    def __init__(self, sound: Any):
        self._sound = sound

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sound, name)

    def step(self, gradients: list) -> None:
        kept = [group["betas"] for group in self._sound.groups]
        late = max(self._sound.counts(), default=0) >= 3
        for group, (first, second) in zip(self._sound.groups, kept):
            group["betas"] = first, 0.99 if late else second
        self._sound.step(gradients)
        for group, betas in zip(self._sound.groups, kept):
            group["betas"] = betas


@optimiser.code("second moment from step 4", r"optimiser|exp_avg_sq", training, "optimiser")
def _(original, *arguments, **changes):
    """let AdamW's second moment decay faster once it has warmed up"""
    sound, named = original(*arguments, **changes)
    return Forgetful(sound), named


@optimiser.code("counting from 0 after a resume", r"optimiser|step", training.Trainer, "load_state")
def _(original, self, arrays):
    """save the moments and not the count of steps"""
    counts = {name for name in arrays if name.startswith("optimiser/") and name.endswith("/step")}
    original(self, {name: np.zeros_like(value) if name in counts else value for name, value in arrays.items()})


gold_optimiser.add("no Nesterov", "leave Nesterov's momentum out", UPDATE, _options(nesterov=False))


# --------------------------------------------------------------------------------------------------------- clipping
@clipping.code("clipping before unscaling", CLIPPED, training, "clip")
def _(original, gradients, limit):
    """clip gradients that still carry the factor of mixed precision"""
    clipped, norm = original([gradient * 1024.0 for gradient in gradients], limit)
    return [gradient * (1 / 1024.0) for gradient in clipped], norm * (1 / 1024.0)


@clipping.code("clipping one by one", CLIPPED, training, "clip")
def _(original, gradients, limit):
    """clip every tensor by its own norm"""
    return [original([gradient], limit)[0][0] for gradient in gradients], original(gradients, limit)[1]


# ------------------------------------------------------------------------------------------- average and schedules
@averages.code("EMA off by one", "average", schedule.Recipe, "average_weight")
def _(original, self, update):
    """count updates of the average from 2"""
    return original(self, update + 1)


@averages.code("EMA before the step", "average", training.Trainer, "_update")
def _(original, self, gradients):
    """average the weights before they are updated"""
    take, self.average.update = self.average.update, lambda count: None
    take(self.updates + 1)
    original(self, gradients)
    self.average.update = take


@averages.code("EMA without buffers", "average", average.Average, "update")
def _(original, self, count):
    """copy running statistics instead of averaging them"""
    original(self, count)
    trained = {name for name, _ in self._model.named_parameters()}
    for name, value in backend.named_state(self._model):
        if name not in trained and name in self._values:
            self._values[name] = value.detach() * 1.0


@averages.code("warm-up off by one", RATE, schedule.NanoDetPlus, "learning_rates")
def _(original, self, steps, groups=WHOLE):
    """set the rate of the next step"""
    return np.roll(original(self, steps, groups), -1, 0)


@averages.code("warm-up ends one step late", RATE, schedule.NanoDetPlus, "learning_rates")
def _(original, self, steps, groups=WHOLE):
    """set the full rate after the step that should have it"""
    rates = original(self, steps, groups)
    rates[self.warmup_steps : self.warmup_steps + 1] = rates[self.warmup_steps - 1]
    return rates


@averages.code("EMA's ramp after a resume", "average", training.Trainer, "load_state")
def _(original, self, arrays):
    """count the average's updates anew when a run goes on"""
    original(self, arrays)
    take, before = self.average.update, self.updates
    self.average.update = lambda count: take(count - before)


@averages.code("learning rate 1 % off", RATE, schedule.NanoDetPlus, "learning_rates")
def _(original, self, steps, groups=WHOLE):
    """scale the rate by a batch that is 1 % larger"""
    return original(self, steps, groups) * 1.01


@gold_schedule.code("biases not warmed up", RATE, schedule.GoldYolo, "learning_rates")
def _(original, self, steps, groups=WHOLE):
    """start the biases' rate at 0 like the others'"""
    return original(self, steps, tuple(replace(group, warmup_from=0.0) for group in groups))
