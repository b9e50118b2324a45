"""Local tasks by name: one row each, a function that returns the harness's task configuration.

    @task("local_copying")
    def copying(*, length: int = 64, samples: int = 500, seed: int = 0) -> dict[str, Any]:
        return {"custom_dataset": ..., "doc_to_text": ..., "metric_list": [...]}

- The keyword parameters, which all have defaults, are what a person may set (`--task-arg
  NAME.KEY=VALUE`). Two are filled in by whoever evaluates: `data_dir` (Path or None, `--data-dir`)
  and `tokenizer` (the model's, for tasks whose length is counted in its tokens).
- The dict is lm-eval's `TaskConfig`; values may be Python callables. `custom_dataset(**_)` returns
  `{split: datasets.Dataset}` and is called only when the task is built.
- Calling the function imports neither torch, datasets nor lm_eval, and reads no data: raise
  `InputError` for files that are absent, so that a task is refused before a model is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from linearize.errors import UsageError, suggest

Config = dict[str, Any]
TASKS: dict[str, Callable[..., Config]] = {}
_FILLED_IN = ("data_dir", "tokenizer")


def task(name: str) -> Callable[[Callable[..., Config]], Callable[..., Config]]:
    """Register a function as the task `name`, which starts with `local_`, so that nobody takes it
    for the harness's own."""

    def add(make: Callable[..., Config]) -> Callable[..., Config]:
        if name in TASKS or not name.startswith("local_"):
            raise ValueError(f"'{name}' is taken, or does not start with local_")
        TASKS[name] = make
        return make

    return add


def parameters(name: str) -> dict[str, Any]:
    """Parameter -> default of a task, as far as a person sets them."""
    given = inspect.signature(TASKS[name]).parameters
    return {p.name: p.default for p in given.values() if p.name not in _FILLED_IN}


def config(
    name: str,
    parameters_of_task: Mapping[str, Any] | None = None,
    *,
    data_dir: Path | None = None,
    tokenizer: Any = None,
) -> Config:
    """The harness's configuration of a task; its `metadata` records the parameters.

    Raises `UsageError` for an unknown task or parameter, `InputError` for data that is absent.
    """
    if name not in TASKS:
        raise UsageError(f"there is no local task '{name}'{suggest(name, TASKS)}")
    known, given = parameters(name), dict(parameters_of_task or {})
    for key in given:
        if key not in known:
            raise UsageError(f"the task '{name}' has no parameter '{key}'{suggest(key, known)}")
    filled = {"data_dir": data_dir, "tokenizer": tokenizer}
    takes = inspect.signature(TASKS[name]).parameters
    made = TASKS[name](**given, **{k: v for k, v in filled.items() if k in takes})
    metadata = {"version": 1.0, **made.get("metadata", {}), "parameters": {**known, **given}}
    return {"task": name, **made, "metadata": metadata}
