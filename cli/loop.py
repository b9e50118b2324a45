"""`linearize loop`: make a pretrained model a looped one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from linearize.errors import UsageError

from . import _options as options
from ._print import emit, facts, quiet_libraries, results_only, table

CUT = "The cut"


def loop(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Local directory, hub id, or 'embedded'. Families: llama, mistral, olmo2, qwen2, "
            "qwen3. May be left out if the recipe names a base.",
        ),
    ] = None,
    overrides: options.Overrides = None,
    out: options.Out = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            help="Name (loop) or YAML file. Values count in this order: defaults, recipe, "
            "KEY=VALUE, options.",
        ),
    ] = "loop",
    prelude: Annotated[
        int | None,
        typer.Option(help="First layers, run once. Default: 4.", rich_help_panel=CUT),
    ] = None,
    core: Annotated[
        int | None,
        typer.Option(help="Layers before the coda, repeated. Default: 8.", rich_help_panel=CUT),
    ] = None,
    coda: Annotated[
        int | None,
        typer.Option(
            help="Last layers, run once. Default: 4. What is between prelude and core is dropped.",
            rich_help_panel=CUT,
        ),
    ] = None,
    recurrences: Annotated[
        int | None,
        typer.Option(
            help="Of the core: the mean of training's random draw, and what the model runs when "
            "nobody says. Default: 8.",
            rich_help_panel=options.TRAINING,
        ),
    ] = None,
    data: options.Data = None,
    eval_data: options.EvalData = None,
    tokens: options.Tokens = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    adapter_only: options.AdapterOnly = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Cut a pretrained model into prelude, looped core and coda, and train it to loop.

    Untrained, it computes what the model computes without the dropped layers,
    at any number of recurrences; training teaches it to use them. DIR then
    loads with AutoModelForCausalLM and works with the samplers for looped
    models. result.json, the model card and report.html say how loss falls with
    the number of recurrences.

    Examples:

    linearize loop ./my-llama --prelude 4 --core 8 --coda 4 --data corpus/ --out looped

    linearize loop embedded --prelude 1 --core 2 --coda 1 --data stdlib --out looped --dry-run
    """
    from linearize.recipe import LoopRecipe

    built = options.recipe(
        LoopRecipe,
        recipe,
        model,
        overrides,
        top=options.given(out=out, revision=revision, trust_remote_code=trust_remote_code or None),
        loop=options.given(prelude=prelude, core=core, coda=coda),
        recurrence=options.given(mean=recurrences),
        data=options.given(source=data, eval_source=eval_data),
        training=options.given(tokens=tokens, seed=seed, device=device, dtype=dtype),
        output=options.given(save="adapter" if adapter_only else None),
    )
    if built.base is None:
        raise UsageError("there is no model to loop; name it first: linearize loop MODEL")
    if built.out is None and not dry_run:
        raise UsageError("there is nowhere to write the result; add --out DIR")

    quiet_libraries()
    with results_only(json):
        if dry_run:
            from linearize.plan import looping

            found = looping(built, resume=resume, overwrite=overwrite, dry=True)
        else:
            from linearize import loop as run
            from linearize.eval.report import write
            from linearize.training.processes import is_main

            done = run(built, resume=resume, overwrite=overwrite)
            report = str(write(done.path)) if is_main() else None
            found = {"path": str(done.path), "report": report, **done.summary}
    if json:
        emit(found)
    elif dry_run:
        _show_plan(found)
    else:
        _show_result(found)


def _show_plan(plan: dict[str, Any]) -> None:
    from linearize.figures import bytes_text

    model, trained, run, cut = plan["model"], plan["parameters"], plan["training"], plan["loop"]
    memory, device, depth = plan["memory_bytes"], plan["device"], plan["recurrence"]
    dropped = ", ".join(map(str, cut["dropped"])) or "none"
    rows = {
        "model": f"{model['name']} ({model['model_type']}, {model['parameters']:,} parameters, "
        f"{model['dtype']}, licence {model['license'] or 'not stated'})",
        "cut": f"prelude {cut['prelude']}, core {cut['core']}, coda {cut['coda']}; layers dropped: "
        f"{dropped}; {trained['base']:,} parameters then",
        "trained": f"{trained['trained']:,} parameters, "
        + ("in adapters" if trained["adapters"] else "all there are"),
        "training": f"{run['tokens']:,} tokens in {run['steps']:,} steps of "
        f"{run['tokens_per_step']:,} tokens, rows of {run['seq_len']:,}, {run['dtype']}",
        "recurrences": f"{depth['mean']} on average, gradient through the last "
        f"{depth['backprop']}, the mean rising over {depth['ramp']:.0%} of the steps",
        "objective": ", ".join(f"{name} {weight:g}" for name, weight in run["objective"].items()),
        "data": f"{plan['data']['source']}, held out: {plan['data']['held_out']}",
        "memory": f"{bytes_text(memory['total'])} and activations, on {device['name']}, which has "
        f"{bytes_text(device['memory_bytes'])}",
        "output": plan["output"]["path"] if plan["output"] else "not given; add --out DIR",
        **{f"note {number}": note for number, note in enumerate(plan["notes"], start=1)},
    }
    facts(rows)


def _show_result(result: dict[str, Any]) -> None:
    from linearize import figures

    original = result["losses"]["original"]
    table(
        "On held-out text",
        ["", "loss (nats/token)", "perplexity", "loss, to the original"],
        [
            (name, f"{loss:.4f}", f"{perplexity:.3f}", f"{loss / original - 1:+.1%}")
            for name, loss, perplexity in figures.by_recurrences(result)
        ],
    )
    facts(
        {
            "trained": f"{result['trained_parameters']:,} parameters, {result['tokens']:,} tokens "
            f"in {result['steps']:,} steps, {result['seconds']:.0f} s",
            "model": result["path"],
            "report": result["report"],
            "use it": f'decode {result["path"]} --sampler diffusion-forcing --prompt "..."',
        }
    )
