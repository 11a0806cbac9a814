"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real data, beside the repository or where BOXSUP_SHARED says; the test is skipped without it."""
    path = Path(os.environ.get("BOXSUP_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}; set BOXSUP_SHARED")
    return path
