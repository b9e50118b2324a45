"""Tasks are built before a model is loaded: what cannot run is said first, in one line each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearize.errors import InputError, LinearizeError, UsageError
from linearize.eval.tasks import TASKS


@dataclass
class Checked:
    """`tasks` are the harness's objects, ready to run; `skipped`: name -> why it cannot."""

    tasks: list[Any] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def names_of(asked: Sequence[str]) -> list[str]:
    """Names from "a,b c" in any mixture, each once."""
    names = [name.strip() for some in asked for name in some.replace(",", " ").split()]
    if not names:
        raise UsageError("--tasks names nothing; give tasks, as in local_arc_easy,local_piqa")
    return list(dict.fromkeys(names))


def only_local(names: Sequence[str]) -> bool:
    """Whether the harness's own tasks need not be indexed."""
    files = (".yaml", ".yml")
    return all(name.startswith("local_") or Path(name).suffix in files for name in names)


def check(
    manager: Any, names: Sequence[str], *, execute_code: bool, skip_unavailable: bool
) -> Checked:
    """Build every task.

    Raises `UsageError` for a name that does not exist and for code that nobody allowed to run;
    `InputError` for tasks that are unavailable, unless they are skipped and others remain.
    """
    checked = Checked()
    for name in _expand(manager, names):
        try:
            built = manager._load_spec(name)
        except UsageError:
            raise
        except Exception as error:  # the hub, its data sets and tasks fail in many ways
            checked.skipped[name] = _why(manager, name, error)
            continue
        objects = built if isinstance(built, list) else [built]
        _refuse_code(objects, execute_code)
        checked.tasks.extend(objects)
    if checked.skipped and not (skip_unavailable and checked.tasks):
        told = "; ".join(f"{name}: {why}" for name, why in checked.skipped.items())
        more = " (--skip-unavailable runs the others)" if checked.tasks else ""
        raise InputError(f"{told}{more}")
    return checked


def _expand(manager: Any, names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        if Path(name).suffix in (".yaml", ".yml"):
            if not Path(name).is_file():
                raise InputError(f"there is no task file {name}")
            found.append(name)
            continue
        matches = manager.match_tasks([name])
        if not matches:
            near = difflib.get_close_matches(name, manager.all_tasks, n=4, cutoff=0.6)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise UsageError(f"there is no task '{name}'{hint}; `lm_eval ls tasks` lists them")
        found.extend(matches)
    return list(dict.fromkeys(found))


def _refuse_code(objects: Sequence[Any], allowed: bool) -> None:
    for item in objects:
        leaves = item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]
        unsafe = [leaf.task_name for leaf in leaves if getattr(leaf, "UNSAFE_CODE", False)]
        if unsafe and not allowed:
            raise UsageError(
                f"{', '.join(unsafe)} runs code that the model writes; allow it with "
                "--execute-code, in a container if you do not trust the model"
            )


def _why(manager: Any, name: str, error: Exception) -> str:
    if isinstance(error, LinearizeError):
        return str(error).removeprefix(f"{name}: ")
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if isinstance(error, ImportError):
        return f"needs a package that is not installed ({line})"
    source = _source(manager, name)
    if source is None:
        return line
    local = f"local_{name}"
    instead = f"; or {local}, which reads local files" if local in TASKS else ""
    return (
        f"its data set {source} is on the hub and could not be read ({line}). Where there is a "
        f"network, once: hf download {source} --repo-type dataset --local-dir DIR/{source}; then "
        f"--data-dir DIR{instead}"
    )


def _source(manager: Any, name: str) -> str | None:
    """The hub's data set of a task, or of the first in a group, if it has one."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if Path(name).suffix in (".yaml", ".yml"):
        return load_yaml(Path(name), resolve_func=False).get("dataset_path")
    for _ in range(8):  # groups within groups
        entry = manager.task_index.get(name)
        if entry is None:
            return None
        config = entry.cfg or {}
        if isinstance(config.get("dataset_path"), str):
            return config["dataset_path"]
        inside = config.get("task")
        first = next(iter(inside if isinstance(inside, list) else sorted(entry.tags)), "")
        name = first.get("task", "") if isinstance(first, dict) else first
    return None
