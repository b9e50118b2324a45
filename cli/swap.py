"""`linearize swap`: the converted model before training, for models larger than memory."""

from __future__ import annotations

from typing import Any

from linearize.errors import UsageError

from . import _options as options
from ._print import emit, facts, quiet_libraries, results_only


def swap(
    model: options.RecipeModel = None,
    overrides: options.Overrides = None,
    out: options.Out = None,
    recipe: options.Recipes = None,
    seed: options.Seed = None,
    gate: options.Gate = None,
    window: options.Window = None,
    mix: options.Mix = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Swap the attention of a model and train nothing, without loading the model.

    Files of weights are copied one after the other, so a model of any size is
    swapped with little memory; --resume keeps the files that are whole. Of a
    recipe, only `liger` counts. What is written loads as what `linearize
    convert` writes does, and `linearize finetune` can train it.

    Examples:

    linearize swap ./llama-70b --out swapped

    linearize swap --recipe llama-3-8b liger.window=128 --out swapped
    """
    from linearize.recipe import Recipe

    built = options.recipe(
        Recipe,
        recipe or ["liger"],
        model,
        overrides,
        top=options.given(out=out, revision=revision, trust_remote_code=trust_remote_code or None),
        liger=options.given(gate=gate, window=window, mix=mix),
        training=options.given(seed=seed),
    )
    if built.base is None:
        raise UsageError("there is no model to swap; name it first: linearize swap MODEL")
    if built.out is None:
        raise UsageError("there is nowhere to write the result; add --out DIR")
    from linearize.swapping import swap as run

    quiet_libraries()
    with results_only(json):
        done = run(built, resume=resume, overwrite=overwrite)
    found = {"path": str(done.path), **done.summary}
    if json:
        emit(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from linearize.figures import bytes_text

    spec = found["spec"]
    facts(
        {
            "swapped": f"{found['base']['name']}: {spec['gate']} recurrences beside a window of "
            f"{spec['window']} keys, mix {spec['mix']}; {found['added_parameters']:,} new "
            "parameters, nothing trained",
            "state": f"{bytes_text(found['state_bytes']['total'])} per sequence instead of "
            f"{bytes_text(found['kv_bytes_per_token'])} per token",
            "written": f"{found['files']} files of weights, {bytes_text(found['bytes'])}, in "
            f"{found['seconds']:.0f} s",
            "model": found["path"],
            "train it": f"linearize finetune {found['path']} --data TEXT --out DIR",
        }
    )
