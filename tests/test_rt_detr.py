"""RT-DETR's structure, first weights, inference and post-processing against the published numbers
(tests/golden/rt_detr); runs in both environments.

Float32 is judged by FACTOR times the published code's own float32 error, float64 by SHARP. The released sizes other
than R18 have no published outputs here: their structure is checked, and tests/test_rt_detr_transformers.py runs them.
"""

import json

import numpy as np
import pytest
from rt_detr_cases import (
    FACTOR,
    GOLDEN,
    NAME,
    SHARP,
    TYPES,
    error,
    image,
    predict,
    published_tables,
    read,
    seeded_model,
    shapes,
)

from lib import backend, models
from lib.alignment.capture import features
from lib.alignment.seeded import seeded_input
from lib.data import boxes
from lib.errors import UserError
from lib.models.rt_detr import INTERMEDIATES, PRIOR, QUERIES, VARIANTS, anchors, position_embedding
from lib.postprocess import detections

FLOAT64_SLOW = ["f32", pytest.param("f64", marks=pytest.mark.slow)]  # slow in Jittor, where it compiles for minutes


# ---------------------------------------------------------------------------------------------------- structure
@pytest.mark.parametrize("name", VARIANTS)
def test_every_entry_count_and_optimiser_group_as_published(name):
    spec = json.loads((GOLDEN / f"spec_{name.removeprefix('rtdetr_')}.json").read_text())
    model = models.build(name, 80, seed=None)
    state = [(entry, backend.numpy(value)) for entry, value in backend.named_state(model)]
    assert [[entry, list(array.shape), str(array.dtype)] for entry, array in state] == spec["state_dict"]
    sizes = {entry: backend.numpy(value).size for entry, value in model.named_parameters()}
    assert sum(sizes.values()) == spec["params_total"]
    for part, count in spec["params_split"].items():
        assert sum(size for entry, size in sizes.items() if entry.startswith(f"{part}.")) == count
    assert list(model.frozen_names) == spec["not_trainable"]
    assert sum(sizes.values()) - sum(sizes[entry] for entry in model.frozen_names) == spec["params_trainable"]
    groups, published = models.parameter_groups(name, model), spec["optimizer"]["groups"]
    assert [list(group.names) for group in groups] == [group["names"] for group in published]
    assert [group.learning_rate_factor * spec["optimizer"]["lr"] for group in groups] == pytest.approx(
        [group["lr"] for group in published], rel=1e-12
    )
    assert [group.decays * spec["optimizer"]["weight_decay"] for group in groups] == [
        group["weight_decay"] for group in published
    ]


