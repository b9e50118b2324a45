"""Small random models of every supported family, with weights large enough to matter."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from linearize import LigerSpec, apply
from linearize.ops import segments
from linearize.ops.native import build

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]  # test_bases.py has all of them
VOCABULARY = 97


def small(family: str, *, seed: int = 0, **changes) -> PreTrainedModel:
    """Two layers, four query heads over two key/value heads of size 8."""
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 8192,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    } | changes
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)  # the default spread leaves softmax and gates nearly uniform
    return model


def converted(
    family: str, *, seed: int = 0, changes: dict | None = None, **spec
) -> PreTrainedModel:
    """`small`, converted; learned mix weights are random instead of 0."""
    model = apply(small(family, seed=seed, **(changes or {})), LigerSpec(**spec))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mix." in name:
                parameter.normal_()
    return model


def tokens(B: int, T: int, *, seed: int = 0) -> torch.Tensor:
    make = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (B, T), generator=make)


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ops in torch, whole rows at a time."""
    monkeypatch.setattr(segments, "pay", lambda device: False)
    monkeypatch.setattr(build, "ready", lambda: False)
