"""The probes of the migration notebook and their verdicts; what needs one framework says so, the rest runs in both."""

import copy
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lib import backend
from lib.machine import notebook
from lib.record import ROOT
from lib.show.messages import Messages
from notebooks import probes
from notebooks.faults import FAULTS
from notebooks.probes import probe as asking
from notebooks.probes.process import child
from notebooks.probes.rosetta import Verdict, agree, judge, values
from notebooks.probes.sheet import Sheet, texts

PROBES = {probe.name: probe for probe in probes.PROBES}

# Differences between the frameworks that must be seen, and that the backend must mend.
MENDED = (
    "a float64 that several kernels share",
    "type of a float64 array",
    "integers beyond 32 bits",
    "sum of uint8",
    "Python number in float64",
    "shape of a full sum",
    "floor division of integers",
    "remainder of integers",
    "precision of a sum",
    "mean of nothing",
    "saturated sigmoid",
    "argmax",
    "abs at 0",
    "clamp at its bounds",
    "ties of maximum(a, b)",
    "after eval()",
    "built under no_grad",
    "batch norm's running variance",
    "batch norm far from zero",
    "layer norm far from zero",
    "mode of interpolate by default",
    "scale factor on an odd size",
    "a window as large as the map",
    "adaptive average pooling",
    "padding row of an embedding",
    "what is trained",
    "a tensor as an attribute",
    "names of the state",
    "loading another shape",
    "accumulated gradients",
)
# Differences that no backend mends.
DIFFERENT = (
    "rounding of halves",
    "subnormal numbers",
    "variance by default",
    "deviation of a constant",
    "max along an axis",
    "stop_grad",
    "binary cross entropy at the ends",
    "cross entropy's label out of range",
    "when work is done",
    "random stream",
    "format of save",
    "AdamW's decay by default",
    "cosine schedule",
    "nms at the legacy + 1",
)
SAME = (
    "sigmoid",
    "GELU",
    "gather",
    "relu at 0",
    "AdamW",
    "step schedule",
    "one_hot",
    "eps of the norms",
    "nearest from 3 to 7",
)


def recorded(probe, **altered):
    """Entries of both sides that answer as expected, but for `altered`: (side_kind=answer)."""
    right = asking.answer(probe.reference) if probe.expected else asking.answer(lambda: np.zeros(3))
    kinds = {"native": right, "backend": right if probe.backend else None}
    sides = {side: {"digest": "d", **copy.deepcopy(kinds)} for side in ("torch", "jittor")}
    for place, found in altered.items():
        side, kind = place.split("_")
        sides[side][kind] = found
    return {side: {probe.name: entry} for side, entry in sides.items()}


def moved(answer, by):
    """The answer with its last finite number moved, or its last text changed."""
    answer = copy.deepcopy(answer)
    if answer["kind"] == "text":
        answer["values"][-1] += "?"
    else:
        answer["values"][-1] = float(np.nan_to_num(values(answer).ravel()[-1].astype(float))) + by
    return answer


def test_the_probes_are_many_and_named_once():
    assert len(probes.PROBES) >= 225
    assert not [name for name, count in Counter(probe.name for probe in probes.PROBES).items() if count > 1]
    for probe in probes.PROBES:
        assert probe.question.endswith("?") and probe.advice.endswith(".") and probe.topic in probes.TOPICS


