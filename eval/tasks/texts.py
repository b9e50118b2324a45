"""LAMBADA, WikiText and GSM8K from local files: prompts and metrics of the harness's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import files
from .registry import Config, task


@task("local_lambada")
def lambada(*, file: str | None = None, data_dir: Path | None = None) -> Config:
    """LAMBADA: the last word of a passage; its perplexity, and whether greedy decoding finds it."""
    path = files.find("local_lambada", file, data_dir, ["lambada/test.jsonl"])
    return {
        "custom_dataset": files.dataset(
            "test", lambda: files.taken(path, lambda row: {"text": str(row["text"])})
        ),
        "output_type": "loglikelihood",
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    }


@task("local_wikitext")
def wikitext(*, file: str | None = None, data_dir: Path | None = None) -> Config:
    """WikiText: perplexity of whole articles.

    A file with <unk> marks (not the raw variant) gives numbers that cannot be compared with
    published ones.
    """
    names = ["wikitext/test.txt", "wikitext-2/test.txt", "wikitext-2/valid.txt"]
    path = files.find("local_wikitext", file, data_dir, names)

    def ask(name: str) -> Any:
        return lambda *given: getattr(files.stock("wikitext/preprocess_wikitext"), name)(*given)

    return {
        "custom_dataset": files.dataset("test", lambda: list(_articles(path))),
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": ask("wikitext_detokenizer"),
        "process_results": ask("process_results"),
        "metric_list": [
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity"}
            | {"higher_is_better": False},
            {"metric": "byte_perplexity", "aggregation": "weighted_perplexity"}
            | {"higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    }


def _articles(path: Path) -> Iterator[dict[str, str]]:
    """Texts between headings of the first level: ` = Title = `."""
    article: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if re.fullmatch(r" = [^=].* = \n?", line) and "".join(article).strip():
            yield {"page": "".join(article)}
            article = []
        article.append(line)
    yield {"page": "".join(article)}


@task("local_gsm8k")
def gsm8k(*, file: str | None = None, data_dir: Path | None = None) -> Config:
    """GSM8K: word problems, 5 solved ones before each; the number after ####, or the last one."""
    path = files.find("local_gsm8k", file, data_dir, ["gsm8k/test.jsonl"])

    def row(given: dict[str, Any]) -> dict[str, Any]:
        return {"question": given["question"], "answer": given["answer"]}

    return {
        "custom_dataset": files.dataset("test", lambda: files.taken(path, row)),
        "output_type": "generate_until",
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": 5,
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {
            "until": ["Question:", "</s>", "<|im_end|>"],
            "do_sample": False,
            "temperature": 0.0,
        },
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": False,
                "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"],
            }
        ],
        "filter_list": [
            _number("strict-match", regex_pattern=r"#### (\-?[0-9\.\,]+)"),
            _number(
                "flexible-extract", group_select=-1, regex_pattern="(-?[$0-9.,]{2,})|(-?[0-9]+)"
            ),
        ],
    }


def _number(name: str, **pattern: Any) -> dict[str, Any]:
    return {"name": name, "filter": [{"function": "regex", **pattern}, {"function": "take_first"}]}
