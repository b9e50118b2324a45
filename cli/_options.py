"""Options that several commands share, so that they are spelt and explained once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

LAYER, DATA, TRAINING, OUTPUT, MACHINE = (
    "The converted layer",
    "Data",
    "Training",
    "Output",
    "Machine",
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Local directory, hub id, or 'embedded' for the small model that ships with the "
        "package. Families: llama, mistral, qwen2, qwen3.",
        show_default=False,
    ),
]
Gate = Annotated[
    str | None,
    typer.Option(help="Gate family of the recurrence. Default: gla.", rich_help_panel=LAYER),
]
Window = Annotated[
    int | None,
    typer.Option(
        help="Keys the softmax window sees, the token itself included. Default: 64.",
        rich_help_panel=LAYER,
    ),
]
Mix = Annotated[
    str | None,
    typer.Option(
        help="How recurrence and window are combined: learned (one weight per head, starting at "
        "the window alone), fixed (half and half, as published) or window (no recurrence, the "
        "baseline). Default: learned.",
        rich_help_panel=LAYER,
    ),
]
KeepSoftmax = Annotated[
    list[int] | None,
    typer.Option(
        help="Layer left as full softmax attention; may be repeated, -1 is the last.",
        rich_help_panel=LAYER,
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel=MACHINE)
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code found in the model's repository. Read it first.",
        rich_help_panel=MACHINE,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on stdout; everything else goes to stderr."),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace DIR (only when the new one is complete) and discard an unfinished run.",
        rich_help_panel=OUTPUT,
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: those at None, or empty as in `--out "$UNSET"`, left out."""
    return {name: value for name, value in options.items() if value not in (None, "")}
