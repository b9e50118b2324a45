"""Looped models of random weights, and texts for them: speed without a checkpoint.

Random weights say nothing and never settle on a text, so what they would choose is overruled:
every position predicts one fixed token, whoever asks. The work done is that of a real text whose
drafts are right at once; when a position is final is the sampler's schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linearize.errors import UsageError, suggest
from linearize.recurrent_depth.interface import LoopedModel
from linearize.recurrent_depth.model import RavenConfig, RavenForCausalLM


@dataclass(frozen=True)
class Shape:
    """Fields of `RavenConfig` that are not Huginn's, and the dtype of the weights."""

    config: dict[str, int]
    dtype: torch.dtype = torch.float32


SHAPES = {
    "tiny": Shape(
        {
            "n_embd": 32,
            "n_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 128,
            "block_size": 512,
        }
    ),
    "7m": Shape(
        {
            "n_embd": 256,
            "n_heads": 4,
            "intermediate_size": 688,
            "vocab_size": 2048,
            "block_size": 1024,
        }
    ),
    "huginn": Shape({}, torch.bfloat16),  # 3.5 billion parameters
}


def build(name: str, device: torch.device) -> Any:
    """A model of random weights. Raises `UsageError` for a name that is not in `SHAPES`."""
    if name not in SHAPES:
        raise UsageError(f"there is no shape '{name}'{suggest(name, SHAPES)}")
    shape = SHAPES[name]
    torch.manual_seed(0)
    with device:
        model = RavenForCausalLM._from_config(RavenConfig(**shape.config), dtype=shape.dtype)
    return model.eval()


def prompts(vocabulary: int, rows: int, length: int) -> Tensor:
    """[rows, length] random ids, the same every time."""
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))


class Scripted:
    """A looped model whose every position predicts a fixed token, after all of its work."""

    def __init__(self, model: LoopedModel) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def decode(
        self, z: Tensor, positions: Tensor, cache: Any = None, *, logits_to_keep: int = 0
    ) -> Tensor:
        logits = self.model.decode(z, positions, cache, logits_to_keep=logits_to_keep)
        next_token = (positions[:, -logits_to_keep:] + 1) * 7 % logits.shape[-1]
        return torch.zeros_like(logits).scatter_(-1, next_token[..., None], 1.0)
