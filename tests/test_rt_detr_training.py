"""RT-DETR's training step against the published numbers (tests/golden/rt_detr); runs in both environments.

The gentle case judges everything. Plain seeded weights make the decoder chaotic (the published float32 gradients carry
noise of 5 % there): their losses and matchings are judged, their gradients only in float64.
"""

from functools import cache

import numpy as np
import pytest
from rt_detr_cases import (
    FACTOR,
    NAME,
    SHARP,
    TYPES,
    Replay,
    error,
    image,
    matchings,
    published_tables,
    read,
    seeded_model,
    step,
    targets,
)

from lib import backend, losses, models
from lib.alignment import by_family
from lib.alignment.capture import features
from lib.models.rt_detr import Denoising, denoising, truths
from lib.models.step import Step
from lib.training.loop import clip

GENTLE, PLAIN = "train_r18vd_gentle", "train_r18vd"
# How far the records' float32 margins of a matching lie from float64, at most; the float64 runs here assert it.
MARGIN_NOISE = {GENTLE: 2e-4, PLAIN: 1.3e-2}
MEAN_BOX_NOISE = 5e-7  # of the gentle case's published float32 predictions (fact sheet, section 12)


@cache
def run_once(kind, name, variant):
    """Losses, gradients, outputs, statistics and the parameters' changes in the published first step."""
    record, arrays = read(name)
    model = seeded_model(kind, record["weight_overrides"]).train()
    model.step = step(record, arrays, variant)
    criterion = losses.build(NAME, 80)
    aifi = {"aifi": ("encoder.encoder.0", None)}
    with pytest.MonkeyPatch.context() as patch, published_tables(patch), features(model, aifi) as found:
        outputs = model(backend.tensor(image(record, kind)))
        scalars = criterion(outputs, targets(record), image_size=(320, 320))
        names, parameters = zip(*model.named_parameters())
        gradients = backend.grad(sum(scalars.values()), list(parameters))
    result = {
        "sizes": {entry: backend.numpy(value).size for entry, value in zip(names, parameters)},
        "name": name,
        "variant": variant,
        "exact": kind == "f64",
        "record": record,
        "arrays": arrays,
        "published": record["variants"][variant],
        "losses": dict(zip(scalars, backend.floats(list(scalars.values())))),
        "aifi": found["aifi"],
        "gradients": {
            entry: summary(backend.numpy(gradient), f"dn/grad64/{entry}" in arrays)
            for entry, gradient in zip(names, gradients)
        },
        "matches": matchings(outputs, targets(record), (320, 320), 80),
        "named": by_family.named(NAME, outputs, {}),
        "decisions": by_family.decisions(NAME, criterion, outputs, targets(record), (320, 320)),
        "tokens": backend.numpy(outputs["selected_tokens"]),
        "state": {
            entry: backend.numpy(value).copy()
            for entry, value in backend.named_state(model)
            if "running" in entry or "tracked" in entry
        },
    }
    groups, named = models.parameter_groups(NAME, model), dict(zip(names, gradients))
    clipped, norm = clip(
        [named[entry] for group in groups for entry in group.names], record["optimizer"]["clip_max_norm"]
    )
    result["norm"] = backend.floats([norm])[0]
    if (name, variant) == (GENTLE, "dn"):  # whose step is in the record
        changes, result["residuals"] = published_step(model, groups, clipped, record["optimizer"])
        result["changes"] = {entry: change for entry, change in changes.items() if f"dn/step64/{entry}" in arrays}
    return result


def summary(gradient, whole):
    """A gradient's norm, mean and, where the record has it in full, values."""
    gradient = gradient.astype(np.float64)
    return np.linalg.norm(gradient), gradient.mean(), gradient if whole else None


def published_step(model, groups, clipped, settings):
    """One AdamW step in the published groups -> every parameter's change, and by how many roundings of the parameter a
    change deviates from the rule applied to its own clipped gradient."""
    named = dict(model.named_parameters())
    before = {entry: backend.numpy(value).astype(np.float64) for entry, value in named.items()}
    optimiser = backend.AdamW(
        [
            {
                "parameters": [(entry, named[entry]) for entry in group.names],
                "lr": 1e-4 * group.learning_rate_factor,
                "weight_decay": 1e-4 * group.decays,
            }
            for group in groups
        ],
        lr=1e-4,
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
        weight_decay=1e-4,
    )
    optimiser.step(clipped)
    changes = {entry: backend.numpy(value) - before[entry] for entry, value in model.named_parameters()}
    residuals, scaled = {}, iter(clipped)
    for group, published in zip(groups, settings["groups"], strict=True):
        for entry in group.names:
            gradient = backend.numpy(next(scaled)).astype(np.float64)
            rule = -published["lr"] * (
                gradient / (np.abs(gradient) + settings["eps"]) + published["weight_decay"] * before[entry]
            )
            rounding = np.finfo(backend.numpy(named[entry]).dtype).eps * (np.abs(before[entry]) + published["lr"])
            residuals[entry] = (np.abs(changes[entry] - rule) / rounding).max()
    return changes, residuals


