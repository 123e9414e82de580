"""Records on disk: complete or absent, exact, and refused when they are not what was written."""

import json
import math
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lib import record
from lib.errors import UserError
from lib.machine import job


def measured(folder, fields=None, arrays=None, **options):
    with record.measure("forward", "toy", folder, **options) as m:
        m.fields.update(fields or {})
        m.arrays.update(arrays or {})
    return m.path


def test_a_record_says_where_it_came_from(tmp_path):
    source = tmp_path / "input.txt"
    source.write_bytes(b"abc")
    side = SimpleNamespace(NAME="torch", VERSION="2.x", device=lambda: "cpu", cache_path=lambda: "/cache")
    path = measured(tmp_path, {"loss": np.float32(0.1)}, inputs=[source], seed=7, side=side)
    assert path == tmp_path / "toy" / "torch" / "forward.json"
    found = record.read(path)
    assert (found.run_id, found.side, found.provenance.seed) == ("toy/torch/forward", "torch", 7)
    assert found.fields["loss"] == float(np.float32(0.1))
    # FIPS 180-2, example B.1
    assert found.provenance.inputs == {str(source): "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert found.provenance.versions["torch"] == "2.x" and found.provenance.cache_path == "/cache"
    assert found.provenance.peak_rss_mib > 10 and found.provenance.wall_seconds >= 0


@settings(max_examples=25)
@given(
    npst.arrays("uint32", npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    st.sampled_from(["float32", "int32", "uint32"]),
)
def test_arrays_come_back_bit_for_bit(tmp_path_factory, bits, dtype):
    array = bits.view(dtype)
    path = measured(tmp_path_factory.mktemp("records"), arrays={"a": array, "transposed": array.T})
    found = record.load_arrays(path)
    for name, expected in {"a": array, "transposed": array.T}.items():
        assert (found[name].shape, found[name].dtype) == (expected.shape, expected.dtype)
        assert found[name].tobytes() == expected.tobytes()


def test_missing_numbers_are_words(tmp_path):
    path = measured(tmp_path, {"ap": math.nan, "losses": [math.inf, (np.float64(-np.inf),)], "lr": 1e-7})
    text = path.read_text()
    assert json.loads(text, parse_constant=pytest.fail)["fields"] == {
        "ap": "NaN",
        "losses": ["Infinity", ["-Infinity"]],
        "lr": 1e-7,
    }


def test_arrays_in_fields_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"fields\.state\.w: ndarray"):
        measured(tmp_path, {"state": {"w": np.zeros(3)}})
    assert not list(tmp_path.rglob("*.json"))


def test_a_record_holds_the_files_that_its_job_says_both_sides_depend_on(tmp_path, monkeypatch):
    inputs = ["lib/record.py", "lib/backend/torch.py", "notebooks/40_convert.ipynb"]
    monkeypatch.setenv(record.SOURCES, json.dumps([name for name in inputs if job.shared(name)]))
    found = record.read(measured(tmp_path)).provenance.sources
    assert found == {"lib/record.py": record.sha256(record.ROOT / "lib" / "record.py")}
    monkeypatch.delenv(record.SOURCES)
    assert record.read(measured(tmp_path)).provenance.sources == {}


def test_a_failing_stage_leaves_the_earlier_record(tmp_path):
    path = measured(tmp_path, {"run": 1}, {"a": np.ones(3)})
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(ZeroDivisionError), record.measure("forward", "toy", tmp_path) as m:
        m.fields["run"] = 1 // 0
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_rerun_without_arrays_leaves_none_behind(tmp_path):
    measured(tmp_path, arrays={"a": np.ones(3)})
    path = measured(tmp_path)
    assert list(path.parent.iterdir()) == [path] and record.load_arrays(path) == {}


def test_arrays_lie_in_the_file_as_safetensors_itself_writes_them(tmp_path):
    """They are streamed, so that a record's arrays are in memory once."""
    arrays = {f"{name} {index}": np.arange(index).astype(name) for name in record.TYPES for index in (3, 1, 0)}
    arrays |= {
        "scalar": np.array(2.5),
        '"é"': np.ones((2, 3), np.float32).T,
        "strided": np.arange(12.0).reshape(3, 4)[:, ::2],
    }
    path = measured(tmp_path, arrays=arrays)
    whole = {name: np.array(array, order="C") for name, array in arrays.items()}
    assert path.with_suffix(".safetensors").read_bytes() == safetensors.numpy.save(whole)
    assert all((array == arrays[name]).all() for name, array in record.load_arrays(path).items())


FILLING_UP = """
import resource, signal, sys, numpy as np
from lib import record
from lib.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write past the limit is an OSError, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with record.measure("forward", "toy", sys.argv[1]) as m:
        m.fields["run"] = 2
        m.arrays["a"] = np.zeros(100_000)
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_the_earlier_record(tmp_path):
    path = measured(tmp_path, {"run": 1}, {"a": np.ones(3)})
    command = [sys.executable, "-c", FILLING_UP, tmp_path]
    result = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True)
    assert result.stdout.count("\n") == 1 and "free some disk space" in result.stdout, result.stderr
    assert record.read(path).fields == {"run": 1} and record.load_arrays(path)["a"].tolist() == [1, 1, 1]
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".json", ".safetensors"]


def test_a_killed_writer_leaves_the_earlier_file(tmp_path):
    target = tmp_path / "result.json"
    target.write_text("whole")
    program = (
        "import os, signal, sys\nfrom lib.record import atomic\n"
        "with atomic(sys.argv[1]) as t:\n t.write_text('ha'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", program, target], cwd=record.ROOT)
    assert result.returncode == -signal.SIGKILL and target.read_text() == "whole"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"), record.atomic(tmp_path / "file" / "record.json"):
        pass


def flip_a_bit(path):
    companion = path.with_suffix(".safetensors")
    content = bytearray(companion.read_bytes())
    content[-1] ^= 1
    companion.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def drop_arrays(path):
    path.with_suffix(".safetensors").unlink()


def other_schema(path):
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))


def lose_a_field(path):
    content = json.loads(path.read_text())
    del content["provenance"]["command"]
    path.write_text(json.dumps(content))


def another_model(path):
    path.write_text(path.read_text().replace('"model": "toy"', '"model": "other"'))


def another_framework(path):
    """PyTorch's numbers under Jittor's name."""
    text = (
        path.read_text().replace("toy/none/forward", "toy/jittor/forward").replace('"side": "none"', '"side": "jittor"')
    )
    path.write_text(text)


@pytest.mark.parametrize(
    "fault, message",
    [
        (lambda path: path.write_text(10**5 * "["), "not valid JSON"),
        (flip_a_bit, "a is not what"),
        (cut, "not valid JSON"),
        (drop_arrays, "are not here; bring them"),
        (os.remove, "can't be read"),
        (other_schema, "schema_version"),
        (lose_a_field, "provenance.command"),
        (another_model, "toy/none/forward is not other/none/forward"),
        (another_framework, "toy/jittor/forward was measured by none"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path, fault, message):
    path = measured(tmp_path, arrays={"a": np.ones(3)})
    assert record.load_arrays(path).keys() == {"a"}
    fault(path)
    with pytest.raises(UserError, match=message) as caught:
        record.load_arrays(path)
    assert "\n" not in str(caught.value)


def test_an_exported_copy_has_no_commit(tmp_path):
    assert record.git_state(tmp_path) == (None, None)


def test_threads_are_those_the_kernels_get(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert record.threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert record.threads() == len(os.sched_getaffinity(0))


def test_how_threads_wait_is_recorded_as_openmp_reads_it(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert record.wait_policy() == "default"
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert record.wait_policy() == "passive"
