"""Shared by all tests."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SHARED = REPOSITORY.parent / "shared"  # real data sets and weights, kept outside the project


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and ImageNet weights; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data and weights in {SHARED}")
    return SHARED
