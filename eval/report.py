"""One HTML file that says what a conversion did: numbers, plots, samples, checks, recipe.

Self-contained (inline SVG, no scripts, nothing fetched) and readable on light and dark.
"""

from __future__ import annotations

import importlib.util
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from linearize import figures
from linearize.errors import InputError, OutputError
from linearize.training import progress

INSTALL = 'pip install "linearize[plots]"'


def write(run_dir: Path) -> Path:
    """Write `report.html` into the output directory of a conversion; returns its path.

    Reads `result.json`; `metrics.jsonl` and `samples.json` are optional, and the report says where
    one is absent. Plots need matplotlib; without it the report has the tables and says how to get
    them. The same input gives the same bytes.

    Raises `InputError` if `result.json` is missing or not what `convert` writes, `OutputError` if
    the report cannot be written.
    """
    run_dir = Path(run_dir)
    result = _read(run_dir / "result.json")
    if result is None:
        raise InputError(
            f"{run_dir} has no result.json; give the output directory of a finished "
            "`linearize convert`"
        )
    page = render(
        result, progress.read(run_dir / progress.METRICS), _read(run_dir / "samples.json")
    )
    path = run_dir / "report.html"
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the report {path} cannot be written: {error.strerror}") from error
    return path


def render(
    result: dict[str, Any],
    metrics: list[dict[str, Any]],
    samples: list[dict[str, str]] | None,
) -> str:
    """The page as text. Raises `InputError` naming a key that `result` lacks."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": figures.bytes_text, "short": _short}
    template = resources.files("linearize.eval").joinpath("report.html").read_text("utf-8")
    try:
        return environment.from_string(template).render(
            result=result,
            title=f"{Path(result['base']['name']).name}, linearized",
            losses=figures.losses(result),
            break_even=figures.break_even(result),
            plots=_plots(result, metrics),
            have_plots=importlib.util.find_spec("matplotlib") is not None,
            install=INSTALL,
            have_metrics=bool(metrics),
            samples=samples,
            recipe=yaml.safe_dump(result["recipe"], sort_keys=False, allow_unicode=True),
        )
    except KeyError as error:
        raise _incomplete(f"no {error}") from error
    except jinja2.UndefinedError as error:
        raise _incomplete(str(error)) from error


def _plots(result: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Markup]:
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    from . import plots

    losses, position = result["losses"], result["loss_by_position"]
    drawn = {}
    trained = [r for r in metrics if "loss" in r]
    if len(trained) > 1:
        objectives = result["recipe"].get("training", {}).get("objective", {"next_token": 1.0})
        drawn["training"] = plots.training(trained, list(objectives), losses)
    if result["tokens"]:
        measured = {r["tokens"]: r["eval_loss"] for r in metrics if "eval_loss" in r}
        ends = {0: losses["before"], result["tokens"]: losses["student"]}
        drawn["held_out"] = plots.held_out(sorted((measured | ends).items()), losses)
    curves = {name: values for name, values in position.items() if name != "edges" and values}
    drawn["by_position"] = plots.by_position(position["edges"], curves, result["spec"]["window"])
    if result["kv_bytes_per_token"]:
        drawn["memory"] = plots.memory(result["state_bytes"]["total"], result["kv_bytes_per_token"])
    if result.get("mix"):
        drawn["mix"] = plots.mix(result["mix"])
    return {name: Markup(svg) for name, svg in drawn.items()}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _incomplete(what: str) -> InputError:
    return InputError(f"result.json is incomplete ({what}); was it edited by hand?")
