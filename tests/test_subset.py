"""Subsets of a COCO file: the same everywhere, renumbered classes, images left in place, and what is refused."""

import json
import random
from hashlib import sha256

import numpy as np
import pytest

from lib.data import coco, formats, scenes, sets
from lib.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A COCO file of 40 drawn scenes in COCO's layout, with gaps between the category ids and one crowd."""
    folder = tmp_path_factory.mktemp("coco")
    drawn = scenes.generate(folder / "drawn", seed=3, train=40, val=1, size=64)["train"]
    document = json.loads(drawn.read_text())
    for category in document["categories"]:
        category["id"] *= 7
    for annotation in document["annotations"]:
        annotation["category_id"] *= 7
        annotation["segmentation"] = [[1, 2, 3, 4, 5, 6]]
    document["annotations"][0]["iscrowd"] = 1
    (folder / "annotations").mkdir()
    (folder / "drawn/images").rename(folder / "train2017")
    path = folder / "annotations/instances_train2017.json"
    path.write_text(json.dumps(document))
    return path


def digests(paths) -> dict[str, str]:
    return {split: sha256(path.read_bytes()).hexdigest() for split, path in paths.items()}


def test_a_subset_is_a_sound_data_set_of_images_that_stay_in_place(source, tmp_path):
    paths = sets.subset(source, tmp_path / "small", train=16, val=4)
    assert coco.splits(tmp_path / "small") == (paths["train"], paths["val"])
    train, val = (coco.load(paths[split]) for split in ("train", "val"))
    whole = coco.load(source)
    assert (len(train.images), len(val.images)) == (16, 4)
    assert not {entry.id for entry in train.images} & {entry.id for entry in val.images}
    assert train.classes == val.classes == whole.classes and train.category_ids == tuple(range(1, 11))
    assert formats.verify(paths["train"]) == []
    by_id = {entry.id: entry for entry in whole.images}
    for entry in (*train.images, *val.images):
        original = by_id[entry.id]
        assert len(entry.boxes) and entry.file.samefile(original.file)
        np.testing.assert_array_equal(entry.boxes, original.boxes)
        np.testing.assert_array_equal(entry.labels, original.labels)
        np.testing.assert_array_equal(entry.crowd, original.crowd)
    assert sorted(file.name for file in (tmp_path / "small").iterdir()) == ["images", "train.json", "val.json"]
    assert (tmp_path / "small/images").is_symlink()
    kept = json.loads(paths["train"].read_text())["annotations"][0]
    assert "area" in kept and "segmentation" not in kept


def test_chosen_classes_keep_their_order_and_only_their_boxes(source, tmp_path):
    whole = coco.load(source)
    train = coco.load(sets.subset(source, tmp_path, train=6, val=2, classes=3, seed=1)["train"])
    assert len(train.classes) == 3 and train.category_ids == (1, 2, 3)
    ranks = [whole.classes.index(name) for name in train.classes]
    assert ranks == sorted(ranks)
    by_id = {entry.id: entry for entry in whole.images}
    for entry in train.images:
        original = by_id[entry.id]
        wanted = np.isin(original.labels, ranks)
        assert wanted.any() and [ranks[label] for label in entry.labels] == original.labels[wanted].tolist()
        np.testing.assert_array_equal(entry.boxes, original.boxes[wanted])


def test_the_same_seed_gives_the_same_bytes_whatever_the_order_of_the_file(source, tmp_path):
    document = json.loads(source.read_text())
    for entries in (document["images"], document["annotations"], document["categories"]):
        random.Random(0).shuffle(entries)
    other = tmp_path / "annotations" / source.name
    other.parent.mkdir()
    other.write_text(json.dumps(document))
    (tmp_path / "train2017").symlink_to(source.parent.parent / "train2017")
    options = {"train": 10, "val": 3, "classes": 5}
    first, second, seeded = (
        digests(sets.subset(path, tmp_path / name, seed=seed, **options))
        for path, name, seed in ((source, "a", 2), (other, "b", 2), (source, "c", 3))
    )
    assert first == second != seeded
    assert digests(sets.subset(source, tmp_path / "a", seed=2, **options)) == first  # again changes nothing


def test_the_choice_is_pinned():
    """No library's dice: a release that chose otherwise would compare runs on different data."""
    assert sets._drawn(range(10), "image", 0) == [1, 9, 2, 7, 5, 6, 3, 4, 8, 0]


def test_a_larger_subset_keeps_the_validation_images_and_contains_the_smaller(source, tmp_path):
    small, large = (sets.subset(source, tmp_path / str(train), train=train, val=4) for train in (8, 20))
    ids = [
        [{entry.id for entry in coco.load(paths[split]).images} for split in ("train", "val")]
        for paths in (small, large)
    ]
    assert ids[0][1] == ids[1][1] and ids[0][0] < ids[1][0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"train": 100}, "fewer than 100"),
        ({"train": 0}, "train 0"),
        ({"val": 0}, "val 0"),
        ({"seed": -1}, "seed -1"),
        ({"classes": 11}, "has 10 classes, 11"),
        ({"classes": 0}, "0 were asked for"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(source, tmp_path, options, named):
    with pytest.raises(UserError, match=named) as caught:
        sets.subset(source, tmp_path / "new", **({"train": 5, "val": 2} | options))
    assert "\n" not in str(caught.value) and ";" in str(caught.value) and not (tmp_path / "new").exists()


def test_another_data_set_is_left_alone(source, tmp_path):
    sets.subset(source, tmp_path, train=5, val=2)
    before = (tmp_path / "train.json").read_bytes()
    with pytest.raises(UserError, match=r"json: is another data set or another choice; choose another folder"):
        sets.subset(source, tmp_path, train=5, val=2, seed=1)
    assert (tmp_path / "train.json").read_bytes() == before
    (tmp_path / "own/images").mkdir(parents=True)
    with pytest.raises(UserError, match=r"images: is no link"):
        sets.subset(source, tmp_path / "own", train=5, val=2)
    assert [file.name for file in (tmp_path / "own").iterdir()] == ["images"]


def test_a_link_that_leads_astray_is_set_right(source, tmp_path):
    (tmp_path / "images").symlink_to(tmp_path / "gone")
    assert coco.load(sets.subset(source, tmp_path, train=5, val=2)["val"]).images
