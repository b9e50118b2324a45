"""`linearize eval`: tasks of the harness (`--tasks`), or a suite of our own (`--suite`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linearize.errors import UsageError

from . import _decode_options as flags
from . import _options as options
from ._eval_suite import SUITES

TASKS, SUITE = "Tasks (--tasks)", "Suites (--suite)"
# What belongs to one of the two only: given with the other, it would do nothing.
_OF_TASKS = ("sampler", "data_dir", "task_arg", "skip_unavailable", "execute_code", "peft")
_OF_TASKS += ("recurrences", "jrt", "max_length", "no_prefix_reuse")
_OF_SUITES = ("samplers", "prompts", "field", "language", "max_new_tokens", "overwrite")

__all__ = ["SUITES", "evaluate"]


def evaluate(
    context: typer.Context,
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [LM-EVAL OPTIONS]",
            help="Local directory, hub id or 'embedded'. With --tasks, whatever else is given goes "
            "to lm-eval: --num_fewshot 5, --gen_kwargs, --log_samples, --include_path, ...",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model, instead of the argument MODEL.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            "--output_path",
            help="Directory for results.json and what has been done: the same command again goes "
            "on where the last one was ended. A suite needs it.",
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Tasks of lm-eval, joined by commas; local_* need no network.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For tasks that generate: a sampler and remedies joined by +, as in sample+rpg. "
            "Default: what the task says.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            "--data_dir",
            help="Folder of local data: files of local_* tasks, copies of the hub's data sets.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    task_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME.KEY=VALUE",
            help="A parameter of a local task, as in local_phonebook.count=80; may be repeated.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    skip_unavailable: Annotated[
        bool,
        typer.Option(
            "--skip-unavailable",
            help="Leave out tasks whose data cannot be read.",
            rich_help_panel=TASKS,
        ),
    ] = False,
    execute_code: Annotated[
        bool,
        typer.Option(
            "--execute-code",
            help="Run the code that the model writes, with limits on time, memory and files.",
            rich_help_panel=TASKS,
        ),
    ] = False,
    peft: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Put this adapter on the model.", rich_help_panel=TASKS),
    ] = None,
    recurrences: Annotated[
        int | None, typer.Option(min=1, help="Of a looped model.", rich_help_panel=TASKS)
    ] = None,
    jrt: Annotated[
        int, typer.Option(min=1, help="Readings of each context.", rich_help_panel=TASKS)
    ] = 1,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            "--max_length",
            min=1,
            help="Most tokens of an input. Default: the model's positions; none where it has none.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    no_prefix_reuse: Annotated[
        bool,
        typer.Option(
            "--no-prefix-reuse",
            help="Encode shared beginnings of requests again and again.",
            rich_help_panel=TASKS,
        ),
    ] = False,
    suite: Annotated[
        str | None, typer.Option(help="What to measure: repetition.", rich_help_panel=SUITE)
    ] = None,
    samplers: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Samplers and remedies to compare, + joins them: greedy,rpg,sample+dry.",
            rich_help_panel=SUITE,
        ),
    ] = "greedy,rpg",
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="JSONL file (CodeRepetEval's, for example), or text with a prompt per line, which "
            "is prose; may be repeated. Default: a few that ship with the package.",
            rich_help_panel=SUITE,
        ),
    ] = None,
    field: Annotated[
        str, typer.Option(help="Key of the prompt in JSONL files.", rich_help_panel=SUITE)
    ] = "prompt",
    language: Annotated[
        str,
        typer.Option(
            help="Of the prompts in JSONL files: python, go, java, javascript, typescript, c, cpp, "
            "rust, or prose.",
            rich_help_panel=SUITE,
        ),
    ] = "python",
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", min=1, help="At most this many.", rich_help_panel=SUITE
        ),
    ] = 256,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Discard the continuations in --out.", rich_help_panel=SUITE
        ),
    ] = False,
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit", "-L", help="The first so many of each task or group; below 1, a share."
        ),
    ] = None,
    option: flags.Option = None,
    batch_size: Annotated[
        str,
        typer.Option("--batch-size", "--batch_size", "-b", help="At once; tasks also take auto."),
    ] = "8",
    seed: flags.Seed = 0,
    tokenizer: flags.Tokenizer = None,
    device: flags.Device = "auto",
    dtype: flags.Dtype = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Evaluate a model: on tasks, or how much it repeats itself and what each remedy does about it.

    Tasks run through lm-eval: what it can evaluate, and local_* tasks on local files. Tables have
    its metrics and standard errors. What cannot run is said before the model is loaded.

    A suite continues the same prompts with every name in --samplers: structure (TR-S, TR-N),
    n-grams and lines that repeat, code that compiles (CCP), outputs that end by themselves (EGP),
    and how many outputs were changed where greedy did not repeat.

    Examples:

    linearize eval DIR --tasks local_arc_easy,local_piqa --data-dir DATA --num_fewshot 5 --out RUN

    linearize eval embedded --suite repetition --samplers greedy,rpg,dry --out measured

    linearize eval ./my-coder --suite repetition --prompts CodeRepetEval.jsonl --out measured
    """
    rest = list(rest or [])
    if model is None and rest and not rest[0].startswith("-"):
        model = rest.pop(0)
    if (tasks is None) == (suite is None):
        raise UsageError("say what to evaluate: --tasks NAMES or --suite repetition, one of them")
    _refuse(context, _OF_SUITES if suite is None else _OF_TASKS, suite is None)
    if model is None:
        raise UsageError("name the model: a directory, a hub id, or 'embedded'")
    if limit is not None and (limit <= 0 or (limit >= 1 and limit != int(limit))):
        raise UsageError(f"--limit {limit:g} is neither a number of documents nor a share below 1")
    whole = limit if limit is None or limit < 1 else int(limit)
    machine = {
        "tokenizer": tokenizer,
        "device": device,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }
    if suite is None:
        from . import _eval_tasks

        seeded = context.get_parameter_source("seed").name == "COMMANDLINE"
        _eval_tasks.run(
            model,
            tasks,
            rest,
            out=out,
            data_dir=data_dir,
            task_arg=task_arg or [],
            skip_unavailable=skip_unavailable,
            execute_code=execute_code,
            limit=whole,
            seed=seed if seeded else None,
            json=json,
            option=option or [],
            model_args={
                **machine,
                "sampler": sampler,
                "peft": peft,
                "recurrences": recurrences,
                "jrt": jrt,
                "max_length": max_length,
                "prefix_reuse": not no_prefix_reuse,
                "batch_size": batch_size,
            },
        )
        return
    if rest:
        raise UsageError(f"a suite has no option or argument {rest[0]}; see linearize eval --help")
    if out is None:
        raise UsageError("a suite writes files: give a directory with --out DIR")
    if isinstance(whole, float):
        raise UsageError(f"--limit {limit:g}: a suite takes a number of prompts, from 1 up")
    if not batch_size.isdigit() or int(batch_size) < 1:
        raise UsageError(f"--batch-size {batch_size}: a suite takes a number from 1 up")

    from . import _eval_suite

    _eval_suite.run(
        model,
        suite,
        out=out,
        samplers=samplers,
        prompts=prompts,
        field=field,
        language=language,
        limit=whole,
        option=option,
        max_new_tokens=max_new_tokens,
        batch_size=int(batch_size),
        seed=seed,
        overwrite=overwrite,
        json=json,
        **machine,
    )


def _refuse(context: typer.Context, names: tuple[str, ...], with_tasks: bool) -> None:
    for name in names:
        if context.get_parameter_source(name).name == "COMMANDLINE":
            flag = f"--{name.replace('_', '-')}"
            other = "--suite repetition" if with_tasks else "--tasks"
            raise UsageError(f"{flag} belongs to {other}; leave it out, or ask for that instead")
