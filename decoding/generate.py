"""`generate`: one door to decoding for the commands, the harness and Python.

- Any causal LM of transformers; the loop, the cache and its masks are transformers' own.
- Only what is asked for applies: sampling and penalty defaults stored with the model are switched
  off; its end-of-text tokens are kept.
- Prompts are batched by left padding with a mask; a tokenizer needs no padding token.
- Order of the processors: broken logits are caught, remedies see raw logits, the sampler chooses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from linearize.errors import InputError, UsageError
from linearize.greedy import GREEDY

from . import remedies as remedy
from . import sampling
from .beginning import Beginning
from .encode import Truncate, encode
from .finite import Finite
from .repetition.rows import Penalty
from .text import Continuation, StopStrings, Watch


@dataclass(frozen=True)
class Generation:
    """What one prompt was continued with.

    - `prompt`: the index of that prompt; `prompt_tokens`: how many tokens it has.
    - `text`: the continuation, without special tokens and without the stop string.
    - `ids`: the generated tokens, the ending one included.
    - `finish_reason`: "stop" (a stop string), "eos" (an end-of-text token), "length", or "nan":
      the logits of the next token were NaN or infinite; what came before is kept.
    - `seconds`: from the start of its batch to its last token, prefill included.
    - `first_token_seconds`: from the same start to its first new token; None where candidates were
      searched and no first token was known before the last.
    - `stats`: what a sampler that runs its own loop counted, such as `core_passes`; else empty.
    """

    prompt: int
    prompt_tokens: int
    text: str
    ids: list[int]
    finish_reason: Literal["stop", "eos", "length", "nan"]
    seconds: float
    first_token_seconds: float | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of `seconds`."""
        return len(self.ids) / self.seconds if self.seconds > 0 else 0.0


