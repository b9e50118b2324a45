"""`linearize report`: the HTML report of a conversion or a retrofit, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as options
from ._print import emit, results_only


def report(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Directory that `linearize convert` or `loop` wrote."),
    ],
    json: options.Json = False,
) -> None:
    """Write DIR/report.html again from its result.json, metrics.jsonl and samples.json.

    For example after installing matplotlib, which adds the plots.
    """
    from linearize.eval.report import write

    with results_only(json):
        path = write(directory)
    if json:
        emit({"report": str(path)})
    else:
        print(path)
