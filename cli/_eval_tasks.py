"""`linearize eval --tasks`: the harness, with its own options passed through."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from linearize.errors import UsageError

from ._print import emit, quiet_libraries, results_only

# lm-eval's options that are given to its function as they are.
_PASSED = ("num_fewshot", "system_instruction", "samples", "gen_kwargs", "predict_only")
_PASSED += ("apply_chat_template", "write_out", "check_integrity", "log_samples")
# Those that `linearize eval` has itself, or does in its own way.
_OURS = {
    "use_cache": "finished requests are kept in --out, where settings cannot be mixed up",
    "cache_requests": "its cache does not see the prompts; finished requests are kept in --out",
    "config": "give the options on the command line",
    "confirm_run_unsafe_code": "say --execute-code",
    "verbosity": "set LMEVAL_LOG_LEVEL",
    "wandb_args": "use `python -m linearize.eval`, lm-eval's own command",
    "wandb_config_args": "use `python -m linearize.eval`, lm-eval's own command",
    "trackio_args": "use `python -m linearize.eval`, lm-eval's own command",
    "hf_hub_log_args": "use `python -m linearize.eval`, lm-eval's own command",
}


def run(
    model: str,
    tasks: str,
    rest: Sequence[str],
    *,
    out: Path | None,
    data_dir: Path | None,
    task_arg: Sequence[str],
    skip_unavailable: bool,
    execute_code: bool,
    limit: float | None,
    seed: int | None,
    json: bool,
    option: Sequence[str],
    model_args: dict[str, Any],
) -> None:
    """Evaluate and print the tables; `rest` are lm-eval's options as they were given."""
    from linearize.eval.harness import evaluate, require

    require()
    given = _parse(rest)
    if given.get("log_samples") and out is None:
        raise UsageError("--log_samples writes files: give a directory with --out DIR")
    arguments = {k: v for k, v in model_args.items() if v is not None}
    arguments |= _assignments("--option", option) | (given.pop("model_args", None) or {})
    if given.get("max_batch_size"):
        arguments["max_batch_size"] = given["max_batch_size"]
    harness = {key: given[key] for key in _PASSED if given.get(key) is not None}
    template = bool(harness.get("apply_chat_template"))
    harness["fewshot_as_multiturn"] = given.get("fewshot_as_multiturn", template)
    harness.setdefault("log_samples", bool(harness.get("predict_only")))
    if seed is not None:
        arguments["seed"] = seed
        for kind in ("random", "numpy_random", "torch_random", "fewshot_random"):
            harness[f"{kind}_seed"] = seed
    quiet_libraries()
    _quiet_harness()
    with results_only(json):
        found = evaluate(
            model,
            [tasks],
            out=out,
            data_dir=data_dir,
            parameters=_parameters(task_arg),
            skip_unavailable=skip_unavailable,
            execute_code=execute_code,
            include_path=given.get("include_path"),
            metadata=given.get("metadata"),
            model_args=arguments,
            on_skipped=lambda name, why: print(f"skipped {name}: {why}", file=sys.stderr),
            limit=limit,
            **harness,
        )
    if found is None:
        return  # another process has the results
    found.pop("samples", None)
    if json:
        _emit(found)
    else:
        _show(found, out)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"lm-eval's options: {message}; `lm_eval run --help` lists them")


def _parse(rest: Sequence[str]) -> dict[str, Any]:
    """Option -> value of lm-eval's own command line, without what was not given."""
    from lm_eval._cli.run import Run

    parser = _Parser(prog="lm_eval", exit_on_error=False)
    inner = parser.add_subparsers(parser_class=_Parser)
    Run.create(inner)
    given = vars(parser.parse_args(["run", *rest]))
    given = {key: value for key, value in given.items() if value is not None and key != "func"}
    for key, instead in _OURS.items():
        if given.get(key):
            raise UsageError(f"--{key} is not passed on: {instead}")
    return given


def _parameters(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key, value in _assignments("--task-arg", assignments).items():
        task, _, name = key.partition(".")
        found.setdefault(task, {})[name.replace("-", "_")] = value
    return found


def _assignments(flag: str, assignments: Sequence[str]) -> dict[str, Any]:
    found = {}
    for assignment in assignments:
        target, equals, raw = assignment.partition("=")
        if not (equals and all(target.partition("."))):
            raise UsageError(f"{flag} {assignment} is not NAME.KEY=VALUE")
        try:
            found[target] = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise UsageError(f"{flag} {assignment}: not valid YAML: {error}") from error
    return found


def _quiet_harness() -> None:
    """Its notes for authors of tasks say nothing to who runs them."""
    with contextlib.suppress(ImportError):
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
    logging.getLogger("lm_eval.api.task").addFilter(
        lambda record: "Custom kwargs can be passed" not in record.getMessage()
    )


def _emit(found: dict[str, Any]) -> None:
    import json

    from lm_eval.utils import handle_non_serializable

    emit(json.loads(json.dumps(found, default=handle_non_serializable)))


def _show(found: dict[str, Any], out: Path | None) -> None:
    from lm_eval.utils import make_table

    print(make_table(found))
    if found.get("groups"):
        print(make_table(found, "groups"))
    about = found["linearize"]
    print(f"{about['model']} ({about['hash'][:12]}), {about['dtype']}, sampler: {about['sampler']}")
    if about["inputs_cut"]:
        print(f"{about['inputs_cut']} inputs were longer than {about['max_length']} tokens and cut")
    if about["tokens_read_again"]:
        print(f"{about['tokens_read_again']} tokens were read again (jrt={about['jrt']})")
    if out is not None:
        print(out / "results.json")
