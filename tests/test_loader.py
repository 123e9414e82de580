"""Batches: the same for any number of workers and after a resume, bounded, and no thread is left behind."""

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from lib.data import coco, scenes, transforms
from lib.data.loader import AHEAD, Loader, Pictures
from lib.errors import UserError

RECIPE = transforms.RECIPES["nanodet_plus"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return scenes.generate(tmp_path_factory.mktemp("scenes"), seed=3, train=21, val=5, size=96)


def fingerprint(batches) -> list[str]:
    def parts(batch):
        yield from (batch.images.tobytes(), batch.warps.tobytes(), repr((batch.ids, batch.original_sizes)).encode())
        yield from (target[key].tobytes() for target in batch.targets for key in ("boxes", "labels"))

    return [sha256(b"".join(parts(batch))).hexdigest() for batch in batches]


def make(drawn, split="train", **options):
    options = {"batch": 4, "size": (64, 96), "recipe": RECIPE, "seed": 5, "train": split == "train"} | options
    return Loader(coco.load(drawn[split]), **options)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("recipe", transforms.RECIPES.values(), ids=transforms.RECIPES)
def test_batches_are_the_same_for_any_number_of_workers_and_after_a_resume(drawn, recipe):
    options = {"recipe": recipe, "epochs": 20}
    one, many = (fingerprint(make(drawn, workers=workers, **options).iter_epoch(2)) for workers in (1, 5))
    assert one == many and len(one) == len(make(drawn)) == 5  # 21 images, the odd one dropped
    assert fingerprint(make(drawn, **options).iter_epoch(2, skip=3)) == one[3:]
    assert fingerprint(make(drawn, **options).iter_epoch(2, skip=5)) == []
    used = make(drawn, **options)
    list(used.iter_epoch(1))
    assert fingerprint(used.iter_epoch(2)) == one  # images that are kept are the images


def test_the_last_epochs_of_a_run_are_those_of_the_recipe(drawn):
    recipe = transforms.RECIPES["gold_yolo"]
    first, last = (fingerprint(make(drawn, recipe=recipe, epochs=20).iter_epoch(epoch)) for epoch in (18, 19))
    assert first == fingerprint(make(drawn, recipe=recipe).iter_epoch(18))  # no length: no end
    assert last == fingerprint(make(drawn, recipe=recipe.at(19, 20)).iter_epoch(19))
    assert last != fingerprint(make(drawn, recipe=recipe).iter_epoch(19))


def test_images_are_decoded_once_while_there_is_room(drawn, monkeypatch):
    read, image = [], coco.read_image
    monkeypatch.setattr(coco, "read_image", lambda entry: read.append(entry.id) or image(entry))
    loader = make(drawn, recipe=transforms.RECIPES["gold_yolo"], workers=1)
    for epoch in (0, 1):
        list(loader.iter_epoch(epoch))
    assert sorted(read) == list(range(1, 22))  # of 160 that two epochs of mosaics ask for


def test_kept_images_are_bounded_and_the_ones_used_last(drawn, monkeypatch):
    dataset = coco.load(drawn["train"])
    sizes = [entry.width * entry.height * 3 for entry in dataset.images]
    pictures = Pictures(dataset, memory=sum(sizes[:3]))
    for index in (0, 1, 2, 0, 3):
        np.testing.assert_array_equal(pictures[index].image, coco.read_image(dataset.images[index]))
    kept = list(pictures._kept)
    assert kept[-2:] == [0, 3] and 1 not in kept
    assert sum(image.nbytes for image in pictures._kept.values()) == pictures._bytes <= sum(sizes[:3])
    with pytest.raises(ValueError, match="read-only"):
        pictures[0].image[0] = 0
    assert len(pictures) == 21
    nothing = Pictures(dataset, memory=0)
    assert nothing[4].image.shape == (dataset.images[4].height, dataset.images[4].width, 3) and not nothing._kept


def test_epochs_and_seeds_differ(drawn):
    sets = [fingerprint(make(drawn, seed=seed).iter_epoch(epoch)) for seed, epoch in ((5, 2), (5, 3), (6, 2))]
    assert len({digest for digests in sets for digest in digests}) == 15


def test_a_training_batch_holds_what_the_criterion_needs(drawn):
    batch = next(make(drawn).iter_epoch(0))
    assert batch.images.shape == (4, 3, 64, 96) and batch.images.dtype == np.float32
    assert batch.warps.shape == (4, 3, 3) and len(batch.ids) == len(batch.original_sizes) == 4
    for target in batch.targets:
        assert target["boxes"].dtype == np.float32 and target["labels"].dtype == np.int64
        assert len(target["boxes"]) == len(target["labels"])
        assert (target["boxes"] >= 0).all() and (target["boxes"] <= [96, 64, 96, 64]).all()


def test_validation_takes_every_image_in_order(drawn):
    batches = list(make(drawn, "val").iter_epoch(0))
    assert [batch.ids for batch in batches] == [(1, 2, 3, 4), (5,)]
    entry, scale = coco.load(drawn["val"]).images[0], (96, 64)
    factor = np.array([*scale, *scale]) / [entry.width, entry.height, entry.width, entry.height]
    np.testing.assert_allclose(batches[0].targets[0]["boxes"], entry.boxes * factor, rtol=1e-6)


def test_too_few_images_for_a_batch(drawn):
    with pytest.raises(UserError, match="21 images, fewer than one batch of 22"):
        make(drawn, batch=22)


def test_one_image_is_enough_for_a_mosaic(drawn):
    dataset = coco.load(drawn["train"])
    alone = replace(dataset, images=dataset.images[:1])
    (batch,) = Loader(alone, transforms.RECIPES["gold_yolo"], (64, 64), batch=1).iter_epoch(0)
    assert batch.images.shape == (1, 3, 64, 64)


def test_a_damaged_image_stops_the_epoch_with_its_name(tmp_path):
    drawn = scenes.generate(tmp_path, train=1, val=9, size=64)
    file = tmp_path / "images/val/000005.png"
    file.write_bytes(file.read_bytes()[:100])
    batches = make(drawn, "val", batch=2, workers=3).iter_epoch(0)
    assert [next(batches).ids, next(batches).ids] == [(1, 2), (3, 4)]
    with pytest.raises(UserError, match=r"000005\.png: image 6 is cut short"):
        next(batches)
    assert not loader_threads()


def test_closing_early_leaves_no_thread_and_prefetching_is_bounded(drawn, monkeypatch):
    read, image = [], coco.read_image
    monkeypatch.setattr(coco, "read_image", lambda entry: read.append(entry.id) or image(entry))
    batches = make(drawn, workers=4, batch=2).iter_epoch(0)
    next(batches)
    batches.close()
    assert not loader_threads()
    assert 2 <= len(read) <= (AHEAD + 1) * 2


def test_ctrl_c_ends_a_program_at_once(drawn):
    program = (
        "import sys; from lib.data import coco, loader, transforms\n"
        "load = loader.Loader(coco.load(sys.argv[1]), transforms.RECIPES['nanodet_plus'], (320, 320), 4)\n"
        "for epoch in range(10**6):\n"
        "    for batch in load.iter_epoch(epoch): print(batch.ids, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(drawn["train"])],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in errors
