"""Speed and memory on this machine, as Markdown tables.

`linearize bench NAME`, or `python -m linearize.eval.bench NAME`; NAME of `registry.BENCHES`.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from linearize import allocator
from linearize.errors import LinearizeError, OutputError, UsageError

from .registry import BENCHES, EVERY

AGAIN = 0.2  # seconds for each limit after each record: a busy machine hides what it can do


def main(arguments: list[str] | None = None) -> int:
    """Run one bench, print its table, write `--json` and `--plot`. Returns the exit code."""
    try:
        run(sys.argv[1:] if arguments is None else arguments, prog="python -m linearize.eval.bench")
    except LinearizeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(arguments: list[str], *, prog: str) -> None:
    """What `main` does; raises `LinearizeError`s, and SystemExit after `--help`."""
    # torch reads it when it is imported: that memory is counted from here on needs no warning
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    allocator.reuse()
    first = _Parser(prog=prog, description="Speed and memory, measured on this machine.")
    names = first.add_subparsers(dest="bench", required=True, metavar="NAME")
    for name, bench in BENCHES.items():
        names.add_parser(name, help=bench.about, add_help=False)
    names.add_parser(
        EVERY, help="all that need no trained model, one JSON file each", add_help=False
    )
    known, rest = first.parse_known_args(arguments)
    if known.bench == EVERY:
        from . import everything

        parser = _Parser(prog=f"{prog} {EVERY}", description=everything.__doc__)
        everything.options(parser)
        everything.run(parser.parse_args(rest), functools.partial(run, prog=prog))
        return
    bench = BENCHES[known.bench]
    module = importlib.import_module(f".{bench.module}", __package__)
    parser = _Parser(prog=f"{prog} {known.bench}", description=bench.about)
    module.options(parser)
    _common(parser, plot=bench.draws == "drawing")
    _measure(known.bench, module, parser.parse_args(rest))


def _measure(name: str, module: Any, asked: argparse.Namespace) -> None:
    from linearize import device as devices

    from . import limits, timing

    draw = _drawing(BENCHES[name].draws, module)
    for file in (asked.json, getattr(asked, "plot", None)):
        if file is not None and not file.parent.is_dir():
            raise OutputError(f"{file} cannot be written: there is no directory {file.parent}")
    device = devices.pick(asked.device)
    title, records = module.start(asked, device)
    machine = timing.machine(device)
    print(f"{title}; " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
    dtype = timing.dtype_of(asked, device)
    most = limits.measure(device, dtype)
    print(_line(module.COLUMNS), _line(["---:"] * len(module.COLUMNS)), sep="\n")
    measured = []
    for record in records:
        most = limits.better(most, limits.measure(device, dtype, seconds=AGAIN))
        measured.append(limits.shares(record, most))
        for cells in module.rows(measured[-1]):
            print(_line(cells), flush=True)
    print(
        f"\nmeasured limits: copying {most['copy'] / 1e9:.1f} GB/s, reading "
        f"{most['read'] / 1e9:.1f} GB/s, matrix products in {most['dtype']} "
        f"{most['matrix'] / 1e12:.3f} Top/s"
    )
    if asked.json:
        _write(
            asked.json,
            {
                "bench": name,
                "title": title,
                "machine": machine,
                "limits": most,
                "records": measured,
            },
        )
    if getattr(asked, "plot", None):
        draw(measured, asked.plot)


def _drawing(name: str, module: Any) -> Any:
    if name != "drawing":
        return importlib.import_module(f".{name}", __package__).draw if name else None
    from .drawing import draw

    return functools.partial(draw, module.PANELS)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; --help lists what there is")


def _common(parser: argparse.ArgumentParser, *, plot: bool) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps [auto]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number here")
    if plot:
        parser.add_argument("--plot", type=Path, metavar="FILE", help="picture: .svg, .png, .pdf")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _write(path: Path, values: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
