"""The model class `linearize` of lm-eval: every model and sampler of this package.

    simple_evaluate(model="linearize", model_args={"pretrained": DIR, "sampler": "rpg"}, ...)

Importing this file registers the class. Prompts, tokens and scores are those of the harness's own
class `hf`; what differs is how they are computed.
"""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  registers the built-in models: a registry in use stays as it is
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from linearize.decoding.encode import positions
from linearize.errors import InputError, UsageError
from linearize.recurrent_depth.interface import is_looped, require_looped

from . import loading
from .choosing import Choice
from .inputs import Inputs
from .processes import Processes
from .responses import Responses
from .scoring import Row, Scorer, Scores
from .writing import Job, Writer

_log = logging.getLogger(__name__)
MAX_BATCH = 64  # where `batch_size="auto"` starts, as in the harness


@register_model("linearize")
class Linearize(TemplateLM):
    """A model of this package for the harness.

    Args:
        pretrained: directory, hub id, "embedded", or a model in memory (with `tokenizer`).
        tokenizer: the tokenizer, or where it is; default the model's.
        peft: directory of an adapter to put on the model.
        sampler: for generation tasks: a sampler and remedies joined by +, as in "sample+rpg".
            Without it the task's settings decide.
        jrt: how often a context is read before what follows it (JRT-Prompt, arXiv 2407.05483).
        recurrences: of a looped model; default its own number.
        max_length: most tokens of an input; default the model's context, and none for a model of
            constant memory. Longer inputs lose their beginning, as in the harness.
        prefix_reuse: encode what requests begin with in common once.
        batch_size: rows at once, or "auto": start high and halve when memory runs out.
        max_batch_size: where "auto" starts.
        add_bos_token, prefix_token_id, chat_template_args: as in the harness's `hf`.
        device, dtype: as everywhere in this package; "auto" computes in float32 on the CPU.
        seed: of samplers that draw; a request's text depends on it and on its own repeats only.
        responses: directory in which finished requests are kept, and found again.
        options: of the sampler by name (`temperature=0.7`), or `NAME.KEY` (`rpg.strength=2`).

    Raises `UsageError` and `InputError` for what does not exist or does not fit.
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        tokenizer: Any = None,
        peft: str | None = None,
        revision: str | None = None,
        sampler: str | None = None,
        jrt: int = 1,
        recurrences: int | None = None,
        max_length: int | None = None,
        prefix_reuse: bool = True,
        batch_size: int | str = 1,
        max_batch_size: int = MAX_BATCH,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        chat_template_args: dict[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        seed: int = 0,
        responses: str | Path | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.choice = Choice(sampler, options)
        self.processes = Processes(device)
        self._rank, self._world_size = self.processes.rank, self.processes.count
        self._device = self.processes.device
        self.name = str(pretrained) if isinstance(pretrained, str | Path) else "in memory"
        if isinstance(pretrained, str | Path):
            self.model, self.tokenizer, identity = loading.load(
                pretrained,
                peft=peft,
                tokenizer=tokenizer,
                revision=revision,
                device=self._device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
        else:
            if tokenizer is None:
                raise UsageError("a model in memory needs its tokenizer: tokenizer=...")
            self.model, self.tokenizer = pretrained.eval(), tokenizer
            self._device = self.model.device
            identity = loading.live(self.model, tokenizer)
        self._set_recurrences(recurrences)
        self.choice.check(self.model, self.tokenizer)
        self.add_bos_token, self._prefix_token_id = add_bos_token, prefix_token_id
        # The harness asks for a question's context once for each of its answers.
        self._encoded = functools.lru_cache(maxsize=8)(self._encode)
        self.chat_template_args = chat_template_args or {}
        self.seed = int(seed)
        shrink = str(batch_size).startswith("auto")
        self.batch_size = int(max_batch_size) if shrink else _whole("batch_size", batch_size)
        self.scorer = Scorer(
            self.model, batch_size=self.batch_size, shrink=shrink, reuse=bool(prefix_reuse)
        )
        self.inputs = Inputs(
            self.tok_encode,
            self.tokenizer,
            limit=self._longest(max_length),
            times=_whole("jrt", jrt),
        )
        self.writer = Writer(
            self.model, self.tokenizer, inputs=self.inputs, choice=self.choice, batches=self.scorer
        )
        self.settings = {
            **identity,
            **self.choice.record(),
            "jrt": self.inputs.times,
            "recurrences": self.model.loop.recurrences if is_looped(self.model) else None,
            "max_length": self.inputs.limit,
            "prefix_reuse": self.scorer.reuse,
            "add_bos_token": add_bos_token,
            "prefix_token_id": self.prefix_token_id,
            "seed": self.seed,
            "versions": versions(),
        }
        self.responses = Responses(responses, self.settings, rank=self.rank)

    # What the harness asks about the model.

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None else self.tokenizer.eos_token_id

    @property
    def max_length(self) -> int | None:
        """Most tokens of an input; None if there is no limit."""
        return self.inputs.limit

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """For the results file: what was evaluated, and how."""
        config = self.model.config
        held = getattr(config, "linearize", None) or {}
        return {
            "model": self.name,
            "model_num_parameters": sum(p.numel() for p in self.model.parameters()),
            "model_type": config.model_type,
            "model_dtype": self.settings["dtype"],
            "spec": held.get("spec"),
            "linearize": {**self.settings, "batch_size": self.scorer.batch_size},
            "inputs_cut": self.inputs.cut,
            "tokens_read_again": self.inputs.repeated,
        }

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        if self.inputs.times > 1:
            raise UsageError(
                "jrt repeats the whole context, and with a chat template that would repeat the "
                "roles too; use a task that repeats its own document, or no template"
            )
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.chat_template_args,
        )

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.processes.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        return self.processes.gather_object(obj, dst)

    def barrier(self) -> None:
        self.processes.barrier()

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids; a text that begins with the beginning-of-text token gets no second one."""
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token
            if has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
                add_special_tokens = False
        return list(self._encoded(string, add_special_tokens))

    def _encode(self, string: str, special: bool | None) -> tuple[int, ...]:
        given = {} if special is None else {"add_special_tokens": special}
        ids = tuple(self.tokenizer.encode(string, **given))
        known = self.model.get_input_embeddings().weight.shape[0]
        if max(ids, default=0) >= known:
            raise InputError(
                f"the tokenizer gives token {max(ids)}, and the model knows {known:,}; it is not "
                "the model's: leave out --tokenizer, or name the model's own"
            )
        return ids

    # The three kinds of requests.

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log probability, whether greedy decoding gives it) of continuations of contexts."""
        if self.inputs.times > 1:
            requests = [
                replace(r, arguments=(self.inputs.again(r.args[0], r.args[1]), *r.args[1:]))
                for r in requests
            ]
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or self.rank != 0)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log probability of texts, in windows of `max_length` tokens or in one."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(
                tokens, self.prefix_token_id, self.max_length or max(1, len(tokens)), 1
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        sums = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for owner, (score, _) in zip(owners, scores, strict=True):
            sums[owner] += score
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        keys, wanted = [], {}
        for strings, context, continuation in requests:
            if not continuation:
                raise InputError(f"nothing is left to score in {strings!r}: it adds no token")
            whole = self.inputs.scored((*context, *continuation), len(continuation))
            # A text without a context is read from left to right, whatever encodes prompts.
            prefix = 0 if strings is None else max(0, len(whole) - len(continuation))
            keys.append(self.responses.key("loglikelihood", prefix, len(continuation), whole))
            wanted[keys[-1]] = (whole, len(continuation), prefix)
        found = {key: r for key in wanted if (r := self.responses.get(key)) is not None}
        left = {key: value for key, value in wanted.items() if key not in found}
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(wanted), desc="scoring", disable=hidden, initial=len(found)) as bar:

            def keep(pairs: list[tuple[str, tuple[float, bool]]]) -> None:
                self.responses.add(pairs)
                found.update(pairs)
                bar.update(len(pairs))

            self._score(left, keep)
        return [tuple(found[key]) for key in keys]

    def _score(
        self,
        wanted: dict[str, tuple[tuple[int, ...], int, int]],
        on_pairs: Callable[[list[tuple[str, tuple[float, bool]]]], None],
    ) -> None:
        """Score (tokens, how many of them, tokens of the context) by key; equal inputs run once."""
        alike = defaultdict(list)
        for key, (tokens, count, prefix) in wanted.items():
            alike[tokens[:-1], prefix].append((key, tokens[-count:]))
        rows = [
            Row(
                tokens,
                scored=max(len(c) for _, c in asked),
                lasts=tuple({c[-1] for _, c in asked}),
                prefix=prefix,
            )
            for (tokens, prefix), asked in alike.items()
        ]
        asked = list(alike.values())

        def keep(found: list[tuple[int, Scores]]) -> None:
            on_pairs([(key, scores.of(c)) for i, scores in found for key, c in asked[i]])

        self.scorer(rows, keep)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop string, which is left out."""
        groups: dict[str, list[Job]] = defaultdict(list)
        repeats: Counter[str] = Counter()
        keys, found = [], {}
        for request in requests:
            context, given = request.args[:2]
            asked = json.dumps(given, sort_keys=True)
            same = json.dumps([context, asked])
            key = self.responses.key("generate_until", context, given, repeats[same])
            keys.append(key)
            if (response := self.responses.get(key)) is not None:
                found[key] = response
            else:
                groups[asked].append(Job(key, context, self.seed + repeats[same]))
            repeats[same] += 1
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(keys), desc="generating", disable=hidden, initial=len(found)) as bar:
            for asked, jobs in groups.items():
                for pairs in self.writer(jobs, json.loads(asked)):
                    self.responses.add(pairs)
                    found.update(pairs)
                    bar.update(len(pairs))
        return [found[key] for key in keys]

    def _set_recurrences(self, recurrences: int | None) -> None:
        if recurrences is None:
            return
        count = _whole("recurrences", recurrences)
        require_looped(self.model, needed_by="recurrences=")
        self.model.config.mean_recurrence = count

    def _longest(self, asked: int | None) -> int | None:
        limit, _ = positions(self.model)
        if asked is None:
            return limit
        asked = _whole("max_length", asked)
        if limit is not None and asked > limit:
            raise UsageError(
                f"max_length={asked} is more than the {limit} positions this model was made for; "
                "if it really reads that far, say so in its config.json (max_position_embeddings)"
            )
        return asked


def versions() -> dict[str, str]:
    """Of what computes the scores."""
    import lm_eval as harness
    import transformers

    import linearize

    return {
        "linearize": linearize.__version__,
        "lm_eval": harness.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _whole(name: str, value: Any) -> int:
    """A number from 1 up. Raises `UsageError` for anything else."""
    if isinstance(value, bool) or not str(value).isdigit() or int(value) < 1:
        raise UsageError(f"{name}={value!r} is not a whole number from 1 up")
    return int(value)