def part_of(part, whole):
    """Whether JSON content is the whole's, where dicts and lists may have lost entries."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and part_of(value, whole[key]) for key, value in part.items()
        )
    return part == whole or (
        isinstance(whole, list) and isinstance(part, list) and all(value in whole for value in part)
    )


def test_compact_goldens_are_part_of_the_full_records(shared):
    full = shared / "golden" / "rt_detr"
    for path in sorted(GOLDEN.glob("*.json")):
        assert part_of(json.loads(path.read_text()), json.loads((full / path.name).read_text())), path.name
    for path in sorted(GOLDEN.glob("*.npz")):
        with np.load(path) as part, np.load(full / path.name) as whole:
            assert part.files and all(part[key].tobytes() == whole[key].tobytes() for key in part.files), path.name


def test_first_weights_have_the_published_distributions():
    model = models.build("rtdetr_r50vd", 3)
    state = {name: backend.numpy(value) for name, value in backend.named_state(model)}
    for entry in ("decoder.dec_score_head.5.bias", "decoder.enc_score_head.bias"):
        assert state[entry] == pytest.approx(np.full(3, -4.59512), abs=1e-5)
    assert pytest.approx(-np.log((1 - 0.01) / 0.01)) == PRIOR
    for entry in (
        "enc_bbox_head.layers.2.weight",
        "dec_bbox_head.0.layers.2.bias",
        "decoder.layers.0.cross_attn.sampling_offsets.weight",
        "decoder.layers.0.cross_attn.attention_weights.bias",
        "decoder.layers.1.self_attn.in_proj_bias",
    ):
        assert not state[f"decoder.{entry}"].any()
    offsets = state["decoder.decoder.layers.4.cross_attn.sampling_offsets.bias"].reshape(8, 3, 4, 2)
    directions = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    for point in range(4):
        np.testing.assert_allclose(offsets[:, 1, point], (point + 1) * np.asarray(directions), atol=1e-6)
    uniform = {  # entry: the bound it reaches and keeps
        "decoder.decoder.layers.0.cross_attn.value_proj.weight": (6 / 512) ** 0.5,
        "decoder.query_pos_head.layers.0.weight": (6 / 516) ** 0.5,
        "encoder.encoder.0.layers.0.self_attn.in_proj_weight": (6 / 1024) ** 0.5,
        "encoder.encoder.0.layers.0.linear1.bias": 256**-0.5,
        "backbone.res_layers.1.blocks.0.branch2b.conv.weight": (128 * 9) ** -0.5,
    }
    for entry, bound in uniform.items():
        assert 0.97 * bound < np.abs(state[entry]).max() <= bound, entry
        assert state[entry].std() == pytest.approx(bound / 3**0.5, rel=0.1), entry
    assert not state["decoder.denoising_class_embed.weight"][3].any()
    assert state["decoder.denoising_class_embed.weight"][:3].std() == pytest.approx(1, rel=0.1)
    assert (state["backbone.conv1.conv1_1.norm.weight"] == 1).all()
    again = models.build("rtdetr_r50vd", 3, seed=1)
    assert (
        backend.numpy(dict(again.named_parameters())["encoder.lateral_convs.0.conv.weight"])
        != state["encoder.lateral_convs.0.conv.weight"]
    ).any()


# ------------------------------------------------------------------------------------------------------- forward
def test_position_embedding_and_anchors_as_published():
    for name, sizes in (
        ("forward_r18vd_320", ((40, 40), (20, 20), (10, 10))),
        ("forward_r18vd_640", ((80, 80), (40, 40), (20, 20))),
    ):
        arrays = read(name)[1]
        logits, valid = anchors(sizes)
        assert (valid == arrays["valid_mask"][0]).all()
        np.testing.assert_allclose(logits, arrays["anchors_logit"][0], rtol=0, atol=5e-7)  # float32 logarithms
    assert error(position_embedding(10, 10, 256), read("forward_r18vd_320")[1]["pos_embed2"]) <= 5e-7
    wide = position_embedding(2, 5, 8)[0]  # row t is that of the coordinates t // 2, t % 2: width-major, as published
    np.testing.assert_allclose(
        wide[5],
        [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02), np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)],
        atol=1e-6,
    )


@pytest.mark.parametrize("kind", FLOAT64_SLOW)
def test_forward_and_selection_as_published(monkeypatch, kind):
    record, arrays = read("forward_r18vd_320")
    with published_tables(monkeypatch), features(model := seeded_model(kind), INTERMEDIATES) as found:
        outputs = predict(model, image(record, kind))
    floors, tokens = record["noise_floor"], found["decoder.selected_tokens"][0]
    falling = -np.sort(-found["decoder.enc_score_head"].max(2)[0])
    np.testing.assert_allclose(
        falling[QUERIES - 1] - falling[QUERIES],
        record["selection"]["f64"]["boundary_gap"],
        atol=4 * record["selection"]["score_noise_max_abs_f32_f64"],
    )
    assert set(tokens) == set(arrays["topk_ind_f64"])  # the gap is hundreds of times the noise
    ours, theirs = np.argsort(tokens), np.argsort(arrays["topk_ind_f64"])
    for key in ("pred_logits", "pred_boxes"):
        assert outputs[key].dtype == TYPES[kind]
        allowed = FACTOR * floors[key] if kind == "f32" else SHARP
        assert error(outputs[key][0][ours], arrays[f"{key}_f64"][0][theirs]) <= allowed
    scores = found["decoder.enc_score_head"].max(2)[0]
    assert error(scores, arrays["enc_max_scores"]) <= FACTOR * record["selection"]["score_noise_max_abs_f32_f64"]
    assert error(found["encoder.encoder.0"], arrays["full/encoder.encoder.0"]) <= FACTOR * floors["aifi_out"]
    theirs = np.argsort(arrays["topk_ind"])
    for name in ("enc_topk_bboxes", "init_ref_points_unact"):
        assert error(found[f"decoder.{name}"][0][ours], arrays[name][0][theirs]) <= FACTOR * floors["pred_boxes"]


@pytest.mark.slow  # float64
def test_every_feature_as_published(monkeypatch):
    """The record has float32 features and how far their norms are from float64: ours in float64 must lie there."""
    record, arrays = read("forward_r18vd_320")
    published = {entry["name"]: entry for entry in record["intermediates"]}
    kept = {name: place for name, place in INTERMEDIATES.items() if name in published}
    assert set(INTERMEDIATES) - set(kept) == {"decoder.selected_tokens"}
    assert set(published) - set(kept) == {  # run on fewer tokens here, the output itself, run once per layer
        "decoder.enc_bbox_head",
        "decoder.dec_score_head.2",
        "decoder.query_pos_head",
        "decoder.query_pos_head#1",
        "decoder.query_pos_head#2",
    }
    found = {}
    with published_tables(monkeypatch):
        for kind in TYPES:
            with features(model := seeded_model(kind), kept) as found[kind]:
                predict(model, image(record, kind))
    assert [name for name in published if name in kept] == list(found["f64"])  # in order of execution
    for name, single in found["f32"].items():
        double, entry = found["f64"][name], published[name]
        assert list(double.shape) == entry["shape"], name
        ours = abs(np.linalg.norm(double) / entry["l2"] - 1)
        assert ours <= entry["l2_rel_diff_f64"] + 1e-7, name  # the norm itself was summed in float32
        if (key := f"full/{name}") in arrays:
            assert error(single, double) <= FACTOR * error(arrays[key], double), name
        noise = error(single, double)
        assert np.abs(double.ravel()[:16] - np.asarray(entry["first16"])).max() <= FACTOR * noise, name


def test_forward_at_the_published_size_with_equal_border_tokens(monkeypatch):
    """At 640 the masked border's tokens share one score inside the top 300: which of them are selected is a tie, and
    they are the same query, so predictions are compared token by token, any border token standing for any other."""
    record, arrays = read("forward_r18vd_640")
    with (
        published_tables(monkeypatch, arrays),
        features(model := seeded_model(), {"t": ("decoder.selection", 4)}) as found,
    ):
        outputs = predict(model, image(record, "f32"))
    valid = arrays["valid_mask"][0, :, 0]
    ours, theirs = (np.where(valid[tokens], tokens, -1) for tokens in (found["t"][0], arrays["topk_ind_f64"]))
    assert sorted(ours) == sorted(theirs)
    assert np.count_nonzero(ours == -1) == record["selection"]["invalid_tokens_selected"]
    for key in ("pred_logits", "pred_boxes"):
        one, other = (
            rows[np.argsort(tokens, kind="stable")]
            for rows, tokens in ((outputs[key][0], ours), (arrays[f"{key}_f64"][0], theirs))
        )
        assert error(one, other) <= FACTOR * record["noise_floor"][key]


def test_wrong_sampling_and_wrong_position_do_not_pass(monkeypatch):
    record, arrays = read("forward_r18vd_320")
    right = np.argsort(arrays["topk_ind_f64"])
    for name, wrong in (
        ("position_embedding", lambda h, w, c: 0 * position_embedding(h, w, c)),
        ("grid_sample", lambda x, grid: backend.grid_sample(x, grid * 0.99)),
    ):
        with (
            monkeypatch.context() as patch,
            features(model := seeded_model(), {"t": ("decoder.selection", 4)}) as found,
        ):
            patch.setattr(f"lib.models.rt_detr.{name}", wrong)
            outputs = predict(model, image(record, "f32"))
        ours = outputs["pred_logits"][0][np.argsort(found["t"][0])]
        assert error(ours, arrays["pred_logits_f64"][0][right]) > 20 * FACTOR * record["noise_floor"]["pred_logits"], (
            name
        )


@pytest.mark.parametrize("name", ["rtdetr_r50vd_m", "rtdetr_r101vd"])
def test_other_sizes_classes_and_batch_equals_single(name):
    """A map that is not square, fewer tokens than queries, one class; the model stops after its published layer."""
    model = models.build(name, 1)
    images = seeded_input("sizes", (2, 3, 96, 64))
    wanted = {f"layer {i}": (f"decoder.decoder.layers.{i}", None) for i in range(VARIANTS[name].layers)}
    wanted["tokens"] = "decoder.selection", 4
    with features(model, wanted) as found:
        both = predict(model, images)
    assert len(found) == VARIANTS[name].last + 2
    with features(model, wanted) as alone:
        single = predict(model, images[1:])
    first, second = np.argsort(found["tokens"][1]), np.argsort(alone["tokens"][0])  # scores may nearly be tied
    assert both["pred_logits"].shape == (2, 12 * 8 + 6 * 4 + 3 * 2, 1) and both["pred_boxes"].shape == (2, 126, 4)
    for key in both:
        assert error(both[key][1, first], single[key][0, second]) <= 2e-5 * np.abs(single[key]).max()


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="100 x 64 .*multiples of 32"):
        predict(models.build(NAME, 1), np.zeros((1, 3, 100, 64), np.float32))


@pytest.mark.parametrize("kind", FLOAT64_SLOW)
def test_deployed_model_predicts_the_same(kind):
    model = seeded_model(kind)
    images = seeded_input("deploy", (1, 3, 96, 96)).astype(TYPES[kind])
    before, entries = predict(model, images), len(shapes(model))
    after = predict(model.deploy(), images)
    assert len(shapes(model)) == entries - 12 * (
        2 * 6 - 2
    )  # twelve blocks: two convolutions with norms become one with bias
    assert not [name for name, _ in model.named_parameters() if "bottlenecks" in name and "norm" in name]
    for key in before:
        assert error(after[key], before[key]) <= (1e-4 if kind == "f32" else 1e-10) * np.abs(before[key]).max()


# ------------------------------------------------------------------------------------------------ post-processing
def test_post_processing_as_published():
    record, arrays = read("forward_r18vd_320")
    width, height = record["post"]["orig_size_wh"]
    output = {key: arrays[key][0] for key in ("pred_logits", "pred_boxes")}
    (found,) = detections(NAME, {key: rows[None] for key, rows in output.items()}, image_size=(height, width))
    assert found.dtype == np.float32
    score = arrays["post_scores"]
    assert np.abs(found[:, 4] - score).max() <= 2**-23  # the sigmoid's last bit
    gaps = np.abs(np.diff(score))
    clear = np.minimum(np.append(gaps, 1), np.append(1, gaps)) > 2**-22  # nearer scores may change places
    assert clear.sum() > 250
    assert (found[clear, 5] == arrays["post_labels"][clear]).all()
    assert error(found[clear, :4], arrays["post_boxes"][clear]) <= 1e-4
    query, label = np.divmod(arrays["post_flat_index"], 80)
    assert (label == arrays["post_labels"]).all()
    chosen = boxes.sigmoid(output["pred_logits"]).ravel()[arrays["post_flat_index"]]
    assert np.abs(np.sort(found[:, 4]) - np.sort(chosen)).max() == 0
    assert record["post"]["boundary_gap"] > 2**-20


def test_the_threshold_is_a_last_filter_and_one_query_may_give_two_detections():
    logits = np.log(
        np.asarray([[0.9, 0.8, 0.1], [0.7, 0.2, 0.3]]) / (1 - np.asarray([[0.9, 0.8, 0.1], [0.7, 0.2, 0.3]]))
    )
    output = {"pred_logits": logits[None], "pred_boxes": np.asarray([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.2, 0.4, 0.2]]])}
    (found,) = detections(NAME, output, image_size=(100, 200))
    np.testing.assert_allclose(found[:, 4], [0.9, 0.8, 0.7, 0.3, 0.2, 0.1])
    assert found[:, 5].tolist() == [0, 1, 0, 2, 1, 2]
    np.testing.assert_allclose(found[2, :4], [-20, 10, 60, 30], atol=1e-12)  # not clipped
    assert len(detections(NAME, output, image_size=(100, 200), score_threshold=0.75)[0]) == 2
    assert len(detections(NAME, output, image_size=(100, 200), max_detections=4)[0]) == 4
