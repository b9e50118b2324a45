"""Small random looped models, with weights large enough to matter."""

from __future__ import annotations

import torch

from linearize.recurrent_depth.model import RavenConfig, RavenForCausalLM

VOCABULARY = 61
GOLDEN = ["random_121", "random_242", "trained_242"]


def small_config(**changes) -> RavenConfig:
    values = {
        "n_embd": 24,
        "n_heads": 3,
        "intermediate_size": 32,
        "vocab_size": VOCABULARY,
        "block_size": 128,
        "mean_recurrence": 4,
        "mean_backprop_depth": 2,
        "n_layers_in_prelude": 1,
        "n_layers_in_recurrent_block": 2,
        "n_layers_in_coda": 1,
        "rope_base": 10_000,
    }
    return RavenConfig(**values | changes)


def small(seed: int = 0, **changes) -> RavenForCausalLM:
    torch.manual_seed(seed)
    model = RavenForCausalLM(small_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_f" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "qk_bias" in name:
                parameter.normal_(std=0.3)
            else:
                parameter.mul_(2)
    return model


def tokens(B: int, T: int, *, seed: int = 0) -> torch.Tensor:
    make = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (B, T), generator=make)


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)
