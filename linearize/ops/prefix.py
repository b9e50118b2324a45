"""Prefix linear attention: the beginning of each row is also encoded without causality.

A second pair of keys and values is summed over the whole prefix into a bank E. Inside the prefix
every query reads S_t + E; where the prefix ends E joins the state, S := S + E, and decays with it
from then on. So there is one state, and decoding is that of plain linear attention:

    E   = sum_{j in prefix} exp(sum_{j < s in prefix} g_enc_s) k_enc_j^T v_enc_j
    S_t = exp(g_t) S_{t-1} + k_t^T v_t
    o_t = q_t (S_t + E)  inside the prefix,  S := S + E behind its last token

`recurrent` is the definition; `chunk` gets the same from one causal pass and two products, because
the recurrence is linear in its start. With all gates at 0 and a denominator this is the layer of
Arora et al., "Just read twice" (arXiv 2407.05483): `prefix_linear_attention`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from . import backend as backends
from .gla import gla

EPSILON = 1e-12  # of the denominator, as in the authors' code


def prefix_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    k_enc: Tensor,
    v_enc: Tensor,
    g_enc: Tensor,
    *,
    prefix: Tensor,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Gated linear attention whose rows begin with an encoded prefix.

    - `q`, `k`, `v`, `g`, `mask`, `backend`: as in `gla`; `g` with one decay per channel or head.
    - `k_enc`, `v_enc`, `g_enc`: of the encoder, shapes of `k`, `v`, `g`; what they hold behind the
      prefix does not matter.
    - `prefix`: [B, T] bool, True = token of the prefix; see `prefix_tokens`. A row without one is
      plain `gla`.

    Returns `o` [B, T, H, V] in v's dtype and the state [B, Hk, K, V] in float32 (float64 for
    float64 input); `gla` goes on from it. Raises `UsageError` when shapes do not fit.
    """
    check_prefix({"k": k, "v": v, "g": g}, {"k": k_enc, "v": v_enc, "g": g_enc}, prefix)
    if backends.choose(backend, device=q.device, length=q.shape[1]) == "recurrent":
        dtype = torch.promote_types(q.dtype, torch.float32)
        tensors = (x.to(dtype) for x in (q, k, v, g, k_enc, v_enc, g_enc))
        o, state = recurrent(*tensors, prefix=prefix, mask=mask)
        return o.to(v.dtype), state
    return chunk(q, k, v, g, k_enc, v_enc, g_enc, prefix=prefix, mask=mask, backend=backend)


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    k_enc: Tensor,
    v_enc: Tensor,
    g_enc: Tensor,
    *,
    prefix: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, token by token: once over the prefix for E, once over all for S."""
    B, T, H, K = q.shape
    Hk, V = v.shape[2:]
    real = torch.ones_like(prefix) if mask is None else mask
    bank = state = q.new_zeros(B, Hk, K, V)
    for t in range(T):
        inside = (prefix & real)[:, t, None, None, None]
        more = g_enc[:, t].exp()[..., None] * bank + k_enc[:, t, :, :, None] * v_enc[:, t, :, None]
        bank = torch.where(inside, more, bank)
    left = (prefix & real).sum(1)
    bank = torch.where((left > 0)[:, None, None, None], bank, 0)
    outputs = []
    for t in range(T):
        now = real[:, t, None, None, None]
        more = g[:, t].exp()[..., None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        state = torch.where(now, more, state)
        inside = (prefix & real)[:, t]
        seen = state + torch.where(inside[:, None, None, None], bank, 0)
        o = q[:, t].view(B, Hk, H // Hk, K) @ seen
        outputs.append(torch.where(now, o, 0).reshape(B, H, V))
        left = left - inside.long()
        last = inside & (left == 0)
        state = torch.where(last[:, None, None, None], seen, state)
    return torch.stack(outputs, 1), state


def chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    k_enc: Tensor,
    v_enc: Tensor,
    g_enc: Tensor,
    *,
    prefix: Tensor,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The same: causal attention without E, and E's share of every output and of the state."""
    B, T, H, K = q.shape
    Hk, V = v.shape[2:]
    o, state = gla(q, k, v, g, mask=mask, backend=backend)
    q, g, k_enc, v_enc, g_enc = (x.to(state.dtype) for x in (q, g, k_enc, v_enc, g_enc))
    inside = prefix if mask is None else prefix & mask
    here = inside[:, :, None, None]
    g_enc = torch.where(here, g_enc, 0)
    until_end = g_enc.flip(1).cumsum(1).flip(1) - g_enc  # decay that a token sees inside the prefix
    k_enc = torch.where(here, k_enc * until_end.exp(), 0)
    v_enc = torch.where(here, v_enc, 0)
    bank = k_enc.permute(0, 2, 3, 1) @ v_enc.transpose(1, 2)  # [B, Hk, K, V]

    real = torch.ones_like(prefix) if mask is None else mask
    behind = (real & ~inside)[:, :, None, None]
    decay = torch.where(behind, g, 0).cumsum(1).exp()  # of E, 1 inside the prefix
    q = torch.where(real[:, :, None, None], q, 0).view(B, T, Hk, H // Hk, K)
    read = (q * decay.unsqueeze(3)).permute(0, 2, 1, 3, 4).flatten(2, 3) @ bank
    o = o + read.unflatten(2, (T, H // Hk)).transpose(1, 2).reshape(B, T, H, V)
    return o.to(v.dtype), state + decay[:, -1, :, :, None] * bank


def prefix_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_enc: Tensor,
    v_enc: Tensor,
    *,
    prefix: Tensor,
    mask: Tensor | None = None,
    epsilon: float = EPSILON,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The published layer without its projections: no gates, and a denominator.

    Shapes as in `prefix_gla`, all q and k with the feature map applied. The state has one value
    channel more, [B, H, K, V + 1]: its last column is the denominator's. `mask` zeroes features,
    so a padded row equals the unpadded one; the published code zeroes keys before the feature map,
    after which padding still adds its constant feature.
    """
    still = torch.zeros_like(k)
    v, v_enc = (F.pad(x, (0, 1), value=1.0) for x in (v, v_enc))
    both, state = prefix_gla(
        q, k, v, still, k_enc, v_enc, still, prefix=prefix, mask=mask, backend=backend
    )
    return normalized(both, epsilon), state


def normalized(o: Tensor, epsilon: float = EPSILON) -> Tensor:
    """[..., V + 1] -> [..., V]: outputs divided by the last channel, their denominator."""
    return o[..., :-1] / (o[..., -1:] + epsilon)


def taylor_features(x: Tensor) -> Tensor:
    """[..., d] -> [..., 1 + d + d^2]: exp(q.k / sqrt(d)) to second order, as a product of features.

    [1, x / d^(1/4), x_i x_j / sqrt(2 d)], all pairs in row-major order, so that
    phi(q).phi(k) = 1 + s + s^2 / 2 with s = q.k / sqrt(d). The paper's equations 6 and 7 leave out
    square and root; its code has them.
    """
    d = x.shape[-1]
    pairs = (x[..., :, None] * x[..., None, :]).flatten(-2) / math.sqrt(2 * d)
    return torch.cat([torch.ones_like(x[..., :1]), x / d**0.25, pairs], -1)


def prefix_tokens(lengths: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """[B, T] bool: the first `lengths[b]` real tokens of each row, wherever padding stands.

    - `lengths`: [B] integers from 0 to the row's number of real tokens.
    - `mask`: [B, T] bool, True = real token; None = all.

    Raises `UsageError` for a length outside its range.
    """
    if mask is None:
        mask = torch.ones(lengths.shape[0], length, dtype=torch.bool, device=lengths.device)
    count = mask.cumsum(1)
    wrong = ((lengths < 0) | (lengths > count[:, -1])).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise UsageError(
            f"prefix length {int(lengths[row])} of row {row} is outside 0 to {int(count[row, -1])},"
            " its tokens in this forward pass; a prefix is read whole and at once"
        )
    return mask & (count <= lengths[:, None])


def check_prefix(own: dict[str, Tensor], encoder: dict[str, Tensor], prefix: Tensor) -> None:
    """Raises `UsageError` unless the encoder's tensors have the shapes of the layer's own.

    - `own`, `encoder`: by the same names, among them `k` [B, T, Hk, K].
    - `prefix`: must be bool [B, T].
    """
    for name, one in own.items():
        other = encoder[name]
        if one.shape != other.shape:
            raise UsageError(
                f"{name}_enc {tuple(other.shape)} must have the shape of {name}, {tuple(one.shape)}"
            )
    tokens = own["k"].shape[:2]
    if prefix.shape != tokens or prefix.dtype != torch.bool:
        raise UsageError(
            f"prefix {tuple(prefix.shape)} of {prefix.dtype} must be bool [B, T] = {list(tokens)}"
        )
