"""Scores of the plugin: one definition, however requests are batched and what they share."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from linearize import LigerSpec, apply
from linearize.errors import UsageError
from linearize.eval.harness.prefixes import LEAST, Branch, shared
from linearize.eval.harness.scoring import Row, Scorer
from linearize.recurrent_depth.config import RavenConfig
from linearize.recurrent_depth.model import RavenForCausalLM

V = 97
SMALL = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def _gpt2() -> PreTrainedModel:
    sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, **sizes, bos_token_id=1, eos_token_id=2))


def _looped() -> PreTrainedModel:
    return RavenForCausalLM(
        RavenConfig(
            vocab_size=V,
            n_embd=32,
            n_heads=4,
            intermediate_size=48,
            n_layers_in_prelude=1,
            n_layers_in_recurrent_block=1,
            n_layers_in_coda=1,
            mean_recurrence=3,
            block_size=256,
        )
    )


MODELS = {
    "softmax": _llama,
    "learned positions": _gpt2,
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=24)),
    "converted": lambda: apply(_llama(), LigerSpec(window=8)),
    "converted, a layer kept": lambda: apply(
        _llama(), LigerSpec(window=8, mix="learned", keep_softmax=(1,))
    ),
    "prefix encoder": lambda: apply(_llama(), LigerSpec(window=8, prefix="jrt")),
    "looped": _looped,
}


def _rows() -> list[Row]:
    """Questions with four answers each; two thirds of them begin with the same examples."""
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(V) for _ in range(count))

    rows, examples = [], tokens(30)
    for question in range(6):
        context = (examples if question % 3 else ()) + tokens(draw.randrange(1, 50))
        for _ in range(4):
            whole = (*context, *tokens(draw.randrange(1, 6)))
            count = len(whole) - len(context)
            rows.append(Row(whole[:-1], count, (whole[-1], 3), prefix=len(context)))
    return rows


def _define(model: PreTrainedModel, row: Row) -> tuple[float, bool]:
    """The row alone, in one pass."""
    extra = {}
    if (getattr(model.config, "linearize", None) or {}).get("spec", {}).get("prefix") == "jrt":
        extra["prefix_lengths"] = row.prefix
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([row.tokens]), **extra).logits[0].log_softmax(-1)
    targets = torch.tensor([*row.tokens[1:], row.lasts[0]])[-row.scored :]
    logp = logp[-row.scored :]
    return logp.gather(1, targets[:, None]).sum().item(), bool((logp.argmax(-1) == targets).all())


@pytest.mark.parametrize("name", MODELS)
def test_a_score_depends_on_its_tokens_only(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    # So that what a token sees matters; a looped model of such weights would amplify rounding.
    scale = 2 if name == "looped" else 8
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    rows = _rows()
    wanted = [_define(model, row) for row in rows]
    assert len({round(score, 1) for score, _ in wanted}) > 12, "the model tells rows apart"
    for reuse in (True, False):
        for batch in (1, 5, 16):
            scorer = Scorer(model, batch_size=batch, shrink=False, reuse=reuse)
            assert scorer.reuse == (reuse and name != "prefix encoder")
            found = {}
            scorer(rows, found.update)
            for i, (row, (score, greedy)) in enumerate(zip(rows, wanted, strict=True)):
                given = found[i].of([*row.tokens[1:], row.lasts[0]][-row.scored :])
                assert given[0] == pytest.approx(score, abs=2e-4), (reuse, batch, i)
                assert given[1] == greedy


def test_long_rows_go_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = apply(_llama(), LigerSpec(window=8)).eval()
    row = Row(tuple(i % V for i in range(200)), 200, (5,))
    whole = _define(model, row)
    monkeypatch.setattr("linearize.eval.harness.scoring.PIECE", 32)
    found = {}
    Scorer(model, batch_size=1, shrink=False, reuse=True)([row], found.update)
    assert found[0].of([*row.tokens[1:], 5]) == (pytest.approx(whole[0], abs=1e-3), whole[1])


def test_memory_that_runs_out_halves_the_batch() -> None:
    model, widest = _llama().eval(), []

    def forward(_: object, args: tuple, given: dict[str, torch.Tensor]) -> None:
        widest.append(len(given["input_ids"]))
        if widest[-1] > 3:
            raise RuntimeError("CUDA out of memory.")

    model.register_forward_pre_hook(forward, with_kwargs=True)
    rows, found = _rows(), {}
    scorer = Scorer(model, batch_size=16, shrink=True, reuse=True)
    scorer(rows, found.update)
    assert len(found) == len(rows)
    assert scorer.batch_size <= 3 < max(widest)
    with pytest.raises(UsageError, match=r"with \d+ rows at once; try --batch-size \d+, or"):
        Scorer(model, batch_size=16, shrink=False, reuse=True)(rows, found.update)
    model.register_forward_pre_hook(lambda _, args: torch.empty(1 << 60))
    with pytest.raises(UsageError, match="ran out with one row at once; shorter inputs"):
        Scorer(model, batch_size=16, shrink=True, reuse=True)(rows, found.update)


def test_the_tree_holds_each_request_once_and_saves_tokens() -> None:
    draw = random.Random(1)
    head = [draw.randrange(9) for _ in range(40)]
    keys = []
    for _ in range(60):
        cut = draw.randrange(40)
        keys.append(tuple(head[:cut] + [draw.randrange(9) for _ in range(draw.randrange(30))]))
    keys += [keys[0], ()]
    seen, encoded = [], 0

    def walk(nodes: list[Branch | int], before: tuple[int, ...]) -> None:
        nonlocal encoded
        for node in nodes:
            if isinstance(node, Branch):
                assert node.start == len(before)
                assert node.end - node.start >= LEAST
                assert len(node.below) > 1
                encoded += node.end - node.start
                walk(node.below, keys[node.of][: node.end])
            else:
                assert keys[node][: len(before)] == before
                encoded += len(keys[node]) - len(before)
                seen.append(node)

    walk(shared(keys), ())
    assert sorted(seen) == list(range(len(keys)))
    assert encoded < 0.8 * sum(map(len, keys))
