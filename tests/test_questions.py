"""The questions that look inside: layers, steps, curves, data, mAP. Each way of being wrong is planted in records and named.

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


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    for side in ("torch", "jittor"):
        for stage in ("divergence", "lockstep", "evaluate"):
            synthetic.write(folder, side, stage, *synthetic.STAGES[stage](side))
    return folder


@pytest.fixture
def records(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "records"))


def answer(folder, question):
    return questions.QUESTIONS[question][2](Evidence(folder, synthetic.MODEL), "torch", "jittor")


def planted(folder, question, change, side="jittor"):
    synthetic.edit(folder, side, questions.QUESTIONS[question][0], change)
    return answer(folder, question)


@pytest.mark.parametrize("question, reason", [
    ("divergence", "diverges_nowhere"), ("initialisation", "identical"), ("data", "identical"), ("lockstep", "within_gate"),
    ("trajectory", "stays_in_band"), ("equivalence", "map_difference"),
])  # fmt: skip
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


@pytest.mark.parametrize("change", [
    lambda fields, arrays: fields["curves"].update(off=fields["curves"]["own"]),  # a wrong rate that nobody sees
    lambda fields, arrays: fields["curves"]["controls"][2]["loss"].__setitem__(1, 2.0),  # a control far from the others
    lambda fields, arrays: [run["loss"].__setitem__(0, 3.0 + i) for i, run in enumerate(fields["curves"]["controls"])],
])  # fmt: skip
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
    found = planted(records, "initialisation", lambda fields, arrays: fields["initial"].update({"head.weight": "b" * 64}))
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
    assert found.verdict is Verdict.FAIL and found.values["outcome"] == "DIFFERENT" and found.values["difference"] < -0.1


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
