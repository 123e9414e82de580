"""The models' names and families: plain data that agrees with the files it names; runs in both environments."""

import subprocess
import sys

import numpy as np
import pytest

from lib import backend, families, models
from lib.errors import UserError
from lib.models import gold_yolo, nanodet_plus, rt_detr
from lib.models.step import Step


def test_names_are_those_of_the_variants_in_their_order():
    files = {"nanodet_plus": nanodet_plus, "gold_yolo": gold_yolo, "rt_detr": rt_detr}
    assert {family: list(names) for family, names in families.FAMILIES.items()} == {
        family: list(file.VARIANTS) for family, file in files.items()
    }
    assert [models.family(name) for name in models.NAMES] == [
        family for family, names in families.FAMILIES.items() for _ in names
    ]


@pytest.mark.parametrize("name, file", [("gold-yolo-n", gold_yolo), ("rtdetr_r18vd", rt_detr)])
def test_inference_makes_tensors_of_no_arrays_but_tables(monkeypatch, name, file):
    """Compilers and exporters see operators and constants, nothing that depends on how many images there are."""
    model, images = models.build(name, 2).eval(), backend.tensor(np.zeros((1, 3, 64, 64), np.float32))
    made = []
    monkeypatch.setattr(file, "tensor", lambda array: made.append(array) or backend.tensor(array))
    with backend.no_grad():
        model(images)
    assert not made
    model.step = Step(
        random=np.random.default_rng(0), targets=2 * [{"boxes": np.array([[8, 8, 40, 40.0]]), "labels": [0]}]
    )
    with backend.no_grad():
        model.train()(backend.tensor(np.zeros((2, 3, 64, 64), np.float32)))
    assert made  # drop-path masks, denoising queries


@pytest.mark.parametrize("name", ["yolo", "gold-yolo-x", "rtdetr"])
def test_a_name_that_is_no_models_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=f"model '{name}' is unknown: choose one of nanodet-plus-m_320, "):
        models.build(name)


@pytest.mark.parametrize("module", ["lib.models", "lib.families", "lib.data.transforms", "lib.machine.notebook"])
def test_names_cost_no_framework(module):
    program = f"import sys, {module}; print({{'torch', 'jittor'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
