"""What a path of layers is measured on: multiple choice from a JSONL file, or plain text.

Multiple choice: the answer is the choice with the highest log-likelihood after its query, as in
lm-evaluation-harness (`acc`; with `per_character`, divided by the characters of the choice, near
`acc_norm`). Text: the mean loss of equal blocks, each from its second token on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from linearize.decoding.encode import positions
from linearize.errors import InputError

END = "<|endoftext|>"  # between documents of a text, as in training data
BLOCK = 512  # tokens of text in one item, fewer where the model has fewer positions


@dataclass(frozen=True)
class Item:
    """A question: the `gold` of the `choices`, counted from 0, is right after `query`."""

    query: str
    choices: list[str]
    gold: int


# Layout of a line: the fields it has -> its parts. Queries as in lm-evaluation-harness.
_LAYOUTS: dict[tuple[str, ...], Callable[[dict[str, Any]], Item]] = {
    ("query", "choices", "gold"): lambda x: Item(x["query"], x["choices"], x["gold"]),
    ("question", "choices", "label"): lambda x: Item(  # ARC
        f"Question: {x['question']}\nAnswer:", x["choices"], x["label"]
    ),
    ("activity_label", "ctx", "endings", "label"): lambda x: Item(  # HellaSwag
        f"{x['activity_label']}: {x['ctx']}", x["endings"], x["label"]
    ),
    ("goal", "sol1", "sol2", "label"): lambda x: Item(  # PIQA
        f"Question: {x['goal']}\nAnswer:", [x["sol1"], x["sol2"]], x["label"]
    ),
}


def read(file: Path) -> list[Item]:
    """The questions of a JSONL file.

    A line has `query` (text), `choices` (two texts or more) and `gold` (place of the right one,
    from 0), or is laid out as ARC, HellaSwag or PIQA. A space joins query and choice.

    Raises `InputError` naming the line for anything else, and for a file without lines.
    """
    items = [_item(number, line) for number, line in _lines(file)]
    if not items:
        raise InputError(f"{file} has no lines; give a JSONL file of questions")
    return items


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text(file).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise InputError(f"line {number} of {file} is not JSON: {error}") from error


def text(file: Path) -> str:
    """The file's text. Raises `InputError` if it cannot be read as UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"the task {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the task {file} is not UTF-8 text: {error}") from error


def _item(number: int, values: Any) -> Item:
    for fields, make in _LAYOUTS.items():
        if isinstance(values, dict) and set(fields) <= set(values):
            item = make(values)
            break
    else:
        known = "; ".join(", ".join(fields) for fields in _LAYOUTS)
        raise InputError(f"line {number} is no question with one of these sets of fields: {known}")
    choices, gold = item.choices, item.gold
    texts = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
    if not isinstance(item.query, str) or not texts or len(choices) < 2:
        raise InputError(f"line {number}: it takes a text and two or more choices that are texts")
    if type(gold) is not int or not 0 <= gold < len(choices):
        raise InputError(
            f"line {number}: the right choice is {gold!r}; count the {len(choices)} choices from 0"
        )
    return item


class Choices:
    """Multiple choice. A score is 1.0 where the model's answer is right, else 0.0."""

    measure = "accuracy"

    def __init__(
        self, items: Sequence[Item], model: Any, tokenizer: Any, *, per_character: bool = False
    ) -> None:
        """Raises `InputError` for a choice that leaves no room for its query."""
        self.items = items
        self.per_character = per_character
        limit = positions(model)[0]
        self._rows = [
            [_row(tokenizer, item.query, choice, limit) for choice in item.choices]
            for item in items
        ]

    def __len__(self) -> int:
        return len(self.items)

    def score(self, model: Any, items: Sequence[int], batch_size: int) -> list[float]:
        """A score for each of these items, by their places."""
        rows = [row for item in items for row in self._rows[item]]
        likely = iter(_log_likelihoods(model, rows, batch_size))
        scores = []
        for place in items:
            item = self.items[place]
            found = [next(likely) / (len(c) if self.per_character else 1) for c in item.choices]
            right = all(map(math.isfinite, found)) and found.index(max(found)) == item.gold
            scores.append(float(right))
        return scores

    @staticmethod
    def summary(scores: Sequence[float]) -> float:
        """Share of right answers."""
        return sum(scores) / len(scores)

    @staticmethod
    def reward(scores: Sequence[float], original: Sequence[float]) -> float:
        """What the search maximises: the share of right answers."""
        return Choices.summary(scores)


