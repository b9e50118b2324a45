"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models, texts and golden numbers kept outside the repository; skips where absent."""
    default = Path(__file__).parents[2] / "shared"
    path = Path(os.environ.get("LINEARIZE_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"{path} is absent; set LINEARIZE_SHARED to the folder of shared material")
    return path
