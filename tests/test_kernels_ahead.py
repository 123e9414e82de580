"""Compiling a model's kernels before the stages: what is run, and when it is left out."""

import numpy as np
import pytest

from lib import backend
from lib.alignment import capture, kernels, references

MODELS = ("nanodet-plus-m_320", "gold-yolo-n", "rtdetr_r18vd")  # one of each family


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The stages' functions replaced by a note of what they were called with, in an empty cache."""
    noted = []
    for name in ("forward", "loss_and_gradient"):
        monkeypatch.setattr(capture, name, lambda model, case, name=name: noted.append((name, model, case.size)))
    monkeypatch.setattr(backend, "cache_path", lambda: str(tmp_path))
    return noted


def test_kernels_compile_once_for_each_model_and_source(calls, monkeypatch):
    expected = [("forward", MODELS[0], (kernels.SIDE,) * 2), ("loss_and_gradient", MODELS[0], (kernels.SIDE,) * 2)]
    kernels.compile_kernels(MODELS[0])
    kernels.compile_kernels(MODELS[0])
    assert calls == expected
    monkeypatch.setattr(kernels, "sources", lambda model: "another source")
    kernels.compile_kernels(MODELS[0])
    assert calls == 2 * expected


def test_what_failed_is_not_marked(calls, monkeypatch):
    monkeypatch.setattr(capture, "loss_and_gradient", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kernels.compile_kernels(MODELS[0])
    monkeypatch.setattr(capture, "loss_and_gradient", lambda *_: calls.append("again"))
    kernels.compile_kernels(MODELS[0])
    assert calls[-1] == "again"


def test_a_side_without_kernels_has_nothing_to_do(calls, monkeypatch):
    monkeypatch.setattr(backend, "cache_path", lambda: None)
    kernels.compile_kernels(MODELS[0])
    assert calls == []


@pytest.mark.parametrize("model", MODELS)
def test_boxes_lie_in_the_small_input_as_in_the_large(model):
    case = references.case(model, "loss")
    small = kernels.small(case)
    for before, after in zip(case.targets, small.targets, strict=True):
        np.testing.assert_allclose(after["boxes"] / kernels.SIDE, before["boxes"] / case.size[0], rtol=1e-6)
        assert after["boxes"].dtype == np.float32 and (after["labels"] == before["labels"]).all()


def test_the_digest_follows_the_sources(tmp_path, monkeypatch):
    first = kernels.sources(MODELS[0])
    assert first == kernels.sources(MODELS[0]) != kernels.sources(MODELS[1])
    read = kernels.Path.read_bytes
    monkeypatch.setattr(kernels.Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "nanodet_plus.py"))
    assert kernels.sources(MODELS[0]) != first