@pytest.mark.parametrize("name", [name for name, probe in PROBES.items() if probe.expected])
def test_a_changed_answer_is_different_and_a_missing_side_unknown(name):
    probe = PROBES[name]
    right = recorded(probe)["torch"][name]["native"]
    if right["kind"] == "numbers" and not right["values"]:
        return
    assert judge(probe, recorded(probe), "d").verdict == Verdict.SAME
    wrong = moved(right, by=1.0 + 2 * probe.tolerance())
    expected = Verdict.MENDED if probe.backend else Verdict.DIFFERENT
    assert judge(probe, recorded(probe, jittor_native=wrong), "d").verdict == expected
    assert judge(probe, recorded(probe, torch_native=wrong), "d").verdict == Verdict.UNKNOWN
    if probe.backend:
        both = recorded(probe, jittor_native=wrong, jittor_backend=wrong)
        assert judge(probe, both, "d").verdict == Verdict.DIFFERENT
        broken = judge(probe, recorded(probe, jittor_backend=wrong), "d")
        assert broken.verdict == Verdict.DIFFERENT and "not through the backend" in broken.reason
    for side in ("torch", "jittor"):
        alone = {side: recorded(probe)[side]}
        assert judge(probe, alone, "d").verdict == Verdict.UNKNOWN
    raised = {"kind": "raised", "values": ["RuntimeError: no such operator"]}
    assert (
        judge(probe, recorded(probe, jittor_native=raised), "d").reason
        == "jittor, native: RuntimeError: no such operator"
    )
    assert judge(probe, recorded(probe), "another version").verdict == Verdict.UNKNOWN
    assert judge(probe, {}, "d").verdict == Verdict.UNKNOWN


def test_without_a_formula_pytorch_is_the_reference():
    probe = PROBES["topk among equals"]
    assert probe.expected is None
    assert judge(probe, recorded(probe), "d").verdict == Verdict.SAME
    other = asking.answer(lambda: np.ones(3))
    assert judge(probe, recorded(probe, jittor_native=other, jittor_backend=other), "d").verdict == Verdict.DIFFERENT


def test_agreement_is_never_fooled():
    line, nan = np.array([1.0, 2.0, 3.0]), np.array([1.0, np.nan])
    assert agree(line, line, 0.0) and agree(nan, nan, 0.0) and agree(np.float64(2), np.array([2.0]), 0.0)
    assert not agree(line, line[::-1], 1.0)
    assert not agree(line, np.full(3, np.nan), np.inf)
    assert not agree(nan, np.ones(2), np.inf)
    assert not agree(np.array([np.inf]), np.array([-np.inf]), np.inf)
    assert not agree(np.array([np.inf]), np.array([1e38]), np.inf)
    assert not agree(np.ones(3), np.ones(1), 1.0)  # broadcast
    assert not agree(np.ones((2, 3)), np.ones((3, 2)), 1.0)  # transposed
    assert not agree(np.zeros(0), np.ones(1), 1.0) and agree(np.zeros(0), np.zeros(0), 0.0)
    assert not agree(np.array(["1.0"]), np.array([1.0]), 1.0)
    assert not agree(np.array([2**53]), np.array([2**53 + 1]), 5.0)


def test_tolerances_follow_rounding_and_cancellation():
    plain, cancelling = PROBES["running sum"], PROBES["batch norm far from zero"]
    assert plain.tolerance() == pytest.approx(5 * 2.0**-24 * 15)
    assert cancelling.tolerance() > 100 * replace(cancelling, cancels=False).tolerance()
    assert PROBES["Python number in float64"].tolerance() < 1e-15
    for probe in probes.PROBES:
        if probe.expected and (exact := np.asarray(probe.reference())).dtype.kind == "f" and np.isfinite(exact).all():
            assert probe.tolerance() <= 0.02 * max(np.abs(exact).max(initial=0), 1e-30), probe.name


def test_a_probe_that_raises_keeps_its_message_and_others_go_on(tmp_path):
    def broken(*_):
        raise RuntimeError("no kernel\nsecond line")

    probe = replace(PROBES["sigmoid"], jittor=broken, torch=broken)
    found = asking.answers(probe)
    assert found["native"] == {"kind": "raised", "values": ["RuntimeError: no kernel"]}
    assert found["backend"]["kind"] == "numbers"
    assert asking.answer(object)["kind"] == "raised"


