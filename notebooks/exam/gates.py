"""The gates that a candidate goes through, in causal order, and what each says is wrong.

Each asks the engine: its data stages, its questions over two sides' records, its layers, its lock-step. The first that
fails has caught the fault, and what it names is what a user would look at. A side's records are held in memory.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from lib import backend, losses, models, postprocess
from lib.alignment import capture, datastages, divergence, layers, lockstep, rows, steps, verdict, windows
from lib.alignment.decisions import FLIP
from lib.alignment.evidence import Evidence
from lib.alignment.measure import arrays, precisions
from lib.alignment.questions import ask
from lib.alignment.seeded import seeded_input
from lib.alignment.verdict import Row, Verdict
from notebooks.exam import rounding
from notebooks.exam.planting import Change, becomes, planted
from notebooks.exam.subjects import EPOCH, STEPS, Subject, data_stages

ROLES = ("torch", "jittor")  # reference and candidate, under the names that the questions ask for
POST, CRITERION, OPTIMISER, ASSIGNMENT = "post-processing", "criterion", "optimiser", "assignment"
ONE_FORMAT = becomes(capture, "FORMATS", ("safetensors",))
# Both sides run in the same framework here; what the reference alone needs is not measured on the other.
SECOND = becomes(capture, "is_reference", lambda side: False)


class Kept(NamedTuple):
    """What a record holds."""

    fields: dict[str, Any]
    arrays: Mapping[str, np.ndarray]


class Held(Evidence):
    """Evidence of two sides in memory."""

    def __init__(self, model: str, sides: Mapping[str, "Side"]):
        super().__init__("memory", model)
        self._sides = sides

    def get(self, side: str, stage: str) -> Kept | None:
        """As in the base class."""
        return self._sides[side].stage(stage) if side in self._sides else None

    def arrays(self, side: str, stage: str, prefix: str = "") -> dict[str, np.ndarray]:
        """As in the base class."""
        held = self._sides[side].stage(stage).arrays
        return {name.removeprefix(prefix): held[name] for name in sorted(held) if name.startswith(prefix)}


class Side:
    """One side of a subject with its changes; what is asked for is measured once."""

    def __init__(self, subject: Subject, changes: Sequence[Change] = ()):
        self.subject, self._changes = subject, (*subject.settings, ONE_FORMAT, *changes)
        self._stages: dict[str, Kept] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """The changes are in force."""
        with planted(self._changes):
            yield

    def stage(self, name: str) -> Kept:
        """What `capture` measures for a record."""
        if name not in self._stages:
            with self.active():
                self._stages[name] = Kept(*_MEASURED[name](self.subject))
        return self._stages[name]

    @cached_property
    def data(self) -> list[datastages.Stage]:
        """The stages that pictures go through."""
        with self.active():
            return data_stages(self.subject.model)

    @cached_property
    def later(self) -> list[dict[str, Any]]:
        """The windows around what the published recipe does later."""
        model = models.build(self.subject.model, self.subject.training.num_classes, None)
        with self.active():
            return windows.of_recipe(self.subject.model, models.parameter_groups(self.subject.model, model))

    def builder(self, training: bool) -> Callable[[str], backend.nn.Module]:
        """Builds the seeded model in a precision, in the mode asked for."""
        case = self.subject.training if training else self.subject.forward

        def build(precision: str) -> backend.nn.Module:
            model = capture.seeded_model(self.subject.model, case, precision)
            if not training:
                return model.eval()
            model.step = next(iter(case.phases.values())).step
            return model.train()

        return build

    def trained(self, native: bool) -> Kept:
        """A lock-step run: on batches, or on gradients given."""
        if (key := f"lock-step {native}") in self._stages:
            return self._stages[key]
        subject, case = self.subject, self.subject.training
        batches = [
            SimpleNamespace(
                images=seeded_input(f"{case.images}:{step}", (case.batch, 3, *case.size)), targets=case.targets
            )
            for step in range(STEPS)
        ]

        def build(precision: str) -> steps.Watched:
            model = capture.seeded_model(subject.model, case, precision)
            groups = models.parameter_groups(subject.model, model)
            criterion = losses.build(subject.model, case.num_classes)
            return steps.Watched(model, criterion, subject.recipe, EPOCH, groups, seed=None)

        advance = steps.native(batches) if native else steps.fed
        with self.active():
            trainers = {precision: build(precision) for precision in precisions()}
            names = list(trainers["float32"].trained())
            self._stages[key] = Kept(*steps.lockstep(trainers, advance, STEPS, (names[0], names[-1])))
        return self._stages[key]


_MEASURED: Mapping[str, Callable[[Subject], tuple]] = {
    "convert": lambda subject: (capture.conversion(subject.model, subject.forward), {}),
    **rounding.MEASURED,
}


class Reference(Side):
    """The clean side of a subject, which many candidates share; its layers lie in a folder."""

    def __init__(self, subject: Subject, folder: Path):
        super().__init__(subject)
        self._folder = folder
        self._layers: set[bool] = set()

    def stage(self, name: str) -> Kept:
        """As in the base class; with what rounding may do, which only PyTorch's runs can show."""
        found = super().stage(name)
        if name in rounding.MEASURED and "reach" not in found.fields:
            found.fields["reach"] = rounding.reach(self.subject, name)
        return found

    def layers(self, training: bool) -> Path:
        """The folder of the captured layers, in evaluation or in training mode."""
        folder = self._folder / ("training" if training else "evaluation")
        if training not in self._layers:
            with self.active():
                layers.reference(self.builder(training), images(self.subject, training), folder)
            self._layers.add(training)
        return folder

    @cached_property
    def outputs(self) -> dict[str, list[Any]]:
        """What the post-processing is given: the exact and the float32 outputs, and these with many equal scores."""
        found = []
        with self.active(), backend.no_grad():
            for precision in ("float64", "float32"):
                output = self.builder(False)(precision)(backend.tensor(self.subject.forward.input().astype(precision)))
                found.append(arrays(output) if isinstance(output, dict) else backend.numpy(output))
        return {"": found, " with ties": [_coarse(output) for output in found]}


