"""Sections of what was trained: conversions, retrofits, fine-tunings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from linearize import figures

from .page import Figure, Section, figure, template
from .sources import Source

LENGTHS = (128, 1024, 8192, 65_536)


def section(source: Source) -> Section:
    """Everything that `result.json`, metrics and samples of a run say."""
    result, metrics = source.values, source.metrics
    name = Path(result["base"]["name"]).name
    what, own = {
        "conversion": ("linearized", _conversion),
        "retrofit": ("looped", _retrofit),
        "finetuning": ("fine-tuned", _finetuning),
    }[source.kind]
    body = template(
        f"{source.kind}.html",
        result=result,
        have_metrics=bool(metrics),
        samples=source.samples,
        recipe=yaml.safe_dump(result["recipe"], sort_keys=False, allow_unicode=True),
        lengths=LENGTHS,
        **own(source),
    )
    return Section(f"{name}, {what}", body)


def _conversion(source: Source) -> dict[str, Any]:
    result = source.values
    drawn = [_training(source, result["losses"]), _held_out(source), _by_position(source)]
    if per_token := result["kv_bytes_per_token"]:
        state = result["state_bytes"]["total"]
        drawn.append(
            figure(
                f"{source.name}-memory",
                "Memory per sequence",
                "Both axes are logarithmic.",
                lambda plots: plots.memory(state, per_token),
                ("tokens", "kv_cache_bytes", "state_bytes"),
                [(n, n * per_token, state) for n in (2**i for i in range(4, 18))],
            )
        )
    if weights := result.get("mix"):
        meaning = "Weight of the recurrence per head; 0 is the window alone."
        if result["spec"]["mix"] == "joint":
            meaning = "Log of how much the recurrence counts per head, above its start at 0."
        drawn.append(
            figure(
                f"{source.name}-mix",
                "Learned mix",
                meaning,
                lambda plots: plots.mix(weights),
                ("layer", "head", "weight"),
                [(n, head, w) for n in weights for head, w in enumerate(weights[n])],
            )
        )
    if measured := result.get("sensitivity"):
        damage = [(row["layer"], row["damage"]) for row in measured["layers"]]
        drawn.append(
            figure(
                f"{source.name}-sensitivity",
                "Damage by layer",
                "Held-out loss with only that layer converted, untrained, above the teacher's; "
                f"kept as softmax: {', '.join(map(str, measured['kept']))}.",
                lambda plots: plots.damage(damage, measured["kept"]),
                ("layer", "damage"),
                damage,
            )
        )
    return {
        "losses": figures.losses(result),
        "break_even": figures.break_even(result),
        "figures": [one for one in drawn if one],
    }


def _retrofit(source: Source) -> dict[str, Any]:
    result = source.values
    losses = {"original": result["losses"]["original"]}
    points = [(int(r), loss) for r, loss in result["loss_by_recurrences"].items()]
    drawn = [
        figure(
            f"{source.name}-recurrences",
            "Loss by recurrences",
            "Held-out loss of the trained model beside that of the model as it was.",
            lambda plots: plots.by_recurrences(points, losses),
            ("recurrences", "loss"),
            points,
        ),
        _training(source, losses),
    ]
    return {
        "rows": figures.by_recurrences(result),
        "figures": [one for one in drawn if one],
    }


def _finetuning(source: Source) -> dict[str, Any]:
    drawn = _training(source, {})
    return {"rows": figures.change(source.values), "figures": [drawn] if drawn else []}


def _training(source: Source, losses: dict[str, Any]) -> Figure | None:
    trained = [r for r in source.metrics if "loss" in r]
    if len(trained) < 2:
        return None
    recipe = source.values["recipe"]
    objectives = list(recipe.get("training", {}).get("objective", {"next_token": 1.0}))
    return figure(
        f"{source.name}-training",
        "Training",
        "What is minimised, at each step; the running mean is drawn on top of a long run.",
        lambda plots: plots.training(trained, objectives, losses),
        ("tokens", "loss"),
        [(r["tokens"], r["loss"]) for r in trained],
    )


def _held_out(source: Source) -> Figure | None:
    result, losses = source.values, source.values["losses"]
    if not result["tokens"]:
        return None
    measured = {r["tokens"]: r["eval_loss"] for r in source.metrics if "eval_loss" in r}
    ends = {0: losses["before"], result["tokens"]: losses["student"]}
    points = sorted((measured | ends).items())
    return figure(
        f"{source.name}-held-out",
        "Held-out loss",
        "From the converted, untrained model to the student, between teacher and window alone.",
        lambda plots: plots.held_out(points, losses),
        ("tokens", "loss"),
        points,
    )


def _by_position(source: Source) -> Figure | None:
    position, window = source.values["loss_by_position"], source.values["spec"]["window"]
    edges = position["edges"]
    lines = {name: values for name, values in position.items() if name != "edges" and values}
    return figure(
        f"{source.name}-by-position",
        "Loss by position",
        "Beyond the window, only the state carries what came before.",
        lambda plots: plots.by_position(edges, lines, window),
        ("model", "from", "to", "loss"),
        [
            (name, *ends, loss)
            for name, values in lines.items()
            for *ends, loss in zip(edges[:-1], edges[1:], values, strict=True)
        ],
    )
