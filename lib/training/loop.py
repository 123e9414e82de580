"""Training: one loop for every model, in both frameworks, from the same initial bytes and the same batches.

A run's folder holds `log.jsonl` (a line per step, per epoch and per evaluation; lib.training.log),
`checkpoint.safetensors` (all that a resumed run needs; its header holds the JSON part, so that one rename replaces
both), `weights.safetensors` (the averaged weights of the evaluation with the best AP) and `last.safetensors` (those of
the last evaluation, or of the last step where nothing evaluates; both are the same then).

Batches come from threads (lib.data.loader): nothing is forked, so nothing can hang where a framework's own threads were
copied by half. Everything is computed in float32, or on a GPU in mixed precision (lib.training.precision).

Follows NanoDet-Plus be9b4a9 (nanodet/trainer/task.py). Deliberate difference: a loss or a gradient that is not finite
ends the run.
"""

import json
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from tqdm.auto import tqdm

from lib import backend
from lib.data import stream
from lib.errors import UserError, is_memory
from lib.models.step import ParameterGroup, Step
from lib.record import atomic
from lib.training import checkpoints, parallel
from lib.training.average import Average
from lib.training.log import Log
from lib.training.precision import LossScale, check_available, mixed_forward
from lib.training.schedule import Recipe

LOG, CHECKPOINT, WEIGHTS, LAST = "log.jsonl", "checkpoint.safetensors", "weights.safetensors", "last.safetensors"
HEADER = "training"  # the checkpoint's header has this one key: several have no fixed order, and bytes must not vary
NORM = "gradient_norm"
OPTIONS = {"lr": "learning_rate"} | {name: name for name in ("momentum", "beta1", "beta2", "eps", "weight_decay")}
CHECKPOINT_SECONDS = 600  # of training that an interrupt may lose


@dataclass(frozen=True)
class Outcome:
    log: Path
    checkpoint: Path
    weights: Path  # of the best evaluation
    last: Path  # of the last one
    steps: int
    resumed_at: int  # steps that an earlier, interrupted call had done
    best: dict[str, Any] | None  # the best evaluation's line of the log