def test_one_side_is_recorded_and_shown(tmp_path):
    few = [
        PROBES[name]
        for name in ("type of an int64 array", "abs at 0", "exponential schedule", "truth of several values")
    ]
    asking.run(few, tmp_path)
    sheet = Sheet(few, tmp_path)
    assert set(sheet.records) == {backend.NAME}
    assert sheet.summary() == "same 0, mended by the backend 0, different 0, unknown 4"
    assert "NOT RUN" in sheet.sides() and "4 probes" in sheet.sides()
    html = sheet.answers("Gradients")._repr_html_()
    assert "NOT RUN" in html and few[1].advice in html.replace("&gt;", ">").replace("&lt;", "<")
    assert "jt.abs(x)" in sheet.code("Gradients")._repr_html_()
    assert sheet.counts().loc["all"].tolist() == [0, 0, 0, 4]
    assert len(sheet.reasons()) == 4


def test_records_depend_on_the_probes():
    followed = notebook.sources(ROOT / "notebooks" / "30_migration.ipynb", "torch", [])
    assert {"notebooks/probes/maps.py", "notebooks/probes/probe.py"} <= set(followed)


def test_verdicts_need_no_framework():
    imported = child("import sys; from notebooks.probes import rosetta; print({'torch', 'jittor'} & set(sys.modules))")
    assert imported == "set()"


def test_the_code_shown_is_the_code_that_runs():
    for probe in probes.PROBES:
        for side in ("jittor", "torch", "backend"):
            assert bool(probe.code(side)) == (getattr(probe, side) is not None), probe.name
    assert len({probe.digest() for probe in probes.PROBES}) == len(probes.PROBES)
    assert PROBES["argmax"].code("torch") == "kind(torch.argmax(x, 1))"


def test_every_probe_and_every_fault_speaks_chinese():
    spoken = Messages("zh").terms
    said = {text for probe in probes.PROBES for text in (probe.question, probe.advice)} | {f.people for f in FAULTS}
    assert not said - spoken.keys()
    # A text under another's name would show: both have the same numbers and the same names of code.
    marks = re.compile(r"\d+(?:\.\d+)?|\b\w+(?:_\w+|\(\))")
    assert not [text for text in said if set(marks.findall(text)) - set(marks.findall(spoken[text]))]


def test_answers_are_shown_with_the_digits_that_tell_them_apart():
    close = [asking.answer(lambda v=v: np.array([1.0, v])) for v in (0.1, 0.10000001)]
    assert texts(close, True) == ["1, 0.1", "1, 0.10000001"]
    assert texts(close, False) == ["1, 0.1", "1, 0.1"]
    late = [asking.answer(lambda v=v: np.r_[np.zeros(20), v]) for v in (1, 2)]
    assert [text[-1] for text in texts(late, True)] == ["1", "2"]
    assert texts([None, close[0]], True) == ["NOT RUN", "1, 0.1"]


@pytest.mark.skipif(backend.NAME != "torch", reason="PyTorch is the meaning that the probes expect")
@pytest.mark.parametrize("topic", [*probes.TOPICS[:-1], pytest.param("Process", marks=pytest.mark.slow)])
def test_pytorch_and_its_backend_answer_as_expected(topic):
    for probe in probes.PROBES:
        if probe.topic == topic:
            found = asking.answers(probe)
            for kind in ("native", "backend") if probe.backend else ("native",):
                assert found[kind]["kind"] != "raised", (probe.name, kind, found[kind])
                if probe.expected:
                    right = agree(np.asarray(probe.reference()), values(found[kind]), probe.tolerance())
                    assert right, (probe.name, kind, found[kind])


def verdict_here(name):
    """The verdict with this side's answers, and PyTorch's as expected of it."""
    probe = PROBES[name]
    found = recorded(probe)
    found["jittor"][name] = {"digest": "d", **asking.answers(probe)}
    return judge(probe, found, "d")


@pytest.mark.skipif(backend.NAME == "torch", reason="asks what Jittor answers")
@pytest.mark.parametrize(
    "names, verdict",
    [(MENDED, Verdict.MENDED), (DIFFERENT, Verdict.DIFFERENT), (SAME, Verdict.SAME)],
    ids=["mended", "different", "same"],
)
def test_known_differences_are_seen_and_mended(names, verdict):
    found = {name: verdict_here(name) for name in names}
    assert {name: finding for name, finding in found.items() if finding.verdict != verdict} == {}
