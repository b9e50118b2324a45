"""Stages before the main training: the same loop with other settings, or on fewer parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UsageError
from ..recipe import AnyRecipe, Recipe, StageSettings, TrainingSettings
from . import checkpoint, objectives, own_rows, prefix_rows
from .optimizer import steps_of

ADDED = {"mix", "prefix"}  # modules that a conversion adds


def settings_of(stage: StageSettings, main: TrainingSettings, number: int) -> TrainingSettings:
    """The settings of stage `number` (1, 2, ...): those of the main training where it has none.

    Its rows come in an order of its own.
    """
    own = stage.model_dump(exclude={"train"}, exclude_none=True)
    return main.model_copy(update={**own, "seed": main.seed + number})


@contextlib.contextmanager
def only(model: nn.Module, part: str) -> Iterator[None]:
    """Inside, training reaches `part` alone: "mix", what the conversion added, or "all".

    A model without any (the baseline) is trained whole, so that budgets stay comparable.
    """
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    added = {n for n in trained if ADDED & set(n.split("."))}
    frozen = [p for n, p in trained.items() if part == "mix" and added and n not in added]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def directory(run_dir: Path, number: int) -> Path:
    """Where stage `number` of a run keeps its metrics and checkpoints."""
    return run_dir / f"stage-{number}"


def checkpoints(run_dir: Path) -> list[Path]:
    """Where a run and its stages keep checkpoints; some may not be there yet."""
    return [checkpoint.directory(path) for path in (run_dir, *sorted(run_dir.glob("stage-*")))]


def check(recipe: AnyRecipe) -> None:
    """Raises `UsageError` for objectives that are unknown, or that this training cannot have."""
    weights = recipe.training.objective
    if recipe.data.prompt_field and prefix_rows.OBJECTIVE in weights:
        raise UsageError(
            f"data.prompt_field={recipe.data.prompt_field!r} cannot work with objective "
            f"'{prefix_rows.OBJECTIVE}', whose rows are made by encoder.prompt; set only that one"
        )
    repeats = objectives.needs_repeats(weights)
    objectives.check(weights, share=recipe.repetition.share if repeats else 0.0)
    if not recipe.lora.rank and (taught := objectives.needs_teacher(weights)):
        raise UsageError(
            f"lora.rank=0 trains the weights that objective '{taught}' needs as teacher; "
            "use a rank of at least 1, or training.objective={next_token: 1}"
        )
    if repeats:
        own_rows.check(recipe)


def planned(recipe: Recipe, added: int) -> list[dict[str, Any]]:
    """What each stage will do; `added`: parameters of the mix and the prefix encoder."""
    found = []
    for number, stage in enumerate(recipe.stages, start=1):
        settings = settings_of(stage, recipe.training, number)
        check(recipe.model_copy(update={"training": settings}))
        if objectives.needs_repeats(stage.objective):
            raise UsageError(
                f"stages.{number - 1}.objective is for repeated rows, and stages see ordinary "
                "ones; put it into training.objective"
            )
        if stage.train == "mix" and not added:
            raise UsageError(
                f"stages.{number - 1}.train=mix: liger.mix={recipe.liger.mix} has nothing to "
                "train; use train=all"
            )
        steps, tokens_per_step = steps_of(settings, seq_len=recipe.data.seq_len)
        trains = {"objective": stage.objective, "train": stage.train}
        found.append({"tokens": steps * tokens_per_step, "steps": steps, **trains})
    return found
