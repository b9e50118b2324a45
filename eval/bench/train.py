"""A step of LoRA: time and memory over the length, a converted model beside its base."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from linearize.figures import bytes_text
from linearize.job import with_adapters
from linearize.recipe import Recipe
from linearize.training import devices
from linearize.training.objectives import Forward, next_token

from . import counting, shapes
from .drawing import Panel
from .prefill import random_tokens
from .registry import count
from .timing import compare

LENGTHS = (1024, 8192)
COLUMNS = ("tokens", "model", "s per step", "of the base's", "tokens/s", "peak memory")
COLUMNS += ("of matrix rate",)
PANELS = (
    Panel("time of a LoRA step", "length", "seconds", "seconds"),
    Panel("memory beyond weights and optimizer", "length", "peak_bytes", "bytes"),
)


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    shapes.options(parser, "15m on the CPU, else 135m; random weights")
    parser.add_argument(
        "--lengths", type=count, nargs="+", metavar="TOKENS", help="of a row [1024 8192]"
    )
    parser.add_argument("--checkpointing", action="store_true", help="of gradients: less memory")
    parser.add_argument("--seconds", type=float, default=1.0, help="per case, at least [1]")


def start(asked: argparse.Namespace, device: torch.device) -> tuple[str, Iterator[dict[str, Any]]]:
    """What is measured, in words, and its records."""
    model, _, name = shapes.chosen(asked, device, "15m" if device.type == "cpu" else "135m")
    lengths = asked.lengths or LENGTHS
    records = run(model, lengths=lengths, seconds=asked.seconds, checkpointing=asked.checkpointing)
    return f"LoRA steps of {name}{', checkpointing' * asked.checkpointing}", records


def run(
    base: Any,
    *,
    lengths: Sequence[int] = LENGTHS,
    seconds: float = 1.0,
    checkpointing: bool = False,
) -> Iterator[dict[str, Any]]:
    """One record per length, of one row, next-token loss, the adapters of the default recipe.

    `length`; for `base` and `converted` each: `seconds` of a step (forward, backward, AdamW),
    `operations` and `peak_bytes` (tensors beyond weights and optimizer state).
    """
    models = {"base": shapes.shared(base), "converted": shapes.converted(base)}
    recipe = Recipe(base="any")
    about = {"gradient_checkpointing": checkpointing, "device": str(base.device)}
    settings = recipe.training.model_copy(update=about)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # peft 0.21 reads an attribute that transformers 5.23 has renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        trained = {name: with_adapters(model, recipe) for name, model in models.items()}
        for model in trained.values():
            stack.enter_context(devices.prepared(model, settings))
        for length in lengths:
            tokens = random_tokens(base, 1, length)
            ways = {name: _step(model, tokens) for name, model in trained.items()}
            for way in ways.values():  # the optimizer makes its state
                way()
            yield {
                "length": length,
                "operations": {name: counting.operations(way) for name, way in ways.items()},
                "peak_bytes": {
                    name: counting.peak_bytes(way, base.device) for name, way in ways.items()
                },
                "seconds": compare(ways, seconds=seconds),
            }


def _step(model: Any, tokens: torch.Tensor) -> Callable[[], None]:
    adapters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-4)
    targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -100)], 1)

    def step() -> None:
        optimizer.zero_grad()
        next_token(Forward(model, {"input_ids": tokens, "targets": targets})).backward()
        optimizer.step()

    return step


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table."""
    base = record["seconds"]["base"]
    for name, seconds in record["seconds"].items():
        yield [
            f"{record['length']:,}",
            name,
            f"{seconds:.3f}",
            f"{seconds / base:.2f}",
            f"{record['length'] / seconds:,.0f}",
            bytes_text(record["peak_bytes"][name]),
            f"{record['of_matrix'][name]:.0%}",
        ]