class Text:
    """Plain text in blocks. A score is the mean loss of a block in nats per token."""

    measure = "perplexity"

    def __init__(self, content: str, model: Any, tokenizer: Any) -> None:
        """Raises `InputError` for a text of fewer than two tokens."""
        size = min(BLOCK, positions(model)[0] or BLOCK)
        documents = [d.strip("\r\n") for d in content.split(END) if d.strip()]
        ids = [i for d in documents for i in tokenizer(d, verbose=False).input_ids]
        blocks = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)] or [ids]
        if len(blocks[0]) < 2:
            raise InputError(f"the text has {len(ids)} tokens; a loss needs two at least")
        self.block = len(blocks[0])
        self._rows = [(block, len(block) - 1) for block in blocks]

    def __len__(self) -> int:
        return len(self._rows)

    def score(self, model: Any, items: Sequence[int], batch_size: int) -> list[float]:
        """A score for each of these items, by their places; inf where logits are broken."""
        likely = _log_likelihoods(model, [self._rows[i] for i in items], batch_size)
        losses = [-x / (self.block - 1) for x in likely]
        return [x if math.isfinite(x) else math.inf for x in losses]

    @staticmethod
    def summary(scores: Sequence[float]) -> float:
        """Perplexity; inf beyond what a float holds."""
        mean = sum(scores) / len(scores)
        return math.exp(mean) if mean < 700 else math.inf

    @staticmethod
    def reward(scores: Sequence[float], original: Sequence[float]) -> float:
        """What the search maximises: the original's perplexity by that of the path."""
        gain = (sum(original) - sum(scores)) / len(scores)
        return math.exp(min(gain, 700.0)) if not math.isnan(gain) else 0.0


Task = Choices | Text


def _row(tokenizer: Any, query: str, choice: str, limit: int | None) -> tuple[list[int], int]:
    """Token ids of query and choice, and how many at the end belong to the choice."""
    before = len(tokenizer(query, verbose=False).input_ids)
    ids = tokenizer(f"{query} {choice}", verbose=False).input_ids
    own = max(1, len(ids) - before)
    if own == len(ids):
        raise InputError(f"the query {query!r} has no tokens; a choice needs something before it")
    if limit is not None and own >= limit:
        raise InputError(
            f"the choice {choice[:40]!r}... has {own} tokens and the model {limit} positions; "
            "leave this question out"
        )
    return (ids if limit is None else ids[-limit:]), own


@torch.inference_mode()
def _log_likelihoods(
    model: Any, rows: Sequence[tuple[list[int], int]], batch_size: int
) -> list[float]:
    """Sum of the log-probabilities, in nats, of the last n tokens of each (ids, n)."""
    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for first in range(0, len(order), batch_size):
        some = order[first : first + batch_size]
        length = max(len(rows[i][0]) for i in some)
        padded = [rows[i][0] + [0] * (length - len(rows[i][0])) for i in some]
        ids = torch.tensor(padded, device=model.device)
        lengths = torch.tensor([len(rows[i][0]) for i in some], device=model.device)
        mask = (torch.arange(length, device=model.device) < lengths[:, None]).long()
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for place, i in enumerate(some):
            end, own = len(rows[i][0]), rows[i][1]
            scores = logits[place, end - own - 1 : end - 1].float()
            targets = ids[place, end - own : end]
            found[i] = -F.cross_entropy(scores, targets, reduction="sum").item()
    return found