class Trainer:
    """Takes one training step after another; its state is the model, the optimiser, the average and the counts.

    A step is one batch; the optimiser updates after as many as the recipe accumulates, mostly one. `seed` is of what
    the model draws at random; None: nothing. precision: "float32" or "mixed" (`precision.check_available` says where).
    teacher: a model whose outputs the criterion takes beside the trained one's: (own, the teacher's).
    """

    def __init__(
        self,
        model: backend.nn.Module,
        criterion: Callable,
        recipe: Recipe,
        steps_per_epoch: int,
        groups: Sequence[ParameterGroup],
        seed: int | None = 0,
        precision: str = "float32",
        teacher: backend.nn.Module | None = None,
    ):
        self.model, self.criterion, self.recipe, self.teacher = model, criterion, recipe, teacher
        self.steps_per_epoch, self.seed = steps_per_epoch, seed
        self.scale = LossScale() if precision == "mixed" else None
        self.rates = recipe.learning_rates(steps_per_epoch, tuple(groups))
        self._momenta, self._due = recipe.momenta(steps_per_epoch), recipe.accumulations(steps_per_epoch)
        self.step = self.updates = self._summed = 0  # batches, optimiser steps, batches since the last of these
        self._optimiser, named = optimiser(model, groups, recipe)
        self._names, self._parameters = [name for name, _ in named], [parameter for _, parameter in named]
        self._sum: list = []  # of the gradients of the batches since the last update
        self.average = Average(model, recipe)
        if backend.world() > 1:
            for one in filter(None, (model, teacher)):
                backend.synchronise(one)

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self.step // self.steps_per_epoch

    def issue(self, images: np.ndarray, targets: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
        """Ask for one step on images (n, 3, h, w); return the criterion's components and the gradient's norm.

        Of several processes each has its own n images; what is returned is the same in all. These are tensors of one
        value, the norm is that before clipping. Nothing needs to have run when this returns, but an update in mixed
        precision, which must know whether the norm is finite: `backend.floats` waits.
        """
        self.criterion.epoch = self.epoch
        inputs = backend.tensor(images)
        outputs = self._forward(self.model, "model", inputs, targets)
        if self.teacher is not None:
            outputs = outputs, self._taught(inputs)
        losses = self.criterion(outputs, targets, image_size=images.shape[2:])
        norm = self._take(self._gradients(sum(losses.values())))
        return {name: backend.all_reduce(value.detach()) for name, value in losses.items()} | {NORM: norm}

    def _take(self, gradients: list) -> Any:
        """A step's own gradients: add them to those that wait, update where that is due; their norm before clipping."""
        if self._sum:
            gradients = [before + new for before, new in zip(self._sum, gradients, strict=True)]
        clipped, norm = clip(gradients, self.recipe.clip)
        self._summed += 1
        if self._summed < self._due[self.step]:
            self._sum = gradients
        elif self._is_usable(norm):
            self._update(clipped)
        else:
            self._summed, self._sum = 0, []
        self.step += 1
        return norm

    def _forward(self, model: backend.nn.Module, purpose: str, inputs: Any, *targets: Sequence[Mapping]) -> Any:
        """The outputs of a model in train(), which draws from the seed's stream of that purpose."""
        model.train()
        random = None if self.seed is None else stream(self.seed, purpose, self.step)
        if random and backend.world() > 1:
            random = parallel.Rows(random)
        model.step = Step(self.epoch, random, *targets)
        return model(inputs) if self.scale is None else mixed_forward(model, inputs)

    def _taught(self, inputs: Any) -> list:
        """The teacher's first two outputs, without gradient, in train() as Gold-YOLO's is; nothing of its state is used
        twice."""
        with backend.no_grad():
            return [output.detach() for output in self._forward(self.teacher, "teacher", inputs)[:2]]

    def _gradients(self, loss: Any) -> list:
        scaled = loss if self.scale is None else loss * self.scale.value
        found = backend.grad(scaled, self._parameters, retain_graph=False)
        gradients = backend.all_reduce_each(found)
        return gradients if self.scale is None else [gradient * (1 / self.scale.value) for gradient in gradients]

    def _is_usable(self, norm: Any) -> bool:
        """Whether to update; only mixed precision asks."""
        if self.scale is None:
            return True
        finite = math.isfinite(backend.floats([norm])[0])
        self.scale.update(finite)
        return finite

    def _update(self, gradients: list) -> None:
        self._optimiser.set_lr(self.rates[self.step].tolist())
        if self._momenta is not None:
            self._optimiser.set_momentum(float(self._momenta[self.step]))
        self._optimiser.step(gradients)
        self.updates, self._summed, self._sum = self.updates + 1, 0, []
        self.average.update(self.updates)

    def schedule(self) -> dict[str, float]:
        """The numbers that the last step was taken by, read where they act: counts, and of a step that ended in an
        update the optimiser's options by group and its own count of steps, and the average's weight."""
        told: dict[str, float] = {"step": self.step - 1, "epoch": self.criterion.epoch, "updates": self.updates}
        told |= {"waiting": self._summed, **({"scale": self.scale.value} if self.scale else {})}
        if self._summed:
            return told
        for i, group in enumerate(self._optimiser.groups):
            options = dict(zip(("beta1", "beta2"), group.get("betas", ()))) | group
            told |= {f"{key}/{i}": float(options[option]) for option, key in OPTIONS.items() if option in options}
        if counts := self._optimiser.counts():
            told |= {"optimiser_steps/fewest": min(counts), "optimiser_steps/most": max(counts)}
        return told | {"average_weight": self.average.weight}

    def state(self) -> dict[str, np.ndarray]:
        """Every array of the run, under "model/", "average/", "optimiser/", "sum/", "count/" and in mixed precision
        "scale/"."""
        parts = {
            "model": {name: backend.numpy(value) for name, value in backend.named_state(self.model)},
            "average": self.average.state(),
            "optimiser": self._optimiser.state(),
            "sum": {name: backend.numpy(value) for name, value in zip(self._names, self._sum)},
            "count": {name: np.array(getattr(self, name), np.int64) for name in ("step", "updates", "_summed")},
            "scale": self.scale.state() if self.scale else {},
        }
        return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        def part(start: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)}

        backend.load_state(self.model, part("model/"))
        self.average.load_state(part("average/"))
        self._optimiser.load_state(part("optimiser/"))
        summed = part("sum/")
        self._sum = [backend.tensor(summed[name]) for name in self._names if summed]
        for name, value in part("count/").items():
            setattr(self, name, int(value))
        if self.scale:
            self.scale.load_state(part("scale/"))


