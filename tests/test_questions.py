"""The questions that look inside: layers, steps, curves, data, mAP. Each way of being wrong is planted and named.

Framework-free.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic

from lib.alignment import questions
from lib.alignment.evidence import Evidence
from lib.alignment.verdict import Verdict
from lib.errors import UserError


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    for side in ("torch", "jittor"):
        for stage in ("forward", "divergence", "loss", "lockstep", "evaluate"):
            synthetic.write(folder, side, stage, *synthetic.STAGES[stage](side))
    return folder


@pytest.fixture
def records(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "records"))


def answer(folder, question):
    return questions.ask(question, Evidence(folder, synthetic.MODEL), "torch", "jittor")


def planted(folder, question, change, side="jittor"):
    synthetic.edit(folder, side, questions.QUESTIONS[question][0], change)
    return answer(folder, question)


@pytest.mark.parametrize(
    "question, reason",
    [
        ("divergence", "diverges_nowhere"),
        ("initialisation", "identical"),
        ("data", "identical"),
        ("lockstep", "within_gate"),
        ("trajectory", "stays_in_band"),
        ("equivalence", "map_difference"),
        ("assignment", "decided"),
        ("losses", "within_gate"),
    ],
)
def test_sound_records_pass(sound, question, reason):
    found = answer(sound, question)
    assert found.verdict is Verdict.PASS and found.reason == reason, found.values


# ----------------------------------------------------------------------------------------------------------- layers
def spoil_layer(number, way="forward", run="float64", error=1e-3):
    def change(fields, arrays):
        fields["layers"][number]["errors"][run][way]["l2"] = error

    return change


def test_the_first_layer_beyond_its_gate_is_named_in_each_direction(records):
    planted(records, "divergence", spoil_layer(2))
    found = planted(records, "divergence", spoil_layer(1, "backward"))
    assert found.verdict is Verdict.FAIL and found.reason == "diverges_at"
    assert found.values["forward"] == synthetic.DEPTH[2] and found.values["backward"] == synthetic.DEPTH[1]


def test_two_captures_are_not_compared_in_silence(records):
    found = planted(records, "divergence", lambda fields, arrays: fields.update(captured="f" * 64))
    assert found.verdict is Verdict.FAIL and found.values["name"] == "capture that both speak of"


# --------------------------------------------------------------------------------------------------------- decisions
BOXES, MATCHED = synthetic.CHOICES
PHASE = synthetic.PHASES[0]


def flip(at, name=BOXES):
    """One decision of the candidate comes out otherwise."""

    def change(fields, arrays):
        chosen = arrays[f"assignment/{name}"].copy()
        chosen[at] = 1 - chosen[at] if name == BOXES else 49
        arrays[f"assignment/{name}"] = chosen

    return change


def rows_of(found, what):
    return [row for row in found.rows if row.what == what]


def test_how_near_decisions_are_to_a_toss_up_is_said(sound):
    found = answer(sound, "assignment")
    assert found.values["decisions"] == 104 and found.values["flipped"] == 0 and found.values["within"] == 1
    assert found.values["nearest"] == 0.5 and found.values["nearest_name"] == BOXES


def test_a_flip_within_rounding_is_legal_and_listed_with_its_margin(records):
    found = planted(records, "assignment", flip(synthetic.NEAR))
    assert found.verdict is Verdict.PASS and found.reason == "decided" and found.values["flipped"] == 1
    [row] = rows_of(found, "flipped decision")
    assert row.name == f"{BOXES} at (1, 7)" and row.passed and (row.error, row.gate) == (0.5, 5.0)


def test_an_illegal_flip_fails_and_says_where_what_and_how_far(records):
    planted(records, "assignment", flip(synthetic.NEAR))
    found = planted(records, "assignment", flip((0, 3)))
    assert found.verdict is Verdict.FAIL and found.reason == "differs" and found.values["name"] == BOXES
    assert (
        "flipped at (0, 3)" in found.values["note"] and "floors" in found.values["note"] and "→" in found.values["note"]
    )
    assert sorted(row.passed for row in rows_of(found, "flipped decision")) == [False, True]


def test_what_follows_a_legal_flip_is_legal_in_its_image_alone(records):
    planted(records, "assignment", flip(synthetic.NEAR))
    found = planted(records, "assignment", flip((1, 0), MATCHED))
    assert found.verdict is Verdict.PASS and "after an earlier flip" in rows_of(found, "flipped decision")[1].note
    found = planted(records, "assignment", flip((0, 0), MATCHED))
    assert found.verdict is Verdict.FAIL and "flipped at (0, 0)" in found.values["note"]


def test_without_exact_scores_no_flip_is_legal(records):
    def forget(fields, arrays):
        del arrays[f"margin/{BOXES}"], arrays[f"option/{BOXES}"]

    planted(records, "assignment", forget, side="torch")
    assert answer(records, "assignment").verdict is Verdict.PASS
    found = planted(records, "assignment", flip(synthetic.NEAR))
    assert found.verdict is Verdict.FAIL and "no exact scores" in found.values["note"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda fields, arrays: arrays.pop(f"assignment/{BOXES}"), "missing"),
        (lambda fields, arrays: arrays.update({"assignment/more": np.zeros(3, int)}), "left over"),
        (
            lambda fields, arrays: arrays.update(
                {f"assignment/{BOXES}": arrays[f"assignment/{BOXES}"].astype(np.int32)}
            ),
            "int32",
        ),
        (
            lambda fields, arrays: arrays.update({f"assignment/{BOXES}": arrays[f"assignment/{BOXES}"][:, :49]}),
            "shape (2, 49)",
        ),
    ],
)
def test_decisions_that_can_not_be_compared_are_faults(records, change, said):
    found = planted(records, "assignment", change)
    assert found.verdict is Verdict.FAIL and found.reason == "fault" and said in found.values["note"]


def test_margins_that_are_no_numbers_excuse_nothing(records):
    def spoil(fields, arrays):
        arrays[f"margin/{BOXES}"] = np.full_like(arrays[f"margin/{BOXES}"], np.nan)

    found = planted(records, "assignment", spoil, side="torch")
    assert found.verdict is Verdict.FAIL and "NaN" in found.values["note"]


def off(fields, arrays):
    fields["losses"][PHASE]["float32"]["loss_bbox"] *= 1.01


def test_a_loss_behind_a_legal_flip_is_shown_where_its_float64_run_agrees(records):
    assert planted(records, "losses", off).verdict is Verdict.FAIL
    found = planted(records, "losses", flip(synthetic.NEAR))
    [shown] = [row for row in found.rows if row.passed is None]
    assert found.verdict is Verdict.PASS and shown.name == f"{PHASE}/loss_bbox" and BOXES in shown.note
    planted(records, "losses", flip((0, 3)))
    assert answer(records, "losses").verdict is Verdict.FAIL, "an illegal flip excuses nothing"


def test_a_loss_that_is_wrong_in_float64_too_is_not_excused(records):
    def wrong(fields, arrays):
        for run in ("float32", "float64"):
            fields["losses"][PHASE][run]["loss_bbox"] *= 1.01

    planted(records, "losses", flip(synthetic.NEAR))
    assert planted(records, "losses", wrong).verdict is Verdict.FAIL


def test_the_published_side_is_judged_by_our_exact_scores(records):
    synthetic.write(records, "published", "loss", *synthetic.STAGES["loss"]("published"))
    synthetic.edit(records, "published", "loss", flip(synthetic.NEAR))
    evidence = Evidence(records, synthetic.MODEL)
    found = questions.ask("assignment", evidence, "published", "jittor")
    assert found.verdict is Verdict.PASS and found.values["flipped"] == 1
    synthetic.edit(records, "published", "loss", flip((0, 3)))
    assert (
        questions.ask("assignment", Evidence(records, synthetic.MODEL), "published", "jittor").verdict is Verdict.FAIL
    )


def lose(index):
    """The candidate has one detection less."""

    def change(fields, arrays):
        for run in ("float32", "float64"):
            arrays[f"{run}/detections"] = np.delete(arrays[f"{run}/detections"], index, 0)

    return change


def near_miss(index, margin):
    """The reference's exact scores say how near a detection was to suppression."""

    def change(fields, arrays):
        arrays["near/detections"] = np.append(arrays["float64/detections"][index], margin)[None]

    return change


