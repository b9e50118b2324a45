"""`linearize compare`: runs side by side, with published numbers where the task matches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linearize.errors import UsageError

from . import _options as options
from ._print import emit, results_only, table


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Directories of convert, loop, finetune and `eval --tasks`, or their JSON files.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.html", help="Also a page of it.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Put runs side by side: what they lost, what they score, what they cost.

    An evaluation belongs to the run whose directory it was made of; its row stands alone else.
    Published numbers are rows of their own, with their source, where a task was evaluated as it
    was published.
    """
    if len(runs) < 2:
        raise UsageError(f"one run ({runs[0]}) has nothing to be compared with; give two or more")
    from linearize.eval.report import comparing

    with results_only(json):
        found = comparing.tables(runs)
        path = comparing.write(found, out) if out else None
    if json:
        emit({**comparing.plain(found), "page": str(path) if path else None})
        return
    for one in found:
        table(one.title, *one.shown())
        print("\n".join(one.notes), end="\n\n")
    if path:
        print(path)
