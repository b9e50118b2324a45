"""`linearize`: one file per command, heavy imports inside the commands only."""

from __future__ import annotations

from typing import Annotated

import typer

import linearize

from . import (
    bench,
    compare,
    convert,
    doctor,
    finetune,
    gates,
    inspect,
    loop,
    merge,
    paths,
    report,
    swap,
)
from . import eval as evaluation
from ._run import run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(
    "bench",
    add_help_option=False,  # each bench has its own options, and its own help
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)(bench.bench)
app.command("compare", no_args_is_help=True)(compare.compare)
app.command("convert", no_args_is_help=True)(convert.convert)
app.command("finetune", no_args_is_help=True)(finetune.finetune)
app.command("gates")(gates.gates)
app.command("inspect", no_args_is_help=True)(inspect.inspect)
app.command("loop", no_args_is_help=True)(loop.loop)
app.command("merge", no_args_is_help=True)(merge.merge)
app.command("paths", no_args_is_help=True)(paths.paths)
app.command("report", no_args_is_help=True)(report.report)
app.command("swap", no_args_is_help=True)(swap.swap)
app.command(
    "eval",
    no_args_is_help=True,
    context_settings={"ignore_unknown_options": True},  # they are the harness's
)(evaluation.evaluate)
app.command("doctor")(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        print(f"linearize {linearize.__version__}")
        raise typer.Exit


@app.callback()
def _linearize(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Turn a pretrained LLM into one that runs with constant memory and linear time.

    Look first:   linearize inspect MODEL

    Then:         linearize convert MODEL --data TEXT --out DIR

    Use it:       decode DIR --prompt "..."

    Measure it:   linearize eval DIR --tasks local_piqa --data-dir DATA

    Does it repeat itself? linearize eval MODEL --suite repetition --out DIR

    It does:      linearize finetune MODEL --data TEXT --out DIR

    More thought per token: linearize loop MODEL --data TEXT --out DIR

    Exit codes: 0 done, 2 wrong option or recipe key, 3 input missing or
    unsupported, 4 a numerical check failed, 5 the output cannot be written,
    130 interrupted (what was done is saved), 1 a bug.
    """


def main() -> None:
    """Entry point of the console script."""
    run(app)


if __name__ == "__main__":
    main()
