"""Gold-YOLO's second branch and self-distillation against the published numbers and their rule; runs in both
environments.

The published record is of a float32 run, judged by FACTOR times RELATIVE. Under its plain weights some background
scores round to 1 in float32 and count 100 then; so the class loss of a float64 model is that of its outputs rounded to
float32. The anchor-based branch is less well-conditioned: its losses are judged by FACTOR times their own spread,
measured in the test over float32 runs whose image is moved by one rounding.
"""

from dataclasses import replace

import numpy as np
import pytest
from gold_yolo_cases import (
    FACTOR,
    SHARP,
    TRAINING,
    error,
    golden_targets,
    read,
    seeded_model,
    size_of,
    training_input,
)

from lib import backend, losses, models
from lib.alignment.seeded import seeded_array, seeded_input
from lib.alignment.verdict import ROUNDING
from lib.backend import nn
from lib.data import boxes
from lib.errors import UserError
from lib.losses import gold_yolo
from lib.losses.gold_yolo import STUDENTS, Distillation, divergence, fading
from lib.models.gold_yolo import VARIANTS
from lib.models.step import ParameterGroup
from lib.training import loop as training
from lib.training.schedule import Recipe

RELATIVE = 1e-5  # the golden README's float32 error of a loss
TARGETS = golden_targets(read(TRAINING["n"].file)["targets_rows_img_cls_cx_cy_w_h"], 320)
KINDS = ["f32", pytest.param("f64", marks=pytest.mark.slow)]  # slow in Jittor, where it compiles
SIZE = (320, 320)
REPEATS = 4  # moved images


def rounded(outputs):
    """The outputs, or nested ones, in the record's float32."""
    if isinstance(outputs, (list, tuple)):
        return [rounded(output) for output in outputs]
    return backend.tensor(backend.numpy(outputs).astype(np.float32))


def values_of(scalars):
    return dict(zip(scalars, backend.floats(list(scalars.values()))))


def teacher_weights(state):
    """The record's teacher: every entry seeded by its name after "teacher:"."""
    for name, value in state.items():
        if not name.startswith("detect.proj") and (seeded := seeded_array(f"teacher:{name}", value.shape)) is not None:
            state[name] = seeded


def forward(name, kind, adjust=lambda state: state):
    model = seeded_model(VARIANTS[name], kind, adjust).train()
    with backend.no_grad():
        return model, model(training_input(TRAINING["n"], kind))


def spread(name, criterion):
    """How far each loss of the float32 model lies from itself, at most, when its image moves by one rounding."""
    model, image = seeded_model(VARIANTS[name], "f32").train(), backend.numpy(training_input(TRAINING["n"], "f32"))
    moved = [
        image,
        *(
            image * (1 + ROUNDING * seeded_input(f"repeat_{index}", image.shape)).astype(np.float32)
            for index in range(REPEATS)
        ),
    ]
    with backend.no_grad():
        runs = [values_of(criterion(model(backend.tensor(x)), TARGETS, image_size=SIZE)) for x in moved]
    return {loss: max(abs(run[loss] - runs[0][loss]) for run in runs) for loss in runs[0]}


# ---------------------------------------------------------------------------------------------------- second branch
@pytest.mark.parametrize("size", ["n", "s"])
def test_heads_as_published(size):
    record = read("extras")[f"fuse_ab_{size}_320"]
    model = models.build(f"gold-yolo-{size}-fuse-ab", seed=None)
    state = [[name, list(backend.numpy(value).shape)] for name, value in backend.named_state(model)]
    assert [entry for entry in state if entry[0].startswith("detect.")] == record["detect_state"]


@pytest.mark.parametrize(
    "name, classes, count",
    [
        ("gold-yolo-s-fuse-ab", 80, 23_316_626),
        ("gold-yolo-s-distill", 80, 23_204_778),  # the fact sheet's
        ("gold-yolo-s-distill", 10, 23_204_778 - 70 * 451),
    ],
)
def test_parameter_counts_as_published(name, classes, count):
    model = models.build(name, classes, seed=None)
    constant = sum(
        backend.numpy(value).size for entry, value in backend.named_state(model) if entry.startswith("detect.proj")
    )
    assert sum(backend.numpy(value).size for _, value in model.named_parameters()) + constant == count


