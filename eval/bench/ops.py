"""The ops against their definitions and against full softmax attention.

One sequence, 9 query heads on 3 key/value heads, random input in float32 on the CPU and bfloat16
on an accelerator. `causal attention` is torch's `scaled_dot_product_attention` on the same shapes.
`layer` is what stands in its place in a converted model, from projections to mixed outputs: feature
maps, gates, recurrence, window and their mix.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.figures import bytes_text
from linearize.liger import gates, mixes
from linearize.liger.recurrence import recur
from linearize.liger.spec import LigerSpec
from linearize.ops import backend, gla, window_attention

from . import counting
from .drawing import Panel
from .registry import count
from .timing import compare

REFERENCE = "causal attention"  # what the ratios are taken against
HEADS, KV_HEADS, WINDOW = 9, 3, 64
Way = Callable[[], Tensor]
LENGTHS, WIDTHS = (512, 2048, 8192), (32, 64)
# The definition keeps one state per token for the backward pass: gigabytes beyond this.
LONGEST_RECURRENT_BACKWARD = 2048
COLUMNS = ("op", "tokens", "K = V", "pass", "way", "ms", "of causal attention", "peak memory")
COLUMNS += ("of copy", "of matrix rate")
PANELS = tuple(
    Panel(
        f"{op}, {what}",
        "length",
        "seconds",
        "seconds",
        {"op": op, "backward": backward, "width": 64},
    )
    for op in ("gla", "window_attention", "layer")
    for backward, what in ((False, "forward"), (True, "forward and backward"))
)


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    parser.add_argument("--lengths", type=count, nargs="+", default=LENGTHS, metavar="TOKENS")
    parser.add_argument("--widths", type=count, nargs="+", default=WIDTHS, metavar="K")
    parser.add_argument("--ops", nargs="+", default=tuple(WAYS), choices=WAYS)
    parser.add_argument("--forward", action="store_true", help="without the backward pass")
    parser.add_argument("--seconds", type=float, default=1.0, help="per case, at least [1]")


def start(asked: argparse.Namespace, device: torch.device) -> tuple[str, Iterator[dict[str, Any]]]:
    """What is measured, in words, and its records."""
    how = {"lengths": asked.lengths, "widths": asked.widths, "ops": asked.ops}
    passes = (False,) if asked.forward else (False, True)
    return "ops", run(device, **how, passes=passes, seconds=asked.seconds)


def run(
    device: torch.device,
    *,
    lengths: Sequence[int] = LENGTHS,
    widths: Sequence[int] = WIDTHS,
    ops: Sequence[str] = ("gla", "window_attention", "layer"),
    passes: Sequence[bool] = (False, True),
    seconds: float = 1.0,
) -> Iterator[dict[str, Any]]:
    """One record per case: `op`, `length`, `width`, `backward`, and by way `seconds`, `operations`,
    `peak_bytes` and `bytes` (inputs and outputs once, the least that has to be moved)."""
    for width in widths:
        for length in lengths:
            for op in ops:
                for backward in passes:
                    inputs = _inputs(device, length, width, backward)
                    chosen = WAYS[op](*inputs)
                    if backward and length > LONGEST_RECURRENT_BACKWARD:
                        chosen.pop("recurrent", None)
                    timed = {n: _pass(way, inputs, backward) for n, way in chosen.items()}
                    yield {
                        "op": op,
                        "length": length,
                        "width": width,
                        "backward": backward,
                        "input_bytes": sum(x.nbytes for x in inputs[:3]),
                        "operations": {n: counting.operations(w) for n, w in timed.items()},
                        "peak_bytes": {n: counting.peak_bytes(w, device) for n, w in timed.items()},
                        "bytes": dict.fromkeys(timed, _least_bytes(inputs, backward)),
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


def _layer_ways(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> dict[str, Way]:
    spec = LigerSpec(window=WINDOW)
    gate, mix = gates.of(spec), mixes.of(spec).module(HEADS, q.shape[3], spec)
    how = {"states": [(KV_HEADS, k.shape[3], v.shape[3])], "width": v.shape[3]}

    def layer() -> Tensor:
        recurrence, _ = recur(gate.op, partial(gate.inputs, spec=spec), (q, k, v), **how)
        return mix(recurrence, window_attention(q, k, v, window=WINDOW).float(), q)

    return {
        REFERENCE: lambda: _sdpa(q, k, v, is_causal=True),
        "recurrence + window + mix": layer,
    }


WAYS = {"gla": _gla_ways, "window_attention": _window_ways, "layer": _layer_ways}


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


def _least_bytes(inputs: Sequence[Tensor], backward: bool) -> int:
    """Forward: inputs and output. Backward: both again, and the gradients of both."""
    moved = sum(x.nbytes for x in inputs) + inputs[0].nbytes  # the output is as large as q
    return 3 * moved if backward else moved


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table."""
    reference = record["seconds"][REFERENCE]
    for way, seconds in record["seconds"].items():
        yield [
            record["op"],
            f"{record['length']:,}",
            str(record["width"]),
            "forward + backward" if record["backward"] else "forward",
            way,
            f"{1e3 * seconds:.2f}",
            f"{seconds / reference:.2f}",
            bytes_text(record["peak_bytes"][way]),
            f"{record['of_copy'][way]:.1%}",
            f"{record['of_matrix'][way]:.1%}",
        ]
