"""Rotary positions in their interleaved form: dims (2j, 2j + 1) are one complex number.

Not the half-split layout of Llama. Angle: position * base ** (-2j / head_dim), in float32.
Source: Su et al., RoFormer (arXiv 2104.09864), eq. 15.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(positions: Tensor, head_dim: int, base: float) -> Tensor:
    """[B, T] positions -> [B, T, 1, head_dim / 2] complex64 of modulus 1."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None].float() * (1.0 / base ** (pairs / head_dim))
    return torch.polar(torch.ones_like(angles), angles)[:, :, None]


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """x [B, T, H, head_dim] turned by `rotation`; computed in float32, returned in x's dtype."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(-2).to(x.dtype)
