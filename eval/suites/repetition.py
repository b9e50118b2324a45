"""The repetition suite: how much a model loops, and what each remedy does about it.

Every way to choose tokens continues every prompt; ways take turns batch by batch, so that their
speeds compare. Then every group of prompts is measured; `figures` says what each figure is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from linearize.decoding import generate
from linearize.decoding.encode import encode, positions
from linearize.decoding.remedies import given, options_of
from linearize.errors import InputError, UsageError
from linearize.eval.metrics import repetition as metrics

from ..alone import alone
from .prompts import PROSE, Group
from .store import Record, Store

# A greedy continuation below both does not repeat itself: there a remedy has nothing to do.
CALM = {"tr-s terminal": 0.1, "rep-4": 0.2}
BASELINE = "greedy"
STRETCH = 32  # tokens per point of repetition over length
COPIES, UNITS = 16, 32  # of the self-reinforcement curve
UNIT_TOKENS = range(4, 33)

Ways = Mapping[str, Mapping[str, Any]]


def run(
    model: Any,
    tokenizer: Any,
    groups: Sequence[Group],
    ways: Ways,
    out: Path,
    *,
    about: Mapping[str, Any],
    max_new_tokens: int = 256,
    batch_size: int = 8,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Continue all prompts in all ways and measure.

    Continuations go to `out/continuations.jsonl` as they are made; called again, it goes on there,
    also with more ways or more prompts.

    Args:
        groups: see `prompts.read`. Prompts that leave fewer than `max_new_tokens` of the model's
            positions are left out and counted.
        ways: name -> keyword arguments of `decoding.generate` (`sampler`, its options, `remedies`).
            A remedy that takes a language and was given none is given that of the prompts.
        about: what else decides the texts (name of the model, dtype); kept with them.
        on_progress: called with the continuations there are and those there will be.

    Returns:
        `groups`: one dict per group, with `name`, `language`, `prompts`, `left_out`, `ways`
        (name -> figures), `over_length` (`edges`, and rep-4 per stretch for every way) and
        `self_reinforcement` (`tp`, `ip`, `wr` over copies, `units`; None without a usable line).
        With the way "greedy" there are `calm`, the number of prompts where it does not repeat
        itself (see `CALM`), and among the figures `changed`, the share of those that a way
        continues otherwise. Groups of one language also come together, as "all".
        `settings`: what was asked for. `broken`: continuations ended by NaN.

    Raises `UsageError` for no ways or other settings than those in `out`, `InputError` where no
    prompt fits, `OutputError` if `out` cannot be written.
    """
    if not ways:
        raise UsageError("there is nothing to compare; name samplers or remedies")
    kept = [_fitting(model, tokenizer, group, max_new_tokens) for group in groups]
    if not any(group.prompts for group in kept):
        raise InputError(
            f"no prompt leaves room for {max_new_tokens} new tokens; lower max_new_tokens or "
            "shorten the prompts"
        )
    common = {**about, "max_new_tokens": max_new_tokens, "seed": seed}
    with alone(out):
        store = Store(out, common, ways, overwrite=overwrite)
        maker = _Maker(model, tokenizer, ways, store, max_new_tokens, batch_size, seed)
        maker.make(kept, on_progress)

        measured = []
        for group, whole in zip(kept, groups, strict=True):
            if group.prompts:
                found = _measure(group, ways, store, max_new_tokens)
                found["left_out"] = len(whole.prompts) - len(group.prompts)
                found["self_reinforcement"] = self_reinforcement(model, tokenizer, group)
                measured.append(found)
        for together in _together([group for group in kept if group.prompts]):
            measured.append(_measure(together, ways, store, max_new_tokens))
        broken = sum(
            store.get(name, prompt, group.language)["finish_reason"] == "nan"
            for group in kept
            for prompt in group.prompts
            for name in ways
        )
        settings = {
            **common,
            "batch_size": batch_size,
            "ways": {n: dict(w) for n, w in ways.items()},
        }
        return {"settings": settings, "groups": measured, "broken": broken}


def figures(
    prompts: Sequence[str], records: Sequence[Record], language: str | None
) -> dict[str, float]:
    """What is told of some continuations; definitions in `eval.metrics.repetition`.

    All but the prompt is counted. `tr-s` at the paper's level "statement" and at "terminal", each
    as the mean over texts and pooled over all statements; the same for `tr-n`. `egp` is the share
    that ended by itself, `tokens` the mean length, `tokens/s` of whole batches, prefill included.
    """
    texts = [r["text"] for r in records]
    ids = [r["ids"] for r in records]
    found = metrics.repetition(texts, language=language, prompts=prompts, tokens=ids)
    if language is not None:
        whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        starts = [len(prompt) for prompt in prompts]
        found["tr-n pooled"] = metrics.tr_n(whole, language, starts=starts, pooled=True)
        for level in ("statement", "terminal"):
            name = "tr-s" + " terminal" * (level == "terminal")
            for pooled in (False, True):
                found[name + " pooled" * pooled] = metrics.tr_s(
                    whole, language, level=level, starts=starts, pooled=pooled
                )
    seconds = math.fsum(r["seconds"] for r in records)
    return found | {
        "egp": sum(r["finish_reason"] == "eos" for r in records) / len(records),
        "tokens": sum(map(len, ids)) / len(records),
        "tokens/s": sum(map(len, ids)) / seconds,
    }


def is_calm(prompt: str, record: Record, language: str | None) -> bool:
    """Whether a continuation does not repeat itself, by the limits in `CALM`."""
    one = {"rep-4": metrics.rep_n([record["ids"]], 4)}
    if language is not None:
        whole, starts = [prompt + record["text"]], [len(prompt)]
        one["tr-s terminal"] = metrics.tr_s(whole, language, level="terminal", starts=starts)
    return all(value < CALM[name] for name, value in one.items())


