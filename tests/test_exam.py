"""The exam of the engine: a sample of its faults is caught and localised, a right candidate passes, and a fault that
goes through every gate is reported as a survivor. `make exam` runs the whole. Both environments, but for faults whose
place the layers must find: Jittor would compile every layer alone, for minutes (`make exam SIDE=jt` does)."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lib import backend
from lib.alignment.seeded import seeded_input
from lib.backend import nn
from lib.errors import UserError
from notebooks.exam import examination, gates, score
from notebooks.exam.examination import CLEAN, Result
from notebooks.exam.planting import Change, Fault, attribute, planted
from notebooks.exam.rounding import otherwise_rounded
from notebooks.exam.subjects import SUBJECTS
from notebooks.faults import FAULTS

IN_LAYERS = ("ghost concat order", "upsample mode", "ghost slice")
CLASSIC = (*IN_LAYERS, "scale shape", "BN statistics not loaded", "head bias + 2.0")
OTHERS = ("RGB for BGR", "NMS + 1", "one missing key")
BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def reference():
    with gates.reference_of(SUBJECTS["NanoDet-Plus"](0)) as held:
        yield held


# ------------------------------------------------------------------------------------------------------- the catalogue
def test_the_catalogue_is_large_and_its_names_are_its_own():
    assert len(FAULTS) >= 40 and len(BY_NAME) == len(FAULTS) and set(CLASSIC) <= set(BY_NAME)
    assert {fault.subject for fault in FAULTS} == set(SUBJECTS)
    assert all(fault.people and fault.place and fault.changes for fault in FAULTS)
    assert len(CLEAN) >= 20 and {subject for _, subject in CLEAN.values()} == set(SUBJECTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planting_leaves_nothing_behind(fault):
    def state():
        return [vars(change.owner).get(change.name) for change in fault.changes]

    before = state()
    with pytest.raises(RuntimeError, match="inside"), planted(fault.changes):
        assert all(a is not b for a, b in zip(state(), before, strict=True))
        raise RuntimeError("inside")
    assert all(a is b for a, b in zip(state(), before, strict=True))


def test_a_subject_draws_its_weights_once_and_nobody_writes_into_them():
    first, second = (SUBJECTS["NanoDet-Plus"](seed).forward for seed in (0, 1))
    drawn = first.weights({"a.weight": (3, 4)})
    assert first.weights({"a.weight": (3, 4)})["a.weight"] is drawn["a.weight"]
    assert not np.array_equal(second.weights({"a.weight": (3, 4)})["a.weight"], drawn["a.weight"])
    assert np.array_equal(replace(first, name="another").weights({"a.weight": (3, 4)})["a.weight"], drawn["a.weight"])
    with pytest.raises(ValueError, match="read-only"):
        drawn["a.weight"][0] = 1


# ---------------------------------------------------------------------------------------------------------- the gates
@pytest.mark.parametrize("name", [*CLASSIC, *OTHERS])
def test_a_sample_is_caught_and_localised(reference, name):
    if name in IN_LAYERS and backend.NAME == "jittor":
        pytest.skip("compiles every layer alone: minutes; `make exam SIDE=jt` plants it")
    found = examination.judge(BY_NAME[name], reference)
    assert found.caught and found.localised, (found.gate, found.named)


def cheap(monkeypatch):
    """Without the gates that train."""
    kept = ("data stages", "structure", "conversion", "forward", "detections")
    monkeypatch.setattr(gates, "GATES", {name: gate for name, gate in gates.GATES.items() if name in kept})


def test_a_right_candidate_that_rounds_otherwise_passes(reference, monkeypatch):
    cheap(monkeypatch)
    found = examination.judge_clean("clean", "NanoDet-Plus", reference, 3)
    assert not found.caught and not found.named and 0.05 < found.ratio < 1, "and it does round otherwise"


def test_what_no_gate_sees_is_a_survivor(reference, monkeypatch):
    cheap(monkeypatch)
    momentum = Fault(
        "unseen",
        "inference doesn't read it",
        "norms",
        "NanoDet-Plus",
        r".*",
        (attribute("backbone.conv1.1", "momentum", 0.3),),
    )
    held = [examination.judge(momentum, reference)]
    assert not held[0].caught and not held[0].localised and score.survivors(held) == held
    said = score.summary(held)
    assert "0 of 1 faults caught" in said and "survivor: unseen" in said and said.endswith("FAIL")


def test_another_order_of_sums_is_the_same_function_with_other_roundings():
    layer, x = nn.Linear(300, 4), seeded_input("x", (2, 300))
    backend.load_state(layer, {"weight": seeded_input("w", (4, 300)), "bias": seeded_input("b", (4,))})
    plain = backend.numpy(layer(backend.tensor(x)))
    with planted(otherwise_rounded(1)):
        other = backend.numpy(layer(backend.tensor(x)))
    assert 0 < np.abs(plain - other).max() < 1e-4 and (backend.numpy(layer(backend.tensor(x))) == plain).all()


def test_what_was_inherited_is_inherited_again():
    class Half(nn.Linear):
        pass

    with planted((Change(Half, "forward", lambda original: lambda self, x: "other"),)):
        assert Half(2, 2).forward(None) == "other"
    assert "forward" not in vars(Half)


# ------------------------------------------------------------------------------------------------ results and their sum
def result(name, gate="forward", named=("fpn",), kind="layers"):
    return Result(name, "", kind, "NanoDet-Plus", r"fpn", gate, 7.0, named, "", 1.0)


def test_localised_means_that_nothing_else_is_named():
    assert (
        result("a").localised
        and not result("a", named=("fpn", "head")).localised
        and not result("a", named=()).localised
    )


@pytest.mark.parametrize(
    "spoil, says",
    [
        ([result("s", "none", ())] * 6, "survivor: s"),
        ([result("m", named=("head",))] * 30, "not localised: m; forward names head"),
        ([result("clean run 1", kind="clean")], "false alarm: clean run 1"),
    ],
)
def test_the_score_falls_by_each_way_to_fail(spoil, says):
    sound = [*(result(str(i)) for i in range(94)), result("clean run 2", "none", (), "clean")]
    assert (
        score.verdict(sound) == "PASS"
        and score.summary(sound).endswith("PASS")
        and "0 false alarms in 1" in score.summary(sound)
    )
    assert score.verdict(sound + spoil) == "FAIL" and says in score.summary(sound + spoil)
    assert score.verdict(sound[:-1]) == "NOT RUN", "without a clean run nobody knows about false alarms"
    assert score.verdict([]) == "NOT RUN" and score.summary([]).startswith("NOT RUN")


def test_an_interrupted_exam_continues_and_a_complete_one_starts_anew(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(examination, "judge", lambda fault, reference: ran.append(fault.name) or result(fault.name))
    names = ("RGB for BGR", "BN eps", "EMA off by one")
    examination.examine(tmp_path, names[:1])
    assert [found.name for found in examination.examine(tmp_path, names)] == ["RGB for BGR", "BN eps", "EMA off by one"]
    assert ran == list(names), "the first one once"
    examination.examine(tmp_path, names)
    assert len(ran) == 6, "all anew"
    (tmp_path / examination.HEADER).write_text(json.dumps({"sources": "others"}))
    (tmp_path / "bn_eps.json").unlink()
    examination.examine(tmp_path, names)
    assert len(ran) == 9, "results of other sources are not mixed with new ones"


def test_an_unknown_fault_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such fault"):
        examination.examine(tmp_path, ("BN epsilon",))


def test_results_belong_to_the_faults_as_they_are_written(tmp_path, monkeypatch):
    written = tmp_path / "notebooks" / "faults" / "layers.py"
    written.parent.mkdir(parents=True)
    monkeypatch.setattr(examination, "ROOT", tmp_path)
    before = examination._sources()
    written.write_text("another")
    assert examination._sources() != before
