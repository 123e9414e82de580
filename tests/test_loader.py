"""Batches: the same for any number of workers and after a resume, bounded, and no thread is left behind."""
import signal
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from lib.data import coco, scenes, transforms
from lib.data.loader import AHEAD, Loader
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


def test_batches_are_the_same_for_any_number_of_workers_and_after_a_resume(drawn):
    one, many = (fingerprint(make(drawn, workers=workers).iter_epoch(2)) for workers in (1, 5))
    assert one == many and len(one) == len(make(drawn)) == 5  # 21 images, the odd one dropped
    assert fingerprint(make(drawn).iter_epoch(2, skip=3)) == one[3:]
    assert fingerprint(make(drawn).iter_epoch(2, skip=5)) == []


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
    program = ("import sys; from lib.data import coco, loader, transforms\n"
               "load = loader.Loader(coco.load(sys.argv[1]), transforms.RECIPES['nanodet_plus'], (320, 320), 4)\n"
               "for epoch in range(10**6):\n"
               "    for batch in load.iter_epoch(epoch): print(batch.ids, flush=True)\n")
    process = subprocess.Popen([sys.executable, "-c", program, str(drawn["train"])], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in errors
