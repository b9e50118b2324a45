"""Looped models of the golden data, and what the released sampler did with them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

NAMES = ("random_121", "random_242", "trained_242")


class Golden:
    """Models by name and recorded runs; the README beside them defines every value."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = cache(self._model)

    def _model(self, name: str) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder / name).eval()

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Recorded runs such as "trained_242/adaptive"."""
        return json.loads((self.folder / f"{name}.json").read_text())

    def diffusion(self, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Settings and steps, and arrays, of a run such as "trained_242/wave4"."""
        model, case = name.split("/")
        stem = self.folder / model / f"diffusion_{case}"
        arrays = np.load(stem.with_suffix(".npz"))
        return json.loads(stem.with_suffix(".json").read_text()), {
            k: torch.from_numpy(arrays[k]) for k in arrays.files
        }


@pytest.fixture(scope="session")
def looped(shared: Path) -> Golden:
    """The golden looped models; skips where the shared material is absent."""
    return Golden(shared / "golden" / "recurrent_depth")
