"""The block of the Huginn architecture: a norm before each branch and one over each residual sum.

    x = norm_2(attn(norm_1(x)) + x);  x = norm_4(mlp(norm_3(x)) + x)

Source: Geiping et al., arXiv 2502.05171, section 3.2 ("sandwich" norms).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .config import RavenConfig
from .placement import Placement
from .rotary import rotate, rotation


class Norm(nn.Module):
    """RMS norm in float32, cast back, then weighted (the order matters in bfloat16)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if x.dtype == weight.dtype == torch.float32:
            return F.rms_norm(x, weight.shape, weight, self.eps)
        return F.rms_norm(x.float(), weight.shape, eps=self.eps).to(x.dtype) * weight


class BranchEnd(nn.Linear):
    """The last layer of a branch, which starts smaller than the others."""


class Attention(nn.Module):
    """Softmax attention with rotary positions and a learned bias on queries and keys."""

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        h, self.heads = config.n_embd, config.n_heads
        self.head_dim, self.base = h // self.heads, config.rope_base
        self.Wqkv = nn.Linear(h, 3 * h, bias=False)
        bias = torch.zeros(2, 1, self.heads, self.head_dim) if config.qk_bias else None
        self.qk_bias = None if bias is None else nn.Parameter(bias)
        self.proj = BranchEnd(h, h, bias=False)

    def forward(self, x: Tensor, place: Placement, part: str, layer: int, step: int) -> Tensor:
        qkv = self.Wqkv(x).unflatten(-1, (3 * self.heads, self.head_dim))
        qk, v = qkv.tensor_split([2 * self.heads], dim=2)
        if self.qk_bias is not None:
            qk = qk + self.qk_bias.view(-1, self.head_dim)
        turn = place.once("turn", lambda: rotation(place.positions, self.head_dim, self.base))
        q, k = rotate(qk, turn).chunk(2, dim=2)
        return self.proj(place.attend(q, k, v, part, layer, step).flatten(2))


class GatedMLP(nn.Module):
    """W2 (SiLU(W1a x) * W1b x), both halves of W1 in one matrix."""

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 2 * config.intermediate_size, bias=False)
        self.proj = BranchEnd(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fc(x).chunk(2, dim=-1)
        return self.proj(F.silu(gate) * up)


class SandwichBlock(GradientCheckpointingLayer):
    """One block. `part`, `layer` and `step` say which keys and values are its own."""

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.norm_1 = Norm(config.n_embd, config.norm_eps)
        self.attn = Attention(config)
        self.norm_2 = Norm(config.n_embd, config.norm_eps)
        self.norm_3 = Norm(config.n_embd, config.norm_eps)
        self.mlp = GatedMLP(config)
        self.norm_4 = Norm(config.n_embd, config.norm_eps)

    def forward(self, x: Tensor, place: Placement, part: str, layer: int, step: int = 0) -> Tensor:
        x = self.norm_2(self.attn(self.norm_1(x), place, part, layer, step) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)
