"""Reading a prompt: time and memory over its length, a converted model beside its base."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache

from linearize.figures import bytes_text
from linearize.liger.state import cache_bytes

from . import counting, shapes
from .drawing import Panel
from .registry import count
from .timing import compare

CPU_LENGTHS, LENGTHS = (256, 1024, 4096), (1024, 4096, 16_384, 32_768)
COLUMNS = ("tokens", "model", "ms", "of the base's", "tokens/s", "peak memory", "cache")
COLUMNS += ("of matrix rate",)
PANELS = (
    Panel("time to read a prompt", "length", "seconds", "seconds"),
    Panel("memory beyond the weights", "length", "peak_bytes", "bytes"),
)


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    shapes.options(parser, "135m, random weights")
    parser.add_argument("--lengths", type=count, nargs="+", metavar="TOKENS", help="of the prompts")
    parser.add_argument("--seconds", type=float, default=1.0, help="per case, at least [1]")


def start(asked: argparse.Namespace, device: torch.device) -> tuple[str, Iterator[dict[str, Any]]]:
    """What is measured, in words, and its records."""
    model, _, name = shapes.chosen(asked, device, "135m")
    lengths = asked.lengths or (CPU_LENGTHS if device.type == "cpu" else LENGTHS)
    return f"reading prompts with {name}", run(model, lengths=lengths, seconds=asked.seconds)


def run(base: Any, *, lengths: Sequence[int], seconds: float = 1.0) -> Iterator[dict[str, Any]]:
    """One record per length, of one row and the logits of its last token.

    `length`; for `base` and `converted` each: `seconds`, `operations`, `peak_bytes` (tensors beyond
    the weights) and `cache_bytes` (what is kept of the prompt).
    """
    models = {"base": base, "converted": shapes.converted(base)}
    for length in lengths:
        tokens = random_tokens(base, 1, length)
        with torch.inference_mode():
            ways = {name: reader(model, tokens) for name, model in models.items()}
            yield {
                "length": length,
                "cache_bytes": {name: cache_bytes(way()) for name, way in ways.items()},
                "operations": {name: counting.operations(way) for name, way in ways.items()},
                "peak_bytes": {
                    name: counting.peak_bytes(way, base.device) for name, way in ways.items()
                },
                "seconds": compare(ways, seconds=seconds),
            }


def reader(model: Any, tokens: torch.Tensor) -> Callable[[], Cache]:
    """A call that reads `tokens` [B, T] into a new cache."""

    def read() -> Cache:
        cache = DynamicCache(config=model.config)
        model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    return read


def random_tokens(model: Any, rows: int, length: int) -> torch.Tensor:
    """[rows, length] ids on the model's device, the same every time."""
    generator = torch.Generator().manual_seed(length)
    shape = (rows, length)
    return torch.randint(model.config.vocab_size, shape, generator=generator).to(model.device)


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table."""
    base = record["seconds"]["base"]
    for name, seconds in record["seconds"].items():
        yield [
            f"{record['length']:,}",
            name,
            f"{1e3 * seconds:.1f}",
            f"{seconds / base:.2f}",
            f"{record['length'] / seconds:,.0f}",
            bytes_text(record["peak_bytes"][name]),
            bytes_text(record["cache_bytes"][name]),
            f"{record['of_matrix'][name]:.0%}",
        ]
