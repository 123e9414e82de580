"""python -m lib export: the file that it writes, who judges it, and what it refuses; and that detect takes it."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lib import backend, convert, models
from lib.__main__ import main
from lib.alignment import capture, deployed, references
from lib.alignment.compare import match_detections
from lib.data import scenes
from lib.errors import UserError
from lib.evaluation.exported import OPSET, Exported
from lib.machine import environment
from lib.training import checkpoints

onnx = pytest.importorskip("onnx", reason="only the torch environment has it")
SIZE = "--size", "64", "96"
SMALLEST = ("nanodet-plus-m_320", "gold-yolo-n", "rtdetr_r18vd")


@dataclass(frozen=True)
class Made:
    folder: Path
    said: dict[str, str]  # what `export` printed, by model

    def weights(self, name):
        return str(self.folder / f"{name}.safetensors")

    def file(self, name):
        return self.folder / f"{name}.onnx"

    def classes(self, name):
        return tuple(f"kind {number}" for number in range(references.case(name, "forward").num_classes))

    def model(self, name):
        model = models.build(name, len(self.classes(name)), seed=None)
        convert.load(model, self.weights(name))
        return model.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of each family; Jittor judges the first."""
    one = Made(tmp_path_factory.mktemp("exported"), {})
    with pytest.MonkeyPatch.context() as patch:
        for name in SMALLEST:
            seeded = capture.seeded_model(name, references.case(name, "forward"))  # fresh weights find nothing
            checkpoints.write(one.weights(name), convert.state(seeded), one.classes(name))
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert main(["export", name, "--weights", one.weights(name), "--to", str(one.file(name)), *SIZE]) == 0
            one.said[name] = said.getvalue()
            patch.setattr(environment, "complete", lambda _: False)
    return one


@pytest.mark.parametrize("name", SMALLEST)
def test_both_frameworks_give_what_the_file_gives(made, name):
    *rows, verdict, written = made.said[name].splitlines()
    assert verdict == "PASS on 4 pictures" and written.startswith(f"{made.file(name)}: {name}, images (n, 3, 64, 96)")
    assert all("PASS" in row for row in rows if row.startswith("PyTorch"))
    theirs = [row for row in rows if row.startswith("Jittor")]
    assert theirs and all(("PASS" if name == SMALLEST[0] else "NOT RUN") in row for row in theirs)


@pytest.mark.parametrize("name", SMALLEST)
def test_one_image_alone_is_as_among_others(made, name):
    file = Exported(made.file(name))
    images = np.random.default_rng(0).random((3, 3, *file.size), np.float32)
    together, alone = (deployed._run(name, file, [given]) for given in (images, images[1:2]))
    for key, array in deployed._beside({k: v[1:2] for k, v in together.items()}, alone).items():
        np.testing.assert_allclose(array[0], together[key][1], rtol=1e-4, atol=1e-4)


def test_the_file_says_what_it_is(made):
    held = onnx.load(made.file("gold-yolo-n"))
    onnx.checker.check_model(held)
    notes = {entry.key: entry.value for entry in held.metadata_props}
    assert [entry.version for entry in held.opset_import if not entry.domain] == [OPSET]
    assert (notes["model"], notes["input"]) == ("gold-yolo-n", "[64, 96]")
    assert tuple(json.loads(notes["classes"])) == made.classes("gold-yolo-n")
    assert "636/640" in notes["preprocessing"] and notes["weights"].startswith("sha256 ") and len(notes["commit"]) > 39
    assert held.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # any number of images


def change(file, target):
    """Write the file with a thousandth more in a channel of its largest kernel."""
    held = onnx.load(file)
    kernel = max((one for one in held.graph.initializer if len(one.dims) == 4), key=lambda one: np.prod(one.dims))
    values = onnx.numpy_helper.to_array(kernel).copy()
    values[0] *= 1.001
    kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))
    onnx.save(held, target)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_changed_weight_does_not_pass(made, tmp_path, name, monkeypatch):
    change(made.file(name), tmp_path / "changed.onnx")
    monkeypatch.setattr(environment, "complete", lambda _: False)
    assert deployed.judged(tmp_path / "changed.onnx", made.model(name)).failing