def runs(names, variants):
    """Fixture parameters; float64 is slow in Jittor, where it compiles for minutes."""
    return [
        pytest.param(
            (kind, name, variant), id="-".join((kind, name, variant)), marks=pytest.mark.slow if kind == "f64" else ()
        )
        for kind in TYPES
        for name in names
        for variant in variants
    ]


@pytest.fixture(params=runs((GENTLE, PLAIN), ("dn", "nodn")))
def run(request):
    return run_once(*request.param)


@pytest.fixture(params=runs((GENTLE,), ("dn", "nodn")))
def gentle(request):
    return run_once(*request.param)


@pytest.fixture(params=runs((GENTLE,), ("dn",)))
def recorded(request):
    """The run whose gradients, step and predictions are in the record as arrays."""
    return run_once(*request.param)


def test_every_loss_as_published(run):
    published, ours = run["published"], run["losses"]
    assert list(ours) == list(published["losses_f64"])
    rel = SHARP if run["exact"] else FACTOR * published["loss_max_rel_diff_f32_f64"]
    assert ours == pytest.approx(published["losses_f64"], rel=rel, abs=0)
    assert sum(ours.values()) == pytest.approx(published["total_f64"], rel=rel, abs=0)


def test_matchings_as_published_where_the_margin_exceeds_the_noise(run):
    """Queries are compared as tokens: near-ties of the selection leave their order to rounding. In float32 a matching
    may differ whose second best is nearer than FACTOR times the margins' noise."""
    published, judged = run["published"], 0
    for ours, theirs in zip(run["tokens"], run["arrays"].get("dn/topk_ind", run["tokens"]), strict=True):
        assert set(ours) == set(theirs)
    assert list(run["matches"]) == ["", "_aux_0", "_aux_1", "_aux_2"]
    for (suffix, images), theirs in zip(run["matches"].items(), published["matches"], strict=True):
        table = run["decisions"][f"matched_tokens/{suffix.removeprefix('_') or 'final'}"]
        for index, (matching, gap) in enumerate(images):
            pairs = [[int(run["tokens"][index][q]), int(b)] for q, b in zip(matching.queries, matching.boxes)]
            margin, noise = theirs["second_best_gap"][index], MARGIN_NOISE[run["name"]]
            if run["exact"] or run["name"] == GENTLE:
                assert gap == pytest.approx(margin, abs=noise * (1 if run["exact"] else FACTOR))
            if run["exact"] or margin > FACTOR * noise:
                assert sorted(pairs) == sorted(theirs["tokens"][index])
                judged += 1
            else:  # too close to call: the other assignment must be as close to ours
                assert 0 <= gap <= margin + FACTOR * noise
            assert sorted(pairs) == sorted(
                [token, box] for box, token in enumerate(table[index].tolist()) if token >= 0
            )
    assert judged == (8 if run["exact"] or run["name"] == GENTLE else 7)


def test_total_gradient_as_published(run):
    single, double = (run["published"][f"total_grad_norm_before_clip{end}"] for end in ("", "_f64"))
    assert run["norm"] == pytest.approx(double, rel=SHARP if run["exact"] else FACTOR * abs(single / double - 1))


def test_every_gradient_as_published(gentle):
    published, exact = gentle["published"], gentle["exact"]
    assert set(gentle["gradients"]) == set(published["params"])
    for name, entry in published["params"].items():
        norm, mean, values = gentle["gradients"][name]
        if name in published["negligible_grads"] or name in published["params_without_grad"]:
            assert norm <= (1e-14 if exact else 1e-8) * gentle["norm"], name  # the true gradient is zero
            continue
        scale, size = entry["grad_l2_f64"], gentle["sizes"][name]
        allowed = (SHARP if exact else FACTOR * entry["grad_rel_l2_err_f32"]) * scale
        assert abs(norm - scale) <= allowed, name
        assert abs(mean - entry["grad_mean_f64"]) <= allowed / size**0.5, name
        if values is not None and gentle["variant"] == "dn":
            assert np.linalg.norm(values - gentle["arrays"][f"dn/grad64/{name}"]) <= allowed, name


def test_the_padding_embedding_learns_nothing(recorded):
    table = recorded["gradients"]["decoder.denoising_class_embed.weight"][2]
    assert not table[80].any() and table[:80].any()


