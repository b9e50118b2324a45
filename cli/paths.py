"""`linearize paths`: search chains of skipped and repeated layers for a task."""

from __future__ import annotations

import json as jsons
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from linearize.errors import InputError, Interrupted, OutputError, UsageError, suggest

from . import _options as options
from ._paths_show import show
from ._print import emit, progress, quiet_libraries, results_only

SEARCH, TASK = "Search", "Task"
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_RESULT, _PLOT = "result.json", "pareto.png"


def paths(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Local directory, hub id or 'embedded': any decoder-only model whose layers are "
            "one list, converted models too.",
            show_default=False,
        ),
    ],
    task: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Questions: .jsonl with query, choices and gold (from 0), or laid out as ARC, "
            "HellaSwag or PIQA. Any other file is text, measured by its perplexity.",
            rich_help_panel=TASK,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Directory for the result. The same command again goes on where it was ended, "
            "and more --simulations add to what is there.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ],
    simulations: Annotated[
        int, typer.Option(help="Paths to run (for each question).", rich_help_panel=SEARCH)
    ] = 200,
    per_item: Annotated[
        bool,
        typer.Option(
            "--per-item",
            help="Search a path for every question, as published: an oracle bound, of no use to "
            "answer a new question. Default: one path for all.",
            rich_help_panel=SEARCH,
        ),
    ] = False,
    exploration: Annotated[
        float, typer.Option(help="c: higher tries more unlike paths.", rich_help_panel=SEARCH)
    ] = 1.4,
    length_weight: Annotated[
        float, typer.Option(help="lambda: higher tries shorter paths.", rich_help_panel=SEARCH)
    ] = 0.3,
    longest: Annotated[
        int | None,
        typer.Option(
            help="Most layers in a path. Default: 1.5 times the model's.", rich_help_panel=SEARCH
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Draws the items, and decides ties.", rich_help_panel=SEARCH)
    ] = 0,
    items: Annotated[
        int,
        typer.Option(help="Questions, or blocks of text, to draw in all.", rich_help_panel=TASK),
    ] = 200,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Share of the items that the search never sees; the best path is then measured "
            "on them. Default: 0.5, none with --per-item.",
            rich_help_panel=TASK,
        ),
    ] = None,
    per_character: Annotated[
        bool,
        typer.Option(
            "--per-character",
            help="Compare choices by log-likelihood per character instead of in all.",
            rich_help_panel=TASK,
        ),
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows at once.", rich_help_panel=options.MACHINE)
    ] = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Discard what is in DIR.", rich_help_panel=options.OUTPUT),
    ] = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Search chains of skipped and repeated layers, without training (CoLa).

    Monte Carlo tree search over chains; reports the best accuracy (or perplexity) for each length.

    The search sees the right answers: its own figures are an oracle, an upper bound.

    What a path is worth shows on the held-out items only.
    """
    if per_item and holdout:
        raise UsageError(
            "--holdout needs one path for all items, and --per-item searches one for each; "
            "leave out one of them"
        )
    if dtype not in _DTYPES:
        raise UsageError(f"--dtype {dtype} is not known{suggest(dtype, _DTYPES)}")
    if not task.is_file():
        raise InputError(f"there is no file {task}; give questions (.jsonl) or text")

    from linearize.decoding.layer_path_search import Search

    settings = Search(simulations, exploration, length_weight, longest, seed)
    split = {"items": items, "holdout": (0 if per_item else 0.5) if holdout is None else holdout}
    with results_only(json):
        try:
            found = _find(
                model,
                task,
                out,
                settings,
                split,
                per_item=per_item,
                per_character=per_character,
                batch_size=batch_size,
                device=device,
                dtype=dtype,
                overwrite=overwrite,
                revision=revision,
                trust_remote_code=trust_remote_code,
            )
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted; what was measured is in {out}, the same command goes on from there"
            ) from error
    if json:
        emit(found)
    else:
        show(found, out / _RESULT)


def _find(
    name: str,
    file: Path,
    out: Path,
    settings: Any,
    split: dict[str, Any],
    *,
    per_item: bool,
    per_character: bool,
    batch_size: int,
    device: str,
    dtype: str,
    overwrite: bool,
    revision: str | None,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """Load, search, write DIR/result.json and the plot."""
    import hashlib
    import time
    from dataclasses import asdict

    import linearize
    from linearize import device as devices
    from linearize import pretrained
    from linearize.decoding.layer_paths import layer_count
    from linearize.eval import path_search, path_tasks
    from linearize.eval.path_evaluations import Evaluations

    quiet_libraries()
    questions = path_tasks.read(file) if file.suffix in (".jsonl", ".json") else None
    if questions is None and per_item:
        raise UsageError("--per-item needs questions (.jsonl); text has no right answer")
    where = devices.pick(device)
    path = pretrained.locate(name, revision=revision, trust_remote_code=trust_remote_code)
    fingerprint = pretrained.content_hash(path)
    tokenizer = pretrained.tokenizer(path, trust_remote_code)
    net = linearize.load(path, dtype=dtype, device=where, trust_remote_code=trust_remote_code)
    net = net.to(devices.dtype(dtype, net.dtype, where))
    layers = layer_count(net)
    settings.limit(layers)
    if questions is None:
        task: Any = path_tasks.Text(path_tasks.text(file), net, tokenizer)
        kind = {"measure": "perplexity", "block": task.block}
    else:
        task = path_tasks.Choices(questions, net, tokenizer, per_character=per_character)
        kind = {"measure": "accuracy", "per_character": per_character}
    inside, outside = path_search.split(len(task), seed=settings.seed, **split)
    about = {
        "model": fingerprint,
        "dtype": str(net.dtype).removeprefix("torch."),
        "task": hashlib.sha256(file.read_bytes()).hexdigest(),
        **kind,
    }
    if overwrite:
        _discard(out)
    evaluations = Evaluations(out, about, net, task, batch_size)
    started = time.perf_counter()
    with progress("simulations") as reached:
        if per_item:
            found = path_search.for_each_item(evaluations, layers, settings, inside, reached)
        else:
            found = path_search.for_task(evaluations, layers, settings, inside, outside, reached)
    found = {
        "model": name,
        "task": str(file),
        "layers": layers,
        "settings": {**asdict(settings), "longest": settings.limit(layers), **split, **kind},
        **found,
        "runs": evaluations.made,
        "seconds": time.perf_counter() - started,
        "versions": {"linearize": linearize.__version__},
    }
    _write(found, out)
    return found


def _discard(out: Path) -> None:
    from linearize.eval.path_evaluations import FILE

    try:
        for name in (FILE, _RESULT, _PLOT):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error


def _write(found: dict[str, Any], out: Path) -> None:
    from linearize.eval.path_plot import draw

    try:
        (out / _RESULT).write_text(jsons.dumps(found, indent=1) + "\n", encoding="utf-8")
        draw(found, out / _PLOT)
    except ImportError:
        print(f"no {_PLOT}: matplotlib is not installed (the extra 'plots')", file=sys.stderr)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}") from error
