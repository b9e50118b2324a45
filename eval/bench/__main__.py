"""Speed and memory on this machine, as Markdown tables.

`python -m linearize.eval.bench ops`, `python -m linearize.eval.bench decode [MODEL]` or
`python -m linearize.eval.bench samplers [MODEL]`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from linearize import device as devices
from linearize import pretrained
from linearize.decoding import REMEDIES
from linearize.errors import LinearizeError, OutputError
from linearize.figures import bytes_text

from . import decode, ops, samplers, timing


def main(arguments: list[str] | None = None) -> int:
    """Run one bench, print its table, write `--json`. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        device = devices.pick(options.device)
        if options.bench == "ops":
            records = ops.run(device, lengths=options.lengths, seconds=options.seconds)
            title, columns, rows = "ops", _OPS, _op_rows
        elif options.bench == "decode":
            model, _ = _load(options.model, device)
            records = decode.run(model, contexts=options.contexts, seconds=options.seconds)
            title, columns, rows = f"decoding with {options.model}", _DECODE, _decode_rows
        else:
            model, tokenizer = _load(options.model or pretrained.EMBEDDED, device)
            if options.model is None:  # its tokenizer reads code; its size is nobody's
                model = samplers.small_llama().to(device)
            records = samplers.run(
                model,
                tokenizer,
                batches=options.batches,
                context=options.context,
                tokens=options.tokens,
                rounds=options.rounds,
                names=options.remedies,
            )
            title = f"remedies with {options.model or '135M parameters'}"
            columns, rows = _SAMPLERS, _sampler_rows
        machine = timing.machine(device)
        print(f"{title}; " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
        print(_line(columns), _line(["---:"] * len(columns)), sep="\n")
        measured = []
        for record in records:
            measured.append(record)
            for cells in rows(record):
                print(_line(cells), flush=True)
        if options.json:
            _write(options.json, {"bench": options.bench, "machine": machine, "records": measured})
    except LinearizeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _load(name: str, device: Any) -> tuple[Any, Any]:
    path = pretrained.locate(name)
    stored = pretrained.stored_dtype(path, pretrained.read_config(path))
    dtype = devices.dtype("auto", stored, device)
    return pretrained.load(path, dtype=dtype, device=device), pretrained.tokenizer(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m linearize.eval.bench", description=__doc__)
    benches = parser.add_subparsers(dest="bench", required=True)
    for name, about, what, default in (
        ("ops", "gla and window attention against full attention", "lengths", ops.LENGTHS),
        ("decode", "a converted model against its teacher", "contexts", decode.CONTEXTS),
    ):
        sub = benches.add_parser(name, help=about, description=about)
        if name == "decode":
            sub.add_argument("model", nargs="?", default=pretrained.EMBEDDED)
        sub.add_argument(f"--{what}", type=int, nargs="+", default=default, metavar="TOKENS")
        sub.add_argument("--seconds", type=float, default=1.0, help="per case, at least [1]")
    about = "remedies against repetition, against greedy decoding"
    sub = benches.add_parser("samplers", help=about, description=about)
    sub.add_argument("model", nargs="?", help="default: 135M random parameters")
    sub.add_argument("--batches", type=int, nargs="+", default=samplers.BATCHES, metavar="ROWS")
    sub.add_argument("--remedies", nargs="+", choices=REMEDIES, metavar="NAME", help="[all]")
    for name, default in (("context", samplers.CONTEXT), ("tokens", samplers.TOKENS)):
        sub.add_argument(f"--{name}", type=int, default=default, help=f"[{default}]")
    sub.add_argument("--rounds", type=int, default=3, help="medians over so many [3]")
    for sub in benches.choices.values():
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda, mps [auto]")
        sub.add_argument("--json", type=Path, metavar="FILE", help="also write every number here")
    return parser


_OPS = ("op", "tokens", "K = V", "pass", "way", "ms", "of causal attention")
_DECODE = (
    "context",
    "teacher tokens/s",
    "converted tokens/s",
    "ratio",
    "teacher prefill ms",
    "converted prefill ms",
    "teacher cache",
    "converted cache",
)
_SAMPLERS = (
    "text",
    "rows",
    "way",
    "ms per step",
    "tokens/s",
    "of greedy",
    "by CPU time",
    "alone, CPU ms",
    "ms to first token",
)


def _op_rows(record: dict[str, Any]) -> Iterator[list[str]]:
    reference = record["seconds"][ops.REFERENCE]
    for way, seconds in record["seconds"].items():
        yield [
            record["op"],
            f"{record['length']:,}",
            str(record["width"]),
            "forward + backward" if record["backward"] else "forward",
            way,
            f"{1e3 * seconds:.2f}",
            f"{seconds / reference:.2f}",
        ]


def _decode_rows(record: dict[str, Any]) -> Iterator[list[str]]:
    speed = {name: 1 / value for name, value in record["seconds"].items()}
    prefill, cache = record["prefill_seconds"], record["cache_bytes"]
    yield [
        f"{record['context']:,}",
        *(f"{value:.1f}" for value in speed.values()),
        f"{speed['converted'] / speed['teacher']:.2f}",
        *(f"{1e3 * value:.1f}" for value in prefill.values()),
        *(bytes_text(value) for value in cache.values()),
    ]


def _sampler_rows(record: dict[str, Any]) -> Iterator[list[str]]:
    reference = record["seconds"][samplers.REFERENCE]
    cpu = record["cpu_seconds"]
    for way, seconds in record["seconds"].items():
        yield [
            record["text"],
            str(record["batch"]),
            way,
            f"{1e3 * seconds:.2f}",
            f"{record['batch'] / seconds:.1f}",
            f"{reference / seconds:.2f}",
            f"{cpu[samplers.REFERENCE] / cpu[way]:.2f}",
            f"{1e3 * record['alone_seconds'][way]:.2f}",
            f"{1e3 * record['start_seconds'][way]:.0f}",
        ]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _write(path: Path, values: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
