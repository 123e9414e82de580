"""NanoDet-Plus against the published numbers (tests/golden/nanodet_plus); runs in both environments.

Float32 is judged by FACTOR times the published code's own float32 error, float64 by SHARP.
Both frameworks reach 1e-11: what a Python number would round to float32 in Jittor goes to its kernels as data.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import backend, losses, models
from lib.alignment.measure import features
from lib.alignment.seeded import seeded_input, seeded_state
from lib.data import boxes
from lib.errors import UserError
from lib.losses.nanodet_plus import assign, giou_loss
from lib.models.nanodet_plus import BINS, INTERMEDIATES, STRIDES
from lib.models.step import Step
from lib.postprocess import detections

FACTOR = 4
SHARP = 1e-9
NAME = "nanodet-plus-m_320"
CASES = {
    "m_320_20cls": (NAME, 20),
    "m_320_80cls": (NAME, 80),
    "m_416_80cls": ("nanodet-plus-m_416", 80),
    "m-1.5x_320_80cls": ("nanodet-plus-m-1.5x_320", 80),
    "m-1.5x_416_80cls": ("nanodet-plus-m-1.5x_416", 80),
}
TYPES = {"f32": np.float32, "f64": np.float64}
FLOAT64_SLOW = ["f32", pytest.param("f64", marks=pytest.mark.slow)]  # slow in Jittor, where it compiles for minutes
ZERO = "params_with_exactly_zero_true_gradient(do not compare gradients or AdamW changes)"


@pytest.fixture(scope="module")
def records(golden):
    """records(name) -> (json content, arrays) of a golden file."""

    @cache
    def read(name):
        path = golden / "nanodet_plus" / name
        with np.load(path.with_suffix(".npz")) as archive:
            return json.loads(path.with_suffix(".json").read_text()), {key: archive[key] for key in archive.files}

    return read


def shapes(model):
    return [(name, backend.numpy(value).shape) for name, value in backend.named_state(model)]


def seeded_model(num_classes, kind="f32"):
    model = models.build(NAME, num_classes, seed=None)
    backend.load_state(model, seeded_state(shapes(model)))
    return backend.float64(model) if kind == "f64" else model


def error(ours, theirs):
    """Largest absolute difference, in float64, after shape."""
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(np.float64) - theirs).max()


# ---------------------------------------------------------------------------------------------------- structure
@pytest.mark.parametrize("case", CASES)
def test_every_entry_as_published(golden, case):
    spec = json.loads((golden / "nanodet_plus" / f"spec_{case}.json").read_text())
    name, num_classes = CASES[case]
    model = models.build(name, num_classes, seed=None)
    parameters = {entry: backend.numpy(value).size for entry, value in model.named_parameters()}
    ours = [
        [entry, list(array.shape), str(array.dtype), "param" if entry in parameters else "buffer"]
        for entry, array in ((entry, backend.numpy(value)) for entry, value in backend.named_state(model))
    ]
    assert ours == spec["state_dict"]
    assert models.input_size(name) == tuple(spec["input_hw"])
    counts = spec["counts"]
    assert sum(parameters.values()) == counts["total_params_training_model"]
    assert len(parameters) == counts["param_tensors"]
    inference = sum(size for entry, size in parameters.items() if not entry.startswith("aux_"))
    assert inference == counts["inference_params(backbone+fpn+head)"]


def test_compact_goldens_are_part_of_the_full_records(golden, shared):
    full = shared / "golden" / "nanodet_plus"
    for path in sorted((golden / "nanodet_plus").glob("*.json")):
        whole = json.loads((full / path.name).read_text())
        assert all(whole[key] == value for key, value in json.loads(path.read_text()).items()), path.name
    for path in sorted((golden / "nanodet_plus").glob("*.npz")):
        with np.load(path) as part, np.load(full / path.name) as whole:
            assert part.files and all(part[key].tobytes() == whole[key].tobytes() for key in part.files), path.name


def test_unknown_name_and_no_class():
    with pytest.raises(UserError, match="nanodet-plus-m_320"):
        models.build("nanodet-plus-x")
    with pytest.raises(UserError, match="at least one class"):
        models.build(NAME, 0)


# ------------------------------------------------------------------------------------------------ first weights
def far(values, stats):
    """Whether a sample's mean or deviation is more than 5 standard errors from the published sample's."""
    n = max(values.size, 1)
    if stats["std"] == 0:
        return not (values == np.float32(stats["mean"])).all()
    mean = abs(values.mean() - stats["mean"]) > 5 * stats["std"] * (2 / n) ** 0.5
    spread = abs(values.std() / stats["std"] - 1) > 5 * (1 / n) ** 0.5
    return mean or spread


def test_first_weights_have_the_published_distributions(golden):
    record = json.loads((golden / "nanodet_plus" / "init_stats_m_320_80cls.json").read_text())
    state = {name: backend.numpy(value) for name, value in backend.named_state(models.build(NAME, 80, seed=0))}
    published = record["entries"]
    assert set(published) == {name for name in state if not name.endswith("num_batches_tracked")}
    assert [name for name in published if name.endswith("project") or far(state[name], published[name])] == [
        "head.distribution_project.project"
    ]
    for name, stats in published.items():  # uniform where the published values are: no tail beyond their bounds
        if stats["std"] > 0 and stats["max"] < 1.8 * stats["std"]:
            assert np.abs(state[name]).max() <= 1.001 * max(stats["max"], -stats["min"]) + 0.1 * stats["std"], name
    planted = [name for name, stats in published.items() if state[name].size > 2000 and far(1.25 * state[name], stats)]
    assert len(planted) > 50
    assert all((state[name] == state[name.removeprefix("aux_")]).all() for name in state if name.startswith("aux_fpn"))


def test_first_weights_depend_on_seed_and_name_alone():
    weights = [
        {name: backend.numpy(value) for name, value in models.build(NAME, classes, seed).named_parameters()}
        for classes, seed in ((2, 0), (5, 0), (2, 1))
    ]
    name = "backbone.stage2.0.branch2.0.weight"
    assert (weights[0][name] == weights[1][name]).all()
    assert (weights[0][name] != weights[2][name]).any()
    assert (weights[0][name] != weights[0]["backbone.stage2.1.branch2.0.weight"][:, :24]).any()


# ------------------------------------------------------------------------------------------------------- forward
def test_seeded_weights_and_input_are_the_published_bytes(records):
    record, _ = records("forward_m_320_20cls")
    state, total = seeded_state(shapes(models.build(NAME, 20, seed=None))), hashlib.sha256()
    for name, value in state.items():
        total.update(name.encode() + value.tobytes())
    key = "seeded_weights_sha256(key bytes + float32 bytes in state_dict order)"
    assert total.hexdigest() == record[key]
    assert hashlib.sha256(seeded_input("image", (1, 3, 320, 320)).tobytes()).hexdigest() == record["input"]["sha256"]


def calibrated(records, kind, num_classes=20):
    model = seeded_model(num_classes)
    arrays = records(f"forward_m_320_{num_classes}cls")[1]
    backend.load_state(model, {key.removeprefix("calib/"): a for key, a in arrays.items() if key.startswith("calib/")})
    return (backend.float64(model) if kind == "f64" else model).eval()


def predict(model, kind):
    with backend.no_grad():
        return backend.numpy(model(backend.tensor(seeded_input("image", (1, 3, 320, 320)).astype(TYPES[kind]))))


@pytest.mark.parametrize("kind", FLOAT64_SLOW)
def test_forward_as_published(records, kind):
    record, arrays = records("forward_m_320_20cls")
    record = record["calibrated"]
    with features(model := calibrated(records, kind), INTERMEDIATES) as found:
        predictions = predict(model, kind)
    assert predictions.dtype == TYPES[kind]
    floor = FACTOR * record["preds_f32_minus_f64_absmax"] if kind == "f32" else SHARP
    assert error(predictions, arrays["preds_calibrated_f64"]) <= floor
    published = record["intermediate_in_execution_order"]
    assert list(found) == list(published)
    for name, stats in published.items():
        feature, floor = found[name].astype(np.float64), stats["f32_minus_f64_absmax"]
        assert list(feature.shape) == stats["shape"]
        assert np.abs(feature.ravel()[:16] - stats["first16"]).max() <= (FACTOR + 1) * floor, name
        allowed = FACTOR * floor * feature.size**0.5 if kind == "f32" else SHARP * stats["f64_l2"]
        assert abs(np.linalg.norm(feature) - stats["f64_l2"]) <= allowed, name


@pytest.mark.parametrize("num_classes", [20, 80])
def test_detections_as_published(records, num_classes):
    record, arrays = records(f"forward_m_320_{num_classes}cls")
    predictions = predict(calibrated(records, "f32", num_classes), "f32")
    for case, stats in record["calibrated"]["detections"].items():
        logits = predictions.copy()
        logits[:, :, :num_classes] -= np.float32(stats["class_logit_shift_subtracted"])
        (found,) = detections(NAME, logits, image_size=(320, 320))
        assert found.dtype == np.float32
        assert (found[:, 5] == arrays[case.replace("dets", "labels")]).all()
        assert error(found[:, :4], arrays[f"{case}_f64"][:, :4]) <= FACTOR * stats["f64_max_abs_box_diff"]
        assert error(found[:, 4], arrays[f"{case}_f64"][:, 4]) <= FACTOR * stats["f64_max_abs_score_diff"]


def test_a_wrong_slope_does_not_pass(records):
    record, arrays = records("forward_m_320_20cls")
    model = calibrated(records, "f32")
    model.head.cls_convs[3][1].act.negative_slope = 0.01
    wrong = error(predict(model, "f32"), arrays["preds_calibrated_f64"])
    assert wrong > 100 * FACTOR * record["calibrated"]["preds_f32_minus_f64_absmax"]


def test_one_class_other_size_and_batch_equals_single():
    model = models.build(NAME, 1).eval()
    images = seeded_input("sizes", (2, 3, 64, 96))
    with backend.no_grad():
        both, second = (backend.numpy(model(backend.tensor(x))) for x in (images, images[1:]))
    assert both.shape == (2, len(boxes.priors((64, 96), STRIDES)), 1 + BINS)
    assert error(both[1:], second) <= 1e-5 * np.abs(second).max()


# ------------------------------------------------------------------------------------------------------ training
@dataclass(frozen=True)
class Run:
    outputs: list
    losses: dict
    assignment: object
    gradients: dict
    state: dict


def golden_targets(arrays):
    return [{"boxes": arrays[f"img{i}_gt_bboxes"], "labels": arrays[f"img{i}_gt_labels"]} for i in range(2)]


def train_once(arrays, kind, epoch):
    model = seeded_model(20, kind).train()
    model.step = Step(epoch=epoch)
    criterion = losses.build(NAME, 20)
    outputs = model(backend.tensor(seeded_input("train_batch", (2, 3, 320, 320)).astype(TYPES[kind])))
    scalars = criterion(outputs, golden_targets(arrays), image_size=(320, 320))
    names, parameters = zip(*model.named_parameters())
    gradients = backend.grad(sum(scalars.values()), list(parameters))
    values = [backend.numpy(output) for output in outputs]
    return Run(
        values,
        dict(zip(scalars, backend.floats(list(scalars.values())))),
        criterion.assign(values[1], golden_targets(arrays), (320, 320)),
        {name: backend.numpy(gradient) for name, gradient in zip(names, gradients)},
        {name: backend.numpy(value) for name, value in backend.named_state(model)},
    )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((kind, phase), marks=pytest.mark.slow if kind == "f64" else (), id=f"{kind}-{phase}")
        for kind in TYPES
        for phase in ("joint_epoch0", "detached_epoch10")
    ],
)
def run(request, records):
    kind, phase = request.param
    return kind, phase, train_once(records("train_m_320_20cls")[1], kind, int(phase.split("epoch")[1]))


def test_training_step_as_published(records, run):
    kind, phase, ours = run
    record, arrays = records("train_m_320_20cls")
    exact = kind == "f64"
    for output, name in zip(ours.outputs, ("head_out", "aux_head_out")):
        floor = record["raw_outputs_f32_minus_f64_absmax"][name]
        assert error(output, arrays[name]) <= (floor + SHARP if exact else (FACTOR + 1) * floor)
    published = record["losses"][f"{phase}/f64"]
    assert {**ours.losses, "loss_total": sum(ours.losses.values())} == pytest.approx(
        published, rel=SHARP if exact else FACTOR * 5e-7, abs=0
    )  # 5e-7: the fact sheet's floor of a single term
    assert (ours.assignment.box == arrays["assign_gt_inds"]).all()
    assert error(ours.assignment.quality, arrays["assign_label_scores"]) <= FACTOR * 3.5e-6  # f32 against f64 outputs


def test_gradients_as_published(records, run):
    kind, phase, ours = run
    record, arrays = records("train_m_320_20cls")
    assert set(ours.gradients) == set(record["per_param"])
    # The float32 error of a single number is one draw, which may be 0 by luck: the four scales share their largest.
    single = max(entry[phase]["rel_l2_err_f32_vs_f64"] for entry in record["per_param"].values() if not entry["shape"])
    for name, entry in record["per_param"].items():
        if name in record[ZERO]:
            continue
        norm, floor = entry[phase]["l2_f64"], entry[phase]["rel_l2_err_f32_vs_f64"] if entry["shape"] else single
        allowed = SHARP if kind == "f64" else FACTOR * floor
        gradient = ours.gradients[name].astype(np.float64)
        assert abs(np.linalg.norm(gradient) - norm) <= allowed * norm, name
        assert abs(gradient.mean() - entry[phase]["mean_f64"]) <= allowed * norm / gradient.size**0.5, name
        if (key := f"grad/{phase}/f64/{name}") in arrays:
            assert np.linalg.norm(gradient - arrays[key]) <= allowed * norm, name


def test_batch_norm_statistics_as_published(records, run):
    kind, _, ours = run
    record, arrays = records("train_m_320_20cls")
    seen = [key for key in arrays if key.startswith("bn_f64/")]
    assert len(seen) == 2 * len(record["bn_after_one_forward"])
    for key in seen:
        _, module, statistic = key.split("/")
        floor = np.abs(arrays[key] - arrays[key.replace("bn_f64", "bn")]).max()
        value = ours.state[f"{module}.{statistic}"]
        allowed = FACTOR * floor if kind == "f32" else SHARP * np.abs(arrays[key]).max()
        assert error(value, arrays[key]) <= allowed, key
        assert (
            ours.state[f"{module}.num_batches_tracked"] == record["bn_after_one_forward"][module]["num_batches_tracked"]
        )


# ---------------------------------------------------------------------------------------------- criterion, edges
EDGES = (
    "standard",
    "both_images_empty",
    "first_image_empty",
    "box_without_any_prior_inside",
    "degenerate_box_next_to_a_normal_one",
    "two_identical_boxes_different_class",
    "box_edge_on_prior_centres",
    "many_boxes",
)


def edge_targets(case):
    return [
        {"boxes": np.reshape(np.asarray(b, np.float32), (-1, 4)), "labels": np.asarray(labels, np.int64)}
        for b, labels in zip(case["gt_bboxes"], case["gt_labels"])
    ]


@pytest.mark.parametrize("kind", FLOAT64_SLOW)
@pytest.mark.parametrize("edge", EDGES)
def test_criterion_on_edge_cases_as_published(records, edge, kind):
    record, found = records("edge_m_320_20cls")
    _, arrays = records("train_m_320_20cls")
    assert set(record["cases"]) == set(EDGES)
    case, criterion = record["cases"][edge], losses.build(NAME, 20)
    leaves = [
        backend.nn.Parameter(backend.tensor(arrays[name].astype(TYPES[kind]))) for name in ("head_out", "aux_head_out")
    ]
    allowed = SHARP if kind == "f64" else FACTOR * 5e-7
    for outputs, form in ((tuple(leaves), "with_aux"), (leaves[0], "without_aux(self assignment)")):
        expected = case[f"{form}/f64"]
        scalars = criterion(outputs, edge_targets(case), image_size=(320, 320))
        total = sum(scalars.values())
        values = dict(zip(scalars, backend.floats(list(scalars.values()))))
        assert values == pytest.approx({name: expected[name] for name in values}, rel=allowed, abs=0)
        gradients = backend.grad(total, leaves)
        assert np.linalg.norm(backend.numpy(gradients[0])) == pytest.approx(expected["grad_head_l2"], rel=allowed)
        if form == "with_aux":
            assert np.linalg.norm(backend.numpy(gradients[1])) == pytest.approx(expected["grad_aux_l2"], rel=allowed)
    assignment = criterion.assign(arrays["aux_head_out"].astype(TYPES[kind]), edge_targets(case), (320, 320))
    assert (assignment.box == found[f"{edge}/gt_inds"]).all()
    assert error(assignment.quality, found[f"{edge}/label_scores"]) <= 1e-6


def test_outputs_of_another_size_are_refused():
    with pytest.raises(AssertionError, match="2125 priors"):
        losses.build(NAME, 20).assign(np.zeros((1, 3598, 52), np.float32), [{}], (320, 320))


# ------------------------------------------------------------------------------------------ assigner, properties
def plain_assign(output, cells, gt_boxes, gt_labels):
    """The rule of the fact sheet's section 7, written out densely in float64."""
    num_classes = output.shape[1] - BINS
    box, quality = np.zeros(len(cells), int), np.zeros(len(cells))
    point = cells[:, None, :2]
    sides = np.concatenate([point - gt_boxes[None, :, :2], gt_boxes[None, :, 2:] - point], 2)
    valid = (sides > 0).all(2).any(1)
    if not valid.any():
        return box, quality
    bins = np.exp(output[valid, num_classes:].reshape(-1, 4, 8))
    reach = (bins / bins.sum(2, keepdims=True)) @ np.arange(8) * cells[valid, 2:]
    predicted = np.concatenate([cells[valid, :2] - reach[:, :2], cells[valid, :2] + reach[:, 2:]], 1)
    overlap = boxes.iou(predicted, gt_boxes)
    logits = output[valid, None, :num_classes]
    soft = overlap[:, :, None] * np.eye(num_classes)[gt_labels]
    chance = 1 / (1 + np.exp(-logits))
    entropy = -soft * np.log(chance) - (1 - soft) * np.log(1 - chance)
    cost = (entropy * (soft - chance) ** 2).sum(2) - 3 * np.log(overlap + 1e-7)
    claims = np.zeros(cost.shape, bool)
    for j in range(len(gt_boxes)):
        k = max(1, int(np.sort(overlap[:, j])[::-1][:13].sum()))
        claims[np.argsort(cost[:, j])[:k], j] = True
    for i in np.flatnonzero(claims.sum(1) > 1):
        claims[i] = np.arange(len(gt_boxes)) == cost[i].argmin()
    for i, j in zip(*claims.nonzero()):
        box[np.flatnonzero(valid)[i]], quality[np.flatnonzero(valid)[i]] = j + 1, overlap[i, j]
    return box, quality


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(1, 6))
def test_assigner_follows_the_rule(seed, count, num_classes):
    rng = np.random.default_rng(seed)
    cells = boxes.priors((96, 64), STRIDES)
    output = 2 * rng.standard_normal((len(cells), num_classes + BINS))
    low, extent = rng.uniform(-4, 60, (count, 2)), rng.uniform(0, 60, (count, 2)) * rng.integers(0, 2, (count, 1))
    gt_boxes, labels = np.concatenate([low, low + extent], 1), rng.integers(0, num_classes, count)
    for ours, plain in zip(assign(output, cells, gt_boxes, labels), plain_assign(output, cells, gt_boxes, labels)):
        np.testing.assert_allclose(ours, plain, rtol=1e-12, atol=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_giou_between_its_bounds_and_as_defined(seed):
    rng = np.random.default_rng(seed)
    first, second = (
        np.concatenate([low, low + rng.uniform(1, 50, (9, 2))], 1) for low in rng.uniform(0, 60, (2, 9, 2))
    )
    point, signs = np.tile((first[:, :2] + first[:, 2:]) / 2, 2), np.asarray([-1, -1, 1, 1])
    loss = backend.numpy(giou_loss(backend.tensor((first - point) * signs), (second - point) * signs))
    overlap = np.diag(boxes.iou(first, second))
    hull = boxes.area(np.concatenate([np.minimum(first, second)[:, :2], np.maximum(first, second)[:, 2:]], 1))
    union = (boxes.area(first) + boxes.area(second)) / (1 + overlap)
    np.testing.assert_allclose(loss, 1 - overlap + 1 - union / hull, rtol=1e-9)
    assert ((loss >= 0) & (loss < 2)).all()
