"""The recipe's numbers are the published ones, and not one of them can be moved unseen."""

import importlib
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lib import losses, models, postprocess
from lib.alignment import recipe, references
from lib.alignment.questions import learning
from lib.alignment.questions.pair import Pair
from lib.alignment.verdict import Verdict
from lib.data import transforms
from lib.families import family, size_of
from lib.record import plain
from lib.training import schedule

PLACES = {"losses": "lib.losses", "model": "lib.models", "transforms": "lib.data.transforms"}


@pytest.fixture(scope="module")
def network():
    """A model's network, built once: only the names of its parameters are asked."""
    kept = {}

    def built(name):
        if name not in kept:
            kept[name] = models.build(name, seed=None)
        return kept[name]

    return built


def wrong(name, network):
    """The numbers that are not as published, by the question of the report; and how many it asks."""
    held = {"published": plain(references.recipe(name)), "torch": plain(recipe.numbers(name, network))}
    evidence = SimpleNamespace(field=lambda side, *_: held[side], run_id=lambda *_: "")
    found = learning.recipe(Pair(evidence, "recipe", "convert", "published", "torch"))
    failing = [row.name for row in found.rows if not row.passed]
    assert (found.verdict is Verdict.FAIL) == bool(failing)
    return failing, len(found.rows)


@pytest.mark.parametrize("name", ["nanodet-plus-m_416", "gold-yolo-s", "gold-yolo-n-fuse-ab", "rtdetr_r34vd"])
def test_the_recipe_is_the_published_one(name, network):
    failing, asked = wrong(name, network(name))
    assert failing == [] and asked > 60


@pytest.mark.parametrize("name", models.NAMES)
def test_every_variant_has_the_published_recipe(name, monkeypatch):
    """But for its groups, which need the network."""
    monkeypatch.setattr(models, "parameter_groups", lambda *_: ())
    failing, _ = wrong(name, None)
    assert [key for key in failing if not key.startswith("group")] == []


def step(value):
    """The value, moved by one step in one place."""
    if isinstance(value, dict):
        first = next(iter(value))
        return value | {first: step(value[first])}
    if isinstance(value, tuple):
        return (step(value[0]), *value[1:]) if value else (1,)
    if isinstance(value, str):
        return {"siou": "giou", "giou": "siou"}.get(value, value + "'")
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) or value == 0 else 35.0 if value == math.inf else value * 1.1


def move(patch, name, network, key):
    """Change a number where the code has it."""
    place, what = key.split("/", 1) if "/" in key else (key, "")
    if place in PLACES:
        module = importlib.import_module(f"{PLACES[place]}.{family(name)}")
        patch.setattr(module, what, step(getattr(module, what)))
    elif place == "evaluation" and what.isupper():
        patch.setattr(postprocess, what, step(getattr(postprocess, what)))
    elif place in ("training", "augmentation", "evaluation", "variant"):
        module = {"training": schedule, "augmentation": transforms, "evaluation": postprocess}.get(place)
        if module:
            held = {"training": schedule.recipe, "augmentation": transforms.recipe, "evaluation": postprocess.settings}
            own = held[place](name)
            patch.setattr(module, held[place].__name__, lambda _: replace(own, **{what: step(getattr(own, what))}))
        else:
            variants = importlib.import_module(f"lib.models.{family(name)}").VARIANTS
            patch.setitem(variants, name, replace(variants[name], **{what: step(getattr(variants[name], what))}))
    elif place == "criterion":
        criterion, (*branch, last) = losses.build(name), what.split("/")
        owner = criterion.branch if branch else criterion
        value = getattr(owner, last)
        setattr(owner, last, len if callable(value) else step(value))
        patch.setattr(losses, "build", lambda _: criterion)
    else:
        groups, at = models.parameter_groups(name, network), int(place.removeprefix("group "))
        changed = [replace(groups[at], decays=not groups[at].decays)] if not what else [replace(groups[at], names=())]
        patch.setattr(models, "parameter_groups", lambda *_: (*groups[:at], *changed, *groups[at + 1 :]))


@pytest.mark.parametrize("name", ["nanodet-plus-m_416", "gold-yolo-n-fuse-ab", "gold-yolo-s", "rtdetr_r34vd"])
def test_no_number_moves_unseen(name, network):
    for key in recipe.numbers(name, network(name)):
        if key.endswith("/tensors") and name != size_of(name):
            continue  # published of the sizes alone
        with pytest.MonkeyPatch.context() as patch:
            move(patch, name, network(name), key)
            failing, _ = wrong(name, network(name))
            assert any(one == key or one.startswith(f"{key}, ") for one in failing), key


def test_what_the_catalogue_of_faults_does_not_have(network, monkeypatch):
    """Candidates of ATSS, another size's box loss, colour gains in another order: shared by both frameworks."""
    monkeypatch.setattr(losses.gold_yolo, "ATSS_TOP_K", 10)
    small, nano = (losses.gold_yolo.VARIANTS[f"gold-yolo-{size}"] for size in "sn")
    monkeypatch.setitem(losses.gold_yolo.VARIANTS, "gold-yolo-s", replace(small, iou=nano.iou))
    colours = transforms.recipe("gold-yolo-s").colours
    own = replace(transforms.recipe("gold-yolo-s"), colours=colours[::-1])
    monkeypatch.setattr(transforms, "recipe", lambda _: own)
    failing, _ = wrong("gold-yolo-s", network("gold-yolo-s"))
    assert set(failing) == {
        "losses/ATSS_TOP_K",
        "variant/iou",
        "criterion/box_loss",
        "augmentation/colours, 0",
        "augmentation/colours, 2",
    }
