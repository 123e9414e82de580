"""Where trainings start: checkpoints, backbones, the runs that people set side by side. Both environments."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from lib import convert, models
from lib.errors import SHOWN, UserError
from lib.show import figures, tables
from lib.training import pretrained, runs

NAME = "nanodet-plus-m_320"
PLAN = runs.Training(NAME, "data", "run")


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """The state of a model of three classes, filled with its own numbers, and a file of it."""
    values = {
        name: np.full_like(value, 3 if value.dtype.kind == "i" else 0.125)
        for name, value in convert.state(models.build(NAME, 3)).items()
    }
    path = tmp_path_factory.mktemp("weights") / "three.safetensors"
    save_file(values, path)
    return values, path


def saved(folder, values):
    save_file(values, folder / "changed.safetensors")
    return folder / "changed.safetensors"


# ------------------------------------------------------------------------------------------------- what is loaded
def test_another_number_of_classes_keeps_its_own_last_layers(held):
    values, path = held
    model = models.build(NAME, 5)
    first = convert.state(model)
    origin = pretrained.load_weights(model, NAME, 5, path)
    assert origin.first_values == pretrained.class_entries(NAME, 5) and origin.loaded == len(values) - len(
        origin.first_values
    )
    for name, value in convert.state(model).items():
        np.testing.assert_array_equal(value, first[name] if name in origin.first_values else values[name], err_msg=name)


def test_the_same_number_of_classes_loads_all(held):
    model = models.build(NAME, 3)
    assert pretrained.load_weights(model, NAME, 3, held[1]).first_values == ()
    assert all((value == held[0][name]).all() for name, value in convert.state(model).items())


def test_a_checkpoint_that_lacks_an_entry_is_refused(held, tmp_path):
    name = next(iter(held[0]))
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        pretrained.load_weights(
            models.build(NAME, 3), NAME, 3, saved(tmp_path, {n: v for n, v in held[0].items() if n != name})
        )


def test_whole_parts_may_be_absent_and_are_named(held, tmp_path):
    values, _ = held
    lean = saved(
        tmp_path, {name: value for name, value in values.items() if not name.startswith(("aux_fpn.", "aux_head."))}
    )
    with pytest.raises(UserError, match="aux_fpn. aux_head."):
        pretrained.load_weights(models.build(NAME, 5), NAME, 5, lean)
    model = models.build(NAME, 5)
    first = convert.state(model)
    origin = pretrained.load_weights(model, NAME, 5, lean, ("aux_fpn.", "aux_head.", "fpn."))
    assert set(origin.first_values) == {
        "aux_fpn.",
        "aux_head.",
        *(e for e in pretrained.class_entries(NAME, 5) if e[:4] == "head"),
    }
    for name, value in convert.state(model).items():
        np.testing.assert_array_equal(
            value, first[name] if name.startswith(origin.first_values) else values[name], err_msg=name
        )


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_backbone_is_loaded_entry_by_entry_and_a_classifier_is_named(held, tmp_path, prefix):
    own = {name: value for name, value in held[0].items() if name.startswith("backbone.")}
    file = saved(
        tmp_path,
        {prefix + name.removeprefix("backbone."): value for name, value in own.items()}
        | {"fc.weight": np.ones(2, np.float32)},
    )
    model = models.build(NAME, 3)
    first = convert.state(model)
    origin = pretrained.load_backbone(model, file)
    assert (origin.loaded, origin.left_over) == (len(own), ("fc.weight",)) and "not used: fc.weight" in str(origin)
    for name, value in convert.state(model).items():
        np.testing.assert_array_equal(value, own.get(name, first[name]), err_msg=name)


def test_a_deeper_backbone_is_another_one(held, tmp_path):
    own = {name: value for name, value in held[0].items() if name.startswith("backbone.")}
    with pytest.raises(UserError, match=r"backbone\.stage2\.9\.weight"):
        pretrained.load_backbone(
            models.build(NAME, 3), saved(tmp_path, own | {"backbone.stage2.9.weight": np.ones(2, np.float32)})
        )


def test_many_names_are_counted_not_listed(held):
    origin = pretrained.load_backbone(models.build(NAME, 3), held[1])
    assert (
        len(origin.left_over) > 100
        and f"and {len(origin.left_over) - SHOWN} more" in str(origin)
        and len(str(origin)) < 600
    )


def test_a_stem_that_is_never_trained_and_random_is_named(capsys):
    plan = runs.Training("rtdetr_r50vd", "data", "run")
    runs.say_start(plan, models.build("rtdetr_r50vd", 2), None)
    said = capsys.readouterr().err
    assert said.startswith("warning: rtdetr_r50vd: ") and "--backbone" in said and len(said.splitlines()) == 1
    runs.say_start(PLAN, models.build(NAME, 2), None)
    assert capsys.readouterr() == ("", "")


# ----------------------------------------------------------------------------------------------- the four numbers
def test_one_start_is_the_plan_and_two_have_folders_of_their_own():
    assert runs.plans(PLAN) == {runs.FRESH: PLAN}
    assert [plan.weights for plan in runs.plans(PLAN, weights="w").values()] == ["w"]
    two = runs.plans(PLAN, "w", "b")
    assert [(name, plan.weights, plan.backbone, plan.folder) for name, plan in two.items()] == [
        (runs.IMAGENET, None, "b", "run/imagenet"),
        (runs.FINE_TUNED, "w", None, "run"),
    ]


def test_the_record_holds_each_start_before_and_after(tmp_path):
    starts = {}
    for name, low in ((runs.IMAGENET, 0.1), (runs.FINE_TUNED, 0.4)):
        lines = [
            {"step": step, "epoch": epoch, "evaluation": {"AP": low + add, "AP50": 0.5}}
            for step, epoch, add in ((-1, -1, 0), (3, 0, 0.3), (7, 1, 0.2))
        ]
        log = tmp_path / f"{low}.jsonl"
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        starts[name] = runs.before_and_after(SimpleNamespace(log=log, best=lines[1]))
    table = tables.starts(starts)
    assert table["AP"].round(6).to_dict() == {
        (runs.IMAGENET, "before"): 0.1,
        (runs.IMAGENET, "after"): 0.4,
        (runs.FINE_TUNED, "before"): 0.4,
        (runs.FINE_TUNED, "after"): 0.7,
    }
    assert table["epoch"].tolist() == [0, 1, 0, 1]
    drawn = figures.map_curves({name: found["evaluations"] for name, found in starts.items()})
    assert runs.IMAGENET in drawn.alt and runs.FINE_TUNED in drawn.alt


def test_fresh_weights_have_no_numbers_before():
    held = {runs.FRESH: {"before": None, "after": {"epoch": 4, "AP": 0.2}}}
    assert tables.starts(held).index.tolist() == [(runs.FRESH, "after")]