def optimiser(
    model: backend.nn.Module, groups: Sequence[ParameterGroup], recipe: Recipe, **changes: Any
) -> tuple[Any, list]:
    """The recipe's optimiser over the groups, and its (name, parameter) in the order in which it takes gradients.

    changes: options that replace the recipe's ("lr", "weight_decay", …).
    """
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, **recipe.options, **changes}
    parameters = dict(model.named_parameters())
    named = [[(name, parameters[name]) for name in group.names] for group in groups]
    settings = [
        {
            "parameters": members,
            "lr": group.learning_rate_factor * options["lr"],
            "weight_decay": options["weight_decay"] if group.decays else 0.0,
        }
        for members, group in zip(named, groups, strict=True)
    ]
    return getattr(backend, recipe.optimiser)(settings, **options), [pair for members in named for pair in members]


def clip(gradients: list, limit: float) -> tuple[list, Any]:
    """Gradients scaled to a global L2 norm of at most `limit`, and their norm before (as torch's clip_grad_norm_)."""
    squares = [backend.sum(gradient * gradient).reshape(1) for gradient in gradients]
    norm = backend.sqrt(backend.sum(backend.cat(squares)))
    if math.isinf(limit):
        return gradients, norm
    # As tensors: a Python number in Jittor would be float32 among float64.
    limit, little = (backend.tensor(np.asarray(value, str(norm.dtype).rpartition(".")[2])) for value in (limit, 1e-6))
    factor = backend.clamp(limit / (norm + little), max=1.0)
    return [gradient * factor for gradient in gradients], norm


def train(
    model: backend.nn.Module,
    criterion: Callable,
    loader: Any,
    recipe: Recipe,
    folder: str | Path,
    *,
    groups: Sequence[ParameterGroup],
    seed: int = 0,
    evaluate: Callable[[backend.nn.Module], Mapping[str, float]] | None = None,
    evaluate_every: int = 10,
    evaluate_before: bool = False,
    checkpoint_every: int = 0,
    identity: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    precision: str = "float32",
    teacher: backend.nn.Module | None = None,
    replace: bool = True,
) -> Outcome:
    """Train for recipe.epochs and return what the run left in `folder`.

    loader: `lib.data.loader.Loader` over the training images with recipe.batch.
    groups: how the optimiser divides the parameters. seed: of what the model draws at random in training.
    evaluate: called with the averaged model in evaluation mode after the first epoch (what is wrong with the validation
        data shows early), after each `evaluate_every` epochs and after the last; "AP" of what it returns decides which
        weights are best. evaluate_before: also before the first step, as epoch -1; that one can't be the best.
    checkpoint_every: steps between two checkpoints inside an epoch; 0: after CHECKPOINT_SECONDS. One is at each epoch's
        end. teacher: see Trainer; `identity` must name its weights.
    identity: plain values that tell this run from another (data, seed, size). An unfinished run of the same recipe and
        identity in `folder` continues where its checkpoint stands, bit for bit.
    classes: names by label, which the weights' files carry.
    replace: any other run there is replaced, a finished one too; else it is a UserError.
    """
    check_available(precision)
    folder = Path(folder)
    trainer = Trainer(model, criterion, recipe, len(loader), groups, seed, precision, teacher)
    known = {**(identity or {}), "precision": precision}
    facts = {"recipe": asdict(recipe), "steps_per_epoch": len(loader), "identity": known}
    run = (_Follower if backend.rank() else _Run)(trainer, folder, facts, replace, classes)
    run.compare(loader)
    due = {0, recipe.epochs - 1, *range(evaluate_every - 1, recipe.epochs, evaluate_every)} if evaluate else set()
    with (
        _memory_named(recipe.batch, folder),
        nullcontext() if backend.rank() else Log(folder / LOG, trainer.step, run.pending) as run.log,
        tqdm(total=len(trainer.rates), initial=trainer.step, unit="step", mininterval=1.0, desc="training") as run.bar,
    ):
        if evaluate and evaluate_before and not trainer.step:
            run.evaluate(evaluate, -1)
        for epoch in range(trainer.epoch - run.pending, recipe.epochs):
            run.train(loader.iter_epoch(epoch, skip=trainer.step - epoch * len(loader)), checkpoint_every)
            if epoch in due:
                run.save(pending=True)  # a broken validation image does not cost the epoch
                run.evaluate(evaluate, epoch)
            run.save()
            run.compare(loader)
        if not evaluate:
            run.keep(LAST, WEIGHTS)
    files = (folder / name for name in (LOG, CHECKPOINT, WEIGHTS, LAST))
    return Outcome(*files, trainer.step, run.resumed_at, run.best)