def self_reinforcement(model: Any, tokenizer: Any, group: Group) -> dict[str, Any] | None:
    """TP, IP and WR over 16 copies of a line (code) or sentence (prose) of each prompt.

    The first one of 4 to 32 tokens is taken, of the first 32 prompts that have one, as far as its
    copies fit the model's positions.
    """
    limit = positions(model)[0] or math.inf
    units = (_unit(tokenizer, prompt, group.language, limit) for prompt in group.prompts)
    chosen = list(islice((unit for unit in units if unit is not None), UNITS))
    if not chosen:
        return None
    found = metrics.measure_self_reinforcement(model, tokenizer, chosen, COPIES)
    return {"tp": found.tp, "ip": found.ip, "wr": found.wr, "units": found.sentences}


def _unit(tokenizer: Any, prompt: str, language: str | None, limit: float) -> list[int] | None:
    prose = language is None
    for text in metrics.sentences(prompt) if prose else map(str.strip, prompt.split("\n")):
        # Each copy follows another: after a blank in prose, on a new line in code.
        piece = f" {text}" if prose else f"{text}\n"
        ids = tokenizer(piece, add_special_tokens=False).input_ids
        if len(ids) in UNIT_TOKENS and COPIES * len(ids) < limit:
            return list(ids)
    return None


def _fitting(model: Any, tokenizer: Any, group: Group, max_new_tokens: int) -> Group:
    limit = positions(model)[0] or math.inf
    prompts = []
    for prompt in group.prompts:
        try:
            ids = encode(model, tokenizer, prompt, max_new_tokens=max_new_tokens)
        except InputError:
            continue
        if len(ids) + max_new_tokens <= limit:
            prompts.append(prompt)
    return Group(group.name, group.language, prompts)


def _together(groups: Sequence[Group]) -> list[Group]:
    """Groups of one language as one."""
    found = []
    for language in dict.fromkeys(group.language for group in groups):
        some = [group for group in groups if group.language == language]
        if len(some) > 1:
            prompts = [prompt for group in some for prompt in group.prompts]
            found.append(Group(f"all {language or PROSE}", language, prompts))
    return found


def _measure(group: Group, ways: Ways, store: Store, max_new_tokens: int) -> dict[str, Any]:
    language, prompts = group.language, group.prompts
    edges = [*range(0, max_new_tokens, STRETCH), max_new_tokens]
    records = {name: [store.get(name, p, language) for p in prompts] for name in ways}
    measured = {name: figures(prompts, rows, language) for name, rows in records.items()}
    over_length = {
        name: metrics.rep_n_by_position([r["ids"] for r in rows], 4, edges)
        for name, rows in records.items()
    }
    found = {
        "name": group.name,
        "language": language,
        "prompts": len(prompts),
        "ways": measured,
        "over_length": {
            "edges": edges,
            "rep-4": {n: [None if v != v else v for v in c] for n, c in over_length.items()},
        },
    }
    if BASELINE in ways:
        plain = records[BASELINE]
        calm = [is_calm(p, r, language) for p, r in zip(prompts, plain, strict=True)]
        found["calm"] = sum(calm)
        for name, rows in records.items() if any(calm) else ():
            pairs = zip(plain, rows, calm, strict=True)
            moved = sum(a["ids"] != b["ids"] for a, b, is_so in pairs if is_so)
            measured[name]["changed"] = moved / sum(calm)
    return found


class _Maker:
    """Makes the continuations that are missing, one batch of one way at a time."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        ways: Ways,
        store: Store,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.ways, self.store = ways, store
        self.max_new_tokens, self.batch_size, self.seed = max_new_tokens, batch_size, seed

    def make(self, groups: Sequence[Group], on_progress: Callable[[int, int], None]) -> None:
        jobs = [
            (batch, group.language, name)
            for group in groups
            for batch in self._batches(group.prompts)
            for name in self.ways
        ]
        total = sum(len(batch) for batch, *_ in jobs)
        missing = [job for job in jobs if not self._is_made(*job)]
        done = total - sum(len(batch) for batch, *_ in missing)
        if missing:
            # The first run in a process is slow for reasons that are not the sampler's.
            generate(self.model, self.tokenizer, missing[0][0][:1], max_new_tokens=2)
        on_progress(done, total)
        for batch, language, name in missing:
            self.store.add(self._batch(batch, language, name))
            done += len(batch)
            on_progress(done, total)

    def _batches(self, prompts: Sequence[str]) -> list[list[str]]:
        """Prompts of like length together: less padding to compute."""
        order = sorted(dict.fromkeys(prompts), key=len)
        return [
            order[first : first + self.batch_size]
            for first in range(0, len(order), self.batch_size)
        ]

    def _is_made(self, batch: Sequence[str], language: str | None, name: str) -> bool:
        return all(self.store.get(name, prompt, language) for prompt in batch)

    def _batch(self, batch: Sequence[str], language: str | None, name: str) -> list[Record]:
        arguments = dict(self.ways[name])
        remedies = given(arguments.pop("remedies", ()))
        for remedy, options in remedies.items():
            if language is not None and "language" in options_of(remedy):
                options.setdefault("language", language)
        started = time.perf_counter()
        found = generate(
            self.model,
            self.tokenizer,
            batch,
            remedies=remedies,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            batch_size=self.batch_size,
            **arguments,
        )
        seconds = (time.perf_counter() - started) / len(batch)
        return [
            {
                "way": name,
                "language": language,
                "prompt": prompt,
                "text": result.text,
                "ids": result.ids,
                "finish_reason": result.finish_reason,
                "seconds": seconds,
            }
            for prompt, result in zip(batch, found, strict=True)
        ]
