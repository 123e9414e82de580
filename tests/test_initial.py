"""First values as draws: right starts pass on many seeds; another deviation, distribution, constant fails by name."""

import json

import numpy as np
import pytest

from lib.alignment import initial, references

GOLDEN = references.GOLDEN
SPECS = {
    "nanodet-plus-m_320": "nanodet_plus/spec_m_320_80cls.json",
    "gold-yolo-n": "gold_yolo/spec_gold_yolo-n.json",
    "rtdetr_r18vd": "rt_detr/spec_r18vd.json",
}


def rules_of(model):
    content = json.loads((GOLDEN / SPECS[model]).read_text())
    constants = (".running_mean", ".running_var", ".num_batches_tracked", ".project", ".proj", ".proj_conv.weight")
    rows = content["state_dict"] if "state_dict" in content else content["state"]
    rows = [[*row[:3], "buffer" if row[0].endswith(constants) else "param"] for row in rows]
    return references.initial(model, rows), {name: tuple(shape) for name, shape, *_ in rows}


RULES = {model: rules_of(model) for model in SPECS}
NANODET = "nanodet-plus-m_320"
HEAD, PRIOR = "head.cls_convs.0.0.pointwise.weight", "head.gfl_cls.0.bias"
FEW = {name: rule for i, (name, rule) in enumerate(RULES[NANODET][0].items()) if name in (HEAD, PRIOR) or i % 40 == 0}


def drawn(rules, shapes, seed):
    """First values as another implementation draws them, in its own order and with its own generator."""
    rng, found = np.random.default_rng(seed), {}
    for name, rule in rules.items():
        [(kind, size)] = rule.items()
        if kind == "normal":
            values = rng.normal(0, size, shapes[name])
        elif kind == "uniform":
            values = rng.uniform(-size, size, shapes[name])
        else:
            values = np.broadcast_to(size, shapes[name])
        found[name] = values.astype(np.float32)
    return found


def kept(values):
    return {name.removeprefix("first/"): array for name, array in initial.samples(values).items()}


def failing(rows):
    return {row.name for row in rows if not row.passed}


@pytest.mark.parametrize("model", SPECS)
def test_right_starts_pass(model):
    rules, shapes = RULES[model]
    rows = initial.against(rules, kept(drawn(rules, shapes, 0)))
    assert not failing(rows) and len(rows) == len(rules)


def test_right_starts_of_many_seeds_pass():
    """Layers of every kind, few and many values; 80 seeds, at most one alarm where one in a thousand is meant."""
    rules = {"few": {"normal": 0.3}, "many": {"normal": 0.01}, "bias": {"uniform": 0.2}, "layer": {"uniform": 0.05}}
    shapes = {"few": (27,), "many": (4000,), "bias": (8,), "layer": (64, 9)}
    starts = [kept(drawn(rules, shapes, seed)) for seed in range(80)]
    assert sum(bool(failing(initial.against(rules, start))) for start in starts) <= 1
    assert sum(bool(failing(initial.beside(*pair))) for pair in zip(starts[::2], starts[1::2])) <= 1


def twice(values):
    values[HEAD] = 2 * values[HEAD]


def without_prior(values):
    values[PRIOR] = np.zeros_like(values[PRIOR])


def one_of_many(values):
    values[PRIOR] = values[PRIOR].copy()
    values[PRIOR][-1] = 0


def uniform_of_the_same_deviation(values):
    edge = 0.01 * 3**0.5
    values[HEAD] = np.random.default_rng(5).uniform(-edge, edge, values[HEAD].shape)


def shifted(values):
    values[HEAD] = values[HEAD] + 0.002


def five_roundings(values):
    values[PRIOR] = values[PRIOR] * np.float32(1 + 1e-5)


def filled(values):
    """A single one of these values is a likely draw."""
    values[HEAD] = np.full_like(values[HEAD], 0.01)


def forgotten(values):
    del values[HEAD]


@pytest.mark.parametrize(
    "fault, name",
    [
        (twice, HEAD),
        (without_prior, PRIOR),
        (one_of_many, PRIOR),
        (uniform_of_the_same_deviation, HEAD),
        (shifted, HEAD),
        (five_roundings, PRIOR),
        (filled, HEAD),
        (forgotten, HEAD),
    ],
)
def test_a_start_that_differs_fails_by_the_parameter_s_name(fault, name):
    original, port = (drawn(FEW, RULES[NANODET][1], seed) for seed in (2, 3))
    fault(port)
    assert failing(initial.against(FEW, kept(port))) == {name}
    assert failing(initial.beside(kept(original), kept(port))) == {name}


def test_a_uniform_number_beyond_its_bound_is_seen():
    sample = np.random.default_rng(0).uniform(-1, 1, 500).astype(np.float32)
    sample[3] = 1.01
    [row] = initial.against({"weight": {"uniform": 1.0}}, {"weight": sample})
    assert not row.passed and row.what == "bounds"


def test_published_sizes_are_those_of_the_rules():
    """By hand from the shapes; each that is moved by a tenth fails."""
    rules, shapes = RULES[NANODET]
    assert rules["backbone.conv1.0.weight"] == {"normal": 1 / 3} and rules[PRIOR] == {"constant": -4.595}
    assert rules["fpn.reduce_layers.0.conv.weight"] == {
        "normal": (2 / shapes["fpn.reduce_layers.0.conv.weight"][0]) ** 0.5
    }
    rules, shapes = RULES["rtdetr_r18vd"]
    attention = "encoder.encoder.0.layers.0.self_attn.in_proj_weight"
    assert shapes[attention] == (768, 256) and rules[attention] == {"uniform": (6 / 1024) ** 0.5}
    offsets = rules["decoder.decoder.layers.0.cross_attn.sampling_offsets.bias"]["values"]
    assert len(offsets) == 8 * 3 * 4 * 2 and offsets[:4] == [1, 0, 2, 0] and offsets[24:28] == [1, 1, 2, 2]
    large = {
        name: rule
        for name, rule in RULES[NANODET][0].items()
        if "normal" in rule and np.prod(RULES[NANODET][1][name]) > 4000
    }
    moved = {name: {"normal": 1.2 * rule["normal"]} for name, rule in large.items()}
    assert failing(initial.against(moved, kept(drawn(large, RULES[NANODET][1], 4)))) == set(large)
