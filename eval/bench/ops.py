"""The ops against their definitions and against full softmax attention.

One sequence, 8 query heads on 4 key/value heads, random input in float32 on the CPU and bfloat16
on an accelerator. `causal attention` is torch's `scaled_dot_product_attention` on the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.ops import backend, gla, window_attention

from .timing import compare

REFERENCE = "causal attention"  # what the ratios are taken against
HEADS, KV_HEADS, WINDOW = 8, 4, 64
Way = Callable[[], Tensor]
LENGTHS, WIDTHS = (512, 2048, 8192), (32, 64)
# The definition keeps one state per token for the backward pass: gigabytes beyond this.
LONGEST_RECURRENT_BACKWARD = 2048


def run(
    device: torch.device,
    *,
    lengths: Sequence[int] = LENGTHS,
    widths: Sequence[int] = WIDTHS,
    seconds: float = 1.0,
) -> Iterator[dict[str, Any]]:
    """One record per case: `op`, `length`, `width`, `backward`, and `seconds` per way."""
    for width in widths:
        for length in lengths:
            for op, ways in (("gla", _gla_ways), ("window_attention", _window_ways)):
                for backward in (False, True):
                    inputs = _inputs(device, length, width, backward)
                    chosen = ways(*inputs)
                    if backward and length > LONGEST_RECURRENT_BACKWARD:
                        chosen.pop("recurrent", None)
                    timed = {n: _pass(way, inputs, backward) for n, way in chosen.items()}
                    yield {
                        "op": op,
                        "length": length,
                        "width": width,
                        "backward": backward,
                        "seconds": compare(timed, seconds=seconds),
                    }


def _gla_ways(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> dict[str, Way]:
    ways: dict[str, Way] = {
        REFERENCE: lambda: _sdpa(q, k, v, is_causal=True),
        "chunk": lambda: gla(q, k, v, g, backend="chunk")[0],
        "recurrent": lambda: gla(q, k, v, g, backend="recurrent")[0],
    }
    if q.device.type == "cuda" and backend.fla_status()[0]:
        ways["fla"] = lambda: gla(q, k, v, g, backend="fla")[0]
    return ways


def _window_ways(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> dict[str, Way]:
    places = torch.arange(q.shape[1], device=q.device)
    distance = places[:, None] - places
    band = (distance >= 0) & (distance < WINDOW)
    return {
        REFERENCE: lambda: _sdpa(q, k, v, is_causal=True),
        "window_attention": lambda: window_attention(q, k, v, window=WINDOW),
        "dense window mask": lambda: _sdpa(q, k, v, attn_mask=band),
    }


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    o = F.scaled_dot_product_attention(*heads_first, enable_gqa=True, **options)
    return o.transpose(1, 2)


def _inputs(device: torch.device, length: int, width: int, grad: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    made = [
        torch.randn(1, length, heads, width, generator=generator).to(device, dtype)
        for heads in (HEADS, KV_HEADS, KV_HEADS, KV_HEADS)
    ]
    q, k, v, g = made
    # Liger's feature map and gate: softmax of queries and keys, log sigmoid over 16.
    made = [q.softmax(-1), k.softmax(-1), v, F.logsigmoid(g.float()) / 16]
    return [x.detach().requires_grad_(grad) for x in made]


def _pass(way: Way, inputs: list[Tensor], backward: bool) -> Callable[[], None]:
    def forward() -> None:
        with torch.inference_mode():
            way()

    def both() -> None:
        for x in inputs:
            x.grad = None
        way().sum().backward()

    return both if backward else forward
