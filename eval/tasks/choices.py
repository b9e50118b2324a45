"""The standard multiple-choice sets from local files: prompts and metrics of the harness's own.

Examples for few-shot prompts come from the same file, never the question itself: the training
splits are not among the local files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from . import files
from .registry import Config, task

_LETTERS = "ABCDEFGH"


def _config(split: str, make: Any, *metrics: str, **fields: Any) -> Config:
    return {
        "custom_dataset": files.dataset(split, make),
        "output_type": "multiple_choice",
        f"{split}_split": split,
        "fewshot_split": split,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics
        ],
        **fields,
    }


def _arc(name: str, file: str | None, data_dir: Path | None) -> Config:
    path = files.find(f"local_{name}", file, data_dir, [f"{name}/test.jsonl"])

    def row(given: dict[str, Any]) -> dict[str, Any]:
        texts = [str(choice) for choice in given["choices"]]
        labels = list(_LETTERS[: len(texts)])
        return {
            "id": str(given.get("id", "")),
            "question": given["question"],
            "choices": {"text": texts, "label": labels},
            "answerKey": labels[given["label"]],
        }

    return _config(
        "test",
        lambda: files.taken(path, row),
        "acc",
        "acc_norm",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_target="{{choices.label.index(answerKey)}}",
        doc_to_choice="{{choices.text}}",
    )


@task("local_arc_easy")
def arc_easy(*, file: str | None = None, data_dir: Path | None = None) -> Config:
    """ARC-Easy: school science; acc and acc_norm."""
    return _arc("arc_easy", file, data_dir)


@task("local_arc_challenge")
def arc_challenge(*, file: str | None = None, data_dir: Path | None = None) -> Config:
    """ARC-Challenge: school science that look-up and co-occurrence do not solve."""
    return _arc("arc_challenge", file, data_dir)


def _two_parts(context: str) -> tuple[str, str]:
    """(ctx_a, ctx_b) of a HellaSwag context: what was joined there is a beginning of a sentence,
    in lower case, after whole ones."""
    begun = re.search(r"^(.*[.!?\"')\]]) ([a-z][^.!?]*)$", context.strip(), re.DOTALL)
    return (begun[1], begun[2]) if begun else (context, "")


@task("local_hellaswag")
def hellaswag(*, file: str | None = None, data_dir: Path | None = None) -> Config:
    """HellaSwag: which ending follows?"""
    path = files.find("local_hellaswag", file, data_dir, ["hellaswag/validation.jsonl"])

    def row(given: dict[str, Any]) -> dict[str, Any]:
        first, second = given.get("ctx_a"), given.get("ctx_b")
        if first is None or second is None:
            first, second = _two_parts(given["ctx"])
        return {
            "activity_label": given["activity_label"],
            "ctx_a": first,
            "ctx_b": second,
            "endings": [str(ending) for ending in given["endings"]],
            "label": str(given["label"]),
        }

    return _config(
        "validation",
        lambda: files.taken(path, row),
        "acc",
        "acc_norm",
        process_docs=lambda docs: files.stock("hellaswag/utils").process_docs(docs),
        doc_to_text="{{query}}",
        doc_to_target="{{label}}",
        doc_to_choice="choices",
    )


@task("local_piqa")
def piqa(*, file: str | None = None, data_dir: Path | None = None) -> Config:
    """PIQA: which of two ways reaches a goal?"""
    path = files.find("local_piqa", file, data_dir, ["piqa/validation.jsonl"])

    def row(given: dict[str, Any]) -> dict[str, Any]:
        return {key: given[key] for key in ("goal", "sol1", "sol2", "label")}

    return _config(
        "validation",
        lambda: files.taken(path, row),
        "acc",
        "acc_norm",
        doc_to_text="Question: {{goal}}\nAnswer:",
        doc_to_target="label",
        doc_to_choice="{{[sol1, sol2]}}",
    )


@task("local_winogrande")
def winogrande(*, file: str | None = None, data_dir: Path | None = None) -> Config:
    """WinoGrande: whom does a pronoun mean? The end of the sentence is scored after each name."""
    path = files.find("local_winogrande", file, data_dir, ["winogrande/validation.jsonl"])

    def row(given: dict[str, Any]) -> dict[str, Any]:
        given["sentence"].index("_")  # the gap
        fields = {key: given[key] for key in ("sentence", "option1", "option2")}
        return {**fields, "answer": str(given["answer"])}

    def ask(name: str) -> Any:
        return lambda doc: getattr(files.stock("winogrande/preprocess_winogrande"), name)(doc)

    return _config(
        "validation",
        lambda: files.taken(path, row),
        "acc",
        doc_to_text=ask("doc_to_text"),
        doc_to_target=ask("doc_to_target"),
        doc_to_choice=ask("doc_to_choice"),
    )
