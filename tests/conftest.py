"""Fixtures shared by all tests."""
from pathlib import Path

import pytest

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
    config.addinivalue_line("markers", "slow: more than about ten seconds; `make test` runs these too")
