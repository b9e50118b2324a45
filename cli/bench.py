"""`linearize bench`: speed and memory on this machine."""

from __future__ import annotations

import typer


def bench(context: typer.Context) -> None:
    """Measure speed and memory on this machine; `linearize bench --help` lists what."""
    from linearize.eval.bench.__main__ import run

    run(context.args or ["--help"], prog="linearize bench")
