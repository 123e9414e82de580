"""Checkpoints as the published code of each detector saves them, read in either framework, equal to the last bit.

They are written by an imitation of that code in the environment of PyTorch, with classes of a package that is gone when
they are read.
"""

import subprocess
import sys

import numpy as np
import pytest

from lib import convert, models
from lib.errors import UserError
from lib.machine import environment
from lib.training import checkpoints, pretrained

PACKAGE = '''
"""Classes that only whoever wrote the checkpoint has."""
import torch


class Block(torch.nn.Module):
    """Any module: entries by name, some of them further modules."""

    def __init__(self, entries):
        super().__init__()
        self.stride, self.inplace = torch.tensor([8, 16, 32]), {"a": {1, 2}}  # what is no entry
        self.register_buffer("grid", torch.zeros(3), persistent=False)
        parts = {}
        for name, value in entries.items():
            first, _, rest = name.partition(".")
            if rest:
                parts.setdefault(first, {})[rest] = value
            elif first in ("running_mean", "running_var", "num_batches_tracked"):
                self.register_buffer(first, value)
            else:
                setattr(self, first, torch.nn.Parameter(value, requires_grad=value.is_floating_point()))
        for first, inner in parts.items():
            self.add_module(first, Block(inner))
        self.register_parameter("unused", None)


class Config(dict):
    pass
'''
WRITER = """
import argparse, collections, datetime, pathlib, sys, shutil

root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
import numpy as np, torch
from elsewhere import Block, Config

own = [torch.nn.Parameter(torch.ones(3))]
optimizer = torch.optim.AdamW(own)
own[0].sum().backward()
optimizer.step()
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1000])
beside = {
    "optimizer": optimizer.state_dict(),
    "lr_scheduler": scheduler.state_dict(),
    "args": argparse.Namespace(path=pathlib.Path("/data"), when=datetime.datetime(2024, 1, 1), names={"a", "b"}),
    "config": Config(lr=1),
    "results": np.float64(0.3),
}
for folder in map(pathlib.Path, sys.argv[2:]):
    kind = folder.name
    last = {name: torch.from_numpy(array) for name, array in np.load(folder / "last.npz").items()}
    averaged = {name: torch.from_numpy(array) for name, array in np.load(folder / "averaged.npz").items()}
    if kind == "nanodet":  # lightning, and its best file
        state = {f"model.{name}": value for name, value in last.items()}
        state |= {f"avg_model.{name}": value for name, value in averaged.items()}
        callbacks = {Config: {"best_model_path": pathlib.Path("x"), "best": torch.tensor(0.3)}}
        content = {"state_dict": state, "callbacks": callbacks, "optimizer_states": [beside], "hyper": Config(a=1)}
        torch.save(content, folder / "both.ckpt")
        torch.save({"state_dict": averaged}, folder / "averaged.pth")
    elif kind == "gold_yolo":  # whole modules in half precision
        content = {"model": Block(last).half(), "ema": Block(averaged).half(), "updates": 9, "epoch": 3, **beside}
        torch.save(content, folder / "both.pt")
        torch.save(content, folder / "legacy.pt", _use_new_zipfile_serialization=False)
        stripped = {"model": Block(averaged).half(), "ema": None, "updates": None, "optimizer": None, "epoch": -1}
        torch.save(stripped, folder / "averaged.pt")
    elif kind == "rt_detr":
        content = {"date": "2024", "last_epoch": 5, "model": last, "ema": {"module": averaged, "updates": 5}, **beside}
        torch.save(content, folder / "both.pth")
        torch.save({"ema": {"module": averaged}}, folder / "averaged.pth")
    # ImageNet's, before 1.6
    state = {name.removeprefix("backbone."): value for name, value in last.items() if name.startswith("backbone.")}
    state |= {"fc.weight": torch.ones(10, 4), "fc.bias": torch.ones(10)}
    torch.save(collections.OrderedDict(state), folder / "backbone.pth", _use_new_zipfile_serialization=False)
shutil.rmtree(root / "elsewhere")
"""
NAMES = {"nanodet": "nanodet-plus-m_320", "gold_yolo": "gold-yolo-n", "rt_detr": "rtdetr_r18vd"}


