"""An evaluation: tasks checked, model loaded, harness run, results written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from linearize.errors import Interrupted, OutputError, UsageError

from ..alone import alone

RESULTS = "results.json"


def evaluate(
    model: str | Path | Any,
    tasks: Sequence[str],
    *,
    out: Path | None = None,
    data_dir: Path | None = None,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    skip_unavailable: bool = False,
    execute_code: bool = False,
    include_path: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    on_skipped: Callable[[str, str], None] = lambda name, why: None,
    **harness: Any,
) -> dict[str, Any] | None:
    """Evaluate a model on tasks of the harness; results as the harness returns them, or None in
    all processes but the first.

    - `model`: what `Linearize` takes as `pretrained`; `model_args`: its other arguments.
    - `tasks`: names (local or the harness's, with *), YAML files.
    - `out`: directory for results.json, samples and finished requests: the same evaluation again
      goes on where it was ended.
    - `data_dir`, `parameters`: of local tasks, see `Tasks`.
    - `execute_code`: allow tasks to run what the model writes.
    - `on_skipped`: told what `skip_unavailable` left out, and why.
    - `harness`: of lm-eval's `simple_evaluate`: `num_fewshot`, `limit`, `log_samples`, ...

    The results' entry `linearize` has the sampler, the spec, versions and content hashes.
    Raises `UsageError` and `InputError` for what cannot run, before the model is loaded.
    """
    from . import require

    require()
    from lm_eval import simple_evaluate

    from .checking import check, names_of, only_local
    from .model import Linearize
    from .task_manager import Tasks, in_step

    names = names_of(tasks)
    arguments = dict(model_args or {})
    manager = Tasks(
        include_path=include_path,
        include_defaults=not only_local(names),
        metadata={**_plain(arguments), **(metadata or {})},
        data_dir=data_dir,
        parameters=parameters,
        tokenizer=_words(model, arguments),
    )
    checked = check(manager, names, execute_code=execute_code, skip_unavailable=skip_unavailable)
    for name, why in checked.skipped.items():
        on_skipped(name, why)
    held = contextlib.nullcontext()
    if out is not None:
        held = alone(out)
        arguments.setdefault("responses", out)
    with held:
        lm = Linearize(model, **arguments)
        for item in checked.tasks:
            for leaf in item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]:
                in_step(leaf, lm.rank, lm.world_size, harness.get("limit"))
        try:
            found = simple_evaluate(
                lm,
                tasks=checked.tasks,
                task_manager=manager,
                confirm_run_unsafe_code=execute_code,
                **harness,
            )
        except KeyboardInterrupt as error:
            kept = f"; what was done is in {out}, the same command goes on" if out else ""
            raise Interrupted(f"interrupted{kept}") from error
        if found is None:
            return None
        about = lm.get_model_info()
        found["linearize"] = {
            **about.pop("linearize"),
            **about,
            "parameters": {k: dict(v) for k, v in (parameters or {}).items()},
            "data_dir": str(data_dir) if data_dir else None,
            "skipped": checked.skipped,
        }
        if out is not None:
            _write(out, found)
        return found


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a results file can hold."""
    return {k: v for k, v in arguments.items() if isinstance(v, str | int | float | bool)}


def _words(model: Any, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """The tokenizer, read when the first task asks for it."""

    def read() -> Any:
        from linearize import pretrained

        given = arguments.get("tokenizer")
        if given is not None and not isinstance(given, str | Path):
            return given
        named = given or model
        if not isinstance(named, str | Path):
            raise UsageError("a model in memory needs its tokenizer: tokenizer=...")
        where = pretrained.locate(str(named))
        return pretrained.tokenizer(where, bool(arguments.get("trust_remote_code")))

    return read


def _write(out: Path, found: dict[str, Any]) -> None:
    """results.json and samples_TASK.jsonl; each appears whole or not at all."""
    from lm_eval.utils import handle_non_serializable

    def text(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, indent=indent, default=handle_non_serializable)

    samples = found.get("samples") or {}
    files = {f"samples_{name}.jsonl": map(text, rows) for name, rows in samples.items()}
    kept = {key: value for key, value in found.items() if key != "samples"}
    files[RESULTS] = [text(kept, 1)]
    for name, lines in files.items():
        try:
            partial = out / f".{name}.partial"
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(partial, out / name)
        except OSError as error:
            raise OutputError(f"{out / name} cannot be written: {error.strerror}") from error
