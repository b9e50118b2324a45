"""Scores of a model that encodes prompts: the context is encoded, the continuation is not seen."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from linearize import LigerSpec, apply
from linearize.eval.harness.scoring import Row, Scorer, Scores


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    made = apply(LlamaForCausalLM(config), LigerSpec(mix="fixed", window=8, prefix="jrt")).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
            if name.endswith("prefix.weight"):
                parameter.fill_(0.5)
    return made


def row(context: list[int], continuation: list[int]) -> Row:
    whole = (*context, *continuation)
    return Row(whole[:-1], len(continuation), (continuation[-1],), prefix=len(context))


def scores(model: PreTrainedModel, rows: list[Row], batch_size: int) -> list[Scores]:
    found: dict[int, Scores] = {}
    Scorer(model, batch_size=batch_size, shrink=False, reuse=True)(rows, found.update)
    return [found[i] for i in range(len(rows))]


def test_scores_are_those_of_an_encoded_context(model: PreTrainedModel) -> None:
    make = torch.Generator().manual_seed(1)
    texts = [torch.randint(1, 50, (n,), generator=make).tolist() for n in (30, 12, 21)]
    parts = [(t[:-3], t[-3:]) for t in texts]
    rows = [row(*part) for part in parts]
    for size in (1, 3):
        for (context, continuation), one in zip(parts, scores(model, rows, size), strict=True):
            ids = torch.tensor([context + continuation])
            with torch.no_grad():
                logits = model(ids, prefix_lengths=len(context), use_cache=False).logits[0]
                causal = model(ids, use_cache=False).logits[0]
            at = torch.arange(len(context) - 1, len(context) + 2)
            wanted = logits.log_softmax(-1)[at, continuation].sum().item()
            assert one.of(continuation)[0] == pytest.approx(wanted, abs=1e-4)
            plain = causal.log_softmax(-1)[at, continuation].sum().item()
            assert abs(wanted - plain) > 1e-2


def test_what_is_scored_is_not_seen_before_it_is(model: PreTrainedModel) -> None:
    context = list(range(1, 20))
    one, other = scores(model, [row(context, [5, 6, 7]), row(context, [5, 30, 7])], 2)
    assert one.own[0] == pytest.approx(other.own[0], abs=1e-6)
    assert abs(one.own[1] - other.own[1]) > 1e-3
