"""Fixtures shared by all tests, and what holds for every run of them."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent


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


def pytest_configure(config):
    settings.register_profile("suite", deadline=None)  # on a busy machine a time says nothing
    settings.load_profile("suite")
    # A shell starts what runs in its background deaf to Ctrl-C, and so would be every program that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: more than about ten seconds; `make test` runs these too")
