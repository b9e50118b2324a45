"""`python -m linearize.eval.bench recurrent-depth`: its options and its table."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from linearize import device as devices
from linearize.errors import UsageError
from linearize.figures import bytes_text
from linearize.recurrent_depth.interface import require_looped

from . import front, looped_shapes, recurrent_depth
from .loading import load

COLUMNS = (
    "sampler",
    "rows",
    "r'",
    "final below",
    "wave",
    "tokens/s",
    "of autoregression",
    "by CPU time",
    "equal tokens",
    "loss",
    "of the text",
    "core passes",
    "mean wave",
    "of bare layers",
    "cache",
    "peak",
)


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="DIR", help="a looped model with its tokenizer")
    which.add_argument(
        "--shape",
        choices=looped_shapes.SHAPES,
        help="random weights of this shape and given tokens: speed only",
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="held-out text [Python's standard library]"
    )
    bench = recurrent_depth
    for name, default, about in (
        ("context", bench.CONTEXT, "tokens of each prompt"),
        ("tokens", bench.TOKENS, "new tokens of each"),
        ("recurrences", bench.RECURRENCES, "r"),
        ("rounds", 3, "medians over so many"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{about} [{default}]")
    for name, kind, default in (
        ("batches", int, bench.BATCHES),
        ("inner", int, bench.INNER),
        ("thresholds", float, bench.THRESHOLDS),
        ("wavefronts", int, bench.WAVEFRONTS),
        ("settled", int, bench.SETTLED),
    ):
        known = " ".join(f"{value:g}" for value in default)
        parser.add_argument(
            f"--{name}", type=kind, nargs="+", default=default, metavar="N", help=f"[{known}]"
        )
    parser.add_argument("--threads", type=int, help="of the processor [torch's choice]")
    parser.add_argument("--quick", action="store_true", help="one round, 32 tokens, small sweep")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="agreement over speed")


def start(asked: argparse.Namespace, device: torch.device) -> tuple[str, Iterator[dict[str, Any]]]:
    """What is measured, in words, and its records. Raises what loading raises, and `UsageError`."""
    if asked.plot:
        front.check(asked.plot)
        if asked.shape:
            raise UsageError("--plot compares texts, and random weights (--shape) write none")
    if asked.threads is not None:
        if asked.threads < 1:
            raise UsageError(f"--threads {asked.threads} is below 1")
        torch.set_num_threads(asked.threads)
    if asked.quick:
        asked.rounds, asked.tokens = 1, min(asked.tokens, 32)
        asked.inner, asked.thresholds, asked.wavefronts = (2, 4), (0.03, 0.1), (128,)
    length, rows = asked.context + asked.tokens, max(*asked.batches, 4)
    if asked.shape:
        inner = looped_shapes.build(asked.shape, device)
        model = looped_shapes.Scripted(inner)
        texts = looped_shapes.prompts(inner.loop.vocab_size, rows, length)
    else:
        model, tokenizer = load(asked.model, device)
        require_looped(model, needed_by="this bench")
        texts = recurrent_depth.texts(tokenizer, rows, length, asked.prompts)
    if length > model.loop.context:
        raise UsageError(
            f"{length} tokens are more than the model's context of {model.loop.context}; "
            "lower --context or --tokens"
        )
    parameters = sum(p.numel() for p in model.parameters())
    chosen = ("tokens", "recurrences", "batches", "inner", "thresholds", "wavefronts", "settled")
    records = recurrent_depth.run(
        model,
        texts,
        scripted=bool(asked.shape),
        rounds=asked.rounds,
        sweep_rows=1 if asked.quick else 4,
        **{name: getattr(asked, name) for name in chosen},
    )
    name = asked.model or f"random weights of shape {asked.shape}"
    return f"{name}, {parameters / 1e6:.1f} M parameters on {devices.describe(device)}", records


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Its line of the table."""
    told = record["told"]
    end = told.get("exit_threshold", told.get("num_steps"))
    count = record["batch"] * record["prompts"] * (record["tokens"] - 1)

    def number(name: str, form: str) -> str:
        value = record.get(name)
        return "" if value is None else format(value, form)

    def size(name: str) -> str:
        return "" if record[name] is None else bytes_text(record[name])

    yield [
        record["sampler"],
        str(record["batch"]),
        str(told.get("inner_recurrence", "")),
        "" if end is None else f"{end:g}" if "exit_threshold" in told else f"after {end}",
        str(told.get("max_wavefront", "")),
        f"{count / record['seconds']:.1f}",
        f"{record['ratio']:.2f}",
        f"{record['cpu_ratio']:.2f}",
        number("equal", ".3f"),
        number("loss", ".3f"),
        number("of_text", ".3f"),
        f"{record['core_passes']:,}",
        number("mean_wavefront", ".1f"),
        number("cpu_over_bare", ".2f"),
        size("cache_bytes"),
        size("peak_bytes"),
    ]
