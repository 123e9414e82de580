"""What a recipe does later than the first steps: windows of lock-step, and every step's numbers; both environments."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import synthetic_records as synthetic

from lib import record
from lib.alignment import derived, lockstep, prescribed, questions, windows
from lib.alignment.evidence import Evidence
from lib.alignment.questions import admission
from lib.alignment.verdict import Verdict
from lib.data import transforms
from lib.models.step import ParameterGroup
from lib.training import schedule
from lib.training.log import changes
from notebooks.exam.planting import planted
from notebooks.faults import FAULTS

GROUPS = {
    "nanodet-plus-m_320": (ParameterGroup(),),
    "gold-yolo-n": (ParameterGroup(decays=False), ParameterGroup(), ParameterGroup(decays=False, warmup_from=0.1)),
    "rtdetr_r18vd": (ParameterGroup(learning_rate_factor=0.1), ParameterGroup(decays=False)),
}
MODEL = "nanodet-plus-m_320"
NANODET = {"end of warm-up": 500, "first decay": 1232, "detached": 12320, "average's ramp": 2000, "last step": 369599}
GOLD = {"accumulation": 5544, "end of warm-up": 11088, "first decay": 14784, "average's ramp": 2000}
GOLD |= {"other augmentation": 285 * 3696, "last step": 300 * 3696 - 1}


def recorded(value):
    """As a record gives it back."""
    return json.loads(json.dumps(record.plain(value)))


@pytest.fixture(scope="module")
def sound():
    return {model: recorded(windows.of_recipe(model, groups)) for model, groups in GROUPS.items()}


def first_apart(ours, theirs):
    found = (lockstep.side_by_side(mine, other, first=mine["first"]).first() for mine, other in zip(ours, theirs))
    return next(filter(None, found), None)


@pytest.mark.parametrize(
    "model, events", [(MODEL, NANODET), ("gold-yolo-n", GOLD), ("rtdetr_r18vd", {"average's ramp": 2000})]
)
def test_each_event_of_the_published_recipe_lies_in_a_window_that_is_resumed(sound, model, events):
    around = {event: window for window in sound[model] for event in window["events"]}
    for event, step in events.items():
        window = around[event]
        assert window["first"] < step < window["end"] and window["first"] < window["resumed"] < window["end"]
        told = [line["norms"]["float32"]["schedule"]["step"] for line in window["steps"]]
        assert told == list(range(window["first"], window["end"]))
    assert around["start"]["first"] == 0 and first_apart(sound[model], sound[model]) is None


def test_a_sum_of_several_batches_waits_over_the_resume(sound):
    window = next(window for window in sound["gold-yolo-n"] if window["events"] == ["accumulation"])
    waiting = [line["norms"]["float32"]["schedule"]["waiting"] for line in window["steps"]]
    assert waiting == [0, 1, 0] and window["resumed"] == window["first"] + 2


LATER = {
    "second moment from step 4": (3, "exp_avg_sq"),
    "counting from 0 after a resume": (5, "step"),
    "warm-up ends one step late": (500, "learning_rate"),
    "EMA's ramp after a resume": (5, "average"),
}


@pytest.mark.parametrize("name", LATER)
def test_what_goes_wrong_later_is_named_by_step_and_quantity(sound, name):
    with planted(next(fault.changes for fault in FAULTS if fault.name == name)):
        wrong = recorded(windows.of_recipe(MODEL, GROUPS[MODEL]))
    apart = first_apart(sound[MODEL], wrong)
    assert (apart.step, apart.kind) == LATER[name] and f"step {apart.step}:" in apart.rows[0].name


# ----------------------------------------------------------------------------------------------- every step of a run
def trained(model, recipe, length, resumed=0):
    """What a training of small tensors records of its schedule; interrupted after so many steps."""
    one, told = windows._miniature(recipe, length, GROUPS[model], "float32"), []
    for step in range(recipe.epochs * length):
        if resumed and step == resumed:
            state, one = one.state(), windows._miniature(recipe, length, GROUPS[model], "float32")
            one.load_state(state)
        windows._fed(one)
        told.append(one.schedule())
    return recorded(followed(model, recipe, length, told))


def followed(model, recipe, length, told):
    flags = [asdict(transforms.recipe(model).at(epoch, recipe.epochs)) for epoch in range(recipe.epochs)]
    return {
        "recipe": asdict(recipe),
        "steps_per_epoch": length,
        "groups": [[one.learning_rate_factor, one.decays, one.warmup_from] for one in GROUPS[model]],
        "steps": len(told),
        "changes": changes(told),
        "augmentation": changes({k: v for k, v in one.items() if isinstance(v, int | float)} for one in flags),
    }


RUNS = {model: schedule.scaled(schedule.recipe(model), 160, batch=8, epochs=5) for model in GROUPS}
# Two batches to an update from the middle of the warm-up on.
RUNS["gold-yolo-n"] = replace(RUNS["gold-yolo-n"], nominal_batch=16, warmup_steps=9)


@pytest.mark.parametrize("model", GROUPS)
def test_every_step_of_a_resumed_run_is_as_prescribed(model):
    run = trained(model, RUNS[model], 20, resumed=31)
    rows = [row for _, row in prescribed.kept(model, run)]
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]
    assert {row.scale for row in rows} == {100.0, 5.0}
    names = {row.name for row in rows}
    assert {"learning_rate/0", "weight_decay/0", "average_weight", "updates", "waiting", "epoch"} <= names
    assert ("optimiser_steps/most" in names) != ("momentum/0" in names)
    assert all(row.passed for _, row in prescribed.between(run, trained(model, RUNS[model], 20)))


@pytest.mark.parametrize(
    "name, quantity, step",
    [
        ("counting from 0 after a resume", "optimiser_steps/most", 31),
        ("warm-up ends one step late", "learning_rate/0", 5),
        ("EMA's ramp after a resume", "average_weight", 31),
        ("warm-up off by one", "learning_rate/0", 0),
        ("second beta", "beta2/0", 0),
    ],
)
def test_a_step_that_leaves_the_schedule_is_named(name, quantity, step):
    with planted(next(fault.changes for fault in FAULTS if fault.name == name)):
        wrong = trained(MODEL, RUNS[MODEL], 20, resumed=31)
    sound = trained(MODEL, RUNS[MODEL], 20)
    for rows in (prescribed.kept(MODEL, wrong), prescribed.between(sound, wrong)):
        found = {row.name: (first, row.note) for first, row in rows if not row.passed}
        assert found[quantity][0] == step and found[quantity][1].startswith(f"step {step}: ")


def test_one_number_that_somebody_edits_is_found():
    run = trained(MODEL, RUNS[MODEL], 20)
    for name in run["changes"]:
        edited = copy.deepcopy(run)
        edited["changes"][name].append([77, edited["changes"][name][-1][1] + 1])
        edited["changes"][name].sort(key=lambda change: change[0])
        for rows in (prescribed.kept(MODEL, edited), prescribed.between(run, edited)):
            assert [row.name for _, row in rows if not row.passed] == [name]
    short = {**run, "steps": 99}
    assert any(row.note.startswith("step 99: nothing") for _, row in prescribed.kept(MODEL, short))


def test_a_step_lies_before_a_later_epoch(tmp_path):
    """Epoch 3 begins with step 60."""
    records = synthetic.write_all(tmp_path / "records")

    def change(fields, arrays):
        fields["schedule"]["augmentation"]["mosaic"][1][1] = 0.5
        fields["schedule"]["changes"]["learning_rate/0"].append([30, 8e-4])

    synthetic.edit(records, "jittor", "train", change)
    found = questions.ask("schedule", Evidence(records, synthetic.MODEL), "torch", "jittor")
    assert found.values["first"] == "step 30: 0.0008 where 0.0009 is expected"
    assert [row.note for row in found.rows if "mosaic" in row.name] == ["epoch 3: 0.5 where 0.0 is expected"]


def test_numbers_that_stay_are_written_once():
    rows = [{"a": 1.0}, {"a": 1.0, "b": 2.0}, {"b": 2.0}]
    held = changes(rows)
    assert held == {"a": [[0, 1.0], [2, None]], "b": [[0, None], [1, 2.0]]}
    assert prescribed.columns(held, 3) == {"a": [1.0, 1.0, None], "b": [None, 2.0, 2.0]}


def test_a_training_is_held_against_its_log(tmp_path):
    """Curves changed in the record alone, with everything that follows from them."""
    records = synthetic.write_all(tmp_path / "records")

    def refused():
        return admission.refused(Evidence(records, synthetic.MODEL), "train", "torch", "jittor")

    def answer():
        return questions.ask("schedule", Evidence(records, synthetic.MODEL), "torch", "jittor")

    (runs := records.parent / "runs" / synthetic.MODEL / "jittor").mkdir(parents=True)
    fields = record.read(records / synthetic.MODEL / "jittor" / "train.json").fields
    told = prescribed.columns(fields["schedule"]["changes"], 80)
    lines = [{name: column[i] for name, column in fields["curves"].items()} for i in range(80)]
    lines = [{**line, "schedule": {name: told[name][i] for name in told}} for i, line in enumerate(lines)]
    for one in fields["epochs"]:
        numbers = {name: one[name] for name in fields["final"]}
        lines.append({"step": one["step"], "epoch": one["epoch"], "evaluation": numbers})
    (runs / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = runs / "last.safetensors"
    weights.write_bytes(b"of this run")
    kept = {"cost": [], "checkpoint": {"path": f"elsewhere/{weights.name}", "sha256": record.sha256(weights)}}
    synthetic.edit(records, "jittor", "train", lambda fields, arrays: fields.update(kept))
    assert refused() is None

    def count_anew(fields, arrays):
        for step, _ in (updates := fields["schedule"]["changes"]["updates"])[40:]:
            updates[step][1] -= 40

    def halve_the_last(fields, arrays):
        for name in [name for name in fields["curves"] if "loss" in name]:
            fields["curves"][name][-1] /= 2

    synthetic.edit(records, "jittor", "train", halve_the_last)
    assert refused()[2]["name"] == "curves of the log"
    assert answer().reason == "schedule_kept"
    synthetic.edit(records, "jittor", "train", count_anew)
    found = answer()
    assert found.verdict is Verdict.FAIL and found.values["first"] == "step 40: 1 where 41 is expected"
    failed = {one.name for one in derived.again(Evidence(records, synthetic.MODEL), "jittor", "train") if not one.holds}
    assert failed == {"curves of the log", "schedule of the log"}
    weights.write_bytes(b"of a later run")
    assert refused() is None, "the log of another run says nothing"