@pytest.mark.parametrize("kind", KINDS)
def test_second_branch_as_published(kind):
    record = read("extras")["fuse_ab_n_320"]
    outputs = forward("gold-yolo-n-fuse-ab", kind)[1]
    logits, distances, logits_ab, sides = (backend.numpy(output) for output in outputs)
    centred = np.concatenate([(sides[..., 2:] - sides[..., :2]) / 2, sides[..., :2] + sides[..., 2:]], 2)
    # Single values: within the features' float32 error, of which the plain record names that of the distances.
    floor = read(TRAINING["n"].file)["noise_floor_float32_vs_float64"]["reg_distri_max_abs"]
    for ours, published in zip(
        (boxes.sigmoid(logits_ab), centred, boxes.sigmoid(logits), distances), record["pred_stats"]
    ):
        assert list(ours.shape) == published["shape"]
        assert size_of(ours) == pytest.approx(published["l2"], rel=FACTOR * RELATIVE)
        assert ours.ravel()[:16] == pytest.approx(published["first16"], abs=FACTOR * floor)
    criterion = losses.build("gold-yolo-n-fuse-ab")
    found, classes = (values_of(criterion(rows, TARGETS, image_size=SIZE)) for rows in (outputs, rounded(outputs)))
    assert [found["loss_iou"], found["loss_dfl"], classes["loss_cls"]] == pytest.approx(
        record["items_af"], rel=FACTOR * RELATIVE
    )
    moves = spread("gold-yolo-n-fuse-ab", criterion)
    assert found["loss_iou_ab"] == pytest.approx(record["items_ab"][0], abs=FACTOR * moves["loss_iou_ab"])
    assert classes["loss_cls_ab"] == pytest.approx(record["items_ab"][2], abs=FACTOR * moves["loss_cls_ab"])
    claimed = criterion.branch.assign([backend.numpy(output) for output in outputs[2:]], TARGETS, SIZE).box
    assert (claimed > 0).sum(1).tolist() == record["fg_count_ab"]


@pytest.mark.slow  # Jittor compiles the backward pass
def test_gradients_of_the_second_branch_as_published():
    record = read("extras")["fuse_ab_n_320"]
    model = seeded_model(VARIANTS["gold-yolo-n-fuse-ab"], "f32").train()
    scalars = losses.build("gold-yolo-n-fuse-ab")(model(training_input(TRAINING["n"], "f32")), TARGETS, image_size=SIZE)
    named = [(name, value) for name, value in model.named_parameters() if name in record["grad"]]
    gradients = [backend.numpy(g) for g in backend.grad(sum(scalars.values()), [value for _, value in named])]
    assert len(named) == len(record["grad"])
    off = [
        abs(size_of(g) / record["grad"][name][0] - 1)
        for (name, _), g in zip(named, gradients)
        if record["grad"][name][0]
    ]
    assert np.median(off) <= 1e-3 and max(off) <= FACTOR * 1e-3  # the golden README: medians of 1e-4 to 1e-3
    assert all(not g.any() for (name, _), g in zip(named, gradients) if not record["grad"][name][0])


def test_evaluation_uses_the_published_branch():
    """The teacher's own part without anchors; the student's plain sides."""
    images = backend.tensor(np.ones((1, 3, 64, 64), np.float32))
    for name, last in (("gold-yolo-n-fuse-ab", False), ("gold-yolo-n-distill", True)):
        model = models.build(name, 3).eval()
        values = {entry: backend.numpy(value).copy() for entry, value in model.named_parameters()}
        with backend.no_grad():
            before = backend.numpy(model(images))
            for part, matters in (
                ("_ab.", False),
                ("reg_preds_lrtb.", last),
                ("reg_preds.", False),
                ("reg_preds_af.", not last),
            ):
                chosen = {
                    entry: value + np.linspace(0, 1, len(value), dtype=np.float32)
                    for entry, value in values.items()
                    if part in entry and entry.endswith("bias")
                }
                if chosen:
                    backend.load_state(model, chosen)
                    assert (error(backend.numpy(model(images)), before) > 0.1) == matters, (name, part)
                    backend.load_state(model, {entry: values[entry] for entry in chosen})


# ----------------------------------------------------------------------------------------------------- distillation
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gold-yolo-s-distill", pytest.param("gold-yolo-m", marks=pytest.mark.slow)])
def test_distillation_as_published(name, kind):
    published = read("extras")[f"distill_{name.split('-')[2]}_320"]["without_feat"]
    criterion = losses.build_distillation(name, 80, published["max_epoch"])
    criterion.epoch = published["epoch"]
    student, taught = forward(name, kind)[1], forward(losses.teacher(name), kind, teacher_weights)[1][:2]
    check_distillation(criterion, (student, taught), published)
    for fault in FAULTS:
        with pytest.raises(AssertionError), pytest.MonkeyPatch.context() as patch:
            fault(patch)
            check_distillation(criterion, (student, taught), published)