def test_batch_norm_statistics_as_published(recorded):
    for name, entry in recorded["published"]["bn_after"].items():
        assert recorded["state"][f"{name}.num_batches_tracked"] == entry["num_batches_tracked"]
        for statistic in ("running_mean", "running_var"):
            ours, key = recorded["state"][f"{name}.{statistic}"], f"dn/bn64/{name}.{statistic}"
            exact, rounded = recorded["arrays"][key], recorded["arrays"][key.replace("bn64", "bn")]
            allowed = SHARP * np.abs(exact).max() if recorded["exact"] else FACTOR * error(rounded, exact)
            assert error(ours, exact) <= allowed, key


def test_one_optimiser_step_as_published(recorded):
    """Clipped to 0.1, then AdamW in the published groups.

    How the rule was applied to our own gradient shows in the residuals, for every parameter. In float32 a gradient
    element within its noise may take the other sign and with it a whole step, so the steps of the others are compared:
    a step of rate * g / (|g| + eps) moves by at most rate * |dg / g|, and dg is taken as five times FACTOR published
    deviations.
    """
    assert max(recorded["residuals"].values()) <= 4
    assert len(recorded["changes"]) == 19
    surely, total = 0, 0
    for name, change in recorded["changes"].items():
        exact, gradient = (recorded["arrays"][f"dn/{kind}/{name}"] for kind in ("step64", "grad64"))
        if recorded["exact"]:
            assert np.linalg.norm(change - exact) <= 1e-8 * np.linalg.norm(exact), name
        entry = recorded["published"]["params"][name]
        noise = 5 * FACTOR * entry["grad_rel_l2_err_f32"] * entry["grad_l2_f64"] / gradient.size**0.5
        rate, sure = recorded["record"]["optimizer"]["groups"][entry["group"]]["lr"], np.abs(gradient) > noise
        allowed = rate * noise / np.abs(gradient[sure]) + 4e-7  # roundings of parameters of the order 1
        assert (np.abs(change - exact)[sure] <= allowed).all(), name
        surely, total = surely + np.count_nonzero(sure), total + sure.size
    assert surely > 0.6 * total


def test_predictions_and_attention_as_published(recorded):
    """Per decoder layer, and for the denoising queries; the selected queries are aligned by their token."""
    floor = recorded["record"]["full_noise_max_abs_f32_f64"]["encoder.encoder.0"]
    assert error(recorded["aifi"], recorded["arrays"]["full/encoder.encoder.0"]) <= FACTOR * floor
    order = np.argsort(recorded["arrays"]["dn/topk_ind"], 1)[:, :, None]  # ours are in the order of tokens already
    for name in ("final", "aux_0", "aux_1", "aux_2", "dn_0", "dn_1", "dn_2"):
        one, other = recorded["named"][f"{name}/pred_boxes"], recorded["arrays"][f"dn/{name}/pred_boxes"]
        if not name.startswith("dn"):
            other = np.take_along_axis(other, order, 1)
        assert np.abs(one.astype(np.float64) - other).mean() <= FACTOR * MEAN_BOX_NOISE, name


# ----------------------------------------------------------------------------------------------------- denoising
def test_denoising_queries_as_published():
    record, arrays = read("train_r18vd_gentle")
    noised = denoising(truths(targets(record), (320, 320), 80), 80, Replay(arrays))
    assert noised.groups == record["denoising"]["num_group"]
    assert (noised.labels == arrays["dn_input_class"]).all()
    wide = np.abs(arrays["dn_bbox_unact"]) < 3  # the logit magnifies rounding near the ends
    assert np.abs(noised.boxes - arrays["dn_bbox_unact"])[wide].max() <= 3e-6
    assert np.abs(noised.boxes - arrays["dn_bbox_unact"]).max() <= 1e-4
    assert ((noised.blocks(300) < 0) == arrays["dn_attn_mask"]).all()
    for image_index, places in enumerate(noised.positives):
        assert (places == arrays[f"dn_positive_idx_{image_index}"]).all()
    meta = noised.meta(300)
    assert list(meta["dn_num_split"]) == record["denoising"]["dn_num_split"]


def train_outputs(images, given, random, num_classes=5):
    model = models.build(NAME, num_classes).train()
    model.step = Step(random=random, targets=given)
    return model, model(backend.tensor(images))


def some_targets(*counts):
    rng = np.random.default_rng(7)
    found = []
    for count in counts:
        low = rng.uniform(0, 60, (count, 2))
        found.append(
            {
                "boxes": np.concatenate([low, low + rng.uniform(4, 40, (count, 2))], 1).astype(np.float32),
                "labels": rng.integers(0, 5, count),
            }
        )
    return found


