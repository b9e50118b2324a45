"""Shared fixtures."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and what they start inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models, texts and golden numbers kept outside the repository; skips where absent."""
    default = Path(__file__).parents[2] / "shared"
    path = Path(os.environ.get("LINEARIZE_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"{path} is absent; set LINEARIZE_SHARED to the folder of shared material")
    return path


@dataclass(frozen=True)
class Golden:
    """Numbers made with the original authors' code; their README defines every array."""

    folder: Path

    def cases(self, family: str) -> list[str]:
        """Names of the model cases of a gate family."""
        return sorted(p.stem for p in self.folder.glob(f"*_{family}_*.json"))

    def settings(self, case: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{case}.json").read_text())

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")


@pytest.fixture(scope="session")
def golden(shared: Path) -> Golden:
    """The golden Liger cases; skips where the shared material is absent."""
    return Golden(shared / "golden" / "liger")
