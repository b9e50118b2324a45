"""One layer's attention over whole prompts: full beside converted, in time and memory.

A decoder of one layer without MLP, so what is timed is projections, rotary embedding, attention or
recurrence and window, output projection, and two norms, over random hidden states.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from linearize import device as devices
from linearize.figures import bytes_text

from . import counting, shapes
from .drawing import Panel
from .registry import count
from .timing import compare

SHAPE = "135m"
COLUMNS = ("rows", "tokens", "attention", "ms", "of the base's", "peak memory", "of matrix rate")
PANELS = (
    Panel("time of one layer's attention", "length", "seconds", "seconds"),
    Panel("memory beyond the weights", "length", "peak_bytes", "bytes"),
)


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    parser.add_argument("--shape", default=SHAPE, help=f"{', '.join(shapes.SHAPES)} [{SHAPE}]")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 [auto]")
    parser.add_argument("--lengths", type=count, nargs="+", default=(1024, 4096), metavar="TOKENS")
    parser.add_argument("--rows", type=count, nargs="+", default=(1,), metavar="N", help="[1]")
    parser.add_argument("--seconds", type=float, default=1.0, help="per case, at least [1]")


def start(asked: argparse.Namespace, device: torch.device) -> tuple[str, Iterator[dict[str, Any]]]:
    """What is measured, in words, and its records."""
    stored = torch.float32 if device.type == "cpu" else torch.bfloat16
    base = shapes.random(
        asked.shape, device, devices.dtype(asked.dtype, stored, device), layers=1, vocabulary=256
    )
    base.model.layers[0].mlp = _Nothing()
    cases = [(number, length) for length in asked.lengths for number in asked.rows]
    return f"attention of one layer, {asked.shape}", run(base, cases, seconds=asked.seconds)


class _Nothing(nn.Module):
    """In place of an MLP."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, E] -> zeros of the same shape, without memory of their own."""
        return x.new_zeros(()).expand_as(x)


def run(
    base: Any, cases: Sequence[tuple[int, int]], *, seconds: float = 1.0
) -> Iterator[dict[str, Any]]:
    """One record per case of (rows, tokens).

    `rows`, `length`; for `base` and `converted` each: `seconds`, `operations` and `peak_bytes`. A
    case that does not fit the device's memory is left out, with a line on stderr.
    """
    models = {"base": base, "converted": shapes.converted(base)}
    for number, length in cases:
        try:
            with torch.inference_mode():
                x = torch.randn(number, length, base.config.hidden_size, device=base.device)
                ways = {name: _reader(m, x.to(base.dtype)) for name, m in models.items()}
                yield {
                    "rows": number,
                    "length": length,
                    "operations": {name: counting.operations(way) for name, way in ways.items()},
                    "peak_bytes": {
                        name: counting.peak_bytes(way, base.device) for name, way in ways.items()
                    },
                    "seconds": compare(ways, seconds=seconds),
                }
        except torch.OutOfMemoryError:
            print(f"{number} rows of {length:,} tokens: not enough memory", file=sys.stderr)


def _reader(model: Any, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: model.model(inputs_embeds=x, use_cache=False).last_hidden_state


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table."""
    base = record["seconds"]["base"]
    for name, seconds in record["seconds"].items():
        yield [
            str(record["rows"]),
            f"{record['length']:,}",
            name,
            f"{1e3 * seconds:.2f}",
            f"{seconds / base:.3f}",
            bytes_text(record["peak_bytes"][name]),
            f"{record['of_matrix'][name]:.1%}",
        ]