def test_main_loss_never_sees_the_denoising_queries(monkeypatch):
    """The 300 queries predict the same bytes whatever noise stands in front of them, and no matched loss reads a
    denoising prediction; with the attention mask taken away both would change."""
    images = np.random.default_rng(3).random((2, 3, 96, 96), np.float32)
    given, criterion = some_targets(2, 3), losses.build(NAME, 5)
    found = []
    for seed in (1, 2):
        _, outputs = train_outputs(images, given, np.random.default_rng(seed))
        for prediction in outputs["dn_aux_outputs"]:
            assert prediction["pred_logits"].shape[1] == outputs["dn_meta"]["dn_num_split"][0]
        assert outputs["pred_logits"].shape[1] == 189 == outputs["dn_meta"]["dn_num_split"][1]
        scalars = criterion(outputs, given, image_size=(96, 96))
        found.append(
            (dict(zip(scalars, backend.floats(list(scalars.values())))), backend.numpy(outputs["pred_logits"]))
        )
    (first, logits), (second, others) = found
    assert (logits == others).all()
    assert [name for name in first if first[name] != second[name]] == [name for name in first if "_dn_" in name]
    without = {key: value for key, value in outputs.items() if not key.startswith("dn_")}
    alone = criterion(without, given, image_size=(96, 96))
    assert dict(zip(alone, backend.floats(list(alone.values())))) == {
        n: v for n, v in second.items() if "_dn_" not in n
    }
    monkeypatch.setattr(Denoising, "blocks", lambda self, others: np.zeros(2 * [self.labels.shape[1] + others]))
    _, leaking = train_outputs(images, given, np.random.default_rng(2))
    assert error(backend.numpy(leaking["pred_logits"]), others) > 1e-2


def test_noise_depends_on_the_generator_alone_and_none_means_none():
    given = truths(some_targets(2, 0, 3), (96, 96), 5)
    first, second = (denoising(given, 5, np.random.default_rng(4)) for _ in range(2))
    assert (first.boxes == second.boxes).all() and (first.labels == second.labels).all()
    assert first.groups == 100 // 3 and first.labels.shape == (3, 2 * 3 * 33)
    assert (first.labels[1] == 5).all() and len(first.positives[1]) == 0
    assert denoising(given, 5, None) is None
    assert denoising(truths(some_targets(0, 0), (96, 96), 5), 5, np.random.default_rng(4)) is None
    many = denoising(truths(some_targets(120), (96, 96), 5), 5, np.random.default_rng(4))
    assert many.groups == 1 and many.labels.shape == (1, 240)


def test_multi_scale_resizes_the_batch_and_not_the_targets():
    model = models.build(NAME, 5).train()
    model.multi_scale = (64,)
    images = np.random.default_rng(3).random((2, 3, 96, 96), np.float32)
    given = some_targets(2, 1)
    model.step = Step(random=np.random.default_rng(0), targets=given)
    outputs = model(backend.tensor(images))
    assert outputs["pred_boxes"].shape[1] == 8 * 8 + 4 * 4 + 2 * 2
    total = sum(backend.floats(list(losses.build(NAME, 5)(outputs, given, image_size=(96, 96)).values())))
    assert np.isfinite(total)
    model.step = Step(targets=given)
    assert model(backend.tensor(images))["pred_boxes"].shape[1] == 189  # nothing random: no resizing
    model.step = Step(random=np.random.default_rng(0), targets=given)
    with backend.no_grad():
        assert model.eval()(backend.tensor(images))["pred_boxes"].shape[1] == 189


def test_a_frozen_stem_learns_nothing_and_the_rest_does():
    model = models.build("rtdetr_r50vd_m", 5).train()
    given = some_targets(1, 2)
    model.step = Step(random=np.random.default_rng(0), targets=given)
    outputs = model(backend.tensor(np.random.default_rng(3).random((2, 3, 64, 64), np.float32)))
    names, parameters = zip(*model.named_parameters())
    total = sum(losses.build("rtdetr_r50vd_m", 5)(outputs, given, image_size=(64, 64)).values())
    gradients = dict(zip(names, backend.grad(total, list(parameters))))
    assert model.frozen_names and not any(backend.numpy(gradients[name]).any() for name in model.frozen_names)
    assert backend.numpy(gradients["backbone.res_layers.0.blocks.0.branch2a.conv.weight"]).any()
    still = {name for name in names if not backend.numpy(gradients[name]).any()} - set(model.frozen_names)
    assert not [name for name in still if name.startswith(("encoder.", "decoder.dec_score", "decoder.enc_score"))]
