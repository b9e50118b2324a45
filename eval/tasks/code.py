"""HumanEval and MBPP from local files. What a model writes is run: the harness asks for a flag.

Prompts, what is cut from the answers and what counts as passed are those of the harness's own
tasks; programs run in `execute`, not in the process of the evaluation.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from linearize.errors import InputError

from . import files
from .execute import passes
from .registry import Config, task

_TESTS = "{{test_list[0]}}\n{{test_list[1]}}\n{{test_list[2]}}"


@task("local_humaneval")
def humaneval(
    *,
    file: str | None = None,
    seconds: float = 3.0,
    megabytes: int = 1024,
    data_dir: Path | None = None,
) -> Config:
    """HumanEval: Python functions from signature and docstring; share that passes its tests.

    - `seconds`, `megabytes`: what a program may take.
    """
    names = ["humaneval/test.jsonl", "HumanEval.jsonl", "HumanEval.jsonl.gz"]
    path = files.find("local_humaneval", file, data_dir, names)

    def row(given: dict[str, Any]) -> dict[str, Any]:
        return {key: given[key] for key in ("task_id", "prompt", "test", "entry_point")}

    def score(doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
        (programs,) = results
        test = f"{doc['test']}\ncheck({doc['entry_point']})"
        good = [
            passes(f"{program}\n{test}", seconds=seconds, megabytes=megabytes)
            for program in programs
        ]
        return {"pass@1": sum(good) / len(good)}

    return {
        "custom_dataset": files.dataset("test", lambda: files.taken(path, row)),
        "unsafe_code": True,
        "output_type": "generate_until",
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{test}}\ncheck({{entry_point}})",
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "max_gen_toks": 1024,
            "do_sample": False,
        },
        "process_results": score,
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {"name": "create_test", "filter": [{"function": "custom", "filter_fn": _programs}]}
        ],
    }


def _programs(answers: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    return [[doc["prompt"] + a for a in some] for some, doc in zip(answers, docs, strict=True)]


@task("local_mbpp")
def mbpp(
    *,
    file: str | None = None,
    seconds: float = 3.0,
    megabytes: int = 1024,
    data_dir: Path | None = None,
) -> Config:
    """MBPP: short Python functions from a sentence and their tests, after 3 examples.

    - `seconds`, `megabytes`: what a program may take.
    """
    path = files.find("local_mbpp", file, data_dir, ["mbpp/test.jsonl", "mbpp/mbpp.jsonl"])

    def read() -> files.Rows:
        fields = ("task_id", "text", "code", "test_list")
        kept = [row for row in files.rows(path) if row.get("split", "test") == "test"]
        return [
            {**{key: row[key] for key in fields}, "task_id": str(row["task_id"])} for row in kept
        ]

    def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        tests = "\n".join(doc["test_list"][:3])
        program = f"{results[0]}\n{tests}"
        return {"pass_at_1": float(passes(program, seconds=seconds, megabytes=megabytes))}

    return {
        "custom_dataset": files.dataset("test", read),
        "unsafe_code": True,
        "output_type": "generate_until",
        "test_split": "test",
        "num_fewshot": 3,
        "fewshot_config": {"sampler": "first_n", "samples": _examples},
        "doc_to_text": "You are an expert Python programmer, and here is your task: {{text}} "
        f"Your code should pass these tests:\n\n{_TESTS}\n[BEGIN]\n",
        "doc_to_target": "{% if is_fewshot is defined %}{{code}}\n[DONE]{% else %}"
        f"{_TESTS}{{% endif %}}",
        "target_delimiter": "",
        "generation_kwargs": {"until": ["[DONE]"], "do_sample": False},
        "process_results": score,
        "metric_list": [{"metric": "pass_at_1", "aggregation": "mean", "higher_is_better": True}],
    }


def _examples() -> list[dict[str, Any]]:
    """The harness's three examples. Its file is read, not imported: that would fetch a metric."""
    import lm_eval

    source = (Path(lm_eval.__file__).parent / "tasks/mbpp/utils.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples":
            return ast.literal_eval(node.body[0].value)
    raise InputError(
        f"lm-eval {lm_eval.__version__} keeps the examples of MBPP elsewhere; use 0.4.13, with "
        "which this project is tested"
    )
