"""The comparison can't be fooled: each way of being wrong is planted and must be seen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import record
from lib.alignment import datastages, gate, questions, references, verdict
from lib.alignment.compare import compare, compare_sets, match_detections
from lib.alignment.evidence import Evidence
from lib.alignment.store import digest
from lib.alignment.verdict import K, Reach, Verdict
from lib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = np.arange(1.0, 25.0, dtype=np.float32).reshape(4, 6)


def python(code: str, **variables: str) -> str:
    """What this environment's Python prints, under these variables."""
    environ = {**os.environ, "OMP_NUM_THREADS": "", **variables}
    run = [sys.executable, "-c", code]
    return subprocess.run(run, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout


# ---------------------------------------------------------------------------------------------------------- tensors


def spoiled(array, value, where=(2, 3)):
    array = array.copy()
    array[where] = value
    return array


@pytest.mark.parametrize(
    "candidate, said",
    [
        (spoiled(REFERENCE, np.nan), "nan at (2, 3)"),
        (spoiled(REFERENCE, np.inf), "inf at (2, 3)"),
        (REFERENCE[:1], "shape (1, 6)"),  # would broadcast
        (REFERENCE.T, "shape (6, 4)"),
        (REFERENCE.ravel(), "shape (24,)"),
        (REFERENCE.astype(np.float64), "type float64"),
        (np.zeros_like(REFERENCE), "all zero"),
    ],
)
def test_a_fault_is_named_whatever_the_gate(candidate, said):
    assert said in compare("x", REFERENCE, candidate).fault


def test_nan_in_the_reference_is_a_fault_too():
    assert "in the reference" in compare("x", spoiled(REFERENCE, np.nan), REFERENCE).fault


def test_nothing_to_compare_is_a_fault():
    assert "no elements" in compare("x", REFERENCE[:0], REFERENCE[:0]).fault
    assert "empty comparison" in compare_sets({}, {})[0].fault


def test_missing_and_left_over_entries_are_faults():
    found = {c.name: c.fault for c in compare_sets({"a": REFERENCE, "b": REFERENCE}, {"a": REFERENCE, "c": REFERENCE})}
    assert found["a"] is None and found["b"] == "missing" and "left over" in found["c"]


@pytest.mark.parametrize(
    "candidate",
    [
        REFERENCE[::-1].copy(),
        REFERENCE[:, ::-1].copy(),
        np.roll(REFERENCE, 1, axis=1),
        np.random.default_rng(0).permutation(REFERENCE.ravel()).reshape(4, 6),
        np.full_like(REFERENCE, REFERENCE.mean()),
    ],
)
def test_the_same_values_in_another_order_do_not_pass(candidate):
    """Means, sums and norms of these are equal or close: only elementwise metrics see them."""
    reach = {"x": Reach(1e-4, 1e-3, 1e-3)}
    assert not gate.judge({"x": REFERENCE}, {"x": candidate}, reach, "float32")[0].passed


def test_metrics_against_numpy_in_float64():
    other = spoiled(REFERENCE, 20.0)
    found = compare("x", REFERENCE, other)
    a, b = REFERENCE.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    assert found.max_abs == 4.0 and found.worst == (2, 3) and found.differing == 1
    assert found.relative_l2 == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-15)


def test_no_number_of_threads_changes_a_norm():
    """BLAS adds 100,000 squares in another order with two threads than with one."""
    code = "import numpy as np; from lib.alignment.compare import norm; x = np.random.default_rng(0).random(10**5); "
    code += "print(norm(x).hex(), float(x @ x).hex())"
    norms, products = zip(*(python(code, OPENBLAS_NUM_THREADS=str(threads)).split() for threads in (1, 2)))
    assert norms[0] == norms[1]
    assert products[0] != products[1] or len(os.sched_getaffinity(0)) == 1  # what is guarded against


def test_integers_beyond_float64_are_told_apart():
    assert compare("x", np.array([2**53]), np.array([2**53 + 1])).differing == 1


# ------------------------------------------------------------------------------------------------------------ gates


@given(st.floats(1e-9, 1e3), st.floats(0.0, 2 * K, allow_subnormal=False))  # Jittor flushes subnormals
@settings(max_examples=50)
def test_the_gate_is_k_floors(floor, factor):
    assert verdict.judge_value("x", "scalar", factor * floor, floor, 1.0).passed == (factor * floor <= K * floor)