class _Run:
    """A run and its folder. `facts` tell it from others; `pending`: the epoch just ended is still to be evaluated."""

    log: Log | None
    bar: tqdm

    def __init__(self, trainer: Trainer, folder: Path, facts: Mapping[str, Any], replace: bool, classes: Sequence[str]):
        self.trainer, self.folder, self.classes = trainer, folder, classes
        self._facts = json.loads(json.dumps(facts))  # as a checkpoint gives them back
        held = self._resume(replace)
        self.best, self.pending, self.resumed_at = held.get("best"), held.get("pending", False), trainer.step

    def compare(self, loader: Any) -> None:
        """UserError unless all processes stand at the same step with the same state and have the same next batch."""
        if backend.world() == 1:
            return
        held, step = self.trainer.state(), self.trainer.step
        arrays = [held[name] for name in sorted(held)]
        if step < len(self.trainer.rates):
            batch = loader.whole(*divmod(step, len(loader)))
            arrays += [batch.images, *(target[key] for target in batch.targets for key in ("boxes", "labels"))]
        parallel.agree(
            arrays,
            f"has other weights or another batch than process 0 at step {step}: all need this folder, {self.folder}, "
            "the same files, versions and options",
        )

    def train(self, batches: Iterator, checkpoint_every: int) -> None:
        """Train on what is left of an epoch: a line of the log for each step, then one for the epoch."""
        lines, saved = [], time.monotonic()
        for line in self._steps(batches):
            self.write(line)
            lines.append(line)
            self.bar.update()
            self.bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
            step, waited = self.trainer.step, time.monotonic() - saved
            due = step % checkpoint_every == 0 if checkpoint_every else waited >= CHECKPOINT_SECONDS
            if due and step % self.trainer.steps_per_epoch:
                self.save()
                saved = time.monotonic()
        if lines:
            self.write(_cost(lines, self.trainer.recipe.batch))

    def _steps(self, batches: Iterator) -> Iterator[dict[str, Any]]:
        """Train on the batches and yield the log's line of each step. UserError where a number is not finite."""
        trainer, clock = self.trainer, time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - clock
            step, epoch, rate = trainer.step, trainer.epoch, float(trainer.rates[trainer.step].max())
            asked = trainer.issue(batch.images, batch.targets)
            # Reading waits for all of the step: an average never computed would keep every step's graph alive.
            values = dict(zip(asked, backend.floats(list(asked.values())), strict=True))
            extra: dict[str, Any] = {NORM: values.pop(NORM)}
            if trainer.scale:
                extra["scale"] = trainer.scale.value
                if not math.isfinite(extra[NORM]) and trainer.scale.value >= 1:
                    extra[NORM] = None  # the update was left out; the next has a smaller scale
            for name, value in (values | extra).items():
                if value is not None and not math.isfinite(value):
                    raise UserError(
                        f"training: {name} is {value} at step {step} (epoch {epoch}, learning rate {rate:.3g}); what "
                        f"{self.folder} holds is from before: lower the learning rate or look for broken images and "
                        "boxes"
                    )
            line = {"step": step, "epoch": epoch, "learning_rate": rate, "loss": math.fsum(values.values())}
            seconds = {"step_seconds": round(time.perf_counter() - clock, 6), "wait_seconds": round(waited, 6)}
            yield line | values | extra | seconds | {"schedule": trainer.schedule()}
            clock = time.perf_counter()

    def _evaluation(self, evaluate: Callable, epoch: int) -> dict[str, Any]:
        """The log's line of an evaluation of the averaged weights."""
        clock = time.perf_counter()
        with self.trainer.average.in_use() as model:
            numbers = {name: float(value) for name, value in evaluate(model).items()}
        seconds = round(time.perf_counter() - clock, 6)
        return {"step": self.trainer.step - 1, "epoch": epoch, "evaluation": numbers, "evaluation_seconds": seconds}

    def evaluate(self, evaluate: Callable, epoch: int) -> None:
        """Evaluate at an epoch's end, and keep the averaged weights: as the last, where they are better as the best.
        Before the first step (epoch -1) nothing is kept."""
        line = self._evaluation(evaluate, epoch)
        self.write(line)
        if epoch < 0:
            return
        if self.best is None or line["evaluation"]["AP"] > self.best["evaluation"]["AP"]:
            self.best = line
        self.keep(*((LAST, WEIGHTS) if line is self.best else (LAST,)))

    def write(self, line: Mapping[str, Any]) -> None:
        self.log.write(line)

    def keep(self, *names: str) -> None:
        for name in names:
            checkpoints.write(self.folder / name, self.trainer.average.state(), self.classes)

    def save(self, pending: bool = False) -> None:
        """Write the checkpoint, after what the log holds."""
        self.log.flush()
        progress = {"step": self.trainer.step, "epoch": self.trainer.epoch, "best": self.best, "pending": pending}
        header = {HEADER: json.dumps({**self._facts, **progress}, sort_keys=True)}
        arrays = {name: np.asarray(array, order="C") for name, array in self.trainer.state().items()}
        with atomic(self.folder / CHECKPOINT) as temporary:
            temporary.write_bytes(safetensors.numpy.save(arrays, header))

    def _resume(self, replace: bool) -> Mapping[str, Any]:
        """Bring the trainer to where this run stands in its folder; return what `save` said, nothing for a new run."""
        path = self.folder / CHECKPOINT
        for stray in self.folder.glob(f".*.{CHECKPOINT}"):  # what a process killed while it wrote has left
            stray.unlink(missing_ok=True)  # by another process
        if not path.exists():
            return {}
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                state = json.loads(file.metadata()[HEADER])
                others = _differences(state, self._facts)
                if others or (state["step"] == len(self.trainer.rates) and not state.get("pending")):
                    if replace:
                        return {}
                    another = f"another run (of another {', '.join(others)})"
                    which = another if others else f"this run, complete, its weights in {WEIGHTS}"
                    raise UserError(
                        f"{self.folder}: holds {which}; give another folder, or remove this one to train anew"
                    )
                self.trainer.load_state({name: file.get_tensor(name) for name in sorted(file.keys())})
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a checkpoint of this run ({error}); remove it to start from the beginning"
            ) from error
        return state


