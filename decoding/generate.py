"""`generate`: one door to decoding for the commands, the harness and Python.

- Any causal LM of transformers; the loop, the cache and its masks are transformers' own.
- Only what is asked for applies: sampling and penalty defaults stored with the model are switched
  off; its end-of-text tokens are kept.
- Prompts are batched by left padding with a mask; a tokenizer needs no padding token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import StoppingCriteriaList

from linearize.errors import InputError, UsageError

from . import sampling
from .text import Continuation, Watch


@dataclass(frozen=True)
class Generation:
    """What one prompt was continued with.

    - `text`: the continuation, without special tokens and without the stop string.
    - `ids`: the generated tokens, the ending one included.
    - `finish_reason`: "stop" (a stop string), "eos" (an end-of-text token) or "length".
    - `seconds`: from the start of its batch to its last token, prefill included.
    """

    text: str
    ids: list[int]
    prompt_tokens: int
    finish_reason: Literal["stop", "eos", "length"]
    seconds: float

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
    max_new_tokens: int = 128,
    seed: int | Sequence[int] = 0,
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
    batch_size: int = 8,
    **options: Any,
) -> list[Generation]:
    """Continue each prompt; results come in the order of the prompts.

    - `prompts`: texts, or token ids where the caller has tokenised already.
    - `sampler`, `options`: a row of `sampling.SAMPLERS` and its own options (`temperature`, ...).
    - `seed`: one for every prompt, or one each. A prompt's text depends on its own seed only, not
      on the prompts beside it (up to the rounding of batched matrix products).
    - `stop`: strings that end a continuation; they are not part of its text.
    - `on_text`: called with pieces of text as they come; for a single prompt.
    - `batch_size`: prompts per forward pass.

    Raises `UsageError` for an option out of range, `InputError` for a prompt that has no tokens or
    does not fit the model.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens} is below 1")
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size} is below 1")
    if on_text is not None and len(prompts) != 1:
        raise UsageError(f"text can be streamed for one prompt, not for {len(prompts)}")
    if any(not s for s in stop):
        raise UsageError("a stop string is empty; leave it out")
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise UsageError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one, or one each")
    start = sampling.make(sampler, **options)
    encoded = [_encode(tokenizer, prompt) for prompt in prompts]
    _check_positions(model, max(map(len, encoded), default=0) + max_new_tokens)
    eos = _end_tokens(model, tokenizer)

    done: list[Continuation] = []
    training = model.training
    model.eval()  # dropout would make the text depend on more than the seed
    try:
        for first in range(0, len(encoded), batch_size):
            some = slice(first, first + batch_size)
            rows = [Continuation(ids, tokenizer, stop=stop, eos=eos) for ids in encoded[some]]
            _run(model, encoded[some], rows, start(seeds[some]), eos, max_new_tokens, on_text)
            done += rows
    finally:
        model.train(training)
    return [
        Generation(row.text, row.ids, len(ids), row.finish or "length", row.seconds)
        for ids, row in zip(encoded, done, strict=True)
    ]


def _run(
    model: Any,
    prompts: list[list[int]],
    rows: list[Continuation],
    chosen: dict[str, Any],
    eos: list[int],
    max_new_tokens: int,
    on_text: Callable[[str], None] | None,
) -> None:
    length = max(map(len, prompts))
    pad = eos[0] if eos else 0  # never seen: masked in the prompt, cut after the end
    ids = torch.tensor([[pad] * (length - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    watch = Watch(rows, length, on_text)
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            eos_token_id=eos or None,
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([watch]),
            # Spelt out, because what is left out is filled in from the model's own defaults.
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            temperature=1.0,
            top_k=50,  # transformers' neutral value when nothing is drawn
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            **chosen,
        )
    watch.close()


def _encode(tokenizer: Any, prompt: str | Sequence[int]) -> list[int]:
    ids = tokenizer(prompt).input_ids if isinstance(prompt, str) else [int(i) for i in prompt]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise InputError(
            f"the prompt {prompt!r} has no tokens, and this tokenizer has no token to begin with; "
            "give some text"
        )
    return list(ids)


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    stored = model.generation_config.eos_token_id
    ids = stored if isinstance(stored, list) else [stored]
    return sorted({int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None})


def _check_positions(model: Any, needed: int) -> None:
    # Rotary and recurrent models run past their trained length; a learned table of positions ends.
    limit = getattr(model.config, "max_position_embeddings", None)
    if not limit or needed <= limit:
        return
    words = model.get_input_embeddings()
    tables = (m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not words)
    if any(
        limit <= table.num_embeddings < limit + 8 for table in tables
    ):  # OPT adds an offset of 2
        raise InputError(
            f"prompt and new tokens together are {needed} tokens, and this "
            f"{model.config.model_type} model has {limit} positions; "
            "shorten the prompt or lower max_new_tokens"
        )