def images(subject: Subject, training: bool) -> list[np.ndarray]:
    """The input of the layers."""
    return [(subject.training if training else subject.forward).input()]


def _coarse(output: Any) -> Any:
    """Logits, or scores, in steps of an eighth: what low precision leaves, where ties are many."""
    if isinstance(output, dict):
        return {name: np.round(value * 8) / 8 if name == "pred_logits" else value for name, value in output.items()}
    return np.concatenate([output[:, :, :4], np.round(output[:, :, 4:] * 8) / 8], 2)


# ----------------------------------------------------------------------------------------------------------- gates
@dataclass(frozen=True)
class Finding:
    """What a gate says of a candidate."""

    gate: str
    passed: bool
    ratio: float  # error over gate of its worst row that has a gate; infinite where none of the failing has
    named: tuple[str, ...] = ()  # what it points at
    note: str = ""


def examine(reference: Reference, candidate: Side) -> Finding:
    """The first gate that fails; where none does, the largest ratio of all of them and which it was."""
    largest, where = 0.0, ""
    for name, gate in GATES.items():
        if name.startswith("lock-step") and reference.subject.recipe is None:  # it isn't trained
            continue
        found = gate(reference, candidate)
        if not found.passed:
            return replace(found, gate=name)
        if found.ratio > largest:
            largest, where = found.ratio, name
    return Finding("none", True, largest, note=f"nearest to its gate: {where}")


def _finding(judged: Sequence[Row], named: Sequence[str] = ()) -> Finding:
    """By the engine's own conclusion."""
    answer = verdict.conclude("exam", "-".join(ROLES), judged, ())
    passed = answer.verdict is Verdict.PASS
    ratios = [row.ratio for row in (judged if passed else failing(judged)) if row.passed is not None]
    beyond = max((ratio for ratio in ratios if np.isfinite(ratio)), default=0.0 if passed else np.inf)
    return Finding("", passed, float(beyond), tuple(dict.fromkeys(named)), str(answer.values.get("note", "")))


def failing(judged: Sequence[Row]) -> list[Row]:
    return [row for row in judged if row.passed is False]


Gate = Callable[[Reference, Side], Finding]
Named = Callable[[Reference, Side, Sequence[Row]], Sequence[str]]  # what failing rows point at


def _asked(question: str, named: Named, scalars: bool | None = None) -> Gate:
    """A gate that asks one of the engine's questions; `scalars`: of its rows only those of scalars, or no such."""

    def gate(reference: Reference, candidate: Side) -> Finding:
        held = Held(reference.subject.model, dict(zip(ROLES, (reference, candidate))))
        found = ask(question, held, *ROLES).rows
        found = [row for row in found if scalars is None or ("scalar" in row.what) == scalars]
        return _finding(found, named(reference, candidate, wrong) if (wrong := failing(found)) else ())

    return gate


def _data(reference: Side, candidate: Side) -> Finding:
    found = datastages.differences(reference.data, candidate.data)
    first = datastages.first_difference(found)
    return _finding(found, [first.split(":")[0]] if first else [])


