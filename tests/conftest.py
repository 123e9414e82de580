"""Fixtures shared by all tests, and what holds for every run of them."""

import importlib.util
import signal
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
# The torch environment's tests do these once, for both environments have the same version of every package that they
# share (test_environment.py). Named on a command line they run in either. In the first lines what renders, draws or
# judges what was recorded, reads sources, or starts kernels of both environments itself; then what reaches no framework
# (test_house.py).
ONCE = (
    *("alignment", "curves", "figures", "handin", "house", "initial", "kernels", "notebooks", "report"),
    *("report_beside", "report_verify", "repeats", "tour_figures"),
)
PLAIN = (
    *("by_hand", "data", "decisions", "detection", "diagnosis", "equivalence", "evaluation", "evaluation_curves"),
    *("evaluation_errors", "evaluation_voc", "fetch", "figures_alignment", "formats", "images", "kernel", "loader"),
    *("log", "panel", "profiles", "progress", "record", "subset", "transforms", "transforms_gold_yolo"),
    *("transforms_nanodet_plus", "transforms_rt_detr", "voc", "yolo"),
)
collect_ignore = [] if importlib.util.find_spec("torch") else [f"test_{name}.py" for name in ONCE + PLAIN]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Compact copies of the published implementations' numbers; part of every checkout."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Full golden records, real images and weights, beside the project on the team's machines only."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared (full golden records, real images and weights) is not on this machine")
    return folder


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A place for job files beside the project's notebooks; what code a job depends on is test_pipeline's matter."""
    from lib.machine import pipeline  # the jt environment runs no reports

    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    monkeypatch.setattr(pipeline, "sources", lambda *_, **__: [])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pytest_configure(config):
    settings.register_profile("suite", deadline=None)  # on a busy machine a time says nothing
    settings.load_profile("suite")
    # A shell starts what runs in its background deaf to Ctrl-C, and so would be every program that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: more than about ten seconds; `make test` runs these too")
