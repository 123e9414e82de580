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
from typing import Any

import numpy as np

from lib import backend, convert, losses, models, postprocess
from lib.alignment import capture, datastages, divergence, layers, lockstep, rows, steps, trajectory, verdict
from lib.alignment.decisions import FLIP
from lib.alignment.evidence import Evidence
from lib.alignment.exam import pictures
from lib.alignment.exam.planting import Change, becomes, planted
from lib.alignment.exam.subjects import EPOCH, STEPS, Subject
from lib.alignment.questions import ask
from lib.alignment.seeded import seeded_input
from lib.alignment.verdict import REPEATS, Answer, Row, Verdict

ROLES = ("torch", "jittor")  # reference and candidate, under the names that the questions ask for
POST, CRITERION, OPTIMISER, ASSIGNMENT = "post-processing", "criterion", "optimiser", "assignment"
ONE_FORMAT = becomes(capture, "FORMATS", ("safetensors",))
# Who measures its own noise once more: both sides run in the same framework here.
FIRST, SECOND = (becomes(capture, "is_reference", lambda side, answer=answer: answer) for answer in (True, False))


@dataclass(frozen=True)
class Stage:
    """What a record holds."""

    fields: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


class Held(Evidence):
    """Evidence of two sides in memory."""

    def __init__(self, model: str, sides: Mapping[str, "Side"]):
        super().__init__("memory", model)
        self._sides = sides

    def get(self, side: str, stage: str) -> Stage | None:
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
        self._stages: dict[str, Stage] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """The changes are in force."""
        with planted(self._changes):
            yield

    def stage(self, name: str) -> Stage:
        """What `capture` measures for a record."""
        if name not in self._stages:
            with self.active():
                self._stages[name] = Stage(*_MEASURED[name](self.subject))
        return self._stages[name]

    @cached_property
    def data(self) -> list[datastages.Stage]:
        """The stages that pictures go through."""
        with self.active():
            return pictures.stages(self.subject.model)

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

    def trained(self, native: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A lock-step run: on batches, or on gradients given."""
        with self.active():
            watched = {precision: self._trainer(precision) for precision in capture.precisions()}
            names = [name for name, _ in watched["float32"].model.named_parameters()]
            advance = steps.native(_batches(self.subject)) if native else steps.fed
            return steps.lockstep(watched, advance, STEPS, (names[0], names[-1]))

    def _trainer(self, precision: str, draw: int = 0, roundings: float = 0.0) -> steps.Watched:
        subject = self.subject
        model = capture.seeded_model(subject.model, subject.training, precision)
        if roundings:
            convert.load(model, trajectory.perturbed(convert.state(model), draw, roundings))
        groups = models.parameter_groups(subject.model, model)
        criterion = losses.build(subject.model, subject.training.num_classes)
        return steps.Watched(model, criterion, subject.recipe, EPOCH, groups, seed=None)


_MEASURED: Mapping[str, Callable[[Subject], tuple]] = {
    "convert": lambda subject: (capture.conversion(subject.model, subject.forward), {}),
    "forward": lambda subject: capture.forward(subject.model, subject.forward),
    "loss": lambda subject: capture.loss_and_gradient(subject.model, subject.training),
}


@dataclass(frozen=True)
class Batch:
    """One batch of a lock-step."""

    images: np.ndarray
    targets: tuple[dict[str, np.ndarray], ...]


def _batches(subject: Subject) -> list[Batch]:
    case = subject.training
    return [
        Batch(seeded_input(f"{case.images}:{step}", (case.batch, 3, *case.size)), case.targets) for step in range(STEPS)
    ]


class Reference(Side):
    """The clean side of a subject, which many candidates share; its layers lie in a folder."""

    def __init__(self, subject: Subject, folder: Path):
        super().__init__(subject, (FIRST,))
        self._folder = folder
        self._layers: set[bool] = set()
        self._runs: dict[bool, tuple] = {}

    def layers(self, training: bool) -> Path:
        """The folder of the captured layers, in evaluation or in training mode."""
        folder = self._folder / ("training" if training else "evaluation")
        if training not in self._layers:
            with self.active():
                layers.reference(self.builder(training), images(self.subject, training), folder)
            self._layers.add(training)
        return folder

    def trained(self, native: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """As in the base class, run once; with what jumps."""
        if native not in self._runs:
            fields, arrays = super().trained(native)
            if native:
                with self.active():
                    fields = steps.with_jumps(fields, map(self._jumps, range(REPEATS // 2)))
            self._runs[native] = fields, arrays
        return self._runs[native]

    def _jumps(self, draw: int) -> list[steps.Jumps]:
        def build(roundings: float) -> steps.Watched:
            return self._trainer("float64", draw, roundings)

        return steps.jumps(build, steps.native(_batches(self.subject)), STEPS)

    @cached_property
    def outputs(self) -> dict[str, list[Any]]:
        """What the post-processing is given: the exact and the float32 outputs, and these with many equal scores."""
        with self.active():
            found = {precision: _inference(self, precision) for precision in capture.precisions()}
        return {
            "": [found["float64"], found["float32"]],
            " with ties": [_coarse(found["float64"]), _coarse(found["float32"])],
        }


def images(subject: Subject, training: bool) -> list[np.ndarray]:
    """The input of the layers."""
    return [(subject.training if training else subject.forward).input()]


def _inference(side: Side, precision: str) -> Any:
    model, case = side.builder(False)(precision), side.subject.forward
    with backend.no_grad():
        output = model(backend.tensor(case.input().astype(precision)))
    if isinstance(output, dict):
        return {name: backend.numpy(value) for name, value in output.items()}
    return backend.numpy(output)


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
        if not _applies(name, reference.subject):
            continue
        found = gate(reference, candidate)
        if not found.passed:
            return replace(found, gate=name)
        if found.ratio > largest:
            largest, where = found.ratio, name
    return Finding("none", True, largest, note=f"nearest to its gate: {where}")


def _applies(gate: str, subject: Subject) -> bool:
    """Whether the subject trains."""
    return not gate.startswith("lock-step") or subject.recipe is not None


def _finding(judged: Sequence[Row], named: Sequence[str] = ()) -> Finding:
    """By the engine's own conclusion."""
    answer = verdict.conclude("exam", "-".join(ROLES), judged, ())
    passed = answer.verdict is Verdict.PASS
    ratios = [row.ratio for row in (judged if passed else failing(judged)) if row.passed is not None]
    beyond = max((ratio for ratio in ratios if np.isfinite(ratio)), default=0.0 if passed else np.inf)
    return Finding("", passed, float(beyond), tuple(dict.fromkeys(named)), str(answer.values.get("note", "")))


def _answer(question: str, reference: Side, candidate: Side) -> Answer:
    held = Held(reference.subject.model, dict(zip(ROLES, (reference, candidate))))
    return ask(question, held, *ROLES)


def failing(judged: Sequence[Row]) -> list[Row]:
    return [row for row in judged if row.passed is False]


def _data(reference: Side, candidate: Side) -> Finding:
    found = datastages.compare(reference.data, candidate.data)
    first = datastages.first_difference(found)
    return _finding(found, [first.split(":")[0]] if first else [])


def _entries(question: str) -> Callable[[Side, Side], Finding]:
    """Names the entries that the failing rows name."""

    def gate(reference: Side, candidate: Side) -> Finding:
        found = _answer(question, reference, candidate).rows
        known = {row[0] for row in reference.stage("convert").fields["state"]}
        said = (row.note.removeprefix("first: ").split(":")[0] for row in failing(found))
        return _finding(found, [name for name in said if name in known])

    return gate


def _forward(reference: Reference, candidate: Side) -> Finding:
    found = _answer("forward", reference, candidate).rows
    if not failing(found):
        return _finding(found)
    wrong = [row for row in failing(found) if row.what not in ("decisions", "matched detections", FLIP)]
    return _finding(found, _blamed(reference, candidate, False) if wrong else [POST])


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


def _assignment(reference: Side, candidate: Side) -> Finding:
    return _finding(_answer("assignment", reference, candidate).rows, [ASSIGNMENT])


def _outputs(reference: Reference, candidate: Side) -> Finding:
    """The raw outputs in training, by the question about losses: names layers, or where only the whole is wrong, outputs."""
    found = [row for row in _answer("losses", reference, candidate).rows if "scalar" not in row.what]
    if not failing(found):
        return _finding(found)
    blamed = _blamed(reference, candidate, True)
    return _finding(found, blamed if blamed and blamed != [divergence.ROOT] else [row.name for row in failing(found)])


def _losses(reference: Side, candidate: Side) -> Finding:
    """Names the wrong components."""
    found = [row for row in _answer("losses", reference, candidate).rows if "scalar" in row.what]
    components = (row.name.split("/")[-1] for row in failing(found))
    return _finding(found, [name for name in components if name != "loss_total"])


def _gradients(reference: Reference, candidate: Side) -> Finding:
    """Names layers; where none is wrong alone while gradients are, the criterion."""
    found = _answer("gradients", reference, candidate).rows
    if not failing(found):
        return _finding(found)
    return _finding(found, _blamed(reference, candidate, False) or _blamed(reference, candidate, True) or [CRITERION])


def _batch_norm(reference: Side, candidate: Side) -> Finding:
    found = _answer("batch_norm", reference, candidate).rows
    return _finding(found, [row.name for row in failing(found)])


def _step(reference: Side, candidate: Side) -> Finding:
    """Names the optimiser where its rule is not kept."""
    found = _answer("step", reference, candidate).rows
    return _finding(found, [OPTIMISER])


def _lockstep(native: bool) -> Callable[[Reference, Side], Finding]:
    """Names the first wrong quantity, or the parameters that are grouped otherwise."""

    def gate(reference: Reference, candidate: Side) -> Finding:
        (ours, our_arrays), (theirs, their_arrays) = reference.trained(native), candidate.trained(native)
        found = lockstep.compare(ours, theirs, (our_arrays, their_arrays))
        first = found.first()
        return _finding(found.rows(), [row.what for row in found.faults] or ([first.kind] if first else []))

    return gate


def _blamed(reference: Reference, candidate: Side, training: bool) -> list[str]:
    """The paths of the layers that are wrong alone: forward, and where there is none backward."""
    folder = reference.layers(training)
    with candidate.active():
        fields = layers.candidate(candidate.builder(training), images(reference.subject, training), folder)
    found = divergence.localise(fields)
    blamed = found.blamed("forward") or found.blamed("backward")
    return [*(row.name for row in found.faults), *dict.fromkeys(layer.path or divergence.ROOT for layer in blamed)]


GATES: Mapping[str, Callable[[Reference, Side], Finding]] = {
    "data stages": _data,
    "structure": _entries("structure"),
    "conversion": _entries("conversion"),
    "forward": _forward,
    "detections": _detections,
    "training outputs": _outputs,
    "assignment": _assignment,
    "losses": _losses,
    "gradients": _gradients,
    "batch norm": _batch_norm,
    "step": _step,
    "lock-step, same gradients": _lockstep(False),
    "lock-step": _lockstep(True),
}


@contextmanager
def reference_of(subject: Subject) -> Iterator[Reference]:
    """The clean side of a subject, with a folder for its layers that vanishes afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Reference(subject, Path(folder))


def candidate_of(subject: Subject, changes: Sequence[Change]) -> Side:
    """A side with changes; what only a reference needs is not measured."""
    return Side(subject, (SECOND, *changes))
