"""What a side measures about a model and a data set, before anything is compared; runs in both environments."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lib import backend, convert
from lib.alignment import capture, references
from lib.alignment.references.case import GOLDEN
from lib.data import scenes, sets, transforms
from lib.errors import UserError

NAME = "nanodet-plus-m_320"


def test_the_training_case_is_the_published_one(golden):
    content = json.loads((golden / "nanodet_plus" / "train_m_320_20cls.json").read_text())
    case = references.case(NAME, "loss")
    assert [target["boxes"].tolist() for target in case.targets] == content["gt_bboxes_xyxy"]
    assert [target["labels"].tolist() for target in case.targets] == content["gt_labels"]
    assert case.input().shape == (2, 3, 320, 320) and (GOLDEN / case.file).is_file()


def test_conversion_covers_every_entry_in_every_format():
    fields = capture.conversion(NAME, references.case(NAME, "convert"))
    assert fields["coverage"]["loaded"] == fields["coverage"]["total"] == len(fields["state"])
    assert not any(fields[kind] for kind in ("missing", "left_over", "not_finite", "misshapen"))
    assert set(fields["round_trip"]) == set(capture.FORMATS) and all(fields["round_trip"].values())
    assert fields["norm_layers"] == {"BatchNorm2d": 141, "GroupNorm": 8}


def test_calibration_reaches_the_model_and_float64_keeps_it():
    case = references.case(NAME, "forward")
    with np.load((references.GOLDEN / case.file).with_suffix(".npz")) as stored:
        values = {name.removeprefix("calib/"): stored[name] for name in stored.files if name.startswith("calib/")}
    state = convert.state(capture.seeded_model(NAME, case, "float64"))
    assert len(values) >= 2 * 106  # mean and variance of every norm of the inference part
    assert all(state[name].dtype == np.float64 and (state[name] == value).all() for name, value in values.items())
    plain = convert.state(capture.seeded_model(NAME, references.case(NAME, "loss")))
    assert not any((plain[name] == value).all() for name, value in values.items() if name.endswith("running_var"))


class InPlace(backend.nn.Module):
    def forward(self, x):
        x *= 0.5
        return x


def test_features_are_collected_once_and_the_hooks_go():
    model = backend.nn.Sequential(backend.nn.LeakyReLU(0.1), InPlace())
    x = backend.tensor(np.array([-1.0, 2.0], np.float32))
    with capture.features(model, {"first": ("0", None)}) as found:
        model(x)
    assert np.allclose(found["first"], [-0.1, 2]), "what a layer gave, not what the next made of it in its place"
    found.clear()
    model(x)
    assert not found


def test_too_few_classes_for_the_training_boxes_is_one_line():
    with pytest.raises(UserError, match="at least 20"):
        capture.loss_and_gradient(NAME, replace(references.case(NAME, "loss"), num_classes=5))


def test_a_data_set_is_described_by_what_its_files_hold(tmp_path):
    train, val = sets.prepare(str(tmp_path / "scenes"), seed=0, train_images=3, val_images=2)
    fields, arrays = sets.describe(train, val)
    boxes = [image.boxes for image in train.images]
    assert fields["splits"]["train"]["images"] == 3 and fields["splits"]["train"]["boxes"] == sum(map(len, boxes))
    assert sum(fields["class_histogram"]["train"]) == len(arrays["box_sizes/train"])
    before = fields["splits"]["val"]["images_sha256"]
    image = val.images[0].file
    image.write_bytes(image.read_bytes() + b"\0")
    assert sets.describe(train, val)[0]["splits"]["val"]["images_sha256"] != before
    assert not scenes.is_theirs(train.path), "a file is the user's"
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    assert not scenes.is_theirs(tmp_path / "coco"), "so is a folder in COCO's layout"


@pytest.mark.parametrize("family", transforms.RECIPES)
def test_network_input_shown_as_a_picture_is_the_picture(family):
    recipe = transforms.RECIPES[family]
    picture = np.full((32, 32, 3), (40, 120, 200), np.uint8)  # BGR
    prepared, _ = recipe.preprocess(picture, (32, 32))
    shown = recipe.as_picture(prepared)
    assert np.abs(shown[16, 16].astype(int) - picture[16, 16, ::-1]).max() <= 1
