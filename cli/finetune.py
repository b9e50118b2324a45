"""`linearize finetune`: train any causal LM on text, against repetition by default."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from linearize.errors import UsageError

from . import _options as options
from ._print import emit, facts, quiet_libraries, results_only, table


def finetune(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Local directory, hub id, or 'embedded'. Any causal language model of "
            "transformers, converted ones included. May be left out if the recipe names a base.",
        ),
    ] = None,
    overrides: options.Overrides = None,
    out: options.Out = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            help="Name (ditto, ditto-own, unlikelihood) or YAML file. Values count in this order: "
            "defaults, recipe, KEY=VALUE, options.",
        ),
    ] = "ditto",
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
    """Fine-tune a language model, with LoRA or (lora.rank=0) in full, so that it repeats less.

    DIR then loads with AutoModelForCausalLM and holds perplexity and repetition
    of greedy continuations before and after (result.json), the recipe and a
    model card.

    Examples:

    linearize finetune ./my-llama --recipe ditto --data corpus/ --out calm

    linearize finetune ./my-coder --data src/ --out calm repetition.unit=line

    linearize finetune ./my-llama --recipe ditto-own --data corpus/ --out calm

    linearize finetune embedded --data stdlib --out calm rank=0 --dry-run
    """
    from linearize.recipe import FinetuneRecipe

    built = options.recipe(
        FinetuneRecipe,
        recipe,
        model,
        overrides,
        top=options.given(out=out, revision=revision, trust_remote_code=trust_remote_code or None),
        data=options.given(source=data, eval_source=eval_data),
        training=options.given(tokens=tokens, seed=seed, device=device, dtype=dtype),
        output=options.given(save="adapter" if adapter_only else None),
    )
    if built.base is None:
        raise UsageError("there is no model to finetune; name it first: linearize finetune MODEL")
    if built.out is None and not dry_run:
        raise UsageError("there is nowhere to write the result; add --out DIR")

    quiet_libraries()
    with results_only(json):
        if dry_run:
            from linearize.plan import finetuning

            found = finetuning(built, resume=resume, overwrite=overwrite, dry=True)
        else:
            from linearize import finetune as run
            from linearize.eval.continuations import measure

            done = run(built, measure=measure(built), resume=resume, overwrite=overwrite)
            found = {"path": str(done.path), **done.summary}
    if json:
        emit(found)
    elif dry_run:
        _show_plan(found)
    else:
        _show_result(found)


def _show_plan(plan: dict[str, Any]) -> None:
    from linearize.figures import bytes_text

    model, trained, run = plan["model"], plan["parameters"], plan["training"]
    memory, device, repeats = plan["memory_bytes"], plan["device"], plan["repetition"]
    rows = {
        "model": f"{model['name']} ({model['model_type']}, {model['parameters']:,} parameters, "
        f"{model['dtype']}, licence {model['license'] or 'not stated'})",
        "trained": f"{trained['trained']:,} parameters, "
        + ("in adapters" if trained["adapters"] else "all there are"),
        "training": f"{run['tokens']:,} tokens in {run['steps']:,} steps of "
        f"{run['tokens_per_step']:,} tokens, rows of {run['seq_len']:,}, {run['dtype']}",
        "objective": ", ".join(f"{name} {weight:g}" for name, weight in run["objective"].items()),
        "repeated rows": repeats and f"{repeats['share']:.0%} of the steps, {_kind(repeats)}",
        "data": f"{plan['data']['source']}, held out: {plan['data']['held_out']}",
        "memory": f"{bytes_text(memory['total'])} and activations, on {device['name']}, which has "
        f"{bytes_text(device['memory_bytes'])}",
        "output": plan["output"]["path"] if plan["output"] else "not given; add --out DIR",
        **{f"note {number}": note for number, note in enumerate(plan["notes"], start=1)},
    }
    facts({name: value for name, value in rows.items() if value is not None})


def _kind(repeats: dict[str, Any]) -> str:
    if repeats["origin"] == "model":
        rows, other = f"by the model itself, anew every {repeats['refresh']} steps", "best other"
    else:
        rows, other = f"unit {repeats['unit']}", "one before"
    return f"{rows}, a copy may have {repeats['penalty']:g} of the probability of the {other}"


def _show_result(result: dict[str, Any]) -> None:
    from linearize import figures

    table(
        "On held-out text",
        ["", "before", "after", "change"],
        [
            (name, f"{a:.4f}", f"{b:.4f}", f"{b / a - 1:+.1%}" if a else "")
            for name, a, b in figures.change(result)
        ],
    )
    facts(
        {
            "trained": f"{result['trained_parameters']:,} parameters, {result['tokens']:,} tokens "
            f"in {result['steps']:,} steps, {result['seconds']:.0f} s",
            "model": result["path"],
            "use it": f'decode {result["path"]} --prompt "..."',
        }
    )
