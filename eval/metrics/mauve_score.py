"""MAUVE: how close the distribution of generated texts is to that of human texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from linearize import pretrained
from linearize.errors import InputError

FEATURES = "openai-community/gpt2-large"  # of the paper and of its leaderboards


def mauve_score(
    human: Sequence[str],
    generated: Sequence[str],
    *,
    model: Any = FEATURES,
    tokenizer: Any = None,
    max_tokens: int = 150,
    seed: int = 25,
    **options: Any,
) -> float:
    """MAUVE in (0, 1], higher is closer; `human` is p, `generated` q.

    Pillutla et al. 2021, "MAUVE: measuring the gap between neural text and human text", by their
    package `mauve-text`. DITTO gives it texts with their prefix on both sides, all of the full
    length, and 150 tokens at most. Scores compare only at equal features, lengths and numbers of
    texts; some thousands of texts are customary.

    - `model`, `tokenizer`: what reads the texts: a causal LM and its tokenizer, or a directory or
      hub id with both. A text's feature is the last hidden state of its last token.
    - `max_tokens`: texts are cut to this many of that tokenizer's tokens.
    - `seed`, `options`: of `mauve.compute_mauve` (`num_buckets`, `mauve_scaling_factor`, ...).

    Raises `InputError` where `mauve-text` or the model is missing, a side has fewer than two texts,
    or a text has no tokens.
    """
    try:
        import mauve
    except ImportError as error:
        raise InputError(
            'MAUVE needs the package mauve-text; install it with: pip install "linearize[metrics]"'
        ) from error
    if min(len(human), len(generated)) < 2:
        raise InputError(
            f"MAUVE compares distributions: {len(human)} human and {len(generated)} generated "
            "texts are too few; give at least two of each, better thousands"
        )
    if isinstance(model, str):
        path = pretrained.locate(model)
        model, tokenizer = pretrained.load(path), pretrained.tokenizer(path)
    p, q = (
        torch.stack([_feature(model, tokenizer, text, max_tokens) for text in texts]).numpy()
        for texts in (human, generated)
    )
    return float(mauve.compute_mauve(p_features=p, q_features=q, seed=seed, **options).mauve)


@torch.no_grad()
def _feature(model: Any, tokenizer: Any, text: str, max_tokens: int) -> Tensor:
    ids = tokenizer(text, truncation=True, max_length=max_tokens).input_ids
    if not ids:
        raise InputError(f"the text {text!r} has no tokens; leave it out on both sides")
    out = model(torch.tensor([ids], device=model.device), output_hidden_states=True)
    return out.hidden_states[-1][0, -1].float().cpu()
