"""Options that several commands share, so that they are spelt and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from linearize.errors import UsageError

LAYER, DATA, TRAINING, OUTPUT, MACHINE = (
    "The converted layer",
    "Data",
    "Training",
    "Output",
    "Machine",
)

# Spelt out: help must not wait for transformers. A test compares it with the table of families.
FAMILIES = (
    "gemma2, gemma3_text, gpt_neox, granite, llama, mistral, mixtral, olmo2, phi3, qwen2, qwen3, "
    "qwen3_moe, smollm3, stablelm"
)
_MODEL = (
    "Local directory, hub id, or 'embedded' for the small model that ships with the package. "
    f"Families: {FAMILIES}."
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)]
RecipeModel = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help=f"{_MODEL} May be left out if the recipe names a base.",
        show_default=False,
    ),
]
Gate = Annotated[
    str | None,
    typer.Option(
        help="Gate family of the recurrence; `linearize gates` lists them. Default: gla.",
        rich_help_panel=LAYER,
    ),
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
        "the window alone), delayed (the same over what has left the window), joint (that under "
        "one normaliser), fixed (half and half, as published) or window (no recurrence, the "
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
Every = Annotated[
    int | None,
    typer.Option(
        help="The last of every so many layers is left as full softmax attention too.",
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


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Recipe values to change, such as lora.rank=16 data.seq_len=1024. The section may "
        "be left out where the key is unique: rank=16.",
    ),
]
Out = Annotated[
    str | None,
    typer.Option("--out", "-o", help="Directory for the result.", rich_help_panel=OUTPUT),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Text: .txt, .jsonl, .parquet, a directory or glob of those, a hub data set, or "
        "stdlib (the sources of Python's standard library).",
        rich_help_panel=DATA,
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(
        help="Held-out text for the losses. Default: a share of the documents in --data.",
        rich_help_panel=DATA,
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        help="Training tokens in all, repeats counted. Default: the recipe's.",
        rich_help_panel=TRAINING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="The same seed gives the same result. Default: 0.",
        rich_help_panel=TRAINING,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda, cuda:1 or mps. Default: auto.", rich_help_panel=MACHINE),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="auto (the checkpoint's), float32, bfloat16 or float16. Default: auto.",
        rich_help_panel=MACHINE,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run that was interrupted in this DIR.",
        rich_help_panel=OUTPUT,
    ),
]
AdapterOnly = Annotated[
    bool,
    typer.Option(
        "--adapter-only",
        help="Save the LoRA adapter alone; `linearize merge` makes a model of it.",
        rich_help_panel=OUTPUT,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything, then print the plan (what is trained, steps, memory) without "
        "loading weights.",
    ),
]

Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME",
        help="Name (liger, liger-paper, llama-3-8b) or YAML file; docs/recipes.md has more. May be "
        "given several times. Values count in this order: defaults, recipes from the first "
        "to the last, KEY=VALUE, options. Default: liger.",
        show_default=False,
    ),
]


def recipe(
    kind: Any,
    name: str | list[str],
    model: str | None,
    overrides: list[str] | None,
    **options: dict[str, Any],
) -> Any:
    """The recipe called `name` with overrides, then named options, counted in; validated.

    - `name`: of several recipes, later ones count before earlier ones.
    - `kind`: `Recipe` or `FinetuneRecipe`.
    - `model`: the first argument, which is an override where it reads `key=value`.
    - `options`: values that were given, by section; those of the recipe itself under `top`.
    """
    from linearize import recipe as recipes

    overrides = list(overrides or [])
    if model is not None and "=" in model and not Path(model).exists():
        overrides.insert(0, model)
        model = None
    values = recipes.override(
        recipes.read(*([name] if isinstance(name, str) else name)), overrides, kind
    )
    for section, chosen in options.items():
        (values if section == "top" else _section(values, section)).update(chosen)
    values.update(given(base=model))
    return recipes.build(values, kind)


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    section = values.setdefault(name, {})
    if not isinstance(section, dict):
        raise UsageError(f"recipe key '{name}' must hold keys and values, not {section!r}")
    return section


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: those at None, or empty as in `--out "$UNSET"`, left out."""
    return {name: value for name, value in options.items() if value not in (None, "")}
