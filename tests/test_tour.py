"""What the tours show is what the modules did, and what they compute by hand is what the library computes; runs in both
environments."""

import ast
import json
from dataclasses import replace

import numpy as np
import pytest

from lib import backend, models
from lib.alignment import capture, references
from lib.backend import nn
from lib.models.gold_yolo import VARIANTS, build_variant
from lib.models.rt_detr import DeformableAttention
from lib.record import ROOT
from notebooks import tours
from notebooks.tours import gold_yolo, rt_detr

N, R18 = "gold-yolo-n", "rtdetr_r18vd"
PARTS = r"backbone\.ERBlock_\d|neck\.\w+"
ENCODER = r"backbone\.res_layers\.[1-3]|encoder\.\w+\.\d"
ATTENTION = "neck.high_IFM.transformer_blocks.1.attn"


@pytest.fixture(scope="module")
def seeded():
    return capture.seeded_model(N, references.case(N, "loss")).train()


@pytest.fixture(scope="module")
def images():
    return references.case(N, "loss").input()[:, :, :96, :96]


def reads(model, images, pattern) -> dict[str, tuple[str, ...]]:
    return {
        node.name.partition(".")[2]: tuple(name.partition(".")[2] for name in node.reads)
        for node in tours.wiring(model, images, pattern)
    }


def test_wiring_is_the_published_one(seeded, images):
    found = reads(seeded, images, PARTS)
    assert set(found["low_FAM"]) == {"ERBlock_2", "ERBlock_3", "ERBlock_4", "ERBlock_5"}
    assert found["Inject_p4"] == ("LAF_p4", "low_IFM") and found["Inject_p3"] == ("LAF_p3", "low_IFM")
    assert set(found["high_FAM"]) == {"Rep_p3", "Rep_p4", "ERBlock_5"} and found["Inject_n5"] == (
        "LAF_n5",
        "conv_1x1_n",
    )
    assert set(found["LAF_n5"]) == {"Rep_n4", "reduce_layer_c5"}


def test_wiring_sees_a_module_fed_by_another(images):
    changed = build_variant(replace(VARIANTS[N], n5_from_p4=True), 3, 0).train()
    assert set(reads(changed, images, PARTS)["LAF_n5"]) == {"Rep_p4", "reduce_layer_c5"}


def test_wiring_follows_doubling_and_tokens(images):
    model = capture.seeded_model(R18, references.case(R18, "loss")).train()
    found = reads(model, images, ENCODER)
    assert found["encoder.0"] == ("input_proj.2",) and found["lateral_convs.0"] == ("encoder.0",)
    assert set(found["fpn_blocks.0"]) == {"lateral_convs.0", "input_proj.1"}
    assert set(found["pan_blocks.1"]) == {"downsample_convs.1", "lateral_convs.0"}


@pytest.mark.parametrize("name", ["nanodet-plus-m_320", N, R18])
def test_a_scene_is_what_its_boxes_say(name):
    """The boxes went along with the pixels: they are proper ones, inside the input."""
    view = tours.scene(name, (96, 96))
    assert (
        view.input.shape == (1, 3, 96, 96) and view.picture.shape == (96, 96, 3) and len(view.boxes) == len(view.labels)
    )
    assert (view.boxes[:, 2:] > view.boxes[:, :2]).all() and view.boxes.min() >= 0 and view.boxes.max() <= 96


def by_hand(stem: str, change: tuple[str, str]) -> None:
    """Run a tour's statements and what it prints, one text replaced by another; what is only shown is left out."""
    names: dict = {}
    for cell in json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]).replace(*change))
            shown = (node for node in tree.body if isinstance(node, ast.Expr))
            left_out = [node for node in shown if not ast.unparse(node).startswith("print(")]
            tree.body = [node for node in tree.body if node not in left_out]
            exec(compile(tree, stem, "exec"), names)


def test_another_rule_by_hand_is_seen(capsys):
    """As it stands each tour is run in both kernels, and what it says is held, by the report of all notebooks."""
    by_hand("20_nanodet_plus", ("top_k=13", "top_k=5"))
    assert "as the library assigns: False" in capsys.readouterr().out


