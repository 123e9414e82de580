"""How far a report is: jobs are counted, and what is left is guessed from measured times. The torch environment."""

import json
import os
import time

import pytest

from lib.machine import job


@pytest.fixture
def entries(tmp_path):
    """Four jobs that began ten seconds ago: b needs a, d needs all; c is not to do."""
    folder = tmp_path / ".done" / "m" / "torch"
    folder.mkdir(parents=True)
    names = {name: str(folder / name) for name in "abcd"}
    needs = {"a": [], "b": [names["a"]], "c": [], "d": [names["a"], names["b"]]}
    common = {"after": [], "threads": 1, "seconds": None}
    jobs = [
        {**common, "done": names[name], "needs": needs[name], "weight": weight, "to_do": name != "c"}
        for name, weight in zip("abcd", (10, 20, 10, 40))
    ]
    (tmp_path / ".plan.json").write_text(json.dumps({"cores": 2, "began": time.time() - 10, "jobs": jobs}))
    return jobs, folder


def end(path, seconds, age=0.0):
    path.write_text(json.dumps({"seconds": seconds}))
    os.utime(path, (time.time() - age,) * 2)


def test_what_is_left_follows_from_what_is_done(entries):
    jobs, folder = entries
    plan = folder.parents[2] / ".plan.json"
    assert job.left(jobs, {}, 2) == ""  # nothing was ever measured
    end(folder / "a", 30)
    # b then d, 20 and 40 parts of what took 30 s for 10: cores do not help a chain
    assert job.told(folder / "a", plan) == "; 1 of 3 jobs, about 3 min left"
    end(folder / "b", 60)
    end(folder / "d", 120)
    assert job.told(folder / "d", plan) == "; 3 of 3 jobs"


def test_a_mark_of_an_earlier_run_is_not_done_in_this_one(entries):
    end(entries[1] / "a", 30, age=60)
    end(entries[1] / "b", 30)
    assert job.told(entries[1] / "b", entries[1].parents[2] / ".plan.json").startswith("; 1 of 3 jobs")


def test_times_of_an_earlier_run_and_of_what_is_running_count(entries):
    jobs, folder = entries
    measured = [{**one, "seconds": 20.0} for one in jobs]
    assert job.left(measured, {}, 2) == "60 s"
    job.open_mark(folder / "a").write_text(json.dumps({"since": time.time() - 10}))
    assert job.left(measured, {}, 2) == "50 s"
    assert job.left(measured[:1], {}, 1) == "10 s"


@pytest.mark.parametrize("seconds, words", [(2, "10 s"), (84, "80 s"), (200, "3 min"), (9000, "2.5 h")])
def test_a_guess_is_not_told_to_the_second(seconds, words):
    assert job.in_words(seconds) == words


def test_a_job_that_is_run_by_hand_tells_no_count(entries):
    end(entries[1] / "a", 30)
    assert job.ended(entries[1] / "a", 0, None).endswith(": done in 30 s")
