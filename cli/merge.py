"""`linearize merge`: a whole model from an adapter and its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as options
from ._print import emit, quiet_libraries, results_only


def merge(
    adapter: Annotated[
        Path, typer.Argument(help="Directory that `linearize convert --adapter-only` wrote.")
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="Directory for the merged model.", rich_help_panel="Output"
        ),
    ],
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Fold an adapter into its base: a directory that loads without peft."""
    from linearize.converted import merge as merge_adapter

    quiet_libraries()
    with results_only(json):
        path = merge_adapter(adapter, out, overwrite=overwrite)
    if json:
        emit({"path": str(path)})
    else:
        print(f'{path}\nuse it: decode {path} --prompt "..."')