def test_what_does_not_pass_is_not_written(made, tmp_path, monkeypatch, capsys):
    name, target = SMALLEST[0], tmp_path / "other.onnx"
    monkeypatch.setattr(backend, "write_onnx", lambda *given: change(made.file(name), given[-1]))
    monkeypatch.setattr(environment, "complete", lambda _: False)
    assert main(["export", name, "--weights", made.weights(name), "--to", str(target), *SIZE]) == 1
    shown = capsys.readouterr()
    assert "FAIL on 4 pictures" in shown.out and "not the model in preds" in shown.err
    assert not list(tmp_path.iterdir())


def test_detect_finds_the_same(made, tmp_path, capsys):
    name = SMALLEST[0]
    scenes.generate(tmp_path, train=1, val=2, size=96)
    found = {}
    for label, given in (("file", ["-", str(made.file(name))]), ("model", [name, made.weights(name), *SIZE])):
        out = tmp_path / f"{label}.json"
        low = ["--json", str(out), "--threshold", "0.001"]
        assert main(["detect", *given, str(tmp_path / "images" / "val"), *low]) == 0
        found[label] = json.loads(out.read_text())
    assert found["file"]["categories"] == found["model"]["categories"]
    rows = [
        np.array([[one["image_id"], *one["bbox"], one["score"], one["category_id"]] for one in held["annotations"]])
        for held in found.values()
    ]
    pairing = match_detections(*rows)
    assert len(rows[0]) > 10 and len(pairing.pairs) >= 0.95 * max(map(len, rows)) and pairing.box < 0.01


def test_mistakes_are_one_line(made, tmp_path, capsys):
    name, weights, file = SMALLEST[0], made.weights(SMALLEST[0]), str(made.file(SMALLEST[0]))
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf")
    held = onnx.load(file)
    del held.metadata_props[:]
    onnx.save(held, foreign := tmp_path / "foreign.onnx")
    drawn, to = ["x.jpg", "-o", str(tmp_path / "x.png")], ["--to", str(tmp_path / "x.onnx")]
    for arguments, message in (
        (["export", "nanodet", "--weights", weights, *to], "model 'nanodet' is unknown"),
        (["export", "nanodet-plus-m-1.5x_320", "--weights", weights, *to], "wrong shape"),
        (["export", name, "--weights", weights, "--to", "x.pb"], "call it x.onnx"),
        (["export", name, "--weights", weights, "--to", f"{weights}/x.onnx"], "can't be written"),
        (["export", name, "--weights", weights, *to, "--size", "50", "64"], "take 64 64"),
        (["detect", "-", str(tmp_path / "broken.onnx"), *drawn], "onnxruntime can't read it"),
        (["detect", "-", str(foreign), *drawn], "name no model of ours"),
        (["detect", "-", str(tmp_path / "none.onnx"), *drawn], "No such file"),
        (["detect", "gold-yolo-n", file, *drawn], f"its model is {name}, not gold-yolo-n"),
        (["detect", "-", file, *drawn, "--size", "64", "64"], "its --size is (64, 96), not (64, 64)"),
        (["detect", "-", file, *drawn, "--device", "cuda"], f"--device cuda: {file} runs on the CPU"),
        (["detect", "-", file, *drawn, "--absent", "aux."], f"--absent aux.: {file} is whole"),
        (["detect", "-", weights, *drawn], "model '-' is unknown"),
    ):
        assert main(arguments) == 1, arguments
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line, line
    assert {path.name for path in tmp_path.iterdir()} == {"broken.onnx", "foreign.onnx"}
    with pytest.raises(UserError, match="^x.onnx: its metadata name no model"):  # export's temporary file is nobody's
        Exported(foreign, Path("x.onnx"))