def test_a_detection_at_the_limit_of_suppression_may_be_lost_and_no_other(records):
    planted(records, "forward", near_miss(3, 2.5), side="torch")
    assert answer(records, "forward").values["within"] == 1
    found = planted(records, "forward", lose(3))
    [row] = rows_of(found, "flipped decision")
    assert found.verdict is Verdict.PASS and found.reason == "within_gate_decided" and found.values["flipped"] == 1
    assert (row.error, row.gate, row.note) == (2.5, 5.0, "alone on side torch")
    found = planted(records, "forward", lose(3))
    assert found.verdict is Verdict.FAIL and "detection in image 0" in found.values["note"]


@pytest.mark.parametrize("margin", [5.01, np.nan])
def test_a_detection_farther_from_suppression_may_not_be_lost(records, margin):
    planted(records, "forward", near_miss(3, margin), side="torch")
    assert planted(records, "forward", lose(3)).verdict is Verdict.FAIL


# ------------------------------------------------------------------------------------------------------ steps, curves
def test_the_first_quantity_apart_is_named_with_mode_and_step(records):
    def change(fields, arrays):
        fields["native"]["steps"][1]["norms"]["float64"]["average"]["head.weight"] *= 1 + 1e-6

    found = planted(records, "lockstep", change)
    assert found.verdict is Verdict.FAIL and found.reason == "first_apart"
    assert (found.values["mode"], found.values["step"], found.values["kind"]) == ("native", 1, "average")


