"""A run's log and what TensorBoard is shown of it, read back frame by frame as TensorBoard does."""

import os
import signal
import struct
import subprocess
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from lib.errors import UserError
from lib.training.log import EVENTS, Log, curves, read_log, scalars


def line(step, loss):
    return {"step": step, "epoch": step // 3, "loss": loss}


def frames(content):
    """The events of a file; a frame that is cut off ends it, as TensorBoard has it."""
    at = 0
    while at + 12 <= len(content):
        length, check = struct.unpack_from("<QI", content, at)
        assert check == masked_crc32c(content[at : at + 8])
        held = content[at + 12 : at + 12 + length]
        if at + 16 + length > len(content):
            return
        assert struct.unpack_from("<I", content, at + 12 + length)[0] == masked_crc32c(held)
        at += 16 + length
        yield Event.FromString(held)


def shown(folder):
    """(step, value) by tag as TensorBoard shows them: files by name, a start voids what is from its step on."""
    found = {}
    for path in sorted(folder.glob(EVENTS)):
        for event in frames(path.read_bytes()):
            if event.session_log.status == SessionLog.START:
                found = {tag: [pair for pair in pairs if pair[0] < event.step] for tag, pairs in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tags_say_what_a_number_is_of():
    assert scalars({"step": 2, "loss": 1.0, "evaluation": {"AP": 0.5}, "cost": {"seconds": 3.0}}) == {
        "train/loss": 1.0,
        "evaluation/AP": 0.5,
        "cost/seconds": 3.0,
    }


def test_tensorboard_is_shown_every_number_by_steps_done(tmp_path):
    with Log(tmp_path / "log.jsonl", 0) as log:
        log.write({"step": -1, "epoch": -1, "evaluation": {"AP": 0.25}})
        log.write(line(0, 2.0))
        log.write(line(1, 1.5))
    assert shown(tmp_path) == {
        "train/epoch": [(0, -1.0), (1, 0.0), (2, 0.0)],
        "evaluation/AP": [(0, 0.25)],
        "train/loss": [(1, 2.0), (2, 1.5)],
    }
    assert [held["step"] for held in read_log(tmp_path / "log.jsonl")] == [-1, 0, 1]


def test_a_resumed_run_shows_each_step_once(tmp_path):
    with Log(tmp_path / "log.jsonl", 0) as log:
        for step in range(5):
            log.write(line(step, 1.0))
    with Log(tmp_path / "log.jsonl", 3) as log:
        for step in range(3, 6):
            log.write(line(step, 9.0))
    assert shown(tmp_path)["train/loss"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 9.0), (5, 9.0), (6, 9.0)]
    assert [held["loss"] for held in read_log(tmp_path / "log.jsonl")] == [1.0, 1.0, 1.0, 9.0, 9.0, 9.0]


def test_a_run_from_the_beginning_shows_nothing_of_the_one_before(tmp_path):
    for loss in (1.0, 2.0):
        with Log(tmp_path / "log.jsonl", 0) as log:
            log.write(line(0, loss))
    assert shown(tmp_path)["train/loss"] == [(1, 2.0)]


def test_a_kill_loses_nothing_from_before_the_checkpoint(tmp_path):
    script = f"""if True:
        import os, signal, sys
        sys.path[:0] = ["tests"]
        from pathlib import Path
        from test_log import Log, line
        with Log(Path({str(tmp_path)!r}, "log.jsonl"), 0) as log:
            for step in range(4):
                log.write(line(step, 1.0))
            log.flush()
            log.write(line(4, 1.0))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [step for step, _ in shown(tmp_path)["train/loss"]][:4] == [1, 2, 3, 4]
    assert [held["step"] for held in read_log(tmp_path / "log.jsonl")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cut", [1, 4, 17])
def test_a_frame_cut_in_two_hides_no_other(tmp_path, cut):
    with Log(tmp_path / "log.jsonl", 0) as log:
        log.write(line(0, 1.0))
        log.write(line(1, 2.0))
    file = next(tmp_path.glob(EVENTS))
    os.truncate(file, file.stat().st_size - cut)
    with Log(tmp_path / "log.jsonl", 1) as log:
        log.write(line(1, 3.0))
    assert shown(tmp_path)["train/loss"] == [(1, 1.0), (2, 3.0)]


def test_curves_from_a_log():
    lines = [
        {"step": 0, "epoch": 0, "loss": 2.0},
        {"step": 1, "epoch": 0, "loss": 1.0},
        {"step": 1, "epoch": 0, "evaluation": {"AP": 0.1}, "evaluation_seconds": 1.0},
    ]
    columns, evaluations = curves(lines)
    assert columns == {"step": [0, 1], "epoch": [0, 0], "loss": [2.0, 1.0]}
    assert evaluations == [{"step": 1, "epoch": 0, "AP": 0.1}]


@pytest.mark.parametrize("content", [b"{\n", b"\xff\n", 10**5 * b"[" + b"\n"], ids=["cut", "not UTF-8", "no end"])
def test_what_is_no_log_is_one_line(tmp_path, content):
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="is no log of a run .*; restore it"):
        read_log(tmp_path / "log.jsonl")
