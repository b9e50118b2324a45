"""What a conversion does to recall: who answers how much, over the length of the document.

Corpus, teacher, conversions and questions come from seeds; every part is kept in the output
directory, and a second call makes only what is missing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from linearize import conversion, pretrain, pretrained
from linearize import recipe as recipes

from . import corpus, measure
from .questions import TASKS, ask, questions

TEACHER, CONVERSION = "recall-teacher", "recall"
SEED = 2025  # of the questions; the corpora have others

# Model -> its text, and what differs from the recipe of the conversion.
CONVERSIONS: dict[str, tuple[str, list[str]]] = {
    "liger": ("asked.jsonl", []),
    "prefix": (
        "once.jsonl",
        [
            "liger.prefix=jrt",
            "data.prompt_field=null",
            "encoder.prompt=prompt",
            "encoder.rows=1",
            "encoder.masked=0",  # what is asked for would be hidden as often
            "encoder.mask_token='~'",  # the corpus has none
            "training.objective.masked_prefix=0",
            # here every document has a row to itself, most of it padding, which counts
            "training.tokens=3_000_000",
            "training.batch_size=12",
        ],
    ),
    "window": ("asked.jsonl", ["liger.mix=window"]),
}


@dataclass(frozen=True)
class Row:
    """A line of the table: which of the models, and how it reads the document.

    - `reading`: one of `corpus.FORMS`.
    - `prefix`: whether the prompt is encoded as a whole.
    """

    name: str
    model: str
    reading: str = "once"
    prefix: bool = False


ROWS = (
    Row("teacher", "teacher"),
    Row("teacher, announced", "teacher", "announced"),
    Row("teacher + JRT-Prompt", "teacher", "twice"),
    Row("window only", "window"),
    Row("window only + JRT-Prompt", "window", "twice"),
    Row("Liger", "liger"),
    Row("Liger, announced", "liger", "announced"),
    Row("Liger + JRT-Prompt", "liger", "twice"),
    Row("Liger + prefix attention", "prefix", prefix=True),
)


@dataclass(frozen=True)
class Size:
    """How large the demonstration is.

    - `documents`: of each file of the corpus; `short`, `long`: most words of a document in two.
    - `words`: lengths of the documents that are asked about.
    - `items`: questions per task and length.
    - `teacher`, `changes`: what replaces keys of the recipes of teacher and conversions.
    """

    documents: int
    short: int
    long: int
    words: tuple[int, ...]
    items: int
    teacher: Mapping[str, Any]
    changes: tuple[str, ...] = ()


FULL = Size(
    documents=24_000,
    short=24,
    long=96,
    words=(24, 36, 48, 64, 80, 96),
    items=150,
    teacher={},
)
_FEW = {"training": {"tokens": 2_048, "batch_size": 4}}
SMOKE = Size(
    documents=400,
    short=16,
    long=32,
    words=(8, 16),
    items=4,
    teacher={
        "tokenizer": {"vocab_size": 400},
        "stages": [
            {**_FEW, "data": {"seq_len": 64}},
            {**_FEW, "data": {"source": "long.jsonl", "seq_len": 128}},
        ],
    },
    changes=("training.tokens=1024", "data.seq_len=128", "data.eval_tokens=512"),
)


def run(
    out: Path,
    size: Size = FULL,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Make what is missing in `out`, ask all questions, and write `results.json`.

    Returns what the file holds: `rows`, one per line of the table, task and length (`name`,
    `task`, `words`, `tokens` of the document, `accuracy` and its standard error `stderr`,
    `items`), `models` (parameters, training tokens and seconds of each), `means` (see `means`) and
    `seconds` of this call. Raises what `pretrain` and `convert` raise.
    """
    began = time.perf_counter()
    files = _corpus(out / "corpus", size)
    tell("corpus written")
    models = {"teacher": _teacher(out / "teacher", files, size)}
    tell("teacher trained")
    for name in CONVERSIONS:
        models[name] = _converted(out, name, files, size)
        tell(f"converted: {name}")
    rows = []
    tokenizer = pretrained.tokenizer(out / "teacher", False)
    for name in models:
        model = AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32).eval()
        for row in (row for row in ROWS if row.model == name):
            rows += _asked(row, model, tokenizer, size)
            tell(f"asked: {row.name}")
    found = {
        "models": models,
        "rows": rows,
        "means": means(rows),
        "seconds": time.perf_counter() - began,
    }
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Line of the table -> mean accuracy per task over all lengths, and over everything."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        by_task = {
            task: _mean([row["accuracy"] for row in own if row["task"] == task]) for task in TASKS
        }
        found[name] = {**by_task, "all": _mean(list(by_task.values()))}
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _corpus(folder: Path, size: Size) -> dict[str, str]:
    """Name in the recipes -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    n = size.documents
    made = {
        "drill.jsonl": corpus.drills(n, seed=1),
        "short.jsonl": corpus.texts(n, seed=2, longest=size.short),
        "long.jsonl": corpus.texts(n, seed=3, longest=size.long),
        "asked.jsonl": corpus.texts(
            n, seed=5, longest=size.long, questions=3, forms=("once", "announced", "twice", "twice")
        ),
        "once.jsonl": corpus.texts(n, seed=4, longest=size.long, questions=3, forms=("once",)),
    }
    for name, texts in made.items():
        if not (folder / name).exists():
            corpus.write(folder / name, texts)
    return {name: str(folder / name) for name in made}


def _teacher(path: Path, files: Mapping[str, str], size: Size) -> dict[str, Any]:
    if not path.exists():
        values = {**recipes.read(TEACHER), **size.teacher}
        for place in (values, *values["stages"]):
            if "source" in place["data"]:
                place["data"]["source"] = files[place["data"]["source"]]
        settings = pretrain.PretrainRecipe.model_validate(values)
        pretrain.pretrain(settings, path, resume=True)
    made = json.loads((path / "pretraining.json").read_text(encoding="utf-8"))
    return {name: made[name] for name in ("parameters", "tokens", "seconds", "held_out_loss")}


def _converted(out: Path, name: str, files: Mapping[str, str], size: Size) -> dict[str, Any]:
    path = out / name
    if not path.exists():
        text, changes = CONVERSIONS[name]
        given = [
            f"base={out / 'teacher'}",
            f"out={path}",
            f"data.source={files[text]}",
            *changes,
            *size.changes,
        ]
        conversion.convert(recipes.load(CONVERSION, given), resume=True)
    made = json.loads((path / "result.json").read_text(encoding="utf-8"))
    kept = ("trained_parameters", "tokens", "seconds", "losses", "state_bytes", "mix")
    return {key: made[key] for key in kept}


def _asked(row: Row, model: Any, tokenizer: Any, size: Size) -> list[dict[str, Any]]:
    """One line of the table."""
    found = []
    for task in TASKS:
        for words in size.words:
            asked = ask(task, size.items, words=words, seed=SEED)
            given = questions(asked, row.reading)
            right = measure.exact_match(model, tokenizer, given, prefix=row.prefix).double()
            length = [len(tokenizer(one.document.text).input_ids) for one in asked]
            found.append(
                {
                    "name": row.name,
                    "task": task,
                    "words": words,
                    "tokens": _mean(length),
                    "accuracy": right.mean().item(),
                    "stderr": (right.std() / len(right) ** 0.5).item(),
                    "items": len(right),
                }
            )
    return found