def _entries(reference: Reference, candidate: Side, wrong: Sequence[Row]) -> list[str]:
    """The entries that the rows name."""
    known = {row[0] for row in reference.stage("convert").fields["state"]}
    said = (row.note.removeprefix("first: ").split(":")[0] for row in wrong)
    return [name for name in said if name in known]


def _layers(reference: Reference, candidate: Side, wrong: Sequence[Row]) -> list[str]:
    """Layers, where more than what is found is wrong."""
    apart = ("decisions", "matched detections", FLIP)
    return _blamed(reference, candidate, False) if any(row.what not in apart for row in wrong) else [POST]


def _detections(reference: Reference, candidate: Side) -> Finding:
    """The candidate's post-processing alone, on the reference's outputs."""
    subject, judged = reference.subject, []
    settings = postprocess.settings(subject.model)
    for label, outputs in reference.outputs.items():
        kept = []
        for side in (reference, candidate):
            with side.active():
                found = (
                    postprocess.detections(subject.model, output, image_size=subject.forward.size) for output in outputs
                )
                kept.append([images[0] for images in found])
        single, double = ({role: pair[i] for role, pair in zip(ROLES, kept)} for i in (1, 0))
        judged += [
            replace(row, name=row.name + label)
            for row in rows.detections(*ROLES, single, double, settings.score_threshold, settings.max_detections)
        ]
    return _finding(judged, [POST])


def _outputs(reference: Reference, candidate: Side, wrong: Sequence[Row]) -> list[str]:
    """Layers, or where only the whole is wrong, outputs."""
    blamed = _blamed(reference, candidate, True)
    return blamed if blamed and blamed != [divergence.ROOT] else [row.name for row in wrong]


def _components(reference: Reference, candidate: Side, wrong: Sequence[Row]) -> list[str]:
    """The wrong components of the loss."""
    return [name for row in wrong if (name := row.name.split("/")[-1]) != "loss_total"]


def _backward(reference: Reference, candidate: Side, wrong: Sequence[Row]) -> list[str]:
    """Layers; where none is wrong alone while gradients are, the criterion."""
    return _blamed(reference, candidate, False) or _blamed(reference, candidate, True) or [CRITERION]


def _lockstep(native: bool) -> Gate:
    """Names the first wrong quantity, or the parameters that are grouped otherwise."""

    def gate(reference: Reference, candidate: Side) -> Finding:
        ours, theirs = reference.trained(native), candidate.trained(native)
        found = lockstep.side_by_side(ours.fields, theirs.fields, (ours.arrays, theirs.arrays))
        first = found.first()
        return _finding(found.rows(), [row.what for row in found.faults] or ([first.kind] if first else []))

    return gate


def _later(reference: Reference, candidate: Side) -> Finding:
    """Names the first wrong quantity around what the schedule does later, and after a resume."""
    found = [
        lockstep.side_by_side(mine, other, first=mine["first"])
        for mine, other in zip(reference.later, candidate.later, strict=True)
    ]
    first = next(filter(None, (one.first() for one in found)), None)
    return _finding([row for one in found for row in one.rows()], [first.kind] if first else [])


def _blamed(reference: Reference, candidate: Side, training: bool) -> list[str]:
    """The paths of the layers that are wrong alone: forward, and where there is none backward."""
    folder = reference.layers(training)
    with candidate.active():
        fields = layers.candidate(candidate.builder(training), images(reference.subject, training), folder)
    found = divergence.localise(fields)
    blamed = found.blamed("forward") or found.blamed("backward")
    return [*(row.name for row in found.faults), *dict.fromkeys(layer.path or divergence.ROOT for layer in blamed)]


GATES: Mapping[str, Gate] = {
    "data stages": _data,
    "structure": _asked("structure", _entries),
    "conversion": _asked("conversion", _entries),
    "forward": _asked("forward", _layers),
    "detections": _detections,
    "training outputs": _asked("losses", _outputs, scalars=False),
    "assignment": _asked("assignment", lambda *_: [ASSIGNMENT]),
    "losses": _asked("losses", _components, scalars=True),
    "gradients": _asked("gradients", _backward),
    "batch norm": _asked("batch_norm", lambda reference, candidate, wrong: [row.name for row in wrong]),
    "step": _asked("step", lambda *_: [OPTIMISER]),
    "lock-step, same gradients": _lockstep(False),
    "lock-step": _lockstep(True),
    "lock-step, later": _later,
}


@contextmanager
def reference_of(subject: Subject) -> Iterator[Reference]:
    """The clean side of a subject, with a folder for its layers that vanishes afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Reference(subject, Path(folder))


def candidate_of(subject: Subject, changes: Sequence[Change]) -> Side:
    """A side with changes; what only a reference needs is not measured."""
    return Side(subject, (SECOND, *changes))
