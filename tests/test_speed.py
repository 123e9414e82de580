"""The question of speed: which times can't be believed, and which can't be set side by side."""

import os

import pytest
import synthetic_records as synthetic

from lib.alignment import questions
from lib.alignment.evidence import Evidence
from lib.alignment.questions.inference import Disturbance, disturbance
from lib.alignment.verdict import Verdict
from lib.show.messages import LANGUAGES, Messages


@pytest.fixture
def records(tmp_path):
    return synthetic.write_all(tmp_path)


def speed(folder):
    """Answers by pair."""
    return {one.pair: one for one in questions.answers(Evidence(folder, synthetic.MODEL)) if one.question == "speed"}


def test_times_of_a_machine_that_was_not_quiet_tell_nothing(records):
    synthetic.edit(
        records, "jittor", "speed", lambda fields, _: fields["cases"][2].update(others_cores=[0.05, 0.3, 0.1])
    )
    found = speed(records)
    assert found["published-torch"].verdict is Verdict.SHOWN
    assert found["published-jittor"].verdict is found["torch-jittor"].verdict is Verdict.UNDERPOWERED
    for side in ("published", "torch", "jittor"):  # on a core less: one was idle for the others
        synthetic.edit(records, side, "speed", lambda fields, _: fields.update(threads=os.cpu_count() - 1))
    assert speed(records)["torch-jittor"].verdict is Verdict.SHOWN


def test_a_form_that_nobody_could_judge_is_said_and_its_times_are_kept(records):
    synthetic.edit(
        records, "jittor", "speed", lambda fields, _: fields["cases"][0].update(form_judged={"unable": "worker: ended"})
    )
    found = speed(records)["torch-jittor"]
    assert (found.verdict, found.reason) == (Verdict.UNDERPOWERED, "ratios_unjudged")
    assert len(found.values["ratios"]) == 3 and found.values["unable"] == "worker: ended"


@pytest.mark.parametrize(
    "theirs, ours, work",
    [
        ("inference", "training", "forward in training form against inference form"),
        ("training", "inference", "forward in inference form against training form"),
        ("inference", "inference", "forward in inference form"),
        ("training", "training", "forward"),
    ],
)
def test_times_say_their_forms_and_what_did_more_work_has_no_ratio(records, theirs, ours, work):
    for side, form in (("published", theirs), ("jittor", ours)):
        synthetic.edit(records, side, "speed", lambda fields, _, form=form: fields["cases"][0].update(form=form))
    found = speed(records)["published-jittor"]
    about = f"{work}, batch 1"
    assert about in [number.about for number in found.numbers]
    assert (about in found.values["ratios"]) is ((theirs, ours) != ("inference", "training"))
    assert all("forward" not in Messages(language).term(about) for language in LANGUAGES)


def test_turns_that_scatter_are_measured_against_the_other_side_by_their_ratio():
    turns = {"turns_ms": [[1700.0], [1800.0], [2100.0]], "ratio_to": {"torch": {"q1": 0.99, "median": 1.0, "q3": 1.02}}}
    case = {"others_cores": [0.0, 0.1, 0.05], **turns}
    found = disturbance(case, "torch", 1)
    assert (found.scatter, found.others, found.disturbs) == (pytest.approx(0.03), pytest.approx(0.05), False)
    found = disturbance(case, "published", 1)
    assert (found.scatter, found.disturbs) == (pytest.approx(200 / 1800), True)
    assert disturbance(turns, "torch", 0) == Disturbance(0, 0, 0)  # written before anybody looked


@pytest.mark.parametrize("others, idle, disturbs", [(0.2, 0, True), (0.2, -2, True), (5, 63, False), (63.2, 63, True)])
def test_others_disturb_where_they_take_what_the_threads_run_on(others, idle, disturbs):
    assert Disturbance(0.0, others, idle).disturbs is disturbs