def check_distillation(criterion, outputs, published):
    found = values_of(criterion(outputs, TARGETS, image_size=SIZE))
    box, dfl, cls, _ = published["items_iou_dfl_cls_cwd_weighted"]
    assert found["loss_iou"] + found.get("loss_iou_lrtb", 0) == pytest.approx(box, rel=FACTOR * RELATIVE)
    assert found["loss_dfl"] + found["loss_distill_dfl"] == pytest.approx(dfl, rel=FACTOR * RELATIVE)
    found = values_of(criterion(rounded(outputs), TARGETS, image_size=SIZE))
    assert found["loss_cls"] + found["loss_distill_cls"] == pytest.approx(cls, rel=FACTOR * RELATIVE)
    assert sum(found.values()) == pytest.approx(published["total"], rel=FACTOR * RELATIVE)


def another_temperature(patch):
    """Its square outside hides most of it: exactly what a test must see through."""
    patch.setattr(gold_yolo, "TEMPERATURE", 10)


def no_fading(patch):
    patch.setattr(gold_yolo, "fading", lambda epoch, epochs: 1.0)


def other_way_round(patch):
    patch.setattr(gold_yolo, "divergence", lambda student, teacher, weight: divergence(teacher, student, weight))


FAULTS = (another_temperature, no_fading, other_way_round)


