"""The questions that look inside, framework-free: layers, steps, curves, data, mAP. Each fault is planted and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic

from lib import record
from lib.alignment import derived, equivalence, questions
from lib.alignment.compare import norm
from lib.alignment.evidence import Evidence
from lib.alignment.measure import entries
from lib.alignment.questions import admission
from lib.alignment.verdict import Verdict, conclude, judge_value
from lib.errors import UserError
from lib.evaluation import evaluate


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return synthetic.write_all(folder)


@pytest.fixture
def records(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "records"))


def answer(folder, question):
    return questions.ask(question, Evidence(folder, synthetic.MODEL), "torch", "jittor")


def planted(folder, question, change, side="jittor"):
    synthetic.edit(folder, side, questions.QUESTIONS[question].stage, change)
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


# ---------------------------------------------------------------------------------------------------------- entries
def test_integers_of_a_narrower_type_are_a_named_difference(records):
    """Jittor has no int64 by default, so no port can keep one."""
    for side in ("torch", "jittor"):
        synthetic.write(records, side, "convert", *synthetic.STAGES["convert"](side))

    def narrow(fields, _):
        row = next(row for row in fields["state"] if row[2] == "int64")
        row[2] = "int32"

    found = planted(records, "structure", narrow)
    assert found.verdict is Verdict.PASS
    (row,) = [row for row in found.rows if "integers of another type" in row.name]
    assert row.passed and "int32 where the reference has int64" in row.note
    found = planted(records, "structure", lambda fields, _: fields["state"][0].__setitem__(2, "int32"))
    assert found.verdict is Verdict.FAIL

    def entry(values, kind):
        return entries({"index": np.array(values, kind)}, ())[0]

    assert entry([0, 3], "int32")[4] == entry([0, 3], "int64")[4] != entry([0, 2**31 + 3], "int64")[4]


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
    found = planted(records, "initialisation", lambda fields, arrays: fields["first"].update({"head.weight": "b" * 64}))
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


# ----------------------------------------------------------------------------------------------------------- forgeries
def refused(folder, stage, a="torch", b="jittor"):
    return admission.refused(Evidence(folder, synthetic.MODEL), stage, a, b)


@pytest.mark.parametrize("stage, other", [("loss", "train"), ("evaluate", "train"), ("lockstep", "speed")])
def test_a_record_that_holds_what_another_stage_writes_is_one_line(records, stage, other):
    def change(fields, arrays):
        fields.clear()
        fields.update(synthetic.STAGES[other]("jittor")[0])

    synthetic.edit(records, "jittor", stage, change)
    with pytest.raises(UserError, match="not what the stage writes|has no field"):
        questions.answers(Evidence(records, synthetic.MODEL))


@pytest.mark.parametrize("stage", synthetic.STAGES)
def test_honest_records_are_admitted(sound, stage):
    assert refused(sound, stage) is None


@pytest.mark.parametrize(
    "changed, name",
    [
        ({"sources": {"lib/convert.py": "0" * 64}}, "lib/convert.py"),
        ({"sources": {}}, "commit"),  # made by hand: nobody says which files they depend on
        ({"seed": 1}, "seed"),
        ({"inputs": {"elsewhere/train.json": "1" * 64, "mine/torch/weights.safetensors": "3" * 64}}, "train.json"),
        ({"inputs": {"data/val.json": "0" * 64}}, "files read"),
        ({"versions": {"numpy": "0.1", "jittor": "2"}}, "version of numpy"),
    ],
)
def test_records_of_other_runs_are_not_comparable(records, changed, name):
    for side in ("torch", "jittor"):
        inputs = {"data/train.json": "0" * 64, f"runs/{side}/x.pt": side}
        synthetic.forge(records, side, "train", inputs=inputs, sources={"lib/convert.py": "1" * 64})
    synthetic.forge(records, "torch", "train", git_commit="f" * 40)
    assert refused(records, "train") is None, "a side's own weights, wherever the data lie; a commit of the same source"
    synthetic.forge(records, "jittor", "train", **changed)
    found = questions.answers(Evidence(records, synthetic.MODEL))
    (training,) = [one for one in found if one.question == "training"]
    assert training.verdict is Verdict.NOT_COMPARABLE and training.values["name"] == name
    assert training.values["first_value"] != training.values["second_value"]
    assert all(one.verdict is Verdict.PASS for one in found if one.question == "losses"), "other stages are compared"


def test_records_of_other_cases_are_not_comparable(records):
    synthetic.edit(records, "jittor", "loss", lambda fields, arrays: fields.update(case="d"))
    assert refused(records, "loss")[0] is refused(records, "loss", "published")[0] is Verdict.NOT_COMPARABLE


@pytest.mark.parametrize("stage", ["forward", "loss", "lockstep", "train"])
def test_the_other_framework_s_bytes_under_its_own_name_fail(records, stage):
    fields, arrays = synthetic.STAGES[stage]("torch")
    synthetic.write(records, "jittor", stage, fields, arrays)
    verdict, reason, values = refused(records, stage)
    assert verdict is Verdict.FAIL and reason == "same_bits" and 2 * values["equal"] > values["total"]


@pytest.mark.parametrize(
    "stage, name, place, value",
    [
        ("convert", "parameters", ("parameters",), 338),
        ("divergence", "cost/times_plain", ("cost", "times_plain"), 1.0),
        ("divergence", "cost/gb_per_second", ("cost", "bytes"), 6e8),
        ("loss", f"{PHASE}/float32/loss_total", ("losses", PHASE, "float32", "loss_bbox"), 1.5),
        ("lockstep", "curves/own/loss", ("curves", "own", "loss_qfl", 5), 0.1),
        ("train", "curves/loss", ("curves", "loss", -1), 0.5),
        ("train", "first_step/float32", ("first_step", "float32", "loss_bbox"), 1.0),
        ("train", "final", ("final", "AP"), 0.5),
        ("train", "starts/after", ("starts", "fresh weights", "after", "AP50"), 0.5),
        ("train", "starts/evaluations", ("epochs", 1, "AP"), 0.2),
        ("train", "steps", ("curves", "step"), [0, 1]),
        ("train", "schedule/steps", ("schedule", "steps_per_epoch"), 10),
        ("convert", "first/head.weight", ("first", "head.weight"), "0" * 64),
        ("lockstep", "steps around end of warm-up", ("windows", 0, "first"), 90),
        ("train", "seconds", ("seconds",), 30.0),
        ("train", "waiting_seconds", ("waiting_seconds",), 0.1),
        ("train", "waiting_share", ("waiting_share",), 0.0),
        ("evaluate", "common_weights_sha256", ("common_weights_sha256",), "e" * 64),
        ("evaluate", "common/AP of its matches", ("common", "AP"), 0.9),
        ("speed", "forward, batch 8: synchronised_ms", ("cases", 1, "synchronised_ms", "median"), 1.0),
        ("speed", "forward, batch 1: units", ("cases", 0, "units"), 0.1),
        ("speed", "forward, batch 1: images_per_second", ("cases", 0, "images_per_second"), 1.0),
        ("speed", "forward, batch 1: ratio_to", ("cases", 0, "ratio_to", "torch", "median"), 0.5),
    ],
)
def test_a_number_that_no_longer_follows_is_named(records, stage, name, place, value):
    def change(fields, arrays):
        *way, last = place
        for key in way:
            fields = fields[key]
        fields[last] = value

    synthetic.edit(records, "jittor", stage, change)
    verdict, reason, values = refused(records, stage)
    assert verdict is Verdict.FAIL and reason == "not_derived" and values["name"] == name
    assert values["record"] == f"{synthetic.MODEL}/jittor/{stage}"


def test_what_is_no_number_is_what_follows_from_no_number(records):
    """A loss that ran to NaN is said by its question, not taken for a forgery."""

    def nan(fields, arrays):
        fields["losses"][PHASE]["float32"] |= dict.fromkeys(("loss_bbox", "loss_total"), float("nan"))

    synthetic.edit(records, "jittor", "loss", nan)
    assert refused(records, "loss") is None and answer(records, "losses").verdict is Verdict.FAIL


def halve(fields, arrays):
    """The times of a case of the benchmark, and all that follows from them."""
    case = fields["cases"][0]
    case["turns_ms"] = [[call / 2 for call in turn] for turn in case["turns_ms"]]
    case["synchronised_ms"] |= {name: case["synchronised_ms"][name] / 2 for name in ("median", "q1", "q3")}
    case |= {"images_per_second": case["images_per_second"] * 2, "units": case["units"] / 2, "ratio_to": {}}


def test_times_that_do_not_fit_each_other_are_named(records):
    synthetic.edit(records, "jittor", "speed", halve)
    found = derived.again(Evidence(records, synthetic.MODEL), "jittor", "speed")
    assert [one.name for one in found if not one.holds] == ["forward, batch 1: a turn"]
    synthetic.forge(records, "jittor", "train", wall_seconds=30.0)
    assert refused(records, "train")[2]["name"] == "wall_seconds holds seconds"
    synthetic.edit(records, "jittor", "train", lambda fields, arrays: fields.update(resumed_at=70))
    assert refused(records, "train") is None, "what an earlier process took is not this one's"


def test_norms_are_those_of_the_arrays_that_were_kept(records):
    def keep(fields, arrays):
        for run in ("float32", "float64"):
            weight = synthetic.both("kept", (10, 8), "jittor")[f"{run}/kept"]
            arrays[f"fed/{run}/0/parameter/head.weight"] = weight
            fields["fed"]["steps"][0]["norms"][run]["parameter"]["head.weight"] = norm(weight)
        gap = norm(np.subtract(*(arrays[f"fed/{run}/0/parameter/head.weight"] for run in ("float32", "float64"))))
        fields["fed"]["steps"][0]["noise"]["parameter"]["head.weight"] = gap

    synthetic.edit(records, "jittor", "lockstep", keep)
    assert refused(records, "lockstep") is None

    def louder(fields, arrays):
        fields["fed"]["steps"][0]["noise"]["parameter"]["head.weight"] *= 1000

    synthetic.edit(records, "jittor", "lockstep", louder)
    assert refused(records, "lockstep")[2]["name"] == "noise of fed/float32/0/parameter/head.weight"


def test_noise_made_larger_by_hand_is_found(records):
    def louder(fields, arrays):
        fields["noise"][BOXES]["score"] *= 1000

    synthetic.edit(records, "torch", "loss", louder)
    assert refused(records, "loss")[:2] == (Verdict.FAIL, "noise_apart")


@pytest.mark.parametrize("factor, verdict", [(1, Verdict.PASS), (1000, Verdict.FAIL)])
def test_floors_far_above_what_is_compared_are_no_noise(factor, verdict):
    rows = [judge_value(f"row {i}", "L2 norm", 1e-6, factor * 1e-6, 1.0) for i in range(admission.NOISY)]
    assert admission.held_up(conclude("gradients", "torch-jittor", rows, ())).verdict is verdict


def test_coco_s_numbers_are_derived_from_the_detections(records, tmp_path):
    """An AP that somebody would like, its detections left as they are."""

    box = {"area": 600, "iscrowd": 0}
    boxes = [
        box | {"id": i, "image_id": i % 2, "category_id": 1 + i % 2, "bbox": [10 * i, 5, 20, 30]} for i in range(6)
    ]
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 100} for i in (0, 1)],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "star"}],
    }
    path = tmp_path / "val.json"
    path.write_text(json.dumps(truth))
    rows = [[i % 2, 10 * i, 5, 10 * i + 18, 35, 0.9 - 0.1 * i, i % 2] for i in range(6)]  # a little too narrow
    rows = np.array(rows, np.float32)
    found = [one | {"bbox": [*one["bbox"][:2], 18, 30], "score": float(row[5])} for one, row in zip(boxes, rows)]
    scored, matched = evaluate(truth, found), equivalence.arrays(equivalence.matches(truth, found))

    def measured(fields, arrays):
        for name in [name for name in arrays if name.startswith("matches/")]:
            del arrays[name]
        for weights in ("own", "common"):
            fields |= {weights: dict(scored.numbers), f"{weights}_per_class": scored.per_class}
            arrays[f"float32/{weights}/detections"] = rows
            arrays |= {f"matches/{weights}/{name}": array for name, array in matched.items()}
        fields["images"] = 2

    synthetic.edit(records, "jittor", "evaluate", measured)
    synthetic.forge(records, "jittor", "evaluate", inputs={"train.json": "0" * 64, str(path): record.sha256(path)})

    def again():
        return [one for one in derived.again(Evidence(records, synthetic.MODEL), "jittor", "evaluate") if not one.holds]

    assert again() == [] and 0 < scored.numbers["AP"] < 1
    synthetic.edit(records, "jittor", "evaluate", lambda fields, arrays: fields["common"].update(AP50=0.99))
    assert [one.name for one in again()] == ["common"]
    path.write_text(path.read_text() + " ")
    assert {one.again for one in again()} == {"annotations of evaluate"}, "another file says nothing"
