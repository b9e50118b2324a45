"""`linearize report`: one HTML page of what was done and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as options
from ._print import emit, results_only


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Directories of convert, loop, finetune, eval or the recall demonstration, JSON "
            "files of bench.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.html",
            help="Where to write. Default: report.html in the directory, where one is given.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write one HTML page: fidelity, losses, tasks, recall, speed, repetition, samples, settings.

    What there is depends on what is given. The file needs no network and no script; behind every
    plot is its data. Plots need matplotlib: linearize[plots].
    """
    from linearize.eval.report import write

    with results_only(json):
        path = write(*runs, out=out)
    if json:
        emit({"report": str(path)})
    else:
        print(path)
