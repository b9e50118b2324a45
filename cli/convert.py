"""`linearize convert`: from a pretrained model to a working hybrid, in one command."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from linearize.errors import UsageError

from . import _options as options
from ._print import emit, facts, quiet_libraries, results_only, table


def convert(
    model: options.RecipeModel = None,
    overrides: options.Overrides = None,
    out: options.Out = None,
    recipe: options.Recipes = None,
    data: options.Data = None,
    eval_data: options.EvalData = None,
    tokens: options.Tokens = None,
    seed: options.Seed = None,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Also train the window alone with the same budget, for comparison.",
            rich_help_panel=options.TRAINING,
        ),
    ] = False,
    gate: options.Gate = None,
    window: options.Window = None,
    mix: options.Mix = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    adapter_only: options.AdapterOnly = False,
    no_report: Annotated[
        bool,
        typer.Option(
            "--no-report",
            help="No samples and no HTML report.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
) -> None:
    """Convert a pretrained model into a recurrent hybrid that keeps most of what it can do.

    Softmax attention becomes a gated recurrence beside a short window; LoRA
    adapters repair what that costs and are merged. DIR then loads with
    AutoModelForCausalLM and holds the measured losses (result.json), the
    recipe, a model card and report.html.

    Examples:

    linearize convert embedded --recipe demo --out demo-out

    linearize convert ./my-llama --data corpus/ --tokens 20000000 --out liger

    linearize convert ./my-llama --data text.txt --out liger rank=16 --dry-run
    """
    from linearize.recipe import Recipe

    built = options.recipe(
        Recipe,
        recipe or ["liger"],
        model,
        overrides,
        top=options.given(out=out, revision=revision, trust_remote_code=trust_remote_code or None),
        liger=options.given(gate=gate, window=window, mix=mix),
        data=options.given(source=data, eval_source=eval_data),
        training=options.given(tokens=tokens, seed=seed, device=device, dtype=dtype),
        output=options.given(save="adapter" if adapter_only else None, baseline=baseline or None),
    )
    if built.base is None:
        raise UsageError("there is no model to convert; name it first: linearize convert MODEL")
    if built.out is None and not dry_run:
        raise UsageError("there is nowhere to write the result; add --out DIR")

    quiet_libraries()
    with results_only(json):
        if dry_run:
            from linearize.plan import plan

            found = plan(built, resume=resume, overwrite=overwrite, dry=True)
        else:
            found = _run(built, resume=resume, overwrite=overwrite, report=not no_report)
    if json:
        emit(found)
    elif dry_run:
        _show_plan(found)
    else:
        _show_result(found)


def _run(recipe: Any, *, resume: bool, overwrite: bool, report: bool) -> dict[str, Any]:
    """Convert, then write samples and report. The result with `path` and `report` added."""
    from linearize import convert as run
    from linearize.training.processes import is_main

    done = run(recipe, resume=resume, overwrite=overwrite)
    found = {"path": str(done.path), "report": None, **done.summary}
    if report and is_main():
        from linearize.eval import report as reports
        from linearize.eval import samples

        samples.write(done.path, recipe)
        found["report"] = str(reports.write(done.path))
    return found


def _show_plan(plan: dict[str, Any]) -> None:
    from linearize.figures import bytes_text

    model, swap, trained = plan["model"], plan["swap"], plan["parameters"]
    run, memory, device = plan["training"], plan["memory_bytes"], plan["device"]
    spec, kept, chosen = swap["spec"], swap["kept_softmax"], swap["measured"]
    facts(
        {
            "model": f"{model['name']} ({model['model_type']}, {model['parameters']:,} parameters, "
            f"{model['dtype']}, licence {model['license'] or 'not stated'})",
            "swap": f"{len(swap['layers']) - chosen} attention layers become {spec['gate']} "
            f"recurrences beside a window of {spec['window']} keys, mix {spec['mix']}"
            + (f"; layers {', '.join(map(str, kept))} stay softmax" if kept else "")
            + (f"; the {chosen} damaged most, to be measured, stay softmax" if chosen else ""),
            "trained": f"{trained['trained']:,} parameters ({trained['trained_share']:.3%}): "
            f"{trained['adapters']:,} in adapters, {trained['mix']:,} mix weights",
            **{
                f"stage {number}": f"{stage['tokens']:,} tokens in {stage['steps']:,} steps, "
                f"{' + '.join(stage['objective'])}, training {stage['train']}"
                for number, stage in enumerate(plan["stages"], start=1)
            },
            "training": f"{run['tokens']:,} tokens in {run['steps']:,} steps of "
            f"{run['tokens_per_step']:,} tokens, rows of {run['seq_len']:,}, {run['dtype']}",
            "work": f"{run['operations']:.2g} operations in products with weights: "
            f"{run['operations'] / 100e12 / 3600:.2g} hours at 100 Tflop/s",
            "data": f"{plan['data']['source']}, held out: {plan['data']['held_out']}",
            "memory": f"about {bytes_text(memory['total'])} on {device['name']}, which has "
            f"{bytes_text(device['memory_bytes'])}"
            + ("" if plan["fits"] else ": NOT ENOUGH; lower batch_size or seq_len"),
            "of which": ", ".join(
                f"{name} {bytes_text(size)}" for name, size in memory.items() if name != "total"
            ),
            "state": f"{bytes_text(plan['state_bytes']['total'])} per sequence instead of "
            f"{bytes_text(plan['kv_bytes_per_token'])} per token",
            "output": plan["output"]["path"] if plan["output"] else "not given; add --out DIR",
            **{f"note {number}": note for number, note in enumerate(plan["notes"], start=1)},
        }
    )


def _show_result(result: dict[str, Any]) -> None:
    from linearize import figures

    table(
        "Held-out loss",
        ["", "nats/token", "perplexity", "of the teacher's"],
        [
            (row.label, f"{row.loss:.4f}", f"{row.perplexity:.3f}", f"{row.ratio:.4f}")
            for row in figures.losses(result)
        ],
    )
    state = result["state_bytes"]["total"]
    rows = {
        "trained": f"{result['trained_parameters']:,} of {result['total_parameters']:,} "
        f"parameters, {result['tokens']:,} tokens in {result['steps']:,} steps, "
        f"{result['seconds']:.0f} s",
        "state": f"{figures.bytes_text(state)} per sequence at any length; the base keeps "
        f"{figures.bytes_text(result['kv_bytes_per_token'])} per token",
        "model": result["path"],
        "report": result["report"],
        "use it": f'decode {result["path"]} --prompt "..."',
        "in Python": f'linearize.load("{result["path"]}")',
    }
    facts({name: value for name, value in rows.items() if value is not None})