class _Follower(_Run):
    """The run in a process that is not the first: it trains alike, and leaves evaluating and writing to that one."""

    def _nothing(self, *_: Any, **__: Any) -> None:
        """The first process does it."""

    write = evaluate = keep = save = _nothing


def _differences(state: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """What two runs have otherwise, by the names of their recipe and identity."""
    before, now = (
        {"steps_per_epoch": held["steps_per_epoch"], **held["recipe"], **held["identity"]} for held in (state, facts)
    )
    return [name for name in before | now if before.get(name) != now.get(name)]


def _cost(lines: Sequence[Mapping[str, Any]], batch: int) -> dict[str, Any]:
    """The log's line of what an epoch took, of the part that this process ran; memory is its largest so far, in MiB."""
    seconds, waited = (math.fsum(line[name] for line in lines) for name in ("step_seconds", "wait_seconds"))
    cost = {
        "seconds": round(seconds, 3),
        "images_per_second": round(len(lines) * batch / seconds, 3),
        "waiting_share": round(waited / seconds, 6),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),  # Linux counts KiB
    }
    if (held := backend.peak_device_memory()) is not None:
        cost["peak_device_mib"] = round(held / 2**20, 1)
    return {"step": lines[-1]["step"], "epoch": lines[-1]["epoch"], "cost": cost}


@contextmanager
def _memory_named(batch: int, folder: Path) -> Iterator[None]:
    """Turn an allocator's error into a UserError with its remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        raise UserError(
            f"training: memory ran out at a batch of {batch} ({' '.join(str(error).split())[:120]}); take a smaller "
            f"batch or input size and start again: {folder} keeps what its last checkpoint held"
        ) from error
