"""`linearize eval --suite`: a suite of measurements over a model."""

from __future__ import annotations

import json as encoder
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from linearize.errors import CheckError, Interrupted, OutputError, UsageError, suggest

from ._print import emit, progress, results_only, table

SUITES = ("repetition",)
# Rows of the printed table; results.json has every figure.
_SHOWN = ("tr-s", "tr-s pooled", "tr-s terminal", "tr-s terminal pooled", "tr-n", "rep-4", "rep-s")
_SHOWN += ("rep-sen", "diversity", "compile", "egp", "changed", "tokens", "tokens/s")


def run(
    model: str,
    suite: str,
    *,
    out: Path,
    samplers: str,
    prompts: list[Path] | None,
    field: str,
    language: str,
    limit: int | None,
    option: list[str] | None,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    overwrite: bool,
    tokenizer: str | None,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    json: bool,
) -> None:
    """Measure how much a model repeats itself, and what each remedy does about it."""
    if suite not in SUITES:
        raise UsageError(f"there is no suite '{suite}'{suggest(suite, SUITES)}")
    names = [name.strip() for name in samplers.split(",") if name.strip()]
    if not names:
        raise UsageError("--samplers names nothing; give samplers and remedies, as in greedy,rpg")

    from . import _decode_session as sessions
    from . import _decode_settings as settings

    plain = settings.Settings("greedy", {}, {}, max_new_tokens, seed, [], 1, None)
    runs = settings.each(plain, names, option or [], None, flag="--samplers")
    for run in runs.values():
        run.check()
    with results_only(json):
        from linearize.eval.suites import SUITES as suites
        from linearize.eval.suites import plots
        from linearize.eval.suites.prompts import read

        groups = read(prompts or [], field=field, language=language, limit=limit)
        session = sessions.load(
            model,
            tokenizer,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            runs=runs,
            as_json=json,
        )
        try:
            with progress("continuations") as reached:
                found = suites[suite](
                    session.model,
                    session.tokenizer,
                    groups,
                    {
                        n: {"sampler": r.sampler, **r.options, "remedies": r.remedies}
                        for n, r in runs.items()
                    },
                    out,
                    about=session.about,
                    max_new_tokens=max_new_tokens,
                    batch_size=batch_size,
                    seed=seed,
                    overwrite=overwrite,
                    on_progress=reached,
                )
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted; what was done is in {out}, the same command goes on from there"
            ) from error
        found = {"suite": suite, "versions": sessions.versions(), **found}
        _write(out / "results.json", found)
        drawn = plots.draw(found["groups"], out)
    found["files"] = [str(out / "results.json"), *map(str, drawn)]
    if json:
        emit(found)
    else:
        _show(found)
    if found["broken"]:
        raise CheckError(
            f"the logits of {found['broken']} continuations became NaN or infinite; they count as "
            "far as they go. Try --dtype float32, and check the model's weights"
        )


def _show(found: dict[str, Any]) -> None:
    for group in found["groups"]:
        ways = group["ways"]
        table(
            f"{group['name']}: {group['prompts']} prompts",
            ["", *ways],
            [
                (name, *(_number(name, figures[name]) for figures in ways.values()))
                for name in _SHOWN
                if all(name in figures for figures in ways.values())
            ],
        )
        print("\n".join(_notes(group)), end="\n\n")
    print("\n".join(found["files"]))
    if len(found["files"]) == 1:
        print('for plots: pip install "linearize[plots]"')


def _notes(group: dict[str, Any]) -> Iterator[str]:
    if group.get("left_out"):
        yield f"{group['left_out']} prompts left out: empty, or too long for the model"
    if group.get("calm"):
        yield f"changed: share of the {group['calm']} outputs that do not repeat with greedy"
    elif "calm" in group:
        yield "greedy repeats itself after every prompt"
    curve = group.get("self_reinforcement")
    if curve:
        first, second, *_, last = curve["tp"]
        yield (
            f"self-reinforcement over {curve['units']} lines or sentences: probability {first:.2f} "
            f"in the first copy, {second:.2f} in the second, {last:.2f} in number "
            f"{len(curve['tp'])}"
        )


def _number(name: str, value: float) -> str:
    return f"{value:.0f}" if name in ("tokens", "tokens/s") else f"{value:.3f}"


def _write(path: Path, values: dict[str, Any]) -> None:
    try:
        path.write_text(encoder.dumps(values, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