def test_nan_never_passes_a_gate():
    assert not verdict.judge_value("x", "scalar", float("nan"), 1.0, 1.0).passed
    candidate = gate.scalars({"a": "NaN"}, "float32")  # as a record holds it
    [row] = gate.judge(gate.scalars({"a": 1.0}), candidate, {"a": Reach(1.0, 1.0, 1.0)}, "float32")
    assert not row.passed and row.ratio == float("inf")


def test_a_target_below_the_floor_is_neither_met_nor_missed():
    assert verdict.target_status(verdict.judge_value("x", "scalar", 3e-5, 2e-5, 1.0), 1e-5) == "below rounding"
    assert verdict.target_status(verdict.judge_value("x", "scalar", 3e-5, 2e-6, 1.0), 1e-5) == "missed"
    assert verdict.target_status(verdict.judge_value("x", "scalar", 9e-6, 2e-5, 1.0), 1e-5) == "met"


def test_no_rows_are_a_fail_and_rows_without_a_gate_are_only_shown():
    assert verdict.conclude("q", "p", [], []).verdict is Verdict.FAIL
    row = verdict.Row("x", "scalar", 1.0, 1.0, 1.0, 1.0, None)
    assert verdict.conclude("q", "p", [row], []).verdict is Verdict.SHOWN


# ------------------------------------------------------------------------------------------------------- detections


def test_detections_are_paired_one_to_one():
    a = np.array([[0, 10, 10, 20, 20, 0.9, 1], [0, 10, 10, 20, 20, 0.8, 1], [0, 50, 50, 60, 60, 0.7, 2]])
    assert match_detections(a, a[::-1]).pairs == ((0, 2), (1, 1), (2, 0))
    other = a.copy()
    other[2, 6] = 3  # another label
    other[1, 1] += 5  # another place
    found = match_detections(a, other)
    assert found.only_reference == (1, 2) and found.only_candidate == (1, 2)


# ------------------------------------------------------------------------------------------------------- data stages
IMAGE = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)


def stages(change=lambda name, arrays: arrays):
    steps = {
        "decoded": {"image": IMAGE},
        "resized": {"image": IMAGE[::2, ::2]},
        "batch": {"images": IMAGE[::2, ::2].astype(np.float32) / 255},
        "targets": {"boxes": np.ones((2, 4), np.float32)},
    }
    return [datastages.stage(name, change(name, arrays)) for name, arrays in steps.items()]


@pytest.mark.parametrize(
    "at, changed, said",
    [
        (("resized", "batch"), lambda array: array + 1, "resized: image"),
        (("decoded",), lambda array: array[..., ::-1], "decoded: image"),  # channels in another order
        (("batch",), lambda array: array.astype(np.float64), "batch: images"),
        (("targets",), None, "targets: boxes"),  # gone
    ],
)
def test_the_first_stage_that_differs_is_named(at, changed, said):
    def change(name, arrays):
        return {key: changed(array) for key, array in arrays.items() if changed} if name in at else arrays

    assert datastages.first_difference(datastages.differences(stages(), stages())) is None
    rows = datastages.differences(stages(), stages(change))
    assert datastages.first_difference(rows) == said
    assert [row.passed for row in rows if row.name.split(":")[0] in at] == [False, None][: len(at)]
    assert ("only one side" in next(row.note for row in rows if row.passed is False)) == (changed is None)


def test_a_skipped_an_extra_and_no_stage_are_faults():
    ours = stages()
    assert datastages.first_difference(datastages.differences(ours, [ours[0], *ours[2:]])) == "resized"
    assert "the end" in datastages.differences(ours, ours[:3])[0].note
    assert datastages.differences(ours, [*ours, ours[0]])[0].passed is False
    assert datastages.differences([], [])[0].passed is False


# ---------------------------------------------------------------------------------------------- records to verdicts


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return synthetic.write_all(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def records(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "records"))


def verdicts(folder):
    return {(a.question, a.pair): a for a in questions.answers(Evidence(folder, synthetic.MODEL))}


def between(folder, question):
    """The verdict of the two frameworks' pair."""
    return verdicts(folder)[question, "torch-jittor"].verdict