def generate(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str | Sequence[int]],
    *,
    sampler: str = "greedy",
    remedies: remedy.Remedies = (),
    max_new_tokens: int = 128,
    num_return: int = 1,
    seed: int | Sequence[int] = 0,
    stop: Sequence[str] = (),
    truncate: Truncate | None = None,
    on_text: Callable[[str], None] | None = None,
    on_penalty: Callable[[int, Penalty], None] | None = None,
    batch_size: int = 8,
    beginning: Beginning | None = None,
    compile: str = "auto",
    **options: Any,
) -> list[Generation]:
    """Continue each prompt; results come in the order of the prompts, `num_return` for each.

    - `prompts`: texts, or token ids where the caller has tokenised already.
    - `sampler`, `options`: a row of `sampling.SAMPLERS` and its own options (`temperature`, ...).
    - `remedies`: rows of `remedies.REMEDIES` against repetition, in this order: names, or a mapping
      from names to their options.
    - `num_return`: texts per prompt: drawn with `seed`, `seed + 1`, ..., or the best beams.
    - `seed`: one for every prompt, or one each. A prompt's text depends on its own seed only, not
      on the prompts beside it (up to the rounding of batched matrix products).
    - `stop`: strings that end a continuation; they are not part of its text.
    - `truncate`: see `encode.encode`.
    - `on_text`: called with pieces of text as they come; for a single result. Beam search knows
      its text only when it ends, and then calls once.
    - `on_penalty`: called with the index of a prompt and what a remedy changed there; `row` then
      counts the prompt's own beams (0 without beams) and `position` its generated tokens, from 0.
    - `batch_size`: rows per forward pass, beams counted.
    - `beginning`: of `begin`, what all prompts begin with, read already. It changes the time, not
      the text.
    - `compile`: "auto", "always" or "never": whether compiled layers decode single tokens of a
      converted model, see its `compiled_steps`.

    Raises `UsageError` for an option out of range, `InputError` for a prompt that has no tokens,
    does not fit the model or does not begin with the beginning.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens} is below 1")
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size} is below 1")
    if on_text is not None and len(prompts) * num_return != 1:
        count = len(prompts) * num_return
        raise UsageError(f"text can be streamed for one result, not for {count}")
    if any(not s for s in stop):
        raise UsageError("a stop string is empty; leave it out")
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise UsageError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one, or one each")
    chosen = sampling.make(sampler, **options)
    chosen.check_returns(num_return)
    sampling.check_model(sampler, model)
    encoded = _encode(model, tokenizer, prompts, max_new_tokens, truncate)
    if beginning is not None:
        for index, ids in enumerate(encoded):
            beginning.check(ids, index)

    run = _Run(
        model=model,
        tokenizer=tokenizer,
        sampler=chosen,
        remedies=remedy.given(remedies),
        max_new_tokens=max_new_tokens,
        returns=1 if chosen.draws else num_return,
        stop=stop,
        eos=_end_tokens(model, tokenizer),
        on_text=on_text,
        on_penalty=on_penalty,
        beginning=beginning,
    )
    draws = num_return if chosen.draws else 1
    jobs = [
        (index, ids, seeds[index] + draw)
        for index, ids in enumerate(encoded)
        for draw in range(draws)
    ]
    # Prompts of like length share a batch: less padding to compute.
    order = sorted(range(len(jobs)), key=lambda job: len(jobs[job][1]))
    width = max(1, batch_size // chosen.beams)
    even = beginning is not None and beginning.even(model, bool(remedies))
    done: dict[int, list[Continuation]] = {}
    training = model.training
    model.eval()  # dropout would make the text depend on more than the seed
    try:
        with _steps(model, compile):
            for some in _batches(order, [len(ids) for _, ids, _ in jobs], width, even=even):
                done.update(zip(some, run([jobs[job] for job in some]), strict=True))
    finally:
        model.train(training)
    return [
        Generation(
            prompt=index,
            prompt_tokens=len(ids),
            text=row.text,
            ids=row.ids,
            finish_reason=row.finish or "length",
            seconds=row.seconds,
            first_token_seconds=row.first_token_seconds,
            stats=row.stats,
        )
        for job, (index, ids, _) in enumerate(jobs)
        for row in done[job]
    ]


def _steps(model: Any, compile: str) -> contextlib.AbstractContextManager[None]:
    own = getattr(model, "compiled_steps", None)  # of a converted model
    return contextlib.nullcontext() if own is None else own(compile)


@dataclass(frozen=True)
class _Run:
    """One call of `model.generate` per batch of jobs: (index of the prompt, its ids, seed)."""

    model: Any
    tokenizer: Any
    sampler: sampling.Sampler
    remedies: dict[str, dict[str, Any]]
    max_new_tokens: int
    returns: int
    stop: Sequence[str]
    eos: list[int]
    on_text: Callable[[str], None] | None
    on_penalty: Callable[[int, Penalty], None] | None
    beginning: Beginning | None

    def __call__(self, jobs: Sequence[tuple[int, list[int], int]]) -> list[list[Continuation]]:
        """Each job's continuations, `returns` of them."""
        prompts = [ids for _, ids, _ in jobs]
        length, device = max(map(len, prompts)), self.model.device
        pad = self.eos[0] if self.eos else 0  # never seen: masked in the prompt, cut after the end
        known = [] if self.beginning is None else self.beginning.ids
        n = len(known)  # padding stands behind what has been read already
        ids = torch.tensor(
            [known + [pad] * (length - len(p)) + p[n:] for p in prompts], device=device
        )
        mask = torch.tensor(
            [[1] * n + [0] * (length - len(p)) + [1] * (len(p) - n) for p in prompts],
            device=device,
        )
        rows = [[self._continuation(prompt) for _ in range(self.returns)] for prompt in prompts]
        broken: dict[int, int] = {}  # job -> tokens before its logits broke
        beams = self.sampler.beams

        def found(row: int, ids: int) -> None:
            broken.setdefault(row // beams, ids - length)
            if beams == 1:
                rows[row][0].end("nan")

        def heard(penalty: Penalty) -> None:
            job, row = divmod(penalty.row, beams)
            if job not in broken and (beams > 1 or rows[job][0].finish is None):
                own = replace(penalty, row=row, position=penalty.position - length)
                self.on_penalty(jobs[job][0], own)

        arguments = {**GREEDY, **self.sampler.arguments([seed for *_, seed in jobs])}
        loop = arguments.get("custom_generate")
        processors = LogitsProcessorList([Finite(found)])
        if self.remedies:
            processors += remedy.make(
                self.remedies,
                self.tokenizer,
                pad_token_id=pad,
                prompt_length=length,
                on_penalty=None if self.on_penalty is None else heard,
            )
            processors.append(Finite(found))  # a remedy may forbid every token
        processors += arguments.pop("logits_processor", [])
        watch = Watch([row for some in rows for row in some], length, self.on_text)
        stopping: list[Any] = [watch] if beams == 1 else []
        if self.beginning is not None:
            arguments["past_key_values"] = self.beginning.rows(len(prompts) * beams)
        if beams > 1 and self.stop:
            stopping.append(StopStrings(self.tokenizer, self.stop, length))
        with torch.inference_mode():
            found_ids = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=self.eos or None,
                pad_token_id=pad,
                num_return_sequences=self.returns,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList(stopping),
                **arguments,
            )
        if beams > 1:
            self._read(watch, found_ids[:, length:].tolist(), broken)
        watch.close()
        for some, stats in zip(rows, getattr(loop, "stats", ()), strict=False):
            some[0].stats = stats
        return rows

    def _continuation(self, prompt: list[int]) -> Continuation:
        return Continuation(prompt, self.tokenizer, stop=self.stop, eos=self.eos)

    def _read(self, watch: Watch, found: list[list[int]], broken: dict[int, int]) -> None:
        """Fill the continuations from the finished rows of a search."""
        for index, (row, tokens) in enumerate(zip(watch.rows, found, strict=True)):
            whole = broken.get(index // self.returns)
            watch.feed(row, tokens[:whole])
            if whole is not None:
                row.end("nan")


def _batches(
    order: Sequence[int], lengths: Sequence[int], width: int, *, even: bool
) -> Iterator[list[int]]:
    """`order` in pieces of at most `width` jobs, of one length if they are to be `even`."""
    for _, same in groupby(order, key=lambda job: lengths[job] if even else 0):
        jobs = list(same)
        yield from (jobs[first : first + width] for first in range(0, len(jobs), width))


def _encode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int,
    truncate: Truncate | None,
) -> list[list[int]]:
    encoded = []
    for index, prompt in enumerate(prompts):
        try:
            encoded.append(
                encode(model, tokenizer, prompt, max_new_tokens=max_new_tokens, truncate=truncate)
            )
        except InputError as error:
            if len(prompts) == 1:
                raise
            raise InputError(f"prompt {index}: {error}") from error
    return encoded


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    stored = model.generation_config.eos_token_id
    ids = stored if isinstance(stored, list) else [stored]
    return sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None})
