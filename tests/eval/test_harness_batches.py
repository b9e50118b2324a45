"""Batches that cost least, and continuations that stand beside each other in a row."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from linearize.eval.harness import beside
from linearize.eval.harness.batches import batches

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def cost(lengths: list[int], plan: list[slice], fixed: int) -> int:
    return sum(lengths[at.start] * (at.stop - at.start) + fixed for at in plan)


@pytest.mark.parametrize("most", [1, 3, 9])
def test_batches_are_the_cheapest(most: int) -> None:
    draw = random.Random(most)
    for _ in range(20):
        count = draw.randrange(1, 9)
        lengths = sorted((draw.randrange(1, 40) for _ in range(count)), reverse=True)
        fixed = draw.choice([0, 5, 30])
        plan = batches(lengths, most=most, fixed=fixed)
        ends = [0, *(at.stop for at in plan)]
        assert ends[-1] == count
        assert ends[:-1] == [at.start for at in plan]
        every = (
            [slice(a, b) for a, b in itertools.pairwise([0, *cuts, count])]
            for n in range(count)
            for cuts in itertools.combinations(range(1, count), n)
        )
        allowed = [p for p in every if all(at.stop - at.start <= most for at in p)]
        assert plan in allowed
        assert cost(lengths, plan, fixed) == min(cost(lengths, p, fixed) for p in allowed)
    assert batches([], most=most, fixed=1) == []


def test_packs_hold_each_continuation_once() -> None:
    lengths = [100, 100, 60, 300, 1, 255, 2]
    found = beside.packs(lengths, 256)
    assert [i for pack in found for i in pack] == list(range(len(lengths)))
    assert [3] in found
    assert all(sum(lengths[i] for i in pack) <= 256 or len(pack) == 1 for pack in found)


def test_a_continuation_sees_its_beginning_and_itself() -> None:
    real = torch.tensor([[True, True, False], [True, True, True]])
    mask, positions = beside.masked(real, [[2, 1], [1]])
    assert positions.tolist() == [[2, 3, 2], [3, 3, 3]]
    first = [[1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1]]
    assert mask[0, 0].int().tolist() == first
    assert mask[1, 0, 0].int().tolist() == [1, 1, 1, 1, 0, 0]
    assert mask.any(-1).all(), "no row is empty, not even padding's"


def test_a_model_is_asked_whether_it_obeys_the_mask() -> None:
    """Eager attention adds the mask to the scores, where true and false are 1 and 0."""
    for attention, wanted in (("sdpa", True), ("eager", False)):
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            config = LlamaConfig(**SMALL, attn_implementation=attention)
            assert beside.understands(LlamaForCausalLM(config).eval().to(dtype)) == wanted