def test_sound_records_pass_and_each_question_has_its_pairs(records):
    found = verdicts(records)
    judged = {key: a.verdict for key, a in found.items() if key[0] != "speed"}
    assert set(judged.values()) == {Verdict.PASS}, {k: a.values for k, a in found.items() if a.verdict is Verdict.FAIL}
    assert all(a.verdict is Verdict.SHOWN for key, a in found.items() if key[0] == "speed")
    assert len(found) == 3 * 11 + 8  # what the published side has no record of


GRADIENT = "gradient/joint_epoch0/body.0.weight"


def changed(name, how, at=None):
    """An array, or its flat element `at`, becomes how(it)."""

    def change(fields, arrays):
        array = arrays[name].copy() if at is not None else how(arrays[name])
        if at is not None:
            array.flat[at] = how(array.flat[at])
        arrays[name] = np.asarray(array, arrays[name].dtype)

    return change


def perturb(name, factor=1 + 1e-3):
    return changed(name, lambda value: value * factor, 5)


def poison(name):
    return changed(name, lambda value: np.nan, 0)


def flip(name):
    return changed(name, lambda value: value + 1, 3)


def drop(name):
    return lambda fields, arrays: arrays.pop(name)


def another_shape(fields, arrays):
    name, fields["state"][0][1] = fields["state"][0][0], [8, 3, 9]
    if f"first/{name}" in arrays:  # a side that was built
        fields["first"][name] = digest(np.reshape(arrays[f"first/{name}"], [8, 3, 9]))


def assign(*path, value):
    def change(fields, arrays):
        for key in path[:-1]:
            fields = fields[key]
        fields[path[-1]] = value

    return change


def scaled_loss(run, factor):
    """A component of the first phase's loss, and the total with it."""

    def change(fields, arrays):
        held = fields["losses"]["joint_epoch0"][run]
        held["loss_total"] += held["loss_bbox"] * (factor - 1)
        held["loss_bbox"] *= factor

    return change


def lose_an_entry(fields, arrays):
    fields["parameters"] -= fields["state"].pop(2)[1][0]
    fields["coverage"]["total"] -= 1


def start_elsewhere(fields, arrays):
    """Another first loss, in the curve and beside it."""
    fields["curves"]["loss"][0] += 0.01
    fields["curves"]["loss_bbox"][0] += 0.01
    fields["first_step"]["float32"]["loss_bbox"] = fields["curves"]["loss_bbox"][0]


