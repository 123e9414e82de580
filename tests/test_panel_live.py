"""A model that is run from the panel joins the menus, its weights must fit, each image is asked for once."""

import re

import numpy as np
import pytest
import synthetic_records as synthetic
from safetensors.numpy import save_file

from lib import convert, models
from lib.data import coco, scenes
from lib.errors import UserError
from lib.evaluation import inference
from lib.evaluation.detection import Classes
from lib.training import checkpoints
from notebooks.stages import panel
from notebooks.stages.panel_live import FILE, SIDE, Live, controls

NAME = "nanodet-plus-m_320"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(panel with one side's "common" detections, what can be run)."""
    folder = tmp_path_factory.mktemp("live")
    dataset = coco.load(scenes.generate(folder / "data", train=1, val=3, size=64)["val"])
    for side in ("torch", "jittor"):
        (folder / "runs" / NAME / side).mkdir(parents=True)
    model = models.build(NAME, len(dataset.classes), seed=3)
    save_file(convert.state(model), folder / "runs" / NAME / "torch" / FILE)
    save_file(convert.state(models.build(NAME, 3)), folder / "runs" / NAME / "jittor" / FILE)
    shown = panel.Panel(dataset, Classes(dataset.classes, dataset.category_ids))
    found = inference.detect(model, NAME, dataset, (64, 64))
    shown.add(NAME, "common", "torch", panel.with_ids([image.id for image in dataset.images], found))
    return shown, Live(folder / "runs", (64, 64))


def test_models_with_weights_come_first(trained):
    _, live = trained
    assert live.models()[0] == NAME and set(live.models()) == set(models.NAMES)
    assert [path.split("/")[-2] for path in live.weights(NAME)] == ["jittor", "torch"] and live.weights(
        "gold-yolo-n"
    ) == []


def test_common_weights_run_here_find_what_the_record_says(trained):
    shown, live = trained
    """Recorded and live stand side by side."""
    path = live.weights(NAME)[1]
    joined = live.join(shown, NAME, path)
    assert joined == {"model": NAME, "right": (path, SIDE)}
    for image in shown.offered(NAME)["image"]:
        choice = shown.choice(**joined, left=("common", "torch"), image=image, threshold=0.0, pixels=0.1)
        said = rf"common weights: (\d+) boxes, 0 without counterpart \(≠\); {SIDE}, .*: \1 boxes, 0 without"
        assert re.search(said, shown.picture(choice).alt), shown.picture(choice).alt


def test_an_image_is_asked_for_once(trained):
    shown, _ = trained
    calls = []
    shown.add("mine", "file", "here", lambda image: calls.append(image.shape) or np.array([[1, 2, 9, 9, 0.9, 0]]))
    for threshold in (0.1, 0.5):
        assert "here, file: 1 box," in shown.picture(shown.choice(model="mine", threshold=threshold)).alt
    assert len(calls) == 1 and calls[0][2] == 3
    del shown.found["mine"]


@pytest.mark.parametrize(
    "model, path, message",
    [
        ("yolo-x", "", "'yolo-x' is unknown"),
        (NAME, "nowhere.pth", "nowhere.pth: no such file"),
        (NAME, "", "weights: no such file"),
    ],
)
def test_what_can_not_be_run_is_named(trained, model, path, message):
    with pytest.raises(UserError, match=message):
        trained[1].join(trained[0], model, path)


def test_weights_of_the_same_classes_in_another_order_do_not_join(trained, tmp_path):
    shown, live = trained
    checkpoints.write(tmp_path / "w.safetensors", {"a": np.ones(1)}, shown.names()[::-1])
    with pytest.raises(UserError, match="the same in another order"):
        live.join(shown, NAME, str(tmp_path / "w.safetensors"))


def test_the_button_brings_the_model_into_the_menus(trained):
    pytest.importorskip("ipywidgets")
    shown, live = trained
    for source in [source for source in shown.found[NAME] if source[1] == SIDE]:
        del shown.found[NAME][source]
    box = controls(shown, shown.choice(threshold=0.01), live)
    row, menus, _ = ({control.description: control for control in row.children} for row in box.children[:3])
    figure = box.children[3]
    assert row["run"].value == NAME and len(row["weights"].options) == 2 and len(menus["right"].options) == 1
    row["detect"].click()  # the first file has three classes, the data ten
    assert "<b>" in figure.value and "shape" in figure.value and len(shown.found) == 1
    path = row["weights"].value = row["weights"].options[1]
    row["detect"].click()
    assert menus["right"].value == (path, SIDE) and menus["left"].value == ("common", "torch")
    assert f"{SIDE}, " in figure.value
    row["weights"].value = "<img src=x onerror=alert(1)>.pth"
    row["detect"].click()
    assert "&lt;img src=x" in figure.value and "<img" not in figure.value, "a file's name is text, never markup"
    row["run"].value = "gold-yolo-n"
    assert row["weights"].options == () and row["weights"].value == ""


def test_the_controls_change_the_figure(tmp_path):
    for side in ("torch", "jittor"):
        synthetic.write(tmp_path, side, "evaluate", *synthetic.STAGES["evaluate"](side))
    shown = panel.from_records(tmp_path)
    shown.add("second", "file", "torch", shown.found["synthetic"]["own", "torch"][:1])
    box = controls(shown, shown.choice(threshold=0.0))
    menus, sliders = ({control.description: control for control in row.children} for row in box.children[:2])
    figure = box.children[2]
    assert "base64," in figure.value
    first = figure.value
    sliders["score from"].value = 1.0
    assert figure.value != first and " 0 boxes" in figure.value
    menus["model"].value = "second"  # the other menus follow what it has
    assert menus["left"].options == (("PyTorch, file", ("file", "torch")),)
    assert menus["left"].value == menus["right"].value == ("file", "torch")
    menus["model"].value = "synthetic"
    assert len(menus["right"].options) == 4, "each side with each weights"
    menus["left"].value = ("own", "torch")
    menus["right"].value = ("common", "jittor")
    assert "PyTorch, own weights: " in figure.value and "Jittor, common weights: " in figure.value
