"""Log-likelihoods of real 5-shot tasks: requests per second with and without shared beginnings.

The requests are the harness's own. What is timed is all that a model does for them, tokenisation
included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval.api.samplers import get_sampler

from linearize.errors import UsageError
from linearize.eval.harness.checking import check, names_of, only_local
from linearize.eval.harness.task_manager import Tasks

from .timing import compare

EXAMPLES, SEED = 5, 1234  # the seed is the harness's for drawing examples
EXAMPLES_OF = ("drawn", "first")
POOLED = "all of them"


def requests_of(
    names: Sequence[str],
    *,
    data_dir: Path | None,
    tokenizer: Any,
    questions: int,
    examples: str = "drawn",
) -> dict[str, list[Any]]:
    """Task -> the harness's requests for its first questions.

    - `examples`: "drawn" for each question, as by default; "first", those that the set begins with
      for all questions, which are those behind them (`fewshot_config.sampler: first_n`).

    Raises `UsageError` for unknown tasks and for tasks that are not multiple choice, `InputError`
    for tasks whose data is not there.
    """
    names = names_of(names)
    manager = Tasks(
        include_defaults=not only_local(names), data_dir=data_dir, tokenizer=lambda: tokenizer
    )
    found = {}
    for task in check(manager, names, execute_code=False, skip_unavailable=False).tasks:
        for leaf in task.get_all_tasks() if hasattr(task, "get_all_tasks") else [task]:
            leaf.set_config(key="num_fewshot", value=EXAMPLES)
            leaf.set_fewshot_seed(seed=SEED)
            asked = {"limit": questions}
            if examples == "first":
                leaf.sampler = get_sampler("first_n")(leaf.sampler.df)
                asked = {"samples": [*range(EXAMPLES, EXAMPLES + questions)]}
            leaf.build_all_requests(**asked, rank=0, world_size=1)
            kinds = {request.request_type for request in leaf.instances}
            if kinds != {"loglikelihood"}:
                raise UsageError(
                    f"{leaf.task_name} asks for {', '.join(sorted(kinds))}, not only for "
                    "log-likelihoods of answers; name multiple-choice tasks"
                )
            found[leaf.task_name] = leaf.instances
    return found


def run(
    models: Mapping[str, Any],
    tasks: Mapping[str, list[Any]],
    *,
    tokenizer: Any,
    batches: Sequence[int],
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """One record per batch size and task, with the keys of `scoring.run`, and one of all tasks."""
    from linearize.eval.harness.model import Linearize

    for batch in batches:
        scorers = {
            f"{name}, reuse" if reuse else name: Linearize(
                model, tokenizer=tokenizer, batch_size=batch, prefix_reuse=reuse
            )
            for name, model in models.items()
            for reuse in (False, True)
        }
        done = []
        for name, requests in tasks.items():
            scores: dict[str, list[tuple[float, bool]]] = {}
            tokens: dict[str, int] = {}
            ways = {
                called: partial(_score, scorer, requests, called, scores, tokens)
                for called, scorer in scorers.items()
            }
            taken = compare(ways, seconds=seconds)
            differences = {
                model: _difference(scores[model], scores[f"{model}, reuse"]) for model in models
            }
            done.append(_record(name, batch, len(requests), taken, tokens, differences))
            yield done[-1]
        if len(done) > 1:
            yield _record(
                POOLED,
                batch,
                sum(record["requests"] for record in done),
                *(
                    {called: sum(r[field][called] for r in done) for called in scorers}
                    for field in ("seconds", "tokens")
                ),
                {model: max(r["difference"][model] for r in done) for model in models},
            )


def _score(
    scorer: Any, requests: list[Any], called: str, scores: dict[str, Any], tokens: dict[str, int]
) -> None:
    before = scorer.scorer.read
    scores[called] = scorer.loglikelihood(requests, disable_tqdm=True)
    tokens[called] = scorer.scorer.read - before


def _record(
    name: str,
    batch: int,
    requests: int,
    seconds: dict[str, float],
    tokens: dict[str, int],
    difference: dict[str, float],
) -> dict[str, Any]:
    return {
        "examples": name,
        "batch": batch,
        "requests": requests,
        "tokens": tokens,
        "difference": difference,
        "seconds": seconds,
        "requests_per_second": {called: requests / s for called, s in seconds.items()},
    }


def _difference(plain: list[tuple[float, bool]], reused: list[tuple[float, bool]]) -> float:
    return max(abs(a - b) for (a, _), (b, _) in zip(plain, reused, strict=True))