FAULTS = {
    "one gradient element": ("loss", perturb(f"float32/{GRADIENT}", 1.01), "gradients"),
    "a fault below float32's noise": ("loss", perturb(f"float64/{GRADIENT}", 1 + 1e-8), "gradients"),
    "a missing gradient": ("loss", drop(f"float32/{GRADIENT}"), "gradients"),
    "a gradient of zeros": ("loss", changed(f"float32/{GRADIENT}", np.zeros_like), "gradients"),
    "noise where the true gradient is zero, a thousandfold": (
        "loss",
        perturb(f"float32/gradient/joint_epoch0/{synthetic.TRUE_ZERO}", 1e3),
        "gradients",
    ),
    "NaN in the outputs": ("forward", poison("float32/preds"), "forward"),
    "outputs in another order": ("forward", changed("float32/preds", lambda array: array[:, ::-1]), "forward"),
    "one feature missing": ("forward", drop("float32/features/body.1"), "forward"),
    "one detection moved": ("forward", flip("float32/detections"), "forward"),
    "a loss 1e-5 off": ("loss", scaled_loss("float32", 1 + 1e-5), "losses"),
    "a loss that is NaN": ("loss", scaled_loss("float32", float("nan")), "losses"),
    "one prior assigned otherwise": ("loss", flip("assignment/joint_epoch0/gt_inds"), "assignment"),
    "a learning rate 0.1 % off in the step": (
        "loss",
        lambda f, a: a.update({n: (v * 1.001).astype(v.dtype) for n, v in a.items() if n.startswith("float32/step/")}),
        "step",
    ),
    "a change that is missing": ("loss", drop("float32/step/clip35_lr1e-3/head.weight"), "step"),
    "biased running variance": ("loss", changed("float32/bn/body.1.running_var", lambda a: 0.99 * a), "batch_norm"),
    "a counter not counted": ("loss", changed("bn/body.1.num_batches_tracked", np.zeros_like), "batch_norm"),
    "an entry missing from the state": ("convert", lose_an_entry, "structure"),
    "an entry of another shape": ("convert", another_shape, "structure"),
    "entries in another order": ("convert", lambda f, a: f["state"].reverse(), "structure"),
    "other bytes in one weight": ("convert", assign("state", 0, 4, value="0" * 64), "conversion"),
    "a round trip that loses bits": ("convert", assign("round_trip", "npz", value=False), "conversion"),
    "a key reported missing": ("convert", assign("missing", value=["head.bias"]), "conversion"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("side", ["torch", "jittor"])
def test_a_planted_fault_fails_its_question_and_spares_the_rest(records, name, side):
    stage, change, question = FAULTS[name]
    synthetic.edit(records, side, stage, change)
    found = verdicts(records)
    assert found[question, f"published-{side}"].verdict is Verdict.FAIL
    assert found[question, f"published-{side}"].reason != "not_derived", "the question itself must see it"
    if side == "jittor":  # of PyTorch's float32 run this pair asks nothing: the third side sees it
        assert found[question, "torch-jittor"].verdict is Verdict.FAIL
    other = {"torch": "jittor", "jittor": "torch"}[side]
    assert found[question, f"published-{other}"].verdict is Verdict.PASS


def test_a_live_reference_that_differs_fails_the_forward_question(records):
    synthetic.edit(records, "torch", "forward", assign("live", "outputs", "preds", "error", value=1e-4))
    answer = verdicts(records)["forward", "published-torch"]
    assert answer.verdict is Verdict.FAIL and answer.values["name"] == "others 1, preds"


@pytest.mark.parametrize(
    "stage, change, question",
    [
        ("train", start_elsewhere, "training"),
        ("train", assign("first_step", "float64", "loss_bbox", value=1.600001), "training"),
        ("train", assign("initial_sha256", value="0" * 64), "training"),
        ("evaluate", perturb("float32/common/detections", 3.0), "evaluation"),
        ("evaluate", assign("common_weights_sha256", value="0" * 64), "evaluation"),
        (
            "speed",
            lambda fields, arrays: fields["cases"][1].update(unsynchronised_ms=fields["cases"][1]["synchronised_ms"]),
            "speed",
        ),
        (
            "speed",
            lambda fields, arrays: fields["cases"][0]["form_judged"]["worst"].update(error=1e-6),
            "speed",
        ),
    ],
)
def test_a_fault_between_the_frameworks(records, stage, change, question):
    synthetic.edit(records, "jittor", stage, change)
    assert between(records, question) is Verdict.FAIL


def test_a_removed_record_is_not_run_and_never_a_pass(records):
    (records / synthetic.MODEL / "jittor" / "loss.json").unlink()
    found = verdicts(records)
    assert found["gradients", "torch-jittor"].verdict is Verdict.NOT_RUN
    assert found["gradients", "published-jittor"].verdict is Verdict.NOT_RUN
    assert found["gradients", "published-torch"].verdict is Verdict.PASS
    assert found["forward", "torch-jittor"].verdict is Verdict.PASS


def test_no_reach_no_pass(records):
    """Without PyTorch's moved runs nothing says how close two sides must be."""
    synthetic.edit(records, "torch", "forward", lambda fields, arrays: fields["reach"].pop("preds"))
    found = verdicts(records)["forward", "torch-jittor"]
    assert found.verdict is Verdict.FAIL and "no reach" in found.values["note"]
    synthetic.edit(records, "torch", "forward", lambda fields, arrays: fields.pop("reach"))
    with pytest.raises(UserError, match="torch/forward.json: has no field reach; run the stage again"):
        verdicts(records)


def test_what_only_pytorch_can_say_waits_for_its_record(records):
    (records / synthetic.MODEL / "torch" / "loss.json").unlink()
    answer = verdicts(records)["gradients", "published-jittor"]
    assert answer.verdict is Verdict.NOT_RUN and answer.values["missing"] == f"{synthetic.MODEL}/torch/loss"


def test_a_record_without_a_field_is_an_error_that_names_it(records):
    synthetic.edit(records, "jittor", "convert", lambda fields, arrays: fields.pop("coverage"))
    with pytest.raises(UserError, match="jittor/convert.json: has no field coverage"):
        verdicts(records)


def test_the_same_records_give_the_same_verdicts(records):
    first, second = (questions.judge_records(records, [synthetic.MODEL])[0].fields for _ in range(2))
    assert first == second and first["verdicts"]


# ---------------------------------------------------------------------------------------------------- published side


def test_published_records_hold_what_the_questions_ask(golden, tmp_path):
    paths = references.write(tmp_path, "nanodet-plus-m_320", golden)
    assert [path.stem for path in paths] == ["convert", "forward", "loss", "speed"]
    loss = record.read(paths[2])
    assert loss.fields["losses"]["joint_epoch0"]["float64"]["loss_bbox"] == pytest.approx(1.4007684487395615, rel=1e-15)
    assert len([name for name in loss.fields["statistics"] if name.startswith("gradient/joint_epoch0/")]) == 463
    assert sum(name.startswith("float64/gradient/joint_epoch0/") for name in loss.arrays) == 21


@pytest.mark.parametrize(
    "model, stages, phase",
    [
        ("gold-yolo-n", ["convert", "forward", "loss", "speed"], "tal"),
        ("gold-yolo-m", ["convert", "loss"], "atss"),
        ("rtdetr_r18vd", ["convert", "forward", "loss", "speed"], "dn"),
        ("rtdetr_r50vd", ["convert"], None),
    ],
)
def test_every_family_is_read_into_the_same_vocabulary(golden, tmp_path, model, stages, phase):
    paths = references.write(tmp_path, model, golden)
    assert [path.stem for path in paths] == stages
    trained = {row[0] for row in record.read(paths[0]).fields["state"] if row[3] == "param"}
    if phase:
        loss = record.read(paths[stages.index("loss")])
        gradients = {
            name.split("/", 2)[2] for name in loss.fields["statistics"] if name.startswith(f"gradient/{phase}/")
        }
        assert gradients == trained
        losses = loss.fields["losses"][phase]["float64"]
        assert losses["loss_total"] == pytest.approx(
            sum(value for name, value in losses.items() if name != "loss_total"), rel=1e-9
        )


@pytest.mark.parametrize("model, run", [("gold-yolo-n", "float32"), ("rtdetr_r18vd", "float64")])
def test_the_published_steps_follow_their_rules(golden, tmp_path, model, run):
    """SGD and AdamW with groups, as restated here, on the published gradients and weights; RT-DETR's decay of 1e-8 of
    the weight only shows in float64."""
    from lib.alignment.evidence import Evidence
    from lib.alignment.rows import step_residuals

    references.write(tmp_path, model, golden)
    evidence = Evidence(tmp_path, model)
    (variant,) = evidence.field("published", "loss", "optimiser")
    found = step_residuals(evidence, "published", variant, run)
    assert len(found) >= 4 and max(found.values()) < 10

    def decays(fields, arrays):
        for group in fields["optimiser"][variant]["groups"]:
            group["decays"] = not group["decays"]

    path = tmp_path / model / "published" / "loss.json"
    held, arrays = record.read(path), record.load_arrays(path)
    decays(held.fields, arrays)
    record.write(tmp_path, held, arrays)
    assert max(step_residuals(Evidence(tmp_path, model), "published", variant, run).values()) > 100, (
        "decay on the wrong group"
    )


def test_a_case_without_golden_files_is_not_run(golden, tmp_path):
    paths = references.write(tmp_path, "nanodet-plus-m-1.5x_416", golden)
    assert [path.stem for path in paths] == ["convert"]
    found = {(a.question, a.pair): a.verdict for a in questions.answers(Evidence(tmp_path, "nanodet-plus-m-1.5x_416"))}
    assert set(found.values()) == {Verdict.NOT_RUN}


def test_the_published_step_follows_the_rule_it_is_judged_by(golden, tmp_path):
    """AdamW as restated here, on the published gradients, gives the published parameters to a few roundings."""
    from lib.alignment.evidence import Evidence
    from lib.alignment.references import nanodet_plus
    from lib.alignment.rows import step_residuals

    references.write(tmp_path, "nanodet-plus-m_320", golden)
    found = step_residuals(Evidence(tmp_path, "nanodet-plus-m_320"), "published", nanodet_plus.FULL_STEP)
    assert len(found) == 21 and max(found.values()) < 10