def test_other_batches_are_named(records):
    def change(fields, arrays):
        fields["batches"] = fields["curves"]["batches"] = ["c" * 64]

    assert planted(records, "lockstep", change).values["name"] == "batches"
    assert answer(records, "trajectory").verdict is Verdict.FAIL


def test_a_run_that_leaves_the_band_fails(records):
    def change(fields, arrays):
        fields["curves"]["own"]["loss"][3] *= 1 + 1e-3

    found = planted(records, "trajectory", change)
    assert found.verdict is Verdict.FAIL and "leaves at step 3" in found.values["note"]


@pytest.mark.parametrize(
    "change",
    [
        lambda fields, arrays: fields["curves"].update(off=fields["curves"]["own"]),  # a wrong rate that nobody sees
        lambda fields, arrays: fields["curves"]["controls"][2]["loss"].__setitem__(
            1, 2.0
        ),  # a control far from the others
        lambda fields, arrays: [
            run["loss"].__setitem__(0, 3.0 + i) for i, run in enumerate(fields["curves"]["controls"])
        ],
    ],
)
def test_a_band_that_can_tell_nothing_is_neither_pass_nor_fail(records, change):
    found = planted(records, "trajectory", change, side="torch")
    assert found.verdict is Verdict.UNDERPOWERED and found.reason == "band_cannot_tell"


def test_nan_fails_whatever_the_band(records):
    def change(fields, arrays):
        fields["curves"]["own"]["loss"][0] = float("nan")

    assert planted(records, "trajectory", change).verdict is Verdict.FAIL


def test_too_few_controls_fail(records):
    found = planted(records, "trajectory", lambda fields, arrays: fields["curves"]["controls"].pop(), side="torch")
    assert found.verdict is Verdict.FAIL and "at least 5" in found.values["note"]


# ------------------------------------------------------------------------------------------------------------- data
def test_the_stage_at_which_the_data_differ_is_named(records):
    def change(fields, arrays):
        fields["data"][1][1]["result"] = fields["data"][2][1]["boxes 0"] = "4" * 64

    found = planted(records, "data", change)
    assert found.verdict is Verdict.FAIL and found.values["first"] == "image 0, 1: colours: result"


def test_a_weight_that_starts_otherwise_is_named(records):
    found = planted(
        records, "initialisation", lambda fields, arrays: fields["initial"].update({"head.weight": "b" * 64})
    )
    assert found.verdict is Verdict.FAIL and "head.weight" in found.values["note"]


# -------------------------------------------------------------------------------------------------------------- mAP
def miss(weights, share):
    def change(fields, arrays):
        for label in (0, 1):
            hit = arrays[f"matches/{weights}/{label}/hit"].copy()
            hit[:, : int(share * synthetic.IMAGES)] = False
            arrays[f"matches/{weights}/{label}/hit"] = hit

    return change


def test_a_detector_that_misses_half_is_different(records):
    found = planted(records, "equivalence", miss("common", 0.5))
    assert (
        found.verdict is Verdict.FAIL and found.values["outcome"] == "DIFFERENT" and found.values["difference"] < -0.1
    )


def test_own_weights_are_shown_not_judged(records):
    found = planted(records, "equivalence", miss("own", 0.5))
    assert found.verdict is Verdict.PASS and found.values["own"] == "DIFFERENT"


def test_one_image_can_not_tell(records):
    found = planted(records, "equivalence", miss("common", 1 / synthetic.IMAGES))
    assert found.verdict is Verdict.UNDERPOWERED and found.values["low"] < 0 <= found.values["high"]


def test_another_ground_truth_is_a_fault(records):
    def change(fields, arrays):
        arrays["matches/common/0/boxes"] = arrays["matches/common/0/boxes"] * 2

    found = planted(records, "equivalence", change)
    assert found.verdict is Verdict.FAIL and "ground truth" in found.values["note"]


def test_a_record_in_another_s_place_is_named(records):
    place = records / synthetic.MODEL
    for suffix in (".json", ".safetensors"):
        shutil.copy(place / "torch" / f"forward{suffix}", place / "jittor")
    with pytest.raises(UserError, match=f"is the record {synthetic.MODEL}/torch/forward: put it back"):
        answer(records, "forward")