def test_hooks_go(images):
    model = nn.Sequential(nn.ReLU())
    with tours.calls(model, "0") as found:
        model(backend.tensor(images))
    first = found["0"]
    assert (first.output == np.maximum(first.inputs[0], 0)).all() and first.inputs[0].shape == images.shape
    model(backend.tensor(images[:1]))
    assert found["0"] is first


def test_shares_are_those_that_the_attention_used(seeded, images):
    with backend.no_grad(), tours.calls(seeded, ATTENTION + r"\.(to_v|proj\.0)") as found:
        seeded(backend.tensor(images))
    shares = tours.softmax(gold_yolo.attention_scores(seeded, images, ATTENTION))
    value = found[f"{ATTENTION}.to_v"].output[0]
    mixed = value.reshape(len(shares), -1, shares.shape[1]) @ shares.transpose(0, 2, 1)
    assert np.allclose(np.clip(mixed.reshape(value.shape), 0, 6), found[f"{ATTENTION}.proj.0"].output[0], atol=1e-5)


def test_residuals_are_dropped_as_drawn(seeded):
    found = gold_yolo.residuals(seeded, 8, np.random.default_rng(5))
    same = np.random.default_rng(5)
    same.standard_normal((8, 352, 5, 5))
    assert all(np.allclose(found[f"block 0, {name}"], 1, atol=1e-5) for name in ("attention", "perceptron"))
    for name in ("attention", "perceptron"):
        kept = same.random(8) >= np.float32(0.1)
        assert np.allclose(found[f"block 1, {name}"], np.where(kept, 1 / 0.9, 0), atol=1e-4)


def test_a_criterion_knows_its_phase():
    case = references.case(N, "loss")
    assert [gold_yolo.criterion(N, case, phase).atss_epochs for phase in ("tal", "atss")] == [0, 4]


def test_reach_of_known_modules():
    assert tours.reach(tours.convolution(2, 3, 1), 2, 6, (2, 3)).nonzero()[0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert tours.reach(tours.convolution(2, 1, 2), 2, 4).sum() == 4
    pooled = models.build(R18, 3).backbone.res_layers[1].blocks[0].short
    assert tours.reach(pooled, 64, 4).all()


def test_places_are_those_that_the_module_reads():
    random = np.random.default_rng(0)
    attention = DeformableAttention()
    shapes = {name: parameter.shape for name, parameter in attention.named_parameters()}
    values = {name: random.standard_normal(tuple(shape)).astype(np.float32) for name, shape in shapes.items()}
    backend.load_state(attention, values)
    query, boxes = random.standard_normal((1, 5, 256)).astype(np.float32), random.random((1, 5, 4)).astype(np.float32)
    offsets = backend.numpy(attention.sampling_offsets(backend.tensor(query)))[0]
    grid = backend.numpy(
        attention._grid(backend.tensor(query), backend.tensor(boxes))
    )  # (a, q, levels * p, 2) in -1 … 1
    expected = (grid.reshape(8, 5, 3, 4, 2).transpose(1, 0, 2, 3, 4) + 1) / 2
    assert np.allclose(rt_detr.places(offsets, boxes[0]), expected, atol=1e-4)


def test_sampling_of_the_first_weights_is_a_star_around_the_box():
    model = models.build(R18, 3).train()
    with backend.no_grad(), tours.calls(model, r"decoder\.decoder\.layers\.\d\.cross_attn(\.\w+)?") as found:
        model(backend.tensor(tours.scene(R18, (96, 96)).input))
    layers = rt_detr.sampling(found, rt_detr.central(found))
    assert list(layers) == ["layer 0", "layer 1", "layer 2"]
    first = layers["layer 0"]
    assert np.allclose(first.shares, 1 / 12) and np.abs(first.box[:2] - 0.5).max() < 0.2
    right, low = (
        first.places[0, :, 3],
        first.places[2, :, 3],
    )  # heads 0 and 2, the farthest points: the middles of two sides
    assert np.allclose(right, [[first.box[0] + first.box[2] / 2, first.box[1]]] * 3, atol=1e-5)
    assert np.allclose(low, [[first.box[0], first.box[1] + first.box[3] / 2]] * 3, atol=1e-5)
