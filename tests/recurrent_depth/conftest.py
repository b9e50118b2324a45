"""Numbers of the released code; `../shared/golden/recurrent_depth/README.md` defines them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import linearize


@dataclass(frozen=True)
class GoldenLoops:
    folder: Path

    def model(self, name: str) -> PreTrainedModel:
        return linearize.load(self.folder / name)

    def arrays(self, name: str) -> dict[str, torch.Tensor]:
        """`name`: such as "random_121/forward"."""
        with np.load(self.folder / f"{name}.npz") as held:
            return {key: torch.from_numpy(np.asarray(held[key])) for key in held.files}

    def records(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def loops(shared: Path) -> GoldenLoops:
    """Skips where the shared material is absent."""
    return GoldenLoops(shared / "golden" / "recurrent_depth")
