"""One HTML file that says what a conversion or a retrofit did: numbers, plots, checks, recipe.

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
    """Write `report.html` into the output directory of `convert` or `loop`; returns its path.

    Reads `result.json`; `metrics.jsonl` and `samples.json` are optional, and the report says where
    one is absent. Plots need matplotlib; without it the report has the tables and says how to get
    them. The same input gives the same bytes.

    Raises `InputError` if `result.json` is missing or not what they write, `OutputError` if
    the report cannot be written.
    """
    run_dir = Path(run_dir)
    result = _read(run_dir / "result.json")
    if result is None:
        raise InputError(
            f"{run_dir} has no result.json; give the output directory of a finished "
            "`linearize convert` or `linearize loop`"
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
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_template),
    )
    environment.filters |= {"bytes": figures.bytes_text, "short": _short}
    looped = "loop" in result
    try:
        name = Path(result["base"]["name"]).name
        return environment.get_template("report_looped.html" if looped else "report.html").render(
            (_looped if looped else _converted)(result, metrics),
            result=result,
            title=f"{name}, {'looped' if looped else 'linearized'}",
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


def _template(name: str) -> str:
    return resources.files("linearize.eval").joinpath(name).read_text("utf-8")


def _looped(result: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page of a retrofit has of its own."""
    drawn = {}
    if importlib.util.find_spec("matplotlib") is not None:
        from . import plots

        losses = {"original": result["losses"]["original"]}
        points = [(int(r), loss) for r, loss in result["loss_by_recurrences"].items()]
        drawn["by_recurrences"] = plots.by_recurrences(points, losses)
        trained = [r for r in metrics if "loss" in r]
        if len(trained) > 1:
            objectives = list(result["recipe"]["training"]["objective"])
            drawn["training"] = plots.training(trained, objectives, losses)
    return {
        "rows": figures.by_recurrences(result),
        "plots": {name: Markup(svg) for name, svg in drawn.items()},
    }


def _converted(result: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page of a conversion has of its own."""
    return {
        "losses": figures.losses(result),
        "break_even": figures.break_even(result),
        "plots": _plots(result, metrics),
    }


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
