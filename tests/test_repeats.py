"""Trainings that were repeated: what their records say is judged by the means of both sides. Faults are planted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic_records as synthetic

from lib import convert, record
from lib.alignment import questions
from lib.alignment import runs as judged
from lib.alignment.evidence import Evidence
from lib.alignment.questions import admission
from lib.alignment.verdict import ROUNDING, Verdict
from lib.data import scenes
from lib.show.messages import LANGUAGES, Messages
from lib.training import runs


@pytest.fixture
def trained(tmp_path):
    for side in ("torch", "jittor"):
        synthetic.write(tmp_path / "records", side, "train", *synthetic.STAGES["train"](side))
    return tmp_path / "records"


def repeat(records, **precisions):
    """Trainings with these APs in the records of a side; the first is the one whose curves the record holds."""
    for side, found in precisions.items():

        def change(fields, arrays, side=side, found=found):
            own = fields["curves"]["loss"]
            trainings = [(own, fields["final"]["AP"]), *(([loss + len(side) for loss in own], ap) for ap in found)]
            fields["repeats"] = [
                {"seed": place // 2, "roundings": place % 2, "losses": losses, "AP": ap, "weights_sha256": "e" * 64}
                for place, (losses, ap) in enumerate(trainings)
            ]

        synthetic.edit(records, side, "train", change)
    return questions.ask("training", Evidence(records, synthetic.MODEL), "torch", "jittor")


def refused(records):
    return admission.refused(Evidence(records, synthetic.MODEL), "train", "torch", "jittor")


NEAR, FAR, WIDE = (0.254, 0.256, 0.257, 0.255), (0.281, 0.279, 0.282, 0.280), (0.15, 0.31, 0.22, 0.35)
LOW = (0.236, 0.237, 0.235, 0.238)


@pytest.mark.parametrize(
    "torch, jittor, outcome, verdict",
    [
        (NEAR, NEAR, "EQUIVALENT", Verdict.PASS),
        (LOW, FAR, "DIFFERENT", Verdict.FAIL),
        (NEAR, WIDE, "UNDERPOWERED", Verdict.UNDERPOWERED),
        (NEAR[:1], FAR[:1], "UNDERPOWERED", Verdict.UNDERPOWERED),
    ],
)
def test_repeated_trainings_are_judged_by_their_means(trained, torch, jittor, outcome, verdict):
    found = repeat(trained, torch=torch, jittor=jittor)
    assert (found.verdict, found.values["outcome"], found.reason) == (verdict, outcome, "repeats"), found.values
    held = {
        side: [one.value for one in found.numbers if (one.label, one.side) == ("repeated_map", side)]
        for side in ("torch", "jittor")
    }
    assert held["torch"][1:] == list(torch) and held["jittor"][1:] == list(jittor) and refused(trained) is None
    assert found.values["difference"] == pytest.approx(np.mean(held["jittor"]) - np.mean(held["torch"]))
    assert found.values["smallest"] > abs(found.values["difference"]) or verdict is not Verdict.UNDERPOWERED
    for language in LANGUAGES:
        assert "{" not in Messages(language).say("reason.repeats", first="a", second="b", **found.values)


def test_trainings_that_find_nothing_are_no_pass(trained):
    for side in ("torch", "jittor"):
        synthetic.edit(trained, side, "train", lambda fields, arrays: fields["final"].update(AP=0.0))
    found = repeat(trained, torch=(0.0,), jittor=(0.0,))
    assert (found.verdict, found.reason) == (Verdict.UNDERPOWERED, "repeats_alike")


def test_repeated_trainings_of_one_side_or_copied_or_changed_are_no_pass(trained):
    assert repeat(trained, torch=NEAR).verdict is Verdict.FAIL, "the other side was not repeated"
    repeat(trained, jittor=NEAR)
    theirs = record.read(trained / synthetic.MODEL / "torch" / "train.json").fields["repeats"][3]["losses"]
    synthetic.edit(trained, "jittor", "train", lambda fields, arrays: fields["repeats"][3].update(losses=theirs))
    found = questions.ask("training", Evidence(trained, synthetic.MODEL), "torch", "jittor")
    assert found.verdict is Verdict.FAIL and "last bit" in found.values["name"]
    synthetic.edit(trained, "jittor", "train", lambda fields, arrays: fields["repeats"][0].update(AP=0.3))
    assert refused(trained)[2]["name"] == "repeats/0"


def test_a_repeated_training_is_held_against_its_log(trained):
    (folder := trained.parent / "runs" / synthetic.MODEL / "jittor" / "repeats" / "1").mkdir(parents=True)
    repeat(trained, jittor=[0.3])
    losses = record.read(trained / synthetic.MODEL / "jittor" / "train.json").fields["repeats"][1]["losses"]
    lines = [{"step": step, "epoch": 0, "loss": loss} for step, loss in enumerate(losses)]
    lines.append({"step": 79, "epoch": 3, "evaluation": {"AP": 0.29}})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "weights.safetensors").write_bytes(b"of a repeated training")
    assert refused(trained) is None, "the log of another run says nothing"
    digest = record.sha256(folder / "weights.safetensors")
    synthetic.edit(
        trained, "jittor", "train", lambda fields, arrays: fields["repeats"][1].update(weights_sha256=digest)
    )
    assert refused(trained)[2]["name"] == "repeats/1 of the log"


# ---------------------------------------------------------------------------------------------------- what is repeated
def test_a_training_is_repeated_from_moved_weights_and_from_other_seeds(tmp_path, monkeypatch):
    """What is trained five times, without training it: the weights that start are the plan's, moved by a rounding."""
    scenes.generate(tmp_path / "data", train=2, val=1, size=64)
    plan = runs.Training("nanodet-plus-m_320", str(tmp_path / "data"), str(tmp_path / "run"), (64, 64), 2, 1, seed=3)
    lines = [{"step": 0, "epoch": 0, "loss": 2.5}]
    asked = []

    def train(plan, moved=None):
        asked.append((plan.seed, moved))
        folder = tmp_path.joinpath(plan.folder)
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "weights.safetensors").write_bytes(b"")
        return SimpleNamespace(
            log=folder / "log.jsonl",
            weights=folder / "weights.safetensors",
            best={"evaluation": {"AP": len(asked) / 10}},
        )

    monkeypatch.setattr(runs, "train", train)
    found = judged.repeated(plan, train(plan), 5)
    assert [(one["seed"], one["roundings"], one["AP"]) for one in found] == [
        (3, 0, 0.1),
        (3, 1, 0.2),
        (4, 0, 0.3),
        (3, 2, 0.4),
        (5, 0, 0.5),
    ]
    assert [one["losses"] for one in found] == [[2.5]] * 5
    start, moved = convert.state(runs.network(plan, runs.loader(plan))[0]), [values for _, values in asked]
    assert [values is None for values in moved] == [True, False, True, False, True]
    for name, first in start.items():
        distance = np.abs(moved[1][name] - first.astype(float))
        assert (distance <= 8 * ROUNDING * np.abs(first)).all()
    name = "backbone.conv1.0.weight"
    assert (moved[1][name] != start[name]).any() and (moved[1][name] != moved[3][name]).any()
