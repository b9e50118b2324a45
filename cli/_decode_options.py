"""The options of `decode`, spelt and explained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as options

PROMPT, CHOICE, REMEDY, LOOK = (
    "Prompt",
    "Choosing tokens",
    "Against repetition",
    "Looking closer",
)

Model = Annotated[
    str,
    typer.Argument(
        help="Local directory (a converted model, an adapter, or any causal model), hub id, "
        "or 'embedded' for the small model that ships with the package.",
        show_default=False,
    ),
]

# Prompt

Prompt = Annotated[
    str | None, typer.Option("--prompt", "-p", help="Text to continue.", rich_help_panel=PROMPT)
]
PromptFile = Annotated[
    Path | None,
    typer.Option(help="Continue this file (without its last newline).", rich_help_panel=PROMPT),
]
Stdin = Annotated[
    bool, typer.Option("--stdin", help="Continue standard input.", rich_help_panel=PROMPT)
]
Jsonl = Annotated[
    Path | None,
    typer.Option(
        help="Continue the prompt on each line of this JSONL file. The same command again goes on "
        "where the last one was ended.",
        rich_help_panel=PROMPT,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="JSONL file for the results of --jsonl.", rich_help_panel=PROMPT),
]
Field = Annotated[str, typer.Option(help="Key of the prompt in --jsonl.", rich_help_panel=PROMPT)]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Lines of --jsonl at once.", rich_help_panel=PROMPT)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Start --out anew.", rich_help_panel=PROMPT)
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Apply the model's chat template to the prompt; without a prompt, talk in the "
        "terminal (/exit or Ctrl-D ends).",
        rich_help_panel=PROMPT,
    ),
]
System = Annotated[
    str | None, typer.Option(help="System message of --chat.", rich_help_panel=PROMPT)
]
Truncate = Annotated[
    str | None,
    typer.Option(
        help="left: drop the beginning of a prompt that is too long for the model.",
        rich_help_panel=PROMPT,
    ),
]

Jrt = Annotated[
    int,
    typer.Option(
        min=1,
        help="Read the prompt this many times before the question, or all of it without one "
        "(JRT-Prompt: better recall in recurrent models).",
        rich_help_panel=PROMPT,
    ),
]
Question = Annotated[
    str,
    typer.Option(
        help="What stands once behind the prompt, which is then a document.",
        rich_help_panel=PROMPT,
    ),
]

# Length

MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", min=1, help="At most this many tokens.")
]
Stop = Annotated[list[str] | None, typer.Option(help="End before this string; may be repeated.")]

# Choosing tokens

Sampler = Annotated[
    str | None,
    typer.Option(
        help="greedy, sample or beam; for looped models also diffusion-forcing, adaptive, "
        "self-speculative, autoregressive. Default: the one whose options are given, else greedy.",
        rich_help_panel=CHOICE,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="Below 1 sharpens; 0 = greedy [1].", min=0, rich_help_panel=CHOICE),
]
TopK = Annotated[
    int | None,
    typer.Option(help="Keep the k most likely tokens; 0 = all [0].", rich_help_panel=CHOICE),
]
TopP = Annotated[
    float | None,
    typer.Option(help="Keep the top tokens that reach this [1].", rich_help_panel=CHOICE),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Keep at least this share of the best [0].", rich_help_panel=CHOICE),
]
Typical = Annotated[
    float | None,
    typer.Option(help="Keep the most typical tokens up to this mass [1].", rich_help_panel=CHOICE),
]
Seed = Annotated[
    int, typer.Option(help="The same seed gives the same text.", rich_help_panel=CHOICE)
]
NumBeams = Annotated[
    int | None, typer.Option(min=1, help="Beam search; 1 = off [1].", rich_help_panel=CHOICE)
]
NumReturn = Annotated[
    int,
    typer.Option(
        min=1, help="Texts per prompt: seeds from --seed on, or beams.", rich_help_panel=CHOICE
    ),
]

# Against repetition

AntiRepetition = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="rpg (structure of code), rpg-released (as the authors' decoder), ditto-cap "
        "(sentences); may be repeated.",
        rich_help_panel=REMEDY,
    ),
]
Language = Annotated[
    str | None,
    typer.Option(
        help="Of the code: python, go, java, javascript, typescript, c, cpp, rust or auto.",
        rich_help_panel=REMEDY,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(help="Weaken tokens that occurred; 1 = off.", rich_help_panel=REMEDY),
]
NoRepeatNgram = Annotated[
    int | None,
    typer.Option(min=0, help="No n tokens twice; 0 = off.", rich_help_panel=REMEDY),
]
Dry = Annotated[
    bool,
    typer.Option(
        "--dry", help="DRY: weaken what continues a repeated sequence.", rich_help_panel=REMEDY
    ),
]
DryMultiplier = Annotated[
    float | None, typer.Option(help="Of --dry: its strength.", rich_help_panel=REMEDY)
]
DryBase = Annotated[
    float | None, typer.Option(help="Of --dry: growth per token.", rich_help_panel=REMEDY)
]
DryAllowedLength = Annotated[
    int | None, typer.Option(help="Of --dry: length that is free.", rich_help_panel=REMEDY)
]
DryRange = Annotated[
    int | None, typer.Option(help="Of --dry: tokens looked back.", rich_help_panel=REMEDY)
]
DryBreaker = Annotated[
    list[str] | None,
    typer.Option(
        help="Of --dry: string that ends a sequence; may be repeated.", rich_help_panel=REMEDY
    ),
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME.KEY=VALUE",
        help="Any other option of a sampler or remedy, such as rpg.strength=2; may be repeated.",
        rich_help_panel=REMEDY,
    ),
]

# Looking closer

Compare = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Samplers and remedies side by side, such as greedy,rpg,dry, with their repetition.",
        rich_help_panel=LOOK,
    ),
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Show which tokens a remedy weakened, why, and by how much.",
        rich_help_panel=LOOK,
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        help="Draw the wave of --sampler diffusion-forcing over time into this .png or .html file.",
        rich_help_panel=LOOK,
    ),
]

# Machine

Layers = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Run these layers in this order, from 0, such as 0-3,5,5,6-11; see `linearize paths`.",
        rich_help_panel=options.MACHINE,
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Take the tokenizer from here. Default: the model's.",
        rich_help_panel=options.MACHINE,
    ),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=options.MACHINE)
]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto (the checkpoint's), float32, bfloat16, float16.",
        rich_help_panel=options.MACHINE,
    ),
]
Compile = Annotated[
    str,
    typer.Option(
        help="Compiled steps of a converted model: auto, always, never.",
        rich_help_panel=options.MACHINE,
    ),
]
