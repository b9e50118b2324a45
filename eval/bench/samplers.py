"""What remedies cost: tokens/s of each relative to greedy decoding, in one run.

- Every way continues the same code. What it would choose is overruled by the next token of a real
  file, so that all do the same work and grammars see code, whatever the weights are.
- The cache holds random keys and values for the context: speed does not depend on them.
- Counted from the first new token to the last: neither prefill nor what a remedy does to a prompt
  once (`start_seconds`, in which reading the prompt is included for all).
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from linearize import pretrained
from linearize.decoding import remedies

from . import shapes
from .registry import count
from .timing import wait

REFERENCE = "greedy"
CONTEXT, TOKENS, BATCHES = 2048, 96, (1, 8)
# Modules of Python's standard library whose source is decoded, one per row.
SOURCES = ("argparse", "ast", "calendar", "csv", "datetime", "difflib", "inspect", "tarfile")


COLUMNS = ("text", "rows", "way", "ms per step", "tokens/s", "of greedy", "by CPU time")
COLUMNS += ("alone, CPU ms", "ms to first token")


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    shapes.options(parser, "135m, random weights")
    parser.add_argument("--batches", type=count, nargs="+", default=BATCHES, metavar="ROWS")
    parser.add_argument(
        "--remedies", nargs="+", choices=remedies.REMEDIES, metavar="NAME", help="[all]"
    )
    for name, default in (("context", CONTEXT), ("tokens", TOKENS)):
        parser.add_argument(f"--{name}", type=count, default=default, help=f"[{default}]")
    parser.add_argument("--rounds", type=count, default=3, help="medians over so many [3]")


def start(asked: argparse.Namespace, device: torch.device) -> tuple[str, Iterator[dict[str, Any]]]:
    """What is measured, in words, and its records."""
    model, tokenizer, called = shapes.chosen(asked, device, "135m")
    records = run(
        model,
        # random weights need one that reads code, and the vocabulary is as large as they say
        tokenizer or pretrained.tokenizer(pretrained.locate(pretrained.EMBEDDED)),
        batches=asked.batches,
        context=asked.context,
        tokens=asked.tokens,
        rounds=asked.rounds,
        names=asked.remedies,
    )
    return f"remedies with {called}", records


def run(
    model: Any,
    tokenizer: Any,
    *,
    batches: Sequence[int] = BATCHES,
    context: int = CONTEXT,
    tokens: int = TOKENS,
    rounds: int = 3,
    names: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """One record per text and batch size.

    `text` ("file": as it stands; "loop": its shortest function or class again and again, all copies
    counted, so that penalties apply at every turn), `batch`, `context`, `tokens`;
    `seconds` and `cpu_seconds` per step and `start_seconds` (up to the first new token), for greedy
    and every remedy: medians over rounds in which all take turns. `cpu_seconds` is the processor
    time of the process, which other programs on a busy machine disturb less; `alone_seconds` is
    that of the remedy's own calls, without a model.

    - `names`: remedies; None for all. Those for code are told that it is Python.
    """
    chosen = list(remedies.REMEDIES if names is None else names)
    with torch.inference_mode():
        for loop in (False, True):
            for batch in batches:
                rows = _rows(tokenizer, batch, context + tokens, loop=loop)
                ways = {
                    REFERENCE: {},
                    **{name: {name: _options(name, loop=loop)} for name in chosen},
                }
                yield {
                    "text": "loop" if loop else "file",
                    "batch": batch,
                    "context": context,
                    "tokens": tokens,
                    "alone_seconds": {
                        name: _alone(model, tokenizer, rows, context, way)
                        for name, way in ways.items()
                    },
                    **_compare(model, tokenizer, rows, context, ways, rounds),
                }


def _options(name: str, *, loop: bool) -> dict[str, Any]:
    wanted = {"language": "python"} | ({"count_prompt": True, "scope": "all"} if loop else {})
    return {k: v for k, v in wanted.items() if k in remedies.options_of(name)}


def _rows(tokenizer: Any, batch: int, length: int, *, loop: bool) -> Tensor:
    """Token ids `[batch, length]` of Python code, a file per row."""
    rows = []
    for index in range(batch):
        file = Path(importlib.util.find_spec(SOURCES[index % len(SOURCES)]).origin)
        text = file.read_text(encoding="utf-8")
        blocks = [b for b in ast.parse(text).body if isinstance(b, ast.FunctionDef | ast.ClassDef)]
        if loop:
            lines = (ast.get_source_segment(text, b).count("\n") for b in blocks)
            block = min(zip(lines, blocks, strict=True), key=lambda pair: pair[0])[1]
            text = (ast.get_source_segment(text, block) + "\n\n\n") * length
        else:
            text = "".join(text.splitlines(keepends=True)[blocks[0].lineno - 1 :])
        ids = tokenizer(text[: 16 * length], verbose=False).input_ids
        rows.append(ids[:length])
    return torch.tensor(rows)


def _alone(
    model: Any, tokenizer: Any, rows: Tensor, context: int, way: Mapping[str, Mapping[str, Any]]
) -> float:
    """Processor time per step of the calls alone; the first, which reads the prompt, left out."""
    rows = rows.to(model.device)
    scores = torch.randn(len(rows), model.config.vocab_size, device=model.device)
    processors = remedies.make(way, tokenizer, prompt_length=context)
    processors(rows[:, :context], scores)
    wait()
    began = time.process_time()
    for length in range(context + 1, rows.shape[1]):
        processors(rows[:, :length], scores)
    wait()
    return (time.process_time() - began) / (rows.shape[1] - context - 1)


def _compare(
    model: Any,
    tokenizer: Any,
    rows: Tensor,
    context: int,
    ways: Mapping[str, Mapping[str, Any]],
    rounds: int,
) -> dict[str, dict[str, float]]:
    cache = _filled(model, len(rows), context - 1)
    found: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in ways} for kind in ("seconds", "cpu_seconds", "start_seconds")
    }
    for _ in range(rounds):
        for name, way in ways.items():
            if grown := cache.get_seq_length() - (context - 1):
                cache.crop(-grown)
            clock = _Clock()
            processors = remedies.make(way, tokenizer, prompt_length=context)
            processors.append(_Forced(rows))
            wait()
            began = time.perf_counter()
            model.generate(
                input_ids=rows[:, :context].to(model.device),
                attention_mask=torch.ones_like(rows[:, :context]).to(model.device),
                past_key_values=cache,
                max_new_tokens=rows.shape[1] - context,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([clock]),
            )
            found["start_seconds"][name].append(clock.wall[0] - began)
            for kind, times in (("seconds", clock.wall), ("cpu_seconds", clock.cpu)):
                found[kind][name].append((times[-1] - times[0]) / (len(times) - 1))
    return {
        kind: {name: statistics.median(values) for name, values in some.items()}
        for kind, some in found.items()
    }


def _filled(model: Any, batch: int, length: int) -> DynamicCache:
    """A cache of `length` positions with random keys and values."""
    config = model.config
    shape = (batch, config.num_key_value_heads, length, config.head_dim)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        pair = (torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2))
        cache.update(*pair, layer)
    return cache


class _Forced(LogitsProcessor):
    """The next token of `rows` [B, T], whatever was wanted."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.rows[:, input_ids.shape[1], None].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class _Clock(StoppingCriteria):
    """Notes when each step ended; stops nothing."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        wait()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table."""
    reference = record["seconds"][REFERENCE]
    cpu = record["cpu_seconds"]
    for way, seconds in record["seconds"].items():
        yield [
            record["text"],
            str(record["batch"]),
            way,
            f"{1e3 * seconds:.2f}",
            f"{record['batch'] / seconds:.1f}",
            f"{reference / seconds:.2f}",
            f"{cpu[REFERENCE] / cpu[way]:.2f}",
            f"{1e3 * record['alone_seconds'][way]:.2f}",
            f"{1e3 * record['start_seconds'][way]:.0f}",
        ]