def plain_divergence(student, teacher):
    """The fact sheet's rule, in float64: rows of the last axis at temperature 20, times 400."""

    def softmax(x):
        powers = np.exp(x / 20 - (x / 20).max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    own, other = softmax(student), softmax(teacher)
    return 400 * (other * np.log(other / own)).sum()


def small_case(seed=0):
    """Outputs of student and teacher on one image of 64 x 64 pixels with two boxes, float64."""
    rng = np.random.default_rng(seed)
    outputs = [[rng.standard_normal((1, 84, width)) for width in widths] for widths in ((5, 68, 4), (5, 68))]
    return outputs, [{"boxes": np.array([[4.0, 6, 50, 40], [20, 10, 60, 62]]), "labels": np.array([1, 4])}]


def test_distillation_follows_the_rule():
    (student, taught), targets = small_case()
    criterion = Distillation(5, 16, "giou", 0.8, 10)
    criterion.epoch = 4
    tensors = [[backend.tensor(x) for x in outputs] for outputs in (student, taught)]
    found = values_of(criterion(tensors, targets, image_size=(64, 64)))
    assignment, _ = criterion.matched(tensors[0], targets, (64, 64))
    own, other = (outputs[1][assignment.box > 0].reshape(-1, 17) for outputs in (student, taught))
    share = (1 - np.cos(np.pi * 4 / 10)) / 2 * -0.99 + 1
    scores = boxes.sigmoid(student[0]), boxes.sigmoid(taught[0])
    assert found["loss_distill_dfl"] == pytest.approx(0.5 * share * plain_divergence(own, other) / len(own), rel=SHARP)
    assert found["loss_distill_cls"] == pytest.approx(0.8 * share * plain_divergence(*scores), rel=SHARP)
    plain = values_of(losses.build("gold-yolo-s-distill", 5)(tensors[0], targets, image_size=(64, 64)))
    assert {name: found[name] for name in plain} == plain and set(found) - set(plain) == {
        "loss_distill_dfl",
        "loss_distill_cls",
    }


def test_fading():
    assert [fading(epoch, 300) for epoch in (0, 150, 300)] == pytest.approx([1, 0.505, 0.01])


def test_nothing_to_compare_boxes_with():
    (student, taught), _ = small_case()
    nothing = [{"boxes": np.zeros((0, 4)), "labels": np.zeros(0, np.int64)}]
    tensors = [[backend.tensor(x) for x in outputs] for outputs in (student, taught)]
    found = values_of(Distillation(5, 16, "giou", 1.0, 10)(tensors, nothing, image_size=(64, 64)))
    assert found["loss_iou"] == found["loss_dfl"] == found["loss_iou_lrtb"] == found["loss_distill_dfl"] == 0
    assert found["loss_distill_cls"] > 0 and found["loss_cls"] > 0


# --------------------------------------------------------------------------------------------------------- training
class Rows(nn.Module):
    """Predictions that are parameters themselves, whatever the images show."""

    def __init__(self, seed):
        super().__init__()
        values = small_case(seed)[0][0]
        self.logits, self.distances = (nn.Parameter(backend.tensor(x.astype(np.float32))) for x in values[:2])

    def forward(self, images):
        return self.logits, self.distances


class Reflected(nn.Module):
    """A teacher whose outputs depend on the student's parameters: only a detached one leaves their gradient alone."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, images):
        return [output * 3 for output in self.student(images)]


RECIPE = Recipe(
    optimiser="SGD",
    options={"momentum": 0.9},
    learning_rate=1e-4,
    weight_decay=0.0,
    batch=1,
    epochs=4,
    average_decay=0.9,
    average_steps=10,
)
IMAGES = np.zeros((1, 3, 64, 64), np.float32)


def trainer_of(student, teacher):
    return training.Trainer(
        student,
        Distillation(5, 16, "giou", 1.0, 4),
        RECIPE,
        1,
        [ParameterGroup(("logits", "distances"))],
        seed=0,
        teacher=teacher,
    )


def norm_with(teacher_of):
    student = Rows(0)
    return values_of(trainer_of(student, teacher_of(student)).issue(IMAGES, small_case()[1]))[training.NORM]


def check_no_gradient_to_the_teacher():
    constant = Rows(0)
    backend.load_state(
        constant, {name: backend.numpy(value) * np.float32(3) for name, value in backend.named_state(constant)}
    )
    assert norm_with(Reflected) == pytest.approx(norm_with(lambda student: constant), rel=1e-5)


def test_teacher_has_no_gradient():
    check_no_gradient_to_the_teacher()


def test_a_teacher_with_gradient_does_not_pass(monkeypatch):
    monkeypatch.setattr(training.Trainer, "_taught", lambda self, inputs: self.teacher(inputs))
    with pytest.raises(AssertionError):
        check_no_gradient_to_the_teacher()


def test_the_teacher_stays():
    student, teacher = Rows(0), Rows(1)
    before = [
        {name: backend.numpy(value).copy() for name, value in backend.named_state(model)}
        for model in (student, teacher)
    ]
    trainer = trainer_of(student, teacher)
    for _ in range(2):
        values_of(trainer.issue(IMAGES, small_case()[1]))
    for model, own, moves in zip((student, teacher), before, (True, False)):
        assert all((backend.numpy(value) != own[name]).any() == moves for name, value in backend.named_state(model))
    assert not any("teacher" in name for name in trainer.state())


def test_gradient_of_the_divergence():
    (student, *_), (teacher, *_) = small_case()[0]
    leaf = nn.Parameter(backend.tensor(student))
    found = backend.numpy(backend.grad(divergence(leaf, backend.tensor(teacher), 1.0), [leaf])[0])
    powers = [np.exp(x / 20) for x in (student, teacher)]
    own, other = (x / x.sum(2, keepdims=True) for x in powers)
    assert error(found, 20 * (own - other)) <= SHARP


@pytest.mark.slow  # two models with their gradients, which Jittor compiles
def test_resumed_distillation_is_bit_for_bit():
    """With a real teacher: its drop path is drawn per step, its batch norm's statistics are of no consequence."""

    def fresh():
        built = [
            models.build(name, 5, seed) for seed, name in enumerate(("gold-yolo-n-distill", "gold-yolo-n-fuse-ab"))
        ]
        return training.Trainer(
            built[0],
            losses.build_distillation("gold-yolo-n-distill", 5, 4),
            replace(RECIPE, batch=2),
            1,
            models.parameter_groups("gold-yolo-n-distill", built[0]),
            seed=0,
            teacher=built[1],
        )

    def go(trainer, steps):
        for _ in range(steps):
            rng = np.random.default_rng(trainer.step)
            values_of(trainer.issue(rng.random((2, 3, 64, 64), np.float32), small_case()[1] * 2))
        return trainer.state()

    whole, first, second = go(fresh(), 3), go(fresh(), 1), fresh()
    second.load_state(first)
    resumed = go(second, 2)
    assert set(whole) == set(resumed) and all(whole[name].tobytes() == resumed[name].tobytes() for name in whole)
    assert any(name.startswith("model/detect.reg_preds_lrtb") for name in whole)


def test_only_students_have_teachers():
    assert {name: losses.teacher(name) for name in STUDENTS} == {
        "gold-yolo-n-distill": "gold-yolo-n-fuse-ab",
        "gold-yolo-s-distill": "gold-yolo-s-fuse-ab",
        "gold-yolo-m": "gold-yolo-m-fuse-ab",
        "gold-yolo-l": "gold-yolo-l-fuse-ab",
    }
    for name in ("gold-yolo-s", "gold-yolo-s-fuse-ab", "nanodet-plus-m_320", "rtdetr_r18vd"):
        with pytest.raises(UserError, match="no student of a teacher; choose one of gold-yolo-n-distill"):
            losses.teacher(name)