def drawn(name):
    """(the last step's entries, the averaged ones) of a model, as half precision holds them."""
    rng = np.random.default_rng(3)
    fresh = convert.state(models.build(name, 3, seed=None))
    last = {
        entry: rng.normal(size=array.shape).astype(np.float16).astype(array.dtype) if array.dtype.kind == "f" else array
        for entry, array in fresh.items()
    }
    averaged = {entry: array + 1 if array.dtype.kind == "f" else array for entry, array in last.items()}
    return last, {entry: array.astype(np.float16).astype(array.dtype) for entry, array in averaged.items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder in which each kind has one, with its checkpoints and the entries in them; one process writes all."""
    python = environment.interpreter(environment.TORCH)
    if not python.exists():
        pytest.skip("the environment of PyTorch, which writes the checkpoints, is not there: make envs")
    root = tmp_path_factory.mktemp("published")
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "__init__.py").write_text(PACKAGE)
    for kind, name in NAMES.items():
        (root / kind).mkdir()
        for file, entries in zip(("last", "averaged"), drawn(name)):
            np.savez(root / kind / f"{file}.npz", **entries)
    done = subprocess.run(
        [python, "-c", WRITER, root, *(root / kind for kind in NAMES)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not (root / "elsewhere").exists() and "elsewhere" not in sys.modules
    return root


def entries_of(folder):
    """(the last step's, the averaged ones) in the checkpoints of a folder."""
    return tuple(dict(np.load(folder / f"{file}.npz").items()) for file in ("last", "averaged"))


def same(model, expected):
    for entry, array in convert.state(model).items():
        assert array.tobytes() == expected[entry].astype(array.dtype).tobytes(), entry


@pytest.mark.parametrize("kind", NAMES)
def test_a_published_checkpoint_is_the_model_to_the_last_bit(written, kind):
    folder = written / kind
    last, averaged = entries_of(folder)
    model = models.build(NAMES[kind], 3, seed=None)
    fresh = convert.state(model)
    for path in sorted({*folder.glob("averaged.p*"), *folder.glob("both.*"), *folder.glob("legacy.*")}):
        convert.load(model, fresh)
        coverage = convert.load(model, path)
        assert len(coverage.loaded) == len(averaged) and not coverage.missing + coverage.left_over
        same(model, averaged)
        if path.name.startswith("averaged"):
            assert "--take" not in str(checkpoints.read(path))
            continue
        taken = str(checkpoints.read(path))
        assert "the averaged weights in " in taken and "--take model" in taken
        read = checkpoints.read(path, "model")
        assert "not the averaged ones" in str(read)
        convert.load(model, read.arrays)
        same(model, last)
    (both,) = folder.glob("both.*")
    read = dict(checkpoints.read(both).arrays)
    first = next(iter(read))
    read["left.over"] = read.pop(first)
    with pytest.raises(UserError, match=f"1 missing: {first}; 1 left over: left.over; nothing was loaded"):
        convert.load(model, read)


@pytest.mark.parametrize("kind", ["nanodet", "rt_detr"])
def test_a_backbone_of_imagenet_is_the_backbone_to_the_last_bit(written, kind):
    last, _ = entries_of(written / kind)
    model = models.build(NAMES[kind], 3)
    before = convert.state(model)
    origin = pretrained.load_backbone(model, written / kind / "backbone.pth")
    own = {entry for entry in before if entry.startswith("backbone.")}
    assert origin.loaded == len(own) and origin.left_over == ("fc.weight", "fc.bias")
    same(model, {entry: last[entry] if entry in own else before[entry] for entry in before})
