"""python -m lib: exit codes, one line for a user's mistake, and one run through the verbs."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import in_process
import numpy as np
import pytest

from lib.__main__ import VERBS, main
from lib.training import checkpoints

ROOT = Path(__file__).resolve().parents[1]
MODEL = "nanodet-plus-m_320"


def fails(capsys, *arguments):
    """The one line on stderr of a call that ends with exit code 1."""
    assert main([str(argument) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.npz"
    checkpoints.write(path, {"model.a": np.arange(3.0), "model.b": np.ones((), np.int64)})
    return path


@pytest.mark.parametrize("verb", [[], *([verb.__name__.rpartition(".")[2]] for verb in VERBS)], ids=" ".join)
def test_help_shows_examples(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    if verb:
        assert f"python -m lib {' '.join(verb)} " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["fly"], ["data"], ["convert", "one.npz"], ["evaluate", MODEL]])
def test_a_wrong_command_line_is_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


def test_convert_between_formats(capsys, tmp_path, weights):
    assert main(["convert", str(weights), str(tmp_path / "out.pth")]) == 0
    assert "2 entries" in capsys.readouterr().out
    assert set(checkpoints.read(tmp_path / "out.pth").arrays) == {"a", "b"}


def test_convert_reports_what_does_not_fit_and_leaves_the_target(capsys, tmp_path, weights):
    target = tmp_path / "out.pth"
    target.write_text("earlier")
    assert "unknown kind" in fails(capsys, "convert", tmp_path / "weights.h5", target)
    assert "can't be read" in fails(capsys, "convert", tmp_path / "nowhere.npz", target)
    line = fails(capsys, "convert", weights, target, "--model", MODEL)
    assert "missing" in line and "2 left over: a, b" in line
    assert "unknown" in fails(capsys, "convert", weights, target, "--model", "yolo")
    assert "--model" in fails(capsys, "convert", weights, target, "--absent", "aux_fpn.")
    assert target.read_text() == "earlier"


def test_verify_lists_faults_and_fails(capsys, tmp_path):
    assert main(["data", "scenes", str(tmp_path), "--train", "1", "--val", "1", "--size", "64"]) == 0
    assert main(["data", "verify", str(tmp_path / "val.json")]) == 0
    content = json.loads((tmp_path / "val.json").read_text())
    content["images"][0]["file_name"] = "nowhere.png"
    (tmp_path / "val.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["data", "verify", str(tmp_path / "val.json")]) == 1
    shown = capsys.readouterr()
    assert "nowhere.png" in shown.out and len(shown.err.splitlines()) == 1


def test_convert_needs_no_framework(tmp_path, weights):
    program = (
        "import sys\nfrom lib.__main__ import main\ncode = main(sys.argv[1:])\n"
        "print(sorted({'torch', 'jittor', 'lib.backend'} & sys.modules.keys())); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "convert", weights, tmp_path / "o.pkl"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_ctrl_c_is_one_line(tmp_path):
    program = (
        "import sys\nfrom lib import __main__ as m\nfrom lib.commands import data\n"
        "data._verify = lambda chosen: print('on', flush=True) or input()\n"
        "sys.exit(m.main(['data', 'verify', 'x.json']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "on\n"
    time.sleep(0.2)  # until the child waits in input()
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=30)
    assert child.returncode == 130 and error == "interrupted; what was complete is kept\n"


def test_ctrl_c_before_the_work_begins_is_no_traceback():
    program = "import os, signal, sys\nfrom lib import errors\nerrors.silent_interrupts()\n"
    interrupt = "os.kill(os.getpid(), signal.SIGINT)"
    work = f"sys.exit(errors.exit_code(lambda: {interrupt}, 'interrupted'))"
    for last, expected in ((interrupt, (-signal.SIGINT, "")), (work, (130, "interrupted\n"))):
        ended = subprocess.run([sys.executable, "-c", program + last], cwd=ROOT, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == expected


def test_a_reader_that_has_enough_is_no_crash():
    child = subprocess.Popen(
        [sys.executable, "-m", "lib", "data", "verify", "nowhere.json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child.stdout.close()
    assert "Error" not in child.stderr.read() and child.wait(30) in (1, 141)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--epochs", "0"], "epochs is 0"),
        (["--batch", "0"], "batch is 0"),
        (["--rate", "-1"], "rate is -1"),
        (["--rate", "nan"], "rate is nan"),
        (["--evaluate-every", "0"], "evaluate_every is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--size", "50", "64"], "take 64 64"),
        (["--size", "0", "64"], "take 32 64"),
        (["--absent", "aux_fpn."], "none are given"),
    ],
)
def test_a_training_that_can_not_be_meant_is_one_line(capsys, tmp_path, options, message):
    assert message in fails(capsys, "train", MODEL, tmp_path / "data", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_compare_without_records_says_not_run_and_a_failing_record_fails(capsys, monkeypatch, tmp_path):
    from lib.alignment import questions
    from lib.record import write

    in_process.patch(monkeypatch)
    arguments = ["compare", str(tmp_path / "records"), str(tmp_path / "out"), MODEL]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "NOT RUN " in shown and "FAIL" not in shown and (tmp_path / "out" / "index.html").exists()
    judge = questions.judge_records

    def with_a_fault(*records):
        (found,) = judge(*records)
        found.fields["verdicts"][0]["verdict"] = "FAIL"
        write(tmp_path / "records", found, {})

    monkeypatch.setattr(questions, "judge_records", with_a_fault)
    assert "says why: nanodet-plus-m_320: structure" in fails(capsys, *arguments)


@pytest.mark.slow
def test_from_scenes_to_numbers(capsys, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["data", "scenes", str(data), "--train", "4", "--val", "2", "--size", "96"]) == 0
    train = ["train", MODEL, str(data), str(run), "--epochs", "1", "--batch", "2", "--size", "64", "64"]
    assert main(train) == 0
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [0, 1]
    capsys.readouterr()
    found = tmp_path / "found.json"
    options = ["--size", "64", "64", "--detections", str(found), "--per-class"]
    assert main(["evaluate", MODEL, str(run / "weights.safetensors"), str(data / "val.json"), *options]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert len(shown) == 12 + 10 and float(shown["AP"]) == pytest.approx(steps[-1]["evaluation"]["AP"], abs=1e-4)
    assert isinstance(json.loads(found.read_text()), list)
    assert "this run, complete" in fails(capsys, *train) and "another batch" not in fails(capsys, *train)
    assert "another run (of another epochs" in fails(capsys, *train, "--epochs", "2")
    assert [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] == steps
    target = tmp_path / "weights.pth"
    line = fails(capsys, "convert", run / "weights.safetensors", target, "--model", MODEL)
    assert "of the wrong shape" in line and not target.exists()  # ten classes, not eighty
    assert main(["convert", str(run / "weights.safetensors"), str(target), "--model", MODEL, "--classes", "10"]) == 0
