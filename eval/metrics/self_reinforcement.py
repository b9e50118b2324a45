"""Self-reinforcement: how much likelier a sentence becomes with every copy of itself.

DITTO ("Learning to Break the Loop", NeurIPS 2022, section 2) reads a model a sentence of L tokens
repeated N + 1 times and takes `p[n, l]`, the probability of token l in copy n given all before it:

- `TP_n = mean over l of p[n, l]`, the probability of the sentence's tokens;
- `IP_n = mean over l of [p[n, l] > p[0, l]]`, the share likelier than in the first copy;
- `WR_n = mean over l of [p[n, l] > p[0, l] and token l is the argmax]`, the share that also won.

All are in [0, 1], n = 0..N, and averaged over sentences. The public script computes something else:
`self_reinforcement_released`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linearize.errors import InputError, UsageError
from linearize.training.evaluate import evaluating


@dataclass(frozen=True)
class SelfReinforcement:
    """Curves over copies; `tp`, `ip`, `wr` hold n = 0..N.

    - `slope`: `TP_1 - TP_0`, what one copy adds.
    - `sentences`: how many were averaged, each with the same weight.
    """

    tp: list[float]
    ip: list[float]
    wr: list[float]
    sentences: int

    @property
    def slope(self) -> float:
        return self.tp[1] - self.tp[0]


def curves(measured: Iterable[tuple[Tensor, Tensor]]) -> SelfReinforcement:
    """TP, IP and WR of measured sentences.

    - `measured`: per sentence `probs` `[N + 1, L]`, any float type, and `argmax` `[N + 1, L]` bool,
      true where the token was the most likely one. L may differ, N may not.

    Raises `InputError` for no sentence or fewer than two copies.
    """
    rows = []
    for probs, argmax in measured:
        if len(probs) < 2 or not probs.shape[1]:
            raise InputError(
                f"probabilities {list(probs.shape)} are no [copies, tokens] with at least two "
                "copies of at least one token"
            )
        up = probs > probs[0]
        rows.append(torch.stack([x.double().mean(1) for x in (probs, up, up & argmax.bool())]))
    if not rows:
        raise InputError("there is no sentence to measure; give at least one")
    tp, ip, wr = torch.stack(rows).mean(0).tolist()
    return SelfReinforcement(tp, ip, wr, len(rows))


def measure_self_reinforcement(
    model: Any,
    tokenizer: Any,
    sentences: Sequence[str | Sequence[int]],
    copies: int = 10,
    *,
    prefix: str | Sequence[int] = "",
) -> SelfReinforcement:
    """Read a causal LM each sentence `copies` times in a row; one forward pass per sentence.

    - `sentences`: texts, or token ids. A text is tokenised as it stands behind another sentence,
      with its leading blank; its tokens are repeated, the concatenation is never tokenised again.
    - `copies`: N + 1, the first one, the reference, included.
    - `prefix`: text or ids before the first copy. A text begins as the tokenizer begins texts, an
      empty one with its BOS token. With no token before it the first token of the first copy has
      no probability and is left out of every copy.

    Runs where the model lies, in evaluation mode, in its dtype; probabilities are float32.

    Raises `UsageError` for fewer than two copies, `InputError` for a sentence without tokens or
    copies that do not fit the model's positions.
    """
    if copies < 2:
        raise UsageError(f"copies={copies} is below 2; the first copy is only the reference")
    start = _start(tokenizer, prefix)
    with evaluating(model):
        return curves(_measure(model, start, _unit(tokenizer, s), copies) for s in sentences)


@torch.inference_mode()
def _measure(model: Any, start: list[int], unit: list[int], copies: int) -> tuple[Tensor, Tensor]:
    length = len(start) + copies * len(unit)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and length > limit:
        fit = max(0, limit - len(start)) // len(unit)
        raise InputError(
            f"{copies} copies of a sentence of {len(unit)} tokens need {length} positions and the "
            f"model has {limit}; use at most {fit} copies, or a shorter sentence"
        )
    ids = torch.tensor([start + unit * copies], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0]
    first = max(len(start), 1)  # the first token of a row is predicted by nothing
    targets = ids[0, first:]
    probs, argmax = [], []
    # One stretch at a time: a float32 copy of all logits would double the peak.
    for scores, tokens in zip(logits[first - 1 : -1].split(64), targets.split(64), strict=True):
        log_probs = scores.float().log_softmax(-1)
        probs.append(log_probs.gather(1, tokens[:, None])[:, 0].exp())
        argmax.append(scores.argmax(-1) == tokens)
    unread = 0 if start else 1  # tokens of each copy that the first one has no probability for
    width = len(unit) - unread
    known = torch.arange(unread, copies * len(unit)) % len(unit) >= unread
    return tuple(torch.cat(x).cpu()[known].view(copies, width) for x in (probs, argmax))


def _start(tokenizer: Any, prefix: str | Sequence[int]) -> list[int]:
    if not isinstance(prefix, str):
        return list(prefix)
    ids = list(tokenizer(prefix).input_ids)
    bos = tokenizer.bos_token_id
    return [bos] if not ids and bos is not None else ids


def _unit(tokenizer: Any, sentence: str | Sequence[int]) -> list[int]:
    if isinstance(sentence, str):
        once, twice = (
            tokenizer(text, add_special_tokens=False).input_ids
            for text in (sentence, f"{sentence} {sentence}")
        )
        pairs = zip(once, twice, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(once))
        unit = list(twice[same:])
    else:
        unit = list(sentence)
    if not unit or sentence == "":
        raise InputError(f"the sentence {sentence!r} has no tokens; leave it out")
    return unit
