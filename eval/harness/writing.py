"""Generation tasks: `linearize.decoding.generate` behind the harness's requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from linearize.decoding import generate

from .choosing import Choice
from .inputs import Inputs
from .scoring import Scorer

MAX_GEN_TOKS = 256  # new tokens where a task does not say, as in the harness


@dataclass(frozen=True)
class Job:
    """A context to continue; `seed` is for what is drawn, `key` for whoever asked."""

    key: str
    context: str
    seed: int


class Writer:
    """Continues contexts; `batches` says how many at once."""

    def __init__(
        self, model: Any, tokenizer: Any, *, inputs: Inputs, choice: Choice, batches: Scorer
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.inputs, self.choice, self.batches = inputs, choice, batches

    def __call__(
        self, jobs: Sequence[Job], given: Mapping[str, Any]
    ) -> Iterator[list[tuple[str, str]]]:
        """(key, text) of jobs that share their generation settings, a batch at a time."""
        asked = dict(normalize_gen_kwargs(dict(given), MAX_GEN_TOKS))
        new, stops = asked.pop("max_gen_toks"), [s for s in asked.pop("until") if s]
        end = self.tokenizer.eos_token
        arguments = self.choice.arguments(asked)
        prompts = {job: self.inputs.prompt(job.context, new) for job in jobs}
        # Longest first: if memory runs out, it does so at once.
        left = sorted(jobs, key=lambda job: -len(prompts[job]))
        while left:
            some = left[: self.batches.batch_size]
            try:
                written = generate(
                    self.model,
                    self.tokenizer,
                    [prompts[job] for job in some],
                    max_new_tokens=new,
                    stop=stops,
                    seed=[job.seed for job in some],
                    batch_size=len(some),
                    **arguments,
                )
            except RuntimeError as error:
                if not self.batches.halve(error, len(some)):
                    raise
                continue
            left = left[len(some) :]
            # The new tokens decoded alone, as in the harness: without the blank before them.
            texts = [self.tokenizer.decode(w.ids, skip_special_tokens=True) for w in written]
            cut = [*stops, *([end] if end else [])]
            yield [
                (job.key, postprocess_generated_text(text, cut, None))
                for job, text in zip(some, texts, strict=True)
            ]
